"""Windows follow KubeVirt's runs: results, deadlines, the next run, warnings, and what people read."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from rds_records.decisions import Decided, Reason
from rds_records.kubevirt_evidence import LiveMigration, NotExplained, Rule
from rds_records.kubevirt_objects import Owner
from rds_records.kubevirt_runs import Verdict
from rds_records.record import (
    MAX_HISTORY,
    MAX_OUTBOX,
    MAX_PENDING,
    Announcement,
    ClosedWindow,
    Condition,
    DualAttachPolicy,
    ObjectReference,
    Origin,
    Phase,
    Record,
    Result,
)
from rds_records.transitions import detach_all, note_refusal
from rds_records.window_warnings import warn
from rds_records.windows import conclude, conclude_pending, expire, observe_run, supersede, time_limit, timeout_of
from tests.unit.records.crd import objections
from tests.unit.records.kubevirt import RUN, live_migration
from tests.unit.records.test_transitions import held_by
from tests.unit.records.volumes import HANDLE, SHARED, ask, at, attached, fresh, left, no, window, yes

KUBEVIRT = DualAttachPolicy.KUBEVIRT
SUCCEEDED = Verdict(RUN, Result.SUCCEEDED, "MigrationState", live_node="node-b", start=at(60), end=at(100))
FAILED = Verdict(RUN, Result.FAILED, "MigrationState", "qemu went away", live_node="node-a", start=at(60), end=at(100))
PHASE_FAILED = Verdict(RUN, Result.FAILED, "MigrationPhase", "KubeVirt gives no reason", live_node="node-a")
BACK = live_migration("node-b", "node-a", "run-2")


def admitted(source: str = "node-a", target: str = "node-b", uid: str = RUN, seconds: float = 0, **changes: Any) -> Record:
    """Return a record with a window of one of KubeVirt's runs, open since that second."""
    record = attached(fresh(dual_attach_policy=KUBEVIRT, **changes), source)
    return second(record, source, target, uid, seconds)


def second(record: Record, source: str, target: str, uid: str, seconds: float) -> Record:
    record = yes(ask(record, target, now=at(seconds), evidence=live_migration(source, target, uid)))
    assert objections(record) == []
    return record


def told(record: Record, verdict: Verdict, seconds: float) -> Record:
    record = changed(conclude(record, verdict, now=at(seconds)))
    assert conclude(record, verdict, now=at(seconds + 1)).changed is False
    return record


def changed(decision: Decided) -> Record:
    assert decision.changed
    assert objections(decision.record) == []
    return decision.record


def kinds(record: Record) -> list[Announcement]:
    return [entry.kind for entry in record.status.outbox]


def last(record: Record) -> ClosedWindow:
    return record.status.history[-1]


def message(record: Record) -> str:
    return record.status.outbox[-1].message


def condition(record: Record, kind: str) -> Condition:
    found = record.status.condition(kind)
    assert found is not None
    return found


# results ------------------------------------------------------------------------------------------


def test_a_verdict_is_the_result_at_once_while_both_nodes_are_attached() -> None:
    record = told(admitted(), SUCCEEDED, 101)
    known = window(record)
    assert (known.result, known.result_time, known.reason, known.live_node) == (
        Result.SUCCEEDED,
        at(101),
        "MigrationState",
        "node-b",
    )
    assert (known.kubevirt_start_time, known.kubevirt_end_time, known.failure_reason) == (at(60), at(100), None)
    assert (kinds(record), record.status.phase) == ([Announcement.STARTED, Announcement.SUCCEEDED], Phase.MIGRATING)
    assert "Succeeded, node node-a has not left yet" in condition(record, "Migrating").message


@pytest.mark.requirement("R9")
def test_kubevirts_own_duration_is_told_beside_that_of_the_window() -> None:
    record = told(admitted(), SUCCEEDED, 101)
    assert (record.status.outbox[-1].kubevirt_duration_seconds, record.status.outbox[-1].duration_seconds) == (40, None)
    record = left(record, "node-a", now=at(1200))
    assert (record.status.outbox[-1].kubevirt_duration_seconds, record.status.outbox[-1].duration_seconds) == (None, 1200)
    assert (last(record).kubevirt_end_time, last(record).duration_seconds) == (at(100), 1200)


