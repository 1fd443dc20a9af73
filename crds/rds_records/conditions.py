"""What follows from the rest of a status: phase, nodes, conditions. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rds_records import messages
from rds_records.record import (
    Announcement,
    Condition,
    Phase,
    Record,
    Result,
    Status,
    Window,
)

WARNINGS: Final = {
    "slow_start_time": Announcement.SLOW_START,
    "leaving_overdue_time": Announcement.LEAVING_OVERDUE,
    "long_run_time": Announcement.LONG_RUN,
    "foreign_pod_time": Announcement.FOREIGN_POD,
}
"""Which field of a window says that a warning was given; the kind is the condition's type too."""

BEFORE_THE_RESULT: Final = frozenset({Announcement.SLOW_START, Announcement.LONG_RUN})
"""Warnings about a run that has no result yet; the others may hold until a node leaves."""

LEAVING_NODE_READY: Final = "LeavingNodeReady"
NODES_READY: Final = "NodesReady"
STALE_ATTACHMENT: Final = "StaleAttachment"
VERDICT_READABLE: Final = "VerdictReadable"


def with_condition(status: Status, kind: str, holds: bool, reason: str, message: str, now: datetime) -> Status:
    """Return the status with this condition; the same status where it stands there already."""
    before = status.condition(kind)
    word = "True" if holds else "False"
    if before and (before.status, before.reason, before.message) == (word, reason, message):
        return status
    since = before.last_transition_time if before and before.status == word else now
    new = Condition(type=kind, status=word, reason=reason, message=message, last_transition_time=since)
    return status.replace(conditions=(*(old for old in status.conditions if old.type != kind), new))


def derive_phase(status: Status) -> Phase:
    """Return the one word for people."""
    window = status.migration
    if window:
        overdue = window.result is Result.TIMED_OUT or window.leaving_overdue_time
        return Phase.OVERDUE if overdue else Phase.MIGRATING
    return Phase.ATTACHED if status.attachments else Phase.DETACHED


def settled(record: Record, status: Status, now: datetime) -> Record:
    """Return the record with this status and everything that follows from it: phase, nodes, conditions."""
    phase = derive_phase(status)
    nodes = ",".join(held.node_name for held in status.attachments)
    window = status.migration
    generation = record.metadata.generation
    wanted = [
        _condition("Attached", bool(nodes), nodes and f"attached to {nodes.replace(',', ' and ')}", "no node is attached"),
        _condition(
            "Migrating",
            window is not None,
            _migrating(window) if window else None,
            "no two nodes are attached",
        ),
        _condition(
            "Overdue",
            phase is Phase.OVERDUE,
            _overdue(window) if window else None,
            "no migration is past its deadline",
        ),
        *_warning_conditions(status),
    ]
    kept = [condition for condition in status.conditions if condition.type not in {new.type for new in wanted}]
    for new in wanted:
        old = status.condition(new.type)
        since = old.last_transition_time if old and old.status == new.status else now
        kept.append(new.replace(last_transition_time=since, observed_generation=generation))
    kept.sort(key=lambda condition: condition.type)
    return record.replace(
        status=status.replace(
            phase=phase,
            nodes=nodes,
            conditions=tuple(kept),
            observed_generation=generation or status.observed_generation,
        )
    )


def _migrating(window: Window) -> str:
    text = f"from {window.source_node} to {window.target_node} since {messages.clock(window.start_time)}"
    leaving = messages.leaving_node(window)
    return f"{text}; {window.result}, node {leaving} has not left yet" if leaving else text


def _overdue(window: Window) -> str:
    if window.result is not Result.TIMED_OUT:
        return messages.warning(window, Announcement.LEAVING_OVERDUE)
    text = f"{window.source_node} and {window.target_node} are both attached past the deadline"
    return f"{text}; {messages.way_out(window)}" if window.migration_uid else text


def _warning_conditions(status: Status) -> list[Condition]:
    """Return the conditions of warnings: those that hold, and those that held once. Most records never have any."""
    window = status.migration
    conditions = []
    for name, kind in WARNINGS.items():
        given = window is not None and getattr(window, name) is not None
        over = window is not None and window.result is not None and kind in BEFORE_THE_RESULT
        over = over or (kind is Announcement.SLOW_START and window is not None and window.run_start_time is not None)
        before = status.condition(kind)
        if given and not over and window:
            text = before.message if before and before.status == "True" else messages.warning(window, kind)
            conditions.append(_condition(kind.value, True, text, ""))
        elif before:
            conditions.append(_condition(kind.value, False, None, "nothing of the kind now"))
    blocked = status.condition(LEAVING_NODE_READY)
    if blocked and blocked.status == "False" and not (window and messages.leaving_node(window)):
        conditions.append(blocked.replace(status="True", reason="NoNodeLeaves", message="no node has to leave"))
    return conditions


def _condition(kind: str, holds: bool, true_message: str | None, false_message: str) -> Condition:
    return Condition(
        type=kind,
        status="True" if holds else "False",
        reason=kind if holds else f"Not{kind}",
        message=(true_message if holds else false_message) or "",
        last_transition_time=_EPOCH,
    )


_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
