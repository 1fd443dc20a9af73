"""What existing PersistentVolumes and VolumeAttachments say about a volume that has no record, or an empty one. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from rds_records.conditions import settled
from rds_records.names import DRIVER_NAME, SlotNames, attacher_finalizer, file_path_for, nqn_for, slot_for
from rds_records.record import (
    AccessMode,
    Attachment,
    Condition,
    DualAttachPolicy,
    ObjectReference,
    Record,
    Spec,
    Target,
    VolumeMode,
)
from rds_records.windows import allowed_nodes, open_imported_window

NODE_ID_ANNOTATION: Final = "csi.alpha.kubernetes.io/node-id"
"""Set by csi-attacher before it publishes (external-attacher, pkg/attacher/csi_handler.go)."""

GO_DRIVER_DEFAULT_TIMEOUT: Final = 300
"""The Go driver wrote this into every volume, so in a PersistentVolume it means that nobody chose a timeout."""

DEFAULT_BASE_PATH: Final = "/storage-pool/metal-csi"

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that a VolumeAttachment says holds the volume, or may hold it."""

    node: str
    since: datetime
    attached: bool


def volumes_of(handle: str, volumes: Iterable[Object], driver: str = DRIVER_NAME) -> list[Object]:
    """Return the PersistentVolumes that name the handle, whatever their own names are."""
    return [volume for volume in volumes if _csi(volume).get("driver") == driver and _csi(volume).get("volumeHandle") == handle]


def is_released(volume: Object) -> bool:
    """Tell whether a PersistentVolume has lost its claim for good, or is being deleted."""
    return "deletionTimestamp" in volume["metadata"] or volume.get("status", {}).get("phase") in {"Released", "Failed"}


def claim_of(volume: Object) -> ObjectReference | None:
    """Return the claim that a PersistentVolume names, which may be gone; None where it names none."""
    claim = volume["spec"].get("claimRef")
    return ObjectReference(namespace=claim["namespace"], name=claim["name"], uid=claim.get("uid")) if claim else None


def holders(
    handle: str,
    volume_names: Iterable[str],
    attachments: Iterable[Object],
    *,
    caller: str | None = None,
    driver: str = DRIVER_NAME,
) -> list[Holder]:
    """Return who holds the volume, the oldest first.

    A node holds it whose VolumeAttachment is attached. One that csi-attacher has begun to attach (its finalizer and annotation are
    there) may have been told yes already; of several such only the oldest counts. The caller's own never counts: its request is
    what is being decided.
    """
    names = set(volume_names)
    found = [
        Holder(
            node=attachment["spec"]["nodeName"],
            since=datetime.fromisoformat(attachment["metadata"]["creationTimestamp"]),
            attached=bool(attachment.get("status", {}).get("attached")),
        )
        for attachment in attachments
        if _is_about(attachment, handle, names, driver)
        and attachment["spec"]["nodeName"] != caller
        and (attachment.get("status", {}).get("attached") or _begun(attachment, driver))
    ]
    found.sort(key=lambda holder: (holder.since, holder.node))
    sure = [holder for holder in found if holder.attached]
    pending = [holder for holder in found if not holder.attached][:1]
    return sorted((*sure, *pending), key=lambda holder: (holder.since, holder.node))


def _is_about(attachment: Object, handle: str, names: set[str], driver: str) -> bool:
    spec = attachment["spec"]
    source = spec.get("source", {})
    inline = source.get("inlineVolumeSpec", {}).get("csi", {})
    return spec.get("attacher") == driver and (
        source.get("persistentVolumeName") in names or (inline.get("driver") == driver and inline.get("volumeHandle") == handle)
    )


def _begun(attachment: Object, driver: str) -> bool:
    metadata = attachment["metadata"]
    return attacher_finalizer(driver) in metadata.get("finalizers", ()) and NODE_ID_ANNOTATION in metadata.get("annotations", {})


def _csi(volume: Object) -> Object:
    source: Object = volume.get("spec", {}).get("csi") or {}
    return source


