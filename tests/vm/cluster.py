"""One test's view of a cluster whose nodes are guests with real kubelets: pods that run, on disks that are there."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.ring.api import Api, Object
from tests.ring.cluster import Cluster
from tests.ring.waiting import eventually
from tests.vm.guests import ROOT
from tests.vm.images import IMAGE
from tests.vm.kubelets import NodeKubelet

CONTAINER = "main"
DISK = "/dev/disk"
"""Where a pod has a Block claim."""

MOUNTED = "/data"
"""Where a pod has a Filesystem claim."""

RUNNING_TIMEOUT = 120.0
"""Seconds from a pod's creation until it runs, volumes attached, on a busy machine."""


class RealCluster(Cluster):
    """The namespace of one test on real nodes.

    Args:
        api: the administrator's client.
        kubelets: the nodes, by name.
    """

    def __init__(self, api: Api, kubelets: Mapping[str, NodeKubelet]) -> None:
        super().__init__(api)
        self.kubelets = kubelets

    def pod(
        self,
        node: str,
        claims: Sequence[str] | str = (),
        *,
        command: str = "exec sleep 2000000000",
        name: str = "",
        restart: str = "Never",
        grace: int = 1,
        spec: Mapping[str, object] | None = None,
        python: bool = False,
        folders: Mapping[Path, Path] | None = None,
    ) -> str:
        """Put a pod on a node and return its name.

        Args:
            claims: what it mounts: the first Block claim is ``/dev/disk``, the second ``/dev/disk1``, …; the first Filesystem claim
                ``/data``, the second ``/data1``, ….
            command: a shell script, which is the container's first process.
            spec: fields of the pod's spec that win over ours.
            folders: folders of the node, and where the pod has them, to write to.
            python: show it this checkout and the Python that runs the tests (``sys.executable``), at their own paths.
        """
        name = name or f"pod-{secrets.token_hex(3)}"
        volumes: list[Object] = []
        mounts: list[Object] = []
        devices: list[Object] = []
        for number, claim in enumerate([claims] if isinstance(claims, str) else claims):
            volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
            suffix = str(number) if number else ""
            if self.claim(claim)["spec"].get("volumeMode") == "Block":
                devices.append({"name": f"claim-{number}", "devicePath": f"{DISK}{suffix}"})
            else:
                mounts.append({"name": f"claim-{number}", "mountPath": f"{MOUNTED}{suffix}"})
        if python:
            for number, path in enumerate(dict.fromkeys([Path("/usr"), Path(sys.base_prefix).resolve(), ROOT])):
                if number and path.is_relative_to("/usr"):
                    continue
                volumes.append({"name": f"host-{number}", "hostPath": {"path": str(path), "type": "Directory"}})
                mounts.append({"name": f"host-{number}", "mountPath": str(path), "readOnly": True})
        for number, (there, here) in enumerate((folders or {}).items()):
            volumes.append({"name": f"folder-{number}", "hostPath": {"path": str(there), "type": "Directory"}})
            mounts.append({"name": f"folder-{number}", "mountPath": str(here)})
        container: Object = {
            "name": CONTAINER,
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", command],
            "volumeMounts": mounts,
            "volumeDevices": devices,
        }
        self._make(
            "Pod",
            {
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {
                    "hostNetwork": True,
                    "nodeName": node,
                    "restartPolicy": restart,
                    "terminationGracePeriodSeconds": grace,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "dnsPolicy": "Default",
                    "containers": [container],
                    "volumes": volumes,
                    **(spec or {}),
                },
            },
        )
        return name

    def wait_running(self, pod: str, *, timeout: float = RUNNING_TIMEOUT) -> None:
        """Wait until a pod's kubelet says that it runs."""

        def running() -> bool:
            status = self.api.get("Pod", pod, self.namespace)["status"]
            assert status.get("phase") == "Running", f"{status} {self.pod_events(pod)}"
            return True

        eventually(f"pod {pod} runs", running, timeout=timeout, interval=0.2)

    def delete_pod(self, pod: str, *, wait: bool = True, force: bool = False, timeout: float = RUNNING_TIMEOUT) -> None:
        """Ask a pod to go; ``wait`` until its kubelet has let it go. ``force``: forget it at once, its kubelet may be dead."""
        self.api.delete("Pod", pod, self.namespace, grace=0 if force else None)
        if wait:
            self.wait_pod_gone(pod, timeout=timeout)

    def wait_pod_gone(self, pod: str, *, timeout: float = RUNNING_TIMEOUT) -> None:
        """Wait until a pod's kubelet, or the pod garbage collector, has let it go."""
        gone = f"pod {pod} is gone"
        eventually(gone, lambda: self.api.find("Pod", pod, self.namespace) is None, timeout=timeout, interval=0.2)

    def pod_events(self, pod: str) -> list[str]:
        """Return ``reason: message`` of the Events about a pod."""
        return [f"{event['reason']}: {event['message']}" for event in self.events(pod, kind="Pod")]

    def exec(self, pod: str, script: str, *, timeout: float = 60.0) -> str:
        """Run a shell script in a pod and return what it said; see ``NodeKubelet.exec``."""
        return self._kubelet_of(pod).exec(self.namespace, pod, script, CONTAINER, timeout=timeout)

    def logs(self, pod: str) -> str:
        """Return what a pod has said so far."""
        return self._kubelet_of(pod).logs(self.namespace, pod, CONTAINER)

    def _kubelet_of(self, pod: str) -> NodeKubelet:
        return self.kubelets[self.api.get("Pod", pod, self.namespace)["spec"]["nodeName"]]

    def clean_up(self, *, timeout: float = 60.0) -> None:
        """Remove what this test made as a user would, and what is then still there by force."""
        with contextlib.suppress(AssertionError):
            self.leave(timeout=timeout)
        super().clean_up()

    def leave(self, *, timeout: float = 60.0) -> None:
        """Remove what this test made as a user would, and wait until the volumes are gone from the box."""
        pods = [pod["metadata"]["name"] for pod in self.api.list("Pod", self.namespace)]
        for pod in pods:
            self.delete_pod(pod, wait=False)
        for pod in pods:
            self.delete_pod(pod, timeout=timeout)
        claims = self.api.list("PersistentVolumeClaim", self.namespace)
        volumes = {claim["spec"]["volumeName"] for claim in claims if claim["spec"].get("volumeName")}

        def detached() -> bool:
            return not any(
                attachment["spec"]["source"].get("persistentVolumeName") in volumes
                for attachment in self.api.list("VolumeAttachment")
            )

        eventually("everything is detached", detached, timeout=timeout)
        for claim in claims:
            self.delete_claim(claim["metadata"]["name"])
        for volume in volumes:
            if (body := self.api.find("PersistentVolume", volume)) and body["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
                self.wait_volume_gone(volume, timeout=timeout)
