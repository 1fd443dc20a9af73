"""The CSI Node service, as far as sidecars need it to start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rds_csi.node.commands import Run, run
from rds_csi.node.hold_off import HoldOff, NoHoldOff
from rds_csi.node.host import NodePaths
from rds_csi.node.nvme import DEFAULT_MANAGED_PREFIX, check_managed_prefix
from rds_csi.node.reports import NodeReports, NoReports
from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_csi.topology import TOPOLOGY
from rds_records.names import check_node_name


@dataclass(frozen=True, slots=True)
class NodeService(csi_pb2_grpc.NodeServicer):
    """NodeServicer; the node id is the name of the Node object, which publishes are checked against."""

    node_id: str
    paths: NodePaths = field(default_factory=NodePaths)
    run: Run = run
    reports: NodeReports = field(default_factory=NoReports)
    hold_off: HoldOff = field(default_factory=NoHoldOff)
    prefix: str = DEFAULT_MANAGED_PREFIX
    """What the NQNs of our subsystems begin with; nothing else is connected or disconnected."""

    def __post_init__(self) -> None:
        """Refuse an id that no Node object can have, and a prefix that is none; raises ValueError."""
        check_node_name(self.node_id)
        check_managed_prefix(self.prefix)

    async def NodeGetCapabilities(self, request: Any, context: Any) -> csi_pb2.NodeGetCapabilitiesResponse:  # noqa: ARG002, N802
        """Return none: nothing is staged, mounted or measured yet."""
        return csi_pb2.NodeGetCapabilitiesResponse()

    async def NodeGetInfo(self, request: Any, context: Any) -> csi_pb2.NodeGetInfoResponse:  # noqa: ARG002, N802
        """Return the node's id and the zone; no limit of volumes."""
        return csi_pb2.NodeGetInfoResponse(node_id=self.node_id, accessible_topology=csi_pb2.Topology(segments=TOPOLOGY))