def spec_from_volume(handle: str, volume: Object, *, base_path: str = DEFAULT_BASE_PATH) -> Spec:
    """Return the spec of a volume from its PersistentVolume, as the Go driver wrote it.

    Raises ValueError where the PersistentVolume cannot be one of this driver's.
    """
    spec = volume["spec"]
    modes = [AccessMode(mode) for mode in spec.get("accessModes", ())]
    mode = AccessMode.READ_WRITE_MANY if AccessMode.READ_WRITE_MANY in modes else (modes or [AccessMode.READ_WRITE_ONCE])[0]
    return Spec(
        volume_handle=handle,
        volume_mode=VolumeMode(spec.get("volumeMode", "Filesystem")),
        access_mode=mode,
        capacity_bytes=quantity_bytes(spec.get("capacity", {}).get("storage", "0")),
        persistent_volume_name=volume["metadata"]["name"],
        target=target_from_context(handle, _csi(volume).get("volumeAttributes") or {}, base_path=base_path),
        dual_attach_policy=_policy(_csi(volume).get("volumeAttributes") or {}),
        migration_timeout_seconds=_timeout(_csi(volume).get("volumeAttributes") or {}),
    )


def target_from_context(handle: str, context: Mapping[str, str], *, base_path: str = DEFAULT_BASE_PATH) -> Target:
    """Return where the box serves the volume, from its volume context; what the context leaves out follows from the handle.

    The address in it is left out on purpose: the Go driver froze today's address into every volume, so it was nobody's choice.
    """
    path = context.get("volumePath") or file_path_for(base_path, slot_for(handle))
    # The backing file is named after the slot, so its name tells a volume with a short slot; the Go driver knows none.
    short = slot_for(handle, SlotNames.SHORT)
    slot = short if path.endswith(f"/{short}.img") else slot_for(handle)
    return Target(nqn=context.get("nqn") or nqn_for(handle), slot=slot, file_path=path)


def _policy(context: Mapping[str, str]) -> DualAttachPolicy:
    chosen = context.get("dualAttachPolicy")
    return DualAttachPolicy(chosen) if chosen in set(DualAttachPolicy) else DualAttachPolicy.KUBEVIRT


def _timeout(context: Mapping[str, str]) -> int | None:
    text = context.get("migrationTimeoutSeconds", "")
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        return None
    seconds = int(text)
    return None if seconds == GO_DRIVER_DEFAULT_TIMEOUT else min(max(seconds, 30), 86_400)


def quantity_bytes(quantity: str) -> int:
    """Return a Kubernetes quantity of storage (``50Gi``) in bytes; raises ValueError where it is none."""
    return int(parse_quantity(quantity))


def import_attachments(record: Record, found: Sequence[Holder], *, now: datetime, claim: ObjectReference | None = None) -> Record:
    """Return the record of a volume with the attachments that were found, initialized; ``claim`` is the PersistentVolume's.

    More nodes than allowed are kept and flagged, and no further one is admitted. Two nodes of a multi-node volume are a window
    whose start is the younger attachment's.
    """
    attachments = tuple(_attachment(record, holder, "imported", now) for holder in found)
    return _found(record.with_status(initialized=True, attachments=attachments, claim_ref=claim), now)


def add_missing(record: Record, missing: Sequence[Holder], *, now: datetime) -> Record:
    """Return the record with holders added that a VolumeAttachment proves and the record did not know.

    A volume that is being deleted is left alone: nobody was attached when that began, and its disk may be gone.
    """
    known = {held.node_name for held in record.status.attachments}
    added = tuple(_attachment(record, holder, "found", now) for holder in missing if holder.node not in known)
    if not added or record.status.deleting:
        return record
    nodes = " and ".join(held.node_name for held in added)
    repaired = Condition(
        type="Consistent",
        status="True",
        reason="Repaired",
        message=f"a VolumeAttachment said that {nodes} holds the volume and this record did not; it was added",
        last_transition_time=now,
        observed_generation=record.metadata.generation,
    )
    conditions = (*(kept for kept in record.status.conditions if kept.type != "Consistent"), repaired)
    return _found(record.with_status(attachments=(*record.status.attachments, *added), conditions=conditions), now)


def _attachment(record: Record, holder: Holder, origin: str, now: datetime) -> Attachment:
    # The id must be new for every attachment: a node that left may be found again under the same VolumeAttachment.
    moment, node = int(now.timestamp() * 1000), hashlib.sha256(holder.node.encode()).hexdigest()[:8]
    mode = record.spec.access_mode
    return Attachment(
        node_name=holder.node,
        id=f"{origin}-{moment}-{node}",
        access_mode=mode,
        read_only=mode is AccessMode.READ_ONLY_MANY,
        attach_time=holder.since,
    )


def _found(record: Record, now: datetime) -> Record:
    attachments = record.status.attachments
    if len(attachments) > allowed_nodes(record, attachments):
        record = record.with_status(over_attached=True)
    elif len(attachments) == 2 and record.status.migration is None:
        record = open_imported_window(record, max(held.attach_time for held in attachments))
    return settled(record, record.status, now)
