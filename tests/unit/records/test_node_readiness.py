"""Who waits for a node that cannot leave is told so."""

from __future__ import annotations

from typing import Any

import pytest

from rds_records.decisions import Refused
from rds_records.node_readiness import name_unready, unready
from rds_records.record import Condition, Record, Result
from tests.unit.records.volumes import START, ask, at, attached, fresh, no, window

pytestmark = pytest.mark.requirement("R34")

SINCE = "2026-11-21T11:00:00Z"


def node(status: str = "True", reason: str = "KubeletReady") -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, "reason": reason, "lastTransitionTime": SINCE}
    return {"status": {"conditions": [{"type": "DiskPressure", "status": "False"}, ready]}}


def ended(result: Result) -> Record:
    """Return a record whose migration from node-a to node-b has this result, and both nodes."""
    record = attached(fresh(), "node-a", "node-b")
    return record.with_status(migration=window(record).replace(result=result, result_time=at(60)))


def third(record: Record) -> Refused:
    return no(ask(record, "node-c", now=at(100)))


def test_a_ready_node_needs_no_word() -> None:
    assert unready("node-a", node()) is None
    refused = third(ended(Result.SUCCEEDED))
    assert name_unready(ended(Result.SUCCEEDED), refused, {"node-a": node(), "node-b": node()}) == refused


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_is_not_ready_is_named_with_since_when_and_why(status: str) -> None:
    text = unready("node-a", node(status, "NodeStatusUnknown"))
    assert text == f"node node-a is not Ready since {SINCE} (NodeStatusUnknown)"


def test_a_node_that_says_nothing_and_one_that_is_gone_are_named() -> None:
    assert unready("node-a", {}) == "node node-a is not Ready (it says nothing of itself)"
    assert unready("node-a", None) == "there is no Node node-a any more"


def test_only_of_the_node_that_should_leave_it_is_said_how_it_is_taken_out_of_service() -> None:
    record = ended(Result.SUCCEEDED)
    down = node("Unknown", "NodeStatusUnknown")
    message = name_unready(record, third(record), {"node-a": down, "node-b": down}).message
    assert "node node-a is not Ready" in message
    assert "node node-b is not Ready" in message
    assert "power it off for certain and then `kubectl taint nodes node-a" in message
    assert "taint nodes node-b" not in message
    running = attached(fresh(), "node-a", "node-b")
    assert "taint" not in name_unready(running, third(running), {"node-a": down, "node-b": down}).message


def test_where_a_node_could_not_be_read_what_the_operator_saw_of_it_counts() -> None:
    seen = Condition(
        type="LeavingNodeReady", status="False", reason="NodeNotReady", message="node-a is down", last_transition_time=START
    )
    record = ended(Result.SUCCEEDED).with_status(conditions=(seen,))
    assert name_unready(record, third(record), {}).message.endswith("; node-a is down")
    assert "node-a is down" not in name_unready(record, third(record), {"node-a": node()}).message
