"""Records and requests to start a test from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rds_records.decisions import Decided, Refused
from rds_records.kubevirt_evidence import Evidence
from rds_records.names import FINALIZER, file_path_for, nqn_for
from rds_records.record import AccessMode, DualAttachPolicy, Metadata, Record, Spec, Target, VolumeMode, Window
from rds_records.transitions import Access, attach, detach, initialize

HANDLE = "pvc-00000000-0000-4000-8000-000000000001"
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

SHARED = Access(AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK)
ALONE = Access(AccessMode.READ_WRITE_ONCE, VolumeMode.BLOCK)
MOUNTED = Access(AccessMode.READ_WRITE_ONCE, VolumeMode.FILESYSTEM)
READING = replace(SHARED, read_only=True)


def at(seconds: float) -> datetime:
    """Return the moment that many seconds after the start of the test's world."""
    return START + timedelta(seconds=seconds)


def spec(**changes: Any) -> Spec:
    """Return the spec of a shared block volume that any two nodes may hold."""
    usual = Spec(
        volume_handle=HANDLE,
        volume_mode=VolumeMode.BLOCK,
        access_mode=AccessMode.READ_WRITE_MANY,
        capacity_bytes=1 << 30,
        persistent_volume_name=HANDLE,
        target=Target(nqn=nqn_for(HANDLE), slot=HANDLE, file_path=file_path_for("/storage-pool/metal-csi", HANDLE)),
        dual_attach_policy=DualAttachPolicy.ANY_TWO_NODES,
    )
    return usual.replace(**changes)


def empty(**changes: Any) -> Record:
    """Return a record whose status says nothing yet."""
    metadata = Metadata(name=HANDLE, uid="a-uid", resource_version="1", generation=1, finalizers=(FINALIZER,))
    return Record(metadata=metadata, spec=spec(**changes))


def fresh(**changes: Any) -> Record:
    """Return the record of a new volume that nobody holds."""
    return initialize(empty(**changes), now=START).record


def ask(
    record: Record,
    node: str,
    access: Access = SHARED,
    *,
    now: datetime = START,
    exists: bool | None = True,
    evidence: Evidence | None = None,
) -> Decided | Refused:
    """Ask for the node; the attachment's id is named after node and moment."""
    new_id = f"{node}-{int((now - START).total_seconds())}"
    return attach(record, node, access, now=now, new_id=new_id, node_exists=exists, evidence=evidence)


def attached(record: Record, *nodes: str, access: Access = SHARED, now: datetime = START) -> Record:
    """Return the record with the nodes attached, one after the other, a second apart."""
    for number, node in enumerate(nodes):
        record = yes(ask(record, node, access, now=now + timedelta(seconds=number)))
    return record


def left(record: Record, node: str, *, now: datetime) -> Record:
    """Return the record after an orderly detach of the node."""
    held = record.status.attachment_of(node)
    return yes(detach(record, node, attachment_id=held.id if held else None, wanted=False, now=now))


def yes(decision: Decided | Refused) -> Record:
    """Return the record of a decision that must have been a yes."""
    assert isinstance(decision, Decided), decision
    return decision.record


def no(decision: Decided | Refused) -> Refused:
    """Return a decision that must have been a no."""
    assert isinstance(decision, Refused), decision
    return decision


def window(record: Record) -> Window:
    """Return the record's open window."""
    assert record.status.migration is not None
    return record.status.migration
