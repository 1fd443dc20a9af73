"""Releases attachments that nobody will ever detach: recorded nodes whose VolumeAttachment is gone, once they are proven out.

Any number of replicas look. Each step is one compare-and-swap that takes effect only on the very attachment that was judged, and a
crash between any two is safe:

- killed before the mark: nothing has happened;
- killed between the mark and the release, also while the box is told: the node is still on the record and counts, so no other is
  admitted. The next look of any replica finds the mark, judges anew and goes on, or takes it back; a publish of the node takes it
  back too. The box's list is a function of the record, so telling it again, or ``FenceWatch``, puts it right;
- killed after the release: the same write has announced it, and the operator reports it.

Unknown is not absent: where anything cannot be read, nothing is marked, released or taken back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from rds_csi.errors import Rejected
from rds_csi.fence import Fence
from rds_csi.volume_locks import VolumeLocks
from rds_records import stale
from rds_records.conditions import STALE_ATTACHMENT
from rds_records.decisions import Decided, Refused
from rds_records.forced_detach import force_of
from rds_records.imports import claim_of, volumes_of
from rds_records.kubernetes_api import ApiError, KubernetesApi, ObjectNotFound
from rds_records.kubevirt_objects import FINAL_PHASES, GROUP_VERSION, Pod, pod_view, vmi_view
from rds_records.names import DRIVER_NAME, volume_attachment_name
from rds_records.node_proof import Proof, Standing, prove, users_on, vm_of
from rds_records.record import Attachment, Force, ObjectReference, Record
from rds_records.stale import is_leaving, is_marked
from rds_records.store import Contended

_log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 30.0
"""How long the box may take to refuse a node."""

_VOLUMES: Final = "/api/v1/persistentvolumes"
_ATTACHMENTS: Final = "/apis/storage.k8s.io/v1/volumeattachments"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a second look found of an attachment without VolumeAttachment."""

    proof: Proof
    force: Force | None
    """Why its release counts as forced."""


