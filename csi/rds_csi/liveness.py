"""Whether calls are answered: the process asks itself, over its own endpoint, as a sidecar or the kubelet would."""

from __future__ import annotations

from typing import Any, Final

import grpc

from rds_csi.spec import csi_pb2, csi_pb2_grpc

ANSWER_SECONDS: Final = 4.0
"""What Probe may take: more than its look at the API server (``identity.PROBE_SECONDS``), less than a prober waits for us."""

_FRESH: Final[Any] = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


async def trouble_of(target: str, seconds: float = ANSWER_SECONDS) -> str:
    """Call Probe at an endpoint; return what is wrong, empty where it answers, be it "not ready".

    On a connection of its own each time: a socket that somebody removed is of no use to those who come anew.
    """
    async with grpc.aio.insecure_channel(target, options=_FRESH) as channel:
        try:
            await csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return f"Probe at {target}: {error.code().name}: {error.details()}"
    return ""