def test_a_failed_run_keeps_its_reason_in_window_and_history() -> None:
    record = told(admitted(), FAILED, 101)
    assert (window(record).result, window(record).failure_reason, window(record).live_node) == (
        Result.FAILED, "qemu went away", "node-a",
    )  # fmt: skip
    record = left(record, "node-b", now=at(130))
    assert (last(record).result, last(record).failure_reason, last(record).live_node) == (Result.FAILED, "qemu went away", "node-a")
    assert kinds(record)[1:] == [Announcement.FAILED, Announcement.ENDED]


def test_who_leaves_does_not_change_what_kubevirt_said() -> None:
    record = left(told(admitted(), FAILED, 101), "node-a", now=at(130))
    assert (last(record).result, last(record).left_node, last(record).live_node) == (Result.FAILED, "node-a", "node-b")


@pytest.mark.parametrize(("leaving", "stays"), [("node-a", "node-b"), ("node-b", "node-a")])
def test_a_window_that_ends_before_the_verdict_waits_for_it_in_the_history(leaving: str, stays: str) -> None:
    record = left(admitted(), leaving, now=at(40))
    assert objections(record) == []
    (waiting,) = record.status.pending
    assert (waiting.result, waiting.result_time, waiting.reason, waiting.left_node) == (None, None, None, leaving)
    assert (waiting.live_node, waiting.end_time, waiting.migration_uid) == (stays, at(40), RUN)
    assert (kinds(record), record.status.phase) == ([Announcement.STARTED, Announcement.ENDED], Phase.ATTACHED)
    record = told(record, PHASE_FAILED, 50)
    assert (last(record).result, last(record).result_time, last(record).reason) == (Result.FAILED, at(50), "MigrationPhase")
    assert (last(record).live_node, last(record).end_time) == (stays, at(40))
    assert (kinds(record)[-1], record.status.pending) == (Announcement.FAILED, ())


def test_when_both_leave_at_once_the_window_waits_as_well() -> None:
    record = admitted()
    record = detach_all(record, attachment_ids=[held.id for held in record.status.attachments], now=at(40)).record
    (waiting,) = record.status.pending
    assert (waiting.left_node, waiting.live_node) == (None, None)
    record = changed(conclude_pending(record, waiting.id, now=at(700)))
    assert (last(record).result, last(record).reason) == (Result.FAILED, "AllLeft")


@pytest.mark.parametrize(
    ("leaving", "result", "ground"), [("node-a", Result.SUCCEEDED, "SourceLeft"), ("node-b", Result.FAILED, "RolledBack")]
)
def test_where_nobody_can_read_the_verdict_who_left_decides(leaving: str, result: Result, ground: str) -> None:
    record = left(admitted(), leaving, now=at(40))
    waiting = record.status.pending[0].id
    record = changed(conclude_pending(record, waiting, now=at(640)))
    assert (last(record).result, last(record).reason, last(record).result_time) == (result, ground, at(640))
    assert kinds(record)[-1] is Announcement(result.value)
    assert conclude_pending(record, waiting, now=at(641)).changed is False
    assert conclude_pending(record, "no-such-window", now=at(641)).changed is False


def test_a_verdict_that_comes_after_all_is_kept_beside_what_was_decided_without_it() -> None:
    record = left(admitted(), "node-a", now=at(40))
    record = changed(conclude_pending(record, record.status.pending[0].id, now=at(640)))
    record = told(record, FAILED, 700)
    assert (last(record).result, last(record).reason, last(record).kubevirt_result) == (
        Result.SUCCEEDED,
        "SourceLeft",
        Result.FAILED,
    )
    assert kinds(record)[-1] is Announcement.VERDICT


