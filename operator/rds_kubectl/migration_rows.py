"""Migrations as rows: open windows and those that ended lately, from the records. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from rds_process.tables import age
from rds_records.record import ClosedWindow, Record, Result, Window, format_time

HEADINGS: Final = ("CLAIM", "VM", "FROM", "TO", "STATE", "BEGAN", "TOOK", "DEADLINE", "LIVE", "WHY")
OPEN: Final = "Running"
OVERDUE: Final = "Overdue"
LEAVING: Final = "Leaving"
PENDING: Final = "Pending"


@dataclass(frozen=True, slots=True)
class Row:
    """One window of one volume."""

    volume: str
    claim: str
    window: Window

    @property
    def open(self) -> bool:
        """Whether two nodes hold the volume because of it."""
        return not isinstance(self.window, ClosedWindow)

    @property
    def state(self) -> str:
        """Return one word.

        Of an open window: Running, Overdue (past its deadline, or a node should have left), or Leaving (the result is known). Of a
        closed one: its result, or Pending while KubeVirt has yet to tell it.
        """
        window = self.window
        if not self.open:
            return window.result or PENDING
        if window.result is None:
            return OPEN
        return OVERDUE if window.result is Result.TIMED_OUT or window.leaving_overdue_time else LEAVING

    @property
    def ended(self) -> datetime | None:
        """When a node left; None while two hold it."""
        return self.window.end_time if isinstance(self.window, ClosedWindow) else None

    @property
    def why(self) -> str:
        """On what ground there is that result, and why it failed, in KubeVirt's words."""
        window = self.window
        said = f"{window.result}, " if self.open and window.result else ""
        later = f"; KubeVirt: {window.kubevirt_result}" if window.kubevirt_result else ""
        failed = f": {window.failure_reason}" if window.failure_reason else ""
        return f"{said}{window.reason or ''}{failed}{later}"

    def cells(self, now: datetime) -> Sequence[str]:
        """Return the row for people."""
        window = self.window
        return (
            self.claim or self.volume,
            window.vmi.name if window.vmi else "",
            window.source_node,
            window.target_node,
            self.state,
            f"{age(now - window.start_time)} ago",
            age((self.ended or now) - window.start_time),
            self._deadline(now),
            window.live_node or "",
            self.why,
        )

    def _deadline(self, now: datetime) -> str:
        deadline = self.window.deadline_time
        if deadline is None or not self.open or self.window.result in {Result.SUCCEEDED, Result.FAILED}:
            return ""
        return f"in {age(deadline - now)}" if deadline > now else f"{age(now - deadline)} ago"

    def to_json(self) -> dict[str, Any]:
        """Return the window as the record has it, with volume, claim and state beside it."""
        return {"volume": self.volume, "claim": self.claim or None, "open": self.open, "state": self.state, **self.window.to_json()}


def rows_of(record: Record) -> list[Row]:
    """Return the windows of a record, the open one last."""
    claim = record.status.claim_ref
    name = f"{claim.namespace}/{claim.name}" if claim else ""
    windows: list[Window] = [*record.status.history, *([record.status.migration] if record.status.migration else [])]
    return [Row(record.handle, name, window) for window in windows]


def recent(records: Iterable[Record], *, now: datetime, within: timedelta) -> list[Row]:
    """Return all open windows, and the closed ones that ended within that time; the newest first, the open ones before them."""
    rows = [row for record in records for row in rows_of(record)]
    shown = [row for row in rows if row.ended is None or now - row.ended <= within]
    return sorted(shown, key=lambda row: (not row.open, -(row.ended or row.window.start_time).timestamp(), row.volume))


def changes(before: Record | None, after: Record) -> list[Row]:
    """Return the rows that are another than before, in their order: what a watch prints."""
    known = {row.window.id: row for row in rows_of(before)} if before else {}
    return [row for row in rows_of(after) if row.window.id not in known or _told(known[row.window.id]) != _told(row)]


def _told(row: Row) -> tuple[object, ...]:
    window = row.window
    deadline = format_time(window.deadline_time) if window.deadline_time else ""
    return row.state, row.why, deadline, window.live_node, window.run_start_time
