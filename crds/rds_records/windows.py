"""The life of a migration window: it opens, follows KubeVirt's run, gets exactly one result, and goes to the history. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

from rds_records import messages
from rds_records.conditions import settled
from rds_records.decisions import Decided
from rds_records.kubevirt_evidence import LiveMigration
from rds_records.kubevirt_objects import MigrationState
from rds_records.kubevirt_runs import Verdict, VerdictGround
from rds_records.outbox import announce, outbox_entry
from rds_records.record import (
    MAX_HISTORY,
    MAX_PENDING,
    Announcement,
    Attachment,
    ClosedWindow,
    DualAttachPolicy,
    ObjectReference,
    Origin,
    OutboxEntry,
    Record,
    Result,
    Status,
    VolumeMode,
    Window,
)

ANY_TWO_NODES_TIMEOUT_SECONDS: Final = 300
MAX_SECONDS: Final = 2**31 - 1

VERDICT_OF_INTEREST: Final = timedelta(hours=1)
"""How long after its end a window that got its result without KubeVirt may still hear from it."""

PENDING_LIMIT: Final = timedelta(minutes=10)
"""How long an ended window waits for KubeVirt's verdict before who left decides."""

AnyWindow = TypeVar("AnyWindow", bound=Window)


class Ground(StrEnum):
    """Why a window got its result."""

    SOURCE_LEFT = "SourceLeft"
    ROLLED_BACK = "RolledBack"
    ALL_LEFT = "AllLeft"
    TIMEOUT = "Timeout"
    SUPERSEDED = "Superseded"
    """KubeVirt began another run between the two nodes, and said nothing of this one: where the VM runs decides."""


def allowed_nodes(record: Record, attachments: Sequence[Attachment]) -> int:
    """Return how many nodes may hold the volume at once, as these hold it."""
    shared = record.spec.volume_mode is VolumeMode.BLOCK and all(held.access_mode.multi_node for held in attachments)
    return 2 if shared else 1


def open_imported_window(record: Record, start: datetime) -> Record:
    """Open the window of two nodes that were found attached rather than admitted; the older attachment is the source."""
    older, younger = sorted(record.status.attachments, key=lambda held: held.attach_time)
    # Named after both: where three were found, an attachment can be the younger one of two windows, one after the other.
    window_id = f"{older.id}-{younger.id}"
    window = open_window(record, older.node_name, younger.node_name, start, window_id, origin=Origin.IMPORTED)
    return record.replace(status=announce(record.status.replace(migration=window), started_entry(record, window)))


def open_window(
    record: Record,
    source: str,
    target: str,
    start: datetime,
    window_id: str,
    *,
    origin: Origin = Origin.PUBLISH,
    run: LiveMigration | None = None,
) -> Window:
    """Return a new window between two nodes, with its deadline; of KubeVirt's ``run`` where there is one."""
    window = Window(id=window_id, origin=origin, source_node=source, target_node=target, start_time=start)
    return _with_deadline(record, _of_run(window, run) if run else window)


def _of_run(window: Window, run: LiveMigration) -> Window:
    """Return the window with what KubeVirt's run is called."""
    return window.replace(
        vmi=ObjectReference(namespace=run.vmi.namespace, name=run.vmi.name, uid=run.vmi.uid or None),
        live_node=run.vmi.node or None,
        migration_name=run.migration.name,
        migration_uid=run.migration.uid,
        source_pod=run.source_pod.name,
        target_pod=run.target_pod.name,
    )


def close_window(record: Record, status: Status, window: Window, gone: Sequence[str], now: datetime) -> Status:
    """Return the status after these nodes of the window left: with a result, or waiting for KubeVirt's verdict."""
    result, ground, live = _outcome(window, gone)
    kind = Announcement.ENDED
    if window.result is None and window.migration_uid is None:
        window = window.replace(result=result, result_time=now, reason=ground.value)
        kind = Announcement(result.value)
    return _to_history(record, status, window.replace(live_node=live), kind, gone, now)


def _to_history(record: Record, status: Status, window: Window, kind: Announcement, gone: Sequence[str], now: datetime) -> Status:
    elapsed = (now - window.start_time).total_seconds()
    duration = max(0.0, round(elapsed, 3))
    closed = ClosedWindow.model_validate(
        {
            **window.model_dump(exclude_none=True),
            "end_time": max(now, window.start_time),
            "left_node": gone[0] if len(gone) == 1 else None,
            "duration_seconds": duration,
        }
    )
    told = {
        Announcement.SUCCEEDED: lambda: messages.completed(record.handle, window, duration, gone),
        Announcement.FAILED: lambda: messages.failed(record.handle, window, duration, gone),
        Announcement.ENDED: lambda: messages.ended(record.handle, window, duration, gone),
    }
    entry = outbox_entry(window, kind, told[kind](), now).replace(
        duration_seconds=duration, clock_clamped=True if elapsed < 0 else None
    )
    status = announce(status.replace(migration=None, history=(*status.history, closed)), entry)
    with_result = [old.id for old in status.history if old.result]
    dropped = set(with_result[:-MAX_HISTORY])
    status = status.replace(history=tuple(old for old in status.history if old.id not in dropped))
    # A record has room for so many; an operator that is away for that long must not stop a detach. What is decided now is dropped
    # by a later write at the earliest, so that nobody can miss its result.
    while len(status.pending) > MAX_PENDING:
        status = _decide_by_who_left(record, status, status.pending[0], now)
    return status


