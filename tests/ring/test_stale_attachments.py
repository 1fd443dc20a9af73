"""A VolumeAttachment that was removed by hand: its node is released once it is proven out, and nobody else is let in before.

Real API server and kube-controller-manager, shims and operator as real processes. csi-attacher is played, so that a test
says when a publish comes; the attach/detach controller leaves most nodes here alone, or it would make a VolumeAttachment anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rds_records.fencing import NOBODY
from rds_records.names import host_nqn_for
from tests.ring.cluster import RECORD, Cluster, StaticVolume, attachment_name
from tests.ring.controlplane import ControlPlane
from tests.ring.definitions import let_go
from tests.ring.driver import Operator, Shim
from tests.ring.proxy import Proxy
from tests.ring.rpc import RWO, RWX, Csi
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

OFTEN = "--attachment-reconcile-interval=500ms"
STATUS = "/volumeattachmentrecords/.*/status$"
LIST = "nvme_tcp_server_allow_host_name"
CLEARED = "rds_csi_attachment_stale_cleared_total"
MIGRATIONS = "rds_csi_migration_migrations_total"
ACTIVE = "rds_csi_migration_active_migrations"
FINALIZER = "external-attacher/rds-csi-srvlab-io"

Shims = Callable[..., tuple[Shim, Csi]]


@pytest.fixture(scope="module")
def fence_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """A box of these tests' own: a shim without fence clears the lists that it finds on its box."""
    with SimulatedBox(tmp_path_factory.mktemp("fence-box")) as box:
        yield box


@pytest.fixture
def shims(make_shim: Callable[..., Shim]) -> Iterator[Shims]:
    """Return a function that starts a shim which compares often."""
    clients: list[Csi] = []

    def make(*extra: str, **arguments: Any) -> tuple[Shim, Csi]:
        shim = make_shim(extra=(OFTEN, *extra), **arguments)
        client = Csi(shim.endpoint).__enter__()
        clients.append(client)
        return shim, client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def make_attachment(cluster: Cluster, volume: StaticVolume, node: str) -> None:
    name = cluster.make_attachment(volume.pv, volume.handle, node)
    cluster.api.patch("VolumeAttachment", name, {"metadata": {"finalizers": [FINALIZER]}})


def strip(cluster: Cluster, volume: StaticVolume, node: str) -> None:
    """Take the finalizer off and delete the VolumeAttachment, as people rescue a volume from a dead node."""
    cluster.api.patch("VolumeAttachment", attachment_name(volume.handle, node), {"metadata": {"finalizers": None}})
    cluster.delete_attachment(volume.handle, node)


def published(csi: Csi, cluster: Cluster, *nodes: str) -> StaticVolume:
    """Return a volume that is published to these nodes, each with its VolumeAttachment."""
    mode = "ReadWriteMany" if len(nodes) > 1 else "ReadWriteOnce"
    volume = cluster.make_static_volume(access_mode=mode, attributes={"dualAttachPolicy": "AnyTwoNodes"})
    for node in nodes:
        make_attachment(cluster, volume, node)
        csi.publish(volume.handle, node, RWX if len(nodes) > 1 else RWO)
    return volume


def status(cluster: Cluster, volume: StaticVolume) -> dict[str, Any]:
    record = cluster.record(volume.handle)
    assert record is not None
    found: dict[str, Any] = record["status"]
    return found


def holders(cluster: Cluster, volume: StaticVolume) -> list[str]:
    return [held["nodeName"] for held in status(cluster, volume).get("attachments", [])]


def wait_stale(cluster: Cluster, volume: StaticVolume, word: str, reason: str) -> str:
    """Wait for the condition; return its message."""

    def of(found: dict[str, Any]) -> dict[str, Any]:
        return next((one for one in found["conditions"] if one["type"] == "StaleAttachment"), {})

    record = cluster.wait_record(
        volume.handle,
        f"StaleAttachment is {word}, {reason}",
        lambda found: (of(found).get("status"), of(found).get("reason")) == (word, reason),
    )
    return str(of(record["status"])["message"])


def silence(cluster: Cluster, node: str) -> None:
    """Have the Node say that it is not ready."""
    conditions = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
    cluster.api.patch("Node", node, {"status": {"conditions": conditions}}, subresource="status")


@pytest.fixture(scope="module", autouse=True)
def no_other_records(installed: ControlPlane) -> None:
    """A shim of these tests would release what others have left on record, and it would be counted."""
    for body in installed.api.list(RECORD):
        let_go(installed.api, body)


