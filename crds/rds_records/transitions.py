"""The rules: who may attach, what a detach means, how a migration ends. Pure: values in, values out, no I/O and no clock.

Every function takes a record and returns a new one, or a ``Refused`` that says why not. Writers apply the same function again
to a fresh read when their write met a conflict, so each function must be safe on a record to which it was applied before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar

from rds_records import messages
from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable, LiveMigration, NotExplained, Rule
from rds_records.kubevirt_runs import Verdict, VerdictGround
from rds_records.record import (
    MAX_HISTORY,
    MAX_OUTBOX,
    MAX_PENDING,
    MAX_REFUSALS,
    AccessMode,
    Announcement,
    Attachment,
    ClosedWindow,
    Condition,
    Counts,
    DualAttachPolicy,
    ObjectReference,
    Origin,
    OutboxEntry,
    Phase,
    Record,
    Refusal,
    Result,
    Status,
    VolumeMode,
    Window,
)

ANY_TWO_NODES_TIMEOUT_SECONDS: Final = 300
SLOW_START: Final = timedelta(minutes=20)
"""A migration that did not start to move its VM for that long deserves a warning; KubeVirt has no limit for it."""

LEAVING_OVERDUE: Final = timedelta(minutes=10)
"""How long after the result both nodes may stay attached without a warning."""

LONG_RUN: Final = timedelta(hours=2)
"""A run without a limit deserves a warning after that."""

MAX_MESSAGE: Final = 2048
MAX_SECONDS: Final = 2**31 - 1

go_duration = messages.go_duration

AnyWindow = TypeVar("AnyWindow", bound=Window)

REFUSAL_REPEAT: Final = timedelta(minutes=1)
"""A repeated refusal is written at most this often."""


class Code(StrEnum):
    """The answer class of a refusal, by its gRPC name."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    UNAVAILABLE = "UNAVAILABLE"


class Reason(StrEnum):
    """The rule that refused, for machines; the message is for people."""

    NOT_INITIALIZED = "NotInitialized"
    DELETING = "VolumeDeleting"
    NODE_NOT_FOUND = "NodeNotFound"
    NODE_UNKNOWN = "NodeUnknown"
    OTHER_CLASS = "AttachedDifferently"
    WRONG_VOLUME_MODE = "WrongVolumeMode"
    MULTI_NODE_FILESYSTEM = "MultiNodeFilesystem"
    SINGLE_NODE = "AttachedElsewhere"
    NO_MIGRATION = "NoLiveMigration"
    NO_EVIDENCE = "EvidenceUnavailable"
    NO_SLOT = "TwoNodesAttached"
    INCONSISTENT = "Inconsistent"
    LATE_DETACH = "LateDetach"
    STILL_ATTACHED = "StillAttached"


