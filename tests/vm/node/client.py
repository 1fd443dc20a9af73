"""A kubelet's part in tests without one: calls to the Node service of a guest, with the kubelet's paths."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from rds_csi.contexts import publish_context
from rds_csi.spec import csi_pb2, csi_pb2_grpc
from tests.ring.processes import LOOPBACK
from tests.ring.waiting import eventually
from tests.vm.guests import ROOT, Guest, GuestProcess
from tests.vm.nvmet import Export

CSI_PORT = 9001
"""Beside the one of ``rds-csi node`` (``tests/vm/node_plugin.py``), which the same guest may run."""

KUBELET = "/var/lib/kubelet"
Mode = csi_pb2.VolumeCapability.AccessMode
BLOCK = ""
"""No file system."""

SIZE = 512 << 20
"""Bytes of a volume; mkfs.xfs wants more than 300 MB."""

IN_USE = grpc.StatusCode.FAILED_PRECONDITION

START_TIMEOUT = 600.0
"""Seconds: an emulated processor needs long for the modules that the driver imports."""


@dataclass(frozen=True)
class Volume:
    """An export, and how a pod wants it: as a block device, or with a file system."""

    export: Export
    fs: str = BLOCK
    mode: int = Mode.SINGLE_NODE_WRITER
    flags: tuple[str, ...] = ()

    @property
    def handle(self) -> str:
        return self.export.name

    @property
    def staging(self) -> str:
        return f"{KUBELET}/plugins/kubernetes.io/csi/staging/{self.handle}"

    def target(self, pod: str = "pod-1") -> str:
        return f"{KUBELET}/pods/{pod}/volumes/{self.handle}"

    @property
    def capability(self) -> csi_pb2.VolumeCapability:
        mode = Mode(mode=Mode.Mode.Name(self.mode))
        if self.fs == BLOCK:
            return csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=mode)
        mount = csi_pb2.VolumeCapability.MountVolume(fs_type=self.fs, mount_flags=self.flags)
        return csi_pb2.VolumeCapability(mount=mount, access_mode=mode)


Make = Callable[..., Volume]
"""Makes volumes: the file system, then ``size``, ``name``, and what else a ``Volume`` is made of."""


class Node:
    """The Node service of a guest."""

    def __init__(self, guest: Guest, process: GuestProcess) -> None:
        self.guest = guest
        self.process = process

    @classmethod
    def started(cls, guest: Guest) -> Node:
        """Start the service in a guest, and wait until it answers."""
        process = guest.process(
            "plugin", [sys.executable, "-m", "tests.vm.node.plugin", guest.name, str(CSI_PORT)], env={"PYTHONPATH": str(ROOT)}
        )
        node = cls(guest, process.start())
        node.wait(START_TIMEOUT)
        return node

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until the service answers."""
        eventually(f"{self.guest.name} answers", self._answers, timeout=timeout, interval=0.2)

    def _answers(self) -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(self._call("NodeGetInfo", csi_pb2.NodeGetInfoRequest(), 5.0).node_id)
        return False

    def _call(self, name: str, request: Any, timeout: float) -> Any:
        with grpc.insecure_channel(f"{LOOPBACK}:{self.guest.ports[CSI_PORT]}") as channel:
            return getattr(csi_pb2_grpc.NodeStub(channel), name)(request, timeout=timeout)

    def stage(self, volume: Volume, *, address: str = "", port: int = 0, timeout: float = 60.0) -> None:
        export = volume.export
        context = publish_context(nvme_address=address or export.target.address, nvme_port=port or export.port, nqn=export.nqn)
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume.handle,
            publish_context=context,
            staging_target_path=volume.staging,
            volume_capability=volume.capability,
            volume_context={"nqn": export.nqn, "nvmeAddress": "10.77.0.99", "reconnectDelay": "1"},
        )
        self._call("NodeStageVolume", request, timeout)

    def unstage(self, volume: Volume, *, timeout: float = 60.0) -> None:
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume.handle, staging_target_path=volume.staging)
        self._call("NodeUnstageVolume", request, timeout)

    def publish(self, volume: Volume, pod: str = "pod-1", *, read_only: bool = False, timeout: float = 60.0) -> str:
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume.handle,
            staging_target_path=volume.staging,
            target_path=volume.target(pod),
            volume_capability=volume.capability,
            readonly=read_only,
        )
        self._call("NodePublishVolume", request, timeout)
        return volume.target(pod)

    def unpublish(self, volume: Volume, pod: str = "pod-1", *, timeout: float = 60.0) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume.handle, target_path=volume.target(pod))
        self._call("NodeUnpublishVolume", request, timeout)

    def stats(self, volume: Volume, pod: str = "pod-1") -> dict[str, csi_pb2.VolumeUsage]:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.handle, volume_path=volume.target(pod))
        usage = self._call("NodeGetVolumeStats", request, 60.0).usage
        return {csi_pb2.VolumeUsage.Unit.Name(one.unit): one for one in usage}

    def expand(self, volume: Volume, size: int, pod: str = "pod-1", *, timeout: float = 60.0) -> int:
        request = csi_pb2.NodeExpandVolumeRequest(
            volume_id=volume.handle,
            volume_path=volume.target(pod),
            staging_target_path=volume.staging,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            volume_capability=volume.capability,
        )
        return int(self._call("NodeExpandVolume", request, timeout).capacity_bytes)

    # What the guest's kernel shows

    def mounts(self, path: str) -> list[str]:
        """Return the options of each mount at a path, the uppermost last."""
        lines = self.guest.sh("cat /proc/1/mountinfo").splitlines()
        return [words[5] for words in map(str.split, lines) if words[4] == path]

    def number(self, path: str) -> str:
        """Return the number of the device that a path leads to, as ``MAJOR:MINOR`` in hex."""
        return self.guest.sh(f"stat -c %t:%T {path}").strip()

    def disk(self, volume: Volume) -> str:
        """Return the path of the volume's disk as the kernel has it now; empty without one."""
        found = self.guest.ask(f"""
            for name in $(grep -lx {volume.export.nqn} /sys/class/nvme-subsystem/*/subsysnqn /sys/class/nvme/*/subsysnqn); do
                folder=$(dirname $name)
                for disk in $folder/nvme*n*; do [ -b "/dev/${{disk##*/}}" ] && echo -n /dev/${{disk##*/}} && exit; done
            done
        """)
        return found.output.strip()

    def connected(self, volume: Volume) -> bool:
        return self.guest.ask(f"grep -qx {volume.export.nqn} /sys/class/nvme/*/subsysnqn").status == 0

    def tidy(self, volume: Volume) -> None:
        """Take everything of a volume from the guest, whatever a test left there."""
        self.guest.ask(f"""
            rm -f /run/plugin-die
            umount -R $(awk '{{print $5}}' /proc/1/mountinfo | grep -E '/{volume.handle}$') 2> /dev/null
            umount -R $(awk '{{print $5}}' /proc/1/mountinfo | grep -E '/{volume.handle}$') 2> /dev/null
            nvme disconnect -n {volume.export.nqn}
            rm -f {KUBELET}/pods/*/volumes/{volume.handle}
        """)

    # Lives

    def kill(self) -> None:
        """SIGKILL the service; its next life starts at once."""
        self.guest.sh("kill -9 $(cat /run/plugin-pid)")
        self.wait()

    def to_die(self, step: int, when: str) -> None:
        """Start a new life of the service that dies ``during`` or ``after`` its step of that number."""
        self.guest.sh(f"echo '{step} {when}' > /run/plugin-die")
        self.kill()
        self.guest.sh("rm /run/plugin-die")


def refused(code: grpc.StatusCode, call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """Make a call that must be refused with this code; return its words."""
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, **named)
    assert error.value.code() is code, f"{error.value.code()}: {error.value.details()}"
    return str(error.value.details())


def retried(call: Callable[..., Any], *arguments: Any, timeout: float = 90.0, **named: Any) -> Any:
    """Make a call again and again, as the kubelet does, until it is answered OK; return the answer."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return call(*arguments, **named)
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)
