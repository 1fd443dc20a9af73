"""Exports of a target guest made by hand, through the configfs of the kernel's nvmet (Documentation/nvme in the kernel)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from tests.vm.guests import POOL, Guest

NVMET = Path("/sys/kernel/config/nvmet")
NQN_PREFIX = "nqn.2000-02.com.mikrotik:"


@dataclass(frozen=True)
class Export:
    """A file on the target's disk, offered to every host over NVMe/TCP.

    Its identifiers stay the same over restarts of the target: an initiator takes a namespace with another UUID for another disk.
    """

    target: Guest
    name: str
    size: int = 256 << 20
    port: int = 4421
    uuid: str = field(default_factory=lambda: str(uuid4()))

    @property
    def nqn(self) -> str:
        """The subsystem's name."""
        return f"{NQN_PREFIX}{self.name}"

    @property
    def file(self) -> Path:
        """The file in the target."""
        return POOL / f"{self.name}.img"

    def make(self) -> None:
        """Offer it, also again after a restart of the target."""
        port, subsystem = NVMET / "ports" / str(self.port), NVMET / "subsystems" / self.nqn
        self.target.sh(f"""
            set -e
            [ -e {self.file} ] || truncate -s {self.size} {self.file}
            if mkdir {port} 2> /dev/null; then
                cd {port}
                echo ipv4 > addr_adrfam; echo tcp > addr_trtype
                echo {self.target.address} > addr_traddr; echo {self.port} > addr_trsvcid
            fi
            mkdir -p {subsystem}/namespaces/1
            cd {subsystem}
            echo 1 > attr_allow_any_host
            echo {self.uuid.replace("-", "")[:20]} > attr_serial
            cd namespaces/1
            echo -n {self.file} > device_path; echo {self.uuid} > device_uuid; echo 1 > enable
            ln -s {subsystem} {port}/subsystems/
        """)

    def remove(self) -> None:
        """Take it away, and its file."""
        port, subsystem = NVMET / "ports" / str(self.port), NVMET / "subsystems" / self.nqn
        self.target.sh(f"""
            rm -f {port}/subsystems/{self.nqn}
            rmdir {subsystem}/namespaces/1 {subsystem} {port}
            rm -f {self.file}
        """)

    def connect(self, guest: Guest, host: str = "", *, reconnect_delay: int = 1) -> str:
        """Connect an initiator, for good as the node plugin does, and return the path of the block device.

        ``host`` is the host NQN; without one nvme-cli draws one. ``reconnect_delay`` is in seconds.
        """
        guest.run(
            *(
                "nvme",
                "connect",
                "--transport=tcp",
                f"--traddr={self.target.address}",
                f"--trsvcid={self.port}",
                f"--nqn={self.nqn}",
            ),
            *("--ctrl-loss-tmo=-1", f"--reconnect-delay={reconnect_delay}", *([f"--hostnqn={host}"] if host else [])),
        )
        return guest.sh(f"""
            for i in $(seq 100); do
                for head in $(dirname $(grep -lx {self.nqn} /sys/class/nvme-subsystem/*/subsysnqn))/nvme*n*; do
                    [ -b "/dev/${{head##*/}}" ] && echo -n /dev/${{head##*/}} && exit
                done
                sleep 0.05
            done
            exit 1
        """)

    def disconnect(self, guest: Guest) -> None:
        """Disconnect an initiator, whether it is connected or not."""
        guest.run("nvme", "disconnect", f"--nqn={self.nqn}")

    def state(self, guest: Guest) -> str:
        """Return the state of an initiator's controller as the kernel has it: ``live``, ``connecting``, …; empty without one."""
        found = f"$(dirname $(grep -lx {self.nqn} /sys/class/nvme/*/subsysnqn))/state"
        # Where there is none, what the shell says of that is no state.
        return guest.ask(f"{{ cat {found}; }} 2> /dev/null").output.strip()
