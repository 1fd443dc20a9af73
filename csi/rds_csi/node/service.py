"""The CSI Node service: requests in, the node changed, responses out. Decisions are taken elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rds_csi.node import requests
from rds_csi.node.commands import Run, run
from rds_csi.node.connecting import Connecting
from rds_csi.node.deadlines import Clock, Deadline
from rds_csi.node.expanding import Expanding
from rds_csi.node.hold_off import HoldOff, NoHoldOff
from rds_csi.node.host import Host, NodePaths
from rds_csi.node.measuring import Measuring
from rds_csi.node.mounting import Mounting
from rds_csi.node.nvme import DEFAULT_MANAGED_PREFIX, check_managed_prefix
from rds_csi.node.publishing import Publishing
from rds_csi.node.reports import NodeReports, NoReports, Operation
from rds_csi.node.staging import Staging
from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_csi.topology import TOPOLOGY
from rds_csi.volume_locks import VolumeLocks
from rds_records.names import check_node_name

_Rpc = csi_pb2.NodeServiceCapability.RPC
CAPABILITIES = (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.EXPAND_VOLUME, _Rpc.SINGLE_NODE_MULTI_WRITER)
"""What is served; nothing is advertised that is not."""


@dataclass(frozen=True, slots=True)
class NodeService(csi_pb2_grpc.NodeServicer):
    """NodeServicer; the node id is the name of the Node object, which publishes are checked against.

    Calls for one volume go one after another: pods that come and go wait for their turn, every other second call is ABORTED.
    """

    node_id: str
    paths: NodePaths = field(default_factory=NodePaths)
    run: Run = run
    reports: NodeReports = field(default_factory=NoReports)
    hold_off: HoldOff = field(default_factory=NoHoldOff)
    prefix: str = DEFAULT_MANAGED_PREFIX
    """What the NQNs of our subsystems begin with; nothing else is connected or disconnected."""

    refuse_unknown_node: Callable[[], None] = lambda: None
    """Raises FailedPrecondition where there is no Node called ``node_id``."""

    clock: Clock = field(default_factory=Clock)
    locks: VolumeLocks = field(default_factory=VolumeLocks)
    host: Host = field(init=False)

    def __post_init__(self) -> None:
        """Refuse an id that no Node object can have, and a prefix that is none; raises ValueError."""
        check_node_name(self.node_id)
        check_managed_prefix(self.prefix)
        object.__setattr__(self, "host", Host(self.paths, self.run))

    async def NodeGetCapabilities(self, request: Any, context: Any) -> csi_pb2.NodeGetCapabilitiesResponse:  # noqa: ARG002, N802
        """Say which node RPCs are served."""
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in CAPABILITIES]
        )

    async def NodeGetInfo(self, request: Any, context: Any) -> csi_pb2.NodeGetInfoResponse:  # noqa: ARG002, N802
        """Return the node's id and the zone; no limit of volumes. An id that is no Node's is not given to the kubelet."""
        self.refuse_unknown_node()
        return csi_pb2.NodeGetInfoResponse(node_id=self.node_id, accessible_topology=csi_pb2.Topology(segments=TOPOLOGY))

    async def NodeStageVolume(  # noqa: N802
        self, request: csi_pb2.NodeStageVolumeRequest, context: Any
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Connect a volume, and mount it unless it is a block device."""
        asked = requests.stage(request, prefix=self.prefix)
        self.hold_off.check(asked.wanted.volume_id)
        async with self.locks.try_hold(asked.wanted.volume_id):
            with self._reported(asked.wanted.volume_id, Operation.STAGE):
                await self._staging.stage(asked, Deadline.of(context, self.clock))
        return csi_pb2.NodeStageVolumeResponse()

    async def NodeUnstageVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: Any
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Unmount a volume and end its session; OK only when that is gone."""
        asked = requests.unstage(request)
        async with self.locks.try_hold(asked.volume_id):
            with self._reported(asked.volume_id, Operation.UNSTAGE):
                await self._staging.unstage(asked.volume_id, asked.path, Deadline.of(context, self.clock))
        return csi_pb2.NodeUnstageVolumeResponse()

    async def NodePublishVolume(  # noqa: N802
        self, request: csi_pb2.NodePublishVolumeRequest, context: Any
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Show a staged volume to a pod."""
        asked = requests.publish(request)
        async with self.locks.hold(asked.volume_id):
            with self._reported(asked.volume_id, Operation.PUBLISH):
                await self._publishing.publish(asked, Deadline.of(context, self.clock))
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(  # noqa: N802
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Any
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take a volume from a pod; one that is not there is taken."""
        asked = requests.unpublish(request)
        async with self.locks.hold(asked.volume_id):
            with self._reported(asked.volume_id, Operation.UNPUBLISH):
                await self._publishing.unpublish(asked.volume_id, asked.path, Deadline.of(context, self.clock))
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(  # noqa: N802
        self,
        request: csi_pb2.NodeGetVolumeStatsRequest,
        context: Any,  # noqa: ARG002
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Say how large a volume is, and how full where it has a file system."""
        asked = requests.measure(request)
        return csi_pb2.NodeGetVolumeStatsResponse(usage=await Measuring(self.host).measure(asked))

    async def NodeExpandVolume(  # noqa: N802
        self, request: csi_pb2.NodeExpandVolumeRequest, context: Any
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Wait until the kernel shows a volume's new size, and let its file system fill it."""
        asked = requests.expand(request)
        async with self.locks.try_hold(asked.wanted.volume_id):
            with self._reported(asked.wanted.volume_id, Operation.EXPAND):
                size = await Expanding(self.host, self._mounting).expand(asked, Deadline.of(context, self.clock))
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=size)

    @property
    def _mounting(self) -> Mounting:
        return Mounting(self.host, self.reports)

    @property
    def _staging(self) -> Staging:
        connecting = Connecting(self.host, self.node_id, self.reports)
        return Staging(self.host, connecting, self._mounting, self.reports, self.prefix)

    @property
    def _publishing(self) -> Publishing:
        return Publishing(self.host, self._mounting, self.reports)

    @contextmanager
    def _reported(self, volume_id: str, operation: Operation) -> Iterator[None]:
        started = self.clock.monotonic()
        try:
            yield
        except Exception as error:
            self.reports.operation_ended(volume_id, operation, self.clock.monotonic() - started, str(error) or type(error).__name__)
            raise
        self.reports.operation_ended(volume_id, operation, self.clock.monotonic() - started, "")
