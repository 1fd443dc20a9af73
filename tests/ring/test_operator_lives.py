"""Lives of the operator that end badly or run in trouble: kills, hand-overs, frozen API servers, clocks that disagree."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from rds_records.record import OutboxEntry, Result
from tests.ring.cluster import Cluster, StaticVolume
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator
from tests.ring.proxy import Proxy
from tests.ring.records import detach_from, migrate, read
from tests.ring.waiting import eventually

QUICK = ("--lease-duration=3s", "--renew-deadline=2s", "--retry-period=400ms")
MakeOperator = Callable[..., Operator]


@pytest.fixture
def start(cluster: Cluster, proxy: Proxy, make_operator: MakeOperator) -> MakeOperator:
    """Return a function that starts an operator with a Lease of this test's own; ``quick`` leases change hands in seconds.

    The operators end before the proxy does, whether a test uses it or not: so comes ``proxy`` before ``make_operator``.
    """

    def start(name: str, *extra: str, quick: bool = True, **arguments: object) -> Operator:
        lease = f"--lease-name=operator-{cluster.tag}"
        return make_operator(name=name, extra=(lease, *(QUICK if quick else ()), *extra), **arguments)

    return start


def role(operator: Operator) -> str:
    return str(json.loads(operator.get("/readyz")[1])["role"])


def wait_active(operator: Operator, *, timeout: float = 15.0) -> None:
    def active() -> bool:
        return role(operator) == "active" and "rds_csi_migration_active_migrations" in operator.get("/metrics")[1]

    eventually(f"{operator.name} is active", active, timeout=timeout)


def counts(operator: Operator) -> dict[str, int]:
    scrape = operator.scrape()
    found = {
        result: int(scrape.value("rds_csi_migration_migrations_total", result=result))
        for result in ("success", "failed", "timeout")
    }
    return {result: count for result, count in found.items() if count}


def wait_reported(cluster: Cluster, volume: StaticVolume, *, timeout: float = 20.0) -> None:
    eventually("everything is reported", lambda: not outbox(cluster, volume), timeout=timeout)


def outbox(cluster: Cluster, volume: StaticVolume) -> tuple[OutboxEntry, ...]:
    return read(cluster, volume.handle).status.outbox


def migration_events(cluster: Cluster, volume: StaticVolume) -> Counter[str]:
    return Counter(event["reason"] for event in cluster.events(volume.claim) if event["reason"].startswith("Migration"))


def lateness(cluster: Cluster, volume: StaticVolume, *, timeout: float = 30.0) -> timedelta:
    """Wait until the open window is timed out; return how long after its deadline."""

    def late() -> timedelta | None:
        window = read(cluster, volume.handle).status.migration
        if not (window and window.result is Result.TIMED_OUT and window.result_time and window.deadline_time):
            return None
        return window.result_time - window.deadline_time

    found = eventually("the window is timed out", lambda: (late(),) if late() is not None else None, timeout=timeout)[0]
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def nodes(cluster: Cluster) -> None:
    """The nodes of ``migrate``, Ready: the operator has nothing to say of them."""
    for node in ("node-a", "node-b"):
        cluster.make_node(name=node)


@pytest.mark.requirement("R1", "R4")
def test_killing_the_active_replica_loses_and_doubles_nothing(start: MakeOperator, cluster: Cluster) -> None:
    first = start("first")
    wait_active(first)
    standby = start("standby")
    assert role(standby) == "standby"
    assert "rds_csi_migration_active_migrations" not in standby.get("/metrics")[1]
    running, ended, due = (cluster.make_static_volume() for _ in range(3))
    migrate(cluster, running)
    migrate(cluster, ended)
    wait_reported(cluster, ended)
    migrate(cluster, due, timeout=30, since=24)
    first.kill()
    detach_from(cluster, ended.handle, "node-a")
    wait_active(standby)
    assert timedelta() <= lateness(cluster, due) <= timedelta(seconds=5)
    for volume in (running, ended, due):
        wait_reported(cluster, volume)
    assert migration_events(cluster, running) == {"MigrationStarted": 1}
    assert migration_events(cluster, ended) == {"MigrationStarted": 1, "MigrationCompleted": 1}
    assert migration_events(cluster, due) == {"MigrationStarted": 1, "MigrationFailed": 1}
    assert counts(standby) == {"success": 1, "timeout": 1}
    scrape = standby.scrape()
    assert scrape.value("rds_csi_migration_active_migrations") == 1
    assert scrape.value("rds_csi_migration_overdue") == 1


@pytest.mark.requirement("R4")
@pytest.mark.parametrize(
    ("method", "path", "skip", "applied", "by_first", "by_second"),
    [
        ("POST", "/events$", 0, migration_events, {}, {"success": 1}),
        ("PUT", "/status$", 0, lambda cluster, volume: all(entry.reported_by for entry in outbox(cluster, volume)), {}, {}),
        ("PUT", "/status$", 1, lambda cluster, volume: not outbox(cluster, volume), {"success": 1}, {}),
    ],
    ids=["after the Event", "after the claim", "after the removal"],
)
def test_a_kill_behind_any_write_of_the_outbox_doubles_nothing(
    start: MakeOperator,
    cluster: Cluster,
    proxy: Proxy,
    method: str,
    path: str,
    skip: int,
    applied: Callable[[Cluster, StaticVolume], object],
    by_first: dict[str, int],
    by_second: dict[str, int],
) -> None:
    volume = cluster.make_static_volume()
    migrate(cluster, volume, since=600)
    detach_from(cluster, volume.handle, "node-a")
    frozen = proxy.freeze(method, path if method == "POST" else f"/{volume.handle}{path}", applied=True, times=1)
    if skip:
        proxy.delay(method, f"/{volume.handle}{path}", 0.0, times=skip)
    first = start("first", through=proxy)
    frozen.wait_hit()
    eventually("the write took effect", lambda: applied(cluster, volume))
    assert counts(first) == by_first
    second = start("second")
    first.kill()
    wait_active(second)
    wait_reported(cluster, volume)
    assert migration_events(cluster, volume) == {"MigrationStarted": 1, "MigrationCompleted": 1}
    assert counts(second) == by_second
    assert [closed.result for closed in read(cluster, volume.handle).status.history] == [Result.SUCCEEDED]


def test_a_replica_that_is_told_to_stop_hands_over_at_once(start: MakeOperator, cluster: Cluster) -> None:
    first = start("first", quick=False)
    wait_active(first)
    standby = start("standby", quick=False)
    first.signal(signal.SIGTERM)
    assert first.wait_ended(10) == 0
    wait_active(standby, timeout=5)


@pytest.mark.requirement("R16", "R38")
def test_a_replica_whose_api_server_is_frozen_ends_before_its_lease_does(
    start: MakeOperator, cluster: Cluster, proxy: Proxy
) -> None:
    operator = start("frozen", through=proxy)
    wait_active(operator)
    proxy.freeze()
    began = time.monotonic()
    while operator.running:
        asked = time.monotonic()
        try:
            operator.get("/metrics")
        except Exception:  # noqa: BLE001 - it may end in this very moment
            assert operator.wait_ended(3) != 0
        assert time.monotonic() - asked < 3
        time.sleep(0.1)
    assert operator.wait_ended(1) == 1
    assert time.monotonic() - began < 3
    assert "could not be renewed" in operator.output()


@pytest.mark.requirement("R45")
@pytest.mark.parametrize("when", ["before it starts", "while it runs"])
def test_an_api_servers_clock_one_hour_ahead_times_nothing_out_early(
    start: MakeOperator, cluster: Cluster, proxy: Proxy, when: str
) -> None:
    volume = cluster.make_static_volume()
    if when == "before it starts":
        proxy.shift_date(3600)
        migrate(cluster, volume, timeout=30, since=22)
        start("shifted", through=proxy)
    else:
        operator = start("shifted", through=proxy)
        wait_active(operator)
        migrate(cluster, volume, timeout=30, since=24)
        eventually("the window is seen", lambda: operator.scrape().value("rds_csi_migration_active_migrations") == 1)
        proxy.shift_date(3600)
    window = read(cluster, volume.handle).status.migration
    assert window
    assert window.deadline_time

    def timed_out() -> bool:
        current = read(cluster, volume.handle).status.migration
        return current is not None and current.result is Result.TIMED_OUT

    eventually("the window is timed out", timed_out)
    assert 0 <= time.time() - window.deadline_time.timestamp() <= 3


@pytest.mark.requirement("R45")
def test_a_window_that_begins_in_the_future_adds_nothing_negative_to_the_durations(start: MakeOperator, cluster: Cluster) -> None:
    operator = start("only")
    volume = cluster.make_static_volume()
    migrate(cluster, volume, since=-3600)
    detach_from(cluster, volume.handle, "node-a")
    wait_reported(cluster, volume)
    scrape = operator.scrape()
    assert scrape.value("rds_csi_migration_duration_seconds_sum") == 0
    assert scrape.value("rds_csi_migration_duration_seconds_count") == 1
    assert scrape.value("rds_csi_migration_clock_clamps_total") == 1


@pytest.mark.requirement("R16")
def test_a_volume_whose_writes_hang_holds_up_neither_others_nor_a_scrape(
    start: MakeOperator, cluster: Cluster, proxy: Proxy
) -> None:
    stuck, *others = (cluster.make_static_volume() for _ in range(6))
    operator = start("only", through=proxy)
    wait_active(operator)
    frozen = proxy.freeze("PUT", f"/{stuck.handle}/status$")
    migrate(cluster, stuck)
    frozen.wait_hit()
    for volume in others:
        migrate(cluster, volume)
        detach_from(cluster, volume.handle, "node-b")
    for volume in others:
        wait_reported(cluster, volume, timeout=5)
    asked = time.monotonic()
    assert counts(operator) == {"failed": 5}
    assert time.monotonic() - asked < 1
    assert read(cluster, stuck.handle).status.outbox
    frozen.release(cut=True)
    wait_reported(cluster, stuck)


@pytest.mark.requirement("R40")
def test_events_that_fail_for_a_while_are_posted_later_and_once(start: MakeOperator, cluster: Cluster, proxy: Proxy) -> None:
    volume = cluster.make_static_volume()
    proxy.fail("POST", "/events$", status=500, times=2)
    proxy.drop("POST", "/events$", applied=True, times=1)
    operator = start("only", through=proxy)
    migrate(cluster, volume, since=600)
    detach_from(cluster, volume.handle, "node-b")
    wait_reported(cluster, volume)
    assert migration_events(cluster, volume) == {"MigrationStarted": 1, "MigrationFailed": 1}
    assert counts(operator) == {"failed": 1}


def test_a_watch_that_is_cut_is_taken_up_again(start: MakeOperator, cluster: Cluster, proxy: Proxy) -> None:
    operator = start("only", through=proxy)
    wait_active(operator)
    eventually("records are watched", lambda: proxy.open_watches("volumeattachmentrecords"))
    for _ in range(3):
        proxy.cut_watches("volumeattachmentrecords")
        volume = cluster.make_static_volume()
        migrate(cluster, volume)
        wait_reported(cluster, volume)
    assert operator.scrape().value("rds_csi_migration_active_migrations") == 3


def test_without_events_everything_is_counted_all_the_same(start: MakeOperator, cluster: Cluster) -> None:
    operator = start("only", "--disable-events")
    volume = cluster.make_static_volume()
    migrate(cluster, volume)
    detach_from(cluster, volume.handle, "node-a")
    wait_reported(cluster, volume)
    assert counts(operator) == {"success": 1}
    assert cluster.events(volume.claim, reason="MigrationCompleted") == []
    assert not re.search(r'"level": "(error|critical)"', operator.output())


# SIGTERM while it starts

LAUNCHER = Path(__file__).with_name("terminated.py")
AT_A_TIME = 3
TASKS_OF_A_START = 36
"""The last ones are those in which it watches records; more are made with each request."""


def test_sigterm_at_any_point_of_the_start_ends_it_in_peace(cluster: Cluster, installed: ControlPlane, tmp_path: Path) -> None:
    def make(at: int) -> Operator:
        """Return an operator that is terminated when it makes that task."""
        name = f"terminated-{at}"
        operator = Operator(installed, tmp_path / name, name=name, extra=(f"--lease-name={name}-{cluster.tag}",))
        operator.argv = [sys.executable, str(LAUNCHER), str(at), *operator.argv]
        return operator

    def ended(operator: Operator) -> tuple[int, str]:
        """Let it live; return its status and what it said."""
        operator.launch()
        try:
            status = operator.wait_ended()
        finally:
            operator.kill()
        assert "terminated at" in operator.output()
        return status, operator.output()

    # All are made before the first starts: each writes anew the kubeconfig that they share.
    operators = [make(at) for at in range(1, TASKS_OF_A_START + 1)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        ends = list(pool.map(ended, operators))
    assert {at: text for at, (status, text) in enumerate(ends, start=1) if status != 0} == {}
