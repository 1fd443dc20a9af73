"""Looks for the live migration that explains a second node: reads what the rules of ``kubevirt_evidence`` want, anew each time.

Two rounds of reads, each in parallel, six reads at most: the PersistentVolume, its claim and the pods of the two nodes, then the
VirtualMachineInstance of those pods and its migrations. All are consistent reads: a pod that was bound before is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rds_records.imports import claim_of, is_released, volumes_of
from rds_records.kubernetes_api import ApiError, ObjectNotFound
from rds_records.kubevirt_evidence import (
    Candidates,
    Evidence,
    EvidenceUnavailable,
    NotExplained,
    Rule,
    candidates,
    explain,
    no_kubevirt,
)
from rds_records.kubevirt_objects import (
    GROUP,
    GROUP_VERSION,
    VMI_NAME_LABEL,
    Migration,
    Vmi,
    migration_view,
    pod_view,
    vmi_view,
)
from rds_records.names import DRIVER_NAME, is_dns_name
from rds_records.record import ObjectReference, Record

VMIS: Final = "virtualmachineinstances"
MIGRATIONS: Final = "virtualmachineinstancemigrations"
ROLE: Final = "manifests/base/rbac-controller.yaml"
MAX_LABEL_VALUE: Final = 63

Object = Mapping[str, Any]


class Reader(Protocol):
    """What is needed of the API server (``KubernetesApi`` has it)."""

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an object."""
        ...

    async def get_metadata(self, path: str) -> dict[str, Any]:
        """Return an object's metadata alone."""
        ...

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return all items of a collection and its version."""
        ...


class _Unreadable(Exception):
    """What could not be read, in words; ``forbidden`` where the API server does not allow it."""

    def __init__(self, text: str, *, forbidden: bool) -> None:
        super().__init__(text)
        self.forbidden = forbidden


@contextmanager
def _reading(verb: str, resource: str, where: str = "") -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        forbidden = error.status == 403
        if forbidden:
            text = f"the driver's ServiceAccount may not {verb} {resource}{where}: grant it, the rule is in {ROLE}"
        else:
            text = f"{resource}{where} could not be read ({error})"
        raise _Unreadable(text, forbidden=forbidden) from error


@dataclass(frozen=True, slots=True)
class MigrationEvidence:
    """Asks the API server whether KubeVirt migrates the VM that uses a volume from one node to another; remembers nothing."""

    api: Reader
    driver: str = DRIVER_NAME

    async def look(self, record: Record, source: str, target: str) -> Evidence:
        """Return what explains, or does not, that ``target`` wants the volume that ``source`` holds; no ApiError is raised."""
        try:
            return await self._look(record, source, target)
        except ExceptionGroup as group:
            return _unavailable(group)

    async def _look(self, record: Record, source: str, target: str) -> Evidence:
        hint = record.status.claim_ref
        namespace = hint.namespace if hint else ""
        async with asyncio.TaskGroup() as reads:
            volume_read = reads.create_task(self._volume(record))
            uid_read = reads.create_task(self._claim_uid(hint)) if hint else None
            pods_reads = [reads.create_task(self._pods(node, namespace)) for node in (source, target)]
        volume = volume_read.result()
        claim = claim_of(volume) if volume else None
        if claim is None or claim.uid is None:
            return _unbound(record, volume)
        if hint and (hint.namespace, hint.name) != (claim.namespace, claim.name):
            # The volume was bound anew and the operator has not corrected the hint yet: three reads more, once.
            async with asyncio.TaskGroup() as reads:
                uid_read = reads.create_task(self._claim_uid(claim))
                pods_reads = [reads.create_task(self._pods(node, claim.namespace)) for node in (source, target)]
        if uid_read and (no := _wrong_claim(claim, uid_read.result())):
            return no
        pods = [pod for read in pods_reads for pod in map(pod_view, read.result()) if pod.namespace == claim.namespace]
        found = candidates(pods, claim.name, source, target)
        try:
            return await self._second_round(found, None if uid_read else claim, source, target)
        except ExceptionGroup as group:
            return _unavailable(group, found)

    async def _second_round(
        self, found: Candidates | NotExplained, unread: ObjectReference | None, source: str, target: str
    ) -> Evidence:
        async with asyncio.TaskGroup() as reads:
            uid_read = reads.create_task(self._claim_uid(unread)) if unread else None
            if isinstance(found, Candidates):
                vmi_read = reads.create_task(self._vmi(found))
                migrations_read = reads.create_task(self._migrations(found))
            else:
                served_read = reads.create_task(self._kinds_are_served())
        if unread and uid_read and (no := _wrong_claim(unread, uid_read.result())):
            return no
        if isinstance(found, NotExplained):
            return found if served_read.result() else no_kubevirt(source, target)
        vmi, migrations = vmi_read.result(), migrations_read.result()
        return no_kubevirt(source, target) if migrations is None else explain(found, vmi, migrations)

    async def _volume(self, record: Record) -> Object | None:
        name = record.spec.persistent_volume_name or record.metadata.name
        with _reading("get", "persistentvolumes"):
            try:
                volume = await self.api.get(f"/api/v1/persistentvolumes/{name}")
            except ObjectNotFound:
                volume = {}
        if volumes_of(record.handle, [volume], self.driver):
            return volume
        # Not under the name that the record knows: rare, one read more.
        with _reading("list", "persistentvolumes"):
            volumes, _ = await self.api.list("/api/v1/persistentvolumes")
        return min(volumes_of(record.handle, volumes, self.driver), key=is_released, default=None)

    async def _claim_uid(self, claim: ObjectReference) -> str | None:
        with _reading("get", "persistentvolumeclaims", f" in namespace {claim.namespace}"):
            try:
                path = f"/api/v1/namespaces/{claim.namespace}/persistentvolumeclaims/{claim.name}"
                uid: str = (await self.api.get_metadata(path))["uid"]
            except ObjectNotFound:
                return None
        return uid

    async def _pods(self, node: str, namespace: str) -> list[dict[str, Any]]:
        """Return the pods of a node in a namespace, or in all where none is named."""
        place = f"/namespaces/{namespace}" if namespace else ""
        with _reading("list", "pods", f" in namespace {namespace}" if namespace else " in all namespaces"):
            pods, _ = await self.api.list(f"/api/v1{place}/pods", {"fieldSelector": f"spec.nodeName={node}"})
        return pods

    async def _vmi(self, found: Candidates) -> Vmi | None:
        # The name is what a pod's owner reference says, which may be anything.
        if not is_dns_name(found.vmi.name):
            return None
        with _reading("get", f"{VMIS}.{GROUP}", f" in namespace {found.namespace}"):
            try:
                return vmi_view(await self.api.get(f"{GROUP_VERSION}/namespaces/{found.namespace}/{VMIS}/{found.vmi.name}"))
            except ObjectNotFound:
                return None

    async def _migrations(self, found: Candidates) -> list[Migration] | None:
        """Return the migrations of the VM, perhaps others too; None where there is no such kind."""
        name = found.vmi.name
        # What is no label's value cannot be asked for; ``explain`` compares the names itself.
        asked = {"labelSelector": f"{VMI_NAME_LABEL}={name}"} if is_dns_name(name) and len(name) <= MAX_LABEL_VALUE else None
        with _reading("list", f"{MIGRATIONS}.{GROUP}", f" in namespace {found.namespace}"):
            try:
                items, _ = await self.api.list(f"{GROUP_VERSION}/namespaces/{found.namespace}/{MIGRATIONS}", asked)
            except ObjectNotFound:
                return None
        return [migration_view(item) for item in items]

    async def _kinds_are_served(self) -> bool:
        with _reading("get", GROUP_VERSION):
            try:
                served = {resource["name"] for resource in (await self.api.get(GROUP_VERSION))["resources"]}
            except ObjectNotFound:
                return False
        return {VMIS, MIGRATIONS} <= served


def _unbound(record: Record, volume: Object | None) -> NotExplained:
    if volume is None:
        return NotExplained(Rule.NO_CLAIM, f"no PersistentVolume names volume {record.handle}, so no pod uses it by a claim")
    return NotExplained(
        Rule.NO_CLAIM, f"PersistentVolume {volume['metadata']['name']} is bound to no claim, so no pod can be using the volume"
    )


def _wrong_claim(claim: ObjectReference, uid: str | None) -> NotExplained | None:
    if uid == claim.uid:
        return None
    name = f"claim {claim.namespace}/{claim.name}"
    if uid is None:
        return NotExplained(Rule.NO_CLAIM, f"the volume's {name} does not exist any more, so no pod can be using the volume")
    return NotExplained(Rule.NO_CLAIM, f"{name} is another one than the claim of that name that the volume was bound to")


def _unavailable(group: ExceptionGroup[Exception], found: Candidates | NotExplained | None = None) -> EvidenceUnavailable:
    """Return the first trouble of a round as evidence; anything else in the group is a defect and is raised again."""
    troubles = [error for error in group.exceptions if isinstance(error, _Unreadable)]
    if len(troubles) < len(group.exceptions):
        raise group
    first = troubles[0]
    return EvidenceUnavailable(
        str(first), forbidden=first.forbidden, vmi=found.vmi if found else None, namespace=found.namespace if found else ""
    )
