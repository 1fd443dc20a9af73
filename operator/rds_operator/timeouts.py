"""How long a migration window is open for certain, and what happens at its deadline.

Several clocks tell the time: the one that wrote ``startTime``, the API server's, this machine's. When this operator first sees a
window it believes the one that says that the least time has passed; from then on it adds its own monotonic time. So clocks that
disagree, or a clock that jumps, can make a deadline late, and never early.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from rds_records.clock import ServerClock
from rds_records.decisions import Decided
from rds_records.record import Record, Window
from rds_records.store import RecordStore
from rds_records.windows import expire, time_limit, timeout_of

CHECK_SECONDS: Final = 1.0
"""How often a window is looked at; in the last second before its deadline the check waits for it exactly."""

PARALLEL_DEADLINES: Final = 32
"""Deadlines that are written at once, where many pass together; with more, connections cost more than they bring."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """How long a window was open for certain at a moment of this process's monotonic clock (seconds)."""

    elapsed: timedelta
    monotonic: float

    def age(self, monotonic: float) -> timedelta:
        """Return how long the window is open for certain at that moment."""
        return self.elapsed + timedelta(seconds=max(0.0, monotonic - self.monotonic))


def first_sight(start: datetime, *, server: datetime | None, wall: datetime, monotonic: float) -> Sighting:
    """Measure a window that this operator sees for the first time; ``server`` is None where the API server's time is not known."""
    certain = timedelta() if server is None else min(server, wall) - start
    return Sighting(max(timedelta(), certain), monotonic)


class WindowAges:
    """The ages of the open windows of all records, each measured once and carried on by monotonic time."""

    def __init__(
        self, clock: ServerClock, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._monotonic = monotonic
        self._seen: dict[str, tuple[str, Sighting]] = {}

    def observe(self, record: Record) -> None:
        """Take note of the record's open window as early as possible, and forget a closed one."""
        if record.status.migration is None:
            self.forget(record.metadata.uid or "")
        else:
            self._sighting(record, record.status.migration)

    def forget(self, uid: str) -> None:
        """Forget the window of a record that is gone."""
        self._seen.pop(uid, None)

    def age(self, record: Record) -> timedelta:
        """Return how long the record's open window is open for certain; zero where none is."""
        window = record.status.migration
        return timedelta() if window is None else self._sighting(record, window).age(self._monotonic())

    def _sighting(self, record: Record, window: Window) -> Sighting:
        uid = record.metadata.uid or ""
        known = self._seen.get(uid)
        if known and known[0] == window.id:
            return known[1]
        sighting = first_sight(
            window.start_time,
            server=self._clock.earliest() if self._clock.synchronized else None,
            wall=datetime.fromtimestamp(self._wall(), UTC),
            monotonic=self._monotonic(),
        )
        self._seen[uid] = (window.id, sighting)
        return sighting


def runs(record: Record) -> bool:
    """Tell whether the record has an open window without a result."""
    return record.status.migration is not None and record.status.migration.result is None


def time_left(record: Record, age: timedelta) -> timedelta | None:
    """Return the time until the deadline of a running window, negative past it; None where it has no deadline."""
    limit = time_limit(record)
    return None if limit is None or not runs(record) else limit - age


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Enforces the deadlines of windows; safe to call at any time and as often as one likes."""

    store: RecordStore
    ages: WindowAges
    clock: ServerClock
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL_DEADLINES))

    def due(self, record: Record) -> bool:
        """Tell whether a check has something to write, now or before the next look: a deadline, or an edited timeout."""
        window = record.status.migration
        if window is None or window.result:
            return False
        left = time_left(record, self.ages.age(record))
        return window.timeout_seconds != timeout_of(record) or (left is not None and left.total_seconds() < CHECK_SECONDS)

    async def check(self, record: Record) -> Record:
        """Bring the deadline of the record's window up to date, TimedOut if it has passed; return the newest record known.

        Raises what ``RecordStore.change`` raises. A crash before the write leaves everything to the next check, by whichever
        replica; after the write the window has its result, and a second check finds nothing to do.
        """
        async with self.slots:
            decided = await self.store.change(record, self._decide)
        return decided.record if isinstance(decided, Decided) else record

    async def first(self) -> None:
        """Let deadlines go first: return when each that waits to be written by now is being written."""
        async with self.slots:
            return

    def _decide(self, record: Record) -> Decided:
        expired = expire(record, now=self.clock.now(), elapsed=self.ages.age(record))
        return Decided(expired or record, changed=expired is not None)
