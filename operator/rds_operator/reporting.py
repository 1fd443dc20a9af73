"""Tells the world what the records say: the outbox as Events and counts, refusals, attachments, the claim; one task per volume.

The outbox protocol, per entry and in order: (1) create the Event under a name made from the entry's id; (2) write this operator
life's id into the entry (``reportedBy``, compare-and-swap); (3) count it in this process; (4) remove it (compare-and-swap).
A crash

- after (1): the next life finds the Event there (409) and goes on;
- after (2), before (3): the claim is another life's, so nobody counts it. The record's history still has it;
- after (3), before (4): as before, and the count that went with this process is not made a second time;
- a lost answer to (1) is a 409 at the next try; to (2) or (4) the store reads again and finds it done, or does it again.

So an Event exists once, and each entry is counted at most once, by the life whose id stands in it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from rds_operator.claims import Claims
from rds_operator.events import EventReason
from rds_operator.memory import Change
from rds_operator.metrics import OperatorMetrics
from rds_records.clock import ServerClock
from rds_records.decisions import Decided
from rds_records.events import EventRecorder, Notice, Posted, Subject, claim_subject, event_name, vmi_subject
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound, WriteConflict
from rds_records.messages import go_duration
from rds_records.names import FINALIZER
from rds_records.record import MAX_OUTBOX, Announcement, Attachment, ObjectReference, OutboxEntry, Record, Refusal
from rds_records.store import Contended, RecordStore

logger = logging.getLogger(__name__)

REASONS: Final = {
    Announcement.STARTED: EventReason.MIGRATION_STARTED,
    Announcement.SUCCEEDED: EventReason.MIGRATION_COMPLETED,
    Announcement.FAILED: EventReason.MIGRATION_FAILED,
    Announcement.TIMED_OUT: EventReason.MIGRATION_FAILED,
    Announcement.ENDED: EventReason.MIGRATION_ENDED,
    Announcement.VERDICT: EventReason.MIGRATION_VERDICT,
    Announcement.SLOW_START: EventReason.MIGRATION_SLOW_START,
    Announcement.LEAVING_OVERDUE: EventReason.MIGRATION_LEAVING_OVERDUE,
    Announcement.LONG_RUN: EventReason.MIGRATION_LONG_RUN,
    Announcement.LEAVING_BLOCKED: EventReason.MIGRATION_LEAVING_BLOCKED,
    Announcement.FOREIGN_POD: EventReason.FOREIGN_POD,
    Announcement.FORCED_DETACH: EventReason.VOLUME_FORCE_DETACHED,
    Announcement.NODE_NOT_READY: EventReason.NODE_NOT_READY,
    Announcement.STALE_CLEARED: EventReason.STALE_ATTACHMENT_CLEARED,
}
"""Collapsed entries are missing: they are totals, without an Event."""

TOLD_TO_THE_VM: Final = frozenset(
    {
        Announcement.FAILED,
        Announcement.TIMED_OUT,
        Announcement.VERDICT,
        Announcement.SLOW_START,
        Announcement.LEAVING_OVERDUE,
        Announcement.LONG_RUN,
        Announcement.LEAVING_BLOCKED,
        Announcement.FOREIGN_POD,
    }
)
"""What is an Event on the VirtualMachineInstance too; KubeVirt itself shows nothing of it there."""

YOUNG_ATTACHMENT: Final = timedelta(minutes=5)
"""An older attachment is no news when this operator first sees it."""

FRESH_REFUSAL: Final = timedelta(minutes=10)
"""An older refusal is no news either; csi-attacher asks again every five minutes at most."""

FIRST_BACKOFF: Final = 0.25
MAX_BACKOFF: Final = 30.0
"""Seconds between tries for one volume while the API server is in trouble."""

REMEMBERED: Final = 4 * MAX_OUTBOX
"""Entries and versions that are remembered per volume."""

MAX_NOTES: Final = 1000
"""VolumeAttached and VolumeDetached Events that may wait; further ones are dropped."""


def claim_entries(record: Record, ids: Iterable[str], life: str) -> Decided:
    """Write this life's id into entries that nobody has claimed."""
    wanted = set(ids)
    outbox = tuple(
        entry.replace(reported_by=life) if entry.id in wanted and not entry.reported_by else entry for entry in record.status.outbox
    )
    return Decided(record.with_status(outbox=outbox), changed=outbox != record.status.outbox)


