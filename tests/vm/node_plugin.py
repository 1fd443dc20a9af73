"""``rds-csi node`` of this checkout as a process of a guest, and calls to it from the host."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import urllib3
import yaml

from tests.ring.controlplane import ControlPlane
from tests.ring.driver import COMMANDS, Metrics
from tests.ring.installation import NAMESPACE
from tests.ring.processes import LOOPBACK
from tests.ring.rpc import Csi
from tests.ring.waiting import eventually
from tests.vm.guests import SHARE, Guest
from tests.vm.kubelets import FromGuests

CSI_PORT = 9000
METRICS_PORT = 9809
NODE = "rds-csi-node"
SOCKET = Path("/var/lib/kubelet/plugins/rds.csi.srvlab.io/csi.sock")
REGISTRY = Path("/var/lib/kubelet/plugins_registry")
BRIDGE = Path(__file__).with_name("bridge.py")


class NodePlugin:
    """The node service of one guest, which forwards ``CSI_PORT`` and ``METRICS_PORT``; the Node has the guest's name.

    It serves its unix socket as on any node, and tells the guest's kubelet, if there is one.

    Attributes:
        process: the process; it may be killed and started again.
    """

    def __init__(self, guest: Guest, plane: ControlPlane, extra: Iterable[str] = ()) -> None:
        self.guest = guest
        folder = guest.share / "plugin" / guest.name
        folder.mkdir(parents=True, exist_ok=True)
        there = SHARE / folder.relative_to(guest.share)
        config = yaml.safe_load(plane.kubeconfig_for(NAMESPACE, NODE, through=FromGuests(plane)).read_text())
        for cluster in (entry["cluster"] for entry in config["clusters"]):
            # As a file, as a pod's account has it: inlined, it would be written to a temporary folder, which a pod has not.
            (folder / "ca.crt").write_bytes(base64.b64decode(cluster.pop("certificate-authority-data")))
            cluster["certificate-authority"] = str(there / "ca.crt")
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        self.process = guest.process(
            "rds-csi-node",
            [COMMANDS / "rds-csi", "node", f"--node-id={guest.name}", f"--metrics-address=:{METRICS_PORT}", *extra],
            env={"KUBECONFIG": str(there / "kubeconfig")},
        )
        self._bridge = guest.process("bridge", [sys.executable, "-I", BRIDGE, str(CSI_PORT), SOCKET])
        self.endpoint = f"{LOOPBACK}:{guest.ports[CSI_PORT]}"

    def start(self) -> Self:
        """Start it and wait until it serves."""
        self.launch()
        self.wait_serving()
        return self

    def launch(self) -> None:
        """Start it without waiting."""
        self.guest.run("mkdir", "-p", REGISTRY, SOCKET.parent)
        self.process.start()
        if not self._bridge.running:
            self._bridge.start()

    def wait_serving(self) -> None:
        """Wait until /healthz answers."""

        def healthy() -> bool:
            assert self._healthy(), self.process.output()[-2000:]
            return True

        # What it imports takes seconds to load on an emulated processor.
        eventually(f"rds-csi node serves on {self.guest.name}", healthy, timeout=300, interval=0.2)

    def kill(self) -> None:
        """SIGKILL, as a crash would have it."""
        self.process.kill()

    def restart(self) -> Self:
        """SIGKILL and start again."""
        self.kill()
        return self.start()

    def csi(self, *, timeout: float = 60.0) -> Csi:
        """Return a client for CSI calls from the host, which closes with its context."""
        return Csi(self.endpoint, timeout=timeout)

    def get(self, path: str) -> tuple[int, str]:
        """GET a path of the HTTP endpoint; return status and body."""
        with urllib3.PoolManager(retries=False, timeout=10.0) as pool:
            answer = pool.request("GET", f"http://{LOOPBACK}:{self.guest.ports[METRICS_PORT]}{path}")
            return answer.status, answer.data.decode()

    def scrape(self) -> Metrics:
        """Return what /metrics says now."""
        status, text = self.get("/metrics")
        assert status == 200, text
        return Metrics(text)

    def _healthy(self) -> bool:
        try:
            return self.get("/healthz")[0] == 200
        except urllib3.exceptions.HTTPError:
            return False
