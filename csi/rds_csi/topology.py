"""The topology that nodes and volumes are in: one zone, as the Go driver has it, since every node reaches the box.

It says nothing, but without any key external-provisioner (6.3) removes the capacity objects that it has made again (an empty label
selector does not equal one that was read back), and pods that wait for their first consumer would find no room.
"""

from __future__ import annotations

from typing import Final

from rds_csi.spec import csi_pb2

TOPOLOGY: Final = {"topology.rds.csi.srvlab.io/zone": "default"}


def is_met(requirement: csi_pb2.TopologyRequirement) -> bool:
    """Tell whether a volume, which is in the one zone, is where it must be (CSI spec, TopologyRequirement)."""
    return not requirement.requisite or any(dict(topology.segments) == TOPOLOGY for topology in requirement.requisite)
