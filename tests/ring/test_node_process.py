"""``rds-csi node`` against a real API server: its Node, Events, the annotation that ends a hold-off, and the rights that it uses.

The volumes' addresses are this machine's, where nothing serves them; staging fails as it does while a box is away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rds_csi.spec import csi_pb2
from tests.ring.api import Object
from tests.ring.cluster import Cluster, StaticVolume
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Node
from tests.ring.installation import NODE
from tests.ring.proxy import Proxy
from tests.ring.records import make_record
from tests.ring.rpc import RWX, Csi, Refused
from tests.ring.test_rights_used import assert_all_used, role
from tests.ring.waiting import eventually

ANNOTATION = "rds.csi.srvlab.io/reset-circuit-breaker"
MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(installed: ControlPlane, tmp_path: Path) -> Iterator[MakeNode]:
    """Starts ``rds-csi node`` for a Node of that name; stopped after the test."""
    with ExitStack() as running:

        def make(name: str, **arguments: object) -> Node:
            node = Node(installed, tmp_path / name, name, **arguments)  # type: ignore[arg-type]
            return running.enter_context(node)

        yield make


def node_info(node: Node) -> str:
    with Csi(node.endpoint) as csi:
        return str(csi.call(csi.node.NodeGetInfo, csi_pb2.NodeGetInfoRequest()).node_id)


def stage(node: Node, volume: StaticVolume, folder: Path) -> str:
    """Try to stage a volume; return what is said of the failure."""
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id=volume.handle,
        publish_context={"nvme_address": "127.0.0.1", "nvme_port": "9"},
        staging_target_path=str(folder / "staging"),
        volume_capability=RWX,
    )
    with Csi(node.endpoint) as csi, pytest.raises(Refused) as refused:
        csi.call(csi.node.NodeStageVolume, request, timeout=3.0)
    assert refused.value.code == "UNAVAILABLE", refused.value
    return str(refused.value)


def hold_off(node: Node, volume: StaticVolume, folder: Path) -> str:
    """Let staging fail until the volume is held off; return what is said then."""
    for _ in range(3):
        assert "held off" not in stage(node, volume, folder)
    said = stage(node, volume, folder)
    assert "held off" in said
    return said


def readyz(node: Node) -> tuple[int, Object]:
    status, text = node.get("/readyz")
    return status, json.loads(text)


# Its Node


def test_a_name_that_is_no_nodes_is_not_given_to_the_kubelet(cluster: Cluster, make_node: MakeNode) -> None:
    name = cluster.name("nobody")
    node = make_node(name)
    with pytest.raises(Refused, match=f"FAILED_PRECONDITION.*there is no Node {name}.*spec.nodeName"):
        node_info(node)
    status, detail = readyz(node)
    assert (status, detail["ready"]) == (503, False)
    assert f"there is no Node {name}" in detail["node"]
    cluster.make_node(name=name)
    eventually("the Node is found", lambda: readyz(node)[0] == 200)
    assert node_info(node) == name


def test_a_node_serves_while_the_api_server_is_away_from_the_start(cluster: Cluster, proxy: Proxy, make_node: MakeNode) -> None:
    name = cluster.make_node()
    away = proxy.drop(".*", "")
    node = make_node(name, through=proxy)
    assert node_info(node) == name
    status, detail = readyz(node)
    assert status == 200, detail
    assert "cannot be read" in detail["node"]
    away.remove()
    eventually("the Node is seen", lambda: readyz(node)[1]["node"] == "ok")


# Failures


@pytest.fixture
def volume(cluster: Cluster) -> StaticVolume:
    return cluster.make_static_volume()


def test_a_failure_is_counted_and_told_on_the_claim(
    cluster: Cluster, make_node: MakeNode, volume: StaticVolume, tmp_path: Path
) -> None:
    name = cluster.make_node()
    node = make_node(name)
    assert node.scrape().value("rds_csi_nvme_connects_total", status="failure") == 0
    stage(node, volume, tmp_path)
    event = cluster.wait_event(volume.claim, "ConnectionFailure")
    assert event["message"].startswith(f"[{volume.handle}] on [{name}]: NVMe/TCP connection to 127.0.0.1:9 failed: ")
    assert (event["type"], event["source"]["component"]) == ("Warning", "rds-csi-node")
    scrape = node.scrape()
    assert scrape.value("rds_csi_nvme_connects_total", status="failure") >= 1
    assert scrape.value("rds_csi_volume_operations_total", operation="stage", status="failure") == 1
    assert scrape.value("rds_csi_nvme_connections_active") == 0
    eventually(
        "the Event is counted",
        lambda: node.scrape().value("rds_csi_events_posted_total", reason="ConnectionFailure") == 1,
    )


def test_events_about_a_volume_of_another_name_are_on_its_claim_and_without_a_claim_on_the_node(
    cluster: Cluster, make_node: MakeNode, tmp_path: Path
) -> None:
    name = cluster.make_node()
    node = make_node(name)
    imported = cluster.make_static_volume(pv=cluster.name("disk"))
    make_record(cluster, imported)
    nobodys = StaticVolume("pvc-of-nobody", "", "")
    stage(node, imported, tmp_path)
    stage(node, nobodys, tmp_path)
    cluster.wait_event(imported.claim, "ConnectionFailure")

    def on_the_node() -> list[Object]:
        return cluster.events(name, reason="ConnectionFailure", kind="Node", namespace="default")

    (event,) = eventually("an Event about the Node", on_the_node)
    assert nobodys.handle in event["message"]


def test_no_call_waits_for_an_api_server_that_is_frozen(
    cluster: Cluster, proxy: Proxy, make_node: MakeNode, volume: StaticVolume, tmp_path: Path
) -> None:
    node = make_node(cluster.make_node(), through=proxy)
    node_info(node)
    frozen = proxy.freeze()
    started = time.monotonic()
    stage(node, volume, tmp_path)
    assert time.monotonic() - started < 5
    assert cluster.events(volume.claim) == []
    frozen.remove()
    # A request that was frozen is given up after ten seconds, and made again.
    cluster.wait_event(volume.claim, "ConnectionFailure", timeout=60)


def test_a_volume_that_fails_again_and_again_is_held_off_until_its_annotation_changes_each_time(
    cluster: Cluster, make_node: MakeNode, volume: StaticVolume, tmp_path: Path
) -> None:
    node = make_node(cluster.make_node())
    hold_off(node, volume, tmp_path)
    cluster.wait_event(volume.claim, "VolumeHeldOff")
    assert node.scrape().value("rds_csi_volumes_held_off") == 1

    def named(command: str) -> str:
        said = stage(node, volume, tmp_path)
        assert f"kubectl annotate pv {volume.pv} {command}. " in said
        return said

    for command, value in ((f"{ANNOTATION}=true", "true"), (f"{ANNOTATION}-", None)):
        # Tried for as long as it takes to read the annotation, and held off for longer each time.
        eventually(f"the message names {command}", lambda command=command: named(command), timeout=60)  # type: ignore[misc]
        cluster.api.patch("PersistentVolume", volume.pv, {"metadata": {"annotations": {ANNOTATION: value}}})
        eventually("the volume is let go", lambda: node.scrape().value("rds_csi_volumes_held_off") == 0, timeout=8)
        hold_off(node, volume, tmp_path)
    cluster.wait_event(volume.claim, "VolumeReleased")


def test_a_node_uses_every_right_that_it_is_given(
    cluster: Cluster, installed: ControlPlane, make_node: MakeNode, tmp_path: Path
) -> None:
    node = make_node(cluster.make_node())
    imported = cluster.make_static_volume(pv=cluster.name("disk"))
    make_record(cluster, imported)

    def told_again() -> bool:
        stage(node, imported, tmp_path)
        return any(event["count"] > 1 for event in cluster.events(imported.claim, reason="ConnectionFailure"))

    # The count of an Event is raised half a minute after it was posted, at the earliest.
    eventually("the failure is told again", told_again, timeout=90)
    assert_all_used(installed, NODE, role("ClusterRole", "rds-csi-node"))