def _outcome(window: Window, gone: Sequence[str]) -> tuple[Result, Ground, str | None]:
    """Return what it means that these nodes left, and where the volume stays."""
    if len(gone) > 1:
        return Result.FAILED, Ground.ALL_LEFT, None
    if gone[0] == window.source_node:
        return Result.SUCCEEDED, Ground.SOURCE_LEFT, window.target_node
    return Result.FAILED, Ground.ROLLED_BACK, window.source_node


def expire(record: Record, *, now: datetime, elapsed: timedelta) -> Record | None:
    """Return the record with its open window's deadline up to date, TimedOut if it has passed; None if nothing changes.

    ``elapsed`` is how long the window is open for certain; the caller measures it so that clocks which disagree make it shorter,
    never longer. Both nodes stay attached: nobody may pull a disk from under a running VM.
    """
    window = record.status.migration
    if window is None or window.result:
        return None
    current = _with_deadline(record, window)
    limit = time_limit(record)
    if limit is None or elapsed < limit:
        if current == window:
            return None
        return settled(record, record.status.replace(migration=current), now)
    timed_out = current.replace(result=Result.TIMED_OUT, result_time=now, reason=Ground.TIMEOUT.value)
    entry = outbox_entry(window, Announcement.TIMED_OUT, messages.timed_out(record.handle, current, elapsed), now)
    return settled(record, announce(record.status.replace(migration=timed_out), entry), now)


def timeout_of(record: Record) -> int | None:
    """Return the seconds of the limit that counts now: of the open window, else of one to come; None where there is none yet."""
    limit = _limit(record, record.status.migration)
    return limit[0] if limit else None


def time_limit(record: Record) -> timedelta | None:
    """Return how long the open window may be open, counted from its start; None where it has no deadline (yet)."""
    window = record.status.migration
    limit = _limit(record, window)
    if window is None or limit is None:
        return None
    seconds, since = limit
    return timedelta(seconds=seconds) + ((since or window.start_time) - window.start_time)


def _limit(record: Record, window: Window | None) -> tuple[int, datetime | None] | None:
    """Return a limit in seconds and the moment from which it counts (None: the window's start)."""
    if record.spec.migration_timeout_seconds is not None:
        return record.spec.migration_timeout_seconds, None
    if window and window.migration_uid:
        # Windows follow the run that opened them, also where the policy is edited meanwhile.
        known = window.kubevirt_timeout_seconds and window.run_start_time
        return (window.kubevirt_timeout_seconds or 0, window.run_start_time) if known else None
    if record.spec.dual_attach_policy is DualAttachPolicy.ANY_TWO_NODES:
        return ANY_TWO_NODES_TIMEOUT_SECONDS, None
    return None


def _with_deadline(record: Record, window: Window) -> Window:
    limit = _limit(record, window)
    if limit is None:
        return window.replace(timeout_seconds=None, deadline_time=None)
    seconds, since = limit
    return window.replace(timeout_seconds=seconds, deadline_time=(since or window.start_time) + timedelta(seconds=seconds))


def to_follow(record: Record, *, now: datetime) -> tuple[Window, ...]:
    """Return the windows of KubeVirt's runs of which something is still to be learned: the open one, and ended ones for a while.

    That is where the verdict is missing, and where the node left that should have stayed: it may have left for a later run.
    """
    window = record.status.migration
    ended = (old for old in record.status.history if old.result is None or now - old.end_time < VERDICT_OF_INTEREST)
    wanted = [old for old in ended if old.migration_uid and (not _has_verdict(old) or _wrong_node_left(old))]
    running = [window] if window and window.migration_uid and not _has_verdict(window) else []
    return (*wanted, *running)


def _wrong_node_left(window: ClosedWindow) -> bool:
    stays = {Result.SUCCEEDED: window.target_node, Result.FAILED: window.source_node}
    return window.left_node is not None and window.left_node == stays.get(
        window.kubevirt_result or window.result or Result.TIMED_OUT
    )


