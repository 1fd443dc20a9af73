"""How a KubeVirt migration ended, how long it may take, whether another one began."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from rds_records.kubevirt_evidence import LiveMigration
from rds_records.kubevirt_objects import Migration, Vmi, migration_view, vmi_view
from rds_records.kubevirt_runs import Verdict, VerdictGround, limit, next_run, verdict
from rds_records.record import ClosedWindow, DualAttachPolicy, ObjectReference, Record, Result, Window
from tests.unit.records.kubevirt import RUN, launcher, live_migration, migration, pods, state, vmi
from tests.unit.records.volumes import ask, at, attached, fresh, left, window, yes

Body = dict[str, Any]

STARTED = "2026-11-21T12:01:00Z"
ENDED = "2026-11-21T12:01:40Z"


def migrating() -> Record:
    record = attached(fresh(dual_attach_policy=DualAttachPolicy.KUBEVIRT), "node-a")
    return yes(ask(record, "node-b", now=at(1), evidence=live_migration("node-a", "node-b")))


OPEN: Window = window(migrating())
CLOSED: ClosedWindow = left(migrating(), "node-a", now=at(50)).status.history[0]


def vm(node: str = "node-a", uid: str = RUN, **fields: Any) -> Vmi:
    return vmi_view(vmi(node=node, migrationState=state(uid, **fields)))


def run(phase: str = "Running", **fields: Any) -> Migration:
    return migration_view(migration(phase=phase, **fields))


def says(
    of: Vmi | None, its: Migration | None = None, *, gone: bool = False, who: str | None = None, window: Window = OPEN
) -> Verdict | None:
    return verdict(window, of, its, migration_gone=gone, left=who)


# verdicts -----------------------------------------------------------------------------------------


def test_a_completed_run_succeeded_with_its_own_times_and_the_live_node() -> None:
    said = says(vm("node-b", startTimestamp=STARTED, endTimestamp=ENDED, completed=True), run())
    assert said is not None
    assert (said.result, said.ground, said.reason, said.live_node) == (
        Result.SUCCEEDED,
        VerdictGround.MIGRATION_STATE,
        "",
        "node-b",
    )
    assert (said.migration_uid, said.start, said.end) == (RUN, at(60), at(100))


def test_completed_and_failed_is_failed_and_says_why() -> None:
    said = says(vm(completed=True, failed=True, failureReason="qemu went away"))
    assert said is not None
    assert (said.result, said.reason, said.live_node) == (Result.FAILED, "qemu went away", "node-a")


def test_an_aborted_run_failed() -> None:
    said = says(vm(completed=True, abortRequested=True, abortStatus="Succeeded", endTimestamp=ENDED), gone=True)
    assert said is not None
    assert (said.result, said.ground, said.reason) == (Result.FAILED, VerdictGround.MIGRATION_STATE, "aborted")


def test_an_abort_that_was_only_asked_for_or_did_not_work_is_no_failure() -> None:
    said = says(vm(completed=True, abortRequested=True, abortStatus="Failed"))
    assert said is not None
    assert said.result is Result.SUCCEEDED


@pytest.mark.parametrize(
    "fields", [{}, {"startTimestamp": STARTED}, {"endTimestamp": ENDED}, {"abortRequested": True}, {"failed": True}]
)
def test_nothing_before_completed_is_a_verdict(fields: Body) -> None:
    assert says(vm(**fields), run()) is None


def test_an_end_with_failed_is_a_verdict_before_completed() -> None:
    said = says(vm(failed=True, endTimestamp=ENDED), run())
    assert said is not None
    assert said.result is Result.FAILED


def test_what_the_vm_says_of_another_run_does_not_count() -> None:
    assert says(vm(uid="run-0", completed=True), run()) is None
    assert says(vm(uid="run-0", completed=True, failed=True), run("Pending")) is None
    said = says(vm(uid="run-0", completed=True), run("Failed"))
    assert said is not None
    assert (said.result, said.ground, said.start) == (Result.FAILED, VerdictGround.MIGRATION_PHASE, None)


def test_what_another_vm_of_the_same_name_says_does_not_count() -> None:
    other = vmi_view(vmi(uid="newer-uid", node="node-b", migrationState=state(completed=True)))
    assert says(other, run()) is None
    said = says(other, run("Succeeded"))
    assert said is not None
    assert said.live_node is None


@pytest.mark.parametrize(("phase", "result"), [("Succeeded", Result.SUCCEEDED), ("Failed", Result.FAILED)])
def test_the_phase_of_the_migration_is_a_verdict(phase: str, result: Result) -> None:
    said = says(vmi_view(vmi()), run(phase))
    assert said is not None
    assert (said.result, said.ground) == (result, VerdictGround.MIGRATION_PHASE)
    assert says(None, run(phase)) == Verdict(RUN, result, said.ground, said.reason)


def final(uid: str = RUN, phase: str = "Succeeded", **fields: Any) -> Migration:
    body = migration(uid, phase=phase)
    body["status"]["migrationState"] = {**state(uid, startTimestamp=STARTED, endTimestamp=ENDED, completed=True), **fields}
    return migration_view(body)


def test_where_the_vm_speaks_of_a_later_run_the_migrations_own_copy_tells() -> None:
    said = says(vm("node-a", "run-2"), final(failed=True, failureReason="qemu went away"))
    assert said is not None
    assert (said.result, said.ground, said.reason) == (Result.FAILED, VerdictGround.MIGRATION_STATE, "qemu went away")
    assert (said.start, said.end, said.live_node) == (at(60), at(100), "node-a")


def test_a_copy_that_is_over_wins_over_a_vm_that_was_read_earlier() -> None:
    said = says(vm("node-b", startTimestamp=STARTED), final())
    assert said is not None
    assert (said.result, said.ground, said.end) == (Result.SUCCEEDED, VerdictGround.MIGRATION_STATE, at(100))


def test_the_first_write_of_succeeded_has_no_copy_yet() -> None:
    body = migration(phase="Succeeded")
    body["status"]["migrationState"] = {"sourcePod": "virt-launcher-database-aaaaa"}
    said = says(vm("node-a", "run-2"), migration_view(body))
    assert said is not None
    assert (said.result, said.ground, said.start) == (Result.SUCCEEDED, VerdictGround.MIGRATION_PHASE, None)


@pytest.mark.parametrize("phase", ["", "Pending", "TargetReady", "Running", "Synchronizing"])
def test_no_other_phase_is(phase: str) -> None:
    assert says(vmi_view(vmi()), run(phase)) is None
    assert says(vmi_view(vmi()), run(phase, deleting=True)) is None


def test_a_migration_that_vanished_waits_while_both_nodes_are_attached() -> None:
    assert says(vmi_view(vmi()), gone=True) is None


@pytest.mark.parametrize(("who", "result", "reason"), [("node-a", Result.SUCCEEDED, ""), ("node-b", Result.FAILED, "cancelled")])
def test_who_left_decides_for_a_migration_that_vanished(who: str, result: Result, reason: str) -> None:
    said = says(vmi_view(vmi()), gone=True, who=who)
    assert said is not None
    assert (said.result, said.ground, said.reason) == (result, VerdictGround.MIGRATION_GONE, reason)


def test_another_migration_of_the_same_name_proves_that_the_first_is_gone() -> None:
    said = says(vmi_view(vmi()), migration_view(migration("run-7")), who="node-b")
    assert said is not None
    assert said.ground == VerdictGround.MIGRATION_GONE


def test_not_found_is_not_the_same_as_not_read() -> None:
    assert says(None, None, who="node-b") is None


def test_an_ended_window_knows_itself_who_left() -> None:
    said = says(None, gone=True, window=CLOSED)
    assert said is not None
    assert said.result is Result.SUCCEEDED
    both = says(None, gone=True, window=CLOSED.replace(left_node=None))
    assert both is not None
    assert both.result is Result.FAILED


def test_a_window_without_a_migration_has_no_verdict() -> None:
    assert says(vm(completed=True), run("Succeeded"), window=OPEN.replace(migration_uid=None)) is None


# the next run -------------------------------------------------------------------------------------

BACK = [launcher("src", "node-b", job=RUN), launcher("dst", "node-a", job="run-2", phase="Pending")]
QUEUED = [migration_view(migration(phase="Succeeded")), migration_view(migration("run-2", phase="Pending"))]


def following(record: Record, *bodies: Body, runs: list[Migration] | None = None, of: Vmi | None = None) -> LiveMigration | None:
    return next_run(record, of or vm("node-b", completed=True), QUEUED if runs is None else runs, pods(*bodies))


def test_a_run_back_to_the_node_that_was_not_yet_detached_is_seen() -> None:
    found = following(migrating(), launcher("old", "node-a", phase="Succeeded"), *BACK)
    assert found is not None
    assert (found.source_node, found.target_node, found.migration.uid) == ("node-b", "node-a", "run-2")
    assert (found.source_pod.name, found.target_pod.name) == ("virt-launcher-database-src", "virt-launcher-database-dst")


def test_a_retry_in_the_same_direction_is_seen() -> None:
    again = [launcher("src", "node-a"), launcher("old", "node-b", job=RUN), launcher("dst", "node-b", job="run-2")]
    found = following(migrating(), *again, of=vm(completed=True, failed=True))
    assert found is not None
    assert (found.source_node, found.target_node, found.target_pod.name) == ("node-a", "node-b", "virt-launcher-database-dst")


def test_the_run_of_the_window_is_no_next_one() -> None:
    assert following(migrating(), launcher("src", "node-a"), launcher("dst", "node-b", job=RUN), runs=[run()]) is None


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param([BACK[0]], id="no target pod yet"),
        pytest.param([BACK[1]], id="no source pod"),
        pytest.param([BACK[0], launcher("dst", "node-c", job="run-2")], id="to a third node"),
        pytest.param([BACK[0], launcher("dst", "node-a", job="run-2", phase="Failed")], id="target ended"),
        pytest.param([BACK[0], launcher("dst", "node-a", job="run-2", deleting=True)], id="target going"),
        pytest.param([BACK[0], launcher("dst", "node-a", vmi="mail", job="run-2")], id="another VM"),
    ],
)
def test_a_run_without_its_two_pods_on_the_two_nodes_is_no_next_one(bodies: list[Body]) -> None:
    assert following(migrating(), *bodies) is None


@pytest.mark.parametrize(
    "other",
    [
        migration("run-2", phase="Failed"),
        migration("run-2", deleting=True),
        migration("run-2", vmi="mail"),
        migration("run-2", sendTo={"migrationID": "m"}),
    ],
)
def test_only_a_live_run_of_this_vm_is_a_next_one(other: Body) -> None:
    assert following(migrating(), *BACK, runs=[migration_view(other)]) is None


def test_of_two_live_runs_with_pods_the_one_that_was_handed_off_counts() -> None:
    bodies = [launcher("s", "node-b"), launcher("t2", "node-a", job="run-2"), launcher("t3", "node-a", job="run-3")]
    runs = [migration_view(migration(uid)) for uid in ("run-2", "run-3")]
    found = following(migrating(), *bodies, runs=runs, of=vm("node-b", uid="run-3"))
    assert found is not None
    assert found.migration.uid == "run-3"


def test_without_a_window_there_is_nothing_to_follow() -> None:
    assert following(left(migrating(), "node-a", now=at(9)), *BACK) is None


# limits -------------------------------------------------------------------------------------------


def limited(
    memory: str = "2Gi", *, uid: str = RUN, mode: str = "PreCopy", per: Any = 150, more: bool = False, **status: Any
) -> Vmi:
    configuration = {"completionTimeoutPerGiB": per, "allowWorkloadDisruption": more}
    return vmi_view(vmi(memory=memory, migrationState=state(uid, mode=mode, migrationConfiguration=configuration), **status))


@pytest.mark.parametrize(("memory", "seconds"), [("2Gi", 450), ("64Gi", 10_350), ("1G", 150), ("1000000001", 300), ("1Mi", 150)])
def test_kubevirts_own_limit_counts_units_of_a_billion_bytes_rounded_up(memory: str, seconds: int) -> None:
    assert limit(limited(memory), OPEN) == timedelta(seconds=seconds + 120)


def test_a_run_that_may_disrupt_the_vm_has_twice_the_time() -> None:
    assert limit(limited(more=True), OPEN) == timedelta(seconds=1020)


def test_volumes_that_move_with_the_vm_count_like_memory() -> None:
    volumes = [{"volumeName": "d", "sourcePVCInfo": {"capacity": {"storage": "10G"}}}]
    assert limit(limited(migratedVolumes=volumes), OPEN) == timedelta(seconds=13 * 150 + 120)


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(limited(mode="PostCopy"), id="post-copy"),
        pytest.param(limited(per=0), id="no limit"),
        pytest.param(limited(per=None), id="no configuration"),
        pytest.param(limited(uid="run-0"), id="another run"),
        pytest.param(limited("0"), id="memory unknown"),
        pytest.param(vmi_view(vmi()), id="before hand-off"),
    ],
)
def test_no_limit_is_invented(of: Vmi) -> None:
    assert limit(of, OPEN) is None


def test_the_limit_of_another_vm_of_the_same_name_is_not_taken() -> None:
    other = OPEN.replace(vmi=ObjectReference(namespace="vms", name="database", uid="older-uid"))
    assert limit(limited(), other) is None
