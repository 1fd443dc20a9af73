"""Kubelets, nodes and the driver on them die under running pods, and disks grow under them; no pod and no byte is lost by that."""

from __future__ import annotations

import contextlib

import pytest

from tests.ring.cluster import GIB
from tests.ring.waiting import eventually
from tests.vm.cluster import DISK, MOUNTED, RealCluster
from tests.vm.keepers import Keeper, Keepers
from tests.vm.site import Site, Volume

pytestmark = pytest.mark.timeout(900)

STAGE, UNSTAGE, EXPAND = (f"/csi.v1.Node/Node{what}Volume" for what in ("Stage", "Unstage", "Expand"))


@pytest.fixture
def keepers(cluster: RealCluster, site: Site) -> Keepers:
    """The keepers of this test."""
    return Keepers(cluster, site.box.guest.share)


@pytest.fixture
def volume(site: Site, cluster: RealCluster) -> Volume:
    """A raw disk."""
    return site.provision(cluster)


def writing(keepers: Keepers, node: str, volume: Volume, *, restart: str = "Never") -> Keeper:
    """Return a keeper that writes."""
    keeper = keepers.make(node, volume.claim, restart=restart)
    keeper.wait_running()
    keeper.write()
    keeper.wait_writes()
    return keeper


def calls(site: Site, node: str, method: str, code: str = "OK") -> float:
    """Return how many calls the driver of a node has answered so."""
    scrape = site.plugins[node].scrape()
    name = "csi_plugin_operations_seconds_count"
    asked = {"method_name": method, "grpc_status_code": code}
    return scrape.value(name, **asked) if any(asked.items() <= labels.items() for labels in scrape.labels(name)) else 0.0


def restarts(cluster: RealCluster, keeper: Keeper) -> int:
    """Return how often a pod's container was started again."""
    statuses = cluster.api.get("Pod", keeper.pod, cluster.namespace)["status"]["containerStatuses"]
    return sum(status["restartCount"] for status in statuses)


def test_a_pod_goes_on_while_its_kubelet_dies_and_comes_back(
    site: Site, cluster: RealCluster, keepers: Keepers, volume: Volume
) -> None:
    keeper = writing(keepers, "node-a", volume)
    session, staged = site.sessions("node-a"), calls(site, "node-a", STAGE)
    site.kubelets["node-a"].kubelet.kill()
    keeper.wait_writes()
    site.restart_node("node-a")
    # A kubelet that finds a pod it does not know the disk of stages and publishes it once more.
    eventually("the disk is staged again", lambda: calls(site, "node-a", STAGE) > staged, timeout=90)
    keeper.wait_writes()
    assert site.sessions("node-a") == session
    assert restarts(cluster, keeper) == 0
    keeper.read()
    assert keepers.wrong_with(site.on_the_box(volume)) == []


def test_a_disk_is_held_while_a_pod_that_was_forced_away_still_writes(
    site: Site, cluster: RealCluster, keepers: Keepers, volume: Volume
) -> None:
    keeper = writing(keepers, "node-a", volume)
    site.kubelets["node-a"].kubelet.kill()
    cluster.delete_pod(keeper.pod, force=True)
    keeper.wait_writes()
    # What the process waits for it cannot be killed in, so that the kubelet comes to unstage the disk before that is gone.
    with site.box.guest.cut():
        site.wait_broken_off()
        site.restart_node("node-a")
        refused = "FailedPrecondition"
        eventually("the disk is held", lambda: calls(site, "node-a", UNSTAGE, refused) > 0, timeout=90)
        assert volume.nqn in site.sessions("node-a")
    cluster.wait_detached(volume.handle, "node-a", timeout=120)
    site.wait_clean("node-a")
    assert keeper.failures() == []
    assert keepers.wrong_with(site.on_the_box(volume)) == []
    assert "in use" in site.plugins["node-a"].process.output()


@pytest.mark.long
def test_a_pod_goes_on_after_its_node_restarted(site: Site, cluster: RealCluster, keepers: Keepers, volume: Volume) -> None:
    keeper = writing(keepers, "node-a", volume, restart="Always")
    site.guest("node-a").kill()
    site.restart_node("node-a")
    keeper.wait_writes(timeout=180)
    assert restarts(cluster, keeper) == 1
    keeper.read()
    assert keepers.wrong_with(site.on_the_box(volume)) == []


