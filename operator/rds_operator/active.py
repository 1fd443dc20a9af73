"""What only the active replica does: remember all records, enforce deadlines, report. All of it is rebuilt from a list."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn

from rds_operator.memory import Change, RecordMemory
from rds_operator.reporting import Reporter
from rds_operator.timeouts import CHECK_SECONDS, Deadlines, WindowAges, runs, time_left
from rds_records.kubernetes_api import ApiError, ObjectNotFound
from rds_records.record import Record
from rds_records.store import COLLECTION, Api, Contended

logger = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 300.0
"""How often the memory is compared with a list: a watch that was broken off can have missed a deletion."""

LIST_RETRY_SECONDS: Final = 2.0


class ActiveOperator:
    """The active replica's state and the reactions to what it sees; handlers call its methods and decide nothing."""

    def __init__(
        self,
        api: Api,
        memory: RecordMemory,
        deadlines: Deadlines,
        reporter: Reporter,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._memory = memory
        self._ages: WindowAges = deadlines.ages
        self._deadlines = deadlines
        self._reporter = reporter
        self._sleep = sleep

    def record_changed(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """Take in one watch event."""
        if change := self._memory.see(body, deleted=deleted):
            self._take_in(change)

    def _take_in(self, change: Change) -> None:
        if change.after:
            self._ages.observe(change.after)
        elif change.before:
            self._ages.forget(change.before.metadata.uid or "")
        self._reporter.see(change)

    async def check_deadline(self, uid: str) -> None:
        """Look whether the record's open window is past its deadline; in the last second before it, wait for it.

        Trouble with the API server is logged: the next check is a second away.
        """
        record = self._memory.get(uid)
        if record is None or not runs(record):
            return
        left = time_left(record, self._ages.age(record))
        if left is not None and 0 < left.total_seconds() < CHECK_SECONDS:
            await self._sleep(left.total_seconds())
            record = self._memory.get(uid) or record
        try:
            await self._deadlines.check(record)
        except ObjectNotFound:
            return
        except (ApiError, Contended) as error:
            logger.warning("%s: its deadline is checked again in %g s: %s", record.metadata.name, CHECK_SECONDS, error)

    async def load(self) -> None:
        """List all records into memory; returns when that succeeded (the CRD may be missing for a while)."""
        while True:
            try:
                started = time.monotonic()
                count = await self.resync()
            except ApiError as error:
                logger.warning("records cannot be listed: %s", error)
                await self._sleep(LIST_RETRY_SECONDS)
            else:
                logger.info("%d records listed in %.1f s", count, time.monotonic() - started)
                return

    async def resync(self) -> int:
        """Compare memory with a list, and look again at what is left to report; return the number of records. Raises ApiError."""
        self._memory.begin_list()
        items, _ = await self._api.list(COLLECTION)
        for change in self._memory.end_list(items):
            self._take_in(change)
        for record in self._memory.records():
            self._reporter.see(Change(record, record))
        return len(items)

    async def keep_in_step(self) -> NoReturn:
        """Resync for ever."""
        while True:
            await self._sleep(RESYNC_SECONDS)
            try:
                await self.resync()
            except ApiError as error:
                logger.warning("records cannot be listed: %s", error)

    async def keep_deadlines_of_terminating(self) -> NoReturn:
        """Check the deadlines that no kopf timer checks: kopf stops its timers on an object that is being deleted.

        A record that an administrator deleted goes on working until nobody is attached, deadlines included.
        """
        running: dict[str, asyncio.Task[None]] = {}
        while True:
            await self._sleep(CHECK_SECONDS)
            for record in self._memory.records():
                uid = record.metadata.uid or ""
                if _needs_own_check(record) and uid not in running:
                    running[uid] = asyncio.create_task(self.check_deadline(uid))
            running = {uid: task for uid, task in running.items() if not task.done()}


def _needs_own_check(record: Record) -> bool:
    return record.terminating and runs(record)
