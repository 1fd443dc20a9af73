"""Access modes beside ReadWriteOnce and ReadWriteMany, and attachments for reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ring.cluster import Cluster
from tests.ring.history import nodes_of
from tests.ring.rpc import RWO, RWX, Csi, block, code_of, mount

MakeVolume = Callable[..., str]

ROX = block("MULTI_NODE_READER_ONLY")
RWOP = block("SINGLE_NODE_SINGLE_WRITER")


@pytest.fixture
def nodes(cluster: Cluster) -> tuple[str, str, str]:
    """Nodes A, B and C."""
    return cluster.make_node("a"), cluster.make_node("b"), cluster.make_node("c")


def attachments(cluster: Cluster, handle: str) -> list[tuple[str, bool]]:
    """Return the modes of a volume's attachments, and whether they are for reading."""
    record = cluster.record(handle)
    assert record
    return [(held["accessMode"], held["readOnly"]) for held in record["status"].get("attachments", [])]


def test_a_volume_for_readers_is_on_two_nodes_at_most_and_each_time_counts_as_a_migration(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, c = nodes
    handle = make_volume(capability=ROX)
    csi.publish(handle, a, ROX)
    csi.publish(handle, b, ROX)
    record = cluster.wait_phase(handle, "Migrating")
    assert record["spec"]["accessMode"] == "ReadOnlyMany"
    assert attachments(cluster, handle) == [("ReadOnlyMany", True)] * 2
    assert csi.publish_code(handle, c, ROX) == "FAILED_PRECONDITION"


def test_readers_on_two_nodes_need_a_live_migration_under_the_default_policy(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    handle = make_volume(capability=ROX, parameters={})
    csi.publish(handle, nodes[0], ROX)
    assert csi.publish_code(handle, nodes[1], ROX) == "FAILED_PRECONDITION"
    record = cluster.record(handle)
    assert record
    assert nodes_of(record) == [nodes[0]]


@pytest.mark.parametrize("volume", [RWOP, mount("SINGLE_NODE_SINGLE_WRITER")], ids=["block", "filesystem"])
def test_a_volume_for_one_pod_is_on_one_node(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...], volume: Any
) -> None:
    handle = make_volume(capability=volume)
    csi.publish(handle, nodes[0], volume)
    record = cluster.record(handle)
    assert record
    assert record["spec"]["accessMode"] == "ReadWriteOncePod"
    assert csi.publish_code(handle, nodes[1], volume) == "FAILED_PRECONDITION"


@pytest.mark.requirement("R29")
def test_for_one_pod_and_for_one_node_are_the_same_class(csi: Csi, make_volume: MakeVolume, nodes: tuple[str, ...]) -> None:
    handle = make_volume(capability=RWOP)
    first = csi.publish(handle, nodes[0], RWOP)
    assert csi.publish(handle, nodes[0], RWO) == first
    assert csi.publish_code(handle, nodes[0], RWX) == "ALREADY_EXISTS"


@pytest.mark.parametrize("mode", [RWX, RWO], ids=["RWX", "RWO"])
def test_a_node_holds_a_volume_for_reading_or_for_writing(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...], mode: Any
) -> None:
    handle = make_volume(capability=mode)
    first = csi.publish(handle, nodes[0], mode, readonly=True)
    assert attachments(cluster, handle)[0][1] is True
    assert csi.publish(handle, nodes[0], mode, readonly=True) == first
    assert csi.publish_code(handle, nodes[0], mode) == "ALREADY_EXISTS"
    csi.unpublish(handle, nodes[0])
    csi.publish(handle, nodes[0], mode)
    assert code_of(lambda: csi.publish(handle, nodes[0], mode, readonly=True)) == "ALREADY_EXISTS"


def test_what_can_be_attached_is_advertised(csi: Csi) -> None:
    assert csi.capabilities() >= {"PUBLISH_UNPUBLISH_VOLUME", "PUBLISH_READONLY", "SINGLE_NODE_MULTI_WRITER"}
    assert "LIST_VOLUMES_PUBLISHED_NODES" not in csi.capabilities()
