"""Create and delete volumes: the record first, then the box, every step read back."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rds_csi.attachments import rejection
from rds_csi.errors import Aborted, AlreadyExists, FailedPrecondition
from rds_csi.routeros.box import Box
from rds_csi.routeros.commands import DiskSpec, FilePath, Nqn, Slot
from rds_csi.routeros.errors import BoxError, Conflict, DiskInTheWay, PoolFull, ReadBackMismatch
from rds_records import imports, transitions
from rds_records.decisions import Decided, Refused
from rds_records.kubernetes_api import ApiError, KubernetesApi, ObjectNotFound, WriteConflict
from rds_records.names import FINALIZER, SlotNames, file_path_for, nqn_for, slot_for
from rds_records.record import AccessMode, DualAttachPolicy, ObjectReference, Record, Spec, Target, VolumeMode
from rds_records.store import RecordStore

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


@dataclass(frozen=True, slots=True)
class Volumes:
    """Creates and deletes volumes on one box."""

    api: KubernetesApi
    store: RecordStore
    box: Box
    slot_names: SlotNames = SlotNames.HANDLE
    nvme_port: int = 4420
    base_path: str = imports.DEFAULT_BASE_PATH

    async def create(self, wanted: NewVolume, *, deadline: float) -> tuple[Record, Target]:
        """Make the volume, or find it made by an earlier try; returns its record, with the size that it really has, and its place.

        A crash may come between any two steps: the record exists before the disk, so nothing on the box is ever without an owner,
        and a retry with the same name finds the record, compares it with the request, and does what is left to do: the box is read
        before anything is sent to it, and a disk that is there and equal is taken as made.

        Raises AlreadyExists where a volume of that name differs from the request, Aborted where it is being deleted, PoolFull where
        the box has no room, Conflict where something is in the way and ReadBackMismatch where it made something else (then the
        record goes again, and what was made), and what the box and the API server raise.
        """
        record = await self.store.read(wanted.handle)
        new = record is None
        if record is None:
            try:
                record = await self.store.create(self._spec(wanted))
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
        try:
            await self.box.create_disk(disk, deadline=deadline)
        except PoolFull:
            await self._forget(record)
            raise
        except Conflict:
            # What is in the way is not this volume's, so no record may claim it. An older record may be another replica's, at work.
            if new:
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

    def _spec(self, wanted: NewVolume) -> Spec:
        slot = slot_for(wanted.handle, self.slot_names)
        return Spec(
            volume_handle=wanted.handle,
            volume_mode=wanted.volume_mode,
            access_mode=wanted.access_mode,
            capacity_bytes=wanted.capacity_bytes,
            persistent_volume_name=wanted.persistent_volume_name,
            target=Target(
                nqn=nqn_for(wanted.handle),
                slot=slot,
                file_path=file_path_for(wanted.directory, slot),
                address=wanted.nvme_address,
                port=wanted.nvme_port,
            ),
            dual_attach_policy=wanted.policy,
            migration_timeout_seconds=wanted.migration_timeout_seconds,
        )

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
        """Remove a new disk that is not as it should be, and its record: the next try, maybe with other slot names, begins anew.

        Nobody was ever told of this volume, so there is no data in it.
        """
        if record.initialized:
            return
        try:
            await self._remove_from_box(disk.slot, disk.path, deadline)
        except BoxError as error:
            # The record stays and names the place: the next CreateVolume says the same, and DeleteVolume removes it.
            _log.warning("disk not taken back", extra={"volume": record.handle, "error": str(error)})
            return
        await self._forget(record)

    async def _remove_from_box(self, slot: Slot, path: FilePath, deadline: float) -> None:
        await self.box.delete_disk(slot, path=path, deadline=deadline)
        try:
            await self.box.delete_file(path, deadline=deadline)
        except DiskInTheWay as other:
            if not slot.startswith(other.slot):
                raise
            # A box that keeps only the first characters of a slot has put the disk of this very file there.
            await self.box.delete_disk(Slot(other.slot), path=path, deadline=deadline)
            await self.box.delete_file(path, deadline=deadline)

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
        if target is None or FilePath(target.file_path).is_below(FilePath(self.base_path)):
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
        if not path.is_below(FilePath(self.base_path)):
            raise FailedPrecondition(
                f"volume {handle}: disk {slot} is made of {path}, outside {self.base_path}, and no record names it; it stays"
            )
        await self._remove_from_box(slot, path, deadline)


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
        )
        if have != want
    ]
    if spec.capacity_bytes < wanted.capacity_bytes or (wanted.limit_bytes and spec.capacity_bytes > wanted.limit_bytes):
        limit = f", at most {wanted.limit_bytes}" if wanted.limit_bytes else ""
        differences.append(f"capacity is {spec.capacity_bytes} bytes, asked for {wanted.capacity_bytes}{limit}")
    if differences:
        raise AlreadyExists(f"volume {wanted.handle} exists and differs: {'; '.join(differences)}; use another name")
