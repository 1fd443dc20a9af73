"""Through a real server over a unix socket: every RPC is measured, logged without its secrets, and ends in a status."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from rds_csi import errors
from rds_csi.interceptors import MAX_ITEMS, RpcInterceptor, code_name, loggable
from rds_csi.metrics import rpc_histogram
from rds_csi.routeros import errors as routeros
from rds_csi.server import CsiServer, served_methods
from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_records import kubernetes_api

DELETE = "/csi.v1.Controller/DeleteVolume"
DRIVER = "rds.csi.srvlab.io"
SECRETS = {"user": "admin", "key": "hunter2"}


class Scripted(csi_pb2_grpc.ControllerServicer):
    """Does in DeleteVolume what the test says."""

    def __init__(self) -> None:
        self.act: Callable[[Any], Any] = lambda _: None
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()

    async def DeleteVolume(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = self.act(context)
        if asyncio.iscoroutine(answer):
            await answer
        return csi_pb2.DeleteVolumeResponse()

    async def hang(self, _: Any) -> None:
        self.entered.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Plugin:
    def __init__(self, folder: Path) -> None:
        self.registry = CollectorRegistry()
        self.servicer = Scripted()
        self.socket = folder / "csi.sock"
        interceptor = RpcInterceptor(rpc_histogram(self.registry), driver_name=DRIVER, methods=served_methods([self.servicer]))
        self.server = CsiServer(f"unix://{self.socket}", [self.servicer], [interceptor])

    def calls(self, code: str, method: str = DELETE) -> float | None:
        labels = {"driver_name": DRIVER, "method_name": method, "grpc_status_code": code}
        return self.registry.get_sample_value("csi_plugin_operations_seconds_count", labels)

    async def counted(self, *codes: str, method: str = DELETE) -> None:
        """Return when a call with one of these codes is counted: the server does that after it has answered."""
        while not any(self.calls(code, method) for code in codes):  # noqa: ASYNC110 a counter tells nobody
            await asyncio.sleep(0)


@pytest.fixture
async def plugin(tmp_path: Path) -> AsyncIterator[Plugin]:
    made = Plugin(tmp_path)
    await made.server.start()
    yield made
    await made.server.stop(0)


@pytest.fixture
async def stub(plugin: Plugin) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"unix:{plugin.socket}") as channel:
        yield csi_pb2_grpc.ControllerStub(channel)


async def refusal(stub: Any, **request: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(**request), timeout=10)
    return caught.value


def raising(error: BaseException) -> Callable[[Any], None]:
    def act(_: Any) -> None:
        raise error

    return act


@pytest.mark.requirement("R43")
async def test_successful_call_is_measured(plugin: Plugin, stub: Any) -> None:
    assert plugin.calls("OK") == 0
    await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-1"))
    assert plugin.calls("OK") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgument("no"), "INVALID_ARGUMENT"),
        (errors.NotFound("no"), "NOT_FOUND"),
        (errors.AlreadyExists("no"), "ALREADY_EXISTS"),
        (errors.FailedPrecondition("no"), "FAILED_PRECONDITION"),
        (errors.Aborted("no"), "ABORTED"),
        (errors.OutOfRange("no"), "OUT_OF_RANGE"),
        (errors.ResourceExhausted("no"), "RESOURCE_EXHAUSTED"),
        (errors.Unavailable("no"), "UNAVAILABLE"),
        (errors.Unimplemented("no"), "UNIMPLEMENTED"),
        (routeros.PoolFull("no"), "RESOURCE_EXHAUSTED"),
        (routeros.HostKeyRefused("no"), "UNAVAILABLE"),
        (routeros.OutcomeUnknown("no"), "UNAVAILABLE"),
        (routeros.DiskInTheWay("pvc-1", {}), "ALREADY_EXISTS"),
        (routeros.FileInTheWay("no"), "FAILED_PRECONDITION"),
        (routeros.NotPermitted("no"), "INTERNAL"),
        (kubernetes_api.ApiUnavailable("no"), "UNAVAILABLE"),
        (kubernetes_api.WriteConflict("no"), "ABORTED"),
        (TimeoutError("no"), "DEADLINE_EXCEEDED"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.requirement("R43")
async def test_known_exception_becomes_its_status_with_its_message(plugin: Plugin, stub: Any, error: Exception, code: str) -> None:
    plugin.servicer.act = raising(error)
    told = await refusal(stub, volume_id="pvc-1")
    assert (told.code(), told.details()) == (grpc.StatusCode[code], str(error))
    await plugin.counted(code_name(grpc.StatusCode[code]))


async def test_unexpected_exception_is_internal_with_an_id_and_its_traceback_in_the_log(
    plugin: Plugin, stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plugin.servicer.act = raising(KeyError("private detail"))
    told = await refusal(stub, volume_id="pvc-1")
    assert told.code() is grpc.StatusCode.INTERNAL
    assert "private detail" not in told.details()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.__dict__["call"] in told.details()
    assert "KeyError" in caplog.text
    plugin.servicer.act = lambda _: None
    await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-1"))


async def test_rpc_that_is_not_implemented_says_so(plugin: Plugin, stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListVolumes(csi_pb2.ListVolumesRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await plugin.counted("Unimplemented", method="/csi.v1.Controller/ListVolumes")


async def test_abort_by_the_servicer_itself_is_kept(plugin: Plugin, stub: Any) -> None:
    plugin.servicer.act = lambda context: context.abort(grpc.StatusCode.DATA_LOSS, "gone")
    told = await refusal(stub, volume_id="pvc-1")
    assert (told.code(), told.details()) == (grpc.StatusCode.DATA_LOSS, "gone")
    await plugin.counted("DataLoss")


async def test_cancelled_call_cancels_the_handler(plugin: Plugin, stub: Any) -> None:
    plugin.servicer.act = plugin.servicer.hang
    call = stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-1"))
    async with asyncio.timeout(10):
        await plugin.servicer.entered.wait()
        call.cancel()
        await plugin.servicer.cancelled.wait()
        await plugin.counted("Canceled")


async def test_passed_deadline_cancels_the_handler_and_is_measured(plugin: Plugin, stub: Any) -> None:
    plugin.servicer.act = plugin.servicer.hang
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-1"), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(10):
        await plugin.servicer.cancelled.wait()
        await plugin.counted("DeadlineExceeded", "Canceled")  # whichever the server heard of first


@pytest.mark.requirement("R59")
async def test_a_call_is_one_log_line_with_its_request_and_outcome_and_without_secrets(
    plugin: Plugin, stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rds_csi.interceptors")
    await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-1", secrets=SECRETS))
    (line,) = (record.__dict__ for record in caplog.records if record.name == "rds_csi.interceptors")
    assert line["request"] == {"volume_id": "pvc-1", "secrets": "***stripped***"}
    assert line["code"] == "OK"
    assert not any("hunter2" in str(record.__dict__) for record in caplog.records)


async def test_status_message_is_cut_to_what_a_header_holds(plugin: Plugin, stub: Any) -> None:
    plugin.servicer.act = raising(errors.Aborted("x" * 20_000))
    assert len((await refusal(stub, volume_id="pvc-1")).details()) == 4096


async def test_drain_lets_a_call_in_flight_finish_and_takes_no_new_one(plugin: Plugin, stub: Any) -> None:
    plugin.servicer.act = plugin.servicer.hang
    call = stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-1"))
    await plugin.servicer.entered.wait()
    stopping = asyncio.create_task(plugin.server.stop(30))
    async with asyncio.timeout(10):
        while True:
            # Until the server has heard of its end, a new call would hang like the first.
            try:
                await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-2"), timeout=0.2)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    break
    plugin.servicer.go_on.set()
    assert await call == csi_pb2.DeleteVolumeResponse()
    await stopping
    assert not plugin.socket.exists()


async def test_drain_cancels_what_takes_longer_than_the_grace_period(plugin: Plugin, stub: Any) -> None:
    plugin.servicer.act = plugin.servicer.hang
    call = stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pvc-1"))
    await plugin.servicer.entered.wait()
    async with asyncio.timeout(10):
        await plugin.server.stop(0.05)
        await plugin.servicer.cancelled.wait()
    with pytest.raises(grpc.aio.AioRpcError):
        await call


def secret_fields() -> list[tuple[str, str]]:
    secret: Any = csi_pb2.csi_secret
    return [
        (name, field.name)
        for name, message in csi_pb2.DESCRIPTOR.message_types_by_name.items()
        for field in message.fields
        if field.GetOptions().Extensions[secret]
    ]


@pytest.mark.parametrize(("message", "field"), secret_fields())
def test_every_field_that_csi_calls_secret_is_stripped(message: str, field: str) -> None:
    logged = loggable(getattr(csi_pb2, message)(**{field: SECRETS}))
    assert logged == {field: "***stripped***"}


def test_long_values_are_cut() -> None:
    request = csi_pb2.CreateVolumeRequest(
        name="x" * 1000,
        parameters={f"key{number:03}": "v" for number in range(100)},
        volume_capabilities=[csi_pb2.VolumeCapability()] * 100,
    )
    logged = loggable(request)
    assert len(logged["name"]) < 300
    assert len(logged["parameters"]) == MAX_ITEMS + 1
    assert len(logged["volume_capabilities"]) == MAX_ITEMS + 1
    assert len(json.dumps(logged)) < 2000


def test_enums_are_logged_by_name_and_unknown_ones_by_number() -> None:
    mode = csi_pb2.VolumeCapability.AccessMode
    assert loggable(mode(mode=mode.MULTI_NODE_MULTI_WRITER)) == {"mode": "MULTI_NODE_MULTI_WRITER"}
    assert loggable(mode.FromString(b"\x08\x63")) == {"mode": 99}


def test_codes_are_named_as_in_go() -> None:
    named = [code_name(code) for code in grpc.StatusCode]
    assert {"OK", "Canceled", "InvalidArgument", "DeadlineExceeded", "FailedPrecondition", "Internal"} <= set(named)
