"""The gRPC server: endpoint, services, and an end that lets calls in flight finish."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

from rds_csi.spec import csi_pb2, csi_pb2_grpc

_log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 16 * 2**20
"""Bytes, each way."""

MAX_SOCKET_PATH: Final = 107
"""Bytes of ``sun_path`` without its final NUL (Linux, unix(7))."""

DRAIN_SECONDS: Final = 30.0

_SERVICES: Final[Mapping[str, tuple[type, Callable[[Any, Any], None]]]] = {
    "Identity": (csi_pb2_grpc.IdentityServicer, csi_pb2_grpc.add_IdentityServicer_to_server),
    "Controller": (csi_pb2_grpc.ControllerServicer, csi_pb2_grpc.add_ControllerServicer_to_server),
    "Node": (csi_pb2_grpc.NodeServicer, csi_pb2_grpc.add_NodeServicer_to_server),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server listens: a unix socket, or host and port."""

    address: str
    """As gRPC takes it."""

    path: Path | None = None
    """Of the unix socket."""


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint of ``unix:///path``, ``/path`` or ``tcp://host:port``; raises ValueError for anything else."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "unix", text.removeprefix("unix:")
    if scheme == "unix":
        if not rest.startswith("/") or "\0" in rest:
            raise ValueError(f"endpoint {text[:120]!r}: the path of a unix socket must be absolute, as in unix:///csi/csi.sock")
        if len(rest.encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"endpoint {text[:120]!r}: the path of a unix socket has at most {MAX_SOCKET_PATH} bytes")
        return Endpoint(f"unix:{rest}", Path(rest))
    if scheme == "tcp":
        if not re.fullmatch(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}", rest) or int(rest.rpartition(":")[2]) > 65_535:
            raise ValueError(f"endpoint {text[:120]!r}: expected tcp://HOST:PORT")
        return Endpoint(rest)
    raise ValueError(f"endpoint {text[:120]!r}: scheme {scheme!r} is neither unix nor tcp")


def services(servicers: Iterable[object]) -> dict[str, object]:
    """Return the servicers by the CSI service that each one serves; raises TypeError for one that serves none."""
    found: dict[str, object] = {}
    for servicer in servicers:
        names = [name for name, (base, _) in _SERVICES.items() if isinstance(servicer, base)]
        if not names:
            raise TypeError(f"{type(servicer).__name__} is no CSI servicer")
        found.update(dict.fromkeys(names, servicer))
    return found


def served_methods(servicers: Iterable[object]) -> list[str]:
    """Return the full names of the RPCs that these servicers implement: ``/csi.v1.Identity/Probe``."""
    return [
        f"/{service.full_name}/{method.name}"
        for name, servicer in services(servicers).items()
        for service in [csi_pb2.DESCRIPTOR.services_by_name[name]]
        for method in service.methods
        if getattr(type(servicer), method.name) is not getattr(_SERVICES[name][0], method.name)
    ]


class Server:
    """A grpc.aio server at one endpoint; each of ``add`` puts a servicer into it."""

    def __init__(self, endpoint: str, add: Iterable[Callable[[Any], None]], interceptors: Sequence[Any] = ()) -> None:
        self._endpoint = parse_endpoint(endpoint)
        self._server = grpc.aio.server(
            interceptors=tuple(interceptors),
            options=(("grpc.max_send_message_length", MAX_MESSAGE), ("grpc.max_receive_message_length", MAX_MESSAGE)),
        )
        for put in add:
            put(self._server)
        self.port: int | None = None
        """Of a TCP endpoint, once started."""
        self.serving = False
        """Whether new calls are taken."""

    @property
    def target(self) -> str:
        """Where a client of the same machine reaches it, as gRPC takes it; of a TCP endpoint once it is started."""
        return self._endpoint.address if self._endpoint.path else f"{self._endpoint.address.rpartition(':')[0]}:{self.port}"

    async def start(self) -> None:
        """Listen; a socket that a dead process left is removed first. Raises OSError where that cannot be."""
        if self._endpoint.path:
            _remove_stale_socket(self._endpoint.path)
        try:
            port = self._server.add_insecure_port(self._endpoint.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen at {self._endpoint.address}: {error}") from error
        self.port = None if self._endpoint.path else port
        await self._server.start()
        self.serving = True
        _log.info("serving", extra={"endpoint": self._endpoint.address, "port": self.port})

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Take no new calls, give those in flight ``grace`` seconds, cancel what is left, and remove the socket."""
        self.serving = False
        await self._server.stop(grace)
        if self._endpoint.path:
            with suppress(OSError):
                self._endpoint.path.unlink()


class CsiServer(Server):
    """A server for CSI servicers."""

    def __init__(self, endpoint: str, servicers: Sequence[object], interceptors: Sequence[Any] = ()) -> None:
        found = services(servicers).items()
        super().__init__(endpoint, [partial(_SERVICES[name][1], servicer) for name, servicer in found], interceptors)


def _remove_stale_socket(path: Path) -> None:
    if not path.parent.is_dir():
        raise OSError(f"cannot listen at {path}: there is no directory {path.parent}")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(f"cannot listen at {path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(1.0)
        try:
            knock.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(f"cannot listen at {path}: another process serves it")


async def wait_for_signal(signals: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> signal.Signals:
    """Return the first of these signals that the process gets; a second one acts as if this had never been called."""
    loop = asyncio.get_running_loop()
    got: asyncio.Future[signal.Signals] = loop.create_future()

    def take(number: signal.Signals) -> None:
        if not got.done():
            got.set_result(number)

    for number in signals:
        loop.add_signal_handler(number, take, number)
    try:
        return await got
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
