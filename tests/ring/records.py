"""Records written as a shim would write them, for tests of the operator that need no shim."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from rds_records.decisions import Code, Decided, Reason, Refused
from rds_records.names import FINALIZER
from rds_records.record import AccessMode, DualAttachPolicy, Record, Spec, VolumeMode
from rds_records.transitions import Access, attach, detach, initialize, note_refusal
from tests.ring.api import ApiError
from tests.ring.cluster import RECORD, Cluster, StaticVolume
from tests.ring.waiting import eventually

BLOCK = Access(AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK)


def seconds_ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def make_record(
    cluster: Cluster, volume: StaticVolume, *, timeout: int | None = None, persistent_volume_name: str | None = None
) -> Record:
    """Create the record of a volume that nobody holds, ``AnyTwoNodes``."""
    spec = Spec(
        volume_handle=volume.handle,
        volume_mode=VolumeMode.BLOCK,
        access_mode=AccessMode.READ_WRITE_MANY,
        capacity_bytes=1 << 30,
        persistent_volume_name=persistent_volume_name or volume.pv,
        dual_attach_policy=DualAttachPolicy.ANY_TWO_NODES,
        migration_timeout_seconds=timeout,
    )
    body = Record.new(spec, finalizers=(FINALIZER,)).to_json()
    body.pop("status")
    cluster.api.create(body)
    return change(cluster, volume.handle, lambda fresh: answered(initialize(fresh, now=seconds_ago(0))))


def read(cluster: Cluster, handle: str) -> Record:
    body = cluster.record(handle)
    assert body is not None, f"no record {handle}"
    return Record.from_json(body)


def change(cluster: Cluster, handle: str, decide: Callable[[Record], Record]) -> Record:
    """Write what ``decide`` makes of the record's status; again where the operator wrote in between."""

    def attempt() -> Record | None:
        try:
            return Record.from_json(cluster.api.replace(decide(read(cluster, handle)).to_json(), "status"))
        except ApiError as error:
            if error.status != 409:
                raise
            return None

    return eventually(f"record {handle} is written", attempt)


def attach_to(cluster: Cluster, handle: str, node: str, *, since: float = 0.0) -> Record:
    """Attach the volume to a node, so many seconds ago."""
    moment = seconds_ago(since)
    new_id = f"{node}-{int(moment.timestamp() * 1000)}"
    return change(cluster, handle, lambda fresh: answered(attach(fresh, node, BLOCK, now=moment, new_id=new_id, node_exists=True)))


def detach_from(cluster: Cluster, handle: str, node: str) -> Record:
    """Detach the volume from a node, now."""

    def leave(fresh: Record) -> Record:
        held = fresh.status.attachment_of(node)
        assert held, fresh.status.nodes
        return answered(detach(fresh, node, attachment_id=held.id, wanted=False, now=seconds_ago(0)))

    return change(cluster, handle, leave)


def refuse(cluster: Cluster, handle: str, node: str, *, since: float = 0.0) -> Record:
    """Note that the node was told no."""
    no = Refused(Code.FAILED_PRECONDITION, Reason.NO_SLOT, "two nodes hold the volume")

    def note(fresh: Record) -> Record:
        return note_refusal(fresh, node, no, now=seconds_ago(since)) or fresh

    return change(cluster, handle, note)


def migrate(cluster: Cluster, volume: StaticVolume, *, timeout: int | None = None, since: float = 0.0) -> Record:
    """Make a record whose volume migrates from node-a to node-b, begun so many seconds ago, in one write."""
    make_record(cluster, volume, timeout=timeout)
    moment = seconds_ago(since)
    tag = int(moment.timestamp() * 1000)

    def both(fresh: Record) -> Record:
        for node in ("node-a", "node-b"):
            fresh = answered(attach(fresh, node, BLOCK, now=moment, new_id=f"{node}-{tag}", node_exists=True))
        return fresh

    return change(cluster, volume.handle, both)


def answered(decision: Decided | Refused) -> Record:
    assert isinstance(decision, Decided), decision
    return decision.record


def delete_record(cluster: Cluster, handle: str) -> None:
    """Delete the record as an administrator would; finalizers may hold it."""
    cluster.api.delete(RECORD, read(cluster, handle).metadata.name)
