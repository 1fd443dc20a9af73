"""Pods, VirtualMachineInstances and migrations as KubeVirt writes them, as raw objects, to start a test from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rds_records.kubevirt_evidence import LiveMigration
from rds_records.kubevirt_objects import Pod, migration_view, pod_view, vmi_view

NAMESPACE = "vms"
VM = "database"
CLAIM = "database-root"
RUN = "run-1"
"""The uid of the migration that these tests are about."""


def labels_of(vmi: str, vmi_uid: str, **more: str) -> dict[str, str]:
    return {
        "kubevirt.io": "virt-launcher",
        "kubevirt.io/created-by": vmi_uid,
        "vm.kubevirt.io/name": vmi,
        "vmi.kubevirt.io/id": vmi,
        **more,
    }


def pod(
    name: str, node: str, *, phase: str = "Running", claims: tuple[str, ...] = (CLAIM,), deleting: bool = False
) -> dict[str, Any]:
    """Return a pod that nobody owns."""
    metadata: dict[str, Any] = {"namespace": NAMESPACE, "name": name, "uid": f"{name}-uid", "labels": {}}
    if deleting:
        metadata["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    volumes = [{"name": f"disk{number}", "persistentVolumeClaim": {"claimName": claim}} for number, claim in enumerate(claims)]
    return {
        "metadata": metadata,
        "spec": {"nodeName": node, "volumes": [{"name": "private", "emptyDir": {}}, *volumes]},
        "status": {"phase": phase},
    }


def owned(body: dict[str, Any], kind: str, name: str, uid: str) -> dict[str, Any]:
    version = "kubevirt.io/v1" if kind == "VirtualMachineInstance" else "v1"
    body["metadata"]["ownerReferences"] = [{"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True}]
    return body


def launcher(
    suffix: str,
    node: str,
    *,
    job: str = "",
    vmi: str = VM,
    vmi_uid: str = "",
    phase: str = "Running",
    claims: tuple[str, ...] = (CLAIM,),
    deleting: bool = False,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return a launcher pod; ``job`` is the uid of the migration that made it as its target."""
    uid = vmi_uid or f"{vmi}-uid"
    body = owned(
        pod(f"virt-launcher-{vmi}-{suffix}", node, phase=phase, claims=claims, deleting=deleting),
        "VirtualMachineInstance",
        vmi,
        uid,
    )
    more = {"kubevirt.io/migrationJobUID": job} if job else {}
    body["metadata"]["labels"] = labels_of(vmi, uid, **more, **labels)
    return body


def hotplug(of: dict[str, Any], *, job: str = "", claim: str = CLAIM) -> dict[str, Any]:
    """Return the pod that holds a hotplugged disk for a launcher pod."""
    name = of["metadata"]["name"]
    body = owned(pod(f"hp-volume-{name[-5:]}", of["spec"]["nodeName"], claims=(claim,)), "Pod", name, of["metadata"]["uid"])
    body["metadata"]["labels"] = {"kubevirt.io": "hotplug-disk"} | ({"kubevirt.io/migrationJobUID": job} if job else {})
    return body


def pods(*bodies: dict[str, Any]) -> list[Pod]:
    return [pod_view(body) for body in bodies]


def vmi(name: str = VM, *, uid: str = "", node: str = "node-a", memory: str = "2Gi", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": NAMESPACE, "name": name, "uid": uid or f"{name}-uid"},
        "spec": {"domain": {"memory": {"guest": memory}, "resources": {"requests": {"memory": "1Gi"}}}},
        "status": {"nodeName": node, "phase": "Running", **status},
    }


def state(uid: str = RUN, **fields: Any) -> dict[str, Any]:
    """Return a ``migrationState`` as it is at hand-off."""
    return {
        "migrationUid": uid,
        "sourceNode": "node-a",
        "targetNode": "node-b",
        "mode": "PreCopy",
        "migrationConfiguration": {"completionTimeoutPerGiB": 150, "allowWorkloadDisruption": False},
        **fields,
    }


def migration(uid: str = RUN, *, vmi: str = VM, phase: str = "Running", deleting: bool = False, **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": NAMESPACE, "name": f"migration-{uid}", "uid": uid, "labels": {"kubevirt.io/vmi-name": vmi}}
    if deleting:
        metadata["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    return {"metadata": metadata, "spec": {"vmiName": vmi, **spec}, "status": {"phase": phase}}


def live_migration(source: str, target: str, uid: str = RUN, **fields: Any) -> LiveMigration:
    """Return the evidence that the VM of these tests migrates from one node to another."""
    return LiveMigration(
        vmi=vmi_view(vmi(node=source, **fields)),
        migration=migration_view(migration(uid, phase="Scheduling")),
        source_pod=pod_view(launcher("aaaaa", source)),
        target_pod=pod_view(launcher(f"{uid}", target, job=uid, phase="Pending")),
        source_node=source,
        target_node=target,
    )
