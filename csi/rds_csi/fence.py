"""The storage fence: the box accepts for each volume the hosts of the nodes in its record, and no others.

Who is admitted is decided on the record alone, by compare-and-swap. The box's list is a function of the record, and whoever changes
the record brings the box in line with it before the call is answered. Every retry is safe, because the record says what is to be
done before the box is told, and that it was done only after the box was read back:

- killed before the box was told, or while it was: the record says ``Changing``, or has the node as ``leaving``. The same call,
  tried again, finds that and tells the box what the record says by then. The commands say what should be, not what changes.
- killed between the end of an export and its beginning (a caller that leaves does not come between): the disk is found without
  export and gets it back, with the list; by the same call, or by ``FenceWatch`` of any replica if nobody calls again. A detach that
  was forced stays forced on the record, so whoever goes on with it drops the sessions, unless the box has ended the export already.
- and the VolumeAttachment is gone meanwhile, so that nobody calls again: ``FenceWatch`` ends the detach. Where it was gone before
  any detach began, ``StaleWatch`` does.
- killed between the box and the last write: the box is found as it should be, and only the write is left.
- two replicas at once: each reads the record again with its last write. If other nodes are admitted by then, it tells the box
  again, and where its own list had let in a node that has left meanwhile, it drops the sessions too. A replica that dies before
  it can do so leaves a list that ``FenceWatch`` finds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

from rds_csi.errors import FailedPrecondition, Rejected, Unavailable
from rds_csi.fence_mode import FenceMode
from rds_csi.metrics import ShimMetrics
from rds_csi.routeros import (
    Box,
    BoxError,
    BoxUnreachable,
    Disk,
    Export,
    MalformedAnswer,
    NoSuchItem,
    Nqn,
    OutcomeUnknown,
    ReadBackMismatch,
    Slot,
)
from rds_csi.volume_locks import VolumeLocks
from rds_records import fencing
from rds_records.clock import ServerClock
from rds_records.decisions import Decided, Refused
from rds_records.fencing import FenceReason
from rds_records.kubernetes_api import ApiError
from rds_records.record import Record, Target
from rds_records.stale import is_leaving
from rds_records.store import Contended, Decision, RecordStore

_log = logging.getLogger(__name__)

ROUNDS: Final = 4
"""How often the box is told again because the record changed meanwhile, before a call gives up."""

WATCH_SECONDS: Final = 15.0
"""Between two looks at all lists; what is wrong in the same way in two of them is put right."""

WATCH_ANSWER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Fence:
    """Brings the box in line with records; with ``mode`` none it only clears lists that are left from before."""

    mode: FenceMode
    box: Box
    store: RecordStore
    clock: ServerClock
    nvme_port: int
    metrics: ShimMetrics

    @property
    def enabled(self) -> bool:
        """Whether the box is told who may connect."""
        return self.mode is FenceMode.ALLOW_HOST_NAME

    def guards(self, record: Record) -> bool:
        """Tell whether the box is told who may connect to this volume: not where the record does not say which disk it is."""
        return self.enabled and record.spec.target is not None

    def noting(self, decide: Decision) -> Decision:
        """Return the decision with what it means for the box on the record: part of the same write."""

        def decision(newest: Record) -> Decided | Refused:
            decided = decide(newest)
            if isinstance(decided, Refused) or not decided.changed:
                return decided
            enabled = self.guards(newest)
            return Decided(fencing.noted(newest, decided.record, enabled=enabled, now=self.clock.now()), changed=True)

        return decision

    async def settle(self, record: Record, *, deadline: float) -> Record:
        """Have the box accept the admitted nodes, and see it do so; where the record says that it was seen, nothing is asked.

        Raises Unavailable where the box cannot be reached, FailedPrecondition where it refuses; the record says so too.
        """
        if record.spec.target is None or (fencing.is_confirmed(record) if self.enabled else not fencing.list_may_exist(record)):
            return record
        decided = await self._bring_in_line(record, _as_it_is, cycle=False, deadline=deadline)
        return record if isinstance(decided, Refused) else decided.record

    async def expel(self, record: Record, begin: Decision, end: Decision, *, deadline: float) -> Decided | Refused:
        """Detach nodes: ``begin`` marks them as leaving, then the box refuses them, then ``end`` takes them off the record.

        Where one of them leaves by force its sessions are dropped before that. Raises as ``settle``.
        """
        begun = await self.store.change(record, begin)
        if isinstance(begun, Refused):
            return begun
        leaving = [held.leaving for held in begun.record.status.attachments if held.leaving]
        if not leaving:
            return begun
        forced = any(one.forced for one in leaving)
        return await self._bring_in_line(begun.record, end, cycle=forced, deadline=deadline)

    async def repair(self, record: Record, disk: Disk, *, deadline: float) -> None:
        """Bring the box in line where nobody else does; hosts that should not have been let in lose their sessions.

        Raises as ``settle``.
        """
        strangers = disk.hosts - fencing.host_nqns(fencing.admitted(record)) - {fencing.NOBODY}
        cycle = self.enabled and bool(strangers)
        await self._bring_in_line(record, _as_it_is, cycle=cycle, deadline=deadline)

    async def _bring_in_line(self, record: Record, end: Decision, *, cycle: bool, deadline: float) -> Decided | Refused:
        for _ in range(ROUNDS):
            told = fencing.admitted(record)
            try:
                disk = await self._tell_box(record, told, cycle=cycle, deadline=deadline)
            except ReadBackMismatch as error:
                newest = await self.store.reread(record)
                if fencing.admitted(newest) == told:
                    raise await self._failed(newest, error) from error
                # Another replica has written the record meanwhile and told the box so: what it admits is what counts.
                record = newest
                cycle = cycle or bool(told - fencing.admitted(record))
                continue
            except BoxError as error:
                raise await self._failed(record, error) from error
            decided = await self.store.change(record, self._confirming(told, end, disk=disk))
            if isinstance(decided, Refused) or fencing.admitted(decided.record) == told:
                return decided
            record = decided.record
            cycle = cycle or bool(told - fencing.admitted(record))
        raise Contended(f"volume {record.handle}: who may use it changed {ROUNDS} times while the box was told; try again")

    def _confirming(self, told: frozenset[str], end: Decision, *, disk: bool) -> Decision:
        def decision(newest: Record) -> Decided | Refused:
            if fencing.admitted(newest) != told:
                return Decided(newest, changed=False)
            decided = end(newest)
            if isinstance(decided, Refused):
                return decided
            after = fencing.confirmed(decided.record, enabled=self.enabled, disk=disk, now=self.clock.now())
            return Decided(after, changed=decided.changed or after is not decided.record)

        return decision

    async def _tell_box(self, record: Record, nodes: frozenset[str], *, cycle: bool, deadline: float) -> bool:
        """Tell the box; returns whether it has such a disk. A node that is to use it needs one."""
        target = record.spec.target
        if target is None:
            return False
        export = self._export(target, nodes)
        status = "failure"
        try:
            await self.box.allow_hosts(export, cycle=cycle, deadline=deadline)
            status = "success"
        except NoSuchItem:
            if nodes and self.enabled:
                raise
            return False
        finally:
            self.metrics.fence_changes.labels("cycle" if cycle else "hosts", status).inc()
        return True

    def _export(self, target: Target, nodes: frozenset[str]) -> Export:
        hosts = frozenset(map(Nqn, fencing.host_nqns(nodes))) if self.enabled else frozenset[Nqn]()
        return Export(slot=Slot(target.slot), nqn=Nqn(target.nqn), port=target.port or self.nvme_port, hosts=hosts)

    async def _failed(self, record: Record, error: BoxError) -> Rejected:
        """Say so on the record, best effort, and return what the caller is told."""
        away = isinstance(error, BoxUnreachable | OutcomeUnknown | MalformedAnswer)
        reason = FenceReason.BOX_UNREACHABLE if away else FenceReason.BOX_REFUSED
        try:
            await self.store.change(record, lambda newest: fencing.failed(newest, reason, str(error), now=self.clock.now()))
        except (ApiError, Contended) as trouble:
            _log.info("fence trouble not noted", extra={"volume": record.handle, "error": str(trouble)})
        flag = f"--fence={FenceMode.ALLOW_HOST_NAME} is on" if self.enabled else "the fence was on and its list must be cleared"
        text = f"volume {record.handle}: which hosts may connect could not be set on the box ({flag}): {error}; it is tried again"
        return Unavailable(text) if away else FailedPrecondition(text)


def _as_it_is(record: Record) -> Decided:
    return Decided(record, changed=False)


def out_of_line(record: Record, disk: Disk, *, enabled: bool) -> bool:
    """Tell whether the box differs from what a record says of it, or the record does not know.

    A volume whose list nobody has set yet is left alone: sessions that live may be those of hosts with other names. Where a node is
    leaving its detach is tried again by its caller; only an export that was ended must come back for the others.
    """
    if not record.initialized or record.status.deleting or not fencing.list_may_exist(record):
        return False
    if not enabled:
        return True
    nodes = fencing.admitted(record)
    if any(held.leaving for held in record.status.attachments):
        return bool(nodes) and not disk.exported
    if not disk.exported:
        return bool(nodes)
    return disk.hosts != fencing.host_nqns(nodes) or not fencing.is_confirmed(record)


class EndDetach(Protocol):
    """Ends a detach that began; ``Attachments.end_abandoned_detach`` is one."""

    def __call__(self, handle: str, node: str, *, deadline: float) -> Awaitable[bool]:
        """End it where nobody will call for it again; tells whether it did."""
        ...


@dataclass(slots=True)
class FenceWatch:
    """Puts right what a replica that was killed has left on box and records, and what somebody changed on the box by hand.

    With the fence off it clears the lists that are left from when it was on, and ends.
    """

    fence: Fence
    locks: VolumeLocks
    end_detach: EndDetach
    _seen: dict[str, tuple[str | None, Disk | None]] = field(default_factory=dict)

    async def run(self) -> None:
        """Look until there is nothing left to look at: for ever with the fence on."""
        while True:
            try:
                left = await self.round()
            except (ApiError, BoxError) as error:
                _log.warning("lists of hosts not compared", extra={"error": str(error)})
                left = True
            except Exception:  # noqa: BLE001 the next round looks again
                _log.exception("a comparison of lists of hosts broke")
                left = True
            if not left and not self.fence.enabled:
                return
            await asyncio.sleep(WATCH_SECONDS)

    async def round(self) -> bool:
        """Look once; returns whether a volume has a list, or a node that is leaving. The box is not asked where none has."""
        records = [record for record in await self.fence.store.list() if record.spec.target and _concerns(record)]
        if not records:
            return False
        disks = {disk.slot: disk for disk in await self.fence.box.disks(deadline=monotonic() + WATCH_ANSWER_SECONDS)}
        seen, self._seen = self._seen, {}
        for record in records:
            disk = disks.get(record.spec.target.slot) if record.spec.target else None
            wrong = disk is not None and out_of_line(record, disk, enabled=self.fence.enabled)
            if not wrong and not _leaving(record):
                continue
            uid, sight = record.metadata.uid or record.handle, (record.metadata.resource_version, disk)
            self._seen[uid] = sight
            if seen.get(uid) != sight:
                continue
            try:
                await self._put_right(record, disk if wrong else None)
            except (Rejected, Contended, ApiError) as error:
                # The next one may be better off.
                _log.warning("box and record not brought in line", extra={"volume": record.handle, "error": str(error)})
        return True

    async def _put_right(self, record: Record, wrong: Disk | None) -> None:
        """End what nobody else will end, else bring the disk in line where it is wrong."""
        async with self.locks.hold(record.handle):
            newest = await self.fence.store.reread(record)
            if newest.metadata.resource_version != record.metadata.resource_version:
                return
            for node in _leaving(newest):
                if await self.end_detach(newest.handle, node, deadline=monotonic() + WATCH_ANSWER_SECONDS):
                    _log.warning("detach ended that nobody called for again", extra={"volume": record.handle, "node": node})
                    wrong = None
            if wrong is not None:
                _log.warning("box brought in line with record", extra={"volume": record.handle, "disk": str(wrong)})
                await self.fence.repair(newest, wrong, deadline=monotonic() + WATCH_ANSWER_SECONDS)


def _leaving(record: Record) -> list[str]:
    return [held.node_name for held in record.status.attachments if is_leaving(held)]


def _concerns(record: Record) -> bool:
    return fencing.list_may_exist(record) or bool(_leaving(record))
