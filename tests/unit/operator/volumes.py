"""Volumes, claims and records as the tests of the operator need them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rds_records.decisions import Decided, Refused
from rds_records.names import DRIVER_NAME, FINALIZER, record_name
from rds_records.record import AccessMode, DualAttachPolicy, Record, Spec, VolumeMode
from rds_records.store import COLLECTION
from rds_records.transitions import Access, attach, detach, initialize
from tests.unit.operator.api_server import ApiServer

HANDLE = "pvc-11111111-2222-3333-4444-555555555555"
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
BLOCK = Access(AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK)


def spec(handle: str = HANDLE, **changes: Any) -> Spec:
    return Spec(
        volume_handle=handle,
        volume_mode=VolumeMode.BLOCK,
        access_mode=AccessMode.READ_WRITE_MANY,
        capacity_bytes=1 << 30,
        persistent_volume_name=handle,
        dual_attach_policy=DualAttachPolicy.ANY_TWO_NODES,
    ).replace(**changes)


def record(handle: str = HANDLE, **changes: Any) -> Record:
    """Return the record of a volume that nobody holds."""
    fresh = Record.new(spec(handle, **changes), finalizers=(FINALIZER,))
    return initialize(fresh, now=NOW).record


def attached(to: Record, node: str, *, at: datetime = NOW, new_id: str | None = None) -> Record:
    return decided(attach(to, node, BLOCK, now=at, new_id=new_id or f"id-{node}", node_exists=True))


def detached(of: Record, node: str, *, at: datetime = NOW + timedelta(seconds=40)) -> Record:
    held = of.status.attachment_of(node)
    assert held
    return decided(detach(of, node, attachment_id=held.id, wanted=False, now=at))


def decided(answer: Decided | Refused) -> Record:
    assert isinstance(answer, Decided), answer
    return answer.record


def migrating(handle: str = HANDLE, *, since: datetime = NOW, **changes: Any) -> Record:
    """Return the record of a volume on two nodes, node-a the source and node-b the target."""
    return attached(attached(record(handle, **changes), "node-a", at=since), "node-b", at=since)


def path_of(handle: str = HANDLE) -> str:
    return f"{COLLECTION}/{record_name(handle)}"


def store_record(server: ApiServer, body: Record) -> Record:
    return Record.from_json(server.put(path_of(body.handle), body.to_json()))


def read_record(server: ApiServer, handle: str = HANDLE) -> Record:
    return Record.from_json(server.get(path_of(handle)))


def bind(
    server: ApiServer, handle: str = HANDLE, *, volume: str | None = None, claim: str = "data", namespace: str = "default"
) -> None:
    """Make the PersistentVolume of the handle, bound to a claim."""
    name = volume or handle
    server.put(
        f"/api/v1/persistentvolumes/{name}",
        {
            "metadata": {"name": name},
            "spec": {
                "csi": {"driver": DRIVER_NAME, "volumeHandle": handle},
                "claimRef": {"namespace": namespace, "name": claim, "uid": f"uid-of-{claim}"},
            },
        },
    )
