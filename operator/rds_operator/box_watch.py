"""Looks at the box in the background, one round after the other: each question is one command, and each may fail by itself."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, NoReturn, Protocol, TypeVar

from rds_csi.routeros import Box, BoxError, BoxUnreachable, Disk, FilePath, InvalidName, Slot
from rds_operator.inventory import AVAILABLE, Availability, Finding, Inventory, Sighting
from rds_operator.memory import RecordMemory
from rds_records.clock import ServerClock
from rds_records.conditions import with_condition
from rds_records.decisions import Decided
from rds_records.kubernetes_api import ApiError, ObjectNotFound
from rds_records.record import Record
from rds_records.store import Contended, RecordStore

logger = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 30.0
"""How long one command may take."""

JITTER: Final = 0.1
"""Share of the interval by which a pause is longer or shorter, so that rounds of several clusters drift apart."""

T = TypeVar("T")


class RoundObserver(Protocol):
    """Who wants to hear of every round."""

    async def see(self, seen: Sighting, *, now: datetime, elapsed: float) -> None:
        """Take in a round; ``elapsed`` is the time since the one before it began, in seconds."""
        ...


class BoxWatch:
    """Looks at one box for the volumes under one directory; the results are in ``inventory`` and on the records."""

    def __init__(
        self,
        box: Box,
        base_path: FilePath,
        store: RecordStore,
        memory: RecordMemory,
        inventory: Inventory,
        clock: ServerClock,
        *,
        interval: float,
        every_disk: bool = False,
        observers: Sequence[RoundObserver] = (),
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``interval`` is in seconds; ``every_disk``: measure the traffic of each volume, not of the pool alone."""
        self._box = box
        self._base_path = base_path
        self._store = store
        self._memory = memory
        self._inventory = inventory
        self._clock = clock
        self._interval = interval
        self._every_disk = every_disk
        self._observers = observers
        self._sleep = sleep
        self._wall = wall
        self._monotonic = monotonic
        self._availability = Availability(base_path)
        self._began: float | None = None
        self._failing: dict[str, BoxError] = {}
        self._unreachable: BoxUnreachable | None = None

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            try:
                await self.round()
            except Exception:
                logger.exception("a round of looking at the box broke")
            await self._sleep(self._interval * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 no secret

    async def round(self) -> None:
        """Look once."""
        began = self._monotonic()
        elapsed = 0.0 if self._began is None else began - self._began
        self._began = began
        seen = await self._look()
        self._inventory.take(seen, now=self._wall())
        for record, finding in self._availability.judge(self._memory.records(), seen):
            await self._say(record, finding)
        for observer in self._observers:
            await observer.see(seen, now=self._clock.now(), elapsed=elapsed)

    async def _look(self) -> Sighting:
        self._unreachable = None
        disks = await self._ask("disks", lambda deadline: self._box.disks(deadline=deadline))
        files = await self._ask("files", lambda deadline: self._box.files_below(self._base_path, deadline=deadline))
        pool = await self._ask("pool", lambda deadline: self._box.capacity(self._base_path.mount_point, deadline=deadline))
        health = await self._ask("health", lambda deadline: self._box.health(deadline=deadline))
        slots = self._measured(pool.slot if pool else "", disks or ())
        if slots:
            traffic = await self._ask("traffic", lambda deadline: self._box.traffic(slots, deadline=deadline))
        else:
            traffic = None
            self._failing.pop("traffic", None)
        return Sighting(disks, files, pool, health, traffic, dict(self._failing))

    async def _ask(self, what: str, question: Callable[[float], Awaitable[T]]) -> T | None:
        try:
            if self._unreachable is not None:
                # Waiting for the link once is enough: what the last round found is shown until this one has ended.
                raise self._unreachable
            answer = await question(self._monotonic() + ANSWER_SECONDS)
        except BoxError as error:
            self._unreachable = error if isinstance(error, BoxUnreachable) else None
            if str(self._failing.get(what)) != str(error):
                logger.warning("the box does not tell its %s: %s", what, error)
            self._failing[what] = error
            return None
        if self._failing.pop(what, None):
            logger.info("the box tells its %s again", what)
        return answer

    def _measured(self, pool: str, disks: Iterable[Disk]) -> list[Slot]:
        names = [pool] if pool else []
        if self._every_disk:
            names += [disk.slot for disk in disks if disk.path.startswith(f"{self._base_path}/")]
        slots = []
        for name in names:
            try:
                slots.append(Slot(name))
            except InvalidName:
                logger.debug("slot %r cannot be named in a command", name)
        return slots

    async def _say(self, record: Record, finding: Finding) -> None:
        now = self._clock.now()

        def decide(newest: Record) -> Decided:
            status = with_condition(newest.status, AVAILABLE, finding.available, finding.reason, finding.message[:1024], now)
            return Decided(newest.replace(status=status), changed=status is not newest.status)

        if not decide(record).changed:
            return
        if not finding.available:
            logger.warning("volume %s: %s", record.handle, finding.message)
        try:
            await self._store.change(record, decide)
        except ObjectNotFound:
            return
        except (ApiError, Contended) as error:
            # The next round says it again.
            logger.info("%s: its condition %s is written later: %s", record.metadata.name, AVAILABLE, error)
