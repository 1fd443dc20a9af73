"""The rules: who may attach, what a detach means, when a volume may be deleted. Pure: values in, values out, no I/O and no clock.

Every function takes a record and returns a new one, or a ``Refused`` that says why not. Writers apply the same function again
to a fresh read when their write met a conflict, so each function must be safe on a record to which it was applied before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from rds_records import expansion, messages
from rds_records.conditions import STALE_ATTACHMENT, settled
from rds_records.decisions import Code, Decided, Reason, Refused
from rds_records.evidence_condition import with_evidence_read
from rds_records.fencing import begin_leaving
from rds_records.forced_detach import mark_forced
from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable, LiveMigration, NotExplained, Rule
from rds_records.outbox import announce
from rds_records.record import (
    MAX_REFUSALS,
    AccessMode,
    Attachment,
    DualAttachPolicy,
    Force,
    ObjectReference,
    Record,
    Refusal,
    VolumeMode,
)
from rds_records.windows import allowed_nodes, close_window, open_imported_window, open_window, started_entry

REFUSAL_REPEAT: Final = timedelta(minutes=1)
"""A repeated refusal is written at most this often."""


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
            stale = held.leaving is not None and held.leaving.stale
            return _readmit(record, held, access, now, new_id, node_exists) if stale else Decided(record, changed=False)
        return Refused(
            Code.ALREADY_EXISTS,
            Reason.OTHER_CLASS,
            f"volume {record.handle} is attached to node {node} already, as {_describe(held, record.spec.volume_mode)}, and cannot "
            f"be attached there a second time as {_describe_access(access)}; detach it from {node} first",
        )
    refusal = (
        _refuse_volume_mode(record, access)
        or _naming_stale(record, _refuse_other_nodes(record, node, access))
        or expansion.refuse_second_node(record, node, now)
        or _naming_stale(record, _refuse_without_migration(record, node, evidence))
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
        window = open_window(record, status.attachments[0].node_name, node, now, new_id, run=run)
        attached = announce(attached.replace(migration=window), started_entry(record, window))
    return Decided(with_evidence_read(settled(record, attached, now), evidence, now=now), changed=True)


def _readmit(
    record: Record, held: Attachment, access: Access, now: datetime, new_id: str, node_exists: bool | None
) -> Decided | Refused:
    """Give a node a new attachment in place of the one that is being released: whoever does that finds it gone."""
    refusal = _refuse_node(record, held.node_name, node_exists)
    if refusal:
        return refusal
    anew = Attachment(node_name=held.node_name, id=new_id, access_mode=access.mode, read_only=access.read_only, attach_time=now)
    attachments = tuple(anew if one is held else one for one in record.status.attachments)
    return Decided(settled(record, record.status.replace(attachments=attachments), now), changed=True)


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


def _naming_stale(record: Record, refused: Refused | None) -> Refused | None:
    """Return the refusal with the holder named whose VolumeAttachment is gone: Kubernetes will never detach that one."""
    stale = record.status.condition(STALE_ATTACHMENT)
    if refused is None or stale is None or stale.status == "False":
        return refused
    return dataclasses.replace(refused, message=f"{refused.message}; {stale.message}")


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
        window = record.status.migration
        vmi = (window.vmi if window else None) or record.status.vmi
        return Refused(Code.FAILED_PRECONDITION, Reason.NO_SLOT, _no_slot(record, node, holders), vmi)
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
    again = "the attach is tried again (csi-attacher: at most 5 minutes later)"
    match evidence:
        case LiveMigration(source_node=source, target_node=target) if (source, target) == (holder, node):
            return None
        case None | LiveMigration():
            # Nobody asked about these two nodes: when the record was read first, another node held the volume, or none.
            text = f"{no} now: who holds it changed meanwhile; {again}"
            return Refused(Code.UNAVAILABLE, Reason.NO_EVIDENCE, text)
        case EvidenceUnavailable(text=trouble):
            text = f"{no} now: whether KubeVirt migrates a VM from {holder} to {node} could not be found out: {trouble}; {again}"
            return Refused(Code.UNAVAILABLE, Reason.NO_EVIDENCE, text, _vmi_of(evidence) or record.status.vmi)
        case NotExplained(rule=Rule.NO_KUBEVIRT, text=why):
            # Nothing will ever explain it here, so the other policy is named; nowhere else, because it lets any pod in.
            any_two = (
                f"stop the pod on {holder} first, or set spec.dualAttachPolicy: AnyTwoNodes on the record "
                f"{record.metadata.name} if whoever uses the volume arbitrates between two writers"
            )
            text = f"{no}: dualAttachPolicy KubeVirt, {Rule.NO_KUBEVIRT}: {why}; {any_two}; {again}"
            return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text)
        case NotExplained(rule=rule, text=why):
            works = f"works once a live migration explains it or {holder} left"
            text = f"{no}: dualAttachPolicy KubeVirt, {rule}: {why}; {again} and {works}"
            return Refused(Code.FAILED_PRECONDITION, Reason.NO_MIGRATION, text, _vmi_of(evidence) or record.status.vmi)


def _vmi_of(evidence: NotExplained | EvidenceUnavailable) -> ObjectReference | None:
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


def detach(
    record: Record,
    node: str,
    *,
    attachment_id: str | None,
    wanted: bool,
    now: datetime,
    force: Force | None = None,
    fenced: bool = False,
) -> Decided | Refused:
    """Take the node's attachment off the record.

    ``attachment_id`` is the attachment that the caller saw when it began (None: none); ``wanted`` tells that the node's
    VolumeAttachment exists and is not being deleted. Either way of being too late answers ABORTED and changes nothing.
    ``force`` is why the detach is forced, ``fenced`` that the box refuses the node already.
    """
    held = record.status.attachment_of(node)
    if held is None:
        return _clear_refusal(record, node)
    late = _refuse_late(record, held, attachment_id, wanted)
    if late:
        return late
    return Decided(take_off(record, (node,), now, {node: force} if force else {}, fenced=fenced), changed=True)


def begin_detach(
    record: Record, node: str, *, attachment_id: str | None, wanted: bool, now: datetime, force: Force | None = None
) -> Decided | Refused:
    """Mark the node as leaving, before the box is told to refuse it; refuses as ``detach``, which ends what begins here."""
    held = record.status.attachment_of(node)
    if held is None:
        return _clear_refusal(record, node)
    late = _refuse_late(record, held, attachment_id, wanted)
    return late or begin_leaving(record, (held.id,), {node: force} if force else {}, now=now)


def _refuse_late(record: Record, held: Attachment, attachment_id: str | None, wanted: bool) -> Refused | None:
    if held.id == attachment_id and not wanted:
        return None
    since = f"is attached to node {held.node_name} since {messages.clock(held.attach_time)}"
    why = "its VolumeAttachment exists and is not being deleted" if wanted else "that is a newer attachment than the one to end"
    return Refused(Code.ABORTED, Reason.LATE_DETACH, f"volume {record.handle} {since}: {why}; this detach came too late")


def detach_all(
    record: Record,
    *,
    attachment_ids: Sequence[str],
    now: datetime,
    force: Mapping[str, Force] = MappingProxyType({}),
    fenced: bool = False,
) -> Decided:
    """Take off every attachment that the caller saw when it began (a ControllerUnpublishVolume without a node id).

    ``force`` says by node why its detach is forced, ``fenced`` that the box refuses them already.
    """
    leaving = tuple(held.node_name for held in record.status.attachments if held.id in attachment_ids)
    if not leaving:
        return Decided(record, changed=False)
    return Decided(take_off(record, leaving, now, force, fenced=fenced), changed=True)


def _clear_refusal(record: Record, node: str) -> Decided:
    # csi-attacher unpublishes the nodes that were refused as well, so this is the end of a refusal.
    kept = tuple(refused for refused in record.status.refusals if refused.node_name != node)
    if len(kept) == len(record.status.refusals):
        return Decided(record, changed=False)
    return Decided(record.with_status(refusals=kept), changed=True)


def take_off(record: Record, leaving: Sequence[str], now: datetime, force: Mapping[str, Force], *, fenced: bool) -> Record:
    """Return the record without these nodes' attachments, and with all that follows from it."""
    ids = [held.id for held in record.status.attachments if held.node_name in leaving]
    left = [held for held in begin_leaving(record, ids, force, now=now).record.status.attachments if held.id in ids]
    status = record.status
    kept = tuple(held for held in status.attachments if held.node_name not in leaving)
    refusals = tuple(refused for refused in status.refusals if refused.node_name not in leaving)
    changed = status.replace(attachments=kept, refusals=refusals)
    window = status.migration
    gone = [node for node in leaving if window and node in {window.source_node, window.target_node}]
    if window and gone:
        changed = close_window(record, changed, window, gone, now)
    changed = mark_forced(record, changed, left, fenced=fenced, now=now)
    if changed.over_attached and len(kept) <= allowed_nodes(record, kept):
        changed = changed.replace(over_attached=None)
        if len(kept) == 2 and changed.migration is None:
            changed = open_imported_window(record.replace(status=changed), now).status
    return settled(record, changed, now)


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
    return Decided(settled(record, record.status.replace(deleting=True), now), changed=True)