@pytest.mark.parametrize("closed", [False, True])
def test_a_verdict_after_timed_out_is_kept_beside_it_with_an_event_of_its_own(closed: bool) -> None:
    record = admitted(migration_timeout_seconds=30)
    late = expire(record, now=at(31), elapsed=timedelta(seconds=31))
    assert late is not None
    record = left(late, "node-a", now=at(90)) if closed else late
    record = told(record, SUCCEEDED, 101)
    known = last(record) if closed else window(record)
    assert (known.result, known.reason, known.kubevirt_result) == (Result.TIMED_OUT, "Timeout", Result.SUCCEEDED)
    assert (record.status.outbox[-1].kind, record.status.outbox[-1].id) == (Announcement.VERDICT, f"{known.id}-verdict")
    assert record.status.outbox[-1].kubevirt_duration_seconds == 40
    assert "KubeVirt says Succeeded" in message(record)
    assert "result here: TimedOut" in message(record)


def test_a_verdict_of_another_run_changes_nothing() -> None:
    other = Verdict("run-9", Result.FAILED, "MigrationState")
    assert conclude(admitted(), other, now=at(5)).changed is False
    assert conclude(left(admitted(), "node-a", now=at(4)), other, now=at(5)).changed is False


def test_windows_that_name_no_migration_are_decided_by_who_left() -> None:
    record = left(held_by("node-a", "node-b", dual_attach_policy=KUBEVIRT), "node-a", now=at(40))
    assert (last(record).result, last(record).reason, record.status.pending) == (Result.SUCCEEDED, "SourceLeft", ())


def test_an_entry_of_the_outbox_names_the_vm() -> None:
    assert {entry.vmi.name for entry in told(admitted(), FAILED, 5).status.outbox if entry.vmi} == {"database"}
    assert attached(fresh(), "node-a", "node-b").status.outbox[0].vmi is None


# the history --------------------------------------------------------------------------------------


def chained(times: int) -> Record:
    """Return the record after that many runs, each of which ended before its verdict."""
    record = attached(fresh(dual_attach_policy=KUBEVIRT), "node-0")
    for number in range(times):
        source, target = f"node-{number}", f"node-{number + 1}"
        record = second(record, source, target, f"run-{number}", number * 10 + 1)
        record = left(record, source, now=at(number * 10 + 9))
        assert objections(record) == []
    return record


def test_windows_that_wait_for_a_verdict_are_kept_beyond_the_last_ten() -> None:
    record = chained(15)
    assert len(record.status.pending) == 15
    for number in range(15, 30):
        source, target = f"node-{number}", f"node-{number + 1}"
        record = second(record, source, target, f"run-{number}", number * 10 + 1)
        record = told(record, Verdict(f"run-{number}", Result.SUCCEEDED, "MigrationState"), number * 10 + 5)
        record = left(record, source, now=at(number * 10 + 9))
        assert objections(record) == []
    assert [one.migration_uid for one in record.status.pending] == [f"run-{number}" for number in range(15)]
    assert len(record.status.history) == 15 + MAX_HISTORY
    assert record.status.history[0].migration_uid == "run-0"


def test_when_too_many_wait_the_oldest_is_decided_by_who_left_and_told() -> None:
    record = chained(40)
    assert len(record.status.pending) == MAX_PENDING
    counts = [entry.counts for entry in record.status.outbox if entry.counts]
    assert sum(count.succeeded for count in counts) + kinds(record).count(Announcement.SUCCEEDED) == 20
    assert len(record.status.outbox) <= MAX_OUTBOX


# the next run -------------------------------------------------------------------------------------


def followed(record: Record, run: LiveMigration, old: Verdict | None, seconds: float, new_id: str = "window-2") -> Record:
    record = changed(supersede(record, run, old, now=at(seconds), new_id=new_id))
    assert supersede(record, run, old, now=at(seconds + 1), new_id="another").changed is False
    return record


