"""Create, delete and list snapshots: everything about one is in its name on the box, so nothing about it can be lost elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from rds_csi.errors import Aborted, AlreadyExists, FailedPrecondition
from rds_csi.routeros import Box, FilePath, Slot
from rds_csi.snapshot_backend import FoundSnapshot, SnapshotBackend
from rds_records.record import Record
from rds_records.volume_layout import SnapshotName, is_snapshot_id, snapshot_id_for, subvolume_of


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Snapshots on one box; ``now`` is the API server's time. Deadlines are readings of ``time.monotonic``; box errors pass."""

    backend: SnapshotBackend
    box: Box
    now: Callable[[], datetime]

    async def create(self, csi_name: str, source: Record, *, deadline: float) -> SnapshotName:
        """Take a snapshot of the volume as it is in one moment, or find the one that an earlier call of that name took.

        A crash before the box has made it leaves nothing; after that a retry finds it by its id, with source, time and size in its
        name. Two replicas that take the same one at once may make two: each then sees the other's, takes back its own, of which
        nobody was told, and the retry makes one.

        Raises AlreadyExists where the name was used for another volume, FailedPrecondition where the volume cannot be snapshotted,
        and Aborted where it is being deleted or another call was quicker.
        """
        snapshot_id = snapshot_id_for(csi_name)
        await self.backend.check(deadline=deadline)
        found = await self.backend.snapshots(snapshot_id, deadline=deadline)
        if found:
            return _of_the_source(found[0], source, csi_name)
        subvolume, slot = snapshot_source(source)
        disk = await self.box.disk(slot, deadline=deadline)
        if disk is None:
            raise FailedPrecondition(f"volume {source.handle}: the box has no disk in slot {slot}, so there is nothing to snapshot")
        name = SnapshotName(snapshot_id, source.handle, self.now().replace(microsecond=0), disk.size)
        path = subvolume.parent.child(str(name))
        await self.backend.make(path, source=subvolume, read_only=True, deadline=deadline)
        rivals = [one for one in await self.backend.snapshots(snapshot_id, deadline=deadline) if one.path != path]
        if rivals:
            await self.backend.remove(path, deadline=deadline)
            raise Aborted(f"snapshot {csi_name!r} is being taken by another call; try again")
        return name

    async def delete(self, snapshot_id: str, *, deadline: float) -> None:
        """Remove the snapshot; one that is not there, or that this driver never gave out, is removed. Restored volumes stay.

        Safe at any crash: what is gone is found gone.
        """
        if not is_snapshot_id(snapshot_id):
            return
        for found in await self.backend.snapshots(snapshot_id, deadline=deadline):
            await self.backend.remove(found.path, deadline=deadline)

    async def list(self, *, snapshot_id: str = "", source_handle: str = "", deadline: float) -> list[SnapshotName]:
        """Return the snapshots on the box, sorted by id: all, or the one of that id, or those of that volume."""
        if snapshot_id and not is_snapshot_id(snapshot_id):
            return []
        found = await self.backend.snapshots(snapshot_id, deadline=deadline)
        names = {one.name.id: one.name for one in reversed(found)}
        return sorted((name for name in names.values() if source_handle in {"", name.source_handle}), key=lambda name: name.id)


def snapshot_source(record: Record) -> tuple[FilePath, Slot]:
    """Return the subvolume and the slot of a volume that is to be snapshotted or cloned.

    Raises Aborted where the volume is being deleted, and FailedPrecondition where it has no subvolume.
    """
    target = record.spec.target
    if record.status.deleting or record.terminating:
        raise Aborted(f"volume {record.handle} is being deleted")
    subvolume = subvolume_of(target.file_path, target.slot) if target else None
    if target is None or subvolume is None:
        where = f"its file {target.file_path} lies in none" if target else "its record names no place on the box"
        raise FailedPrecondition(
            f"volume {record.handle} cannot be snapshotted or cloned: only one with a Btrfs subvolume of its own can, and {where} "
            "(made by the Go driver, or before the box had Btrfs subvolumes); copy its data to a new volume to have them"
        )
    return FilePath(subvolume), Slot(target.slot)


def _of_the_source(found: FoundSnapshot, source: Record, csi_name: str) -> SnapshotName:
    if found.name.source_handle != source.handle:
        raise AlreadyExists(
            f"snapshot {csi_name!r} exists and is of volume {found.name.source_handle}, not of {source.handle}; use another name"
        )
    return found.name
