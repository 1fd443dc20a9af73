"""Endpoints, stale sockets, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BoolValue

from rds_csi.identity import Identity
from rds_csi.node.service import NodeService
from rds_csi.server import MAX_MESSAGE, CsiServer, parse_endpoint, served_methods, wait_for_signal
from rds_csi.spec import csi_pb2, csi_pb2_grpc


async def ready() -> bool:
    return True


IDENTITY = Identity("rds.csi.srvlab.io", "1.2.3", ready)


@pytest.mark.parametrize("text", ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"])
def test_unix_endpoint_is_understood_with_and_without_scheme(text: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.address, endpoint.path) == ("unix:/run/csi.sock", Path("/run/csi.sock"))


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:10000", "tcp://[::1]:10000", "tcp://localhost:0"])
def test_tcp_endpoint_is_understood(text: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.address, endpoint.path) == (text.removeprefix("tcp://"), None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://x",
        "unix://csi.sock",
        "csi.sock",
        "tcp://127.0.0.1",
        "tcp://:1",
        "tcp://h:70000",
        "unix:///" + "x" * 120,
        "UNIX:///x",
    ],
)
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_endpoint(text)


async def test_stale_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = CsiServer(f"unix://{path}", [IDENTITY])
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        info = await csi_pb2_grpc.IdentityStub(channel).GetPluginInfo(csi_pb2.GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == ("rds.csi.srvlab.io", "1.2.3")
    await server.stop(0)


async def test_socket_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(OSError, match="another process"):
            await CsiServer(str(path), [IDENTITY]).start()


async def test_file_in_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        await CsiServer(str(path), [IDENTITY]).start()
    assert path.read_text() == "precious"


async def test_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen .*: there is no directory .*/missing"):
        await CsiServer(str(tmp_path / "missing" / "csi.sock"), [IDENTITY]).start()


async def test_tcp_server_tells_its_port_and_serves_all_that_is_needed_by_sidecars() -> None:
    server = CsiServer("tcp://127.0.0.1:0", [IDENTITY, NodeService("node-a")])
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        identity, node = csi_pb2_grpc.IdentityStub(channel), csi_pb2_grpc.NodeStub(channel)
        assert (await identity.Probe(csi_pb2.ProbeRequest())).ready == BoolValue(value=True)
        offered = (await identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest())).capabilities
        services = csi_pb2.PluginCapability.Service
        assert [one.service.type for one in offered] == [services.CONTROLLER_SERVICE, services.VOLUME_ACCESSIBILITY_CONSTRAINTS]
        assert (await node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())).node_id == "node-a"
        kinds = csi_pb2.NodeServiceCapability.RPC
        served = (await node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())).capabilities
        assert [one.rpc.type for one in served] == [
            kinds.STAGE_UNSTAGE_VOLUME,
            kinds.GET_VOLUME_STATS,
            kinds.EXPAND_VOLUME,
            kinds.SINGLE_NODE_MULTI_WRITER,
        ]
    await server.stop(0)


async def test_message_of_just_under_16_mib_passes_and_a_larger_one_does_not() -> None:
    server = CsiServer("tcp://127.0.0.1:0", [IDENTITY])
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        probe = channel.unary_unary("/csi.v1.Identity/Probe", response_deserializer=csi_pb2.ProbeResponse.FromString)
        # An unknown field of that many bytes: a length-delimited field 15.
        await probe(b"\x7a\x80\x80\xc0\x07" + bytes(15 * 2**20))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await probe(bytes(MAX_MESSAGE + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop(0)


def test_served_methods_are_those_that_are_implemented() -> None:
    assert served_methods([NodeService("node-a")]) == [
        f"/csi.v1.Node/{name}"
        for name in (
            "NodeStageVolume",
            "NodeUnstageVolume",
            "NodePublishVolume",
            "NodeUnpublishVolume",
            "NodeGetVolumeStats",
            "NodeExpandVolume",
            "NodeGetCapabilities",
            "NodeGetInfo",
        )
    ]


def test_what_is_no_servicer_is_refused() -> None:
    with pytest.raises(TypeError, match="object is no CSI servicer"):
        served_methods([object()])


@pytest.mark.parametrize("name", ["", "Node_A", "node a", "x" * 254])
def test_node_id_must_be_the_name_of_a_node(name: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        NodeService(name)


async def test_signal_ends_the_waiting_and_handlers_are_taken_back() -> None:
    waiting = asyncio.create_task(wait_for_signal([signal.SIGUSR1]))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGUSR1)
    async with asyncio.timeout(10):
        assert await waiting is signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