class Ground(StrEnum):
    """Why a window got its result."""

    SOURCE_LEFT = "SourceLeft"
    ROLLED_BACK = "RolledBack"
    ALL_LEFT = "AllLeft"
    TIMEOUT = "Timeout"
    SUPERSEDED = "Superseded"
    """KubeVirt began another run between the two nodes, and said nothing of this one: where the VM runs decides."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a node wants to use a volume; two accesses are compared by class, not by CSI enum.

    RWO arrives as SINGLE_NODE_WRITER or as SINGLE_NODE_MULTI_WRITER, depending on what the sidecar knows of the driver.
    """

    mode: AccessMode
    volume_mode: VolumeMode
    read_only: bool = False

    def same_class(self, held: Attachment, volume_mode: VolumeMode) -> bool:
        """Tell whether an attachment of a volume of that mode serves this access."""
        return (self.mode.multi_node, self.volume_mode, self.read_only) == (
            held.access_mode.multi_node,
            volume_mode,
            held.read_only,
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """No, with the rule and what to do about it."""

    code: Code
    reason: Reason
    message: str
    vmi: ObjectReference | None = None
    """The VM whose pod waits, where that is known."""


@dataclass(frozen=True, slots=True)
class Decided:
    """Yes; ``changed`` tells whether there is anything to write."""

    record: Record
    changed: bool


def needs_evidence(record: Record, node: str, access: Access) -> str | None:
    """Return the holding node where an attach of this node depends on whether KubeVirt migrates a VM from there; else None."""
    held = record.status.attachments
    if record.spec.dual_attach_policy is not DualAttachPolicy.KUBEVIRT or len(held) != 1 or held[0].node_name == node:
        return None
    if _refuse_in_any_case(record, access) or _refuse_volume_mode(record, access) or _refuse_other_nodes(record, node, access):
        return None
    return held[0].node_name


def attach(
    record: Record,
    node: str,
    access: Access,
    *,
    now: datetime,
    new_id: str,
    node_exists: bool | None,
    evidence: Evidence | None = None,
) -> Decided | Refused:
    """Decide whether the node may use the volume, and record it.

    ``node_exists`` is None where nobody could tell. ``new_id`` names the attachment, and the window if this opens one.
    ``evidence`` is wanted where ``needs_evidence`` says so, for its two nodes.
    """
    status = record.status
    held = status.attachment_of(node)
    refusal = _refuse_in_any_case(record, access)
    if refusal:
        return refusal
    if held:
        if access.same_class(held, record.spec.volume_mode):
            return Decided(record, changed=False)
        return Refused(
            Code.ALREADY_EXISTS,
            Reason.OTHER_CLASS,
            f"volume {record.handle} is attached to node {node} already, as {_describe(held, record.spec.volume_mode)}, and cannot "
            f"be attached there a second time as {_describe_access(access)}; detach it from {node} first",
        )
    refusal = (
        _refuse_volume_mode(record, access)
        or _refuse_other_nodes(record, node, access)
        or _refuse_without_migration(record, node, evidence)
        or _refuse_node(record, node, node_exists)
    )
    if refusal:
        return refusal
    attachment = Attachment(node_name=node, id=new_id, access_mode=access.mode, read_only=access.read_only, attach_time=now)
    refusals = tuple(refused for refused in status.refusals if refused.node_name != node)
    attached = status.replace(attachments=(*status.attachments, attachment), refusals=refusals)
    if status.attachments:
        asked = record.spec.dual_attach_policy is DualAttachPolicy.KUBEVIRT
        run = evidence if asked and isinstance(evidence, LiveMigration) else None
        window = _open_window(record, status.attachments[0].node_name, node, now, new_id, run=run)
        attached = _announce(attached.replace(migration=window), _started(record, window))
    return Decided(_settled(record, attached, now), changed=True)


def _refuse_in_any_case(record: Record, access: Access) -> Refused | None:
    if access.mode.multi_node and access.volume_mode is VolumeMode.FILESYSTEM:
        return Refused(
            Code.INVALID_ARGUMENT,
            Reason.MULTI_NODE_FILESYSTEM,
            f"volume {record.handle}: {access.mode} with a filesystem would let two nodes corrupt it; use volumeMode Block",
        )
    if not record.initialized:
        return Refused(
            Code.UNAVAILABLE,
            Reason.NOT_INITIALIZED,
            f"volume {record.handle}: its record does not say yet who holds it; try again",
        )
    if record.status.deleting:
        return Refused(
            Code.FAILED_PRECONDITION,
            Reason.DELETING,
            f"volume {record.handle} is being deleted and can no longer be attached; if the deletion is stuck, "
            f"`kubectl describe var {record.metadata.name}` shows where",
        )
    return None


def _refuse_volume_mode(record: Record, access: Access) -> Refused | None:
    if access.volume_mode is record.spec.volume_mode:
        return None
    return Refused(
        Code.INVALID_ARGUMENT,
        Reason.WRONG_VOLUME_MODE,
        f"volume {record.handle} has volumeMode {record.spec.volume_mode} and cannot be attached as {access.volume_mode}",
    )


def _refuse_other_nodes(record: Record, node: str, access: Access) -> Refused | None:
    others = record.status.attachments
    if not others:
        return None
    consistent = record.status.condition("Consistent")
    if consistent and consistent.status == "False":
        return Refused(
            Code.UNAVAILABLE,
            Reason.INCONSISTENT,
            f"volume {record.handle} cannot be attached to node {node} now: {consistent.message}; it is being repaired, try again",
        )
    holders = " and ".join(held.node_name for held in others)
    if len(others) > 1:
        return Refused(Code.FAILED_PRECONDITION, Reason.NO_SLOT, _no_slot(record, node, holders))
    if not (access.mode.multi_node and others[0].access_mode.multi_node):
        single = f"node {node} asks for it" if not access.mode.multi_node else f"node {holders} holds it"
        return Refused(
            Code.FAILED_PRECONDITION,
            Reason.SINGLE_NODE,
            f"volume {record.handle} is attached to node {holders} and cannot be attached to node {node}: {single} for one node "
            f"only; stop the pod on {holders} first, or use ReadWriteMany with volumeMode Block for live migration",
        )
    return None


def _refuse_without_migration(record: Record, node: str, evidence: Evidence | None) -> Refused | None:
    held = record.status.attachments
    if not held or record.spec.dual_attach_policy is not DualAttachPolicy.KUBEVIRT:
        return None
    holder = held[0].node_name
    no = f"volume {record.handle} is attached to node {holder} and cannot be attached to node {node} too"
    any_two = (
        f"stop the pod on {holder} first, or set spec.dualAttachPolicy: AnyTwoNodes on the record {record.metadata.name} if "
        "whoever uses the volume arbitrates between two writers"
    )
    again = "the attach is tried again (csi-attacher: at most 5 minutes later)"
    match evidence:
        case LiveMigration(source_node=source, target_node=target) if (source, target) == (holder, node):
            return None
        case LiveMigration():
            text = f"{no} now: who holds it changed meanwhile; {again}"
            return Refused(Code.UNAVAILABLE, Reason.NO_EVIDENCE, text)
        case EvidenceUnavailable(text=trouble):
            text = f"{no} now: whether KubeVirt migrates a VM from {holder} to {node} could not be found out: {trouble}; {again}"
            return Refused(Code.UNAVAILABLE, Reason.NO_EVIDENCE, text)
        case NotExplained(rule=Rule.NO_KUBEVIRT, text=why):
            # Nothing will ever explain it here, so the other policy is named; nowhere else, because it lets any pod in.
            text = f"{no}: dualAttachPolicy KubeVirt, {Rule.NO_KUBEVIRT}: {why}; {any_two}; {again}"
            return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text)
        case NotExplained(rule=rule, text=why):
            works = f"works once a live migration explains it or {holder} left"
            text = f"{no}: dualAttachPolicy KubeVirt, {rule}: {why}; {again} and {works}"
            return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text, _vmi_of(evidence))
    text = (
        f"{no}: its dualAttachPolicy KubeVirt admits a second node only with evidence of a live migration, and this version does "
        f"not look for any yet; {any_two}"
    )
    return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text)


