"""Whom the box may accept, what the record says of it, and which detaches are forced."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_records.decisions import Decided, Refused
from rds_records.fencing import (
    FENCED,
    NOBODY,
    FenceReason,
    admitted,
    begin_leaving,
    confirmed,
    failed,
    host_nqns,
    is_confirmed,
    list_may_exist,
    noted,
)
from rds_records.forced_detach import OUT_OF_SERVICE, force_of
from rds_records.names import DRIVER_NAME, host_nqn_for
from rds_records.record import MAX_FORCED, Announcement, Force, ForceReason, Record
from rds_records.transitions import begin_detach, detach, detach_all
from tests.unit.records.volumes import HANDLE, at, attached, fresh, left, no, yes

FORCE = Force(reason=ForceReason.NODE_NOT_READY, message="node node-a is not Ready")


def leaving(record: Record, node: str, force: Force | None = None) -> Record:
    return yes(begin_detach(record, node, attachment_id=id_of(record, node), wanted=False, now=at(10), force=force))


def ended(record: Record, node: str, force: Force | None = None, *, fenced: bool = True) -> Record:
    return yes(detach(record, node, attachment_id=id_of(record, node), wanted=False, now=at(20), force=force, fenced=fenced))


def id_of(record: Record, node: str) -> str:
    held = record.status.attachment_of(node)
    assert held is not None
    return held.id


def seen(record: Record) -> Record:
    return confirmed(record, enabled=True, disk=True, now=at(5))


def reason(record: Record) -> str:
    condition = record.status.condition(FENCED)
    assert condition is not None
    return condition.reason


def test_an_empty_list_would_let_everybody_in_so_it_is_never_empty() -> None:
    assert host_nqns(()) == {NOBODY}
    assert host_nqns({"node-a"}) == {host_nqn_for("node-a")}


def test_a_node_that_is_leaving_is_not_admitted_and_keeps_its_place() -> None:
    record = leaving(attached(fresh(), "node-a", "node-b"), "node-a")
    assert admitted(record) == {"node-b"}
    assert record.status.nodes == "node-a,node-b"
    assert record.status.migration is not None


def test_a_confirmation_counts_for_the_nodes_that_it_names_alone() -> None:
    record = seen(attached(fresh(), "node-a"))
    assert is_confirmed(record)
    assert not is_confirmed(attached(record, "node-b"))
    assert not is_confirmed(leaving(record, "node-a"))
    assert not is_confirmed(left(record, "node-a", now=at(9)))


def test_nothing_is_confirmed_while_a_node_is_leaving() -> None:
    record = leaving(seen(attached(fresh(), "node-a", "node-b")), "node-a")
    assert reason(record) == FenceReason.CHANGING
    assert seen(record) is record


def test_the_end_of_a_leaving_changes_nothing_for_the_box() -> None:
    record = leaving(attached(fresh(), "node-a", "node-b"), "node-a")
    assert admitted(ended(record, "node-a")) == admitted(record)


def test_without_the_fence_the_condition_says_so_and_no_list_is_looked_for() -> None:
    before = fresh()
    after = noted(before, attached(before, "node-a"), enabled=False, now=at(1))
    assert reason(after) == FenceReason.NOT_ENABLED
    assert not list_may_exist(after)


def test_a_list_from_before_the_fence_was_switched_off_is_remembered_until_it_is_cleared() -> None:
    before = seen(attached(fresh(), "node-a"))
    after = noted(before, attached(before, "node-b"), enabled=False, now=at(9))
    assert reason(after) == FenceReason.SWITCHED_OFF
    assert list_may_exist(after)
    assert not list_may_exist(confirmed(after, enabled=False, disk=True, now=at(10)))


def test_the_same_trouble_is_written_once() -> None:
    record = seen(attached(fresh(), "node-a"))
    first = failed(record, FenceReason.BOX_REFUSED, "no", now=at(3))
    assert first.changed
    assert not failed(first.record, FenceReason.BOX_REFUSED, "no", now=at(4)).changed


def test_a_force_that_was_seen_once_stays() -> None:
    record = leaving(leaving(attached(fresh(), "node-a"), "node-a", FORCE), "node-a", None)
    assert [mark.reason for mark in ended(record, "node-a").status.forced_detaches] == [ForceReason.NODE_NOT_READY]


def test_a_late_detach_marks_nothing() -> None:
    record = attached(fresh(), "node-a")
    for identity, wanted in (("another", False), (id_of(record, "node-a"), True)):
        no(begin_detach(record, "node-a", attachment_id=identity, wanted=wanted, now=at(9)))


@pytest.mark.parametrize("fenced", [True, False])
def test_a_forced_detach_is_marked_on_the_record_in_the_history_and_announced_once(fenced: bool) -> None:
    record = ended(attached(fresh(), "node-a", "node-b"), "node-a", FORCE, fenced=fenced)
    (mark,) = record.status.forced_detaches
    assert (mark.node_name, mark.fenced) == ("node-a", fenced)
    assert record.status.history[-1].forced is True
    (entry,) = [one for one in record.status.outbox if one.kind is Announcement.FORCED_DETACH]
    assert ("power node node-a off" in entry.message) is not fenced


def test_an_orderly_detach_is_no_forced_one() -> None:
    record = left(attached(fresh(), "node-a", "node-b"), "node-a", now=at(20))
    assert record.status.forced_detaches == ()
    assert record.status.history[-1].forced is None


def test_of_all_nodes_at_once_only_the_forced_ones_are_marked() -> None:
    record = attached(fresh(), "node-a", "node-b")
    ids = [held.id for held in record.status.attachments]
    record = yes(detach_all(record, attachment_ids=ids, now=at(9), force={"node-b": FORCE}))
    assert [mark.node_name for mark in record.status.forced_detaches] == ["node-b"]


def test_only_the_last_forced_detaches_are_kept() -> None:
    record = fresh()
    for turn in range(MAX_FORCED + 3):
        record = ended(attached(record, f"node-{turn}", now=at(turn)), f"node-{turn}", FORCE)
    assert [mark.node_name for mark in record.status.forced_detaches] == [f"node-{turn}" for turn in range(3, MAX_FORCED + 3)]


@given(st.lists(st.sampled_from(["attach a", "attach b", "leave a", "leave b", "end a", "end b", "see", "trouble"]), max_size=25))
def test_whoever_is_confirmed_is_who_is_admitted_and_attached(steps: list[str]) -> None:
    record, box = fresh(), host_nqns(())
    for number, step in enumerate(steps):
        verb, _, letter = step.partition(" ")
        node = f"node-{letter}"
        held = record.status.attachment_of(node)
        match verb:
            case "attach" if held is None:
                before = record
                record = noted(before, attached(before, node, now=at(number)), enabled=True, now=at(number))
            case "leave" if held:
                record = leaving(record, node)
            case "end" if held and held.leaving:
                record = ended(record, node)
            case "see":
                box = host_nqns(admitted(record))
                record = confirmed(record, enabled=True, disk=True, now=at(number))
            case "trouble":
                record = failed(record, FenceReason.BOX_UNREACHABLE, "away", now=at(number)).record
        if is_confirmed(record):
            assert box == host_nqns({one.node_name for one in record.status.attachments})


def node(ready: str = "True", *, taints: tuple[str, ...] = (), in_use: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "spec": {"taints": [{"key": key, "effect": "NoExecute"} for key in taints]},
        "status": {"conditions": [{"type": "Ready", "status": ready}], "volumesInUse": list(in_use)},
    }


OURS = f"kubernetes.io/csi/{DRIVER_NAME}^{HANDLE}"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (node(), None),
        (node(in_use=(f"{OURS}-other",)), None),
        (node(taints=("node.kubernetes.io/unschedulable",)), None),
        (node("False"), ForceReason.NODE_NOT_READY),
        (node("Unknown"), ForceReason.NODE_NOT_READY),
        ({}, ForceReason.NODE_NOT_READY),
        (None, ForceReason.NODE_GONE),
        (node(in_use=(OURS,)), ForceReason.VOLUME_IN_USE),
        (node(taints=(OUT_OF_SERVICE,)), ForceReason.OUT_OF_SERVICE),
        (node("Unknown", taints=(OUT_OF_SERVICE,), in_use=(OURS,)), ForceReason.OUT_OF_SERVICE),
    ],
)
def test_a_detach_is_forced_unless_the_node_proves_that_it_let_go(raw: dict[str, Any] | None, reason: ForceReason | None) -> None:
    force = force_of("node-a", raw, HANDLE, DRIVER_NAME)
    assert (force and force.reason) == reason


def test_a_mark_is_made_of_what_is_attached_alone() -> None:
    record = attached(fresh(), "node-a")
    decided = begin_leaving(record, ["nobody"], {}, now=at(3))
    assert isinstance(decided, Decided)
    assert not decided.changed
    assert not isinstance(begin_detach(record, "node-b", attachment_id=None, wanted=False, now=at(3)), Refused)
