"""Through a real server: what the audit log says of a call, and that its page explains all of it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from rds_csi import errors, requests
from rds_csi.interceptors import AUDIT_NAMES, AUDITED, RpcInterceptor
from rds_csi.metrics import rpc_histogram
from rds_csi.server import CsiServer
from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_process.audit import Kind
from rds_process.logs import AUDIT
from tests.ring.installation import CONTROLLER, resources

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
VOLUME = "pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f"


class Scripted(csi_pb2_grpc.ControllerServicer):
    """Does in every call what the test says; requests are read as the controller does."""

    def __init__(self) -> None:
        self.act: Callable[[], None] = lambda: None

    async def CreateVolume(self, request: Any, _: Any) -> Any:  # noqa: N802
        assert request.name
        self.act()
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id=VOLUME, capacity_bytes=1 << 30))

    async def ControllerPublishVolume(self, request: Any, _: Any) -> Any:  # noqa: N802
        requests.controller_publish(request)
        self.act()
        return csi_pb2.ControllerPublishVolumeResponse()

    async def ListVolumes(self, request: Any, _: Any) -> Any:  # noqa: N802
        assert request is not None
        return csi_pb2.ListVolumesResponse()


@pytest.fixture
def servicer() -> Scripted:
    return Scripted()


@pytest.fixture
async def stub(servicer: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Any]:
    caplog.set_level(logging.INFO)
    interceptor = RpcInterceptor(rpc_histogram(CollectorRegistry()), driver_name="rds.csi.srvlab.io")
    server = CsiServer(f"unix://{tmp_path / 'csi.sock'}", [servicer], [interceptor])
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'csi.sock'}") as channel:
        yield csi_pb2_grpc.ControllerStub(channel)
    await server.stop(0)


def entries(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    plain = set(logging.makeLogRecord({}).__dict__) | {"message"}
    return [{key: value for key, value in one.__dict__.items() if key not in plain} for one in caplog.records if one.name == AUDIT]


async def the_entry(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Return the only entry, which comes after the answer."""
    async with asyncio.timeout(5):
        while not entries(caplog):  # noqa: ASYNC110 a log tells nobody
            await asyncio.sleep(0)
    [only] = entries(caplog)
    return only


def publish(volume: str = VOLUME, node: str = "node-a") -> Any:
    capability = csi_pb2.VolumeCapability(
        block=csi_pb2.VolumeCapability.BlockVolume(),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER),
    )
    return csi_pb2.ControllerPublishVolumeRequest(
        volume_id=volume, node_id=node, volume_capability=capability, secrets={"password": "hunter2"}
    )


async def test_an_admission_names_volume_and_node_and_no_secret(stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    await stub.ControllerPublishVolume(publish())
    entry = await the_entry(caplog)
    assert len(entry.pop("call")) == 8
    assert entry == {
        "audit": "call.admitted",
        "method": "ControllerPublishVolume",
        "volume": VOLUME,
        "node": "node-a",
        "readonly": False,
        "code": "OK",
    }
    assert "hunter2" not in json.dumps(entry)


async def test_a_volume_that_was_made_is_named_as_it_was_asked_for_and_as_it_is(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="pvc-asked"))
    entry = await the_entry(caplog)
    assert (entry["asked_name"], entry["volume"], entry["bytes"]) == ("pvc-asked", VOLUME, 1 << 30)


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errors.FailedPrecondition("held by node-b"), "call.refused", "FailedPrecondition"),
        (errors.NameRefused("no such path"), "name.refused", "InvalidArgument"),
        (TimeoutError("too late"), "call.failed", "DeadlineExceeded"),
        (RuntimeError("inner secret"), "call.failed", "Internal"),
    ],
)
async def test_what_was_not_admitted_says_why(
    stub: Any, servicer: Scripted, caplog: pytest.LogCaptureFixture, error: Exception, kind: str, code: str
) -> None:
    def act() -> None:
        raise error

    servicer.act = act
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ControllerPublishVolume(publish())
    entry = await the_entry(caplog)
    assert (entry["audit"], entry["code"], entry["volume"]) == (kind, code, VOLUME)
    assert entry["reason"]
    assert "inner secret" not in entry["reason"]


@pytest.mark.parametrize(
    ("volume", "node"),
    [("../../etc/passwd", "node-a"), ("pvc-1\n{}", "node-a"), (VOLUME, "node\u202ea"), (VOLUME, "x" * 300)],
)
async def test_a_name_that_may_not_be_used_stands_out_and_breaks_nothing(
    stub: Any, caplog: pytest.LogCaptureFixture, volume: str, node: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ControllerPublishVolume(publish(volume, node))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    entry = await the_entry(caplog)
    [level] = [one.levelno for one in caplog.records if one.name == AUDIT]
    assert level == logging.WARNING
    assert entry["audit"] == "name.refused"
    assert "\n" not in entry["volume"]
    assert "\u202e" not in entry["node"] + entry["reason"]
    assert len(entry["node"]) < 300


async def test_a_call_that_only_reads_has_no_entry(stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    await stub.ListVolumes(csi_pb2.ListVolumesRequest())
    assert entries(caplog) == []


def test_every_call_either_changes_something_and_is_audited_or_is_known_to_read_only() -> None:
    reads = re.compile("Get|List|Validate|Probe|Capabilit")
    for name in ("Controller", "Node", "Identity"):
        for method in csi_pb2.DESCRIPTOR.services_by_name[name].methods:
            assert (method.name in AUDITED) != bool(reads.search(method.name)), method.name


def test_the_page_explains_every_kind_and_every_field() -> None:
    page = PAGE.read_text()
    told = set(re.findall(r"^\| `([a-z_.]+)` \|", page, re.MULTILINE))
    asked = {AUDIT_NAMES.get(field, field) for fields in AUDITED.values() for field in fields}
    fields = asked | {"audit", "method", "call", "code", "reason", "bytes", "command", "box", "user"}
    assert told == {str(kind) for kind in Kind} | fields | {"time", "level", "logger"}


def test_the_page_says_how_often_a_refusal_is_repeated_as_it_is_shipped() -> None:
    (controller,) = (body for body in resources() if body["kind"] == "Deployment" and body["metadata"]["name"] == CONTROLLER)
    (attacher,) = (one for one in controller["spec"]["template"]["spec"]["containers"] if one["name"] == "csi-attacher")
    (flag,) = (argument for argument in attacher["args"] if argument.startswith("--retry-interval-max="))
    assert f"`{flag}` as shipped" in PAGE.read_text()
