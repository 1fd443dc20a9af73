"""The rules: who may attach, what a detach means, how a migration ends. Pure: values in, values out, no I/O and no clock.

Every function takes a record and returns a new one, or a ``Refused`` that says why not. Writers apply the same function again
to a fresh read when their write met a conflict, so each function must be safe on a record to which it was applied before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable, LiveMigration, NotExplained, Rule
from rds_records.record import (
    MAX_HISTORY,
    MAX_OUTBOX,
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
        window = _open_window(record, status.attachments[0].node_name, node, now, new_id)
        if isinstance(evidence, LiveMigration) and record.spec.dual_attach_policy is DualAttachPolicy.KUBEVIRT:
            window = _of_run(window, evidence)
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
            text = f"{no}: dualAttachPolicy KubeVirt, {Rule.NO_KUBEVIRT}: {why}; {any_two}; {again}"
            return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text)
        case NotExplained(rule=rule, text=why):
            works = f"works once a live migration explains it or {holder} left"
            text = f"{no}: dualAttachPolicy KubeVirt, {rule}: {why}; {again} and {works}"
            return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text)
    text = (
        f"{no}: its dualAttachPolicy KubeVirt admits a second node only with evidence of a live migration, and this version does "
        f"not look for any yet; {any_two}"
    )
    return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text)


def _no_slot(record: Record, node: str, holders: str) -> str:
    window = record.status.migration
    text = f"volume {record.handle} is attached to nodes {holders}, the limit, and cannot be attached to node {node} too"
    if window is None:
        return f"{text}; detach it from all but one of them first"
    text += f": a migration from {window.source_node} to {window.target_node} runs since {_clock(window.start_time)}"
    if window.result:
        text += f" (result: {window.result})"
    elif window.deadline_time:
        text += f", its deadline is {_clock(window.deadline_time)}"
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
        since = f"is attached to node {node} since {_clock(held.attach_time)}"
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
    record: Record, source: str, target: str, start: datetime, window_id: str, origin: Origin = Origin.PUBLISH
) -> Window:
    window = Window(id=window_id, origin=origin, source_node=source, target_node=target, start_time=start)
    return _with_deadline(record, window)


def _of_run(window: Window, run: LiveMigration) -> Window:
    """Return the window with what KubeVirt's run is called."""
    return window.replace(
        vmi=ObjectReference(namespace=run.vmi.namespace, name=run.vmi.name, uid=run.vmi.uid),
        migration_name=run.migration.name,
        migration_uid=run.migration.uid,
        source_pod=run.source_pod.name,
        target_pod=run.target_pod.name,
    )


def _close_window(record: Record, status: Status, window: Window, gone: Sequence[str], now: datetime) -> Status:
    result, ground, live = _outcome(window, gone)
    elapsed = (now - window.start_time).total_seconds()
    duration = max(0.0, round(elapsed, 3))
    known = window.result
    closed = ClosedWindow.model_validate(
        {
            **window.model_dump(exclude_none=True),
            "result": known or result,
            "result_time": window.result_time or now,
            "reason": window.reason or ground,
            "live_node": live,
            "end_time": max(now, window.start_time),
            "left_node": gone[0] if len(gone) == 1 else None,
            "duration_seconds": duration,
        }
    )
    kind = Announcement.ENDED if known else Announcement(result.value)
    entry = OutboxEntry(
        id=f"{window.id}-{kind.lower()}",
        kind=kind,
        time=now,
        source_node=window.source_node,
        target_node=window.target_node,
        message=_ended_message(record, window, kind, gone, duration),
        duration_seconds=duration,
        clock_clamped=True if elapsed < 0 else None,
    )
    history = (*status.history, closed)[-MAX_HISTORY:]
    return _announce(status.replace(migration=None, history=history), entry)


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
    if current.timeout_seconds is None or elapsed < timedelta(seconds=current.timeout_seconds):
        if current == window:
            return None
        return _settled(record, record.status.replace(migration=current), now)
    timed_out = current.replace(result=Result.TIMED_OUT, result_time=now, reason=Ground.TIMEOUT.value)
    entry = OutboxEntry(
        id=f"{window.id}-timedout",
        kind=Announcement.TIMED_OUT,
        time=now,
        source_node=window.source_node,
        target_node=window.target_node,
        message=_timed_out_message(record, current, elapsed),
    )
    return _settled(record, _announce(record.status.replace(migration=timed_out), entry), now)


