"""The API server's time, kept from the ``Date`` header of its answers and monotonic time in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

_RESOLUTION: Final = 1.0
"""Seconds; ``Date`` has no fractions (RFC 9110, section 5.6.7)."""

_DRIFT: Final = 200e-6
"""Seconds per second by which a monotonic clock may run away from the server's."""


class ServerClock:
    """Tells the API server's time; until the first answer it tells this machine's.

    Each answer says that the server's clock stood in [Date, Date + 1 s) at some moment between sending and receiving, which bounds
    the offset between the two clocks. Bounds of many answers are intersected, so the offset gets finer than the header's second.
    A ``Date`` that contradicts the bounds (the clock was stepped, or another API server answers) starts them afresh.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._low = self._high = 0.0
        self._seen: float | None = None

    def observe(self, date_header: str | None, sent: float, received: float) -> None:
        """Take in one answer; ``sent`` and ``received`` are readings of the monotonic clock. A malformed header is ignored."""
        if not date_header:
            return
        try:
            date = parsedate_to_datetime(date_header).timestamp()
        except ValueError:
            return
        low, high = date - received, date + _RESOLUTION - sent
        if self._seen is not None:
            slack = max(0.0, received - self._seen) * _DRIFT
            older_low, older_high = self._low - slack, self._high + slack
            if max(low, older_low) <= min(high, older_high):
                low, high = max(low, older_low), min(high, older_high)
        self._low, self._high, self._seen = low, high, received

    @property
    def synchronized(self) -> bool:
        """Whether the API server has answered at least once."""
        return self._seen is not None

    def now(self) -> datetime:
        """Return the API server's time in UTC."""
        if self._seen is None:
            return datetime.fromtimestamp(self._wall(), UTC)
        return datetime.fromtimestamp(self._monotonic() + (self._low + self._high) / 2, UTC)

    def earliest(self) -> datetime:
        """Return the earliest that the API server's clock can stand at, in UTC; this machine's time until the first answer."""
        if self._seen is None:
            return self.now()
        moment = self._monotonic()
        return datetime.fromtimestamp(moment + self._low - max(0.0, moment - self._seen) * _DRIFT, UTC)

    def disagreement(self) -> timedelta:
        """Return how far this machine's own clock is from the API server's, without sign."""
        return timedelta(seconds=abs(self._wall() - self.now().timestamp()))
