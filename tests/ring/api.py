"""A plain synchronous client of the Kubernetes API, for tests: dictionaries in and out, nothing retried or cached."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import urllib3
import yaml

Object = dict[str, Any]

# kind: (path of its group and version, plural, namespaced)
KINDS: dict[str, tuple[str, str, bool]] = {
    "ClusterRole": ("/apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "ConfigMap": ("/api/v1", "configmaps", True),
    "CSIDriver": ("/apis/storage.k8s.io/v1", "csidrivers", False),
    "CSINode": ("/apis/storage.k8s.io/v1", "csinodes", False),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "CSIStorageCapacity": ("/apis/storage.k8s.io/v1", "csistoragecapacities", True),
    "DataVolume": ("/apis/cdi.kubevirt.io/v1beta1", "datavolumes", True),
    "DaemonSet": ("/apis/apps/v1", "daemonsets", True),
    "Deployment": ("/apis/apps/v1", "deployments", True),
    "Event": ("/api/v1", "events", True),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases", True),
    "Namespace": ("/api/v1", "namespaces", False),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies", True),
    "Node": ("/api/v1", "nodes", False),
    "PersistentVolume": ("/api/v1", "persistentvolumes", False),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims", True),
    "Pod": ("/api/v1", "pods", True),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets", True),
    "PodMonitor": ("/apis/monitoring.coreos.com/v1", "podmonitors", True),
    "PrometheusRule": ("/apis/monitoring.coreos.com/v1", "prometheusrules", True),
    "ReplicaSet": ("/apis/apps/v1", "replicasets", True),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings", True),
    "Secret": ("/api/v1", "secrets", True),
    "ServiceAccount": ("/api/v1", "serviceaccounts", True),
    "SnapshotSchedule": ("/apis/snapscheduler.backube/v1", "snapshotschedules", True),
    "StorageClass": ("/apis/storage.k8s.io/v1", "storageclasses", False),
    "StorageProfile": ("/apis/cdi.kubevirt.io/v1beta1", "storageprofiles", False),
    "VolumeAttachment": ("/apis/storage.k8s.io/v1", "volumeattachments", False),
    "VirtualMachine": ("/apis/kubevirt.io/v1", "virtualmachines", True),
    "VirtualMachineInstance": ("/apis/kubevirt.io/v1", "virtualmachineinstances", True),
    "VirtualMachineInstanceMigration": ("/apis/kubevirt.io/v1", "virtualmachineinstancemigrations", True),
    "VolumeAttributesClass": ("/apis/storage.k8s.io/v1", "volumeattributesclasses", False),
    "VolumeSnapshot": ("/apis/snapshot.storage.k8s.io/v1", "volumesnapshots", True),
    "VolumeSnapshotClass": ("/apis/snapshot.storage.k8s.io/v1", "volumesnapshotclasses", False),
    "VolumeSnapshotContent": ("/apis/snapshot.storage.k8s.io/v1", "volumesnapshotcontents", False),
    "VolumeAttachmentRecord": ("/apis/rds.csi.srvlab.io/v1alpha1", "volumeattachmentrecords", False),
}


class ApiError(Exception):
    """An answer that is no success: HTTP ``status``, and ``reason`` and ``message`` of the Kubernetes Status object."""

    def __init__(self, method: str, path: str, status: int, body: bytes) -> None:
        self.status = status
        try:
            answer = json.loads(body)
            self.reason, self.message = str(answer.get("reason", "")), str(answer.get("message", ""))
        except (ValueError, AttributeError):
            self.reason, self.message = "", body[:1000].decode(errors="replace")
        super().__init__(f"{method} {path}: {status} {self.reason}: {self.message}")


class Unreachable(Exception):
    """No answer: the connection was refused, was cut, or said nothing in time. A write may or may not have been applied."""


class Api:
    """One user's view of one API server. Safe to use from several threads."""

    def __init__(self, server: str, tls: ssl.SSLContext, token: str | None = None, *, timeout: float = 30.0) -> None:
        self.server = server
        self._tls = tls
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout
        self._pool = urllib3.PoolManager(ssl_context=tls, retries=False, maxsize=32, timeout=urllib3.Timeout(timeout))

    @classmethod
    def from_kubeconfig(cls, path: Path, *, timeout: float = 30.0) -> Self:
        """Return a client for the first cluster and user of a kubeconfig that carries its credentials inline."""
        config = yaml.safe_load(path.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as pair:
                pair.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
                pair.flush()
                tls.load_cert_chain(pair.name)
        return cls(cluster["server"], tls, user.get("token"), timeout=timeout)

    def at(self, server: str) -> Self:
        """Return the same user's client of another server under the same authority."""
        other = type(self)(server, self._tls, timeout=self._timeout)
        other._headers = self._headers
        return other

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        content_type: str = "application/json",
        timeout: float | None = None,
    ) -> Object:
        """Send one request, once.

        Raises:
            ApiError: the API server refused it.
            Unreachable: there was no answer.
        """
        data = self._send(method, path, body, query, content_type, timeout)
        try:
            result = json.loads(data)
        except ValueError:
            return {"text": data.decode(errors="replace")}
        return result if isinstance(result, dict) else {"items": result}

    def text(self, method: str, path: str, *, query: Mapping[str, object] | None = None, timeout: float | None = None) -> str:
        """Send one request, once, and return the answer as it is; raises as ``request`` does."""
        return self._send(method, path, None, query, "application/json", timeout).decode(errors="replace")

    def _send(
        self, method: str, path: str, body: object, query: Mapping[str, object] | None, content_type: str, timeout: float | None
    ) -> bytes:
        target = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {**self._headers, "Accept": "application/json, */*;q=0.5", "Content-Type": content_type}
        payload = None if body is None else json.dumps(body).encode()
        try:
            answer = self._pool.request(
                method, target, body=payload, headers=headers, timeout=urllib3.Timeout(timeout or self._timeout)
            )
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{method} {path}: {error}") from error
        if not 200 <= answer.status < 300:
            raise ApiError(method, path, answer.status, answer.data)
        return bytes(answer.data)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        return self.request("GET", path_of(kind, name, namespace))

    def find(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return the object, or ``None`` where the API server says that it does not exist."""
        try:
            return self.get(kind, name, namespace)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str | None = None, **query: object) -> list[Object]:
        """Return all objects of a kind; ``query`` may carry ``labelSelector`` and ``fieldSelector``."""
        items: list[Object] = self.request("GET", path_of(kind, None, namespace), query=query)["items"]
        return [{**item, "kind": kind} for item in items]

    def create(self, body: Object) -> Object:
        return self.request("POST", path_of(body["kind"], None, body["metadata"].get("namespace")), body)

    def replace(self, body: Object, subresource: str | None = None) -> Object:
        """PUT the object over the version that it was read at."""
        metadata = body["metadata"]
        return self.request("PUT", path_of(body["kind"], metadata["name"], metadata.get("namespace"), subresource), body)

    def patch(self, kind: str, name: str, body: object, namespace: str | None = None, subresource: str | None = None) -> Object:
        """Send a JSON merge patch."""
        path = path_of(kind, name, namespace, subresource)
        return self.request("PATCH", path, body, content_type="application/merge-patch+json")

    def apply(self, body: Object) -> Object:
        """Apply on the server's side, taking over every field that the object names."""
        metadata = body["metadata"]
        return self.request(
            "PATCH",
            path_of(body["kind"], metadata["name"], metadata.get("namespace")),
            body,
            query={"fieldManager": "rds-csi-ring", "force": "true"},
            content_type="application/apply-patch+yaml",
        )

    def delete(self, kind: str, name: str, namespace: str | None = None, *, grace: int | None = None) -> None:
        """Ask for deletion; an object that is not there is fine. ``grace`` in seconds."""
        options = {} if grace is None else {"gracePeriodSeconds": grace}
        try:
            self.request("DELETE", path_of(kind, name, namespace), options)
        except ApiError as error:
            if error.status != 404:
                raise

    def watch(
        self, kind: str, namespace: str | None = None, *, resource_version: str, seconds: int = 300, **query: object
    ) -> Iterator[Object]:
        """Yield watch events (``type`` and ``object``) until the server ends the watch after ``seconds``.

        Raises:
            ApiError: the watch was refused, or ended with an error event (410 where the version is too old).
            Unreachable: the connection was cut.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": seconds,
            **query,
        }
        path = path_of(kind, None, namespace)
        try:
            answer = self._pool.request(
                "GET",
                f"{self.server}{path}?{urlencode(query)}",
                headers={**self._headers, "Accept": "application/json"},
                preload_content=False,
                timeout=urllib3.Timeout(connect=self._timeout, read=seconds + 30.0),
            )
            try:
                if answer.status != 200:
                    raise ApiError("WATCH", path, answer.status, answer.data)
                buffer = b""
                while chunk := answer.read1():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            raise ApiError(
                                "WATCH", path, int(event["object"].get("code", 500)), json.dumps(event["object"]).encode()
                            )
                        yield event
            finally:
                answer.close()
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"WATCH {path}: {error}") from error


def path_of(kind: str, name: str | None = None, namespace: str | None = None, subresource: str | None = None) -> str:
    """Return the path of an object, of a collection (no name), or of an object's subresource."""
    prefix, plural, namespaced = KINDS[kind]
    middle = f"/namespaces/{namespace}" if namespaced and namespace else ""
    return prefix + middle + f"/{plural}" + (f"/{name}" if name else "") + (f"/{subresource}" if subresource else "")
