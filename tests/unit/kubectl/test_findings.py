from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_kubectl.findings import Finding, findings
from rds_kubectl.world import ATTACHMENTS, LEASE, NODES, VOLUMES, Trouble, World, volumes_of_driver
from rds_records.conditions import settled
from rds_records.decisions import Code, Reason, Refused
from rds_records.fencing import FenceReason
from rds_records.node_health import node_health
from rds_records.record import Announcement, Phase, Record, Result
from rds_records.transitions import note_refusal
from rds_records.window_warnings import note_leaving_node, warn
from rds_records.windows import expire
from tests.unit.kubectl.cluster_objects import (
    CLAIM,
    NOW,
    VMI,
    attachment,
    ended,
    lease,
    migrating,
    node,
    volume,
    with_condition,
    world,
)
from tests.unit.records.volumes import HANDLE, at, attached, fresh, left
from tests.unit.test_advice import NEVER, forbidden


def found(one: World) -> list[Finding]:
    return findings(one, volumes_of_driver(one))


def kinds(one: World) -> list[str]:
    return [finding.kind for finding in found(one)]


def only(one: World) -> Finding:
    (finding,) = found(one)
    return finding


def timed_out() -> Record:
    record = attached(fresh(migration_timeout_seconds=60), "node-a", "node-b")
    late = expire(record, now=at(100), elapsed=timedelta(seconds=100))
    assert late is not None
    return late.with_status(outbox=())


def warned_of(record: Record) -> Record:
    """Return the record with the warning that is due, reported."""
    warned = warn(record, now=NOW)
    assert warned is not None
    return warned.with_status(outbox=())


def test_nothing_is_wrong_with_a_volume_that_is_attached() -> None:
    assert found(world(attached(fresh(), "node-a"))) == []


def test_nothing_is_wrong_with_a_migration_before_its_deadline() -> None:
    assert found(world(migrating())) == []


def test_a_migration_past_its_deadline_says_by_how_much_and_what_is_safe() -> None:
    record = migrating(result=Result.TIMED_OUT, deadline_time=at(3000), timeout_seconds=3000)
    finding = only(world(settled(record, record.status, NOW)))
    assert finding.kind == "Overdue"
    assert "10m past the deadline" in finding.what
    assert "delete virtualmachineinstancemigration moves" in finding.do


def test_a_migration_of_any_two_nodes_past_its_deadline_names_both() -> None:
    finding = only(world(timed_out()))
    assert finding.kind == "Overdue"
    assert "node-a or node-b" in finding.do


def test_a_deadline_that_nobody_enforces_is_told_apart_from_one_that_passed() -> None:
    assert kinds(world(migrating(deadline_time=at(3000)), lease=None)) == ["NoOperator", "DeadlineNotEnforced"]


def test_a_node_that_should_have_left_is_named_with_the_safe_command() -> None:
    finding = only(world(warned_of(ended())))
    assert finding.kind == "LeavingOverdue"
    assert "node node-a has not left" in finding.what
    assert "delete pod on-node-a" in finding.do


def test_a_leaving_node_that_is_down_is_to_be_powered_off_first() -> None:
    down = node("node-a", ready=False)
    decided = note_leaving_node(ended(), node_health("node-a", down), now=NOW)
    finding = only(world(decided.record, nodes={"node-a": down, "node-b": node("node-b")}))
    assert finding.kind == "LeavingNodeNotReady"
    assert finding.do.index("power it off for certain") < finding.do.index("kubectl taint nodes node-a")


def test_a_run_that_does_not_start_is_told_with_the_way_to_cancel_it() -> None:
    finding = only(world(warned_of(migrating())))
    assert (finding.kind, "asks KubeVirt to cancel" in finding.do) == ("SlowStart", True)


def test_more_holders_than_allowed_are_all_named() -> None:
    record = attached(fresh(), "node-a").with_status(over_attached=True)
    assert "node-a" in only(world(record)).what


def test_of_more_holders_than_allowed_the_vm_is_to_run_on() -> None:
    record = attached(fresh(), "node-a").with_status(over_attached=True, vmi=VMI)
    assert "the VM vms/web is to run on" in only(world(record)).do


def test_an_attach_that_fails_is_told_though_the_node_was_refused_long_ago() -> None:
    no = Refused(Code.FAILED_PRECONDITION, Reason.NO_SLOT, "two nodes hold it")
    record = note_refusal(fresh(), "node-c", no, now=NOW - timedelta(minutes=20))
    assert record is not None
    fails = attachment("node-c", attached=False, attachError={"message": "csi-attacher cannot reach the driver"})
    assert kinds(world(record, attachments=(fails,))) == ["AttachFails"]