def _vmi_of(evidence: NotExplained) -> ObjectReference | None:
    if evidence.vmi is None or not evidence.namespace:
        return None
    return ObjectReference(namespace=evidence.namespace, name=evidence.vmi.name, uid=evidence.vmi.uid or None)


def _no_slot(record: Record, node: str, holders: str) -> str:
    window = record.status.migration
    text = f"volume {record.handle} is attached to nodes {holders}, the limit, and cannot be attached to node {node} too"
    if window is None:
        return f"{text}; detach it from all but one of them first"
    text += f": a migration from {window.source_node} to {window.target_node} runs since {messages.clock(window.start_time)}"
    if window.result:
        text += f" (result: {window.result})"
        leaving = messages.leaving_node(window)
        text += f" and node {leaving} has to leave" if leaving else ""
        overdue = record.status.condition("LeavingOverdue")
        if overdue and overdue.status == "True":
            text += f"; {overdue.message}"
    elif window.deadline_time:
        text += f", its deadline is {messages.clock(window.deadline_time)}"
    return f"{text}; the attach is tried again (csi-attacher: at most 5 minutes later) and works once one of the two has left"


def _refuse_node(record: Record, node: str, node_exists: bool | None) -> Refused | None:
    if node_exists is None:
        return Refused(
            Code.UNAVAILABLE,
            Reason.NODE_UNKNOWN,
            f"volume {record.handle}: whether Node {node} exists could not be read from the API server; try again",
        )
    if not node_exists:
        return Refused(Code.NOT_FOUND, Reason.NODE_NOT_FOUND, f"volume {record.handle} cannot be attached: there is no Node {node}")
    return None


