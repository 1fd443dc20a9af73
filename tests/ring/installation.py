"""Install what ``manifests/`` ships into a ring, each process under an account of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.ring.api import Object
from tests.ring.controlplane import ControlPlane
from tests.ring.waiting import eventually

ROOT = Path(__file__).parents[2]
BASE = ROOT / "manifests" / "base"
NAMESPACE = "rds-csi"
CONTROLLER = "rds-csi-controller"
OPERATOR = "rds-operator"
NODE = "rds-csi-node"
POD = "rds-csi-controller-ring"
SIDECAR_ROLES = {
    "rds-csi-provisioner": ["csi-provisioner"],
    "rds-csi-provisioner-capacity": ["csi-provisioner"],
    "rds-csi-attacher": ["csi-attacher"],
    "rds-csi-resizer": ["csi-resizer"],
    "rds-csi-snapshotter": ["csi-snapshotter"],
    "rds-csi-sidecar-leases": ["csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter"],
}


def resources(folder: Path = BASE) -> Iterator[Object]:
    """Yield every object of a kustomization that only lists resources."""
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = folder / name
        if path.is_dir():
            yield from resources(path)
        else:
            yield from (document for document in yaml.safe_load_all(path.read_text()) if document)


def install(plane: ControlPlane) -> None:
    """Apply the base manifests and wait until records are served.

    Deployed, the sidecars share the account of the shim's pod. Here every role of a sidecar is bound to an account of that sidecar
    instead, so that no process lives on the rules of another.
    """
    for body in resources():
        plane.api.apply(_apart(body))
    for account in sorted({name for names in SIDECAR_ROLES.values() for name in names}):
        plane.make_service_account(NAMESPACE, account)
    _deploy(plane)
    eventually("records are served", lambda: _established(plane))


def _deploy(plane: ControlPlane) -> None:
    """Make what the Deployment's controller would make: csi-provisioner looks for its Deployment from its pod."""
    deployment = plane.api.get("Deployment", CONTROLLER, NAMESPACE)
    labels, spec = deployment["spec"]["template"]["metadata"]["labels"], deployment["spec"]["template"]["spec"]
    template = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}
    above = deployment
    for version, kind, made in (("apps/v1", "ReplicaSet", template), ("v1", "Pod", spec)):
        owner = {"apiVersion": above["apiVersion"], "kind": above["kind"], "name": above["metadata"]["name"]}
        metadata = {
            "name": POD,
            "namespace": NAMESPACE,
            "labels": labels,
            "ownerReferences": [{**owner, "uid": above["metadata"]["uid"], "controller": True}],
        }
        above = plane.api.apply({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": made})


def say_ready(plane: ControlPlane, kind: str, name: str, *, missing: int = 0) -> None:
    """Let a workload's status say that all its pods but so many are ready, of its newest template; nothing makes pods here."""
    body = plane.api.get(kind, name, NAMESPACE)
    wanted = body["spec"].get("replicas", 3)
    ready = wanted - missing
    status = {"observedGeneration": body["metadata"]["generation"]}
    if kind == "DaemonSet":
        status |= {"desiredNumberScheduled": wanted, "currentNumberScheduled": wanted, "updatedNumberScheduled": wanted}
        status |= {"numberMisscheduled": 0, "numberReady": ready}
    else:
        status |= {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": ready, "availableReplicas": ready}
    plane.api.patch(kind, name, {"status": status}, NAMESPACE, subresource="status")


def _apart(body: Object) -> Object:
    role = body.get("roleRef", {}).get("name")
    if role not in SIDECAR_ROLES:
        return body
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE} for name in SIDECAR_ROLES[role]]
    return {**body, "subjects": subjects}


def _established(plane: ControlPlane) -> bool:
    definition = plane.api.find("CustomResourceDefinition", "volumeattachmentrecords.rds.csi.srvlab.io") or {}
    conditions = definition.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)
