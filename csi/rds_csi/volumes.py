"""Create and delete volumes: the record first, then the box, every step read back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rds_csi.attachments import rejection
from rds_csi.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, OutOfRange
from rds_csi.routeros.box import Box
from rds_csi.routeros.commands import DiskSpec, FilePath, Nqn, Slot
from rds_csi.routeros.errors import BoxError, Conflict, DiskInTheWay, PoolFull, ReadBackMismatch, SubvolumeInTheWay
from rds_csi.snapshot_backend import SnapshotBackend
from rds_csi.snapshots import snapshot_source
from rds_records import imports, transitions
from rds_records.decisions import Decided, Refused
from rds_records.kubernetes_api import ApiError, KubernetesApi, ObjectNotFound, WriteConflict
from rds_records.names import FINALIZER, SlotNames, nqn_for, slot_for
from rds_records.record import AccessMode, ContentSource, DualAttachPolicy, ObjectReference, Record, Spec, Target, VolumeMode
from rds_records.store import RecordStore
from rds_records.volume_layout import subvolume_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewVolume:
    """What a CreateVolume asks for, validated; sizes in bytes, ``limit_bytes`` is 0 where there is none."""

    handle: str
    capacity_bytes: int
    limit_bytes: int
    volume_mode: VolumeMode
    access_mode: AccessMode
    directory: str
    nvme_address: str | None
    nvme_port: int | None
    policy: DualAttachPolicy
    migration_timeout_seconds: int | None
    persistent_volume_name: str | None
    claim: ObjectReference | None
    source: ContentSource | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """A snapshot or volume on the box that a new volume begins as a copy of; ``size`` in bytes."""

    path: FilePath
    size: int


@dataclass(frozen=True, slots=True)
class Volumes:
    """Creates and deletes volumes on one box."""

    api: KubernetesApi
    store: RecordStore
    box: Box
    backend: SnapshotBackend
    known: Callable[[str], Awaitable[Record | None]]
    """Return the record of any volume, imported where it has none yet (``Attachments.known``)."""

    slot_names: SlotNames = SlotNames.HANDLE
    nvme_port: int = 4420
    base_path: str = imports.DEFAULT_BASE_PATH

    async def create(self, wanted: NewVolume, *, deadline: float) -> tuple[Record, Target]:
        """Make the volume, or find it made by an earlier try; returns its record, with the size that it really has, and its place.

        A crash may come between any two steps: the record exists before anything on the box, so nothing there is ever without an
        owner, and a retry with the same name finds the record, compares it with the request, and does what is left to do: the box
        is read before anything is sent to it, and a subvolume or disk that is there and as it should be is taken as made. A copy is
        there in whole or not at all, and what it was made from stands in the record, so a retry neither copies twice nor forgets
        to say so.

        Raises AlreadyExists where a volume of that name differs from the request, Aborted where it is being deleted, NotFound where
        there is no such source, FailedPrecondition where it cannot be copied, PoolFull where the box has no room, Conflict where
        something is in the way and ReadBackMismatch where it made something else (then the record goes again, and what was made),
        and what the box and the API server raise.
        """
        record = await self.store.read(wanted.handle)
        new = record is None
        if record is None:
            spec = await self._spec(wanted, deadline)
            try:
                record = await self.store.create(spec)
            except WriteConflict as error:
                raise Aborted(f"volume {wanted.handle} is being created by another call; try again") from error
        else:
            _refuse_different(record, wanted)
        target = record.spec.target
        if target is None:
            raise FailedPrecondition(f"volume {wanted.handle}: its record {record.metadata.name} names no place on the box")
        disk = DiskSpec(
            slot=Slot(target.slot),
            path=FilePath(target.file_path),
            size=record.spec.capacity_bytes,
            nqn=Nqn(target.nqn),
            port=target.port or self.nvme_port,
        )
        made = False
        try:
            made = await self._make_subvolume(record, new=new, deadline=deadline)
            if record.spec.content_source:
                made_of_source = await self.box.create_disk_of_file(disk, deadline=deadline)
                record = await self._as_large(record, made_of_source.size, wanted, disk, deadline)
            else:
                await self.box.create_disk(disk, deadline=deadline)
        except PoolFull:
            await self._take_back(record, disk, deadline)
            raise
        except Conflict:
            # What is in the way is not this volume's, so no record may claim it. An older record may be another replica's, at work.
            if new and (not made or await self._is_gone(record, self._remove_file(disk.slot, disk.path, deadline))):
                await self._forget(record)
            raise
        except ReadBackMismatch:
            await self._take_back(record, disk, deadline)
            raise
        decision = await self.store.change(
            record, lambda newest: transitions.initialize(newest, now=self.api.clock.now(), claim=wanted.claim)
        )
        if isinstance(decision, Refused):
            raise rejection(decision)
        return decision.record, target

    async def _spec(self, wanted: NewVolume, deadline: float) -> Spec:
        slot = Slot(slot_for(wanted.handle, self.slot_names))
        capacity = wanted.capacity_bytes
        if wanted.source:
            await self.backend.check(deadline=deadline)
            source = await self._find(wanted.source, deadline)
            capacity = max(capacity, source.size)
            if wanted.limit_bytes and capacity > wanted.limit_bytes:
                raise OutOfRange(f"the source has {source.size} bytes, more than the limit of {wanted.limit_bytes} bytes")
        return Spec(
            volume_handle=wanted.handle,
            volume_mode=wanted.volume_mode,
            access_mode=wanted.access_mode,
            capacity_bytes=capacity,
            persistent_volume_name=wanted.persistent_volume_name,
            target=Target(
                nqn=nqn_for(wanted.handle),
                slot=slot,
                file_path=await self.backend.new_file_path(FilePath(wanted.directory), slot, deadline=deadline),
                address=wanted.nvme_address,
                port=wanted.nvme_port,
            ),
            content_source=wanted.source,
            dual_attach_policy=wanted.policy,
            migration_timeout_seconds=wanted.migration_timeout_seconds,
        )

    async def _as_large(self, record: Record, size: int, wanted: NewVolume, disk: DiskSpec, deadline: float) -> Record:
        """Record the size of a copy whose source had grown more than its name says: by an expansion that was under way."""
        if size == record.spec.capacity_bytes:
            return record
        if wanted.limit_bytes and size > wanted.limit_bytes:
            await self._take_back(record, disk, deadline)
            raise OutOfRange(f"the source has {size} bytes, more than the limit of {wanted.limit_bytes} bytes")
        return await self.store.change_spec(record, lambda newest: newest.replace(spec=newest.spec.replace(capacity_bytes=size)))

    async def _find(self, source: ContentSource, deadline: float) -> _Source:
        """Find a snapshot or volume on the box; raises NotFound, and what ``snapshot_source`` raises."""
        if source.snapshot_id:
            found = await self.backend.snapshots(source.snapshot_id, deadline=deadline)
            if not found:
                raise NotFound(f"there is no snapshot {source.snapshot_id} under {self.base_path} on the box")
            return _Source(found[0].path, found[0].name.size)
        handle = source.volume_handle or ""
        record = await self.known(handle)
        if record is None:
            raise NotFound(f"volume {handle} is not known: no VolumeAttachmentRecord and no PersistentVolume names it")
        path, slot = snapshot_source(record)
        disk = await self.box.disk(slot, deadline=deadline)
        if disk is None:
            raise FailedPrecondition(f"volume {handle}: the box has no disk in slot {slot}, so there is nothing to copy")
        return _Source(path, disk.size)

    async def _make_subvolume(self, record: Record, *, new: bool, deadline: float) -> bool:
        """Make the volume's subvolume, empty or as a copy of its source, where it is to have one; whether it was made now."""
        target = record.spec.target
        subvolume = subvolume_of(target.file_path, target.slot) if target else None
        if subvolume is None:
            return False
        path, source = FilePath(subvolume), None
        if record.spec.content_source and not await self.backend.exists(path, deadline=deadline):
            source = (await self._find(record.spec.content_source, deadline)).path
        made = await self.backend.make(path, source=source, deadline=deadline)
        if new and not made:
            raise SubvolumeInTheWay(f"subvolume {path} exists and no record names it: it may hold data")
        return made

    async def _forget(self, record: Record) -> None:
        """Take back the write-ahead record of a volume that the box has refused, so that a refused claim leaves nothing behind."""
        if record.initialized:
            return
        try:
            await self.store.remove(record)
        except ApiError as error:
            # It stays, empty: the next CreateVolume or DeleteVolume of this name goes on from it.
            _log.info("write-ahead record kept", extra={"volume": record.handle, "error": str(error)})

    async def _take_back(self, record: Record, disk: DiskSpec, deadline: float) -> None:
        """Remove what was made for a new volume that cannot be, and its record: the next try, maybe with other names, begins anew.

        Nobody was ever told of this volume, so there is no data in it but what its source still has. The record is read again
        first: another replica may have made the volume meanwhile, and told.
        """
        record = await self.store.reread(record)
        if not record.initialized and await self._is_gone(record, self._remove_from_box(disk.slot, disk.path, deadline)):
            await self._forget(record)

    async def _is_gone(self, record: Record, removal: Awaitable[None]) -> bool:
        try:
            await removal
        except BoxError as error:
            # The record stays and names the place: the next CreateVolume says the same, and DeleteVolume removes it.
            _log.warning("disk not taken back", extra={"volume": record.handle, "error": str(error)})
            return False
        return True

    async def _remove_from_box(self, slot: Slot, path: FilePath, deadline: float) -> None:
        await self.box.delete_disk(slot, path=path, deadline=deadline)
        try:
            await self._remove_file(slot, path, deadline)
        except DiskInTheWay as other:
            if not slot.startswith(other.slot):
                raise
            # A box that keeps only the first characters of a slot has put the disk of this very file there.
            await self.box.delete_disk(Slot(other.slot), path=path, deadline=deadline)
            await self._remove_file(slot, path, deadline)

    async def _remove_file(self, slot: Slot, path: FilePath, deadline: float) -> None:
        subvolume = subvolume_of(path, slot)
        if subvolume is None:
            await self.box.delete_file(path, deadline=deadline)
        else:
            await self.backend.remove(FilePath(subvolume), deadline=deadline)

    async def delete(self, handle: str, record: Record | None, *, deadline: float) -> None:
        """Remove disk, backing file and record, in that order, each step verified; a volume that is not there is deleted.

        Before the box is touched the record says ``deleting``, so no attach can be admitted any more. A crash after any step leaves
        a record that still says so and still names slot and file: the retry finds what is gone gone, and does the rest.

        Raises FailedPrecondition while a node is attached, and what the box and the API server raise.
        """
        if record is None:
            await self._delete_unrecorded(handle, deadline)
            return
        self._refuse_foreign_file(record)
        decision = await self.store.change(record, lambda newest: transitions.begin_deletion(newest, now=self.api.clock.now()))
        if isinstance(decision, Refused):
            raise rejection(decision)
        record = decision.record
        target = record.spec.target
        if target is not None and not record.status.removed_from_box:
            await self._remove_from_box(Slot(target.slot), FilePath(target.file_path), deadline)
        await self._retire(record)

    def _refuse_foreign_file(self, record: Record) -> None:
        target = record.spec.target
        if target is None or _place(target.slot, target.file_path).is_below(FilePath(self.base_path)):
            return
        # Whoever can make a PersistentVolume can name any file of the box in it.
        raise FailedPrecondition(
            f"volume {record.handle}: its file {target.file_path} lies outside {self.base_path} and is not removed; remove disk "
            f"{target.slot} and the file by hand, or set --rds-volume-base-path to a directory above it"
        )

    async def _retire(self, record: Record) -> None:
        """Let go of the record of a volume that is gone from the box; what it has not reported yet keeps it until it has.

        With an empty outbox finalizer and object go here. Else the object is marked and deleted with the finalizer still on it: the
        operator reports, and then takes the finalizer off. A crash in between leaves ``deleting``: the retry comes here again.
        """
        marked = await self.store.change(
            record,
            lambda newest: Decided(newest.with_status(removed_from_box=True), changed=not newest.status.removed_from_box),
        )
        if isinstance(marked, Refused):
            raise rejection(marked)
        try:
            if marked.record.status.outbox:
                await self.store.delete(marked.record)
            else:
                await self.store.remove(marked.record)
        except ObjectNotFound:
            return

    async def _delete_unrecorded(self, handle: str, deadline: float) -> None:
        # Neither a record nor a PersistentVolume names this volume, so nobody can be attached to it. A file without a disk is left
        # alone: a volume of ours keeps its record until its file is gone, so it may be somebody else's.
        slot = Slot(slot_for(handle, self.slot_names))
        disk = await self.box.disk(slot, deadline=deadline)
        if disk is None:
            return
        path = FilePath(disk.path)
        if not _place(slot, path).is_below(FilePath(self.base_path)):
            raise FailedPrecondition(
                f"volume {handle}: disk {slot} is made of {path}, outside {self.base_path}, and no record names it; it stays"
            )
        await self._remove_from_box(slot, path, deadline)


