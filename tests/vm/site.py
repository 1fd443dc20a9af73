"""A whole installation on real nodes: box, kubelets and drivers in guests, the shim and its sidecars on the host."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from rds_records.names import host_nqn_for
from tests.ring.cluster import DRIVER, NQN_PREFIX
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Shim
from tests.ring.sidecars import csi_attacher, csi_provisioner, csi_resizer
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.vm.box import BoxInGuest
from tests.vm.cluster import RealCluster
from tests.vm.guests import Guest, Link
from tests.vm.keepers import found_in
from tests.vm.kubelets import NodeKubelet
from tests.vm.ledger import Found
from tests.vm.node_plugin import NodePlugin

OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
"""What an administrator says of a node that is off and stays so for now (Kubernetes, non-graceful node shutdown)."""

BACK_TIMEOUT = 60.0
"""Seconds from a healed network or box until a kernel is connected again: it tries every few seconds."""


@dataclasses.dataclass(frozen=True)
class Session:
    """A connection of a node to a subsystem, as its kernel has it; ``device`` is the block device's name, empty without one."""

    state: str
    device: str


@dataclasses.dataclass(frozen=True)
class Volume:
    """A provisioned volume."""

    claim: str
    handle: str

    @property
    def nqn(self) -> str:
        """The name of its subsystem."""
        return NQN_PREFIX + self.handle