def detach(record: Record, node: str, *, attachment_id: str | None, wanted: bool, now: datetime) -> Decided | Refused:
    """Take the node's attachment off the record.

    ``attachment_id`` is the attachment that the caller saw when it began (None: none); ``wanted`` tells that the node's
    VolumeAttachment exists and is not being deleted. Either way of being too late answers ABORTED and changes nothing.
    """
    held = record.status.attachment_of(node)
    if held is None:
        return _clear_refusal(record, node)
    if held.id != attachment_id or wanted:
        since = f"is attached to node {node} since {messages.clock(held.attach_time)}"
        why = "its VolumeAttachment exists and is not being deleted" if wanted else "that is a newer attachment than the one to end"
        return Refused(Code.ABORTED, Reason.LATE_DETACH, f"volume {record.handle} {since}: {why}; this detach came too late")
    return Decided(_without(record, (node,), now), changed=True)


def detach_all(record: Record, *, attachment_ids: Sequence[str], now: datetime) -> Decided:
    """Take off every attachment that the caller saw when it began (a ControllerUnpublishVolume without a node id)."""
    leaving = tuple(held.node_name for held in record.status.attachments if held.id in attachment_ids)
    if not leaving:
        return Decided(record, changed=False)
    return Decided(_without(record, leaving, now), changed=True)


def _clear_refusal(record: Record, node: str) -> Decided:
    # csi-attacher unpublishes the nodes that were refused as well, so this is the end of a refusal.
    kept = tuple(refused for refused in record.status.refusals if refused.node_name != node)
    if len(kept) == len(record.status.refusals):
        return Decided(record, changed=False)
    return Decided(record.with_status(refusals=kept), changed=True)


def _without(record: Record, leaving: Sequence[str], now: datetime) -> Record:
    status = record.status
    kept = tuple(held for held in status.attachments if held.node_name not in leaving)
    refusals = tuple(refused for refused in status.refusals if refused.node_name not in leaving)
    changed = status.replace(attachments=kept, refusals=refusals)
    window = status.migration
    gone = [node for node in leaving if window and node in {window.source_node, window.target_node}]
    if window and gone:
        changed = _close_window(record, changed, window, gone, now)
    if changed.over_attached and len(kept) <= allowed_nodes(record, kept):
        changed = changed.replace(over_attached=None)
        if len(kept) == 2 and changed.migration is None:
            changed = open_imported_window(record.replace(status=changed), now).status
    return _settled(record, changed, now)


def allowed_nodes(record: Record, attachments: Sequence[Attachment]) -> int:
    """Return how many nodes may hold the volume at once, as these hold it."""
    shared = record.spec.volume_mode is VolumeMode.BLOCK and all(held.access_mode.multi_node for held in attachments)
    return 2 if shared else 1


