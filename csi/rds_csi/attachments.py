"""Attach and detach: who may use a volume is read from and written to its record; the box is asked by the fence alone."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rds_csi.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Rejected,
    Unavailable,
)
from rds_csi.fence import Fence
from rds_csi.migration_evidence import MigrationEvidence
from rds_records import imports, transitions
from rds_records.decisions import Code, Decided, Reason, Refused
from rds_records.fencing import begin_leaving
from rds_records.forced_detach import force_of
from rds_records.kubernetes_api import ApiError, KubernetesApi, ObjectNotFound, RequestRefused, WriteConflict
from rds_records.kubevirt_evidence import Evidence
from rds_records.names import DRIVER_NAME, check_handle, volume_attachment_name
from rds_records.node_health import NodeHealth, name_unready, node_health
from rds_records.record import Attachment, Force, Record
from rds_records.stale import is_leaving, is_marked
from rds_records.store import Contended, RecordStore
from rds_records.transitions import Access

_log = logging.getLogger(__name__)

_REJECTIONS: Mapping[Code, type[Rejected]] = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: AlreadyExists,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.ABORTED: Aborted,
    Code.UNAVAILABLE: Unavailable,
}

CONFLICTS = frozenset({Reason.SINGLE_NODE, Reason.NO_SLOT, Reason.NO_MIGRATION})
"""Refusals because another node holds the volume."""

_NOTED = CONFLICTS | {Reason.DELETING, Reason.NO_EVIDENCE, Reason.EXPANDING}

UNPROCESSABLE = 422
"""HTTP status by which the API server refuses an object that its schema or a rule of the CRD does not allow."""

_NODES = "/api/v1/nodes"
_VOLUMES = "/api/v1/persistentvolumes"
_VOLUME_ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"


def rejection(refused: Refused) -> Rejected:
    """Return the RPC's error for a rule's no."""
    return _REJECTIONS[refused.code](refused.message)


class AttachRefused(Exception):
    """A rule refused the attachment; carries the ``Refused``."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Attachments:
    """Attaches and detaches volumes by compare-and-swap on their records."""

    api: KubernetesApi
    store: RecordStore
    evidence: MigrationEvidence
    fence: Fence
    driver: str = DRIVER_NAME
    base_path: str = imports.DEFAULT_BASE_PATH

    async def attach(self, handle: str, node: str, access: Access, *, deadline: float) -> tuple[Record, bool]:
        """Give the volume to the node; returns its record, and whether the node is the second one.

        One write, and two reads in parallel before it; a second node under ``dualAttachPolicy: KubeVirt`` needs two more rounds of
        reads in between; the fence tells the box and writes once more. Raises AttachRefused where a rule says no, NotFound where
        nothing in the cluster names the volume, ApiError where the API server could not tell or take it, and as ``Fence.settle``.
        """
        existence = asyncio.create_task(self._node_exists(node))
        try:
            record = await self.known(handle, caller=node, attaching=True)
            if record is None:
                raise NotFound(f"volume {handle} is not known: no VolumeAttachmentRecord and no PersistentVolume names it")
            held = record.status.attachment_of(node)
            if held and is_leaving(held):
                # The detach that began must end before the node is admitted anew, by the rules that hold then.
                record = await self._end_detach(record, held, deadline=deadline)
            holder = transitions.needs_evidence(record, node, access)
            evidence = await self.evidence.look(record, holder, node) if holder else None
            held = record.status.attachment_of(node)
            node_exists = None if held and not is_marked(held) else await existence
            new_id = uuid.uuid4().hex[:16]
            decision = await self.store.change(
                record,
                self.fence.noting(
                    lambda newest: transitions.attach(
                        newest,
                        node,
                        access,
                        now=self.api.clock.now(),
                        new_id=new_id,
                        node_exists=node_exists,
                        evidence=evidence,
                    )
                ),
            )
        finally:
            existence.cancel()
        if isinstance(decision, Refused):
            if decision.reason is Reason.NO_SLOT:
                decision = await self._name_unready(record, decision)
            if decision.reason in _NOTED:
                await self._note(record, node, decision, evidence)
            raise AttachRefused(decision)
        record = await self.fence.settle(decision.record, deadline=deadline)
        return record, len(record.status.attachments) > 1

    async def detach(self, handle: str, node: str, *, deadline: float) -> bool:
        """Take the volume from the node, or from all nodes where ``node`` is empty; returns whether one of two nodes stays.

        Raises Aborted where the detach is late: the node was attached anew meanwhile, or its VolumeAttachment is wanted again; and
        as ``Fence.settle``, with the node still on the record.
        """
        if not node:
            return await self._detach_all(handle, deadline=deadline)
        record, wanted, force = await asyncio.gather(
            self.known(handle, caller=node, adopt=False), self._wanted(handle, node), self._force(handle, node)
        )
        if record is None:
            # Nobody ever recorded an attachment. The VolumeAttachment of this node goes when we answer OK, and those of others
            # are found when the volume is next attached.
            return False
        held = record.status.attachment_of(node)
        if held:
            # Without the Node nobody knows whether what runs there may still write: a retry is cheaper than either guess.
            for unknown in (wanted, force):
                if isinstance(unknown, ApiError):
                    raise unknown
        forced = force if isinstance(force, Force) else None
        seen, still = held.id if held else None, wanted is True

        def begin(newest: Record) -> Decided | Refused:
            now = self.api.clock.now()
            return transitions.begin_detach(newest, node, attachment_id=seen, wanted=still, now=now, force=forced)

        def end(newest: Record) -> Decided | Refused:
            now = self.api.clock.now()
            return transitions.detach(
                newest, node, attachment_id=seen, wanted=still, now=now, force=forced, fenced=self.fence.guards(newest)
            )

        if held and self.fence.guards(record):
            decision = await self.fence.expel(record, begin, end, deadline=deadline)
        else:
            decision = await self.store.change(record, self.fence.noting(end) if held else end)
        if isinstance(decision, Refused):
            raise rejection(decision)
        return bool(decision.record.status.attachments)

    async def end_abandoned_detach(self, handle: str, node: str, *, deadline: float) -> bool:
        """End a detach that began where nobody will call for it again: its VolumeAttachment is gone; tells whether it did.

        Raises as ``detach``. One that is attached anew meanwhile has a VolumeAttachment again, and ``detach`` comes too late.
        """
        try:
            await self.api.get_metadata(f"{_VOLUME_ATTACHMENTS}/{volume_attachment_name(handle, node, self.driver)}")
        except ObjectNotFound:
            await self.detach(handle, node, deadline=deadline)
            return True
        return False

    async def _detach_all(self, handle: str, *, deadline: float) -> bool:
        record = await self.known(handle, caller=None, adopt=False)
        if record is None or not record.status.attachments:
            return False
        held = record.status.attachments
        found = await asyncio.gather(*(self._force(handle, one.node_name) for one in held))
        forces: dict[str, Force] = {}
        for one, force in zip(held, found, strict=True):
            if isinstance(force, ApiError):
                raise force
            if force:
                forces[one.node_name] = force
        await self._take_off(record, held, forces, deadline=deadline)
        return False

    async def _end_detach(self, record: Record, held: Attachment, *, deadline: float) -> Record:
        return await self._take_off(record, (held,), {}, deadline=deadline)

    async def _take_off(self, record: Record, held: Sequence[Attachment], forces: dict[str, Force], *, deadline: float) -> Record:
        """Take these attachments off the record, unconditionally."""
        ids = [one.id for one in held]

        def end(newest: Record) -> Decided:
            now = self.api.clock.now()
            return transitions.detach_all(newest, attachment_ids=ids, now=now, force=forces, fenced=self.fence.guards(newest))

        if self.fence.guards(record):
            begin = partial(begin_leaving, ids=ids, force=forces, now=self.api.clock.now())
            decision = await self.fence.expel(record, begin, end, deadline=deadline)
        else:
            decision = await self.store.change(record, self.fence.noting(end))
        return record if isinstance(decision, Refused) else decision.record

    async def known(self, handle: str, *, caller: str | None, adopt: bool = True, attaching: bool = False) -> Record | None:
        """Return the volume's initialized record; None where nothing names the volume.

        A record without status, and with ``adopt`` a volume that has none, is made up from PersistentVolumes and
        VolumeAttachments first: what the Go driver, or a restored backup, left. ``attaching`` raises Unavailable for an empty
        record without PersistentVolume: its CreateVolume has not ended.
        """
        record = await self.store.read(handle)
        if record and record.initialized:
            return record
        if record is None and not adopt:
            return None
        return await self._import(handle, record, caller, attaching)

    async def _import(self, handle: str, record: Record | None, caller: str | None, attaching: bool) -> Record | None:
        # Two consistent lists, volumes first: an attachment of a volume that was not there yet cannot have been answered OK.
        volumes = imports.volumes_of(handle, (await self.api.list(_VOLUMES))[0], self.driver)
        attachments, _ = await self.api.list(_VOLUME_ATTACHMENTS)
        return await self._import_from(handle, record, volumes, attachments, caller=caller, attaching=attaching)

    async def _import_from(
        self,
        handle: str,
        record: Record | None,
        volumes: list[imports.Object],
        attachments: list[dict[str, Any]],
        *,
        caller: str | None,
        attaching: bool,
    ) -> Record | None:
        if record is None:
            if not volumes:
                return None
            try:
                spec = imports.spec_from_volume(handle, volumes[0], base_path=self.base_path)
            except ValueError as error:
                name = volumes[0]["metadata"]["name"]
                raise InvalidArgument(
                    f"volume {handle}: PersistentVolume {name} cannot be one of this driver's: {error}"
                ) from error
            try:
                record = await self.store.create(spec)
            except RequestRefused as error:
                if error.status != UNPROCESSABLE:
                    raise
                raise InvalidArgument(f"volume {handle}: what its PersistentVolume says cannot be recorded: {error}") from error
            except WriteConflict:
                # Another replica imports it too. Whoever writes the status first wins, and both read the same VolumeAttachments.
                record = await self.store.read(handle)
        elif attaching and not volumes:
            raise Unavailable(
                f"volume {handle} is being created: its record is empty and no PersistentVolume names it yet; try again"
            )
        if record is None:
            raise Unavailable(f"volume {handle}: its record vanished while it was imported; try again")
        names = [volume["metadata"]["name"] for volume in volumes]
        found = imports.holders(handle, names, attachments, caller=caller, driver=self.driver)
        claim = imports.claim_of(volumes[0]) if volumes else None
        decision = await self.store.change(
            record,
            lambda newest: (
                Decided(newest, changed=False)
                if newest.initialized
                else Decided(imports.import_attachments(newest, found, now=self.api.clock.now(), claim=claim), changed=True)
            ),
        )
        if isinstance(decision, Refused):
            raise rejection(decision)
        _log.info("imported volume", extra={"volume": handle, "nodes": [holder.node for holder in found]})
        return decision.record

    async def _node_exists(self, node: str) -> bool | None:
        try:
            await self.api.get_metadata(f"{_NODES}/{node}")
        except ObjectNotFound:
            return False
        except ApiError as error:
            _log.warning("node lookup failed", extra={"node": node, "error": str(error)})
            return None
        return True

    async def _wanted(self, handle: str, node: str) -> bool | ApiError:
        """Tell whether the VolumeAttachment of the node exists and is not being deleted; an error where nobody knows."""
        try:
            found = await self.api.get_metadata(f"{_VOLUME_ATTACHMENTS}/{volume_attachment_name(handle, node, self.driver)}")
        except ObjectNotFound:
            return False
        except ApiError as error:
            return error
        return "deletionTimestamp" not in found

    async def _force(self, handle: str, node: str) -> Force | ApiError | None:
        """Return why a detach from the node is forced, None where it is not; an error where nobody knows."""
        try:
            found = await self.api.get(f"{_NODES}/{node}")
        except ObjectNotFound:
            return force_of(node, None, handle, self.driver)
        except ApiError as error:
            return error
        return force_of(node, found, handle, self.driver)

    async def _name_unready(self, record: Record, refused: Refused) -> Refused:
        """Name the holders that are not ready; one that cannot be read is passed over."""
        holders = [held.node_name for held in record.status.attachments]
        found = await asyncio.gather(*(self.api.get(f"{_NODES}/{holder}") for holder in holders), return_exceptions=True)
        seen: dict[str, NodeHealth] = {}
        for holder, node in zip(holders, found, strict=True):
            if isinstance(node, dict | ObjectNotFound):
                seen[holder] = node_health(holder, None if isinstance(node, ObjectNotFound) else node)
        return name_unready(record, refused, seen)

    async def _note(self, record: Record, node: str, refused: Refused, evidence: Evidence | None) -> None:
        """Write the refusal to the record, best effort: the answer does not depend on it."""

        def decide(newest: Record) -> Decided:
            noted = transitions.note_refusal(newest, node, refused, now=self.api.clock.now(), evidence=evidence)
            return Decided(noted or newest, changed=noted is not None)

        try:
            await self.store.change(record, decide)
        except (ApiError, Contended) as error:
            _log.info("refusal not noted", extra={"volume": record.handle, "node": node, "error": str(error)})

    async def reconcile(self) -> int:
        """Import what has no record and add holders that VolumeAttachments prove and records lack; returns how many changed.

        Runs when a shim starts. A crash in the middle is safe: every volume is looked at again by the next start, and by the next
        publish of it.
        """
        volumes, _ = await self.api.list(_VOLUMES)
        attachments, _ = await self.api.list(_VOLUME_ATTACHMENTS)
        records = {record.handle: record for record in await self.store.list()}
        ours: dict[str, list[imports.Object]] = {}
        for volume in volumes:
            source = volume["spec"].get("csi") or {}
            if source.get("driver") == self.driver:
                ours.setdefault(source["volumeHandle"], []).append(volume)
        changed = 0
        for handle, named in ours.items():
            try:
                changed += await self._reconcile_volume(check_handle(handle), records.get(handle), named, attachments)
            except (Rejected, RequestRefused, WriteConflict, ObjectNotFound, Contended, ValueError) as error:
                # One volume that cannot be recorded must not keep the others from it; its own publish will say why.
                _log.warning("volume not compared", extra={"volume": handle, "error": str(error)})
        return changed

    async def _reconcile_volume(
        self, handle: str, record: Record | None, volumes: list[imports.Object], attachments: list[dict[str, Any]]
    ) -> bool:
        names = [volume["metadata"]["name"] for volume in volumes]
        found = imports.holders(handle, names, attachments, driver=self.driver)
        if record is None and not found:
            return await self._import_unused(handle, volumes, attachments)
        if record is None or not record.initialized:
            return await self._import_from(handle, record, volumes, attachments, caller=None, attaching=False) is not None
        # Only what is attached for certain: a pending one is decided by its own publish.
        missing = [holder for holder in found if holder.attached and not record.status.attachment_of(holder.node)]
        return bool(missing) and await self._add_missing(record, missing)

    async def _import_unused(self, handle: str, volumes: list[imports.Object], attachments: list[dict[str, Any]]) -> bool:
        """Import a volume that nobody uses, unless it is on its way out: nobody would ever remove the record then.

        The lists are seconds old, so DeleteVolume may have ended since, and csi-provisioner be about to remove the
        PersistentVolume. It deletes volumes only after their PersistentVolume is released; so where that is still bound after the
        record was made, a later DeleteVolume finds the record.
        """
        if all(map(imports.is_released, volumes)):
            return False
        record = await self._import_from(handle, None, volumes, attachments, caller=None, attaching=False)
        if record is None or not await self._all_released(volumes):
            return record is not None
        await self.store.remove(record)
        return False

    async def _all_released(self, volumes: list[imports.Object]) -> bool:
        for volume in volumes:
            found, _ = await self.api.list(_VOLUMES, {"fieldSelector": f"metadata.name={volume['metadata']['name']}"})
            if not all(map(imports.is_released, found)):
                return False
        return True

    async def _add_missing(self, record: Record, missing: list[imports.Holder]) -> bool:
        # The lists are seconds old: a node that was detached since must not come back, so the holder is read again first.
        still = [holder for holder in missing if await self._wanted(record.handle, holder.node) is True]
        if not still:
            return False

        def decide(newest: Record) -> Decided:
            repaired = imports.add_missing(newest, still, now=self.api.clock.now())
            return Decided(repaired, changed=repaired is not newest)

        _log.warning("record lacked holders", extra={"volume": record.handle, "nodes": [holder.node for holder in still]})
        await self.store.change(record, decide)
        return True