def test_a_run_back_ends_the_window_and_opens_one_with_the_roles_swapped() -> None:
    record = followed(told(admitted(), SUCCEEDED, 101), BACK, None, 110)
    opened, closed = window(record), last(record)
    assert (opened.source_node, opened.target_node, opened.start_time, opened.id) == ("node-b", "node-a", at(110), "window-2")
    assert (opened.origin, opened.migration_uid, opened.live_node, opened.result) == (Origin.OBSERVED, "run-2", "node-b", None)
    assert (closed.source_node, closed.target_node, closed.result, closed.left_node) == ("node-a", "node-b", Result.SUCCEEDED, None)
    assert (closed.end_time, closed.duration_seconds, closed.reason) == (at(110), 110, "MigrationState")
    assert kinds(record) == [Announcement.STARTED, Announcement.SUCCEEDED, Announcement.ENDED, Announcement.STARTED]
    assert [held.node_name for held in record.status.attachments] == ["node-a", "node-b"]


def test_the_old_window_ends_by_its_verdict_where_there_is_one() -> None:
    record = followed(admitted(), BACK, SUCCEEDED, 110)
    assert (last(record).result, last(record).reason, last(record).kubevirt_end_time) == (
        Result.SUCCEEDED,
        "MigrationState",
        at(100),
    )
    assert kinds(record) == [Announcement.STARTED, Announcement.SUCCEEDED, Announcement.ENDED, Announcement.STARTED]


@pytest.mark.parametrize(
    ("run", "result"), [(BACK, Result.SUCCEEDED), (live_migration("node-a", "node-b", "run-2"), Result.FAILED)]
)
@pytest.mark.parametrize("moved", [False, True])
def test_without_a_verdict_the_old_window_ends_by_where_the_vm_was_when_the_next_run_began(
    run: LiveMigration, result: Result, moved: bool
) -> None:
    now_on = replace(run.vmi, node=run.target_node if moved else run.source_node)
    record = followed(admitted(), replace(run, vmi=now_on), None, 110)
    assert (last(record).result, last(record).reason, last(record).live_node) == (result, "Superseded", run.source_node)
    assert kinds(record) == [Announcement.STARTED, Announcement(result.value), Announcement.ENDED, Announcement.STARTED]
    record = told(record, FAILED, 120)
    assert (last(record).result, last(record).kubevirt_result) == (result, Result.FAILED)


def test_a_timed_out_window_that_is_superseded_keeps_its_result() -> None:
    late = expire(admitted(migration_timeout_seconds=30), now=at(31), elapsed=timedelta(seconds=31))
    assert late is not None
    record = followed(late, BACK, SUCCEEDED, 110)
    assert (last(record).result, last(record).kubevirt_result) == (Result.TIMED_OUT, Result.SUCCEEDED)


def test_a_run_between_other_nodes_than_those_attached_is_not_followed() -> None:
    for run in (live_migration("node-b", "node-c", "run-2"), live_migration("node-a", "node-b")):
        assert supersede(admitted(), run, None, now=at(5), new_id="x").changed is False
    gone = left(admitted(), "node-a", now=at(3))
    assert supersede(gone, BACK, None, now=at(5), new_id="x").changed is False


def test_a_window_that_was_found_becomes_that_of_the_run_where_the_roles_agree() -> None:
    record = held_by("node-a", "node-b", dual_attach_policy=KUBEVIRT)
    known = followed(record, live_migration("node-a", "node-b"), None, 5)
    assert (window(known).id, window(known).origin, window(known).migration_uid) == (window(record).id, Origin.IMPORTED, RUN)
    assert kinds(known) == [Announcement.STARTED]
    other = followed(record, live_migration("node-b", "node-a"), None, 5)
    assert (window(other).id, window(other).migration_uid) == ("window-2", RUN)


def test_a_chained_run_to_a_third_node_comes_in_once_the_first_left() -> None:
    record = told(admitted(), SUCCEEDED, 101)
    refused = no(ask(record, "node-c", now=at(102), evidence=live_migration("node-b", "node-c", "run-2")))
    assert refused.reason is Reason.NO_SLOT
    assert "result: Succeeded) and node node-a has to leave" in refused.message
    record = second(left(record, "node-a", now=at(110)), "node-b", "node-c", "run-2", 111)
    assert (window(record).source_node, window(record).target_node) == ("node-b", "node-c")