def test_what_is_advised_of_a_vm_begins_with_where_it_runs_now_while_no_operator_is_known_to_be_active() -> None:
    look = "kubectl -n vms get vmi web -o jsonpath={.status.nodeName}"
    record = warned_of(ended())
    assert look not in only(world(record)).do
    gone, unread = world(record, lease=None), world(record, lease=None, troubles=(Trouble(LEASE, "forbidden"),))
    for one in (gone, unread):
        finding = found(one)[-1]
        assert (finding.kind, finding.do.index(look) < finding.do.index("delete pod on-node-a")) == ("LeavingOverdue", True)


def test_a_leaving_node_that_is_down_is_told_also_before_the_operator_has_said_so() -> None:
    nodes = {"node-a": node("node-a", ready=False), "node-b": node("node-b")}
    assert kinds(world(ended(), nodes=nodes)) == ["NodeNotReady"]


def test_an_attachment_under_another_persistent_volume_of_the_same_handle_counts() -> None:
    second = attachment("node-a")
    second["spec"]["source"]["persistentVolumeName"] = "pv-2"
    record = attached(fresh(), "node-a")
    assert kinds(world(record, volumes=(volume(), volume(name="pv-2")), attachments=(second,))) == []


def test_an_attachment_is_not_called_missing_while_the_name_of_its_persistent_volume_is_not_known() -> None:
    record = attached(fresh(), "node-a")
    record = record.replace(spec=record.spec.replace(persistent_volume_name=None))
    assert kinds(world(record, volumes=None, attachments=(), troubles=(Trouble(VOLUMES, "forbidden"),))) == []


def test_a_refused_node_is_told_while_it_asks_and_not_for_ever() -> None:
    no = Refused(Code.FAILED_PRECONDITION, Reason.NO_SLOT, "two nodes hold it")
    record = note_refusal(attached(fresh(), "node-a"), "node-c", no, now=NOW)
    assert record is not None
    assert "two nodes hold it" in only(world(record)).what
    assert found(world(record, now=NOW + timedelta(minutes=11), lease=lease(renewed=-660))) == []


@pytest.mark.parametrize("kind", ["EvidenceReadable", "VerdictReadable", "Available", "Consistent", "Fenced"])
def test_a_condition_that_is_false_is_told_in_its_own_words(kind: str) -> None:
    record = with_condition(attached(fresh(), "node-a"), kind, "False", "Odd", "it is odd")
    finding = only(world(record))
    assert (finding.kind, finding.what) == (f"Not{kind}", "Odd: it is odd")
    assert finding.do


def test_a_fence_that_nobody_asked_for_is_nothing_wrong() -> None:
    record = with_condition(attached(fresh(), "node-a"), "Fenced", "False", FenceReason.NOT_ENABLED)
    assert found(world(record)) == []


def test_a_fence_that_is_being_changed_counts_only_once_it_takes_long() -> None:
    record = with_condition(attached(fresh(), "node-a"), "Fenced", "False", FenceReason.CHANGING)
    changed = record.status.conditions[-1].last_transition_time
    assert found(world(record, now=changed + timedelta(seconds=59))) == []
    late = changed + timedelta(seconds=61)
    assert [one.kind for one in found(world(record, now=late, lease=lease(renewed=-61)))][-1:] == ["NotFenced"]


@pytest.mark.parametrize("kind", ["EvidenceReadable", "VerdictReadable"])
def test_rights_that_are_missing_are_to_be_given_back(kind: str) -> None:
    record = with_condition(attached(fresh(), "node-a"), kind, "False", "Forbidden", "cannot list pods")
    assert "apply again what it was installed with" in only(world(record)).do


def test_a_foreign_pod_means_corruption() -> None:
    record = with_condition(migrating(), Announcement.FOREIGN_POD, message="pod debug uses the volume too")
    finding = only(world(record))
    assert "pod debug uses the volume too: two writers on one disk corrupt it" in finding.what
    assert finding.do.endswith("leave the VM vms/web alone")


def test_a_window_whose_verdict_nobody_gives_is_told_after_the_time_that_it_may_take() -> None:
    record = left(migrating(), "node-a", now=at(60))
    record = record.with_status(outbox=())
    assert kinds(world(record)) == ["NoResult"]
    assert kinds(world(record, now=at(120), lease=None)) == ["NoOperator"]


def test_reports_that_wait_for_long_are_told() -> None:
    assert kinds(world(attached(fresh(), "node-a", "node-b"), lease=None)) == ["NoOperator", "DeadlineNotEnforced", "NotReported"]


def test_a_record_that_was_deleted_by_hand_goes_on_working() -> None:
    record = attached(fresh(), "node-a")
    record = record.replace(metadata=record.metadata.replace(deletion_timestamp=NOW))
    assert kinds(world(record)) == ["RecordDeleted"]


@pytest.mark.parametrize("nodes", [{}, {"node-a": node("node-a", ready=False)}])
def test_a_holder_that_is_down_or_gone_is_told_with_the_look_at_its_proof(nodes: dict[str, Any]) -> None:
    finding = only(world(attached(fresh(), "node-a"), nodes=nodes))
    assert finding.kind in {"NodeGone", "NodeNotReady"}
    assert f"kubectl rds release {HANDLE} node-a --dry-run" in finding.do