def open_imported_window(record: Record, start: datetime) -> Record:
    """Open the window of two nodes that were found attached rather than admitted; the older attachment is the source."""
    older, younger = sorted(record.status.attachments, key=lambda held: held.attach_time)
    # Named after both: where three were found, an attachment can be the younger one of two windows, one after the other.
    window_id = f"{older.id}-{younger.id}"
    window = _open_window(record, older.node_name, younger.node_name, start, window_id, origin=Origin.IMPORTED)
    return record.replace(status=_announce(record.status.replace(migration=window), _started(record, window)))


def _open_window(
    record: Record,
    source: str,
    target: str,
    start: datetime,
    window_id: str,
    *,
    origin: Origin = Origin.PUBLISH,
    run: LiveMigration | None = None,
) -> Window:
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


def _close_window(record: Record, status: Status, window: Window, gone: Sequence[str], now: datetime) -> Status:
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
    entry = _entry(window, kind, told[kind](), now).replace(duration_seconds=duration, clock_clamped=True if elapsed < 0 else None)
    status = _announce(status.replace(migration=None, history=(*status.history, closed)), entry)
    # A record has room for so many; an operator that is away for that long must not stop a detach.
    while len(status.pending) > MAX_PENDING:
        status = _decide_by_who_left(record, status, status.pending[0], now)
    with_result = [old.id for old in status.history if old.result]
    dropped = set(with_result[:-MAX_HISTORY])
    return status.replace(history=tuple(old for old in status.history if old.id not in dropped))


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
        return _settled(record, record.status.replace(migration=current), now)
    timed_out = current.replace(result=Result.TIMED_OUT, result_time=now, reason=Ground.TIMEOUT.value)
    entry = _entry(window, Announcement.TIMED_OUT, messages.timed_out(record.handle, current, elapsed), now)
    return _settled(record, _announce(record.status.replace(migration=timed_out), entry), now)


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
    return Decided(_settled(record, record.status.replace(migration=current), now), changed=True)


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
            status = _announce(status.replace(migration=known), _concluded(record, window, known, now))
    for old in status.history:
        known = _with_verdict(old, verdict, now) if old.migration_uid == verdict.migration_uid else None
        if known:
            history = tuple(known if one.id == old.id else one for one in status.history)
            status = _announce(status.replace(history=history), _concluded(record, old, known, now))
    if status is record.status:
        return Decided(record, changed=False)
    return Decided(_settled(record, status, now), changed=True)


def _with_verdict(window: AnyWindow, verdict: Verdict, now: datetime) -> AnyWindow | None:
    """Return the window with the verdict in it; None where KubeVirt's was known already."""
    if window.kubevirt_result or window.reason in set(VerdictGround):
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
    return _entry(window, kind, text, now).replace(kubevirt_duration_seconds=took)


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
    return Decided(_settled(record, _decide_by_who_left(record, record.status, window, now), now), changed=True)


def _decide_by_who_left(record: Record, status: Status, window: ClosedWindow, now: datetime) -> Status:
    result, ground, _ = _outcome(window, _gone(window))
    known = window.replace(result=result, result_time=now, reason=ground.value)
    history = tuple(known if old.id == window.id else old for old in status.history)
    return _announce(status.replace(history=history), _concluded(record, window, known, now))


