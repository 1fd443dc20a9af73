"""Who waits for a node that cannot leave is told so."""

from __future__ import annotations

import pytest

from rds_records.decisions import Refused
from rds_records.node_health import NodeHealth, name_unready, node_health, note_holders
from rds_records.record import Announcement, Condition, Record, Result
from tests.unit.records.volumes import START, ask, at, attached, fresh, left, no, window

pytestmark = pytest.mark.requirement("R34")

SINCE = "2026-11-21T11:00:00Z"


def node(name: str = "node-a", status: str = "True", reason: str = "KubeletReady") -> NodeHealth:
    ready = {"type": "Ready", "status": status, "reason": reason, "lastTransitionTime": SINCE}
    return node_health(name, {"status": {"conditions": [{"type": "DiskPressure", "status": "False"}, ready]}})


def holders(status: str = "True", reason: str = "KubeletReady") -> dict[str, NodeHealth]:
    return {name: node(name, status, reason) for name in ("node-a", "node-b")}


def ended(result: Result, live: str | None = "node-b") -> Record:
    """Return a record whose migration from node-a to node-b has this result, and both nodes; the VM runs on ``live``."""
    record = attached(fresh(), "node-a", "node-b")
    return record.with_status(migration=window(record).replace(result=result, result_time=at(60), live_node=live))


def third(record: Record) -> Refused:
    return no(ask(record, "node-c", now=at(100)))


def test_a_ready_node_needs_no_word() -> None:
    assert node().ready
    refused = third(ended(Result.SUCCEEDED))
    assert name_unready(ended(Result.SUCCEEDED), refused, holders()) == refused


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_is_not_ready_is_named_with_since_when_and_why(status: str) -> None:
    text = node("node-a", status, "NodeStatusUnknown").describe()
    assert text == f"node node-a is not Ready since {SINCE} (NodeStatusUnknown)"


def test_a_node_that_says_nothing_and_one_that_is_gone_are_named() -> None:
    assert node_health("node-a", {}).describe() == "node node-a is not Ready (it says nothing of itself)"
    assert node_health("node-a", None).describe() == "there is no Node node-a any more"


def test_only_of_the_node_that_should_leave_it_is_said_how_it_is_taken_out_of_service() -> None:
    record = ended(Result.SUCCEEDED)
    down = holders("Unknown", "NodeStatusUnknown")
    message = name_unready(record, third(record), down).message
    assert "node node-a is not Ready" in message
    assert "node node-b is not Ready" in message
    assert "power it off for certain and then `kubectl taint nodes node-a" in message
    assert "taint nodes node-b" not in message
    running = attached(fresh(), "node-a", "node-b")
    assert "taint" not in name_unready(running, third(running), down).message


@pytest.mark.requirement("R11")
@pytest.mark.parametrize("live", ["node-a", None])
def test_a_node_on_which_the_vm_may_run_is_never_to_be_taken_out_of_service(live: str | None) -> None:
    record = ended(Result.SUCCEEDED, live)
    message = name_unready(record, third(record), holders("Unknown", "NodeStatusUnknown")).message
    assert "kubectl taint" not in message
    assert "only once it is certain that the VM does not run there" in message


def test_where_a_node_could_not_be_read_what_the_operator_saw_of_it_counts() -> None:
    seen = Condition(
        type="LeavingNodeReady", status="False", reason="NodeNotReady", message="node-a is down", last_transition_time=START
    )
    record = ended(Result.SUCCEEDED).with_status(conditions=(seen,))
    assert name_unready(record, third(record), {}).message.endswith("; node-a is down")
    assert "node-a is down" not in name_unready(record, third(record), {"node-a": node()}).message


def told(record: Record) -> list[str]:
    return [entry.message for entry in record.status.outbox if entry.kind is Announcement.NODE_NOT_READY]


def nodes_ready(record: Record) -> tuple[str, str] | None:
    found = record.status.condition("NodesReady")
    return (found.status, found.reason) if found else None


@pytest.mark.requirement("R25")
def test_a_holder_that_is_not_ready_shows_on_the_record_and_is_told_once_per_change() -> None:
    record = attached(fresh(), "node-a", "node-b")
    assert not note_holders(record, holders(), now=at(1)).changed
    silent = {**holders(), "node-b": node("node-b", "Unknown", "NodeStatusUnknown")}
    down = note_holders(record, silent, now=at(2)).record
    assert nodes_ready(down) == ("False", "NodeNotReady")
    assert len(told(down)) == 1
    assert "node node-b is not Ready" in told(down)[0]
    assert not note_holders(down, silent, now=at(3)).changed
    gone = note_holders(down, {**holders(), "node-b": node_health("node-b", None)}, now=at(4)).record
    assert nodes_ready(gone) == ("False", "NodeGone")
    assert len(told(gone)) == 2
    back = note_holders(gone, holders(), now=at(5)).record
    assert (nodes_ready(back), len(told(back))) == (("True", "NodesReady"), 2)
    again = note_holders(back, silent, now=at(6)).record
    assert len({entry.id for entry in again.status.outbox if entry.kind is Announcement.NODE_NOT_READY}) == 3


@pytest.mark.requirement("R25")
def test_a_holder_that_cannot_be_read_changes_nothing_and_one_that_left_counts_no_more() -> None:
    record = attached(fresh(), "node-a", "node-b")
    silent = {"node-b": node("node-b", "Unknown", "NodeStatusUnknown")}
    assert not note_holders(record, silent, now=at(2)).changed
    down = note_holders(record, {**holders(), **silent}, now=at(2)).record
    assert nodes_ready(note_holders(left(down, "node-b", now=at(3)), holders(), now=at(4)).record) == ("True", "NodesReady")
