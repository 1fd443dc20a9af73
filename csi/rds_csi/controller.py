"""The CSI controller service: requests in, records and box changed, responses out. Decisions are taken elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int64Value

from rds_csi import requests
from rds_csi.attachments import CONFLICTS, Attachments, AttachRefused, rejection
from rds_csi.capacity import NO_RESERVE, Reserve, offer
from rds_csi.contexts import publish_context
from rds_csi.errors import FailedPrecondition, NotFound, Unavailable
from rds_csi.expansions import Expansions
from rds_csi.metrics import ShimMetrics
from rds_csi.parameters import volume_context
from rds_csi.routeros import FilePath, NoSuchItem
from rds_csi.snapshots import Snapshots
from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_csi.volume_locks import VolumeLocks
from rds_csi.volumes import NewVolume, Volumes
from rds_records.expansion import node_must_follow
from rds_records.names import handle_for
from rds_records.record import Record, VolumeMode
from rds_records.volume_layout import SnapshotName, snapshot_id_for

_log = logging.getLogger(__name__)

_Rpc = csi_pb2.ControllerServiceCapability.RPC
SNAPSHOT_CAPABILITIES = (_Rpc.CREATE_DELETE_SNAPSHOT, _Rpc.LIST_SNAPSHOTS, _Rpc.CLONE_VOLUME)
"""What is served where the box keeps snapshots."""

CAPABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.PUBLISH_UNPUBLISH_VOLUME,
    _Rpc.PUBLISH_READONLY,
    # Not LIST_VOLUMES_PUBLISHED_NODES: csi-attacher would publish again, by itself, whatever a list does not name.
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_CAPACITY,
    _Rpc.EXPAND_VOLUME,
    _Rpc.MODIFY_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)
"""What is served in any case; nothing is advertised that is not."""


BOX_SECONDS = 120.0
"""The longest that one RPC waits for the box, where its caller would wait longer."""

ANSWER_SECONDS = 0.5
"""Kept of the caller's time for the answer and the record."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the box is today, for every volume whose StorageClass names no place of its own."""

    rds_address: str
    nvme_address: str
    nvme_port: int