@pytest.mark.requirement("R22")
def test_a_node_stays_while_a_pod_there_uses_the_claim_and_is_released_once_nothing_does(
    shims: Shims, cluster: Cluster, operator: Operator
) -> None:
    csi = shims()[1]
    a, b = cluster.make_node(managed=False), cluster.make_node(managed=False)
    before = operator.scrape().value(CLEARED)
    volume = published(csi, cluster, a)
    pod = cluster.launcher_pod(volume.claim, a)
    cluster.hold_detach(a, volume.handle)
    strip(cluster, volume, a)
    assert pod in wait_stale(cluster, volume, "True", "InUse")
    assert csi.publish_code(volume.handle, b, RWO) == "FAILED_PRECONDITION"
    cluster.delete_pod(pod)
    wait_stale(cluster, volume, "True", "Mounted")
    assert csi.publish_code(volume.handle, b, RWO) == "FAILED_PRECONDITION"
    assert holders(cluster, volume) == [a]
    assert operator.scrape().value(CLEARED) == before
    make_attachment(cluster, volume, b)
    cluster.release_detach(a, volume.handle)
    eventually("the other node gets it", lambda: csi.publish_code(volume.handle, b, RWO) == "OK", interval=0.2)
    assert holders(cluster, volume) == [b]
    event = cluster.wait_event(volume.claim, "StaleAttachmentCleared")
    assert (event["type"], a in event["message"]) == ("Normal", True)
    eventually("it is counted", lambda: operator.scrape().value(CLEARED) == before + 1, interval=0.2)
    assert not status(cluster, volume).get("forcedDetaches")


@pytest.mark.requirement("R22")
def test_two_replicas_release_once(shims: Shims, cluster: Cluster, operator: Operator) -> None:
    csi = shims()[1]
    shims()
    before = operator.scrape().value(CLEARED)
    nodes = [cluster.make_node(managed=False) for _ in range(4)]
    volumes = [published(csi, cluster, node) for node in nodes]
    for node, volume in zip(nodes, volumes, strict=True):
        strip(cluster, volume, node)
    for volume in volumes:
        cluster.wait_nodes(volume.handle, [])
        cluster.wait_event(volume.claim, "StaleAttachmentCleared")
    eventually("each is counted", lambda: operator.scrape().value(CLEARED) == before + 4, interval=0.2)
    for volume in volumes:
        assert len(cluster.events(volume.claim, reason="StaleAttachmentCleared")) == 1


@pytest.mark.requirement("R22")
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ['"stale": ?true', '"StaleCleared"'], ids=["mark", "release"])
@pytest.mark.parametrize("fence", ["none", "allow-host-name"])
def test_a_shim_killed_at_a_write_of_a_release_leaves_it_to_the_next(
    shims: Shims, cluster: Cluster, proxy: Proxy, fence_box: SimulatedBox, step: str, applied: bool, fence: str
) -> None:
    shim, csi = shims(f"--fence={fence}", box=fence_box, through=proxy)
    node = cluster.make_node(managed=False)
    handle = str(csi.create(cluster.name("killed")).volume_id)
    volume = cluster.make_static_volume(handle=handle, access_mode="ReadWriteOnce")
    make_attachment(cluster, volume, node)
    csi.publish(handle, node, RWO)
    rule = proxy.freeze("PUT", STATUS, body=step, applied=applied)
    strip(cluster, volume, node)
    rule.wait_hit()
    shim.kill()
    rule.release(cut=True)
    shim.start()
    cluster.wait_nodes(handle, [])
    if fence != "none":
        eventually("the box lets nobody in", lambda: fence_box.disks()[handle][LIST] == NOBODY, interval=0.2)
    make_attachment(cluster, volume, node)
    csi.publish(handle, node, RWO)
    assert holders(cluster, volume) == [node]
    if fence != "none":
        assert fence_box.disks()[handle][LIST] == host_nqn_for(node)
    strip(cluster, volume, node)
    csi.unpublish(handle, node)
    csi.delete(handle)


@pytest.mark.requirement("R22")
@pytest.mark.parametrize("step", ['"stale": ?true', '"StaleCleared"'], ids=["at the mark", "at the release"])
def test_a_volume_attachment_that_comes_back_at_the_last_moment_wins(
    shims: Shims, cluster: Cluster, proxy: Proxy, step: str
) -> None:
    shims(through=proxy)
    csi = shims("--attachment-reconcile-interval=1h")[1]
    node, other = cluster.make_node(managed=False), cluster.make_node(managed=False)
    volume = published(csi, cluster, node)
    rule = proxy.freeze("PUT", STATUS, body=step, times=1)
    strip(cluster, volume, node)
    rule.wait_hit()
    make_attachment(cluster, volume, node)
    csi.publish(volume.handle, node, RWO)
    rule.release()
    unmarked = lambda found: not any("leaving" in held for held in found["attachments"])  # noqa: E731
    cluster.wait_record(volume.handle, "nothing is being released", unmarked)
    looks = eventually("it is looked at again", lambda: proxy_looks(proxy), interval=0.1)
    eventually("and again", lambda: proxy_looks(proxy) > looks + 2, interval=0.1)
    assert holders(cluster, volume) == [node]
    assert csi.publish_code(volume.handle, other, RWO) == "FAILED_PRECONDITION"
    assert not any(entry["kind"] == "StaleCleared" for entry in status(cluster, volume).get("outbox", []))


