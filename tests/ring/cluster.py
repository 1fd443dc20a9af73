"""One test's view of a shared control plane: nodes, claims, launcher pods, attachments, records, in sentences.

Every name that a test gets is its own, so that tests share one control plane. Waiting methods raise an ``AssertionError`` that
names what did not come true and what was seen last.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rds_csi.topology import TOPOLOGY
from rds_records.names import record_name
from tests.ring.api import Api, ApiError, Object, path_of
from tests.ring.kubelet import Kubelet
from tests.ring.waiting import eventually

DRIVER = "rds.csi.srvlab.io"
RECORD = "VolumeAttachmentRecord"
CLAIM = "PersistentVolumeClaim"
NQN_PREFIX = "nqn.2000-02.com.mikrotik:"
GIB = 1024**3


@dataclass(frozen=True)
class StaticVolume:
    """A volume that was not provisioned here: its handle, PersistentVolume and claim."""

    handle: str
    pv: str
    claim: str


class Cluster:
    """One namespace and the cluster-scoped objects of one test."""

    def __init__(self, api: Api, kubelet: Kubelet | None = None) -> None:
        """``kubelet`` plays the nodes that this test makes; there is none where nodes are real."""
        self.api = api
        self._kubelet = kubelet
        self.tag = secrets.token_hex(4)
        self.namespace = f"test-{self.tag}"
        self._made: list[tuple[str, str, str | None]] = []
        self._make("Namespace", {"metadata": {"name": self.namespace}})

    @property
    def kubelet(self) -> Kubelet:
        """The played kubelets."""
        assert self._kubelet is not None, "the nodes are real"
        return self._kubelet

    def name(self, stem: str) -> str:
        """Return a name that no other test uses."""
        return f"{stem}-{self.tag}"

    # Nodes

    def make_node(self, stem: str = "node", *, name: str = "", managed: bool = True) -> str:
        """Make a Ready node on which the driver is registered, as by its kubelet, under the node's own name; return that name.

        Without ``managed`` the attach/detach controller makes and deletes no VolumeAttachments for its pods.
        """
        name = name or (self.name(f"{stem}-{secrets.token_hex(2)}") if stem == "node" else self.name(stem))
        labels = {"kubernetes.io/hostname": name, "kubevirt.io/schedulable": "true", **TOPOLOGY}
        annotations = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"} if managed else {}
        self._make(
            "Node",
            {
                "metadata": {"name": name, "labels": labels, "annotations": annotations},
                "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
            },
        )
        driver = {"name": DRIVER, "nodeID": name, "topologyKeys": list(TOPOLOGY)}
        self._make("CSINode", {"metadata": {"name": name}, "spec": {"drivers": [driver]}})
        return name

    def nodes(self) -> list[str]:
        """Return the nodes that this test made."""
        return [name for kind, name, _ in self._made if kind == "Node"]

    def delete_node(self, node: str) -> None:
        """Remove a node and its kubelet; its pods stay until somebody else removes them."""
        self.kubelet.silent.add(node)
        self.api.delete("CSINode", node)
        self.api.delete("Node", node)

    def hold_detach(self, node: str, handle: str) -> None:
        """Say, as a kubelet would, that a volume is in use on a node: the attach/detach controller does not detach it then."""
        self._change_in_use(node, lambda names: [*(name for name in names if name != unique_name(handle)), unique_name(handle)])

    def release_detach(self, node: str, handle: str) -> None:
        """Say that the volume is no longer in use on the node."""
        self._change_in_use(node, lambda names: [name for name in names if name != unique_name(handle)])

    def _change_in_use(self, node: str, change: Callable[[list[str]], list[str]]) -> None:
        def attempt() -> bool:
            body = self.api.get("Node", node)
            body["status"]["volumesInUse"] = change(body["status"].get("volumesInUse", []))
            try:
                self.api.replace(body, "status")
            except ApiError as error:
                # The controller writes volumesAttached into the same status.
                if error.status != 409:
                    raise
                return False
            return True

        eventually(f"volumesInUse of {node} is written", attempt)

    # Volumes

    def make_storage_class(self, parameters: Mapping[str, str] | None = None, *, stem: str = "class", **fields: object) -> str:
        """Make a StorageClass of the driver with immediate binding; return its name."""
        name = self.name(stem)
        fields = {"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate", "allowVolumeExpansion": True, **fields}
        self._make(
            "StorageClass", {"metadata": {"name": name}, "provisioner": DRIVER, "parameters": dict(parameters or {}), **fields}
        )
        return name

    def make_claim(
        self,
        storage_class: str,
        *,
        stem: str = "claim",
        name: str = "",
        access_mode: str = "ReadWriteMany",
        volume_mode: str = "Block",
        size: str = "1Gi",
        source: tuple[str, str] | None = None,
        attributes_class: str = "",
    ) -> str:
        """Make a claim that is to be provisioned, its name made from ``stem`` where none is given; return the name.

        ``source`` is the kind and name of what it is made from: a VolumeSnapshot or a PersistentVolumeClaim.
        """
        name = name or f"{stem}-{secrets.token_hex(3)}"
        further: Object = {"volumeAttributesClassName": attributes_class} if attributes_class else {}
        if source is not None:
            kind, of = source
            further["dataSource"] = {"kind": kind, "name": of, "apiGroup": path_of(kind).split("/")[2] if kind != CLAIM else ""}
        self._make_claim(name, storage_class, access_mode, volume_mode, size, "", further)
        return name

    def _make_claim(
        self,
        name: str,
        storage_class: str,
        access_mode: str,
        volume_mode: str,
        size: str,
        volume_name: str,
        further: Mapping[str, object] | None = None,
    ) -> None:
        self._make(
            "PersistentVolumeClaim",
            {
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {
                    "storageClassName": storage_class,
                    "accessModes": [access_mode],
                    "volumeMode": volume_mode,
                    "volumeName": volume_name,
                    "resources": {"requests": {"storage": size}},
                    **(further or {}),
                },
            },
        )

    def claim(self, name: str) -> Object:
        return self.api.get("PersistentVolumeClaim", name, self.namespace)

    def wait_bound(self, claim: str, *, timeout: float = 60.0) -> str:
        """Wait until a claim is bound; return the name of its PersistentVolume (also its handle where it was provisioned)."""

        def bound() -> str | None:
            body = self.claim(claim)
            assert body["status"].get("phase") == "Bound", f"{body.get('status')}, events: {self.event_texts(claim)}"
            return str(body["spec"]["volumeName"])

        return eventually(f"claim {claim} is bound", bound, timeout=timeout)

    def handle_of(self, claim: str) -> str:
        """Return the volume handle behind a bound claim."""
        volume = self.api.get("PersistentVolume", self.claim(claim)["spec"]["volumeName"])
        return str(volume["spec"]["csi"]["volumeHandle"])

    def expand(self, claim: str, size: str) -> None:
        """Ask for a larger claim."""
        self.api.patch(CLAIM, claim, {"spec": {"resources": {"requests": {"storage": size}}}}, self.namespace)

    def wait_capacity(self, pv: str, size: str, *, timeout: float = 60.0) -> None:
        """Wait until a PersistentVolume has a capacity, which csi-resizer writes once the driver has expanded the volume."""

        def expanded() -> bool:
            capacity = self.api.get("PersistentVolume", pv)["spec"]["capacity"]["storage"]
            assert capacity == size, capacity
            return True

        eventually(f"{pv} has {size}", expanded, timeout=timeout)

    def make_attributes_class(self, parameters: Mapping[str, str]) -> str:
        """Make a VolumeAttributesClass of the driver; return its name."""
        name = self.name(f"attributes-{secrets.token_hex(2)}")
        self._make("VolumeAttributesClass", {"metadata": {"name": name}, "driverName": DRIVER, "parameters": dict(parameters)})
        return name

    def change_attributes_class(self, claim: str, name: str) -> None:
        """Ask for another VolumeAttributesClass of a claim."""
        self.api.patch(CLAIM, claim, {"spec": {"volumeAttributesClassName": name}}, self.namespace)

    def wait_attributes_class(self, pv: str, name: str, *, timeout: float = 60.0) -> None:
        """Wait until a PersistentVolume has a class, which csi-resizer writes once the driver has modified the volume."""

        def modified() -> bool:
            now = self.api.get("PersistentVolume", pv)["spec"].get("volumeAttributesClassName")
            assert now == name, now
            return True

        eventually(f"{pv} has class {name}", modified, timeout=timeout)

    def delete_claim(self, claim: str) -> None:
        self.api.delete("PersistentVolumeClaim", claim, self.namespace)

    def wait_volume_gone(self, pv: str, *, timeout: float = 60.0) -> None:
        """Wait until a PersistentVolume is gone, so its volume is deleted."""
        eventually(f"PersistentVolume {pv} is gone", lambda: self.api.find("PersistentVolume", pv) is None, timeout=timeout)

    def make_static_volume(
        self,
        *,
        handle: str | None = None,
        pv: str | None = None,
        access_mode: str = "ReadWriteMany",
        volume_mode: str = "Block",
        attributes: Mapping[str, str] | None = None,
        size: str = "1Gi",
        claim: str = "",
        bound: bool = True,
    ) -> StaticVolume:
        """Make a PersistentVolume by hand, as the Go driver left them, and a claim bound to it (``bound``: wait for that).

        Where it is not named (``pv``), it is named like the volume.
        """
        handle = handle or f"pvc-{uuid.uuid4()}"
        pv, claim = pv or handle, claim or f"static-{secrets.token_hex(3)}"
        context = {"rdsAddress": "127.0.0.1", "nvmeAddress": "127.0.0.1", "nvmePort": "4420", "nqn": NQN_PREFIX + handle}
        self._make(
            "PersistentVolume",
            {
                "metadata": {"name": pv, "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER}},
                "spec": {
                    "capacity": {"storage": size},
                    "accessModes": [access_mode],
                    "volumeMode": volume_mode,
                    "persistentVolumeReclaimPolicy": "Retain",
                    "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": self.namespace, "name": claim},
                    "csi": {"driver": DRIVER, "volumeHandle": handle, "volumeAttributes": {**context, **(attributes or {})}},
                },
            },
        )
        self._make_claim(claim, "", access_mode, volume_mode, size, pv)
        if bound:
            self.wait_bound(claim)
        return StaticVolume(handle, pv, claim)

    # Pods

    def launcher_pod(self, claim: str, node: str, *, labels: Mapping[str, str] | None = None, stem: str = "virt-launcher") -> str:
        """Put a pod that uses a Block claim on a node, as KubeVirt puts the launcher of a VM; return its name."""
        name = f"{stem}-{secrets.token_hex(3)}"
        container = {
            "name": "compute",
            "image": "virt-launcher",
            "volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}],
        }
        self._make(
            "Pod",
            {
                "metadata": {
                    "name": name,
                    "namespace": self.namespace,
                    "labels": {"kubevirt.io": "virt-launcher", **(labels or {})},
                },
                "spec": {
                    "nodeName": node,
                    "containers": [container],
                    "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": claim}}],
                },
            },
        )
        return name

    def wait_running(self, pod: str) -> None:
        def running() -> bool:
            return bool(self.api.get("Pod", pod, self.namespace)["status"].get("phase") == "Running")

        eventually(f"pod {pod} runs", running)

    def delete_pod(self, pod: str, *, wait: bool = True) -> None:
        """Ask a pod to go; ``wait`` until its kubelet has let it go."""
        self.api.delete("Pod", pod, self.namespace)
        if wait:
            eventually(f"pod {pod} is gone", lambda: self.api.find("Pod", pod, self.namespace) is None)

    # Attachments

    def attachment(self, handle: str, node: str) -> Object | None:
        """Return the VolumeAttachment of a volume on a node, if there is one."""
        return self.api.find("VolumeAttachment", attachment_name(handle, node))

    def make_attachment(self, pv: str, handle: str, node: str) -> str:
        """Make a VolumeAttachment by hand, under the name that the attach/detach controller would give it."""
        name = attachment_name(handle, node)
        self._make(
            "VolumeAttachment",
            {"metadata": {"name": name}, "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": pv}}},
        )
        return name

    def delete_attachment(self, handle: str, node: str) -> None:
        self.api.delete("VolumeAttachment", attachment_name(handle, node))

    def wait_attachment(self, handle: str, node: str, *, timeout: float = 30.0) -> Object:
        """Wait until the VolumeAttachment exists, attached or not."""
        return eventually(f"{handle} has a VolumeAttachment on {node}", lambda: self.attachment(handle, node), timeout=timeout)

    def wait_attached(self, handle: str, node: str, *, timeout: float = 30.0) -> Object:
        """Wait until csi-attacher says that the volume is attached to the node."""

        def attached() -> Object | None:
            body = self.attachment(handle, node)
            assert body is not None, "no VolumeAttachment"
            assert body.get("status", {}).get("attached"), body.get("status")
            return body

        return eventually(f"{handle} is attached to {node}", attached, timeout=timeout)

    def wait_detached(self, handle: str, node: str, *, timeout: float = 30.0) -> None:
        """Wait until the VolumeAttachment is gone."""
        eventually(f"{handle} is detached from {node}", lambda: self.attachment(handle, node) is None, timeout=timeout)

    def wait_attach_error(self, handle: str, node: str, text: str = "", *, timeout: float = 30.0) -> str:
        """Wait until csi-attacher was refused with a message that contains ``text``; return the message."""

        def refused() -> str | None:
            body = self.attachment(handle, node) or {}
            message = str(body.get("status", {}).get("attachError", {}).get("message", ""))
            assert text in message, message or body
            return message

        return eventually(f"attaching {handle} to {node} is refused with {text!r}", refused, timeout=timeout)

    # Records and events

    def record(self, handle: str) -> Object | None:
        """Return the record of a volume, if there is one."""
        return self.api.find(RECORD, record_name(handle))

    def wait_record(self, handle: str, what: str, predicate: Callable[[Object], object], *, timeout: float = 30.0) -> Object:
        """Wait until the record's ``status`` satisfies the predicate; ``what`` says that in words."""

        def satisfied() -> Object | None:
            body = self.record(handle)
            assert body is not None, "no record"
            status = body.get("status", {})
            assert predicate(status), status
            return body

        return eventually(f"record {handle}: {what}", satisfied, timeout=timeout)

    def wait_phase(self, handle: str, phase: str, *, timeout: float = 30.0) -> Object:
        """Wait until the record is in a phase: Detached, Attached, Migrating, Overdue."""
        return self.wait_record(handle, phase, lambda status: status.get("phase") == phase, timeout=timeout)

    def wait_nodes(self, handle: str, nodes: Sequence[str], *, timeout: float = 30.0) -> Object:
        """Wait until the record holds exactly these attachments."""

        def exactly(status: Object) -> bool:
            return sorted(entry["nodeName"] for entry in status.get("attachments", [])) == sorted(nodes)

        return self.wait_record(handle, f"attached to {', '.join(nodes) or 'nobody'}", exactly, timeout=timeout)

    def patch_record(self, handle: str, spec: Mapping[str, object]) -> Object:
        """Edit a record's spec as an admin would."""
        return self.api.patch(RECORD, record_name(handle), {"spec": dict(spec)})

    def events(
        self, name: str, *, reason: str | None = None, kind: str = "PersistentVolumeClaim", namespace: str | None = None
    ) -> list[Object]:
        """Return the Events about an object of this test's namespace (or of ``namespace``), oldest first."""
        selector = f"involvedObject.name={name},involvedObject.kind={kind}" + (f",reason={reason}" if reason else "")
        found = self.api.list("Event", namespace or self.namespace, fieldSelector=selector)
        return sorted(found, key=lambda event: (event["metadata"]["creationTimestamp"], int(event["metadata"]["resourceVersion"])))

    def event_texts(self, name: str) -> list[str]:
        """Return ``type reason: message`` of the Events about a claim."""
        return [f"{event['type']} {event['reason']}: {event['message']}" for event in self.events(name)]

    def wait_event(self, name: str, reason: str, *, timeout: float = 30.0) -> Object:
        """Wait for an Event with a reason about a claim; return the newest."""

        def seen() -> Object | None:
            found = self.events(name, reason=reason)
            assert found, self.event_texts(name)
            return found[-1]

        return eventually(f"event {reason} about {name}", seen, timeout=timeout)

    # The end

    def clean_up(self) -> None:
        """Remove everything that this test made or that was made for it, finalizers or not; another test must not meet it."""
        self.api.request("DELETE", path_of("Pod", None, self.namespace), {"gracePeriodSeconds": 0})
        nodes = set(self.nodes())
        ours = [volume for volume in self.api.list("PersistentVolume") if self._is_ours(volume)]
        handles = {volume["spec"].get("csi", {}).get("volumeHandle") for volume in ours}
        for claim in self.api.list("PersistentVolumeClaim", self.namespace):
            self._force_away(claim)
        for attachment in self.api.list("VolumeAttachment"):
            source = attachment["spec"]["source"].get("persistentVolumeName")
            if attachment["spec"]["nodeName"] in nodes or source in {volume["metadata"]["name"] for volume in ours}:
                self._force_away(attachment)
        for volume in ours:
            self._force_away(volume)
        for kind, name, namespace in reversed(self._made):
            if kind not in {"Pod", "PersistentVolumeClaim", "PersistentVolume", "VolumeAttachment"}:
                self.api.delete(kind, name, namespace)
        for handle in handles - {None}:
            self.forget(handle)
        if self._kubelet is not None:
            self._kubelet.silent -= nodes

    def forget(self, handle: str) -> None:
        """Remove the record of a volume, if there is one, finalizers or not."""
        if (record := self.record(handle)) is not None:
            self._force_away({**record, "kind": RECORD})

    def _is_ours(self, volume: Object) -> bool:
        return bool(volume["spec"].get("claimRef", {}).get("namespace") == self.namespace)

    def _force_away(self, body: Object) -> None:
        metadata = body["metadata"]
        kind = body["kind"]
        self.api.delete(kind, metadata["name"], metadata.get("namespace"))
        if metadata.get("finalizers"):
            try:
                self.api.patch(kind, metadata["name"], {"metadata": {"finalizers": None}}, metadata.get("namespace"))
            except ApiError as error:
                if error.status != 404:
                    raise

    def _make(self, kind: str, body: Object) -> Object:
        version = path_of(kind).split("/")[2:-1]
        made = self.api.create({"apiVersion": "/".join(version), "kind": kind, **body})
        self._made.append((kind, made["metadata"]["name"], made["metadata"].get("namespace")))
        return made


def unique_name(handle: str) -> str:
    """Return the name under which kubelets and the attach/detach controller know a volume of the driver."""
    return f"kubernetes.io/csi/{DRIVER}^{handle}"


def attachment_name(handle: str, node: str) -> str:
    """Return the name of a VolumeAttachment (Kubernetes, pkg/volume/csi, getAttachmentName)."""
    return "csi-" + hashlib.sha256(f"{handle}{DRIVER}{node}".encode()).hexdigest()