def _has_verdict(window: Window) -> bool:
    return window.kubevirt_result is not None or window.reason in set(VerdictGround)


def observe_run(
    record: Record,
    *,
    start: datetime | None,
    timeout_seconds: int | None,
    live_node: str | None,
    now: datetime,
    migration_uid: str | None = None,
) -> Decided:
    """Keep in the open window what KubeVirt says of its run while it goes on; ``migration_uid`` is the run that was looked at.

    ``start`` is KubeVirt's startTimestamp, another machine's clock: the deadline counts from the first time that anybody here saw
    it. ``timeout_seconds`` is None where KubeVirt has no limit, also where it has none any more (post-copy).
    """
    window = record.status.migration
    if window is None or window.migration_uid is None or migration_uid not in {None, window.migration_uid}:
        return Decided(record, changed=False)
    seen = window.run_start_time or (max(now, window.start_time) if start else None)
    current = window.replace(
        live_node=live_node or window.live_node,
        kubevirt_start_time=start or window.kubevirt_start_time,
        kubevirt_timeout_seconds=None if timeout_seconds is None else min(timeout_seconds, MAX_SECONDS),
        run_start_time=seen,
    )
    if not window.result:
        current = _with_deadline(record, current)
    if current == window:
        return Decided(record, changed=False)
    return Decided(settled(record, record.status.replace(migration=current), now), changed=True)


def conclude(record: Record, verdict: Verdict, *, now: datetime) -> Decided:
    """Take in what KubeVirt says of a run: the result of its window, open or ended, or beside a result that was set without it.

    A second time it changes nothing, so a lost answer or a second look does no harm.
    """
    status = record.status
    window = status.migration
    if window and window.migration_uid == verdict.migration_uid:
        known = _with_verdict(window, verdict, now)
        if known:
            known = known.replace(live_node=verdict.live_node or window.live_node)
            status = announce(status.replace(migration=known), _concluded(record, window, known, now))
    for old in status.history:
        known = _with_verdict(old, verdict, now) if old.migration_uid == verdict.migration_uid else None
        if known:
            history = tuple(known if one.id == old.id else one for one in status.history)
            status = announce(status.replace(history=history), _concluded(record, old, known, now))
    if status is record.status:
        return Decided(record, changed=False)
    return Decided(settled(record, status, now), changed=True)


def _with_verdict(window: AnyWindow, verdict: Verdict, now: datetime) -> AnyWindow | None:
    """Return the window with the verdict in it; None where KubeVirt's was known already."""
    if _has_verdict(window):
        return None
    if window.result and window.result is not Result.TIMED_OUT and verdict.ground == VerdictGround.MIGRATION_GONE:
        # Who left had decided already; that the migration is gone says nothing more.
        return None
    told = window.replace(
        failure_reason=verdict.reason[:1024] or None,
        kubevirt_start_time=verdict.start or window.kubevirt_start_time,
        kubevirt_end_time=verdict.end or window.kubevirt_end_time,
    )
    if window.result:
        return told.replace(kubevirt_result=verdict.result)
    return told.replace(result=verdict.result, result_time=now, reason=verdict.ground)


def _concluded(record: Record, before: Window, window: Window, now: datetime) -> OutboxEntry:
    """Return what is told of a window that got KubeVirt's verdict, or that of who left."""
    if before.result:
        kind, text = Announcement.VERDICT, messages.verdict(record.handle, window)
    else:
        closed = window if isinstance(window, ClosedWindow) else None
        duration = closed.duration_seconds if closed else (now - window.start_time).total_seconds()
        kind = Announcement.SUCCEEDED if window.result is Result.SUCCEEDED else Announcement.FAILED
        say = messages.completed if kind is Announcement.SUCCEEDED else messages.failed
        text = say(record.handle, window, duration, _gone(closed) if closed else ())
    start, end = window.kubevirt_start_time, window.kubevirt_end_time
    took = max(0.0, round((end - start).total_seconds(), 3)) if start and end else None
    return outbox_entry(window, kind, text, now).replace(kubevirt_duration_seconds=took)


def _gone(window: ClosedWindow) -> tuple[str, ...]:
    """Return who left when the window ended; nobody where another one began between the same two nodes."""
    if window.left_node:
        return (window.left_node,)
    return () if window.reason == Ground.SUPERSEDED else (window.source_node, window.target_node)


def conclude_pending(record: Record, window_id: str, *, now: datetime) -> Decided:
    """Let who left decide for an ended window that waits for a verdict that nobody can read."""
    window = next((old for old in record.status.pending if old.id == window_id), None)
    if window is None:
        return Decided(record, changed=False)
    return Decided(settled(record, _decide_by_who_left(record, record.status, window, now), now), changed=True)


