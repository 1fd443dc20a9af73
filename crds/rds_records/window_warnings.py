"""Warnings about an open window, told once per window each: none of them is a result. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from rds_records import messages
from rds_records.conditions import LEAVING_NODE_READY, WARNINGS, settled, with_condition
from rds_records.decisions import Decided
from rds_records.node_health import NodeHealth
from rds_records.outbox import announce, outbox_entry
from rds_records.record import (
    Announcement,
    Condition,
    Record,
    Result,
    Window,
)

SLOW_START: Final = timedelta(minutes=20)
"""A migration that did not start to move its VM for that long deserves a warning; KubeVirt has no limit for it."""

LEAVING_OVERDUE: Final = timedelta(minutes=10)
"""How long after the result both nodes may stay attached without a warning."""

LONG_RUN: Final = timedelta(hours=2)
"""A run without a limit deserves a warning after that."""


def warn(record: Record, *, now: datetime, detail: str = "") -> Record | None:
    """Return the record with a warning about its open window that is due, told once per window; None where nothing changes.

    A run that does not start, one without a limit that goes on, a node that should have left: none of them is a result. ``detail``
    says where it hangs, or what is known of the node; where it changes later, only the condition does.
    """
    window = record.status.migration
    if window is None:
        return None
    if window.result is None and window.migration_uid:
        since, name, after = window.start_time, "slow_start_time", SLOW_START
        if window.run_start_time:
            since, name, after = window.run_start_time, "long_run_time", LONG_RUN
            if window.timeout_seconds is not None:
                return None
    elif window.result in {Result.SUCCEEDED, Result.FAILED}:
        since, name, after = window.result_time or now, "leaving_overdue_time", LEAVING_OVERDUE
    else:
        return None
    elapsed = now - since
    if elapsed < after:
        return None
    kind = WARNINGS[name]
    text = {
        Announcement.SLOW_START: lambda: messages.slow_start(record.handle, window, elapsed, detail),
        Announcement.LONG_RUN: lambda: messages.long_run(record.handle, window, elapsed),
        Announcement.LEAVING_OVERDUE: lambda: messages.leaving_overdue(record.handle, window, elapsed, detail),
    }[kind]()
    return _warned(record, window, name, text, detail, now)


def _warned(record: Record, window: Window, name: str, text: str, detail: str, now: datetime) -> Record | None:
    status, kind = record.status, WARNINGS[name]
    before = status.condition(kind)
    holds = before is not None and before.status == "True"
    message = f"{messages.warning(window, kind)}; {detail}" if detail else messages.warning(window, kind)
    if getattr(window, name) is None:
        status = announce(status.replace(migration=window.replace(**{name: now})), outbox_entry(window, kind, text, now))
    elif holds and before and (not detail or before.message == message):
        return None
    since = before.last_transition_time if holds and before else now
    condition = Condition(type=kind.value, status="True", reason=kind.value, message=message, last_transition_time=since)
    others = tuple(other for other in status.conditions if other.type != kind.value)
    return settled(record, status.replace(conditions=(*others, condition)), now)


def note_leaving_node(record: Record, node: NodeHealth, *, now: datetime) -> Decided:
    """Say of the node that should leave an ended migration whether it can: a condition, and one Event where it cannot.

    A node that is not ready keeps its slot for minutes or until somebody acts, and the next migration waits for it.
    """
    window, status = record.status.migration, record.status
    if window is None or messages.leaving_node(window) != node.name:
        return Decided(record, changed=False)
    before = status.condition(LEAVING_NODE_READY)
    if node.ready:
        if before is None or before.status == "True":
            return Decided(record, changed=False)
        status = with_condition(status, LEAVING_NODE_READY, True, "NodeReady", f"node {node.name} is ready", now)
        return Decided(settled(record, status, now), changed=True)
    text = f"{node.describe()}; it keeps its slot until it has left, so no further node is admitted"
    status = with_condition(status, LEAVING_NODE_READY, False, node.reason, text, now)
    if window.leaving_blocked_time is None:
        told = messages.leaving_blocked(record.handle, window, node.describe())
        entry = outbox_entry(window, Announcement.LEAVING_BLOCKED, told, now)
        status = announce(status.replace(migration=window.replace(leaving_blocked_time=now)), entry)
    if status is record.status:
        return Decided(record, changed=False)
    return Decided(settled(record, status, now), changed=True)


def note_foreign_pods(record: Record, pods: Sequence[str], *, now: datetime) -> Decided:
    """Say which pods use a volume on its two nodes and are no part of the VM; one Event per window."""
    window, status = record.status.migration, record.status
    kind = Announcement.FOREIGN_POD
    before = status.condition(kind)
    if window is None or not (pods or (before and before.status == "True")):
        return Decided(record, changed=False)
    text = f"pod {' and '.join(pods)} uses the volume too" if pods else "nothing of the kind now"
    status = with_condition(status, kind, bool(pods), kind if pods else f"Not{kind}", text, now)
    if status is record.status:
        return Decided(record, changed=False)
    seen = window.foreign_pod_time
    status = status.replace(migration=window.replace(foreign_pod_time=now if pods else None))
    if pods and not seen:
        status = announce(status, outbox_entry(window, kind, messages.foreign_pods(record.handle, window, pods), now))
    return Decided(settled(record, status, now), changed=True)
