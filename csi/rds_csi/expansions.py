"""Grow volumes: never below what is there, never while two nodes hold one, and never less than what is answered."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from rds_csi.attachments import rejection
from rds_csi.errors import FailedPrecondition, NotFound, OutOfRange
from rds_csi.routeros import Box, OutcomeUnknown, Slot
from rds_records import expansion
from rds_records.clock import ServerClock
from rds_records.decisions import Refused
from rds_records.kubernetes_api import ApiError
from rds_records.record import Record
from rds_records.store import Contended, RecordStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Expansions:
    """Grows volumes on one box; deadlines are readings of ``time.monotonic``, box and API errors pass."""

    store: RecordStore
    box: Box
    clock: ServerClock

    async def expand(self, record: Record, size: int, *, limit: int = 0, deadline: float) -> Record:
        """Make the volume at least ``size`` bytes large, and record the size that it really has; returns its record.

        A crash may come between any two steps: the mark on the record becomes void by itself; the box's size is read before
        anything is sent to it, so a retry finds a disk that has grown and only records its size.

        Raises NotFound where the box has no such disk, OutOfRange where what is there exceeds ``limit``, Aborted while two nodes
        hold the volume or it is being deleted, PoolFull where the box has no room.
        """
        target = record.spec.target
        if target is None:
            raise FailedPrecondition(f"volume {record.handle}: its record {record.metadata.name} names no place on the box")
        slot = Slot(target.slot)
        disk = await self.box.disk(slot, deadline=deadline)
        if disk is None:
            raise NotFound(f"volume {record.handle}: the box has no disk in slot {slot}")
        if disk.size < size:
            record = await self._grow(record, slot, size, deadline)
        elif limit and disk.size > limit:
            raise OutOfRange(f"volume {record.handle} has {disk.size} bytes already, more than the limit of {limit} bytes")
        actual = max(disk.size, size)
        if record.spec.capacity_bytes == actual:
            return record
        return await self.store.change_spec(
            record, lambda newest: newest.replace(spec=newest.spec.replace(capacity_bytes=max(actual, newest.spec.capacity_bytes)))
        )

    async def _grow(self, record: Record, slot: Slot, size: int, deadline: float) -> Record:
        until = self.clock.now() + timedelta(seconds=max(0.0, deadline - monotonic()))
        begun = await self.store.change(record, lambda newest: expansion.begin(newest, size, until=until))
        if isinstance(begun, Refused):
            raise rejection(begun)
        try:
            await self.box.resize_disk(slot, size, deadline=deadline)
        except OutcomeUnknown:
            # The command may still take effect, so the mark stays until the call's time is over.
            raise
        except BaseException:
            await self._end(begun.record)
            raise
        return await self._end(begun.record)

    async def _end(self, record: Record) -> Record:
        try:
            ended = await self.store.change(record, expansion.end)
        except (ApiError, Contended) as error:
            # It becomes void by itself.
            _log.info("expansion not unmarked", extra={"volume": record.handle, "error": str(error)})
            return record
        return record if isinstance(ended, Refused) else ended.record