def _decide_by_who_left(record: Record, status: Status, window: ClosedWindow, now: datetime) -> Status:
    result, ground, _ = _outcome(window, _gone(window))
    known = window.replace(result=result, result_time=now, reason=ground.value)
    history = tuple(known if old.id == window.id else old for old in status.history)
    return announce(status.replace(history=history), _concluded(record, window, known, now))


def supersede(record: Record, run: LiveMigration, old: Verdict | None, *, now: datetime, new_id: str) -> Decided:
    """Follow KubeVirt to another run between the two attached nodes: end the open window and open the next, with the run's roles.

    The old window ends by its verdict ``old``, else by where the VM was when the run began. A window that was found rather than
    admitted, and names no migration yet, becomes the window of the run where the roles are the same. ``new_id`` names the new one.
    """
    window = record.status.migration
    nodes = {held.node_name for held in record.status.attachments}
    if window is None or window.migration_uid == run.migration.uid or nodes != {run.source_node, run.target_node}:
        return Decided(record, changed=False)
    if window.migration_uid is None and not window.result and window.source_node == run.source_node:
        status = record.status.replace(migration=_with_deadline(record, _of_run(window, run)))
        return Decided(settled(record, status, now), changed=True)
    if old and old.migration_uid == window.migration_uid:
        record = conclude(record, old, now=now).record
    status = record.status
    window = status.migration or window
    # Not where the VM is now: this run may have moved it already.
    live = run.source_node
    if window.result is None:
        result = Result.SUCCEEDED if live == window.target_node else Result.FAILED
        decided = window.replace(result=result, result_time=now, reason=Ground.SUPERSEDED.value, live_node=live)
        status = announce(status, _concluded(record, window, decided, now))
        window = decided
    status = _to_history(record, status, window.replace(live_node=live), Announcement.ENDED, (), now)
    opened = open_window(record, run.source_node, run.target_node, now, new_id, origin=Origin.OBSERVED, run=run)
    status = announce(status.replace(migration=opened), started_entry(record, opened))
    return Decided(settled(record, status, now), changed=True)


def add_missed(record: Record, window_id: str, state: MigrationState, *, migration_name: str | None, now: datetime) -> Decided:
    """Put a run into the history that came after an ended window, between the same nodes, and that nobody saw while it went on.

    The node that left, left for this run, so the older window ends where this one begins. Everything about the new window is told
    at once. ``state`` is the run as its VM shows it, over; a second time it changes nothing.
    """
    status = record.status
    older = next((one for one in status.history if one.id == window_id), None)
    if older is None or state.migration_uid in runs_of(record):
        return Decided(record, changed=False)
    begun = min(max(state.start or older.end_time, older.start_time), older.end_time)
    failed = state.failed or state.abort_succeeded
    facts = older.model_dump(include={"timeout_seconds", "end_time", "left_node", "vmi"}, exclude_none=True)
    newer = ClosedWindow(
        **facts,
        id=state.migration_uid,
        origin=Origin.OBSERVED,
        source_node=state.source_node,
        target_node=state.target_node,
        start_time=begun,
        duration_seconds=_seconds(begun, older.end_time),
        result=Result.FAILED if failed else Result.SUCCEEDED,
        result_time=now,
        reason=VerdictGround.MIGRATION_STATE.value,
        failure_reason=state.failure_reason[:1024] or None,
        live_node=older.source_node if older.left_node == older.target_node else older.target_node,
        migration_name=migration_name,
        migration_uid=state.migration_uid,
        kubevirt_start_time=state.start,
        kubevirt_end_time=state.end,
    )
    older = older.replace(
        end_time=begun, left_node=None, live_node=state.source_node, duration_seconds=_seconds(older.start_time, begun)
    )
    position = [one.id for one in status.history].index(window_id)
    history = (*status.history[:position], older, newer, *status.history[position + 1 :])
    status = announce(status.replace(history=history), started_entry(record, newer))
    status = announce(status, _concluded(record, newer.replace(result=None), newer, now))
    told = messages.ended(record.handle, newer, newer.duration_seconds, _gone(newer))
    ended = outbox_entry(newer, Announcement.ENDED, told, now).replace(duration_seconds=newer.duration_seconds)
    return Decided(settled(record, announce(status, ended), now), changed=True)


def runs_of(record: Record) -> set[str]:
    """Return the uids of all KubeVirt's runs that the record knows."""
    windows = (*record.status.history, *([record.status.migration] if record.status.migration else []))
    return {one.migration_uid for one in windows if one.migration_uid}


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, round((end - start).total_seconds(), 3))


def started_entry(record: Record, window: Window) -> OutboxEntry:
    """Return the announcement that a window opened."""
    return outbox_entry(window, Announcement.STARTED, messages.started(record.handle, window), window.start_time)
