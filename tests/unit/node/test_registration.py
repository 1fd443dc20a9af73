"""The kubelet's plugin registration: what it is told, and a socket that is there as long as the process is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from rds_csi.node.registration import Registration, registration_socket, serve_registration
from rds_csi.spec import pluginregistration_pb2 as messages
from rds_csi.spec import pluginregistration_pb2_grpc as stubs

DRIVER = "rds.csi.srvlab.io"
ENDPOINT = f"/var/lib/kubelet/plugins/{DRIVER}/csi.sock"


async def ask(path: Path) -> messages.PluginInfo:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        info: messages.PluginInfo = await stubs.RegistrationStub(channel).GetInfo(messages.InfoRequest())
    return info


async def tell(path: Path, *, registered: bool, error: str = "") -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        status = messages.RegistrationStatus(plugin_registered=registered, error=error)
        await stubs.RegistrationStub(channel).NotifyRegistrationStatus(status)


@pytest.fixture
def registration() -> Registration:
    return Registration(DRIVER, ENDPOINT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return registration_socket(str(tmp_path), DRIVER)


def test_socket_is_called_as_node_driver_registrar_calls_it() -> None:
    assert str(registration_socket("/registration", DRIVER)) == "/registration/rds.csi.srvlab.io-reg.sock"


async def test_kubelet_is_told_the_driver_and_where_it_serves(registration: Registration, path: Path) -> None:
    async with serve_registration(registration, path):
        info = await ask(path)
    assert (info.type, info.name, info.endpoint, list(info.supported_versions)) == ("CSIPlugin", DRIVER, ENDPOINT, ["1.0.0"])


async def test_driver_counts_as_registered_once_the_kubelet_says_so(registration: Registration, path: Path) -> None:
    async with serve_registration(registration, path):
        await ask(path)
        assert "not registered the driver yet" in registration.trouble
        await tell(path, registered=True)
    assert registration.trouble == ""


async def test_kubelets_refusal_is_told_until_it_takes_the_driver(registration: Registration, path: Path) -> None:
    async with serve_registration(registration, path):
        await tell(path, registered=False, error="node info failed")
        assert registration.trouble == "the kubelet did not register the driver: node info failed"
        await tell(path, registered=True)
    assert registration.trouble == ""


async def test_socket_of_a_killed_process_is_taken_over_and_gone_at_the_end(registration: Registration, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serve_registration(registration, path):
        assert (await ask(path)).name == DRIVER
    assert gone(path)


async def test_somebody_elses_registration_is_left_alone_and_the_way_out_named(registration: Registration, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(OSError, match=r"another process serves it.*--disable-registration"):
            async with serve_registration(registration, path):
                pass


async def test_kubelet_without_a_registry_is_an_error_that_names_the_flag(registration: Registration, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="--plugin-registration-path"):
        async with serve_registration(registration, tmp_path / "missing" / "x-reg.sock"):
            pass


def remove(path: Path) -> None:
    path.unlink()


def gone(path: Path) -> bool:
    return not path.exists()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 a socket file tells nobody that it is there
            await asyncio.sleep(0.01)


async def test_socket_that_somebody_removed_is_made_again(registration: Registration, path: Path) -> None:
    async with serve_registration(registration, path, look_seconds=0.01):
        await tell(path, registered=True)
        remove(path)
        await until(path.is_socket)
        assert (await ask(path)).name == DRIVER
        assert "removed" in registration.trouble, "the kubelet has not asked again yet"


async def test_registry_that_comes_back_gets_the_socket_again(registration: Registration, tmp_path: Path) -> None:
    # The path of a unix socket is short.
    registry = tmp_path / "r"
    registry.mkdir()
    path = registration_socket(str(registry), DRIVER)
    async with serve_registration(registration, path, look_seconds=0.01):
        remove(path)
        registry.rename(tmp_path / "away")
        await until(lambda: "cannot listen" in registration.trouble)
        registry.mkdir()
        await until(path.is_socket)
        assert (await ask(path)).name == DRIVER