def _place(slot: str, file_path: str) -> FilePath:
    """Return what a deletion removes: the volume's subvolume with all that is in it, or the file alone."""
    return FilePath(subvolume_of(file_path, slot) or file_path)


def _refuse_different(record: Record, wanted: NewVolume) -> None:
    if record.terminating or record.status.deleting or FINALIZER not in record.metadata.finalizers:
        raise Aborted(f"volume {wanted.handle} is being deleted; its name can be used again when that is done")
    spec = record.spec
    differences = [
        f"{name} is {have}, asked for {want}"
        for name, have, want in (
            ("volumeMode", spec.volume_mode, wanted.volume_mode),
            ("accessMode", spec.access_mode, wanted.access_mode),
            ("dualAttachPolicy", spec.dual_attach_policy, wanted.policy),
            ("contentSource", _described(spec.content_source), _described(wanted.source)),
        )
        if have != want
    ]
    if spec.capacity_bytes < wanted.capacity_bytes or (wanted.limit_bytes and spec.capacity_bytes > wanted.limit_bytes):
        limit = f", at most {wanted.limit_bytes}" if wanted.limit_bytes else ""
        differences.append(f"capacity is {spec.capacity_bytes} bytes, asked for {wanted.capacity_bytes}{limit}")
    if differences:
        raise AlreadyExists(f"volume {wanted.handle} exists and differs: {'; '.join(differences)}; use another name")


def _described(source: ContentSource | None) -> str:
    if source is None:
        return "none"
    return f"snapshot {source.snapshot_id}" if source.snapshot_id else f"volume {source.volume_handle}"
