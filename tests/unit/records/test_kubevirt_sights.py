"""What a record makes of what was seen of KubeVirt at one moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from rds_records.conditions import LEAVING_NODE_READY, VERDICT_READABLE
from rds_records.kubevirt_objects import migration_view, vmi_view
from rds_records.kubevirt_sights import RunSight, Sight, Trouble, follow, used_by
from rds_records.node_health import NodeHealth, node_health
from rds_records.record import Announcement, Record, Result
from rds_records.windows import PENDING_LIMIT, VERDICT_OF_INTEREST, expire, to_follow
from tests.unit.records.crd import objections
from tests.unit.records.kubevirt import RUN, live_migration, migration, state, vmi
from tests.unit.records.test_kubevirt_windows import SUCCEEDED, admitted, condition, kinds, last, told
from tests.unit.records.volumes import at, attached, fresh, left, window

NOT_READY = NodeHealth("node-a", ready=False, reason="NodeNotReady", since="2026-11-21T12:00:00Z", message="NodeStatusUnknown")


def run(machine: dict[str, Any] | None, moved: dict[str, Any] | None, *, missing: bool = False) -> RunSight:
    return RunSight(vmi_view(machine) if machine else None, migration_view(moved) if moved else None, missing)


def seen(
    machine: dict[str, Any] | None = None, moved: dict[str, Any] | None = None, *, missing: bool = False, **more: Any
) -> Sight:
    return Sight(runs={RUN: run(machine, moved, missing=missing)}, readable=True, **more)


def after(record: Record, sight: Sight, seconds: float) -> Record:
    """Return the record after a look, which a second look leaves alone."""
    decided = follow(record, sight, now=at(seconds), new_id="window-2")
    assert objections(decided.record) == []
    again = follow(decided.record, sight, now=at(seconds), new_id="window-3")
    assert not again.changed
    return decided.record


def ended(node: str = "node-b", **fields: Any) -> dict[str, Any]:
    clocks = {"startTimestamp": "2026-11-21T12:01:00Z", "endTimestamp": "2026-11-21T12:01:40Z"}
    return vmi(node=node, migrationState=state(completed=True, **clocks, **fields))


def test_a_look_that_shows_nothing_new_changes_nothing() -> None:
    record = admitted()
    assert not follow(record, seen(vmi(), migration(phase="Scheduling")), now=at(5), new_id="w").changed


def test_what_the_virtual_machine_says_of_its_run_is_the_result() -> None:
    record = after(admitted(), seen(ended(), migration(phase="Running")), 101)
    assert (window(record).result, window(record).reason, window(record).live_node) == (
        Result.SUCCEEDED,
        "MigrationState",
        "node-b",
    )


def test_what_the_virtual_machine_says_of_an_earlier_run_counts_for_nothing() -> None:
    earlier = vmi(migrationState=state("run-0", completed=True, endTimestamp="2026-11-21T11:00:00Z"))
    assert not follow(admitted(), seen(earlier, migration(phase="Scheduled")), now=at(5), new_id="w").changed


def test_a_migration_that_is_gone_leaves_the_window_open_while_both_nodes_stay() -> None:
    record = after(admitted(), seen(vmi(), missing=True), 10)
    assert (window(record).result, record.status.phase) == (None, "Migrating")


@pytest.mark.parametrize(("leaving", "result"), [("node-a", Result.SUCCEEDED), ("node-b", Result.FAILED)])
def test_a_migration_that_is_gone_lets_who_left_decide_at_once(leaving: str, result: Result) -> None:
    record = after(left(admitted(), leaving, now=at(40)), seen(vmi(), missing=True), 41)
    assert (last(record).result, last(record).reason) == (result, "MigrationGone")


def test_a_window_that_waits_is_not_decided_before_ten_minutes() -> None:
    record = left(admitted(), "node-b", now=at(40))
    assert after(record, Sight(), 639).status.pending
    record = after(record, Sight(), 40 + PENDING_LIMIT.total_seconds())
    assert (last(record).result, last(record).reason) == (Result.FAILED, "RolledBack")


def test_a_verdict_that_comes_after_the_decision_is_kept_beside_it() -> None:
    record = after(left(admitted(), "node-b", now=at(40)), Sight(), 700)
    record = after(record, seen(ended("node-a", failed=True, failureReason="too slow")), 710)
    assert (last(record).result, last(record).kubevirt_result) == (Result.FAILED, Result.FAILED)
    assert kinds(record)[-1] is Announcement.VERDICT


def test_that_the_migration_is_gone_adds_nothing_to_a_result_by_who_left() -> None:
    record = after(left(admitted(), "node-b", now=at(40)), Sight(), 700)
    assert not follow(record, seen(vmi(), missing=True), now=at(710), new_id="w").changed


def test_a_cancelled_run_that_had_timed_out_is_told_once_its_node_left() -> None:
    record = expire(admitted(migration_timeout_seconds=30), now=at(31), elapsed=timedelta(seconds=31))
    assert record
    record = after(left(record, "node-b", now=at(40)), seen(vmi(), missing=True), 41)
    assert (last(record).result, last(record).kubevirt_result) == (Result.TIMED_OUT, Result.FAILED)


def test_an_ended_window_is_of_interest_for_an_hour() -> None:
    record = after(left(admitted(), "node-b", now=at(0)), Sight(), 700)
    assert to_follow(record, now=at(VERDICT_OF_INTEREST.total_seconds() - 1))
    assert not to_follow(record, now=at(VERDICT_OF_INTEREST.total_seconds()))


def test_a_window_with_its_verdict_is_of_no_interest() -> None:
    assert to_follow(told(admitted(), SUCCEEDED, 101), now=at(102)) == ()


def test_the_deadline_is_kubevirts_own_from_the_first_sight_of_the_start() -> None:
    machine = vmi(migrationState=state(startTimestamp="2026-11-21T12:00:20Z"))
    record = after(admitted(), seen(machine, migration()), 25)
    # 2 GiB are 3 units of 10^9 bytes at 150 s each, and two minutes for letting go.
    assert (window(record).timeout_seconds, window(record).deadline_time) == (570, at(25 + 570))


def test_another_run_between_the_two_nodes_ends_the_window_with_what_was_said_of_it() -> None:
    back = live_migration("node-b", "node-a", "run-2")
    record = after(admitted(), replace(seen(ended(), migration(phase="Succeeded")), next_run=back), 110)
    assert (last(record).result, last(record).reason) == (Result.SUCCEEDED, "MigrationState")
    assert (window(record).source_node, window(record).target_node, window(record).migration_uid) == ("node-b", "node-a", "run-2")


def test_where_it_hangs_is_told_after_twenty_minutes() -> None:
    sight = replace(seen(vmi(), migration(phase="Scheduling")), hangs="its target pod is bound to no node")
    record = after(admitted(), sight, 1201)
    assert kinds(record)[-1] is Announcement.SLOW_START
    assert "bound to no node" in condition(record, "SlowStart").message


@pytest.mark.requirement("R34")
def test_a_node_that_should_leave_and_is_not_ready_is_named_at_once_and_once() -> None:
    record = after(told(admitted(), SUCCEEDED, 101), Sight(leaving=NOT_READY), 102)
    found = condition(record, LEAVING_NODE_READY)
    assert (found.status, found.reason) == ("False", "NodeNotReady")
    for text in (found.message, record.status.outbox[-1].message):
        assert "node node-a is not Ready since 2026-11-21T12:00:00Z (NodeStatusUnknown)" in text
    assert record.status.phase == "Migrating"
    assert kinds(record).count(Announcement.LEAVING_BLOCKED) == 1
    record = after(record, Sight(leaving=NodeHealth("node-a", ready=True)), 110)
    assert condition(record, LEAVING_NODE_READY).status == "True"
    record = after(record, Sight(leaving=node_health("node-a", None)), 120)
    assert condition(record, LEAVING_NODE_READY).reason == "NodeGone"
    assert kinds(record).count(Announcement.LEAVING_BLOCKED) == 1


def test_when_the_node_has_left_nothing_is_blocked_any_more() -> None:
    record = after(told(admitted(), SUCCEEDED, 101), Sight(leaving=NOT_READY), 102)
    record = left(record, "node-a", now=at(130))
    assert (condition(record, LEAVING_NODE_READY).status, condition(record, LEAVING_NODE_READY).reason) == ("True", "NoNodeLeaves")


def test_the_health_of_a_node_that_stays_is_of_no_interest() -> None:
    record = told(admitted(), SUCCEEDED, 101)
    assert not follow(record, Sight(leaving=replace(NOT_READY, name="node-b")), now=at(102), new_id="w").changed


def test_pods_that_are_no_part_of_the_vm_are_a_warning_while_they_are_there() -> None:
    record = after(admitted(), Sight(foreign_pods=("backup-1",)), 30)
    assert condition(record, "ForeignPod").status == "True"
    assert "backup-1" in condition(record, "ForeignPod").message
    assert "backup-1" in record.status.outbox[-1].message
    record = after(record, Sight(foreign_pods=()), 60)
    assert condition(record, "ForeignPod").status == "False"
    assert kinds(record).count(Announcement.FOREIGN_POD) == 1


def test_no_foreign_pods_leave_no_condition_behind() -> None:
    assert not follow(admitted(), Sight(foreign_pods=()), now=at(30), new_id="w").changed


def test_what_cannot_be_read_is_a_condition_until_it_can_be() -> None:
    record = after(admitted(), Sight(trouble=Trouble("Forbidden", "may not list")), 30)
    assert (condition(record, VERDICT_READABLE).status, condition(record, VERDICT_READABLE).message) == ("False", "may not list")
    record = after(record, Sight(readable=True), 60)
    assert condition(record, VERDICT_READABLE).status == "True"


def test_a_record_that_never_missed_an_answer_has_no_such_condition() -> None:
    assert after(admitted(), seen(vmi(), migration()), 30).status.condition(VERDICT_READABLE) is None


def test_the_virtual_machine_that_uses_the_volume_is_shown_and_taken_off_again() -> None:
    record = used_by(attached(fresh(), "node-a"), vmi_view(vmi())).record
    assert record.status.vmi
    assert (record.status.vmi.namespace, record.status.vmi.name) == ("vms", "database")
    assert not used_by(record, vmi_view(vmi())).changed
    assert used_by(record, None).record.status.vmi is None


BACK = vmi(
    node="node-a",
    migrationState=state(
        "run-2",
        sourceNode="node-b",
        targetNode="node-a",
        completed=True,
        startTimestamp="2026-11-21T12:02:00Z",
        endTimestamp="2026-11-21T12:02:20Z",
    ),
)
"""The virtual machine after it went back, which no CSI call told of."""


@pytest.mark.parametrize("over", [migration(phase="Succeeded"), None])
def test_a_run_back_that_nobody_saw_is_put_into_the_history_when_the_operator_returns(over: dict[str, Any] | None) -> None:
    closed = left(admitted(), "node-b", now=at(200))
    record = after(closed, seen(BACK, over, missing=over is None), 300)
    there, back = record.status.history
    assert (there.result, there.reason) == (Result.SUCCEEDED, "MigrationPhase" if over else "Superseded")
    assert (there.left_node, there.live_node, there.end_time, there.duration_seconds) == (None, "node-b", at(120), 120)
    assert (back.result, back.origin, back.migration_uid) == (Result.SUCCEEDED, "Observed", "run-2")
    assert (back.source_node, back.target_node, back.left_node, back.live_node) == ("node-b", "node-a", "node-b", "node-a")
    assert (back.start_time, back.end_time, back.duration_seconds) == (at(120), at(200), 80)
    assert kinds(record) == [
        Announcement.STARTED,
        Announcement.ENDED,
        Announcement.SUCCEEDED,
        Announcement.STARTED,
        Announcement.SUCCEEDED,
        Announcement.ENDED,
    ]


def test_a_run_back_that_nobody_saw_is_found_where_the_first_result_was_known_already() -> None:
    closed = left(told(admitted(), SUCCEEDED, 101), "node-b", now=at(200))
    record = after(closed, seen(BACK, migration(phase="Succeeded")), 300)
    assert [(one.result, one.left_node, one.live_node) for one in record.status.history] == [
        (Result.SUCCEEDED, None, "node-b"),
        (Result.SUCCEEDED, "node-b", "node-a"),
    ]
    assert to_follow(record, now=at(301)) == ()


def test_a_run_that_has_a_window_already_is_no_missed_one() -> None:
    closed = left(told(admitted(), SUCCEEDED, 101), "node-b", now=at(200))
    record = closed.with_status(migration=window(admitted("node-a", "node-b", "run-2")))
    assert not follow(record, seen(BACK, migration(phase="Succeeded")), now=at(300), new_id="w").changed


def test_a_failed_run_that_nobody_saw_after_a_failed_one_is_a_failure_too() -> None:
    again = vmi(migrationState=state("run-2", completed=True, failed=True, endTimestamp="2026-11-21T12:02:20Z", failureReason="no"))
    record = after(left(admitted(), "node-b", now=at(200)), seen(again, migration(phase="Failed")), 300)
    assert [(one.result, one.left_node) for one in record.status.history] == [(Result.FAILED, None), (Result.FAILED, "node-b")]


@pytest.mark.parametrize("other", [{"targetNode": "node-c"}, {"completed": False}, {"startTimestamp": "2026-11-21T12:09:00Z"}])
def test_a_run_elsewhere_or_one_that_goes_on_is_no_missed_one(other: dict[str, Any]) -> None:
    machine = vmi(migrationState=state("run-2", **{"completed": True, **other}))
    record = after(left(admitted(), "node-a", now=at(200)), seen(machine, migration(phase="Succeeded")), 300)
    assert [one.migration_uid for one in record.status.history] == [RUN]