# deadlines ----------------------------------------------------------------------------------------


def observed(
    record: Record, seconds: float, start: datetime | None, limit: int | None = 570, live: str | None = "node-a"
) -> Record:
    return changed(observe_run(record, start=start, timeout_seconds=limit, live_node=live, now=at(seconds), migration_uid=RUN))


def test_the_deadline_follows_kubevirts_limit_from_the_first_sight_of_the_start() -> None:
    record = observed(admitted(), 60, None, None, "node-c")
    assert (window(record).deadline_time, window(record).live_node, time_limit(record)) == (None, "node-c", None)
    record = observed(record, 70, at(62))
    assert (window(record).run_start_time, window(record).kubevirt_start_time) == (at(70), at(62))
    assert (window(record).timeout_seconds, window(record).deadline_time, timeout_of(record)) == (570, at(640), 570)
    assert time_limit(record) == timedelta(seconds=640)
    assert observe_run(record, start=at(62), timeout_seconds=570, live_node="node-a", now=at(90)).changed is False
    assert expire(record, now=at(639), elapsed=timedelta(seconds=639)) is None
    late = expire(record, now=at(640), elapsed=timedelta(seconds=640))
    assert late is not None
    assert (window(late).result, objections(late)) == (Result.TIMED_OUT, [])


def test_before_the_start_nothing_is_timed_out() -> None:
    record = observed(admitted(), 60, None)
    assert (window(record).deadline_time, window(record).kubevirt_timeout_seconds) == (None, 570)
    assert expire(record, now=at(9e6), elapsed=timedelta(days=100)) is None


def test_a_start_by_a_clock_that_is_wrong_does_not_move_the_deadline_before_the_window() -> None:
    record = observed(admitted(seconds=50), 40, at(-9000))
    assert window(record).run_start_time == at(50)


def test_in_post_copy_there_is_no_deadline_any_more() -> None:
    record = observed(observed(admitted(), 60, at(60)), 80, at(60), None)
    assert (window(record).timeout_seconds, window(record).deadline_time) == (None, None)
    assert expire(record, now=at(9000), elapsed=timedelta(seconds=9000)) is None


def test_an_explicit_timeout_counts_from_the_start_of_the_window_and_always_wins() -> None:
    record = observed(admitted(migration_timeout_seconds=45), 10, at(10))
    assert (window(record).timeout_seconds, window(record).deadline_time) == (45, at(45))
    unset = record.replace(spec=record.spec.replace(migration_timeout_seconds=None))
    moved = expire(unset, now=at(20), elapsed=timedelta(seconds=20))
    assert moved is not None
    assert window(moved).deadline_time == at(580)


def test_a_window_of_kubevirts_keeps_kubevirts_limit_when_the_policy_is_edited() -> None:
    record = admitted()
    record = record.replace(spec=record.spec.replace(dual_attach_policy=DualAttachPolicy.ANY_TWO_NODES))
    assert expire(record, now=at(900), elapsed=timedelta(seconds=900)) is None


def test_what_was_seen_of_another_run_is_not_kept() -> None:
    record = admitted()
    assert observe_run(record, start=at(5), timeout_seconds=1, live_node="x", now=at(5), migration_uid="run-0").changed is False
    plain = attached(fresh(), "node-a", "node-b")
    assert observe_run(plain, start=at(5), timeout_seconds=1, live_node="x", now=at(5)).changed is False


def test_an_enormous_limit_fits_the_record() -> None:
    assert window(observed(admitted(), 10, at(10), 10**12)).timeout_seconds == 2**31 - 1


def test_the_live_node_follows_the_vm_after_the_result_too() -> None:
    record = observed(told(admitted(), PHASE_FAILED, 20), 30, None, None, "node-b")
    assert (window(record).live_node, window(record).result) == ("node-b", Result.FAILED)