def supersede(record: Record, run: LiveMigration, old: Verdict | None, *, now: datetime, new_id: str) -> Decided:
    """Follow KubeVirt to another run between the two attached nodes: end the open window and open the next, with the run's roles.

    The old window ends by its verdict ``old``, else by where the VM runs. A window that was found rather than admitted, and names
    no migration yet, becomes the window of the run where the roles are the same. ``new_id`` names the new window.
    """
    window = record.status.migration
    nodes = {held.node_name for held in record.status.attachments}
    if window is None or window.migration_uid == run.migration.uid or nodes != {run.source_node, run.target_node}:
        return Decided(record, changed=False)
    if window.migration_uid is None and not window.result and window.source_node == run.source_node:
        status = record.status.replace(migration=_with_deadline(record, _of_run(window, run)))
        return Decided(_settled(record, status, now), changed=True)
    if old and old.migration_uid == window.migration_uid:
        record = conclude(record, old, now=now).record
    status = record.status
    window = status.migration or window
    live = run.vmi.node or None
    if window.result is None:
        result = Result.SUCCEEDED if live == window.target_node else Result.FAILED
        decided = window.replace(result=result, result_time=now, reason=Ground.SUPERSEDED.value, live_node=live)
        status = _announce(status, _concluded(record, window, decided, now))
        window = decided
    status = _to_history(record, status, window.replace(live_node=live), Announcement.ENDED, (), now)
    opened = _open_window(record, run.source_node, run.target_node, now, new_id, origin=Origin.OBSERVED, run=run)
    status = _announce(status.replace(migration=opened), _started(record, opened))
    return Decided(_settled(record, status, now), changed=True)


def warn(record: Record, *, now: datetime, detail: str = "") -> Record | None:
    """Return the record with a warning about its open window that is due, told once per window; None where nothing changes.

    A run that does not start, one without a limit that goes on, a node that should have left: none of them is a result. ``detail``
    says where it hangs, or what is known of the node; where it changes later, only the condition does.
    """
    window = record.status.migration
    if window is None:
        return None
    if window.result is None and window.migration_uid:
        since, name, after = window.start_time, "slow_start_time", SLOW_START
        if window.run_start_time:
            since, name, after = window.run_start_time, "long_run_time", LONG_RUN
            if window.timeout_seconds is not None:
                return None
    elif window.result in {Result.SUCCEEDED, Result.FAILED}:
        since, name, after = window.result_time or now, "leaving_overdue_time", LEAVING_OVERDUE
    else:
        return None
    elapsed = now - since
    if elapsed < after:
        return None
    kind = _WARNINGS[name]
    text = {
        Announcement.SLOW_START: lambda: messages.slow_start(record.handle, window, elapsed, detail),
        Announcement.LONG_RUN: lambda: messages.long_run(record.handle, window, elapsed),
        Announcement.LEAVING_OVERDUE: lambda: messages.leaving_overdue(record.handle, window, elapsed, detail),
    }[kind]()
    return _warned(record, window, name, text, detail, now)


_WARNINGS: Final = {
    "slow_start_time": Announcement.SLOW_START,
    "leaving_overdue_time": Announcement.LEAVING_OVERDUE,
    "long_run_time": Announcement.LONG_RUN,
}
"""Which field of a window says that a warning was given; the kind is the condition's type too."""


def _warned(record: Record, window: Window, name: str, text: str, detail: str, now: datetime) -> Record | None:
    status, kind = record.status, _WARNINGS[name]
    before = status.condition(kind)
    holds = before is not None and before.status == "True"
    message = f"{_warning(window, kind)}; {detail}" if detail else _warning(window, kind)
    if getattr(window, name) is None:
        status = _announce(status.replace(migration=window.replace(**{name: now})), _entry(window, kind, text, now))
    elif holds and before and (not detail or before.message == message):
        return None
    since = before.last_transition_time if holds and before else now
    condition = Condition(type=kind.value, status="True", reason=kind.value, message=message, last_transition_time=since)
    others = tuple(other for other in status.conditions if other.type != kind.value)
    return _settled(record, status.replace(conditions=(*others, condition)), now)


def _warning(window: Window, kind: Announcement) -> str:
    if kind is Announcement.LEAVING_OVERDUE:
        since = messages.clock(window.result_time) if window.result_time else "long ago"
        node = messages.leaving_node(window)
        return f"{window.result} since {since}, and node {node} has not left; {messages.release(window)}"
    if kind is Announcement.SLOW_START:
        return f"two nodes are attached since {messages.clock(window.start_time)} and KubeVirt has not started to move the VM"
    return f"KubeVirt moves the VM since {messages.clock(window.run_start_time or window.start_time)} and sets no limit"