@pytest.mark.long
def test_a_pod_runs_elsewhere_once_its_node_is_out_of_service(site: Site, cluster: RealCluster, keepers: Keepers) -> None:
    volume = site.provision(cluster, block=False, fs_type="ext4")
    keeper = writing(keepers, "node-a", volume)
    site.lose("node-a")
    cluster.delete_pod(keeper.pod, force=True)
    other = keepers.make("node-b", volume.claim)
    other.wait_running()
    assert other.read() >= max(keeper.acknowledged())
    site.restart_node("node-a")
    site.wait_clean("node-a")
    assert list(site.sessions("node-b")) == [volume.nqn]


@pytest.mark.long
def test_pods_come_and_go_after_the_driver_was_killed_on_their_node(
    site: Site, cluster: RealCluster, keepers: Keepers, volume: Volume
) -> None:
    keeper = writing(keepers, "node-a", volume)
    going = cluster.pod("node-a", site.provision(cluster).claim)
    cluster.wait_running(going)
    session = site.sessions("node-a")[volume.nqn]
    site.plugins["node-a"].kill()
    keeper.wait_writes()
    cluster.delete_pod(going, wait=False)
    coming = cluster.pod("node-a", site.provision(cluster, block=False, fs_type="ext4").claim)
    site.plugins["node-a"].start()
    cluster.wait_running(coming)
    cluster.wait_pod_gone(going)
    assert site.sessions("node-a")[volume.nqn] == session
    keeper.wait_writes()
    keeper.read()
    assert keepers.wrong_with(site.on_the_box(volume)) == []


@pytest.mark.long
def test_disks_grow_under_their_pods(site: Site, cluster: RealCluster, volume: Volume) -> None:
    claims = {
        volume.claim: f"blockdev --getsize64 {DISK}",
        site.provision(cluster, block=False, fs_type="ext4").claim: f"df -k {MOUNTED} | tail -n 1 | awk '{{print $2 * 1024}}'",
    }
    pods = {claim: cluster.pod("node-a", claim) for claim in claims}
    for pod in pods.values():
        cluster.wait_running(pod)
    for claim in claims:
        cluster.expand(claim, "2Gi")
    for claim, size in claims.items():

        def grown(claim: str = claim, size: str = size) -> bool:
            now = int(float(cluster.exec(pods[claim], size)))
            assert now > 1.8 * GIB, now
            capacity = cluster.claim(claim)["status"]["capacity"]["storage"]
            assert capacity == "2Gi", capacity
            return True

        eventually(f"{claim} has 2 GiB in its pod", grown, timeout=120, interval=1)


@pytest.mark.long
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_file_system_goes_with_its_pods_from_node_to_node(
    site: Site, cluster: RealCluster, keepers: Keepers, fs_type: str
) -> None:
    volume = site.provision(cluster, block=False, fs_type=fs_type)
    last = 0
    for node in ("node-a", "node-b"):
        keeper = writing(keepers, node, volume)
        assert f" {MOUNTED} {fs_type} " in cluster.exec(keeper.pod, "cat /proc/mounts")
        assert keeper.lines()[0]["last"] == last
        last = keeper.read()
        cluster.delete_pod(keeper.pod)
        site.wait_clean(node)
    assert last == max(keepers.acknowledged())


@pytest.mark.long
def test_a_pod_may_have_sixteen_disks(site: Site, cluster: RealCluster) -> None:
    claims = [site.provision(cluster).claim for _ in range(16)]
    pod = cluster.pod("node-a", claims)
    cluster.wait_running(pod, timeout=300)
    assert len(site.sessions("node-a")) == 16
    disks = cluster.exec(pod, f"ls -d {DISK}*").split()
    assert len(disks) == 16
    for number, disk in enumerate(disks):
        cluster.exec(pod, f"printf %-4096s {number} | dd of={disk} bs=4096 oflag=direct")
    said = [cluster.exec(pod, f"dd if={disk} bs=4096 count=1 iflag=direct 2> /dev/null").strip() for disk in disks]
    assert said == [str(number) for number in range(16)]
    with contextlib.suppress(AssertionError):
        cluster.delete_pod(pod)
    site.wait_clean("node-a")
