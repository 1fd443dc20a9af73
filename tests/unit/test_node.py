"""The Node service, as far as sidecars and kubelets need it to register the driver."""

from __future__ import annotations

import asyncio

import pytest

from rds_csi.node.service import NodeService
from rds_csi.topology import TOPOLOGY


@pytest.mark.requirement("R56")
def test_a_node_names_the_zone_that_capacity_objects_go_by() -> None:
    info = asyncio.run(NodeService("worker-1").NodeGetInfo(None, None))
    assert info.node_id == "worker-1"
    assert dict(info.accessible_topology.segments) == TOPOLOGY == {"topology.rds.csi.srvlab.io/zone": "default"}