def proxy_looks(proxy: Proxy) -> int:
    """Return how often VolumeAttachments were listed through the proxy."""
    return len(proxy.requests("GET", "/volumeattachments$"))


@pytest.mark.requirement("R22")
@pytest.mark.parametrize("unread", ["/nodes/", "/pods$", "/volumeattachments$", "/persistentvolumes$"])
def test_while_something_cannot_be_read_nothing_is_released(shims: Shims, cluster: Cluster, proxy: Proxy, unread: str) -> None:
    shims(through=proxy)
    csi = shims("--attachment-reconcile-interval=1h")[1]
    node = cluster.make_node(managed=False)
    volume = published(csi, cluster, node)
    with proxy.fail("GET", unread, status=503) as rule:
        strip(cluster, volume, node)
        eventually("it was tried again and again", lambda: rule.hits > 3, interval=0.1)
        assert holders(cluster, volume) == [node]
    cluster.wait_nodes(volume.handle, [])


@pytest.mark.requirement("R22")
def test_with_the_fence_on_the_box_refuses_a_node_that_is_gone_before_it_is_off_the_record(
    shims: Shims, cluster: Cluster, fence_box: SimulatedBox
) -> None:
    csi = shims("--fence=allow-host-name", box=fence_box)[1]
    node = cluster.make_node(managed=False)
    handle = str(csi.create(cluster.name("fenced")).volume_id)
    volume = cluster.make_static_volume(handle=handle, access_mode="ReadWriteOnce")
    make_attachment(cluster, volume, node)
    csi.publish(handle, node, RWO)
    assert fence_box.disks()[handle][LIST] == host_nqn_for(node)
    cluster.delete_node(node)
    strip(cluster, volume, node)
    cluster.wait_nodes(handle, [])
    assert fence_box.disks()[handle][LIST] == NOBODY
    assert fence_box.disks()[handle]["nvme_tcp_export"]
    assert any("nvme-tcp-export=no" in line for line in fence_box.received("/disk set") if handle in line), (
        "its sessions were dropped"
    )
    (mark,) = status(cluster, volume)["forcedDetaches"]
    assert (mark["nodeName"], mark["reason"], mark["fenced"]) == (node, "NodeGone", True)
    csi.delete(handle)


@pytest.mark.requirement("R22")
def test_a_node_that_is_only_silent_stays_until_it_is_out_of_service(shims: Shims, cluster: Cluster) -> None:
    csi = shims()[1]
    node, other = cluster.make_node(managed=False), cluster.make_node(managed=False)
    volume = published(csi, cluster, node)
    silence(cluster, node)
    strip(cluster, volume, node)
    wait_stale(cluster, volume, "True", "NodeNotReady")
    assert csi.publish_code(volume.handle, other, RWO) == "FAILED_PRECONDITION"
    taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
    make_attachment(cluster, volume, other)
    cluster.api.patch("Node", node, {"spec": {"taints": [taint]}})
    eventually("the other node gets it", lambda: csi.publish_code(volume.handle, other, RWO) == "OK", interval=0.2)
    wait_stale(cluster, volume, "False", "NotStaleAttachment")


@pytest.mark.requirement("R6")
@pytest.mark.parametrize("how", ["stripped", "detached"])
@pytest.mark.parametrize(
    ("lost", "result", "label"), [(0, "Succeeded", "success"), (1, "Failed", "failed")], ids=["source", "target"]
)
def test_a_node_that_vanishes_during_a_migration_takes_only_itself_along(
    shims: Shims, cluster: Cluster, operator: Operator, lost: int, result: str, label: str, how: str
) -> None:
    csi = shims()[1]
    nodes = [cluster.make_node(managed=False) for _ in range(2)]
    third, fourth = cluster.make_node(managed=False), cluster.make_node(managed=False)
    before = operator.scrape().value(MIGRATIONS, result=label)
    volume = published(csi, cluster, *nodes)
    gone, stays = nodes[lost], nodes[1 - lost]
    eventually("the migration is seen", lambda: operator.scrape().value(ACTIVE) == 1, interval=0.2)
    cluster.delete_node(gone)
    if how == "stripped":
        strip(cluster, volume, gone)
    else:
        # As attach/detach controller and csi-attacher do once the pod is gone.
        cluster.delete_attachment(volume.handle, gone)
        csi.unpublish(volume.handle, gone)
        strip(cluster, volume, gone)
    cluster.wait_nodes(volume.handle, [stays])
    eventually("it is over", lambda: operator.scrape().value(ACTIVE) == 0, interval=0.2)
    (window,) = status(cluster, volume)["history"]
    assert (window["result"], window["leftNode"], window["forced"]) == (result, gone, True)
    eventually("it is counted", lambda: operator.scrape().value(MIGRATIONS, result=label) == before + 1, interval=0.2)
    make_attachment(cluster, volume, third)
    assert csi.publish_code(volume.handle, third) == "OK"
    assert csi.publish_code(volume.handle, fourth) == "FAILED_PRECONDITION"
    assert holders(cluster, volume) == [stays, third]
