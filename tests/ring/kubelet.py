"""Kubelets, played for every node of a ring: pods run at once, and a pod that is asked to go is gone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from tests.ring.api import Api, ApiError, Object, Unreachable

HANDS_OFF = "ring/kubelet"
"""Annotation of pods that somebody else plays the kubelet for."""


SIGNS_OF_LIFE = (2.0, 5.0, 10.0)
"""Seconds after a pod was bound at which something on it changes.

The attach/detach controller looks at a pod when that changes, and passes it over where its caches do not know the pod's node or
claim yet; it looks at all pods only every three minutes. A real kubelet writes to a young pod again and again.
"""


@dataclass
class _Young:
    """A pod that was bound a moment ago."""

    namespace: str
    name: str
    since: float = field(default_factory=time.monotonic)
    due: Iterator[float] = field(default_factory=lambda: iter(SIGNS_OF_LIFE))
    next: float = 0.0

    def __post_init__(self) -> None:
        self.next = next(self.due)


class Kubelet:
    """Watches all pods in a thread of its own. A context manager.

    A pod with a node becomes Running and Ready, whether its volumes are attached or not; a pod that is being deleted is removed
    with no grace. A young pod changes a few times, whoever plays its kubelet. ``silent`` names nodes whose kubelet does nothing,
    as after a power cut. Pods with the annotation ``HANDS_OFF`` are left to who made them.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.silent: set[str] = set()
        self._young: dict[str, _Young] = {}
        self._seen: set[str] = set()
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
                elif event["type"] == "DELETED":
                    self._young.pop(event["object"]["metadata"]["uid"], None)
            self._show_life()

    def _show_life(self) -> None:
        now = time.monotonic()
        for uid, pod in list(self._young.items()):
            if now - pod.since < pod.next:
                continue
            with contextlib.suppress(ApiError):
                annotations = {"ring/alive-for": f"{pod.next:g}s"}
                self._api.patch("Pod", pod.name, {"metadata": {"annotations": annotations}}, pod.namespace)
            pod.next = next(pod.due, 0.0)
            if not pod.next:
                del self._young[uid]

    def _serve(self, pod: Object) -> None:
        metadata, node = pod["metadata"], pod["spec"].get("nodeName")
        if node and metadata["uid"] not in self._seen:
            self._seen.add(metadata["uid"])
            self._young[metadata["uid"]] = _Young(metadata["namespace"], metadata["name"])
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
