"""The operator looks at the box in the background: what it lost, how it is; and an outage is no loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Metrics, Operator, Shim
from tests.ring.rpc import Csi
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

SOURCES = {"disks", "files", "pool", "health", "traffic"}
LAST = "rds_csi_inventory_last_success_timestamp_seconds"


@pytest.fixture(scope="module")
def watched_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """The box that the operator of this file looks at."""
    with SimulatedBox(tmp_path_factory.mktemp("watched"), version="7.24") as box:
        box.health(("cpu-temperature", "43", "C"), ("fan1-speed", "5654", "RPM"), ("psu1-power", "70.5", "W"))
        box.traffic("storage-pool", write_ops_per_second=76, write_rate="12.8Mbps", read_time="48s149ms")
        yield box


@pytest.fixture(scope="module")
def watching(installed: ControlPlane, watched_box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator that looks twice a second."""
    folder = tmp_path_factory.mktemp("operator")
    with Operator(installed, folder, box=reach(watched_box), extra=["--inventory-interval=0.5s"]) as operator:
        yield operator


@pytest.fixture(scope="module")
def client(installed: ControlPlane, watched_box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Csi]:
    """CSI calls to a shim of that box."""
    with Shim(installed, tmp_path_factory.mktemp("shim"), reach(watched_box)) as shim, Csi(shim.endpoint) as csi:
        yield csi


@pytest.fixture
def make(client: Csi) -> Iterator[Callable[[], str]]:
    """Return a function that makes a volume on that box."""
    made: list[str] = []

    def make() -> str:
        made.append(client.create(f"pvc-{uuid4()}").volume_id)
        return made[-1]

    yield make
    for handle in made:
        client.delete(handle)


@pytest.fixture
def volume(make: Callable[[], str], watching: Operator, cluster: Cluster) -> str:
    """A volume that was seen on the box."""
    handle = make()
    wait_available(cluster, handle, "True", "DiskPresent")
    return handle


def wait_available(cluster: Cluster, handle: str, status: str, reason: str) -> str:
    """Wait for the condition; return its message."""

    def said() -> str | None:
        conditions = (cluster.record(handle) or {}).get("status", {}).get("conditions", [])
        found = [one for one in conditions if one["type"] == "Available"]
        assert [(one["status"], one["reason"]) for one in found] == [(status, reason)], conditions
        return str(found[0]["message"])

    return eventually(f"volume {handle} is {reason}", said)


def rounds(operator: Operator, count: int, source: str = "disks") -> None:
    """Wait until the box answered that often again."""
    for _ in range(count):
        before = operator.scrape().value(LAST, source=source)
        eventually("the box is looked at again", lambda before=before: operator.scrape().value(LAST, source=source) > before)  # type: ignore[misc]


def series(operator: Operator) -> set[str]:
    return {line.split("{")[0].split(" ")[0] for line in operator.scrape().text.splitlines() if not line.startswith("#")}


def unavailable(cluster: Cluster) -> list[str]:
    """Return the records that are marked, those of other tests' boxes included: the operator looks for every record on its own."""
    return [
        record["metadata"]["name"]
        for record in cluster.api.list("VolumeAttachmentRecord")
        for condition in record.get("status", {}).get("conditions", [])
        if condition["type"] == "Available" and condition["status"] == "False"
    ]


def test_a_disk_that_was_removed_by_hand_is_said_to_be_missing_until_it_is_back(
    volume: str, cluster: Cluster, watched_box: SimulatedBox, watching: Operator
) -> None:
    disk = watched_box.disks()[volume]
    watched_box.run(f"/disk remove [find slot={volume}]")
    message = wait_available(cluster, volume, "False", "DiskMissing")
    assert volume in message
    assert "its file is still there" in message
    assert volume in unavailable(cluster)
    eventually("it is counted", lambda: watching.scrape().value("rds_csi_volumes_unavailable") == len(unavailable(cluster)))
    watched_box.run(
        f"/disk add type=file file-path={disk['file_path']} slot={volume} nvme-tcp-export=yes"
        f" nvme-tcp-server-nqn={disk['nvme_tcp_server_nqn']}"
    )
    wait_available(cluster, volume, "True", "DiskPresent")


def test_a_disk_that_is_not_exported_says_how_to_export_it(volume: str, cluster: Cluster, watched_box: SimulatedBox) -> None:
    watched_box.run(f"/disk set [find slot={volume}] nvme-tcp-export=no")
    way_out = wait_available(cluster, volume, "False", "NotExported").split("On the box: ")[-1].split("Way out, on the box: ")[-1]
    watched_box.run(way_out)
    wait_available(cluster, volume, "True", "DiskPresent")