@dataclass(slots=True)
class StaleWatch:
    """Compares records with VolumeAttachments again and again."""

    api: KubernetesApi
    fence: Fence
    locks: VolumeLocks
    interval: float
    """Seconds between two looks; what has no VolumeAttachment in two of them is judged."""

    driver: str = DRIVER_NAME
    _seen: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    """Record and attachment ids that had no VolumeAttachment at the last look."""

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await self.round()
            except ApiError as error:
                _log.warning("records not compared with VolumeAttachments", extra={"error": str(error)})
            except Exception:  # noqa: BLE001 the next round looks again
                _log.exception("a comparison of records with VolumeAttachments broke")

    async def round(self) -> None:
        """Look once. Raises ApiError where records or VolumeAttachments could not be listed."""
        # Records first: what they say was answered for a VolumeAttachment that was there already, so one that is missing is gone.
        records = [record for record in await self.fence.store.list() if record.initialized]
        there = await self._attachments()
        names = {one["metadata"]["name"] for one in there}
        before, seen = self._seen, set[tuple[str, str]]()
        for record in records:
            missing = [held for held in record.status.attachments if self._name(record, held) not in names]
            suspects = [held for held in missing if not is_leaving(held)]
            seen |= {(record.metadata.uid or "", held.id) for held in suspects}
            # A mark was made after two looks, by whichever replica.
            due = [held for held in suspects if (record.metadata.uid or "", held.id) in before or is_marked(held)]
            due += [held for held in record.status.attachments if is_marked(held) and held not in missing]
            told = record.status.condition(STALE_ATTACHMENT)
            if due or (told and told.status == "True" and not missing):
                try:
                    await self._examine(record, due)
                except (Rejected, Contended, ApiError) as error:
                    # The next one may be better off.
                    _log.warning("attachment not examined", extra={"volume": record.handle, "error": str(error)})
        self._seen = frozenset(seen)

    def _name(self, record: Record, held: Attachment) -> str:
        return volume_attachment_name(record.handle, held.node_name, self.driver)

    async def _attachments(self) -> list[Object]:
        return [one for one in (await self.api.list(_ATTACHMENTS))[0] if one["spec"].get("attacher") == self.driver]

    async def _examine(self, record: Record, due: Sequence[Attachment]) -> None:
        kept: list[tuple[Attachment, Proof]] = []
        for held in due:
            judged = await self._judge(record, held)
            if judged is None:
                if is_marked(held):
                    await self._take_back(record, held)
            elif judged.proof.out:
                async with self.locks.hold(record.handle):
                    await self._release(record, held, judged)
            else:
                kept.append((await self._take_back(record, held) if is_marked(held) else held, judged.proof))
        now = self.api.clock.now
        await self.fence.store.change(await self.fence.store.reread(record), lambda newest: stale.tell(newest, kept, now=now()))

    async def _release(self, record: Record, held: Attachment, judged: Judged) -> None:
        """Mark the attachment, look again, and only then take it off."""
        marked = await self._mark(await self.fence.store.reread(record), held, judged.force)
        if marked is None:
            return
        record, held = marked
        again = await self._judge(record, held)
        if again is None or not again.proof.out:
            await self._take_back(record, held)
            return
        if again.force and not (held.leaving and held.leaving.forced):
            marked = await self._mark(record, held, again.force)
            if marked is None:
                return
            record, held = marked
        why = again.proof.why

        def end(newest: Record) -> Decided | Refused:
            now = self.api.clock.now()
            return stale.clear(newest, held, why, now=now, fenced=self.fence.guards(newest))

        if self.fence.guards(record):
            decided = await self.fence.expel(record, lambda newest: Decided(newest, changed=False), end, deadline=_deadline())
        else:
            decided = await self.fence.store.change(record, self.fence.noting(end))
        if isinstance(decided, Decided):
            _log.warning("stale attachment cleared", extra={"volume": record.handle, "node": held.node_name, "why": why})

    async def _mark(self, record: Record, held: Attachment, force: Force | None) -> tuple[Record, Attachment] | None:
        """Mark the attachment; None where it is not the same any more."""
        decided = await self.fence.store.change(
            record, self.fence.noting(lambda newest: stale.mark(newest, held, force, now=self.api.clock.now()))
        )
        marked = decided.record.status.attachment_of(held.node_name) if isinstance(decided, Decided) else None
        return (decided.record, marked) if isinstance(decided, Decided) and marked else None

    async def _take_back(self, record: Record, held: Attachment) -> Attachment:
        """Take the mark back, and have the box accept the node again; returns the attachment as it is then."""
        decided = await self.fence.store.change(record, self.fence.noting(lambda newest: stale.unmark(newest, held)))
        if isinstance(decided, Refused):
            return held
        await self.fence.settle(decided.record, deadline=_deadline())
        return decided.record.status.attachment_of(held.node_name) or held

    async def _judge(self, record: Record, held: Attachment) -> Judged | None:
        """Return whether the node is out, by what is read now; None where its VolumeAttachment is there.

        Raises ApiError where anything could not be read.
        """
        node = held.node_name
        bodies = volumes_of(record.handle, (await self.api.list(_VOLUMES))[0], self.driver)
        claims = [claim for claim in (record.status.claim_ref, *map(claim_of, bodies)) if claim]
        try:
            body: Object | None = await self.api.get(f"/api/v1/nodes/{node}")
        except ObjectNotFound:
            body = None
        users = users_on(node, await self._pods(node, claims), claims)
        live_node, vm = await self._vm(record, claims)
        standing = Standing(record.handle, node, body, users, live_node, vm, record.status.migration, driver=self.driver)
        # Last, so that nothing is released by what was read before a VolumeAttachment was made.
        volumes = {one["metadata"]["name"] for one in bodies} | {record.spec.persistent_volume_name or record.handle, record.handle}
        if any(
            one["metadata"]["name"] == self._name(record, held)
            or (one["spec"]["nodeName"] == node and one["spec"]["source"].get("persistentVolumeName") in volumes)
            for one in await self._attachments()
        ):
            return None
        return Judged(prove(standing), force_of(node, body, record.handle, self.driver))

    async def _pods(self, node: str, claims: Iterable[ObjectReference]) -> list[Pod]:
        found: list[Pod] = []
        for namespace in sorted({claim.namespace for claim in claims}):
            pods, _ = await self.api.list(f"/api/v1/namespaces/{namespace}/pods", {"fieldSelector": f"spec.nodeName={node}"})
            found += map(pod_view, pods)
        return found

    async def _vm(self, record: Record, claims: Iterable[ObjectReference]) -> tuple[str | None, str]:
        """Return where the VM runs whose disk this is, and its name; None where there is none, or it has ended."""
        known = vm_of(record)
        if known is None:
            return None, ""
        try:
            body = await self.api.get(f"{GROUP_VERSION}/namespaces/{known.namespace}/virtualmachineinstances/{known.name}")
        except ObjectNotFound:
            return None, ""
        vmi = vmi_view(body)
        ours = any(claim.namespace == vmi.namespace and claim.name in vmi.claims for claim in claims)
        if not ours or (body.get("status") or {}).get("phase") in FINAL_PHASES:
            return None, ""
        return vmi.node or None, vmi.name


def _deadline() -> float:
    return monotonic() + ANSWER_SECONDS
