"""Kubernetes' objects as the plugin reads them, to start a test from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rds_kubectl.world import World
from rds_records.names import DRIVER_NAME, volume_attachment_name
from rds_records.record import Condition, Metadata, ObjectReference, Record, Result, format_time
from tests.unit.records.volumes import HANDLE, START, at, attached, fresh, window

Object = dict[str, Any]
NOW = at(3600)
CLAIM = ObjectReference(namespace="vms", name="root", uid="claim-uid")
VMI = ObjectReference(namespace="vms", name="web", uid="vmi-uid")


def node(name: str, *, ready: bool = True, taints: Sequence[str] = (), **status: Any) -> Object:
    condition = {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "KubeletReady" if ready else "Silent"}
    return {
        "metadata": {"name": name},
        "spec": {"taints": [{"key": key, "effect": "NoExecute"} for key in taints]},
        "status": {"conditions": [condition], **status},
    }


def volume(handle: str = HANDLE, *, name: str = "", driver: str = DRIVER_NAME, claim: ObjectReference | None = CLAIM) -> Object:
    reference = {"claimRef": {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid}} if claim else {}
    return {
        "metadata": {"name": name or handle},
        "spec": {"csi": {"driver": driver, "volumeHandle": handle}, "capacity": {"storage": "1Gi"}, **reference},
        "status": {"phase": "Bound"},
    }


def attachment(on: str, handle: str = HANDLE, *, deleted: float | None = None, **status: Any) -> Object:
    metadata: Object = {"name": volume_attachment_name(handle, on), "uid": f"uid-{on}", "resourceVersion": "7"}
    if deleted is not None:
        metadata["deletionTimestamp"] = format_time(NOW - timedelta(seconds=deleted))
    spec = {"attacher": DRIVER_NAME, "nodeName": on, "source": {"persistentVolumeName": handle}}
    return {"metadata": metadata, "spec": spec, "status": {"attached": True, **status}}


def lease(*, renewed: float = 2.0, holder: str = "operator-1") -> Object:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": format_time(NOW - timedelta(seconds=renewed))}
    return {"metadata": {"name": "rds-operator"}, "spec": spec}


def world(*records: Record, **changes: Any) -> World:
    """Return a cluster in which everything could be read and an operator is active."""
    usual: dict[str, Any] = {
        "now": NOW,
        "records": records,
        "volumes": tuple(volume(record.handle) for record in records),
        "attachments": tuple(attachment(held.node_name, one.handle) for one in records for held in one.status.attachments),
        "nodes": {name: node(name) for name in ("node-a", "node-b", "node-c")},
        "lease": lease(),
    }
    return World(**{**usual, **changes})


def migrating(**changes: Any) -> Record:
    """Return a record whose VM migrates from node-a to node-b, as KubeVirt explains it."""
    record = attached(fresh(), "node-a", "node-b")
    of_kubevirt = {
        "vmi": VMI,
        "migration_name": "moves",
        "migration_uid": "run-1",
        "source_pod": "on-node-a",
        "target_pod": "on-node-b",
        "live_node": "node-a",
        "timeout_seconds": None,
        "deadline_time": None,
    }
    opened = window(record).replace(**{**of_kubevirt, **changes})
    return record.with_status(migration=opened, claim_ref=CLAIM, vmi=VMI, outbox=())


def with_condition(record: Record, kind: str, status: str = "True", reason: str = "Because", message: str = "so it is") -> Record:
    condition = Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=START)
    others = tuple(one for one in record.status.conditions if one.type != kind)
    return record.with_status(conditions=(*others, condition))


def named(record: Record, handle: str) -> Record:
    """Return the record as that of another volume."""
    return record.replace(
        metadata=Metadata(name=handle), spec=record.spec.replace(volume_handle=handle, persistent_volume_name=handle)
    )


def ended(result: Result = Result.SUCCEEDED, **changes: Any) -> Record:
    """Return a record whose migration is over, and whose two nodes hold the volume still."""
    live = "node-b" if result is Result.SUCCEEDED else "node-a"
    return migrating(**{"result": result, "result_time": at(60), "live_node": live, **changes})
