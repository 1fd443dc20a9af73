"""What only the active replica does: remember all records, enforce deadlines, follow migrations, report; rebuilt from a list."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol

from rds_operator.memory import Change, RecordMemory
from rds_operator.timeouts import CHECK_SECONDS, Deadlines, WindowAges, time_left
from rds_records.kubernetes_api import ApiError, ObjectNotFound
from rds_records.store import COLLECTION, Api, Contended

logger = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 300.0
"""How often the memory is compared with a list: a watch that was broken off can have missed a deletion."""

LIST_RETRY_SECONDS: Final = 2.0


class Observer(Protocol):
    """Who wants to hear of every change of a record, and now and then of a record that did not change."""

    def see(self, change: Change) -> None:
        """Take it in; returns at once."""
        ...


class ActiveOperator:
    """The active replica's state and the reactions to what it sees; handlers call its methods and decide nothing."""

    def __init__(
        self,
        api: Api,
        memory: RecordMemory,
        deadlines: Deadlines,
        observers: Sequence[Observer],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._memory = memory
        self._ages: WindowAges = deadlines.ages
        self._deadlines = deadlines
        self._observers = observers
        self._sleep = sleep
        self._overwritten: dict[str, str] = {}

    def record_changed(self, body: Mapping[str, Any], *, deleted: bool) -> None:
        """Take in one watch event."""
        if change := self._memory.see(body, deleted=deleted):
            self._take_in(change)

    def _take_in(self, change: Change) -> None:
        if seen := change.after or change.before:
            self._overwritten.pop(seen.metadata.uid or "", None)
        if change.after:
            self._ages.observe(change.after)
        elif change.before:
            self._ages.forget(change.before.metadata.uid or "")
        self._tell(change)

    def _tell(self, change: Change) -> None:
        for observer in self._observers:
            observer.see(change)

    async def keep_deadlines(self) -> NoReturn:
        """Look at every running window each second, for ever; each that has something to write gets a task of its own.

        Not a kopf timer: those put a finalizer on every migrating record, which an operator that is gone leaves behind, write twice
        for it, and stop on a record that an administrator has deleted, which works on until nobody is attached.
        """
        checks: dict[str, asyncio.Task[None]] = {}
        while True:
            for uid in self.due() - checks.keys():
                checks[uid] = asyncio.create_task(self.check_deadline(uid), name="deadline")
            await self._sleep(CHECK_SECONDS)
            checks = {uid: task for uid, task in checks.items() if not task.done()}

    def due(self) -> set[str]:
        """Return the records whose deadline passes before the next look, or is not up to date.

        Not those that this life has just written: until the watch tells of that, a second write could only fail.
        """
        due = [record.metadata for record in self._memory.records() if self._deadlines.due(record)]
        return {one.uid or "" for one in due if self._overwritten.get(one.uid or "") != (one.resource_version or "")}

    async def check_deadline(self, uid: str) -> None:
        """Enforce the deadline of one record's window, in the last second before it by waiting for it.

        Trouble with the API server is logged: the next look is a second away.
        """
        record = self._memory.get(uid)
        if record is None:
            return
        left = time_left(record, self._ages.age(record))
        if left is not None and 0 < left.total_seconds() < CHECK_SECONDS:
            await self._sleep(left.total_seconds())
            record = self._memory.get(uid) or record
        try:
            newest = await self._deadlines.check(record)
        except ObjectNotFound:
            return
        except (ApiError, Contended) as error:
            logger.warning("%s: its deadline is checked again in %g s: %s", record.metadata.name, CHECK_SECONDS, error)
        else:
            if newest.metadata.resource_version != record.metadata.resource_version and self._memory.get(uid) is record:
                self._overwritten[uid] = record.metadata.resource_version or ""

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
            self._tell(Change(record, record))
        return len(items)

    async def keep_in_step(self) -> NoReturn:
        """Resync for ever."""
        while True:
            await self._sleep(RESYNC_SECONDS)
            try:
                await self.resync()
            except ApiError as error:
                logger.warning("records cannot be listed: %s", error)