def _entry(window: Window, kind: Announcement, text: str, now: datetime) -> OutboxEntry:
    return OutboxEntry(
        id=f"{window.id}-{kind.lower()}",
        kind=kind,
        time=now,
        source_node=window.source_node,
        target_node=window.target_node,
        message=text,
        vmi=window.vmi,
    )


def begin_deletion(record: Record, *, now: datetime) -> Decided | Refused:
    """Mark the volume as going away, so that no attach can slip in before the disk is gone."""
    if not record.initialized:
        return Refused(
            Code.UNAVAILABLE,
            Reason.NOT_INITIALIZED,
            f"volume {record.handle}: its record does not say yet who holds it; try again",
        )
    if record.status.attachments:
        holders = " and ".join(held.node_name for held in record.status.attachments)
        return Refused(
            Code.FAILED_PRECONDITION,
            Reason.STILL_ATTACHED,
            f"volume {record.handle} is attached to {holders} and cannot be deleted; it is tried again once the volume is detached",
        )
    if record.status.deleting:
        return Decided(record, changed=False)
    return Decided(_settled(record, record.status.replace(deleting=True), now), changed=True)


def initialize(record: Record, *, now: datetime) -> Decided:
    """Say of a new volume that nobody holds it."""
    if record.initialized:
        return Decided(record, changed=False)
    return Decided(_settled(record, record.status.replace(initialized=True), now), changed=True)


def note_refusal(record: Record, node: str, refused: Refused, *, now: datetime) -> Record | None:
    """Return the record with the refusal noted, or None where it was noted less than a minute ago."""
    known = next((seen for seen in record.status.refusals if (seen.node_name, seen.reason) == (node, refused.reason)), None)
    if known and now - known.last_time < REFUSAL_REPEAT:
        return None
    message = refused.message[:1024]
    if known:
        noted = known.replace(message=message, last_time=now, count=known.count + 1, vmi=refused.vmi)
    else:
        noted = Refusal(
            node_name=node, reason=refused.reason, message=message, first_time=now, last_time=now, count=1, vmi=refused.vmi
        )
    others = [seen for seen in record.status.refusals if seen.node_name != node]
    others.sort(key=lambda seen: seen.last_time)
    return record.with_status(refusals=(*others[-(MAX_REFUSALS - 1) :], noted))


def derive_phase(status: Status) -> Phase:
    """Return the one word for people."""
    window = status.migration
    if window:
        overdue = window.result is Result.TIMED_OUT or window.leaving_overdue_time
        return Phase.OVERDUE if overdue else Phase.MIGRATING
    return Phase.ATTACHED if status.attachments else Phase.DETACHED


def settle(record: Record, *, now: datetime) -> Record:
    """Return the record with everything up to date that follows from the rest of its status."""
    return _settled(record, record.status, now)


def _settled(record: Record, status: Status, now: datetime) -> Record:
    """Return the record with this status and everything that follows from it: phase, nodes, conditions."""
    phase = derive_phase(status)
    nodes = ",".join(held.node_name for held in status.attachments)
    window = status.migration
    generation = record.metadata.generation
    wanted = [
        _condition("Attached", bool(nodes), nodes and f"attached to {nodes.replace(',', ' and ')}", "no node is attached"),
        _condition(
            "Migrating",
            window is not None,
            _migrating(window) if window else None,
            "no two nodes are attached",
        ),
        _condition(
            "Overdue",
            phase is Phase.OVERDUE,
            _overdue(window) if window else None,
            "no migration is past its deadline",
        ),
        *_warning_conditions(status),
    ]
    kept = [condition for condition in status.conditions if condition.type not in {new.type for new in wanted}]
    for new in wanted:
        old = status.condition(new.type)
        since = old.last_transition_time if old and old.status == new.status else now
        kept.append(new.replace(last_transition_time=since, observed_generation=generation))
    kept.sort(key=lambda condition: condition.type)
    return record.replace(
        status=status.replace(
            phase=phase,
            nodes=nodes,
            conditions=tuple(kept),
            observed_generation=generation or status.observed_generation,
        )
    )


