"""The kubelet's plugin registration: a socket in its registry directory, on which it asks what the plugin is.

Source: kubernetes, pkg/kubelet/pluginmanager. The kubelet asks when the socket appears and when it starts itself, and asks again,
at most two minutes apart, where it could not register the driver; a socket that goes takes the driver out of the CSINode.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from rds_csi.server import Server
from rds_csi.spec import pluginregistration_pb2, pluginregistration_pb2_grpc

_log = logging.getLogger(__name__)

KIND: Final = "CSIPlugin"
VERSIONS: Final = ("1.0.0",)
"""Of CSI, as kubelets compare them: every 1.x is called 1.0.0."""

LOOK_SECONDS: Final = 5.0
"""Between looks whether the socket is still there."""

STOP_SECONDS: Final = 1.0


class Registration(pluginregistration_pb2_grpc.RegistrationServicer):
    """RegistrationServicer; ``endpoint`` is the CSI socket's path as the kubelet sees it."""

    def __init__(self, driver_name: str, endpoint: str) -> None:
        self._info = pluginregistration_pb2.PluginInfo(type=KIND, name=driver_name, endpoint=endpoint, supported_versions=VERSIONS)
        self.trouble = "the kubelet has not registered the driver yet"
        """Why the driver is not registered; empty while it is."""

    async def GetInfo(self, request: Any, context: Any) -> pluginregistration_pb2.PluginInfo:  # noqa: ARG002, N802
        """Return what the plugin is and where it serves."""
        return self._info

    async def NotifyRegistrationStatus(  # noqa: N802
        self,
        request: Any,
        context: Any,  # noqa: ARG002
    ) -> pluginregistration_pb2.RegistrationStatusResponse:
        """Note whether the kubelet took the driver."""
        if request.plugin_registered:
            self.trouble = ""
            _log.info("registered with the kubelet", extra={"driver": self._info.name, "endpoint": self._info.endpoint})
        else:
            self.trouble = f"the kubelet did not register the driver: {request.error}"
            _log.error("not registered with the kubelet, which will ask again", extra={"reason": request.error})
        return pluginregistration_pb2.RegistrationStatusResponse()


def registration_socket(directory: str, driver_name: str) -> Path:
    """Return the socket's path in the kubelet's registry directory, called as node-driver-registrar calls it."""
    return Path(directory) / f"{driver_name}-reg.sock"


@asynccontextmanager
async def serve_registration(
    registration: Registration, socket: Path, *, look_seconds: float = LOOK_SECONDS
) -> AsyncIterator[None]:
    """Serve the registration until left; a socket that somebody removed is made again. Raises OSError where it cannot listen."""
    server = _server(registration, socket)
    try:
        await server.start()
    except OSError as error:
        raise OSError(
            f"{error}; --plugin-registration-path must be the kubelet's registry of plugins, "
            "and --disable-registration leaves it to node-driver-registrar"
        ) from error
    keeper = asyncio.create_task(_keep(registration, socket, server, look_seconds))
    try:
        yield
    finally:
        keeper.cancel()
        (last,) = await asyncio.gather(keeper, return_exceptions=True)
        if isinstance(last, Exception):
            _log.error("the registration was no longer looked after", exc_info=last)


def _server(registration: Registration, socket: Path) -> Server:
    return Server(f"unix://{socket}", [partial(pluginregistration_pb2_grpc.add_RegistrationServicer_to_server, registration)])


async def _keep(registration: Registration, socket: Path, server: Server, look_seconds: float) -> None:
    try:
        while True:
            await asyncio.sleep(look_seconds)
            if await asyncio.to_thread(socket.is_socket):
                continue
            _log.warning("the registration socket is gone and made again", extra={"path": str(socket)})
            registration.trouble = f"the registration socket {socket} was removed"
            await server.stop(STOP_SECONDS)
            server = _server(registration, socket)
            try:
                await server.start()
            except OSError as error:
                registration.trouble = str(error)
                _log.warning("the registration socket cannot be made", extra={"error": str(error)})
    finally:
        await server.stop(STOP_SECONDS)