def drop_entries(record: Record, ids: Iterable[str]) -> Decided:
    """Remove entries that somebody has claimed."""
    wanted = set(ids)
    outbox = tuple(entry for entry in record.status.outbox if not (entry.id in wanted and entry.reported_by))
    return Decided(record.with_status(outbox=outbox), changed=outbox != record.status.outbox)


def set_claim(record: Record, claim: ObjectReference) -> Decided:
    """Show the claim on the record."""
    return Decided(record.with_status(claim_ref=claim), changed=record.status.claim_ref != claim)


def may_vanish(record: Record) -> bool:
    """Tell whether our finalizer has nothing left to protect on a record that is being deleted.

    Not while DeleteVolume is at it (``deleting``): disk and file come first. It takes the finalizer off itself, unless something is
    left to report then.
    """
    status = record.status
    return (
        record.terminating
        and record.initialized
        and (not status.deleting or bool(status.removed_from_box))
        and not status.attachments
        and not status.outbox
        and FINALIZER in record.metadata.finalizers
    )


@dataclass(slots=True)
class _Volume:
    """What this life remembers of one volume; nothing here is needed to be right, only to be brief."""

    latest: Record | None = None
    """What the watch told last and no worker has taken up."""

    announced: list[str] = field(default_factory=list)
    """Entries whose Event exists or never will."""

    counted: list[str] = field(default_factory=list)
    """Entries counted by this life; an old watch event may show one again."""

    overwritten: list[str] = field(default_factory=list)
    """Versions that we have overwritten since: their watch events are stale news."""

    refusals: dict[tuple[str, str, datetime], int] = field(default_factory=dict)
    """Refusals told, with the count that was told."""

    claim_of: frozenset[str] = frozenset()
    """The attachments for which the claim was looked up last."""


async def _at_once() -> None:
    """Wait for nothing."""