def _migrating(window: Window) -> str:
    text = f"from {window.source_node} to {window.target_node} since {messages.clock(window.start_time)}"
    leaving = messages.leaving_node(window)
    return f"{text}; {window.result}, node {leaving} has not left yet" if leaving else text


def _overdue(window: Window) -> str:
    if window.result is Result.TIMED_OUT:
        return f"{window.source_node} and {window.target_node} are both attached past the deadline"
    return f"node {messages.leaving_node(window)} should have left"


def _warning_conditions(status: Status) -> list[Condition]:
    """Return the conditions of warnings: those that hold, and those that held once. Most records never have any."""
    window = status.migration
    conditions = []
    for name, kind in _WARNINGS.items():
        given = window is not None and getattr(window, name) is not None
        # The first two are about a run without a result; the third is about what comes after it.
        over = window is not None and window.result is not None and kind is not Announcement.LEAVING_OVERDUE
        over = over or (kind is Announcement.SLOW_START and window is not None and window.run_start_time is not None)
        before = status.condition(kind)
        if given and not over and window:
            text = before.message if before and before.status == "True" else _warning(window, kind)
            conditions.append(_condition(kind.value, True, text, ""))
        elif before:
            conditions.append(_condition(kind.value, False, None, "nothing of the kind now"))
    return conditions


def _condition(kind: str, holds: bool, true_message: str | None, false_message: str) -> Condition:
    return Condition(
        type=kind,
        status="True" if holds else "False",
        reason=kind if holds else f"Not{kind}",
        message=(true_message if holds else false_message) or "",
        last_transition_time=_EPOCH,
    )


_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _announce(status: Status, entry: OutboxEntry) -> Status:
    """Append to the outbox; where it is full, entries that nobody claimed collapse into totals, an RPC never fails for it."""
    entry = entry.replace(message=entry.message[:MAX_MESSAGE])
    outbox = status.outbox
    if len(outbox) >= MAX_OUTBOX:
        claimed = tuple(old for old in outbox if old.reported_by)
        open_entries = tuple(old for old in outbox if not old.reported_by)
        outbox = (*claimed[-(MAX_OUTBOX - 2) :], _collapse(open_entries, entry)) if open_entries else claimed[1:]
    return status.replace(outbox=(*outbox, entry))


def _collapse(entries: Sequence[OutboxEntry], cause: OutboxEntry) -> OutboxEntry:
    totals = {kind: sum(old.kind is kind for old in entries) for kind in Announcement}
    before = [old.counts for old in entries if old.counts]
    counts = Counts(
        started=totals[Announcement.STARTED] + sum(old.started for old in before),
        succeeded=totals[Announcement.SUCCEEDED] + sum(old.succeeded for old in before),
        failed=totals[Announcement.FAILED] + sum(old.failed for old in before),
        timed_out=totals[Announcement.TIMED_OUT] + sum(old.timed_out for old in before),
    )
    return OutboxEntry(id=f"{cause.id}-totals", kind=Announcement.COLLAPSED, time=cause.time, counts=counts)


def _started(record: Record, window: Window) -> OutboxEntry:
    return _entry(window, Announcement.STARTED, messages.started(record.handle, window), window.start_time)


def _describe(held: Attachment, volume_mode: VolumeMode) -> str:
    return _describe_access(Access(held.access_mode, volume_mode, held.read_only))


def _describe_access(access: Access) -> str:
    return f"{access.mode} {access.volume_mode}{' read-only' if access.read_only else ''}"