# warnings -----------------------------------------------------------------------------------------


def warned(record: Record, seconds: float, detail: str = "") -> Record:
    assert warn(record, now=at(seconds - 1), detail=detail) is None
    result = warn(record, now=at(seconds), detail=detail)
    assert result is not None
    assert objections(result) == []
    assert warn(result, now=at(seconds + 60), detail=detail) is None
    return result


def test_a_run_that_does_not_start_is_a_warning_and_no_result() -> None:
    record = warned(admitted(), 1200, "pod virt-launcher-database-run-1: image cannot be pulled")
    assert (kinds(record)[-1], window(record).result, record.status.phase) == (Announcement.SLOW_START, None, Phase.MIGRATING)
    assert (condition(record, "SlowStart").status, condition(record, "SlowStart").last_transition_time) == ("True", at(1200))
    assert "image cannot be pulled" in condition(record, "SlowStart").message
    assert "image cannot be pulled" in message(record)
    record = observed(record, 1300, at(1300))
    assert condition(record, "SlowStart").status == "False"
    assert warn(record, now=at(1400)) is None


def test_where_it_hangs_is_kept_up_to_date_without_another_event() -> None:
    record = warned(admitted(), 1200, "unbound")
    moved = warn(record, now=at(1300), detail="not ready")
    assert moved is not None
    assert "not ready" in condition(moved, "SlowStart").message
    assert (condition(moved, "SlowStart").last_transition_time, kinds(moved)) == (at(1200), kinds(record))


@pytest.mark.requirement("R34")
def test_a_node_that_should_have_left_is_named_with_what_is_safe() -> None:
    record = warned(told(admitted(), SUCCEEDED, 101), 701, "node-a is NotReady since 12:01")
    assert (kinds(record)[-1], window(record).result, record.status.phase) == (
        Announcement.LEAVING_OVERDUE, Result.SUCCEEDED, Phase.OVERDUE,
    )  # fmt: skip
    for text in (message(record), condition(record, "LeavingOverdue").message):
        assert "node node-a" in text
        assert "NotReady since 12:01" in text
        assert "delete pod virt-launcher-database-aaaaa`" in text
    assert "has not left" in condition(record, "Overdue").message
    refused = no(ask(record, "node-c", now=at(800), evidence=live_migration("node-b", "node-c", "run-2")))
    assert "node node-a has to leave" in refused.message
    assert "NotReady since 12:01" in refused.message
    record = left(record, "node-a", now=at(900))
    assert (condition(record, "LeavingOverdue").status, record.status.phase) == ("False", Phase.ATTACHED)


def test_a_run_without_a_limit_that_goes_on_is_a_warning() -> None:
    record = warned(observed(admitted(), 100, at(100), None), 7300)
    assert (kinds(record)[-1], condition(record, "LongRun").status) == (Announcement.LONG_RUN, "True")
    assert warn(observed(admitted(), 100, at(100)), now=at(90_000)) is None
    record = told(record, FAILED, 7400)
    assert condition(record, "LongRun").status == "False"


def test_nothing_is_warned_of_without_a_window_of_kubevirts() -> None:
    for record in (attached(fresh(), "node-a"), attached(fresh(), "node-a", "node-b")):
        assert warn(record, now=at(90_000)) is None
    late = expire(attached(fresh(), "node-a", "node-b"), now=at(400), elapsed=timedelta(seconds=400))
    assert late is not None
    assert warn(late, now=at(90_000)) is None


def test_records_that_never_had_a_warning_have_no_conditions_about_them() -> None:
    assert {one.type for one in admitted().status.conditions} == {"Attached", "Migrating", "Overdue"}


# what people read ---------------------------------------------------------------------------------

RUN_1 = "migration: vms/migration-run-1, VM: database"


