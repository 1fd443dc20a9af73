"""A whole installation in one place: control plane, box, shim, sidecars and operator."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Box, Operator, Shim
from tests.ring.installation import install
from tests.ring.kubelet import Kubelet
from tests.ring.processes import Process
from tests.ring.sidecars import csi_attacher, csi_provisioner
from tests.simulator.box import SimulatedBox

P = TypeVar("P", bound=Process)

BASE_PATH = "/storage-pool/metal-csi"


def reach(box: SimulatedBox) -> Box:
    """Return how a shim reaches a simulated box."""
    host_key = box.private_key.with_name("box-host-key.pub")
    host_key.write_text(box.host_key + "\n")
    return Box(
        address=box.address, port=box.port, user=box.user, key_file=box.private_key, host_key_file=host_key, base_path=BASE_PATH
    )


class Stack:
    """A control plane with the manifests installed, and what is started on it; everything ends with the context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        self.plane = self._ends.enter_context(ControlPlane(self.folder / "plane"))
        install(self.plane)
        self.kubelet = self._ends.enter_context(Kubelet(self.plane.api))
        self.cluster = Cluster(self.plane.api, self.kubelet)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ends.close()

    def box(self) -> SimulatedBox:
        """Start a box."""
        return self._ends.enter_context(SimulatedBox(self.folder / "box"))

    def shim(self, box: Box, name: str = "shim", extra: tuple[str, ...] = ()) -> Shim:
        """Start a shim."""
        return self._started(Shim(self.plane, self.folder / name, box, extra=extra))

    def operator(self, name: str = "operator", box: Box | None = None, extra: tuple[str, ...] = ()) -> Operator:
        """Start an operator; it looks at the box where one is named."""
        return self._started(Operator(self.plane, self.folder / name, name=name, box=box, extra=extra))

    def sidecars(self, shim: Shim) -> list[Process]:
        """Start csi-provisioner and csi-attacher beside a shim."""
        logs = self.folder / "logs"
        return [self._started(make(self.plane, shim.socket, logs)) for make in (csi_provisioner, csi_attacher)]

    def _started(self, process: P) -> P:
        self._ends.enter_context(process)
        return process
