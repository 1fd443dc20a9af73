"""A machine that runs pods as a kubelet would, as far as controller and operator need it.

It plays the scheduler, too. Their pods have real containers (``containers.py``). A pod that wants the machine itself, as the node
plugin's does, is only said to run: that one is proven in guests.
"""

from __future__ import annotations

import base64
import contextlib
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import urllib3

from tests.install.containers import Container, Mount, RootFilesystem, Sandbox, give
from tests.ring.api import ApiError, Object, Unreachable, path_of
from tests.ring.controlplane import ControlPlane
from tests.ring.kubelet import HANDS_OFF
from tests.ring.processes import LOOPBACK, LOOPBACK_FROM_GUESTS

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
PROBE_SECONDS = 5.0


class Unrunnable(ValueError):
    """A pod asks for what this machine has not: an image, a Secret, a kind of volume. The message names it."""


@dataclass
class _Pod:
    """A pod that this machine runs."""

    body: Object
    sandbox: Sandbox
    containers: list[Container]
    asked_to_end: float = 0.0
    restarts: dict[str, int] = field(default_factory=dict)
    written: object = None


class Machine:
    """One node's pods, of one namespace. A context manager.

    Args:
        plane: the control plane.
        namespace: whose pods.
        node: the Node on which pods without one are put.
        images: by name and tag.
        folder: for volumes and sockets; its path is short.
        logs: for what containers write.
    """

    def __init__(
        self, plane: ControlPlane, namespace: str, node: str, images: Mapping[str, RootFilesystem], folder: Path, logs: Path
    ) -> None:
        self._plane, self._api, self._namespace, self._node = plane, plane.api, namespace, node
        self._images, self._folder, self._logs = images, folder, logs
        self._pods: dict[str, _Pod] = {}
        self._count = 0
        self.refused: dict[str, str] = {}
        """Why a pod is not run, by its name."""

        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for pod in self._pods.values():
            pod.sandbox.stop()

    def processes(self, workload: str) -> list[int]:
        """Return the first process of every container of a workload's pods, as the machine numbers it."""
        return [
            pod.sandbox.pid(container.name)
            for pod in list(self._pods.values())
            if pod.body["metadata"]["name"].startswith(workload)
            for container in pod.containers
        ]

    def running(self, workload: str) -> list[Object]:
        """Return the pods of a workload that are run here, by their bodies."""
        return [pod.body for pod in list(self._pods.values()) if pod.body["metadata"]["name"].startswith(workload)]

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            with contextlib.suppress(ApiError, Unreachable):
                self._look()

    def _look(self) -> None:
        seen = set()
        for body in self._api.list("Pod", self._namespace):
            uid = body["metadata"]["uid"]
            seen.add(uid)
            if not body["spec"].get("nodeName"):
                self._bind(body)
            elif uid in self._pods:
                self._serve(self._pods[uid], body)
            elif "deletionTimestamp" in body["metadata"]:
                self._api.delete("Pod", body["metadata"]["name"], self._namespace, grace=0)
            elif HANDS_OFF in body["metadata"].get("annotations", {}):
                self._start(uid, body)
        for uid in self._pods.keys() - seen:
            self._pods.pop(uid).sandbox.stop()

    def _bind(self, body: Object) -> None:
        name = body["metadata"]["name"]
        terms = body["spec"].get("affinity", {}).get("nodeAffinity", {})
        wanted = re.findall(r"'metadata.name', 'operator': 'In', 'values': \['([^']+)'\]", str(terms))
        if not _wants_the_machine(body):
            self._api.patch("Pod", name, {"metadata": {"annotations": {HANDS_OFF: "containers"}}}, self._namespace)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"kind": "Node", "name": (wanted or [self._node])[0]},
        }
        self._api.request("POST", f"{path_of('Pod', name, self._namespace)}/binding", binding)

    def _start(self, uid: str, body: Object) -> None:
        name = body["metadata"]["name"]
        self._count += 1
        try:
            sandbox = Sandbox(name, self._folder / str(self._count), self._logs)
            containers = [self._container(body, spec, sandbox.folder) for spec in body["spec"]["containers"]]
        except Unrunnable as error:
            # As a kubelet does: it waits until what is missing is there.
            self.refused[name] = str(error)
            return
        self.refused.pop(name, None)
        sandbox.start()
        self._pods[uid] = _Pod(body, sandbox, containers)
        for container in containers:
            sandbox.run(container)

    def _serve(self, pod: _Pod, body: Object) -> None:
        pod.body = body
        if "deletionTimestamp" in body["metadata"]:
            self._end(pod, body)
            return
        for container in pod.containers:
            process = pod.sandbox.process(container.name)
            if not process.running:
                pod.restarts[container.name] = pod.restarts.get(container.name, 0) + 1
                pod.sandbox.forget(container.name)
                pod.sandbox.run(container)
        self._report(pod)

    def _end(self, pod: _Pod, body: Object) -> None:
        if not pod.asked_to_end:
            pod.asked_to_end = time.monotonic()
            pod.sandbox.ask_to_end()
        grace = body["metadata"].get("deletionGracePeriodSeconds", 30)
        if pod.sandbox.ended or time.monotonic() - pod.asked_to_end > grace:
            pod.sandbox.stop()
            self._api.delete("Pod", body["metadata"]["name"], self._namespace, grace=0)

    def _report(self, pod: _Pod) -> None:
        statuses = [self._status(pod, spec) for spec in pod.body["spec"]["containers"]]
        ready = "True" if all(status["ready"] for status in statuses) else "False"
        if pod.written == statuses:
            return
        conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Initialized")]
        conditions += [{"type": kind, "status": ready} for kind in ("ContainersReady", "Ready")]
        status = {"phase": "Running", "conditions": conditions, "containerStatuses": statuses}
        self._api.patch("Pod", pod.body["metadata"]["name"], {"status": status}, self._namespace, "status")
        pod.written = statuses

    def _status(self, pod: _Pod, spec: Object) -> Object:
        return {
            "name": spec["name"],
            "image": spec["image"],
            "imageID": spec["image"],
            "ready": self._is_ready(pod, spec),
            "restartCount": pod.restarts.get(spec["name"], 0),
            "state": {"running": {"startedAt": pod.body["metadata"]["creationTimestamp"]}},
        }

    def _is_ready(self, pod: _Pod, spec: Object) -> bool:
        if not pod.sandbox.process(spec["name"]).running:
            return False
        probe = spec.get("readinessProbe", {}).get("httpGet")
        if probe is None:
            return True
        (port,) = (one["containerPort"] for one in spec["ports"] if one["name"] == probe["port"])
        with urllib3.PoolManager(retries=False, timeout=PROBE_SECONDS) as pool:
            try:
                return bool(pool.request("GET", f"http://{LOOPBACK}:{pod.sandbox.ports[port]}{probe['path']}").status < 400)
            except urllib3.exceptions.HTTPError:
                return False

    # What a container is told

    def _container(self, body: Object, spec: Object, folder: Path) -> Container:
        image = self._images.get(spec["image"])
        if image is None:
            raise Unrunnable(f"there is no image {spec['image']}")
        pod, own = body["spec"].get("securityContext", {}), spec.get("securityContext", {})
        environment = self._environment(body, spec)
        argv = [*(spec.get("command") or image.entrypoint), *spec.get("args", [])]
        dropped = own.get("capabilities", {}).get("drop", [])
        if dropped != ["ALL"] or "runAsUser" not in pod:
            raise Unrunnable(f"container {spec['name']} keeps capabilities or is root")
        group = int(pod.get("fsGroup", pod.get("runAsGroup", 0)))
        return Container(
            name=spec["name"],
            root=image,
            argv=[_expanded(word, environment) for word in argv],
            environment=environment,
            mounts=[*self._mounts(body, spec, folder, group), self._account(body, folder, group)],
            user=int(pod["runAsUser"]),
            group=int(pod["runAsGroup"]),
            groups=[group],
            read_only=bool(own.get("readOnlyRootFilesystem")),
            no_new_privileges=own.get("allowPrivilegeEscalation") is False,
            ports=[port["containerPort"] for port in spec.get("ports", [])],
        )

    def _environment(self, body: Object, spec: Object) -> dict[str, str]:
        found = {
            "KUBERNETES_SERVICE_HOST": LOOPBACK_FROM_GUESTS,
            "KUBERNETES_SERVICE_PORT": self._plane.url.rsplit(":", 1)[1],
        }
        for source in spec.get("envFrom", []):
            found |= self._needed("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in spec.get("env", []):
            value: object = body
            for word in variable["valueFrom"]["fieldRef"]["fieldPath"].split("."):
                assert isinstance(value, dict)
                value = value[word]
            found[variable["name"]] = str(value)
        return found

    def _mounts(self, body: Object, spec: Object, folder: Path, group: int) -> Iterator[Mount]:
        volumes = {volume["name"]: volume for volume in body["spec"].get("volumes", [])}
        for mount in spec.get("volumeMounts", []):
            place = folder / "volumes" / mount["name"]
            if not place.exists():
                self._fill(place, volumes[mount["name"]], group)
            yield Mount(place, mount["mountPath"], bool(mount.get("readOnly")))

    def _fill(self, place: Path, volume: Object, group: int) -> None:
        if "secret" in volume:
            data = self._needed("Secret", volume["secret"]["secretName"]).get("data", {})
            place.mkdir(parents=True)
            for name, text in data.items():
                (place / name).write_bytes(base64.b64decode(text))
                give(place / name, group=group, mode=volume["secret"].get("defaultMode", 0o644) | 0o040)
        elif "emptyDir" in volume:
            place.mkdir(parents=True)
        else:
            raise Unrunnable(f"volume {volume}")
        give(place, group=group, mode=0o2775)

    def _account(self, body: Object, folder: Path, group: int) -> Mount:
        """Return the account's folder, which admission adds to pods in a cluster."""
        place = folder / "account"
        if not place.exists():
            place.mkdir(parents=True)
            account = body["spec"]["serviceAccountName"]
            (place / "token").write_text(self._plane.token_for(self._namespace, account))
            (place / "ca.crt").write_bytes(self._plane.authority.certificate_pem)
            (place / "namespace").write_text(self._namespace)
            for file in place.iterdir():
                give(file, group=group, mode=0o640)
        return Mount(place, ACCOUNT, read_only=True)

    def _needed(self, kind: str, name: str) -> Object:
        body = self._api.find(kind, name, self._namespace)
        if body is None:
            raise Unrunnable(f"there is no {kind} {name}")
        return body


def _wants_the_machine(body: Object) -> bool:
    return bool(body["spec"].get("hostNetwork") or body["spec"].get("hostPID"))


def _expanded(word: str, environment: Mapping[str, str]) -> str:
    """Return an argument with its ``$(NAME)`` replaced (Kubernetes, "Define a command and arguments for a container")."""
    return re.sub(r"\$\(([A-Za-z_]\w*)\)", lambda found: environment.get(found[1], found[0]), word)
