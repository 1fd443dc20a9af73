"""Containers of a pod, run by runc from the files of their images; the pod's network is one of its own (slirp4netns).

A pod ends with the process that made it, however that dies: all of its containers live in one process namespace, whose first
process the kernel kills then. Nothing of the machine's is changed but cgroups under ``rds-csi-tests``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ring.processes import LOOPBACK, Process, free_port
from tests.ring.waiting import eventually

CGROUP = "rds-csi-tests"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class RootFilesystem:
    """An image as a runtime has it unpacked; what a container does not say comes from it."""

    folder: Path
    entrypoint: Sequence[str]
    environment: Sequence[str] = ()


@dataclass(frozen=True)
class Mount:
    """A folder of the pod's that a container sees at a path."""

    source: Path
    path: str
    read_only: bool = False


@dataclass(frozen=True)
class Container:
    """What a runtime is told of one container."""

    name: str
    root: RootFilesystem
    argv: Sequence[str]
    environment: Mapping[str, str]
    mounts: Sequence[Mount]
    user: int
    group: int
    groups: Sequence[int] = ()
    read_only: bool = False
    no_new_privileges: bool = False
    capabilities: Sequence[str] = ()
    ports: Sequence[int] = field(default_factory=tuple)


class Sandbox:
    """The namespaces of one pod. ``ports`` says where each container port is reached on the loopback interface."""

    def __init__(self, name: str, folder: Path, logs: Path) -> None:
        """``folder`` is for sockets, so its path is short; ``logs`` for what containers write."""
        self.name = name
        self._logs = logs
        self.folder = folder
        self.ports: dict[int, int] = {}
        self._state = folder / "runc"
        self._state.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, Process] = {}
        holder = ["unshare", "--net", "--pid", "--fork", "--kill-child", "sleep", "infinity"]
        self._holder = Process(f"{name}: sandbox", holder, logs / f"{name}-sandbox.log", ready=lambda: self._first() > 0)
        self._network: Process | None = None
        self._control = folder / "n"

    def start(self) -> None:
        """Make the namespaces, and a network from which the machine's loopback interface is reached at 10.0.2.2."""
        self._holder.start()
        argv = ["slirp4netns", "--configure", "--mtu=65520", f"--api-socket={self._control}", str(self._first()), "tap0"]
        self._network = Process(f"{self.name}: network", argv, self._logs / f"{self.name}-network.log", ready=self._control.exists)
        self._network.start()

    def inside(self) -> tuple[str, ...]:
        """Return what goes before a command that is to run in this network."""
        return ("nsenter", f"--net=/proc/{self._first()}/ns/net")

    def run(self, container: Container) -> Process:
        """Start a container."""
        bundle = self.folder / container.name
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir()
        # A copy of links: a runtime makes the directories to mount on in it.
        subprocess.run(["cp", "--archive", "--link", container.root.folder, bundle / "rootfs"], check=True)
        (bundle / "config.json").write_text(json.dumps(self._config(container)))
        for port in container.ports:
            self._publish(port)
        identity = f"{self.name}-{container.name}"
        argv = ["runc", "--root", str(self._state), "run", "--no-pivot", "--bundle", str(bundle), identity]
        process = Process(f"{self.name}: {container.name}", argv, self._logs / f"{self.name}-{container.name}.log")
        self._running[container.name] = process.start()
        return process

    def forget(self, name: str) -> None:
        """Clear up after a container that ended, so that it can be started again."""
        subprocess.run(
            ["runc", "--root", str(self._state), "delete", "--force", f"{self.name}-{name}"], capture_output=True, check=False
        )

    def ask_to_end(self) -> None:
        """Send SIGTERM to every container."""
        for name in self._running:
            self._runc("kill", f"{self.name}-{name}", "TERM")

    @property
    def ended(self) -> bool:
        """Whether no container runs."""
        return not any(process.running for process in self._running.values())

    def process(self, name: str) -> Process:
        """Return a container that was started."""
        return self._running[name]

    def pid(self, name: str) -> int:
        """Return the first process of a container, as the machine numbers it."""
        asked = subprocess.run(
            ["runc", "--root", str(self._state), "state", f"{self.name}-{name}"], capture_output=True, text=True, check=True
        )
        return int(json.loads(asked.stdout)["pid"])

    def stop(self) -> None:
        """End all containers and remove the namespaces."""
        for name, process in self._running.items():
            self.forget(name)
            process.kill()
        for held in (self._network, self._holder):
            if held is not None:
                held.kill()

    def _runc(self, *arguments: str) -> None:
        subprocess.run(["runc", "--root", str(self._state), *arguments], capture_output=True, check=False)

    def _first(self) -> int:
        """Return the process that holds the namespaces, 0 while there is none."""
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        words = children.read_text().split() if children.exists() else []
        return int(words[0]) if words else 0

    def _publish(self, port: int) -> None:
        if port in self.ports:
            return
        outside = free_port()
        arguments = {"proto": "tcp", "host_addr": LOOPBACK, "host_port": outside, "guest_port": port}

        def asked() -> bool:
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(str(self._control))
                control.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
                control.shutdown(socket.SHUT_WR)
                answer = json.loads(control.makefile().read())
            assert "error" not in answer, answer
            return True

        eventually(f"port {port} of {self.name} is reached", asked)
        self.ports[port] = outside

    def _config(self, container: Container) -> dict[str, Any]:
        """Return the configuration (OCI runtime-spec 1.0, config.md)."""
        first = self._first()
        told = [f"{name}={value}" for name, value in container.environment.items()]
        capabilities = list(container.capabilities)
        kinds = ("bounding", "effective", "permitted")
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _tmpfs("/dev", "nosuid", "strictatime", "mode=755"),
            _tmpfs("/dev/shm", "nosuid", "noexec", "nodev"),
            *(
                {
                    "destination": mount.path,
                    "type": "bind",
                    "source": str(mount.source),
                    "options": ["rbind", *(["ro"] if mount.read_only else [])],
                }
                for mount in container.mounts
            ),
        ]
        return {
            "ociVersion": "1.0.2",
            "hostname": self.name,
            "root": {"path": "rootfs", "readonly": container.read_only},
            "process": {
                "terminal": False,
                "cwd": "/",
                "args": list(container.argv),
                "env": [DEFAULT_PATH, *container.root.environment, *told],
                "noNewPrivileges": container.no_new_privileges,
                "user": {"uid": container.user, "gid": container.group, "additionalGids": list(container.groups)},
                "capabilities": dict.fromkeys(kinds, capabilities),
            },
            "mounts": mounts,
            "linux": {
                "cgroupsPath": f"/{CGROUP}/{self.name}-{container.name}",
                "namespaces": [
                    {"type": "mount"},
                    {"type": "ipc"},
                    {"type": "uts"},
                    {"type": "pid", "path": f"/proc/{first}/ns/pid"},
                    {"type": "network", "path": f"/proc/{first}/ns/net"},
                ],
            },
        }


def _tmpfs(path: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": [*options, "size=65536k"]}


def give(path: Path, *, group: int, mode: int) -> None:
    """Let a group have a file or folder, as a kubelet does with fsGroup."""
    os.chown(path, 0, group)
    path.chmod(mode)