def initialize(record: Record, *, now: datetime, claim: ObjectReference | None = None) -> Decided:
    """Say of a new volume that nobody holds it, and which claim it is made for, where that is known."""
    if record.initialized:
        return Decided(record, changed=False)
    return Decided(settled(record, record.status.replace(initialized=True, claim_ref=claim), now), changed=True)


def note_refusal(record: Record, node: str, refused: Refused, *, now: datetime, evidence: Evidence | None = None) -> Record | None:
    """Return the record with the refusal noted, or None where it was noted less than a minute ago, for the same VM.

    ``evidence`` is what it rests on: whether that could be read is noted with it.
    """
    known = next((seen for seen in record.status.refusals if (seen.node_name, seen.reason) == (node, refused.reason)), None)
    if known and now - known.last_time < REFUSAL_REPEAT and known.vmi == refused.vmi:
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
    return with_evidence_read(record.with_status(refusals=(*others[-(MAX_REFUSALS - 1) :], noted)), evidence, now=now)


def _describe(held: Attachment, volume_mode: VolumeMode) -> str:
    return _describe_access(Access(held.access_mode, volume_mode, held.read_only))


def _describe_access(access: Access) -> str:
    return f"{access.mode} {access.volume_mode}{' read-only' if access.read_only else ''}"