class Reporter:
    """Reports what watch events bring up; trouble with one volume holds up no other.

    ``after`` is awaited before each report: deadlines are written first.
    """

    def __init__(
        self,
        store: RecordStore,
        claims: Claims,
        recorder: EventRecorder | None,
        metrics: OperatorMetrics,
        clock: ServerClock,
        *,
        life: str,
        parallel: int = 24,
        after: Callable[[], Awaitable[None]] = _at_once,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._claims = claims
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock
        self._life = life
        self._slots = asyncio.Semaphore(parallel)
        self._note_slots = asyncio.Semaphore(max(1, parallel // 4))
        self._after = after
        self._sleep = sleep
        self._volumes: dict[str, _Volume] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._notes: set[asyncio.Task[None]] = set()
        self._unanswered: set[str] = set()

    @property
    def busy(self) -> int:
        """How many volumes have something to report."""
        return len(self._tasks)

    def see(self, change: Change) -> None:
        """Take in what the watch told; returns at once."""
        if change.after is None:
            if change.before:
                self._volumes.pop(change.before.metadata.uid or "", None)
            return
        self._note_attachments(change.before, change.after)
        record = change.after
        uid = record.metadata.uid or ""
        if uid not in self._volumes:
            settled = record.status.claim_ref and not self._is_young(record.status.attachments)
            self._volumes[uid] = _Volume(claim_of=_attachment_ids(record) if settled else frozenset())
        volume = self._volumes[uid]
        if record.metadata.resource_version in volume.overwritten:
            return
        volume.latest = record if self._has_work(volume, record) else None
        if volume.latest and uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._work(uid, volume), name=f"report {record.metadata.name}")

    def _has_work(self, volume: _Volume, record: Record) -> bool:
        return (
            bool(record.status.outbox)
            or any(volume.refusals.get(_key(refusal)) != refusal.count for refusal in record.status.refusals)
            or _claim_is_due(volume, record)
            or may_vanish(record)
        )

    async def drain(self, seconds: float) -> None:
        """Wait until everything is reported, at most that long; what is left is in the records for the next life."""
        tasks = [*self._tasks.values(), *self._notes]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _work(self, uid: str, volume: _Volume) -> None:
        backoff = FIRST_BACKOFF
        left_over: Record | None = None
        try:
            while True:
                current, volume.latest = volume.latest or left_over, None
                left_over = None
                if current is None:
                    return
                try:
                    async with self._slots:
                        await self._after()
                        await self._report(volume, current)
                    backoff = FIRST_BACKOFF
                except ObjectNotFound:
                    continue
                except (ApiError, Contended) as error:
                    logger.warning("%s: reporting is tried again in about %.1f s: %s", current.metadata.name, backoff, error)
                    await self._sleep(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards nothing
                    backoff = min(MAX_BACKOFF, backoff * 2)
                    left_over = await self._newest(current)
        except Exception:
            logger.exception("reporting of one volume ended; it is taken up again at the record's next change")
        finally:
            del self._tasks[uid]

    async def _newest(self, record: Record) -> Record | None:
        try:
            return await self._store.reread(record)
        except ObjectNotFound:
            return None
        except ApiError:
            return record

    async def _report(self, volume: _Volume, record: Record) -> None:
        while record.status.outbox:
            record = await self._deliver(volume, record)
        await self._tell_refusals(volume, record)
        record = await self._keep_claim(volume, record)
        if may_vanish(record):
            await self._let_go(record)

    # The outbox ------------------------------------------------------------------------------------------------------------------

    async def _deliver(self, volume: _Volume, record: Record) -> Record:
        told: list[str] = []
        trouble: ApiError | None = None
        for entry in record.status.outbox:
            try:
                await self._announce(volume, record, entry)
            except ApiError as error:
                trouble = error
                break
            told.append(entry.id)
        if told:
            record = await self._write(volume, record, lambda fresh: claim_entries(fresh, told, self._life))
            for entry in record.status.outbox:
                if entry.id in told and entry.reported_by == self._life and entry.id not in volume.counted:
                    self._metrics.count(entry)
                    logger.info("%s", entry.message or entry.kind, extra={"volume": record.handle, "transition": entry.kind.value})
                    _remember(volume.counted, entry.id)
            record = await self._write(volume, record, lambda fresh: drop_entries(fresh, told))
        if trouble:
            raise trouble
        return record

    async def _announce(self, volume: _Volume, record: Record, entry: OutboxEntry) -> None:
        reason = REASONS.get(entry.kind)
        if reason is None or self._recorder is None or entry.id in volume.announced:
            return
        notice = Notice(
            name=event_name(record.metadata.name, record.metadata.uid or "", entry.id),
            reason=reason,
            message=entry.message,
            first=entry.time,
            last=entry.time,
        )
        await self._tell(self._recorder, record, notice, entry.vmi if entry.kind in TOLD_TO_THE_VM else None)
        _remember(volume.announced, entry.id)

    async def _tell(self, recorder: EventRecorder, record: Record, notice: Notice, vmi: ObjectReference | None) -> None:
        """Post the Event on the claim, and on the virtual machine where one is named; two Events with names of their own."""
        await self._post(recorder, record, notice)
        if vmi:
            name = event_name(record.metadata.name, notice.name, "vmi")
            await self._post_on(recorder, record, replace(notice, name=name), vmi_subject(vmi))

    async def _post(self, recorder: EventRecorder, record: Record, notice: Notice) -> None:
        claim = await self._claims.of(record)
        await self._post_on(recorder, record, notice, claim_subject(claim) if claim else None)

    async def _post_on(self, recorder: EventRecorder, record: Record, notice: Notice, subject: Subject | None) -> None:
        posted = Posted.REFUSED
        if subject is not None:
            try:
                posted = await (recorder.repeat if notice.count > 1 else recorder.post)(notice, subject)
            except ApiUnavailable:
                self._unanswered.add(notice.name)
                raise
        if notice.name in self._unanswered:
            # An answer was lost: what is there now is very likely what this life posted.
            self._unanswered.discard(notice.name)
            posted = Posted.CREATED if posted is Posted.EXISTED else posted
        self._metrics.count_event(notice.reason, posted)
        if posted is Posted.REFUSED:
            namespace = subject.reference.namespace if subject else ""
            why = f"the API server refuses Events in namespace {namespace}" if subject else "no claim is bound to the volume"
            logger.warning("%s: Event %s is given up: %s", record.metadata.name, notice.reason, why)

    async def _write(self, volume: _Volume, record: Record, decide: Callable[[Record], Decided]) -> Record:
        decided = await self._store.change(record, decide)
        assert isinstance(decided, Decided)  # noqa: S101 - these decisions never refuse
        if decided.changed and record.metadata.resource_version:
            _remember(volume.overwritten, record.metadata.resource_version)
        return decided.record

    # Refusals, the claim, the finalizer ------------------------------------------------------------------------------------------

    async def _tell_refusals(self, volume: _Volume, record: Record) -> None:
        current = {_key(refusal): refusal for refusal in record.status.refusals}
        volume.refusals = {key: count for key, count in volume.refusals.items() if key in current}
        for key, refusal in current.items():
            known = volume.refusals.get(key)
            if known == refusal.count:
                continue
            if self._recorder and (known is not None or self._clock.now() - refusal.last_time < FRESH_REFUSAL):
                await self._tell(self._recorder, record, _conflict(record, refusal), refusal.vmi)
            volume.refusals[key] = refusal.count

    async def _keep_claim(self, volume: _Volume, record: Record) -> Record:
        if not _claim_is_due(volume, record):
            return record
        claim = await self._claims.of(record)
        if claim is None:
            return record
        if claim != record.status.claim_ref:
            # Remembered only once it is written: a write that failed is tried again.
            record = await self._write(volume, record, lambda fresh: set_claim(fresh, claim))
        volume.claim_of = _attachment_ids(record)
        return record

    async def _let_go(self, record: Record) -> None:
        # Compare-and-swap: a node that is attached in this moment makes the write fail, and the decision is taken anew.
        while may_vanish(record):
            try:
                await self._store.release(record)
            except WriteConflict:
                record = await self._store.reread(record)
            else:
                logger.info("%s: deleted by an administrator and attached nowhere: let go", record.metadata.name)
                return

    # Attachments, best effort ----------------------------------------------------------------------------------------------------

    def _is_young(self, attachments: Iterable[Attachment]) -> bool:
        now = self._clock.now()
        return any(now - held.attach_time < YOUNG_ATTACHMENT for held in attachments)

    def _note_attachments(self, before: Record | None, after: Record) -> None:
        if self._recorder is None:
            return
        known = {held.id: held for held in before.status.attachments} if before else {}
        current = {held.id: held for held in after.status.attachments}
        for held in current.values():
            if held.id not in known and self._is_young([held]):
                self._note(self._recorder, after, _attached(after, held))
        for held in known.values():
            if held.id not in current:
                self._note(self._recorder, after, _detached(after, held, self._clock.now()))

    def _note(self, recorder: EventRecorder, record: Record, notice: Notice) -> None:
        if len(self._notes) >= MAX_NOTES:
            return
        task = asyncio.create_task(self._try_to_post(recorder, record, notice), name=f"note {record.metadata.name}")
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _try_to_post(self, recorder: EventRecorder, record: Record, notice: Notice) -> None:
        try:
            async with self._note_slots:
                await self._post(recorder, record, notice)
        except ApiError as error:
            self._metrics.events_failed.labels(notice.reason).inc()
            logger.info("%s: Event %s is given up: %s", record.metadata.name, notice.reason, error)


def _remember(known: list[str], new: str) -> None:
    known.append(new)
    del known[:-REMEMBERED]


def _claim_is_due(volume: _Volume, record: Record) -> bool:
    attached = _attachment_ids(record)
    return bool(attached) and attached != volume.claim_of


def _key(refusal: Refusal) -> tuple[str, str, datetime]:
    return refusal.node_name, refusal.reason, refusal.first_time


def _attachment_ids(record: Record) -> frozenset[str]:
    return frozenset(held.id for held in record.status.attachments)


def _conflict(record: Record, refusal: Refusal) -> Notice:
    return Notice(
        name=event_name(
            record.metadata.name, record.metadata.uid or "", refusal.node_name, refusal.reason, refusal.first_time.isoformat()
        ),
        reason=EventReason.ATTACHMENT_CONFLICT,
        message=f"[{record.handle}]: node {refusal.node_name} was refused: {refusal.message}",
        first=refusal.first_time,
        last=refusal.last_time,
        count=refusal.count,
    )


def _attached(record: Record, held: Attachment) -> Notice:
    return Notice(
        name=event_name(record.metadata.name, record.metadata.uid or "", held.id, "attached"),
        reason=EventReason.VOLUME_ATTACHED,
        message=f"[{record.handle}]: volume attached to node {held.node_name}",
        first=held.attach_time,
        last=held.attach_time,
    )


def _detached(record: Record, held: Attachment, now: datetime) -> Notice:
    lasted = go_duration(int((now - held.attach_time).total_seconds()))
    return Notice(
        name=event_name(record.metadata.name, record.metadata.uid or "", held.id, "detached"),
        reason=EventReason.VOLUME_DETACHED,
        message=f"[{record.handle}]: volume detached from node {held.node_name} (attached for {lasted})",
        first=now,
        last=now,
    )