def test_a_detach_that_hangs_is_told_with_why() -> None:
    hangs = attachment("node-a", deleted=600, detachError={"message": "the box does not answer"})
    assert "the box does not answer" in only(world(attached(fresh(), "node-a"), attachments=(hangs,))).what


def test_a_detach_that_has_just_begun_is_none() -> None:
    begun = attachment("node-a", deleted=10)
    assert found(world(attached(fresh(), "node-a"), attachments=(begun,))) == []


def test_an_attach_that_fails_before_it_reaches_the_driver_is_told() -> None:
    fails = attachment("node-a", attached=False, attachError={"message": "node has no NodeID annotation"})
    assert kinds(world(fresh(), attachments=(fails,))) == ["AttachFails"]


def test_a_holder_that_the_record_does_not_know_is_told() -> None:
    assert kinds(world(fresh(), attachments=(attachment("node-a"),))) == ["HolderNotRecorded"]


def test_a_record_that_says_nothing_yet_contradicts_nobody() -> None:
    record = fresh()
    record = record.with_status(initialized=None)
    assert kinds(world(record, attachments=(attachment("node-a"),))) == []


def test_a_holder_whose_attachment_was_removed_by_hand_is_told_and_no_pod_is_advised() -> None:
    finding = only(world(attached(fresh(), "node-a"), attachments=()))
    assert finding.kind == "HolderWithoutAttachment"
    assert "leave it" in finding.do


@pytest.mark.parametrize(("what", "field"), [(ATTACHMENTS, "attachments"), (NODES, "nodes"), (LEASE, "lease")])
def test_what_could_not_be_read_is_not_taken_for_absent(what: str, field: str) -> None:
    one = world(attached(fresh(), "node-a"), **{field: None}, troubles=(Trouble(what, "forbidden"),))
    assert found(one) == []


def test_a_lease_that_nobody_renews_means_that_no_operator_is_active() -> None:
    assert kinds(world(lease=lease(renewed=20))) == ["NoOperator"]
    assert kinds(world(lease=lease(holder=""))) == ["NoOperator"]
    assert kinds(world(lease=lease(renewed=14))) == []


def test_volumes_of_other_drivers_are_none_of_ours() -> None:
    assert volumes_of_driver(world(volumes=(volume("pvc-other", driver="ebs.csi.aws.com"),))) == []


def test_a_volume_without_a_record_is_listed_by_its_claim() -> None:
    (one,) = volumes_of_driver(world(volumes=(volume("pvc-1", name="static"),)))
    assert (one.handle, one.title, one.record) == ("pvc-1", "vms/root", None)


def test_a_volume_whose_persistent_volume_is_gone_is_listed_by_what_its_record_knew() -> None:
    (one,) = volumes_of_driver(world(fresh().with_status(claim_ref=CLAIM), volumes=()))
    assert (one.title, one.volume) == ("vms/root", None)


def test_a_finding_is_one_line_whatever_was_written_into_it() -> None:
    record = with_condition(fresh(), "Available", "False", "Odd", "two\nlines\x1b[31m")
    line = only(world(record)).line()
    assert line.isprintable()


states = st.builds(
    migrating,
    result=st.sampled_from([None, *Result]),
    kubevirt_result=st.sampled_from([None, *Result]),
    live_node=st.sampled_from(["node-a", "node-b", "node-c", None]),
    vmi=st.sampled_from([VMI, None]),
    migration_uid=st.sampled_from(["run-1", None]),
    deadline_time=st.sampled_from([None, at(10), at(10_000)]),
    result_time=st.sampled_from([None, at(60)]),
)
warnings = st.sets(st.sampled_from([kind.value for kind in Announcement]))
false = st.sets(st.sampled_from(["LeavingNodeReady", "EvidenceReadable", "VerdictReadable", "Available", "Consistent", "Fenced"]))


@pytest.mark.requirement("R11")
@given(states, warnings, false, st.sampled_from(list(Phase)), st.sets(st.sampled_from(["node-a", "node-b"])))
def test_no_advice_ever_ends_the_side_on_which_the_vm_runs(
    record: Record, true: set[str], untrue: set[str], phase: Phase, ready: set[str]
) -> None:
    record = record.with_status(phase=phase)
    for kind in sorted(true):
        record = with_condition(record, kind)
    for kind in sorted(untrue):
        record = with_condition(record, kind, "False")
    window = record.status.migration
    assert window is not None
    for finding in found(world(record, nodes={name: node(name) for name in ready})):
        assert forbidden(finding.do) == []
        assert not [name for name, pattern in NEVER.items() if name == "force" and pattern.search(finding.do)]
        assert f"delete pod on-{window.live_node}" not in finding.do
        assert f"taint nodes {window.live_node}" not in finding.do
        if "delete pod" in finding.do:
            assert window.live_node in {"node-a", "node-b"}
        if "taint nodes" in finding.do:
            assert window.live_node is not None
