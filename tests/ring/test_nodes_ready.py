"""A node that is not Ready shows on the records of the volumes that it holds."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.ring.cluster import Cluster
from tests.ring.driver import Operator
from tests.ring.rpc import Csi
from tests.ring.waiting import eventually

UNREADY = "rds_csi_volumes_on_unready_nodes"


def say(cluster: Cluster, node: str, status: str) -> None:
    condition = {"type": "Ready", "status": status, "reason": "Played", "lastTransitionTime": "2026-11-21T12:00:00Z"}
    cluster.api.patch("Node", node, {"status": {"conditions": [condition]}}, subresource="status")


def nodes_ready(status: dict[str, Any]) -> tuple[str, str] | None:
    return next(((one["status"], one["reason"]) for one in status["conditions"] if one["type"] == "NodesReady"), None)


@pytest.mark.requirement("R25")
def test_a_node_that_is_not_ready_during_a_migration_shows_within_half_a_minute_and_so_does_one_that_is_gone(
    csi: Csi, cluster: Cluster, operator: Operator
) -> None:
    source, target, other = (cluster.make_node() for _ in range(3))
    volume = cluster.make_static_volume(attributes={"dualAttachPolicy": "AnyTwoNodes"})
    spared = cluster.make_static_volume()
    csi.publish(spared.handle, other)
    csi.publish(volume.handle, source)
    csi.publish(volume.handle, target)
    before = operator.scrape().value(UNREADY)
    say(cluster, source, "Unknown")
    began = time.monotonic()
    unready = ("False", "NodeNotReady")
    record = cluster.wait_record(volume.handle, "NodesReady is False", lambda now: nodes_ready(now) == unready)
    assert time.monotonic() - began < 30
    assert record["status"]["phase"] == "Migrating"
    event = cluster.wait_event(volume.claim, "NodeNotReady")
    assert (event["type"], source in event["message"]) == ("Warning", True)
    eventually("the gauge shows it", lambda: operator.scrape().value(UNREADY) == before + 1, interval=0.2)
    say(cluster, source, "True")
    cluster.wait_record(volume.handle, "all are Ready", lambda now: nodes_ready(now) == ("True", "NodesReady"))
    eventually("the gauge shows that too", lambda: operator.scrape().value(UNREADY) == before, interval=0.2)
    cluster.delete_node(target)
    cluster.wait_record(volume.handle, "the target is gone", lambda now: nodes_ready(now) == ("False", "NodeGone"))
    untouched = cluster.record(spared.handle)
    assert untouched is not None
    assert nodes_ready(untouched["status"]) is None