def timeout_of(record: Record) -> int | None:
    """Return the seconds after which a window of this volume is TimedOut; None where only KubeVirt's own limit counts."""
    if record.spec.migration_timeout_seconds is not None:
        return record.spec.migration_timeout_seconds
    if record.spec.dual_attach_policy is DualAttachPolicy.ANY_TWO_NODES:
        return ANY_TWO_NODES_TIMEOUT_SECONDS
    return None


def _with_deadline(record: Record, window: Window) -> Window:
    timeout = timeout_of(record)
    deadline = None if timeout is None else window.start_time + timedelta(seconds=timeout)
    return window.replace(timeout_seconds=timeout, deadline_time=deadline)


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
        noted = known.replace(message=message, last_time=now, count=known.count + 1)
    else:
        noted = Refusal(node_name=node, reason=refused.reason, message=message, first_time=now, last_time=now, count=1)
    others = [seen for seen in record.status.refusals if seen.node_name != node]
    others.sort(key=lambda seen: seen.last_time)
    return record.with_status(refusals=(*others[-(MAX_REFUSALS - 1) :], noted))


def derive_phase(status: Status) -> Phase:
    """Return the one word for people."""
    if status.migration:
        return Phase.OVERDUE if status.migration.result is Result.TIMED_OUT else Phase.MIGRATING
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
            f"from {window.source_node} to {window.target_node} since {_clock(window.start_time)}" if window else None,
            "no two nodes are attached",
        ),
        _condition(
            "Overdue",
            phase is Phase.OVERDUE,
            f"{window.source_node} and {window.target_node} are both attached past the deadline" if window else None,
            "no migration is past its deadline",
        ),
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
    limit = "none" if window.timeout_seconds is None else go_duration(window.timeout_seconds)
    return OutboxEntry(
        id=f"{window.id}-started",
        kind=Announcement.STARTED,
        time=window.start_time,
        source_node=window.source_node,
        target_node=window.target_node,
        message=f"[{record.handle}]: KubeVirt live migration started - source: {window.source_node}, "
        f"target: {window.target_node}, timeout: {limit}",
    )


def _ended_message(record: Record, window: Window, kind: Announcement, gone: Sequence[str], duration: float) -> str:
    roles = f"source: {window.source_node}, target: {window.target_node}"
    lasted = go_duration(duration)
    if kind is Announcement.SUCCEEDED:
        return (
            f"[{record.handle}]: KubeVirt live migration completed - source: {window.source_node} -> "
            f"target: {window.target_node} (duration: {lasted})"
        )
    if len(gone) > 1:
        stays = "no node holds the volume"
    else:
        stays = f"the volume stays on {window.target_node if gone[0] == window.source_node else window.source_node}"
    if kind is Announcement.ENDED:
        left = " and ".join(gone)
        result = f"result: {window.result}, {left} left"
        return f"[{record.handle}]: KubeVirt live migration ended - {roles}, {result} (duration: {lasted}); {stays}"
    reason = "both nodes left" if len(gone) > 1 else "rolled back"
    return f"[{record.handle}]: KubeVirt live migration failed - {roles}, reason: {reason}, elapsed: {lasted}; {stays}"


def _timed_out_message(record: Record, window: Window, elapsed: timedelta) -> str:
    return (
        f"[{record.handle}]: KubeVirt live migration failed - source: {window.source_node}, target: {window.target_node}, "
        f"reason: timeout, "
        f"elapsed: {go_duration(int(elapsed.total_seconds()))} (timeout: {go_duration(window.timeout_seconds or 0)}); "
        "both nodes stay attached, no further node is admitted until one has left"
    )


def _describe(held: Attachment, volume_mode: VolumeMode) -> str:
    return _describe_access(Access(held.access_mode, volume_mode, held.read_only))


def _describe_access(access: Access) -> str:
    return f"{access.mode} {access.volume_mode}{' read-only' if access.read_only else ''}"


def _clock(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def go_duration(seconds: float) -> str:
    """Return a duration as Go prints it (``5m0s``), the style of the Go driver's Events; fractions are cut to milliseconds."""
    milliseconds = round(max(0.0, seconds) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail
