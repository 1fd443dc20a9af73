"""A whole installation on machines: box and nodes are guests, all else runs on the host as in ``tests/ring/stack.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from tests.ring.controlplane import ControlPlane
from tests.ring.installation import install
from tests.ring.stack import Stack
from tests.vm.box import FORWARDS, BoxInGuest
from tests.vm.cluster import RealCluster
from tests.vm.guests import Guest, Guests
from tests.vm.kubelets import KUBELET_PORT, NodeKubelet
from tests.vm.node_plugin import CSI_PORT, METRICS_PORT, NodePlugin
from tests.vm.site import Site

NODES = ("node-a", "node-b")


class VmStack(Stack):
    """A control plane on the host, a box and two nodes in guests; ``boot`` and then ``start_driver`` start it.

    Args:
        say: is told what happens now.

    Attributes:
        nodes: the guests of the nodes, by name.
        site: what runs on them, once they have booted.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__(folder)
        self._say = say

    def __enter__(self) -> Self:
        self.guests = self._ends.enter_context(Guests(self.folder / "guests"))
        self.machine = self.guests.target("box", forwards=FORWARDS)
        ports = [KUBELET_PORT, CSI_PORT, METRICS_PORT]
        self.nodes: dict[str, Guest] = {name: self.guests.initiator(name, forwards=ports) for name in NODES}
        return self

    def boot(self) -> None:
        """Start everything; on return both nodes are Ready and the driver is registered on them."""
        self._say("three machines boot (QEMU): the box, node-a, node-b; beside them etcd, kube-apiserver, kube-controller-manager")
        machines = [self.machine, *self.nodes.values()]
        for machine in machines:
            machine.launch()
        self.plane = self._ends.enter_context(ControlPlane(self.folder / "plane"))
        install(self.plane)
        for machine in machines:
            machine.wait_ready()
        self._say("kernels are up; containerd, kubelet and rds-csi node start on both nodes, the box's SSH and nvmet in the third")
        self.kubelets = {name: NodeKubelet(guest, self.plane) for name, guest in self.nodes.items()}
        self.plugins = {name: NodePlugin(guest, self.plane) for name, guest in self.nodes.items()}
        self.real_box = self._ends.enter_context(contextlib.closing(BoxInGuest(self.machine, version="7.24")))
        # Kubelets come last: what they do all the time would take from the others, which need seconds to load their programs.
        _at_once([self.real_box.start, *(plugin.start for plugin in self.plugins.values())])
        _at_once([kubelet.launch for kubelet in self.kubelets.values()])
        for kubelet in self.kubelets.values():
            kubelet.wait_ready()
        self.site = Site(self.plane, self.real_box, self.kubelets, self.plugins, self.folder / "shim")
        for name in self.nodes:
            self.site.wait_registered(name)
        self.real_cluster = RealCluster(self.plane.api, self.kubelets)
        self.cluster = self.real_cluster

    def start_driver(self) -> None:
        """Start shim, operator and sidecars; what they find installed, such as the kinds of KubeVirt, they use."""
        self._say("both Nodes are Ready, both kubelets know the driver; shim, operator and sidecars start")
        self.the_operator = self.operator()
        self._ends.enter_context(self.site)

    def read(self, machine: Guest, path: str | Path, size: int) -> bytes:
        """Return the first bytes of a file or device of a machine, read past its cache."""
        copy = self.guests.share / f"read-on-{machine.name}"
        machine.run("dd", f"if={path}", f"of=/share/{copy.name}", "bs=1M", f"count={size >> 20}", "iflag=direct", "status=none")
        return copy.read_bytes()


def _at_once(starts: Iterable[Callable[[], object]]) -> None:
    with ThreadPoolExecutor() as pool:
        for start in [pool.submit(start) for start in starts]:
            start.result()