def test_started_names_the_migration() -> None:
    assert message(admitted()) == (
        f"[{HANDLE}]: KubeVirt live migration started - source: node-a, target: node-b, timeout: KubeVirt's own, {RUN_1}"
    )


def test_completed_names_the_live_node_and_who_leaves_next() -> None:
    assert message(told(admitted(), SUCCEEDED, 42.5)) == (
        f"[{HANDLE}]: KubeVirt live migration completed - source: node-a -> target: node-b (duration: 42.5s), {RUN_1}; "
        "the VM runs on node-b; node-a leaves next"
    )


def test_failed_says_why_in_kubevirts_words() -> None:
    assert message(told(admitted(), FAILED, 60)) == (
        f"[{HANDLE}]: KubeVirt live migration failed - source: node-a, target: node-b, reason: qemu went away, elapsed: 1m0s, "
        f"{RUN_1}; the VM runs on node-a; node-b leaves next"
    )


def test_ended_before_the_verdict_says_so() -> None:
    assert message(left(admitted(), "node-b", now=at(60))) == (
        f"[{HANDLE}]: KubeVirt live migration ended - source: node-a, target: node-b, result: KubeVirt's, not told yet, "
        f"node-b left (duration: 1m0s), {RUN_1}; the volume stays on node-a"
    )


@pytest.mark.requirement("R11")
def test_a_timeout_advises_to_cancel_and_to_nothing_else() -> None:
    late = expire(admitted(migration_timeout_seconds=30), now=at(31), elapsed=timedelta(seconds=31))
    assert late is not None
    assert "kubectl -n vms delete virtualmachineinstancemigration migration-run-1`" in message(late)
    assert "delete pod" not in message(late)


@pytest.mark.requirement("R11")
@pytest.mark.parametrize(
    ("verdict", "dead"), [(SUCCEEDED, "virt-launcher-database-aaaaa"), (FAILED, "virt-launcher-database-run-1")]
)
def test_only_the_side_on_which_the_vm_does_not_run_may_be_released(verdict: Verdict, dead: str) -> None:
    text = message(warned(told(admitted(), verdict, 100), 700))
    assert f"kubectl -n vms delete pod {dead}`" in text
    assert text.count("delete pod") == 1


@pytest.mark.requirement("R11")
@pytest.mark.parametrize("live", ["node-a", "node-c", None])
def test_nothing_is_released_while_it_is_not_certain_where_the_vm_runs(live: str | None) -> None:
    record = told(admitted(), SUCCEEDED, 100)
    record = record.with_status(migration=window(record).replace(live_node=live))
    text = message(warned(record, 700))
    assert "delete pod" not in text
    assert "nothing is safe to release" in text
    assert "kubectl -n vms get vmi database" in text


@pytest.mark.requirement("R11")
def test_no_message_ever_advises_force_or_finalizers() -> None:
    texts = [
        entry.message
        for record in (
            warned(told(admitted(), SUCCEEDED, 1), 601),
            warned(admitted(), 1200),
            chained(5),
            followed(admitted(), BACK, None, 9),
        )
        for entry in record.status.outbox
    ]
    assert not [text for text in texts if "--force" in text or "finalizer" in text or "delete vmi " in text]


def test_long_reasons_of_kubevirt_fit_everywhere() -> None:
    record = told(admitted(), Verdict(RUN, Result.FAILED, "MigrationState", "x" * 9000), 100)
    assert len(window(record).failure_reason or "") == 1024
    assert "node-b leaves next" in message(record)


def test_a_refusal_names_the_vm_that_waits() -> None:
    why = NotExplained(Rule.NO_LIVE_MIGRATION, "no", Owner("VirtualMachineInstance", "database", "database-uid"), "vms")
    record = attached(fresh(dual_attach_policy=KUBEVIRT), "node-a")
    noted = note_refusal(record, "node-b", no(ask(record, "node-b", SHARED, evidence=why)), now=at(1))
    assert noted is not None
    assert noted.status.refusals[0].vmi == ObjectReference(namespace="vms", name="database", uid="database-uid")
    assert objections(noted) == []
