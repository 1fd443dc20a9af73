"""One call at a time per volume, inside this process; between processes the record's compare-and-swap decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rds_csi.errors import Aborted


@dataclass(slots=True)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    """Holder and waiters; the last one takes the entry with it, so nothing stays of a volume that is gone."""


class VolumeLocks:
    """In-flight guard per volume handle; fair, cancellable, and empty when nobody uses it."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @asynccontextmanager
    async def hold(self, handle: str) -> AsyncIterator[None]:
        """Hold the volume, waiting for its turn."""
        entry = self._entries.setdefault(handle, _Entry())
        entry.users += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.users -= 1
            if not entry.users:
                del self._entries[handle]

    @asynccontextmanager
    async def try_hold(self, handle: str) -> AsyncIterator[None]:
        """Hold the volume, or raise Aborted at once where another call holds it."""
        if handle in self._entries:
            raise Aborted(f"another call for volume {handle} is in flight; try again when it has ended")
        async with self.hold(handle):
            yield
