"""What this project reads of KubeVirt's objects and of the pods that run them; typed views of raw objects. Pure.

Names, labels and their traps were measured with KubeVirt's virt-controller (v1.9); what a label says is used only where nothing
better exists, because anybody who makes a pod writes its labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

GROUP_VERSION: Final = "/apis/kubevirt.io/v1"
VMI_KIND: Final = "VirtualMachineInstance"

GROUP: Final = "kubevirt.io"
LAUNCHER_LABEL: Final = ("kubevirt.io", "virt-launcher")
CREATED_BY_LABEL: Final = "kubevirt.io/created-by"
"""On launcher pods: the uid of their VirtualMachineInstance."""

MIGRATION_JOB_LABEL: Final = "kubevirt.io/migrationJobUID"
"""On the target's pods: the uid of the migration. It stays, so the source of the next run carries an old one."""

VMI_NAME_LABEL: Final = "kubevirt.io/vmi-name"
"""On migrations: the VirtualMachineInstance that they move."""

FINAL_PHASES: Final = frozenset({"Succeeded", "Failed"})
"""Of pods and of migrations alike; a phase that is not known here counts as live."""

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of an object (``metadata.ownerReferences`` with ``controller: true``)."""

    kind: str
    name: str
    uid: str
    group: str = GROUP
    """The API group, without the version; empty for the core group."""

    @property
    def is_vmi(self) -> bool:
        """Whether it is a VirtualMachineInstance of KubeVirt's."""
        return (self.kind, self.group) == (VMI_KIND, GROUP)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that may hold a claim."""

    namespace: str
    name: str
    uid: str
    node: str
    phase: str
    deleting: bool
    labels: Mapping[str, str]
    owner: Owner | None
    claims: frozenset[str]

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more; KubeVirt keeps such pods around."""
        return self.phase in FINAL_PHASES

    @property
    def vmi(self) -> Owner | None:
        """The VirtualMachineInstance that this pod runs: its controller, where label and uid agree; None for any other pod."""
        owner, (key, value) = self.owner, LAUNCHER_LABEL
        if owner is None or not owner.is_vmi or not owner.uid:
            return None
        agrees = self.labels.get(key) == value and self.labels.get(CREATED_BY_LABEL) == owner.uid
        return owner if agrees else None

    @property
    def job(self) -> str:
        """The uid of the migration that made this pod as a target, once; empty for a pod that never was one."""
        return self.labels.get(MIGRATION_JOB_LABEL, "")


@dataclass(frozen=True, slots=True)
class MigrationState:
    """``status.migrationState`` of a VirtualMachineInstance: the newest run that was handed off, not always the current one."""

    migration_uid: str
    source_node: str
    target_node: str
    start: datetime | None
    end: datetime | None
    completed: bool
    failed: bool
    abort_requested: bool
    abort_succeeded: bool
    failure_reason: str
    mode: str
    completion_timeout_per_gib: int | None
    allow_workload_disruption: bool


@dataclass(frozen=True, slots=True)
class Vmi:
    """A VirtualMachineInstance."""

    namespace: str
    name: str
    uid: str
    node: str
    """Where it runs; moves to the target before the run is called completed."""

    guest_memory_bytes: int
    migrated_volume_bytes: int
    migration: MigrationState | None
    claims: frozenset[str] = frozenset()
    """The claims behind its disks, hotplugged ones included."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A VirtualMachineInstanceMigration."""

    namespace: str
    name: str
    uid: str
    vmi_name: str
    phase: str
    deleting: bool
    decentralized: bool
    state: MigrationState | None = None
    """Its copy of the run's state, written after it is over; before that it names the source's pod at most."""

    @property
    def live(self) -> bool:
        """Whether it is under way: neither over nor being deleted; unknown phases count as under way."""
        return self.phase not in FINAL_PHASES and not self.deleting


