"""The outbox of a record: what was decided and is to be told. It is bounded, and what it has no room for becomes totals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rds_records.record import (
    MAX_OUTBOX,
    Announcement,
    Counts,
    OutboxEntry,
    Status,
    Window,
)

MAX_MESSAGE: Final = 2048


def outbox_entry(window: Window, kind: Announcement, text: str, now: datetime) -> OutboxEntry:
    """Return the announcement of something that happened to a window; its id follows from both, so it is told once."""
    return OutboxEntry(
        id=f"{window.id}-{kind.lower()}",
        kind=kind,
        time=now,
        source_node=window.source_node,
        target_node=window.target_node,
        message=text,
        vmi=window.vmi,
    )


def announce(status: Status, entry: OutboxEntry) -> Status:
    """Append to the outbox; where it is full, entries that nobody claimed collapse into totals, an RPC never fails for it."""
    entry = entry.replace(message=entry.message[:MAX_MESSAGE])
    outbox = status.outbox
    if len(outbox) >= MAX_OUTBOX:
        claimed = tuple(old for old in outbox if old.reported_by)
        open_entries = tuple(old for old in outbox if not old.reported_by)
        outbox = (*claimed[-(MAX_OUTBOX - 2) :], _collapse(open_entries, entry)) if open_entries else claimed[1:]
    return status.replace(outbox=(*outbox, entry))


def _collapse(entries: Sequence[OutboxEntry], cause: OutboxEntry) -> OutboxEntry:
    totals = {kind: sum(old.kind is kind for old in entries) for kind in Announcement}
    before = [old.counts for old in entries if old.counts]
    counts = Counts(
        started=totals[Announcement.STARTED] + sum(old.started for old in before),
        succeeded=totals[Announcement.SUCCEEDED] + sum(old.succeeded for old in before),
        failed=totals[Announcement.FAILED] + sum(old.failed for old in before),
        timed_out=totals[Announcement.TIMED_OUT] + sum(old.timed_out for old in before),
        forced_detaches=totals[Announcement.FORCED_DETACH] + sum(old.forced_detaches for old in before),
        stale_cleared=totals[Announcement.STALE_CLEARED] + sum(old.stale_cleared for old in before),
    )
    return OutboxEntry(id=f"{cause.id}-totals", kind=Announcement.COLLAPSED, time=cause.time, counts=counts)
