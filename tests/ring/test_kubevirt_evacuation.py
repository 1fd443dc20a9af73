"""A node is evacuated: ten virtual machines with three disks each, as many at a time as KubeVirt's limits let go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.ring.cluster import Cluster
from tests.ring.driver import Metrics, Operator
from tests.ring.kubevirt import KubeVirt, Vm
from tests.ring.processes import Process
from tests.ring.waiting import eventually

pytestmark = [pytest.mark.requirement("R35"), pytest.mark.timeout(400)]

VMS = 10
DISKS = 3


def counted(metrics: Metrics) -> dict[str, float]:
    results = {
        result: metrics.value("rds_csi_migration_migrations_total", result=result) for result in ("success", "failed", "timeout")
    }
    return {**results, "closed": metrics.value("rds_csi_migration_duration_seconds_count")}


def start(kubevirt: KubeVirt, node: str) -> list[Vm]:
    """Start the virtual machines, all on one node."""
    cluster = kubevirt.cluster
    storage_class = cluster.make_storage_class({})
    claims = [[cluster.make_claim(storage_class, stem=f"vm-{vm}-disk") for _ in range(DISKS)] for vm in range(VMS)]
    with ThreadPoolExecutor(VMS) as pool:
        list(pool.map(cluster.wait_bound, [claim for of_one in claims for claim in of_one]))
        return list(pool.map(lambda number: kubevirt.run(f"vm-{number}", claims=claims[number], node=node), range(VMS)))


@pytest.mark.parametrize("away", [False, True], ids=["operator there", "operator away in the middle"])
def test_every_disk_of_an_evacuated_node_has_one_window_with_its_own_end(
    kubevirt: KubeVirt, cluster: Cluster, operator: Operator, attacher: Process, provisioner: Process, away: bool
) -> None:
    old, *others = (cluster.make_node(name) for name in ("old", "new", "newer"))
    vms = start(kubevirt, old)
    before = counted(operator.scrape())
    evacuation = kubevirt.evacuate({vm: others[number % 2] for number, vm in enumerate(vms)})
    evacuation.until_left(VMS // 2)
    if away:
        # A count that nobody scraped goes with its process (I5), so everything so far is counted before the scrape.
        for handle in (disk.handle for vm in vms for disk in vm.disks):
            cluster.wait_record(handle, "reported", lambda status: not status.get("outbox"))
        told = counted(operator.scrape())
        operator.kill()
        evacuation.complete()
        operator.start()
        before = {key: before[key] - told[key] for key in before}
    else:
        evacuation.complete()
    assert evacuation.most_at_once == 2, "two of one source node at a time"
    targets = {vm.name: others[number % 2] for number, vm in enumerate(vms)}
    for vm in vms:
        for disk in vm.disks:
            status = cluster.wait_record(disk.handle, "reported", lambda seen: seen.get("history") and not seen["outbox"])["status"]
            (window,) = status["history"]
            assert (window["result"], window["sourceNode"], window["targetNode"]) == ("Succeeded", old, targets[vm.name])
            assert (window["vmi"]["name"], window["liveNode"], status["nodes"]) == (vm.name, targets[vm.name], targets[vm.name])
            told_reasons = [event["reason"] for event in cluster.events(disk.claim) if event["reason"].startswith("Migration")]
            assert sorted(told_reasons) == ["MigrationCompleted", "MigrationEnded", "MigrationStarted"]

    def all_counted() -> bool:
        now = counted(operator.scrape())
        seen = {key: now[key] - before[key] for key in now}
        # The last claim of an entry is seen on the record a moment before it is counted.
        assert seen == {"success": VMS * DISKS, "failed": 0, "timeout": 0, "closed": VMS * DISKS}, seen
        return True

    eventually("every window is counted once", all_counted, timeout=10)
    assert operator.scrape().value("rds_csi_migration_active_migrations") == 0
