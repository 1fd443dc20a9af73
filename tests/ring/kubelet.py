"""Kubelets, played for every node of a ring: pods run at once, and a pod that is asked to go is gone."""

from __future__ import annotations

import contextlib
import threading
from typing import Self

from tests.ring.api import Api, ApiError, Object, Unreachable

HANDS_OFF = "ring/kubelet"
"""Annotation of pods that somebody else plays the kubelet for."""


class Kubelet:
    """Watches all pods in a thread of its own. A context manager.

    A pod with a node becomes Running and Ready, whether its volumes are attached or not; a pod that is being deleted is removed
    with no grace. ``silent`` names nodes whose kubelet does nothing, as after a power cut. Pods with the
    annotation ``HANDS_OFF`` are left to who made them.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.silent: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            # The API server may be killed at any moment; what was missed meanwhile is seen in the next list.
            with contextlib.suppress(ApiError, Unreachable):
                self._follow()
            self._stopped.wait(0.1)

    def _follow(self) -> None:
        listed = self._api.request("GET", "/api/v1/pods")
        for pod in listed["items"]:
            self._serve(pod)
        # Watches are short, so that the end of the ring is noticed soon.
        version = listed["metadata"]["resourceVersion"]
        while not self._stopped.is_set():
            for event in self._api.watch("Pod", resource_version=version, seconds=1):
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] in {"ADDED", "MODIFIED"}:
                    self._serve(event["object"])

    def _serve(self, pod: Object) -> None:
        metadata, node = pod["metadata"], pod["spec"].get("nodeName")
        if not node or node in self.silent or HANDS_OFF in metadata.get("annotations", {}):
            return
        with contextlib.suppress(ApiError):
            if "deletionTimestamp" in metadata:
                self._api.delete("Pod", metadata["name"], metadata["namespace"], grace=0)
            elif pod["status"].get("phase") == "Pending":
                self._api.patch("Pod", metadata["name"], _running(pod), metadata["namespace"], "status")


def _running(pod: Object) -> Object:
    conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")]
    started = pod["metadata"]["creationTimestamp"]
    containers = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": started}},
        }
        for container in pod["spec"]["containers"]
    ]
    return {"status": {"phase": "Running", "startTime": started, "conditions": conditions, "containerStatuses": containers}}
