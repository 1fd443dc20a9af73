"""The rules: who may attach, what a detach means, how a migration ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from rds_records.conditions import derive_phase, settled
from rds_records.decisions import Code, Reason, Refused
from rds_records.imports import Holder, import_attachments
from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable, NotExplained, Rule, no_kubevirt
from rds_records.kubevirt_objects import Owner
from rds_records.messages import go_duration
from rds_records.record import (
    MAX_HISTORY,
    MAX_OUTBOX,
    MAX_REFUSALS,
    AccessMode,
    Announcement,
    Attachment,
    ClosedWindow,
    Condition,
    DualAttachPolicy,
    ObjectReference,
    OutboxEntry,
    Phase,
    Record,
    Result,
    VolumeMode,
)
from rds_records.transitions import Access, begin_deletion, detach, detach_all, initialize, needs_evidence, note_refusal
from rds_records.windows import expire
from tests.unit.records.crd import objections
from tests.unit.records.kubevirt import live_migration
from tests.unit.records.volumes import (
    ALONE,
    HANDLE,
    MOUNTED,
    READING,
    SHARED,
    START,
    ask,
    at,
    attached,
    empty,
    fresh,
    left,
    no,
    window,
    yes,
)

KUBEVIRT = DualAttachPolicy.KUBEVIRT
MOUNT_VOLUME = {"volume_mode": VolumeMode.FILESYSTEM, "access_mode": AccessMode.READ_WRITE_ONCE}


def nodes(record: Record) -> list[str]:
    return [held.node_name for held in record.status.attachments]


def kinds(record: Record) -> list[Announcement]:
    return [entry.kind for entry in record.status.outbox]


def last(record: Record) -> ClosedWindow:
    return record.status.history[-1]


def expired(record: Record, seconds: float) -> Record:
    """Return the record after its window was found open for that long."""
    result = expire(record, now=at(seconds), elapsed=timedelta(seconds=seconds))
    assert result is not None
    return result


def found(*names: str) -> list[Holder]:
    return [Holder(node=name, since=at(-100 + number), attached=True) for number, name in enumerate(names)]


def held_by(*names: str, **changes: object) -> Record:
    """Return a record whose holders were found rather than admitted."""
    return import_attachments(empty(**changes), found(*names), now=START)


# attach: rule 0 -----------------------------------------------------------------------------------


def test_a_record_that_is_not_initialized_admits_nobody() -> None:
    refused = no(ask(empty(), "node-a"))
    assert (refused.code, refused.reason) == (Code.UNAVAILABLE, Reason.NOT_INITIALIZED)


def test_a_volume_that_is_being_deleted_admits_nobody() -> None:
    deleting = yes(begin_deletion(fresh(), now=START))
    refused = no(ask(deleting, "node-a"))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.DELETING)
    assert HANDLE in refused.message


@pytest.mark.requirement("R29")
def test_a_filesystem_on_two_nodes_is_an_invalid_argument_whatever_the_record_says() -> None:
    access = Access(AccessMode.READ_WRITE_MANY, VolumeMode.FILESYSTEM)
    for record in (empty(), fresh(), fresh(**MOUNT_VOLUME), attached(fresh(), "node-a")):
        refused = no(ask(record, "node-a", access))
        assert (refused.code, refused.reason) == (Code.INVALID_ARGUMENT, Reason.MULTI_NODE_FILESYSTEM)


def test_a_block_volume_is_not_attached_as_a_filesystem() -> None:
    refused = no(ask(fresh(), "node-a", MOUNTED))
    assert (refused.code, refused.reason) == (Code.INVALID_ARGUMENT, Reason.WRONG_VOLUME_MODE)


# attach: rule 1 -----------------------------------------------------------------------------------


def test_a_node_that_is_attached_already_gets_yes_and_nothing_is_written() -> None:
    record = attached(fresh(), "node-a")
    decision = ask(record, "node-a", now=at(60), exists=None)
    assert yes(decision) is record
    assert decision.changed is False  # type: ignore[union-attr]


def test_a_second_node_that_is_attached_already_needs_no_evidence_again() -> None:
    record = attached(fresh(), "node-a", "node-b")
    record = record.replace(spec=record.spec.replace(dual_attach_policy=KUBEVIRT))
    assert yes(ask(record, "node-b", now=at(60))) is record


@pytest.mark.parametrize("held", [AccessMode.READ_WRITE_ONCE, AccessMode.READ_WRITE_ONCE_POD])
@pytest.mark.parametrize("asked", [AccessMode.READ_WRITE_ONCE, AccessMode.READ_WRITE_ONCE_POD])
def test_classes_are_compared_and_not_modes(held: AccessMode, asked: AccessMode) -> None:
    record = attached(fresh(), "node-a", access=replace(ALONE, mode=held))
    assert yes(ask(record, "node-a", replace(ALONE, mode=asked))) is record


@pytest.mark.requirement("R29")
@pytest.mark.parametrize("access", [ALONE, MOUNTED, READING])
def test_the_same_node_in_another_class_already_exists(access: Access) -> None:
    refused = no(ask(attached(fresh(), "node-a"), "node-a", access))
    assert (refused.code, refused.reason) == (Code.ALREADY_EXISTS, Reason.OTHER_CLASS)
    assert "ReadWriteMany Block" in refused.message
    assert "node-a" in refused.message


# attach: rule 2 -----------------------------------------------------------------------------------


def test_the_first_node_is_admitted_if_it_exists() -> None:
    record = attached(fresh(), "node-a")
    (held,) = record.status.attachments
    assert (held.node_name, held.id, held.attach_time, held.access_mode) == ("node-a", "node-a-0", START, SHARED.mode)
    assert record.status.migration is None
    assert (record.status.phase, record.status.nodes) == (Phase.ATTACHED, "node-a")


@pytest.mark.requirement("R17")
def test_a_node_is_not_found_only_on_positive_evidence() -> None:
    assert no(ask(fresh(), "node-x", exists=False)).code is Code.NOT_FOUND
    unknown = no(ask(fresh(), "node-x", exists=None))
    assert (unknown.code, unknown.reason) == (Code.UNAVAILABLE, Reason.NODE_UNKNOWN)


# attach: rule 3 -----------------------------------------------------------------------------------


@pytest.mark.requirement("R28", "R29")
@pytest.mark.parametrize(("first", "second"), [(ALONE, ALONE), (ALONE, SHARED), (SHARED, ALONE)])
def test_no_second_node_where_either_side_is_for_one_node_only(first: Access, second: Access) -> None:
    refused = no(ask(attached(fresh(), "node-a", access=first), "node-b", second))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.SINGLE_NODE)
    assert all(word in refused.message for word in (HANDLE, "node-a", "node-b"))


def test_under_any_two_nodes_a_second_node_opens_a_window() -> None:
    record = attached(fresh(), "node-a", "node-b")
    opened = window(record)
    assert (opened.source_node, opened.target_node, opened.start_time) == ("node-a", "node-b", at(1))
    assert (opened.timeout_seconds, opened.deadline_time, opened.result) == (300, at(301), None)
    assert opened.id == record.status.attachments[1].id
    assert kinds(record) == [Announcement.STARTED]
    assert (record.status.phase, record.status.nodes) == (Phase.MIGRATING, "node-a,node-b")
    assert objections(record) == []


@pytest.mark.requirement("R7")
def test_under_kubevirt_a_second_node_that_nobody_asked_about_is_tried_again() -> None:
    refused = no(ask(attached(fresh(dual_attach_policy=KUBEVIRT), "node-a"), "node-b"))
    assert (refused.code, refused.reason) == (Code.UNAVAILABLE, Reason.NO_EVIDENCE)
    for word in ("node-a", "node-b", "changed meanwhile", "tried again"):
        assert word in refused.message
    assert "AnyTwoNodes" not in refused.message


def kubevirt_volume(**changes: object) -> Record:
    return attached(fresh(dual_attach_policy=KUBEVIRT, **changes), "node-a")


@pytest.mark.requirement("R7")
def test_under_kubevirt_a_live_migration_opens_a_window_that_names_it() -> None:
    record = yes(ask(kubevirt_volume(), "node-b", now=at(5), evidence=live_migration("node-a", "node-b")))
    opened = window(record)
    assert (opened.source_node, opened.target_node, opened.start_time) == ("node-a", "node-b", at(5))
    assert opened.vmi is not None
    assert (opened.vmi.namespace, opened.vmi.name, opened.vmi.uid) == ("vms", "database", "database-uid")
    assert (opened.migration_name, opened.migration_uid) == ("migration-run-1", "run-1")
    assert (opened.source_pod, opened.target_pod) == ("virt-launcher-database-aaaaa", "virt-launcher-database-run-1")
    assert (opened.timeout_seconds, opened.deadline_time) == (None, None)
    assert objections(record) == []


@pytest.mark.requirement("R7")
def test_under_kubevirt_a_no_is_told_with_its_rule_and_when_it_is_tried_again() -> None:
    why = NotExplained(Rule.FOREIGN_POD, "pod backup on node node-a uses the claim database-root too")
    refused = no(ask(kubevirt_volume(), "node-b", evidence=why))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.NO_MIGRATION)
    for word in (HANDLE, "node-a", "node-b", "ForeignPod", "pod backup", "csi-attacher: at most 5 minutes later"):
        assert word in refused.message
    assert "AnyTwoNodes" not in refused.message


def test_where_there_is_no_kubevirt_the_refusal_names_the_other_policy() -> None:
    refused = no(ask(kubevirt_volume(), "node-b", evidence=no_kubevirt("node-a", "node-b")))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.NO_MIGRATION)
    assert "dualAttachPolicy: AnyTwoNodes" in refused.message
    assert "NoKubeVirt" in refused.message


def test_where_nobody_could_tell_whether_a_vm_migrates_the_answer_is_unavailable() -> None:
    who = Owner("VirtualMachineInstance", "database", "database-uid")
    trouble = EvidenceUnavailable("pods of vms: 403 Forbidden", forbidden=True, vmi=who, namespace="vms")
    refused = no(ask(kubevirt_volume(), "node-b", evidence=trouble))
    assert (refused.code, refused.reason) == (Code.UNAVAILABLE, Reason.NO_EVIDENCE)
    assert "403 Forbidden" in refused.message
    assert refused.vmi == ObjectReference(namespace="vms", name="database", uid="database-uid")


UNREADABLE = EvidenceUnavailable("pods in namespace vms could not be read")
FORBIDDEN = EvidenceUnavailable("may not list pods in namespace vms", forbidden=True)
EXPLAINED_NOT = NotExplained(Rule.NO_TARGET_POD, "no running pod on node node-b uses the claim")


def refusing(record: Record, evidence: Evidence, seconds: float) -> Record:
    noted = note_refusal(record, "node-b", no(ask(record, "node-b", evidence=evidence)), now=at(seconds), evidence=evidence)
    assert noted is not None
    assert objections(noted) == []
    return noted


def readable(record: Record) -> tuple[str, str, datetime]:
    condition = record.status.condition("EvidenceReadable")
    assert condition is not None
    return condition.status, condition.reason, condition.last_transition_time


def test_a_record_whose_evidence_was_always_readable_has_no_condition_about_it() -> None:
    refused = refusing(kubevirt_volume(), EXPLAINED_NOT, 1)
    admitted = yes(ask(refused, "node-b", evidence=live_migration("node-a", "node-b")))
    assert refused.status.condition("EvidenceReadable") is None
    assert admitted.status.condition("EvidenceReadable") is None


def test_evidence_that_could_not_be_read_is_a_condition_until_it_could() -> None:
    record = refusing(kubevirt_volume(), UNREADABLE, 1)
    assert readable(record) == ("False", "Unavailable", at(1))
    record = refusing(record, FORBIDDEN, 100)
    assert readable(record) == ("False", "Forbidden", at(1))
    assert record.status.refusals[0].reason == Reason.NO_EVIDENCE
    told_no = refusing(record, EXPLAINED_NOT, 200)
    assert readable(told_no) == ("True", "Readable", at(200))
    admitted = yes(ask(record, "node-b", now=at(300), evidence=live_migration("node-a", "node-b")))
    assert readable(admitted) == ("True", "Readable", at(300))
    assert admitted.status.refusals == ()


def test_a_refusal_that_no_evidence_decided_says_nothing_of_its_condition() -> None:
    record = refusing(kubevirt_volume(), FORBIDDEN, 1)
    noted = note_refusal(record, "node-c", no(ask(record, "node-c")), now=at(2))
    assert noted is not None
    assert readable(noted) == ("False", "Forbidden", at(1))


@pytest.mark.parametrize(("source", "target"), [("node-b", "node-a"), ("node-c", "node-b"), ("node-a", "node-c")])
def test_evidence_for_other_nodes_than_those_of_the_record_is_out_of_date(source: str, target: str) -> None:
    refused = no(ask(kubevirt_volume(), "node-b", evidence=live_migration(source, target)))
    assert (refused.code, refused.reason) == (Code.UNAVAILABLE, Reason.NO_EVIDENCE)
    assert "changed meanwhile" in refused.message


def test_evidence_counts_only_under_the_policy_that_asks_for_it() -> None:
    record = yes(ask(attached(fresh(), "node-a"), "node-b", now=at(1), evidence=live_migration("node-a", "node-b")))
    assert (window(record).migration_uid, window(record).timeout_seconds) == (None, 300)
    single = attached(fresh(dual_attach_policy=KUBEVIRT), "node-a", access=ALONE)
    assert no(ask(single, "node-b", evidence=live_migration("node-a", "node-b"))).reason is Reason.SINGLE_NODE


def test_evidence_is_needed_for_a_second_node_of_a_shared_volume_under_kubevirt_only() -> None:
    record = kubevirt_volume()
    assert needs_evidence(record, "node-b", SHARED) == "node-a"
    assert needs_evidence(record, "node-a", SHARED) is None
    assert needs_evidence(record, "node-b", ALONE) is None
    assert needs_evidence(fresh(dual_attach_policy=KUBEVIRT), "node-b", SHARED) is None
    assert needs_evidence(attached(fresh(), "node-a"), "node-b", SHARED) is None
    two = yes(ask(record, "node-b", evidence=live_migration("node-a", "node-b")))
    assert needs_evidence(two, "node-c", SHARED) is None


def test_a_second_node_must_exist_too() -> None:
    assert no(ask(attached(fresh(), "node-a"), "node-b", exists=False)).code is Code.NOT_FOUND


def test_another_node_has_to_wait_while_the_record_is_known_to_be_wrong() -> None:
    doubt = Condition(
        type="Consistent", status="False", reason="HolderMissing", message="node-z holds it too", last_transition_time=START
    )
    record = attached(fresh(), "node-a").with_status(conditions=(doubt,))
    refused = no(ask(record, "node-b"))
    assert (refused.code, refused.reason) == (Code.UNAVAILABLE, Reason.INCONSISTENT)
    assert "node-z" in refused.message


# attach: rule 4 -----------------------------------------------------------------------------------


def test_a_third_node_is_refused_with_both_names_and_the_deadline() -> None:
    refused = no(ask(attached(fresh(), "node-a", "node-b"), "node-c", now=at(10)))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.NO_SLOT)
    for word in (HANDLE, "node-a and node-b", "node-c", "from node-a to node-b", "2026-11-21T12:05:01Z"):
        assert word in refused.message


def test_a_third_node_is_told_the_result_once_there_is_one() -> None:
    refused = no(ask(expired(attached(fresh(), "node-a", "node-b"), 400), "node-c", now=at(401)))
    assert "TimedOut" in refused.message


def test_a_chained_migration_comes_in_once_a_node_left() -> None:
    record = left(attached(fresh(), "node-a", "node-b"), "node-a", now=at(30))
    record = yes(ask(record, "node-c", now=at(31)))
    assert (window(record).source_node, window(record).target_node) == ("node-b", "node-c")


# detach -------------------------------------------------------------------------------------------


def test_a_node_that_is_not_recorded_is_detached_already() -> None:
    record = attached(fresh(), "node-a")
    decision = detach(record, "node-b", attachment_id=None, wanted=False, now=at(5))
    assert yes(decision) is record
    assert decision.changed is False  # type: ignore[union-attr]


def test_unpublishing_a_refused_node_clears_its_refusal_only() -> None:
    record = attached(fresh(dual_attach_policy=KUBEVIRT), "node-a")
    for node in ("node-b", "node-c"):
        noted = note_refusal(record, node, no(ask(record, node)), now=START)
        assert noted is not None
        record = noted
    cleared = yes(detach(record, "node-b", attachment_id=None, wanted=False, now=at(5)))
    assert [refusal.node_name for refusal in cleared.status.refusals] == ["node-c"]
    assert nodes(cleared) == ["node-a"]


def test_a_detach_that_comes_after_the_next_attach_is_late() -> None:
    record = attached(fresh(), "node-a")
    old = record.status.attachments[0].id
    record = attached(left(record, "node-a", now=at(5)), "node-a", now=at(6))
    refused = no(detach(record, "node-a", attachment_id=old, wanted=False, now=at(7)))
    assert (refused.code, refused.reason) == (Code.ABORTED, Reason.LATE_DETACH)


def test_a_detach_that_saw_no_attachment_does_not_remove_a_newer_one() -> None:
    refused = no(detach(attached(fresh(), "node-a"), "node-a", attachment_id=None, wanted=False, now=at(7)))
    assert refused.code is Code.ABORTED


def test_a_detach_whose_volume_attachment_lives_is_late() -> None:
    record = attached(fresh(), "node-a")
    refused = no(detach(record, "node-a", attachment_id=record.status.attachments[0].id, wanted=True, now=at(7)))
    assert (refused.code, refused.reason) == (Code.ABORTED, Reason.LATE_DETACH)


def test_the_last_node_leaves_without_a_migration() -> None:
    record = left(attached(fresh(), "node-a"), "node-a", now=at(9))
    assert (nodes(record), record.status.history, record.status.outbox) == ([], (), ())
    assert (record.status.phase, record.status.nodes) == (Phase.DETACHED, "")


@pytest.mark.requirement("R30")
def test_a_detach_without_a_node_takes_all_that_the_caller_saw() -> None:
    record = attached(fresh(), "node-a", "node-b")
    ids = [held.id for held in record.status.attachments]
    assert nodes(detach_all(record, attachment_ids=ids, now=at(9)).record) == []
    assert nodes(detach_all(record, attachment_ids=ids[:1], now=at(9)).record) == ["node-b"]
    assert detach_all(record, attachment_ids=["other"], now=at(9)).changed is False


# how a window ends --------------------------------------------------------------------------------


@pytest.mark.requirement("R2", "R3")
def test_source_leaving_first_completes_the_migration() -> None:
    record = left(attached(fresh(), "node-a", "node-b"), "node-a", now=at(41))
    closed = last(record)
    assert (closed.result, closed.reason, closed.live_node, closed.left_node) == (
        Result.SUCCEEDED, "SourceLeft", "node-b", "node-a",
    )  # fmt: skip
    assert (closed.end_time, closed.duration_seconds) == (at(41), 40)
    assert record.status.migration is None
    assert kinds(record) == [Announcement.STARTED, Announcement.SUCCEEDED]
    assert (nodes(record), record.status.phase) == (["node-b"], Phase.ATTACHED)
    assert objections(record) == []


@pytest.mark.requirement("R2", "R3")
def test_target_leaving_first_is_a_rollback() -> None:
    record = left(attached(fresh(), "node-a", "node-b"), "node-b", now=at(41))
    closed = last(record)
    assert (closed.result, closed.reason, closed.live_node, closed.left_node) == (
        Result.FAILED, "RolledBack", "node-a", "node-b",
    )  # fmt: skip
    assert (closed.source_node, closed.target_node) == ("node-a", "node-b")
    assert kinds(record)[-1] is Announcement.FAILED


def test_both_nodes_leaving_at_once_is_a_failure() -> None:
    record = attached(fresh(), "node-a", "node-b")
    record = detach_all(record, attachment_ids=[held.id for held in record.status.attachments], now=at(41)).record
    closed = last(record)
    assert (closed.result, closed.reason, closed.live_node, closed.left_node) == (Result.FAILED, "AllLeft", None, None)


@pytest.mark.requirement("R3")
def test_roles_do_not_swap_when_the_source_comes_back() -> None:
    record = left(attached(fresh(), "node-a", "node-b"), "node-a", now=at(30))
    record = yes(ask(record, "node-a", now=at(40)))
    assert (window(record).source_node, window(record).target_node) == ("node-b", "node-a")
    assert len({closed.id for closed in record.status.history} | {window(record).id}) == 2


@pytest.mark.requirement("R45")
def test_a_window_that_ends_before_it_began_lasted_no_time() -> None:
    record = left(attached(fresh(), "node-a", "node-b"), "node-a", now=at(-3600))
    assert last(record).duration_seconds == 0
    assert last(record).end_time == last(record).start_time
    assert record.status.outbox[-1].clock_clamped is True
    assert record.status.outbox[-1].duration_seconds == 0


def test_the_history_keeps_the_last_ten_windows() -> None:
    record = attached(fresh(), "node-0")
    for number in range(1, 13):
        record = yes(ask(record, f"node-{number}", now=at(number * 10))).with_status(outbox=())
        record = left(record, f"node-{number - 1}", now=at(number * 10 + 5))
    assert [closed.source_node for closed in record.status.history] == [f"node-{number}" for number in range(2, 12)]
    assert len(record.status.history) == MAX_HISTORY


# deadlines ----------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
def test_at_the_deadline_a_window_is_timed_out_and_both_nodes_stay() -> None:
    record = attached(fresh(), "node-a", "node-b")
    assert expire(record, now=at(300), elapsed=timedelta(seconds=299.9)) is None
    record = expired(record, 300)
    assert (window(record).result, window(record).reason, window(record).result_time) == (Result.TIMED_OUT, "Timeout", at(300))
    assert nodes(record) == ["node-a", "node-b"]
    assert (record.status.phase, kinds(record)) == (Phase.OVERDUE, [Announcement.STARTED, Announcement.TIMED_OUT])
    assert objections(record) == []


@pytest.mark.requirement("R1")
def test_a_window_is_timed_out_once() -> None:
    record = expired(attached(fresh(), "node-a", "node-b"), 300)
    assert expire(record, now=at(900), elapsed=timedelta(seconds=900)) is None


@pytest.mark.requirement("R2")
@pytest.mark.parametrize(("leaving", "stays"), [("node-a", "node-b"), ("node-b", "node-a")])
def test_the_result_of_a_timed_out_window_stays_when_a_node_leaves(leaving: str, stays: str) -> None:
    record = left(expired(attached(fresh(), "node-a", "node-b"), 300), leaving, now=at(401))
    closed = last(record)
    assert (closed.result, closed.reason, closed.live_node, closed.left_node) == (Result.TIMED_OUT, "Timeout", stays, leaving)
    assert (closed.result_time, closed.end_time, closed.duration_seconds) == (at(300), at(401), 400)
    assert kinds(record) == [Announcement.STARTED, Announcement.TIMED_OUT, Announcement.ENDED]
    assert record.status.phase is Phase.ATTACHED


def with_timeout(record: Record, seconds: int | None) -> Record:
    return record.replace(spec=record.spec.replace(migration_timeout_seconds=seconds))


@pytest.mark.requirement("R10")
@pytest.mark.parametrize("seconds", [30, 3600])
def test_an_edited_timeout_moves_the_deadline_both_ways(seconds: int) -> None:
    record = with_timeout(attached(fresh(), "node-a", "node-b"), seconds)
    moved = expire(record, now=at(10), elapsed=timedelta(seconds=10))
    assert moved is not None
    assert (window(moved).timeout_seconds, window(moved).deadline_time) == (seconds, at(1 + seconds))
    assert (window(moved).result, kinds(moved)) == (None, [Announcement.STARTED])
    assert expire(moved, now=at(11), elapsed=timedelta(seconds=11)) is None


@pytest.mark.requirement("R10")
def test_a_timeout_shortened_below_the_time_that_passed_is_over_at_once() -> None:
    record = expired(with_timeout(attached(fresh(), "node-a", "node-b"), 30), 60)
    assert (window(record).result, window(record).timeout_seconds) == (Result.TIMED_OUT, 30)


@pytest.mark.requirement("R10")
def test_a_timeout_lengthened_after_the_deadline_changes_nothing() -> None:
    record = with_timeout(expired(attached(fresh(), "node-a", "node-b"), 300), 3600)
    assert expire(record, now=at(310), elapsed=timedelta(seconds=310)) is None


def test_the_timeout_of_the_spec_counts_from_the_start() -> None:
    assert window(attached(fresh(migration_timeout_seconds=45), "node-a", "node-b")).deadline_time == at(46)


def test_without_a_window_nothing_expires() -> None:
    assert expire(attached(fresh(), "node-a"), now=at(900), elapsed=timedelta(days=1)) is None


def test_under_kubevirt_no_deadline_is_known_without_a_timeout() -> None:
    record = held_by("node-a", "node-b", dual_attach_policy=KUBEVIRT)
    assert (window(record).timeout_seconds, window(record).deadline_time) == (None, None)
    assert expire(record, now=at(900), elapsed=timedelta(days=1)) is None
    assert record.status.outbox[0].message.endswith("timeout: none")


# more nodes than allowed --------------------------------------------------------------------------


@pytest.mark.requirement("R24")
def test_more_than_two_found_are_kept_and_no_further_node_is_admitted() -> None:
    record = held_by("node-a", "node-b", "node-c")
    assert (nodes(record), record.status.over_attached) == (["node-a", "node-b", "node-c"], True)
    assert record.status.migration is None
    refused = no(ask(record, "node-d"))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.NO_SLOT)
    assert "node-a and node-b and node-c" in refused.message


@pytest.mark.requirement("R24")
def test_when_a_third_node_left_the_other_two_are_a_window() -> None:
    record = left(held_by("node-a", "node-b", "node-c"), "node-a", now=at(50))
    assert record.status.over_attached is None
    assert (window(record).source_node, window(record).target_node, window(record).start_time) == ("node-b", "node-c", at(50))
    assert kinds(record) == [Announcement.STARTED]


def test_two_found_on_a_volume_for_one_node_are_over_attached_and_no_migration() -> None:
    record = held_by("node-a", "node-b", access_mode=AccessMode.READ_WRITE_ONCE)
    assert (record.status.over_attached, record.status.migration, kinds(record)) == (True, None, [])
    record = left(record, "node-a", now=at(50))
    assert (record.status.over_attached, record.status.migration, kinds(record)) == (None, None, [])


def test_three_found_on_a_volume_for_one_node_stay_over_attached_when_one_leaves() -> None:
    record = left(held_by("node-a", "node-b", "node-c", access_mode=AccessMode.READ_WRITE_ONCE), "node-a", now=at(50))
    assert (record.status.over_attached, record.status.migration, kinds(record)) == (True, None, [])


def test_two_found_on_a_filesystem_are_over_attached_whatever_the_access_mode() -> None:
    assert held_by("node-a", "node-b", volume_mode=VolumeMode.FILESYSTEM).status.over_attached is True


def test_every_window_has_a_name_of_its_own_also_with_the_same_younger_node() -> None:
    record = left(held_by("node-a", "node-b", "node-c"), "node-a", now=at(50))
    first = window(record)
    third = Attachment(node_name="node-0", id="found-0", access_mode=SHARED.mode, attach_time=at(-500))
    status = record.status.replace(attachments=(*record.status.attachments, third), over_attached=True)
    record = settled(record, status, at(51))
    record = left(record, "node-b", now=at(52))
    assert (window(record).source_node, window(record).target_node) == ("node-0", "node-c")
    assert window(record).id != first.id
    assert len({entry.id for entry in record.status.outbox}) == len(record.status.outbox)


# deletion -----------------------------------------------------------------------------------------


@pytest.mark.requirement("R32")
def test_a_volume_with_a_node_attached_cannot_be_deleted() -> None:
    refused = no(begin_deletion(attached(fresh(), "node-a", "node-b"), now=START))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.STILL_ATTACHED)
    assert "node-a and node-b" in refused.message


def test_a_deletion_begins_once() -> None:
    deleting = yes(begin_deletion(fresh(), now=START))
    assert deleting.status.deleting is True
    assert yes(begin_deletion(deleting, now=at(1))) is deleting


def test_nothing_is_deleted_while_nobody_knows_who_holds_it() -> None:
    assert no(begin_deletion(empty(), now=START)).code is Code.UNAVAILABLE


def test_a_record_is_initialized_once() -> None:
    record = attached(fresh(), "node-a")
    assert initialize(record, now=at(5)).record is record
    assert initialize(empty(), now=at(5)).changed is True


# refusals -----------------------------------------------------------------------------------------


def refusal(message: str = "no", reason: Reason = Reason.NO_SLOT) -> Refused:
    return Refused(Code.FAILED_PRECONDITION, reason, message)


def noted(record: Record, node: str, refused: Refused, seconds: float) -> Record:
    result = note_refusal(record, node, refused, now=at(seconds))
    assert result is not None
    return result


@pytest.mark.requirement("R41")
def test_a_repeated_refusal_is_written_at_most_once_a_minute() -> None:
    record = noted(fresh(), "node-c", refusal(), 0)
    assert note_refusal(record, "node-c", refusal(), now=at(59.9)) is None
    record = noted(record, "node-c", refusal("again"), 60)
    (known,) = record.status.refusals
    assert (known.count, known.first_time, known.last_time, known.message) == (2, START, at(60), "again")


def test_a_refusal_that_names_a_vm_now_is_written_at_once() -> None:
    record = noted(fresh(), "node-c", refusal(), 0)
    who = ObjectReference(namespace="vms", name="database")
    record = noted(record, "node-c", replace(refusal("the VM waits"), vmi=who), 1)
    (known,) = record.status.refusals
    assert (known.count, known.first_time, known.message, known.vmi) == (2, START, "the VM waits", who)


def test_another_reason_is_another_refusal_and_replaces_the_first() -> None:
    record = noted(noted(fresh(), "node-c", refusal(), 0), "node-c", refusal(reason=Reason.DELETING), 1)
    assert [(seen.reason, seen.count) for seen in record.status.refusals] == [("VolumeDeleting", 1)]


def test_the_last_four_refused_nodes_are_kept() -> None:
    record = fresh()
    for number in range(6):
        record = noted(record, f"node-{number}", refusal(), number)
    assert [seen.node_name for seen in record.status.refusals] == ["node-2", "node-3", "node-4", "node-5"]
    assert len(record.status.refusals) == MAX_REFUSALS


def test_a_long_message_is_cut() -> None:
    record = noted(fresh(), "node-c", refusal("x" * 5000), 0)
    assert len(record.status.refusals[0].message) == 1024
    assert objections(record) == []


def test_a_node_that_is_admitted_after_all_is_refused_no_longer() -> None:
    record = attached(noted(fresh(), "node-a", refusal(), 0), "node-a")
    assert record.status.refusals == ()


# the outbox ---------------------------------------------------------------------------------------


def migrated(record: Record, times: int, start: int = 0) -> Record:
    """Return the record after that many completed migrations, each of them two entries in the outbox."""
    if not record.status.attachments:
        record = attached(record, "node-0")
    for number in range(start + 1, start + times + 1):
        record = yes(ask(record, f"node-{number}", now=at(number * 10)))
        record = left(record, f"node-{number - 1}", now=at(number * 10 + 5))
    return record


def test_a_full_outbox_collapses_into_totals_and_never_stops_an_attach() -> None:
    record = migrated(fresh(), 16)
    assert len(record.status.outbox) == MAX_OUTBOX
    record = yes(ask(record, "node-x", now=at(1000)))
    totals, entry = record.status.outbox
    assert totals.counts is not None
    assert (totals.kind, totals.counts.started, totals.counts.succeeded) == (Announcement.COLLAPSED, 16, 16)
    assert entry.kind is Announcement.STARTED
    assert objections(record) == []


def test_totals_add_up_however_often_they_collapse() -> None:
    record = migrated(fresh(), 100)
    counts = [entry.counts for entry in record.status.outbox if entry.counts]
    assert sum(count.started for count in counts) + kinds(record).count(Announcement.STARTED) == 100
    assert sum(count.succeeded for count in counts) + kinds(record).count(Announcement.SUCCEEDED) == 100
    assert objections(record) == []


def test_entries_that_somebody_counted_are_not_counted_a_second_time_in_totals() -> None:
    record = migrated(fresh(), 16)
    claimed = tuple(entry.replace(reported_by="a-life") for entry in record.status.outbox[:20])
    record = record.with_status(outbox=(*claimed, *record.status.outbox[20:]))
    record = yes(ask(record, "node-x", now=at(1000)))
    *kept, totals, _ = record.status.outbox
    assert (totals.counts.started, totals.counts.succeeded) == (6, 6)  # type: ignore[union-attr]
    assert {entry.reported_by for entry in kept} == {"a-life"}


def test_the_names_of_totals_do_not_grow() -> None:
    record = fresh()
    for number in range(20):
        record = migrated(record, 8, start=number * 8)
        claimed = tuple(entry.replace(reported_by="a-life") for entry in record.status.outbox)
        record = record.with_status(outbox=claimed)
    assert max(len(entry.id) for entry in record.status.outbox) < 64
    assert objections(record) == []


# what people read ---------------------------------------------------------------------------------


def messages(record: Record) -> list[str]:
    return [entry.message for entry in record.status.outbox]


def test_started_reads_as_the_users_of_the_go_driver_know_it() -> None:
    (started,) = messages(attached(fresh(), "node-a", "node-b"))
    assert started == f"[{HANDLE}]: KubeVirt live migration started - source: node-a, target: node-b, timeout: 5m0s"


def test_completed_reads_as_the_users_of_the_go_driver_know_it() -> None:
    completed = messages(left(attached(fresh(), "node-a", "node-b"), "node-a", now=at(43.5)))[-1]
    assert completed == f"[{HANDLE}]: KubeVirt live migration completed - source: node-a -> target: node-b (duration: 42.5s)"


@pytest.mark.requirement("R3")
def test_a_rollback_reads_as_a_failure_that_names_who_keeps_the_volume() -> None:
    failed = messages(left(attached(fresh(), "node-a", "node-b"), "node-b", now=at(61)))[-1]
    assert failed == (
        f"[{HANDLE}]: KubeVirt live migration failed - source: node-a, target: node-b, reason: rolled back, elapsed: 1m0s; "
        "the volume stays on node-a"
    )


def test_a_timeout_reads_as_the_users_of_the_go_driver_know_it() -> None:
    timed_out = messages(expired(attached(fresh(), "node-a", "node-b"), 301))[-1]
    assert timed_out.startswith(
        f"[{HANDLE}]: KubeVirt live migration failed - source: node-a, target: node-b, reason: timeout, "
        "elapsed: 5m1s (timeout: 5m0s)"
    )
    assert "both nodes stay attached" in timed_out


def test_the_end_of_a_timed_out_window_names_its_result_and_who_left() -> None:
    ended = messages(left(expired(attached(fresh(), "node-a", "node-b"), 300), "node-a", now=at(601)))[-1]
    assert ended == (
        f"[{HANDLE}]: KubeVirt live migration ended - source: node-a, target: node-b, result: TimedOut, node-a left "
        "(duration: 10m0s); the volume stays on node-b"
    )


def test_when_all_leave_the_message_says_that_nobody_holds_the_volume() -> None:
    record = attached(fresh(), "node-a", "node-b")
    record = detach_all(record, attachment_ids=[held.id for held in record.status.attachments], now=at(41)).record
    assert messages(record)[-1].endswith("reason: both nodes left, elapsed: 40s; no node holds the volume")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (-5, "0s"), (1, "1s"), (1.5, "1.5s"), (59.999, "59.999s"), (60, "1m0s"), (300, "5m0s"), (90.25, "1m30.25s"),
        (3600, "1h0m0s"), (3661.001, "1h1m1.001s"), (2_592_000, "720h0m0s"), (59.9999, "1m0s"), (0.0001, "0s"),
    ],
)  # fmt: skip
def test_durations_read_as_go_prints_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


# what is derived ----------------------------------------------------------------------------------


def condition(record: Record, kind: str) -> Condition:
    found = record.status.condition(kind)
    assert found is not None
    return found


def test_conditions_follow_and_keep_the_time_of_their_last_change() -> None:
    record = attached(fresh(), "node-a", "node-b")
    assert {kind: condition(record, kind).status for kind in ("Attached", "Migrating", "Overdue")} == {
        "Attached": "True", "Migrating": "True", "Overdue": "False",
    }  # fmt: skip
    assert condition(record, "Attached").last_transition_time == START
    assert condition(record, "Migrating").last_transition_time == at(1)
    record = left(expired(record, 300), "node-a", now=at(400))
    assert (condition(record, "Overdue").status, condition(record, "Overdue").last_transition_time) == ("False", at(400))
    assert condition(record, "Attached").last_transition_time == START


def test_conditions_of_others_are_kept() -> None:
    other = Condition(type="Available", status="True", reason="Seen", message="", last_transition_time=START)
    record = attached(fresh().with_status(conditions=(other,)), "node-a")
    assert condition(record, "Available") == other


def test_the_observed_generation_is_that_of_the_record() -> None:
    record = fresh()
    record = attached(record.replace(metadata=record.metadata.replace(generation=7)), "node-a")
    assert record.status.observed_generation == 7
    assert condition(record, "Attached").observed_generation == 7


def test_phase_follows_from_the_rest() -> None:
    record = attached(fresh(), "node-a", "node-b")
    assert derive_phase(record.status) is Phase.MIGRATING
    assert derive_phase(expired(record, 300).status) is Phase.OVERDUE


def test_fields_of_another_version_are_kept() -> None:
    body = attached(fresh(), "node-a", "node-b").to_json()
    body["status"]["future"] = {"a": 1}
    body["status"]["migration"]["future"] = "b"
    body["status"]["attachments"][1]["future"] = "c"
    record = left(Record.from_json(body), "node-a", now=at(9))
    after = record.to_json()["status"]
    assert (after["future"], after["history"][0]["future"], after["attachments"][0]["future"]) == ({"a": 1}, "b", "c")


def test_a_record_survives_the_wire() -> None:
    record = expired(attached(fresh(), "node-a", "node-b"), 300)
    again = Record.from_json(record.to_json())
    assert (again.metadata, again.spec, again.status) == (record.metadata, record.spec, record.status)


def test_an_entry_of_the_outbox_says_what_the_metrics_need() -> None:
    entry: OutboxEntry = left(attached(fresh(), "node-a", "node-b"), "node-a", now=at(41)).status.outbox[-1]
    assert (entry.id, entry.source_node, entry.target_node, entry.duration_seconds, entry.reported_by) == (
        "node-b-1-succeeded", "node-a", "node-b", 40, None,
    )  # fmt: skip