class Site:
    """The parts by name; a context manager that runs the shim, csi-provisioner, csi-attacher and csi-resizer.

    Kubelets, drivers and the box are started by whoever made them; ``recover`` starts them again.
    """

    def __init__(
        self,
        plane: ControlPlane,
        box: BoxInGuest,
        kubelets: Mapping[str, NodeKubelet],
        plugins: Mapping[str, NodePlugin],
        folder: Path,
    ) -> None:
        self.plane = plane
        self.box = box
        self.kubelets = kubelets
        self.plugins = plugins
        self.shim = Shim(plane, folder, reach(box), extra=(f"--nvme-address={box.nvme_address}", "--log-format=text"))
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self.shim)
            for make in (csi_provisioner, csi_attacher, csi_resizer):
                undo.enter_context(make(self.plane, self.shim.socket, self.plane.logs))
            self._ends = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def guest(self, node: str) -> Guest:
        """The machine of a node."""
        return self.kubelets[node].guest

    # Volumes

    def provision(
        self,
        cluster: RealCluster,
        *,
        block: bool = True,
        fs_type: str = "",
        size: str = "1Gi",
    ) -> Volume:
        """Make a claim and wait until it is bound: ReadWriteMany Block with AnyTwoNodes, or ReadWriteOnce with a file system."""
        parameters = {"dualAttachPolicy": "AnyTwoNodes"} | ({"csi.storage.k8s.io/fstype": fs_type} if fs_type else {})
        storage_class = cluster.make_storage_class(parameters, stem=f"class-{secrets.token_hex(3)}")
        claim = cluster.make_claim(
            storage_class,
            size=size,
            access_mode="ReadWriteMany" if block else "ReadWriteOnce",
            volume_mode="Block" if block else "Filesystem",
        )
        return Volume(claim, cluster.wait_bound(claim))

    def on_the_box(self, volume: Volume) -> list[Found]:
        """Return what the volume holds, read from its file in the box: no initiator and no network is part of the answer."""
        name = next(name for name in self.box.files() if volume.handle in name)
        return found_in(self.box.guest, self.box.backing_file(name))

    # Nodes

    def sessions(self, node: str) -> dict[str, Session]:
        """Return a node's sessions with volumes, by NQN; those that were not made under the node's host NQN are somebody else's."""
        said = self.guest(node).sh(f"""
            for controller in /sys/class/nvme/nvme*; do
                grep -q '^{NQN_PREFIX}' $controller/subsysnqn 2> /dev/null || continue
                grep -qx '{host_nqn_for(node)}' $controller/hostnqn 2> /dev/null || continue
                device=
                head=$(grep -lx "$(cat $controller/subsysnqn)" /sys/class/nvme-subsystem/*/subsysnqn)
                for path in $controller/nvme*n* ${{head%/*}}/nvme*n*; do
                    [ -b "/dev/${{path##*/}}" ] && device=${{path##*/}}
                done
                echo $(cat $controller/subsysnqn $controller/state) $device
            done
        """)
        found: dict[str, Session] = {}
        for line in said.splitlines():
            nqn, state, *device = line.split()
            assert nqn not in found, f"{node} has two sessions with {nqn}:\n{said}"
            found[nqn] = Session(state, "".join(device))
        return found

    def device(self, node: str, volume: Volume) -> str:
        """Return the name of a volume's block device on a node, ``nvme0n1``."""
        device = self.sessions(node)[volume.nqn].device
        assert device, f"{node} has no device of {volume.handle}"
        return device

    def wait_live(self, node: str, volume: Volume) -> None:
        """Wait until a node is connected."""

        def live() -> bool:
            sessions = self.sessions(node)
            assert sessions[volume.nqn].state == "live", sessions
            return True

        eventually(f"{node} is connected to {volume.handle}", live, timeout=BACK_TIMEOUT, interval=0.2)

    def wait_broken_off(self) -> None:
        """Wait until every kernel that had a session has noticed that it is lost."""

        def broken() -> bool:
            for node in self.kubelets:
                if self.guest(node).running:
                    states = {session.state for session in self.sessions(node).values()}
                    assert "live" not in states, f"{node}: {states}"
            return True

        eventually("all sessions are broken off", broken, timeout=60, interval=0.2)

    def left_overs(self, node: str) -> list[str]:
        """Return what kubelet and driver should not have left on a node: sessions, mounts, loop devices."""
        there = self.guest(node).sh(
            f"grep -E 'kubernetes.io.csi|{DRIVER}/' /proc/self/mountinfo; losetup --noheadings --list; true"
        )
        return [*(f"{nqn}: {session}" for nqn, session in self.sessions(node).items()), *there.splitlines()]

    def wait_clean(self, node: str) -> None:
        """Wait until nothing is left over on a node."""

        def clean() -> bool:
            assert not (left := self.left_overs(node)), left
            return True

        eventually(f"nothing is left on {node}", clean, timeout=60, interval=0.2)

    # What breaks

    def lose(self, node: str) -> None:
        """Cut a node's power, and say of it what the node lifecycle controller and then the administrator say of such a node."""
        self.guest(node).kill()
        conditions = [
            {**condition, "status": "Unknown"} if condition["type"] == "Ready" else condition
            for condition in self.plane.api.get("Node", node)["status"]["conditions"]
        ]
        self.plane.api.patch("Node", node, {"status": {"conditions": conditions}}, subresource="status")
        self.plane.api.patch("Node", node, {"spec": {"taints": [OUT_OF_SERVICE]}})

    def restart_box(self) -> None:
        """Switch the box on again; it offers what it offered before."""
        if not self.box.guest.running:
            self.box.guest.start()
        if not self.box.running:
            self.box.start()

    def restart_node(self, node: str) -> None:
        """Switch a node on again and take back what was said of it; what runs is left alone."""
        kubelet, plugin = self.kubelets[node], self.plugins[node]
        if not kubelet.guest.running:
            kubelet.guest.start()
        if not kubelet.containerd.running:
            kubelet.launch()
        elif not kubelet.kubelet.running:
            kubelet.kubelet.start()
        if not plugin.process.running:
            plugin.start()
        kubelet.wait_ready()
        self.wait_registered(node)
        if self.plane.api.get("Node", node)["spec"].get("taints"):
            self.plane.api.patch("Node", node, {"spec": {"taints": None}})

    def wait_registered(self, node: str) -> None:
        """Wait until a kubelet has the driver, under its Node's name."""

        def registered() -> bool:
            drivers = (self.plane.api.find("CSINode", node) or {}).get("spec", {}).get("drivers") or []
            return any((driver["name"], driver["nodeID"]) == (DRIVER, node) for driver in drivers)

        eventually(f"the driver is registered on {node}", registered, timeout=60)

    def recover(self) -> None:
        """Make everything run and reachable again that a test may have broken."""
        for guest in (self.box.guest, *(kubelet.guest for kubelet in self.kubelets.values())):
            if guest.running:
                guest.set_link(Link.STORAGE, up=True)
        self.restart_box()
        for node in self.kubelets:
            self.restart_node(node)
