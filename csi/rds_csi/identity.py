"""The CSI Identity service."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.wrappers_pb2 import BoolValue

from rds_csi.spec import csi_pb2, csi_pb2_grpc

_log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 2.0
"""How long one look at the API server may take."""

FRESH_SECONDS: Final = 5.0
"""For how long an answer is not asked for again; an outage shows after at most this and PROBE_SECONDS."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_Service = csi_pb2.PluginCapability.Service


def check_driver_name(name: str) -> str:
    """Return the driver's name unchanged, or raise ValueError where it is none (CSI spec, GetPluginInfo)."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"driver name {name[:80]!r} is not valid: 1 to 63 letters, digits and inner dots and dashes")
    return name


class Readiness:
    """Whether something answers: asked for at most every few seconds, by one caller for all, and never for long."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[object]],
        *,
        timeout: float = PROBE_SECONDS,
        fresh: float = FRESH_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ask`` returns where it is there, and raises where it is not."""
        self._ask = ask
        self._timeout = timeout
        self._fresh = fresh
        self._monotonic = monotonic
        self._asked: float | None = None
        self._lock = asyncio.Lock()
        self.trouble = "not asked yet"
        """Why it is not ready; empty while it is."""

    async def __call__(self) -> bool:
        """Tell whether it answers."""
        async with self._lock:
            if self._asked is None or self._monotonic() - self._asked >= self._fresh:
                await self._look()
        return not self.trouble

    async def _look(self) -> None:
        trouble = ""
        try:
            async with asyncio.timeout(self._timeout):
                await self._ask()
        except TimeoutError:
            trouble = f"no answer within {self._timeout:g} s"
        except Exception as error:  # noqa: BLE001 whatever it is, it is not ready
            trouble = f"{type(error).__name__}: {error}"
        self._asked = self._monotonic()
        if trouble and trouble != self.trouble:
            _log.warning("not ready", extra={"reason": trouble})
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Identity(csi_pb2_grpc.IdentityServicer):
    """IdentityServicer of the driver; ready when ``ready`` says so."""

    name: str
    version: str
    ready: Callable[[], Awaitable[bool]]

    async def GetPluginInfo(self, request: Any, context: Any) -> csi_pb2.GetPluginInfoResponse:  # noqa: ARG002, N802
        """Return name and version."""
        return csi_pb2.GetPluginInfoResponse(name=self.name, vendor_version=self.version)

    async def GetPluginCapabilities(  # noqa: N802
        self,
        request: Any,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """Say that there is a controller service, and that nodes name their zone (``topology``)."""
        kinds = (_Service.CONTROLLER_SERVICE, _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS)
        capabilities = [csi_pb2.PluginCapability(service=_Service(type=kind)) for kind in kinds]
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=capabilities)

    async def Probe(self, request: Any, context: Any) -> csi_pb2.ProbeResponse:  # noqa: ARG002, N802
        """Tell whether calls can be served; never an error, as csi-attacher waits here for ever when it starts."""
        return csi_pb2.ProbeResponse(ready=BoolValue(value=await self.ready()))
