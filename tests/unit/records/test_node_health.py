"""Who waits for a node that cannot leave is told so."""

from __future__ import annotations

import pytest

from rds_records.decisions import Refused
from rds_records.node_health import NodeHealth, name_unready, node_health
from rds_records.record import Condition, Record, Result
from tests.unit.records.volumes import START, ask, at, attached, fresh, no, window

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
