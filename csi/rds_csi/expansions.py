"""Grow volumes: never below what is there, never while two nodes hold one, and never less than what is answered."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic

from rds_csi.attachments import rejection
from rds_csi.errors import FailedPrecondition, NotFound, OutOfRange
from rds_csi.routeros import Box, Difference, Disk, DiskInTheWay, OutcomeUnknown, Slot
from rds_csi.volume_locks import VolumeLocks
from rds_records import expansion
from rds_records.clock import ServerClock
from rds_records.decisions import Refused
from rds_records.kubernetes_api import ApiError
from rds_records.record import Expansion, Record, Target
from rds_records.store import Contended, RecordStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Expansions:
    """Grows volumes on one box; deadlines are readings of ``time.monotonic``, box and API errors pass.

    One call per volume at a time; its locks are its own, so that no attach waits for a box that does not answer.
    """

    store: RecordStore
    box: Box
    clock: ServerClock
    locks: VolumeLocks = field(default_factory=VolumeLocks)

    async def expand(self, record: Record, size: int, *, limit: int = 0, deadline: float) -> Record:
        """Make the volume at least ``size`` bytes large, and record the size that it really has; returns its record.

        A crash may come between any two steps: the mark on the record becomes void by itself; the box's size is read before
        anything is sent to it, so a retry finds a disk that has grown and only records its size.

        Raises NotFound where the box has no such disk, DiskInTheWay where it has another one there, OutOfRange where what is there
        exceeds ``limit``, Aborted while two nodes hold the volume, it is being deleted or expanded to another size, PoolFull where
        the box has no room.
        """
        async with self.locks.try_hold(record.handle):
            return await self._expand(record, size, limit, deadline)

    async def _expand(self, record: Record, size: int, limit: int, deadline: float) -> Record:
        target = record.spec.target
        if target is None:
            raise FailedPrecondition(f"volume {record.handle}: its record {record.metadata.name} names no place on the box")
        known = record.spec.capacity_bytes
        disk = await self._disk(record.handle, target, deadline)
        grows = disk.size < size
        if grows:
            record, disk = await self._grow(record, Slot(target.slot), size, deadline)
        elif limit and disk.size > limit:
            raise OutOfRange(f"volume {record.handle} has {disk.size} bytes already, more than the limit of {limit} bytes")

        def noted(newest: Record) -> Record:
            # What was only looked at may be older than what another replica has made and noted meanwhile.
            if not grows and newest.spec.capacity_bytes != known:
                return newest
            return newest.replace(spec=newest.spec.replace(capacity_bytes=disk.size))

        return await self.store.change_spec(record, noted)

    async def _disk(self, handle: str, target: Target, deadline: float) -> Disk:
        disk = await self.box.disk(Slot(target.slot), deadline=deadline)
        if disk is None:
            raise NotFound(f"volume {handle}: the box has no disk in slot {target.slot}")
        if disk.path != target.file_path:
            raise DiskInTheWay(disk.slot, {"file-path": Difference(target.file_path, disk.path)})
        return disk

    async def _grow(self, record: Record, slot: Slot, size: int, deadline: float) -> tuple[Record, Disk]:
        until = _whole_milliseconds(self.clock.now() + timedelta(seconds=max(0.0, deadline - monotonic())))
        begun = await self.store.change(record, lambda newest: expansion.begin(newest, size, until=until, now=self.clock.now()))
        if isinstance(begun, Refused):
            raise rejection(begun)
        mark = begun.record.status.expansion
        try:
            disk = await self.box.resize_disk(slot, size, deadline=deadline)
        except (OutcomeUnknown, asyncio.CancelledError):
            # The command may still take effect, so the mark stays until the call's time is over.
            raise
        except BaseException:
            await self._end(begun.record, mark)
            raise
        return await self._end(begun.record, mark), disk

    async def _end(self, record: Record, mark: Expansion | None) -> Record:
        try:
            ended = await self.store.change(record, lambda newest: expansion.end(newest, mark, now=self.clock.now()))
        except (ApiError, Contended) as error:
            # It becomes void by itself.
            _log.info("expansion not unmarked", extra={"volume": record.handle, "error": str(error)})
            return record
        return record if isinstance(ended, Refused) else ended.record


def _whole_milliseconds(moment: datetime) -> datetime:
    """Return the moment as it is read back from a record, so that the mark is known again."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