def pod_view(raw: Object) -> Pod:
    """Return the view of a pod."""
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        node=spec.get("nodeName") or "",
        phase=(raw.get("status") or {}).get("phase") or "",
        deleting="deletionTimestamp" in metadata,
        labels=metadata.get("labels") or {},
        owner=_controller(metadata.get("ownerReferences") or ()),
        claims=frozenset(_claims(metadata["name"], spec.get("volumes") or ())),
    )


def _claims(pod: str, volumes: Iterable[Object]) -> Iterable[str]:
    for volume in volumes:
        if volume.get("persistentVolumeClaim"):
            yield volume["persistentVolumeClaim"]["claimName"]
        elif volume.get("ephemeral") is not None:
            yield f"{pod}-{volume['name']}"


def _controller(references: Iterable[Object]) -> Owner | None:
    for reference in references:
        if reference.get("controller"):
            group, slash, _ = reference.get("apiVersion", "").partition("/")
            return Owner(reference.get("kind", ""), reference.get("name", ""), reference.get("uid", ""), group if slash else "")
    return None


def vmi_view(raw: Object) -> Vmi:
    """Return the view of a VirtualMachineInstance."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    state = status.get("migrationState")
    return Vmi(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        node=status.get("nodeName") or "",
        guest_memory_bytes=_guest_memory(raw),
        migrated_volume_bytes=sum(_migrated_bytes(volume) for volume in status.get("migratedVolumes") or ()),
        migration=migration_state_view(state) if state else None,
        claims=frozenset(_disk_claims((raw.get("spec") or {}).get("volumes") or ())),
    )


def _disk_claims(volumes: Iterable[Object]) -> Iterable[str]:
    for volume in volumes:
        if volume.get("persistentVolumeClaim"):
            yield volume["persistentVolumeClaim"]["claimName"]
        elif volume.get("dataVolume"):
            # The claim of a DataVolume has its name.
            yield volume["dataVolume"]["name"]


def _guest_memory(raw: Object) -> int:
    """Guest memory in bytes: ``spec.domain.memory.guest``, else what is requested of the node."""
    domain = (raw.get("spec") or {}).get("domain") or {}
    guest = (domain.get("memory") or {}).get("guest")
    requested = ((domain.get("resources") or {}).get("requests") or {}).get("memory")
    return _bytes(guest or requested)


def _migrated_bytes(volume: Object) -> int:
    source = volume.get("sourcePVCInfo") or {}
    return _bytes((source.get("capacity") or {}).get("storage"))


def _bytes(quantity: object) -> int:
    if not quantity:
        return 0
    try:
        size: int = math.ceil(parse_quantity(quantity))
    except (ValueError, ArithmeticError):
        return 0
    return size


def migration_state_view(raw: Object) -> MigrationState:
    """Return the view of a ``migrationState``."""
    configuration = raw.get("migrationConfiguration") or {}
    per_gib = configuration.get("completionTimeoutPerGiB")
    return MigrationState(
        migration_uid=raw.get("migrationUid") or "",
        source_node=raw.get("sourceNode") or "",
        target_node=raw.get("targetNode") or "",
        start=_time(raw.get("startTimestamp")),
        end=_time(raw.get("endTimestamp")),
        completed=bool(raw.get("completed")),
        failed=bool(raw.get("failed")),
        abort_requested=bool(raw.get("abortRequested")),
        abort_succeeded=raw.get("abortStatus") == "Succeeded",
        failure_reason=raw.get("failureReason") or "",
        mode=raw.get("mode") or "",
        completion_timeout_per_gib=int(per_gib) if isinstance(per_gib, int) else None,
        allow_workload_disruption=bool(configuration.get("allowWorkloadDisruption")),
    )


def migration_view(raw: Object) -> Migration:
    """Return the view of a VirtualMachineInstanceMigration."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    state = status.get("migrationState")
    return Migration(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        vmi_name=spec.get("vmiName") or "",
        phase=status.get("phase") or "",
        deleting="deletionTimestamp" in metadata,
        decentralized=bool(spec.get("sendTo") or spec.get("receive")),
        state=migration_state_view(state) if state else None,
    )


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
