"""The operator as a real process against a real API server: deadlines, Events on the claim, metrics, what it leaves on records."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from rds_records.names import FINALIZER
from rds_records.record import Result
from tests.ring.cluster import Cluster, StaticVolume
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator
from tests.ring.records import attach_to, delete_record, detach_from, make_record, migrate, read, refuse, seconds_ago
from tests.ring.waiting import eventually

RESULTS = ("success", "failed", "timeout")


def results(operator: Operator) -> Counter[str]:
    scrape = operator.scrape()
    return Counter({result: int(scrape.value("rds_csi_migration_migrations_total", result=result)) for result in RESULTS})


@pytest.fixture(autouse=True)
def nodes(cluster: Cluster) -> None:
    """The nodes of these records, Ready: the operator has nothing to say of them."""
    for node in ("node-a", "node-b"):
        cluster.make_node(name=node)


@pytest.fixture
def counted(operator: Operator) -> Callable[[], Counter[str]]:
    """Return a function that tells how many migrations were counted since the test began, by result."""
    before = results(operator)
    return lambda: results(operator) - before


def reported(cluster: Cluster, volume: StaticVolume) -> bool:
    return read(cluster, volume.handle).status.outbox == ()


def wait_reported(cluster: Cluster, volume: StaticVolume) -> None:
    eventually("everything is reported", lambda: reported(cluster, volume))


def migration_events(cluster: Cluster, volume: StaticVolume) -> list[str]:
    return [event["reason"] for event in cluster.events(volume.claim) if event["reason"].startswith("Migration")]


def wait_result(cluster: Cluster, volume: StaticVolume, *, timeout: float = 30.0) -> datetime:
    """Wait until the open window has its result; return when it got it."""

    def result_time() -> datetime | None:
        window = read(cluster, volume.handle).status.migration
        return window.result_time if window and window.result is Result.TIMED_OUT else None

    return eventually("the window is timed out", result_time, timeout=timeout)


@pytest.mark.requirement("R1", "R2", "R8")
def test_a_migration_past_its_deadline_is_timed_out_once_and_told_on_the_claim(
    operator: Operator, cluster: Cluster, counted: Callable[[], Counter[str]]
) -> None:
    volume = cluster.make_static_volume()
    window = migrate(cluster, volume, timeout=30, since=26).status.migration
    assert window
    assert window.deadline_time
    late = wait_result(cluster, volume) - window.deadline_time
    assert timedelta() <= late <= timedelta(seconds=2)
    event = cluster.wait_event(volume.claim, "MigrationFailed")
    assert event["type"] == "Warning"
    for word in ("source: node-a", "target: node-b", "reason: timeout", "elapsed: 30s", "(timeout: 30s)"):
        assert word in event["message"]
    wait_reported(cluster, volume)
    version = read(cluster, volume.handle).metadata.resource_version
    for node in ("node-c", "node-d"):
        refuse(cluster, volume.handle, node)
    eventually("the refusals are told", lambda: len(cluster.events(volume.claim, reason="AttachmentConflict")) == 2)
    assert version != read(cluster, volume.handle).metadata.resource_version
    assert migration_events(cluster, volume) == ["MigrationStarted", "MigrationFailed"]
    assert counted() == {"timeout": 1}
    assert read(cluster, volume.handle).status.phase == "Overdue"


@pytest.mark.requirement("R10")
@pytest.mark.parametrize(("before", "edited"), [(300, 30), (30, 34)])
def test_an_edited_timeout_moves_a_running_deadline(operator: Operator, cluster: Cluster, before: int, edited: int) -> None:
    volume = cluster.make_static_volume()
    window = migrate(cluster, volume, timeout=before, since=27).status.migration
    assert window
    cluster.patch_record(volume.handle, {"migrationTimeoutSeconds": edited})
    deadline = window.start_time + timedelta(seconds=edited)

    def moved() -> bool:
        current = read(cluster, volume.handle).status.migration
        return current is not None and current.deadline_time == deadline

    eventually("the record shows the new deadline", moved, timeout=3)
    assert timedelta() <= wait_result(cluster, volume) - deadline <= timedelta(seconds=2)


@pytest.mark.requirement("R2", "R3", "R8")
@pytest.mark.parametrize(
    ("leaves", "reason", "kind", "result", "words"),
    [
        ("node-a", "MigrationCompleted", "Normal", "success", ["source: node-a -> target: node-b", "duration: "]),
        ("node-b", "MigrationFailed", "Warning", "failed", ["source: node-a", "target: node-b", "rolled back", "stays on node-a"]),
    ],
)
def test_a_migration_that_ends_is_one_event_and_one_count(
    operator: Operator,
    cluster: Cluster,
    counted: Callable[[], Counter[str]],
    leaves: str,
    reason: str,
    kind: str,
    result: str,
    words: list[str],
) -> None:
    before = operator.scrape().value("rds_csi_migration_duration_seconds_sum")
    volume = cluster.make_static_volume()
    migrate(cluster, volume, since=40)
    cluster.wait_event(volume.claim, "MigrationStarted")
    detach_from(cluster, volume.handle, leaves)
    event = cluster.wait_event(volume.claim, reason)
    assert event["type"] == kind
    for word in words:
        assert word in event["message"]
    wait_reported(cluster, volume)
    assert migration_events(cluster, volume) == ["MigrationStarted", reason]
    assert counted() == {result: 1}
    assert operator.scrape().value("rds_csi_migration_duration_seconds_sum") - before == pytest.approx(40, abs=5)


@pytest.mark.requirement("R8", "R42")
def test_kubectl_shows_the_events_of_a_claim(operator: Operator, cluster: Cluster, installed: ControlPlane) -> None:
    volume = cluster.make_static_volume()
    migrate(cluster, volume)
    cluster.wait_event(volume.claim, "MigrationStarted")

    def kubectl(*words: str) -> str:
        command = [
            installed.binaries["kubectl"],
            f"--kubeconfig={installed.kubeconfig}",
            f"--namespace={cluster.namespace}",
            *words,
        ]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout

    described = kubectl("describe", "pvc", volume.claim)
    assert "MigrationStarted" in described
    assert "rds-csi-controller" in described
    assert "MigrationStarted" in kubectl("get", "events", f"--field-selector=involvedObject.name={volume.claim}")


@pytest.mark.requirement("R4", "R44")
def test_gauges_and_the_record_tell_of_a_running_migration(operator: Operator, cluster: Cluster) -> None:
    volume = cluster.make_static_volume()
    before = operator.scrape().value("rds_csi_migration_active_migrations")
    body = migrate(cluster, volume, since=100)
    window = body.status.migration
    assert window

    def shown() -> bool:
        scrape = operator.scrape()
        oldest = scrape.value("rds_csi_migration_oldest_active_start_timestamp_seconds")
        return (
            scrape.value("rds_csi_migration_active_migrations") == before + 1
            and oldest <= window.start_time.timestamp() + 0.001
            and scrape.value("rds_csi_attachment_records", phase="Migrating") >= 1
        )

    eventually("the gauges show it", shown, timeout=5)
    claim = cluster.wait_record(volume.handle, "names its claim", lambda status: status.get("claimRef"), timeout=5)
    assert claim["status"]["claimRef"] == {
        "namespace": cluster.namespace,
        "name": volume.claim,
        "uid": cluster.claim(volume.claim)["metadata"]["uid"],
    }
    detach_from(cluster, volume.handle, "node-b")
    eventually("the gauge is back", lambda: operator.scrape().value("rds_csi_migration_active_migrations") == before, timeout=5)


@pytest.mark.requirement("R41")
def test_refusals_of_one_node_are_one_event_that_counts(operator: Operator, cluster: Cluster) -> None:
    volume = cluster.make_static_volume()
    migrate(cluster, volume)
    refuse(cluster, volume.handle, "node-c", since=125)
    cluster.wait_event(volume.claim, "AttachmentConflict")
    refuse(cluster, volume.handle, "node-c", since=62)
    refuse(cluster, volume.handle, "node-c")
    event = eventually(
        "the Event counts three",
        lambda: next((event for event in cluster.events(volume.claim, reason="AttachmentConflict") if event["count"] == 3), None),
    )
    assert event["type"] == "Warning"
    assert "node-c was refused" in event["message"]
    assert len(cluster.events(volume.claim, reason="AttachmentConflict")) == 1


@pytest.mark.requirement("R23")
def test_events_reach_the_claim_of_a_volume_whose_name_is_not_its_handle(operator: Operator, cluster: Cluster) -> None:
    volume = cluster.make_static_volume()
    make_record(cluster, volume, persistent_volume_name="the-name-it-had-before")
    attach_to(cluster, volume.handle, "node-a")
    attach_to(cluster, volume.handle, "node-b")
    cluster.wait_event(volume.claim, "MigrationStarted")


@pytest.mark.requirement("R40")
def test_an_event_that_nobody_takes_is_counted_as_failed_and_holds_up_nothing(
    operator: Operator, cluster: Cluster, counted: Callable[[], Counter[str]]
) -> None:
    before = operator.scrape().value("rds_csi_events_failed_total", reason="MigrationCompleted")
    volume = cluster.make_static_volume()
    orphan = StaticVolume(f"{volume.handle[:-4]}ffff", "no-such-volume", "no-claim")
    migrate(cluster, orphan)
    detach_from(cluster, orphan.handle, "node-a")
    wait_reported(cluster, orphan)
    assert operator.scrape().value("rds_csi_events_failed_total", reason="MigrationCompleted") == before + 1
    assert counted() == {"success": 1}
    detach_from(cluster, orphan.handle, "node-b")
    delete_record(cluster, orphan.handle)
    eventually("the record is gone", lambda: cluster.record(orphan.handle) is None)


def test_a_record_deleted_by_an_administrator_works_on_until_nobody_is_attached(operator: Operator, cluster: Cluster) -> None:
    volume = cluster.make_static_volume()
    window = migrate(cluster, volume, timeout=30, since=24).status.migration
    assert window
    assert window.deadline_time
    delete_record(cluster, volume.handle)
    late = wait_result(cluster, volume) - window.deadline_time
    assert timedelta() <= late <= timedelta(seconds=2)
    detach_from(cluster, volume.handle, "node-b")
    cluster.wait_event(volume.claim, "MigrationEnded")
    assert FINALIZER in read(cluster, volume.handle).metadata.finalizers
    detach_from(cluster, volume.handle, "node-a")
    eventually("the record is gone", lambda: cluster.record(volume.handle) is None)


def test_the_operator_leaves_nothing_of_its_own_on_a_record(operator: Operator, cluster: Cluster) -> None:
    volume = cluster.make_static_volume()
    migrate(cluster, volume)
    wait_reported(cluster, volume)
    body = read(cluster, volume.handle)
    assert body.metadata.finalizers == (FINALIZER,)
    assert dict(body.metadata.annotations) == {}
    assert not set(body.to_json()["status"]) & {"kopf", "record", "deadline"}


@pytest.mark.requirement("R37")
def test_readiness_says_that_it_is_active(operator: Operator) -> None:
    status, text = operator.get("/readyz")
    assert status == 200
    assert '"role": "active"' in text
    assert operator.get("/healthz")[0] == 200
    assert seconds_ago(0) > seconds_ago(1)