@pytest.mark.requirement("R38", "R39")
def test_an_outage_takes_series_away_and_nothing_else(
    volume: str, cluster: Cluster, watched_box: SimulatedBox, watching: Operator
) -> None:
    eventually("all is measured", lambda: "rds_hardware_cpu_temperature_celsius" in series(watching))
    before = watching.scrape()
    watched_box.stop()
    try:
        eventually(
            "the series are gone", lambda: not {one for one in series(watching) if one.startswith(("rds_hardware", "rds_disk"))}
        )
        started = time.monotonic()
        scrape = watching.scrape()
        assert time.monotonic() - started < 1
        assert scrape.value("rds_csi_migration_active_migrations") == before.value("rds_csi_migration_active_migrations")
        assert {labels["source"] for labels in scrape.labels(LAST)} == SOURCES
        assert volume not in unavailable(cluster)
        eventually(
            "no more are counted", lambda: watching.scrape().value("rds_csi_volumes_unavailable") == len(unavailable(cluster))
        )
    finally:
        watched_box.start()
    rounds(watching, 2)
    wait_available(cluster, volume, "True", "DiskPresent")


@pytest.mark.requirement("R38")
def test_a_box_that_answers_nothing_delays_no_scrape(watched_box: SimulatedBox, watching: Operator) -> None:
    watched_box.switch(black_hole=True)
    try:
        for _ in range(5):
            started = time.monotonic()
            watching.scrape().value("rds_csi_migration_overdue")
            assert time.monotonic() - started < 1
    finally:
        watched_box.switch(black_hole=False)
    rounds(watching, 1)


@pytest.mark.requirement("R39", "R52")
@pytest.mark.parametrize(
    "answer", ["Flags: B - BLOCK-DEVICE; t - NVME-TCP-EXPORT\r\n0\r\n1\r\n", " 0 Bt type=file slot=", "failure: interrupted", "3"]
)
def test_a_listing_that_does_not_add_up_changes_nothing(
    volume: str, cluster: Cluster, watched_box: SimulatedBox, watching: Operator, answer: str
) -> None:
    for _ in range(6):
        watched_box.fail_command("^/disk print detail where type=file", answer)
    rounds(watching, 3, source="files")
    wait_available(cluster, volume, "True", "DiskPresent")
    rounds(watching, 1)
    wait_available(cluster, volume, "True", "DiskPresent")


def test_the_gauges_say_what_the_box_says(volume: str, watching: Operator, watched_box: SimulatedBox) -> None:
    def measured() -> Metrics:
        scrape = watching.scrape()
        assert scrape.value("rds_disk_write_bytes_per_second", slot="storage-pool") == 1_600_000
        return scrape

    scrape = eventually("traffic is measured", measured)
    assert scrape.value("rds_hardware_cpu_temperature_celsius") == 43
    assert scrape.value("rds_hardware_psu1_power_watts") == 70.5
    assert scrape.value("rds_csi_pool_provisioned_bytes") == sum(disk["size"] for disk in watched_box.disks().values())
    size = scrape.value("rds_hardware_disk_pool_size_bytes")
    assert 0 < scrape.value("rds_hardware_disk_pool_used_bytes") < size
    assert "rds_hardware_fan2_speed_rpm" not in series(watching)


def test_one_round_is_one_command_for_each_question(watched_box: SimulatedBox, watching: Operator) -> None:
    rounds(watching, 1, source="traffic")
    before = len(watched_box.received())
    rounds(watching, 1, source="traffic")
    sent = watched_box.received()[before:]
    questions = {
        "disks": "/disk print detail where type=file;",
        "files": "/file print detail where name~",
        "pool": "/disk print detail where mount-point=",
        "health": "/system health print;",
        "traffic": "/disk monitor-traffic",
    }
    # Now and then the box is asked what it is and what it can do, too: three commands more, one of them as for the pool.
    beside = [line for line in sent if line.startswith(("/system resource print", ":put [:len [/disk/btrfs/subvolume find]]"))]
    sent = [line for line in sent if line not in beside]
    counts = {name: sum(line.startswith(beginning) for line in sent) for name, beginning in questions.items()}
    assert all(1 <= count <= (3 if beside else 2) for count in counts.values()), counts
    assert sum(counts.values()) == len(sent)


def test_the_traffic_of_every_volume_is_measured_where_that_is_asked_for(
    make: Callable[[], str], watched_box: SimulatedBox, watching: Operator, make_operator: Callable[..., Operator]
) -> None:
    handles = [make() for _ in range(2)]
    watching.stop()
    try:
        other = make_operator(
            box=reach(watched_box), extra=["--inventory-interval=0.5s", "--disk-metrics=volumes"], name="measures-all"
        )
        slots = {*handles, "storage-pool"}
        eventually(
            "all are measured",
            lambda: slots <= {labels["slot"] for labels in other.scrape().labels("rds_disk_in_flight_operations")},
        )
    finally:
        other.stop()
        watching.start()


@pytest.mark.requirement("R39")
def test_a_pool_that_is_not_mounted_is_no_empty_pool(
    volume: str, cluster: Cluster, watched_box: SimulatedBox, watching: Operator
) -> None:
    watched_box.pool(mount_point="elsewhere")
    try:
        rounds(watching, 4)
        assert "rds_hardware_disk_pool_size_bytes" not in series(watching)
        wait_available(cluster, volume, "True", "DiskPresent")
    finally:
        watched_box.pool(mount_point="storage-pool")
    rounds(watching, 2)
    wait_available(cluster, volume, "True", "DiskPresent")
