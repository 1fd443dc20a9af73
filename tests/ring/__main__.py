"""``./justw ring``: a ring to look around in, until Ctrl-C."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path

from rich.console import Console

from tests.ring.controlplane import ControlPlane
from tests.ring.installation import install
from tests.ring.kubelet import Kubelet


def main() -> None:
    """Start a control plane with the manifests installed, print how to reach it, end it on SIGINT or SIGTERM."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="rds-csi-ring-") as folder, ControlPlane(Path(folder)) as plane, Kubelet(plane.api):
        install(plane)
        ended = threading.Event()
        # Before the first line is out: whoever reads it may end the ring at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        console.print("ring: ready; Ctrl-C ends it", soft_wrap=True)
        print(f"export KUBECONFIG={plane.kubeconfig}")
        print(f"export PATH={plane.binaries['kubectl'].parent}:$PATH", flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
