"""``kubectl rds release``: reads everything anew, judges, and deletes at most the one VolumeAttachment that was judged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rds_kubectl.reading import ATTACHMENTS_PATH, Reader
from rds_kubectl.release import Answer, Facts, Outcome, judge
from rds_kubectl.world import ATTACHMENTS, NODES, VOLUMES, Trouble, Volume, World, attachments_of_driver
from rds_process.tables import one_line
from rds_records.imports import claim_of, volumes_of
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound, WriteConflict
from rds_records.kubevirt_objects import GROUP_VERSION, Pod, pod_view, vmi_view
from rds_records.node_proof import vm_of
from rds_records.record import ObjectReference

PODS: Final = "pods"
VMI: Final = "virtualmachineinstance"
_NEEDED: Final = frozenset({ATTACHMENTS, NODES, VOLUMES})


class DeleteApi(Protocol):
    """What is needed of the API server to release (``KubernetesApi`` has it)."""

    async def delete(
        self, path: str, *, resource_version: str | None = None, uid: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        """Delete an object if the preconditions hold."""
        ...


@dataclass(frozen=True, slots=True)
class Release:
    """What was judged, and what became of it."""

    volume: Volume
    node: str
    answer: Answer
    dry_run: bool
    done: bool
    """Whether what was asked for is so now, or could be."""

    said: str

    def lines(self) -> Iterable[str]:
        """Yield it for people."""
        yield one_line(self.said)

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        done = {"released": self.done and not self.dry_run, "dryRun": self.dry_run}
        return {"volume": self.volume.handle, "node": self.node, **done, **self.answer.to_json()}


async def facts_about(reader: Reader, world: World, volume: Volume, node: str) -> Facts:
    """Return what there is to know of the volume on the node, what could not be read included."""
    bodies = volumes_of(volume.handle, world.volumes or (), world.driver)
    claims = list({(one.namespace, one.name): one for one in (volume.claim, *map(claim_of, bodies)) if one}.values())
    names = {body["metadata"]["name"] for body in bodies} | {volume.handle}
    attachments = [
        one
        for one in attachments_of_driver(world.attachments or (), world.driver)
        if one["spec"]["source"].get("persistentVolumeName") in names
    ]
    missing = [trouble for trouble in reader.troubles if trouble.what in _NEEDED or trouble.what.startswith("record ")]
    if not bodies and volume.claim is None:
        missing.append(
            Trouble("claim", "neither a PersistentVolume nor the record names it, so no pod that uses it can be looked for")
        )
    before = len(reader.troubles)
    pods, vmi = await asyncio.gather(_pods(reader, claims, node), _vmi(reader, volume))
    missing += reader.troubles[before:]
    return Facts(
        handle=volume.handle,
        node=node,
        attachments=attachments or volume.attachments,
        record=volume.record,
        node_body=(world.nodes or {}).get(node),
        claims=claims,
        pods=pods,
        vmi=vmi_view(vmi) if vmi else None,
        vmi_phase=((vmi or {}).get("status") or {}).get("phase") or "",
        troubles=missing,
        driver=world.driver,
    )


async def _pods(reader: Reader, claims: Iterable[ObjectReference], node: str) -> list[Pod]:
    found: list[Pod] = []
    for namespace in sorted({claim.namespace for claim in claims}):
        path, selector = f"/api/v1/namespaces/{namespace}/pods", {"fieldSelector": f"spec.nodeName={node}"}
        found += map(pod_view, await reader.items(PODS, path, selector) or ())
    return found


async def _vmi(reader: Reader, volume: Volume) -> dict[str, Any] | None:
    vmi = vm_of(volume.record)
    if vmi is None:
        return None
    path = f"{GROUP_VERSION}/namespaces/{vmi.namespace}/virtualmachineinstances/{vmi.name}"
    try:
        return await reader.api.get(path)
    except ObjectNotFound as error:
        if error.reason != "NotFound":
            # The whole kind is not served, though a VM was seen: that is no word about the VM.
            reader.troubles.append(Trouble(VMI, str(error)))
    except ApiError as error:
        reader.troubles.append(Trouble(VMI, str(error)))
    return None


async def release(api: DeleteApi, facts: Facts, volume: Volume, *, dry_run: bool) -> Release:
    """Delete the node's VolumeAttachment if that is proven safe; with ``dry_run`` the API server only checks that it could."""
    answer = judge(facts)

    def said(done: bool, text: str) -> Release:
        return Release(volume, facts.node, answer, dry_run, done, text)

    if answer.outcome in {Outcome.UNKNOWN, Outcome.REFUSED}:
        return said(False, f"not released: {answer.line()}")
    if answer.outcome is Outcome.NOTHING or answer.attachment is None:
        return said(True, f"nothing to do: {answer.line()}")
    metadata = answer.attachment["metadata"]
    name = metadata["name"]
    try:
        # One write. Where its answer is lost, the next run finds the VolumeAttachment gone or being deleted and does nothing.
        await api.delete(
            f"{ATTACHMENTS_PATH}/{name}", resource_version=metadata["resourceVersion"], uid=metadata["uid"], dry_run=dry_run
        )
    except ObjectNotFound:
        return said(True, f"nothing to do: VolumeAttachment {name} has just gone.")
    except WriteConflict:
        return said(False, f"not released: VolumeAttachment {name} changed while this was looked at. Do: try again.")
    except ApiUnavailable as error:
        return said(False, f"it is not known whether it was released: {error}. Do: try again, which is safe.")
    if dry_run:
        return said(True, f"would be released (VolumeAttachment {name}): {answer.why}. Dry run: nothing was changed.")
    shown = f"`kubectl rds volume {volume.handle}`"
    return said(True, f"released (VolumeAttachment {name}): {answer.why}. csi-attacher detaches it now: {shown}.")