@dataclass(frozen=True, slots=True)
class Controller(csi_pb2_grpc.ControllerServicer):
    """ControllerServicer of the CSI driver; calls for one volume go one after another."""

    attachments: Attachments
    volumes: Volumes
    expansions: Expansions
    snapshots: Snapshots
    addresses: Addresses
    base_path: str
    metrics: ShimMetrics
    locks: VolumeLocks
    reserve: Reserve = NO_RESERVE

    async def ControllerGetCapabilities(self, request: Message, context: object) -> Message:  # noqa: ARG002, N802
        """Say which controller RPCs are served; the box has a say in some of them."""
        kinds = (*CAPABILITIES, *(SNAPSHOT_CAPABILITIES if await self.snapshots.backend.advertised() else ()))
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in kinds]
        )

    async def CreateVolume(  # noqa: N802
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.aio.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        """Make a volume, or find the one that an earlier call made."""
        asked = requests.create_volume(request, base_path=self.base_path)
        if asked.parameters.ignored:
            _log.warning("StorageClass parameters without effect", extra={"parameters": asked.parameters.ignored})
        handle = handle_for(asked.name)
        wanted = NewVolume(
            handle=handle,
            capacity_bytes=asked.capacity_bytes,
            limit_bytes=asked.limit_bytes,
            volume_mode=asked.capability.volume_mode,
            access_mode=asked.capability.access_mode,
            directory=asked.parameters.volume_path,
            nvme_address=asked.parameters.nvme_address,
            nvme_port=asked.parameters.nvme_port,
            policy=asked.parameters.dual_attach_policy,
            migration_timeout_seconds=asked.parameters.migration_timeout_seconds,
            persistent_volume_name=asked.parameters.persistent_volume_name,
            claim=asked.parameters.claim,
            source=asked.source,
        )
        async with self.locks.try_hold(handle):
            with self.metrics.volume_operation("create"):
                record, target = await self.volumes.create(wanted, deadline=_deadline(context))
        return csi_pb2.CreateVolumeResponse(
            volume=csi_pb2.Volume(
                volume_id=handle,
                capacity_bytes=record.spec.capacity_bytes,
                volume_context=volume_context(
                    asked.parameters,
                    nqn=target.nqn,
                    file_path=target.file_path,
                    rds_address=self.addresses.rds_address,
                    nvme_address=self.addresses.nvme_address,
                    nvme_port=self.addresses.nvme_port,
                ),
                # csi-provisioner deletes a restored volume whose answer, even to a retry, does not say what it was made from.
                content_source=_content_source(record),
            )
        )

    async def DeleteVolume(  # noqa: N802
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.aio.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        """Remove a volume; one that is not there is removed."""
        asked = requests.delete_volume(request)
        async with self.locks.try_hold(asked.handle):
            with self.metrics.volume_operation("delete"):
                record = await self.attachments.known(asked.handle, caller=None)
                await self.volumes.delete(asked.handle, record, deadline=_deadline(context))
        return csi_pb2.DeleteVolumeResponse()

    async def CreateSnapshot(  # noqa: N802
        self, request: csi_pb2.CreateSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> csi_pb2.CreateSnapshotResponse:
        """Take a snapshot, or find the one that an earlier call took."""
        asked = requests.create_snapshot(request)
        if asked.ignored:
            _log.warning("VolumeSnapshotClass parameters without effect", extra={"parameters": asked.ignored})
        # Not the source's lock: an attach must not wait for a box that does not answer.
        async with self.locks.try_hold(snapshot_id_for(asked.name)):
            with self.metrics.volume_operation("create_snapshot"):
                source = await self.attachments.known(asked.source_handle, caller=None)
                if source is None:
                    raise _unknown(asked.source_handle)
                name = await self.snapshots.create(asked.name, source, deadline=_deadline(context))
        return csi_pb2.CreateSnapshotResponse(snapshot=_snapshot(name))

    async def DeleteSnapshot(  # noqa: N802
        self, request: csi_pb2.DeleteSnapshotRequest, context: grpc.aio.ServicerContext
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Remove a snapshot; one that is not there is removed."""
        snapshot_id = requests.delete_snapshot(request)
        async with self.locks.try_hold(snapshot_id):
            with self.metrics.volume_operation("delete_snapshot"):
                await self.snapshots.delete(snapshot_id, deadline=_deadline(context))
        return csi_pb2.DeleteSnapshotResponse()

    async def ControllerExpandVolume(  # noqa: N802
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: grpc.aio.ServicerContext
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Make a volume larger, or find it so; the answer to a retry asks for the node's part again, which may have been lost."""
        asked = requests.expand_volume(request)
        with self.metrics.volume_operation("expand"):
            record = await self.attachments.known(asked.handle, caller=None)
            if record is None:
                raise _unknown(asked.handle)
            record = await self.expansions.expand(
                record, asked.capacity_bytes, limit=asked.limit_bytes, deadline=_deadline(context)
            )
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=record.spec.capacity_bytes, node_expansion_required=node_must_follow(record)
        )

    async def ControllerModifyVolume(  # noqa: N802
        self,
        request: csi_pb2.ControllerModifyVolumeRequest,
        context: object,  # noqa: ARG002
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        """Set what a VolumeAttributesClass says on the record, where everybody sees it and a running migration follows it."""
        asked = requests.modify_volume(request)
        async with self.locks.try_hold(asked.handle):
            record = await self.attachments.known(asked.handle, caller=None)
            if record is None:
                raise _unknown(asked.handle)
            if (timeout := asked.migration_timeout_seconds) is not None:
                await self.volumes.store.change_spec(
                    record, lambda newest: newest.replace(spec=newest.spec.replace(migration_timeout_seconds=timeout))
                )
        return csi_pb2.ControllerModifyVolumeResponse()

    async def ListVolumes(  # noqa: N802
        self,
        request: csi_pb2.ListVolumesRequest,
        context: object,  # noqa: ARG002
    ) -> csi_pb2.ListVolumesResponse:
        """List the volumes that have records, in pages that stay in step where volumes come and go."""
        asked = requests.list_volumes(request)
        records = [record for record in await self.volumes.store.list() if record.initialized and not record.status.deleting]
        left = sorted((record for record in records if record.handle > asked.after), key=lambda record: record.handle)
        page = left[: asked.max_entries or None]
        return csi_pb2.ListVolumesResponse(
            entries=[
                csi_pb2.ListVolumesResponse.Entry(
                    volume=csi_pb2.Volume(
                        volume_id=record.handle,
                        capacity_bytes=record.spec.capacity_bytes,
                        content_source=_content_source(record),
                    )
                )
                for record in page
            ],
            next_token=f"{requests.PAGE_AFTER}{page[-1].handle}" if len(page) < len(left) else "",
        )

    async def GetCapacity(  # noqa: N802
        self, request: csi_pb2.GetCapacityRequest, context: grpc.aio.ServicerContext
    ) -> csi_pb2.GetCapacityResponse:
        """Say how much of the pool new volumes may take; the box is asked, and what it does not say is never 0."""
        asked = requests.get_capacity(request, base_path=self.base_path)
        if not asked.offered:
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        try:
            pool = await self.volumes.box.capacity(FilePath(asked.directory).mount_point, deadline=_deadline(context))
        except NoSuchItem as error:
            raise Unavailable(f"the pool of {asked.directory} cannot be measured: {error}") from error
        room = offer(pool.size, pool.free, self.reserve)
        return csi_pb2.GetCapacityResponse(
            available_capacity=room.available,
            minimum_volume_size=Int64Value(value=room.smallest),
            maximum_volume_size=Int64Value(value=room.largest),
        )

    async def ListSnapshots(  # noqa: N802
        self, request: csi_pb2.ListSnapshotsRequest, context: grpc.aio.ServicerContext
    ) -> csi_pb2.ListSnapshotsResponse:
        """List snapshots, by id, by source or all, in pages that stay in step where snapshots come and go."""
        asked = requests.list_snapshots(request)
        found = await self.snapshots.list(
            snapshot_id=asked.snapshot_id, source_handle=asked.source_handle, deadline=_deadline(context)
        )
        left = [name for name in found if name.id > asked.after]
        page = left[: asked.max_entries or None]
        return csi_pb2.ListSnapshotsResponse(
            entries=[csi_pb2.ListSnapshotsResponse.Entry(snapshot=_snapshot(name)) for name in page],
            next_token=page[-1].id if len(page) < len(left) else "",
        )

    async def ControllerPublishVolume(  # noqa: N802
        self,
        request: csi_pb2.ControllerPublishVolumeRequest,
        context: grpc.aio.ServicerContext,
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        """Give a volume to a node."""
        asked = requests.controller_publish(request)
        async with self.locks.hold(asked.handle):
            with self._attachment_operation(attach=True) as measured:
                try:
                    record, second = await self.attachments.attach(
                        asked.handle, asked.node, asked.capability.access, deadline=_deadline(context)
                    )
                except AttachRefused as error:
                    if error.refused.reason in CONFLICTS:
                        self.metrics.conflicts.inc()
                    raise rejection(error.refused) from error
                measured.operation = "attach_secondary" if second else "attach"
        return csi_pb2.ControllerPublishVolumeResponse(publish_context=self._publish_context(record, asked))

    async def ControllerUnpublishVolume(  # noqa: N802
        self,
        request: csi_pb2.ControllerUnpublishVolumeRequest,
        context: grpc.aio.ServicerContext,
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        """Take a volume from a node, or from all."""
        asked = requests.controller_unpublish(request)
        async with self.locks.hold(asked.handle):
            with self._attachment_operation(attach=False) as measured:
                others_stay = await self.attachments.detach(asked.handle, asked.node, deadline=_deadline(context))
                measured.operation = "detach_partial" if others_stay else "detach"
        return csi_pb2.ControllerUnpublishVolumeResponse()

    async def ValidateVolumeCapabilities(  # noqa: N802
        self,
        request: csi_pb2.ValidateVolumeCapabilitiesRequest,
        context: object,  # noqa: ARG002
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm what a publish would accept, and nothing else."""
        asked = requests.validate_capabilities(request)
        record = await self.attachments.known(asked.handle, caller=None)
        if record is None:
            raise _unknown(asked.handle)
        message = asked.unsupported or _not_published(record) or _unusable(record, asked)
        if message:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=message)
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(volume_capabilities=request.volume_capabilities)
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def _publish_context(self, record: Record, asked: requests.ControllerPublish) -> dict[str, str]:
        target = record.spec.target
        if target is None:
            raise FailedPrecondition(
                f"volume {record.handle}: its record {record.metadata.name} names no NVMe subsystem (spec.target); add it"
            )
        return publish_context(
            nvme_address=target.address or self.addresses.nvme_address,
            nvme_port=target.port or self.addresses.nvme_port,
            nqn=target.nqn,
            fs_type="" if asked.capability.block else asked.capability.fs_type or "ext4",
        )

    @contextmanager
    def _attachment_operation(self, *, attach: bool) -> Iterator[_Measured]:
        measured = _Measured("attach" if attach else "detach")
        counter = self.metrics.attaches if attach else self.metrics.detaches
        started = monotonic()
        status = "failure"
        try:
            yield measured
            status = "success"
        finally:
            counter.labels(status).inc()
            self.metrics.attachment_durations.labels(measured.operation).observe(monotonic() - started)


@dataclass(slots=True)
class _Measured:
    """What turned out to be measured."""

    operation: str


def _deadline(context: grpc.aio.ServicerContext) -> float:
    """Return when the box must have answered (``time.monotonic``): a little before the caller stops waiting."""
    remaining = context.time_remaining()
    return monotonic() + (BOX_SECONDS if remaining is None else max(0.0, min(BOX_SECONDS, remaining - ANSWER_SECONDS)))


def _unknown(handle: str) -> NotFound:
    return NotFound(f"volume {handle} is not known: no VolumeAttachmentRecord and no PersistentVolume names it")


def _snapshot(name: SnapshotName) -> csi_pb2.Snapshot:
    return csi_pb2.Snapshot(
        snapshot_id=name.id,
        source_volume_id=name.source_handle,
        size_bytes=name.size,
        creation_time=Timestamp(seconds=int(name.time.timestamp())),
        ready_to_use=True,
    )


def _content_source(record: Record) -> csi_pb2.VolumeContentSource | None:
    source = record.spec.content_source
    if source is None:
        return None
    if source.snapshot_id:
        return csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=source.snapshot_id))
    return csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=source.volume_handle))


def _not_published(record: Record) -> str:
    if record.status.deleting:
        return f"volume {record.handle} is being deleted and is not published any more"
    return "" if record.spec.target else f"volume {record.handle}: its record names no NVMe subsystem, so it cannot be published"


def _unusable(record: Record, asked: requests.ValidateCapabilities) -> str:
    for capability in asked.capabilities:
        if capability.volume_mode is not record.spec.volume_mode:
            wants = "a block device" if capability.volume_mode is VolumeMode.BLOCK else "a filesystem"
            return f"volume {record.handle} has volumeMode {record.spec.volume_mode} and cannot be used as {wants}"
    return ""
