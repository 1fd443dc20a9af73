"""The simulated box in a target guest: its SSH is a forwarded port, its disks are real exports of the guest's kernel."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from tests.ring.processes import LOOPBACK
from tests.simulator.box import ROOT, SimulatedBox
from tests.simulator.images import Images
from tests.vm.guests import POOL, SHARE, Guest

SSH_PORT = 22
CONTROL_PORT = 2200
FORWARDS = (SSH_PORT, CONTROL_PORT)
"""The ports that a target guest must forward for a box in it."""

START_TIMEOUT = 180.0
"""Seconds; six or so where the machine has nothing else to do."""

CONTROL_TIMEOUT = 30.0


class BoxInGuest(SimulatedBox):
    """A simulated box in a guest, held as one on the host is.

    ``kill`` and ``stop`` end its console, and with it what Kubernetes sees; the guest's kernel goes on serving the disks. A power
    cut is ``guest.kill()``; after ``guest.start()`` it is to be started again, and offers what it offered before.

    Attributes:
        nvme_address: where initiators reach its disks, on the storage network.
    """

    def __init__(self, guest: Guest, **switches: Any) -> None:
        self.guest = guest
        super().__init__(guest.share / guest.name, **switches)
        self._announced = guest.share / guest.name / "announced"
        self.address, self.port = LOOPBACK, guest.ports[SSH_PORT]
        self.nvme_address = guest.address

    def stop(self) -> None:
        """End the process in good order, if it and its guest run."""
        if self.guest.running:
            super().stop()

    def kill(self) -> None:
        """End the process at once, if it and its guest run."""
        if self.guest.running and self._process.running:
            super().kill()

    def backing_file(self, name: str) -> Path:
        """The file in the guest with an image's bytes; the box must run. KeyError where it has no such image."""
        return Images.beside(POOL / "box.json").path(self.files()[name]["image"])

    def _make_process(self) -> Any:
        # asyncssh looks for a library by running gcc and ld, if they are found: seconds on an emulated processor.
        return self.guest.process("simulator", [], env={"PYTHONPATH": str(ROOT), "PATH": "/nowhere"})

    def _launch(self) -> None:
        self._process.argv = self._command_line(
            *("--nvmet", "--pool", str(POOL), "--listen", "0.0.0.0", "--port", str(SSH_PORT), "--control-port", str(CONTROL_PORT))
        )
        self._process.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._announced.exists():
            assert self._process.running, f"the simulator ended in {self.guest.name}; it said:\n{self._process.output()}"
            assert time.monotonic() < deadline, (
                f"the simulator in {self.guest.name} did not listen within {START_TIMEOUT:g} s; it said:\n{self._process.output()}"
            )
            time.sleep(0.1)

    def _there(self, path: Path) -> Path:
        return SHARE / path.relative_to(self.guest.share)

    def _connected(self) -> socket.socket:
        return socket.create_connection((LOOPBACK, self.guest.ports[CONTROL_PORT]), CONTROL_TIMEOUT)
