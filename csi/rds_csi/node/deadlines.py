"""When a call must have its answer, on a clock that tests can turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from rds_csi.errors import Unavailable

LONGEST: Final = 600.0
"""Seconds that a call may take whose caller names no deadline."""

ANSWER_SECONDS: Final = 0.5
"""Kept of the caller's time for the answer."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of a clock that never jumps, and how to wait on it."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class Deadline:
    """When one call must have its answer."""

    clock: Clock
    at: float

    @classmethod
    def of(cls, context: Any, clock: Clock) -> Deadline:
        """Return the deadline of a gRPC call: a little before its caller stops waiting."""
        remaining = context.time_remaining()
        return cls(clock, clock.monotonic() + (LONGEST if remaining is None else max(0.0, remaining - ANSWER_SECONDS)))

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.at - self.clock.monotonic()

    async def pause(self, seconds: float, what: str) -> None:
        """Wait a little; raises Unavailable with ``what`` where the time is up by then."""
        if self.left <= seconds:
            raise Unavailable(what)
        await self.clock.sleep(seconds)
