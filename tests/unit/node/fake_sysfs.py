"""A sysfs tree as Linux 6.1 shows it, for as many subsystems as a test wants."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

NQN = "nqn.2000-02.com.mikrotik:pvc-one"
OTHER = "nqn.2000-02.com.mikrotik:pvc-two"
UUID = "11111111-2222-4333-8444-555555555555"


@dataclass
class FakeSysfs:
    root: Path
    multipath: bool
    subsystems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("class", "dev/block"):
            (self.root / name).mkdir(parents=True)

    def subsystem(self, nqn: str, number: int) -> Path:
        directory = self.root / "devices/virtual/nvme-subsystem" / f"nvme-subsys{number}"
        if not directory.exists():
            write(directory, subsysnqn=nqn, serial="b44494b7f16371c84c06", iopolicy="numa", model="Linux".ljust(40))
            link(self.root / "class/nvme-subsystem" / directory.name, directory)
        return directory

    def connect(
        self,
        nqn: str = NQN,
        *,
        controller: int = 0,
        subsystem: int = 0,
        state: str = "live",
        address: str = "10.77.0.1",
        port: int = 4420,
        host_nqn: str = "nqn.2014-08.org.nvmexpress:uuid:aaaaaaaa-0000-4000-8000-000000000001",
    ) -> Path:
        """Add a controller; without a disk."""
        directory = self.root / "devices/virtual/nvme-fabrics/ctl" / f"nvme{controller}"
        write(
            directory,
            subsysnqn=nqn,
            state=state,
            transport="tcp",
            address=f"traddr={address},trsvcid={port},src_addr=10.77.0.2",
            hostnqn=host_nqn,
            hostid="7fad80e8-b49c-4d8e-8d54-6b6b8571940c",
            cntlid="1",
        )
        (directory / "hwmon0").mkdir()
        link(self.root / "class/nvme" / directory.name, directory)
        link(self.subsystem(nqn, subsystem) / directory.name, directory)
        return directory

    def disk(
        self,
        nqn: str = NQN,
        *,
        controller: int = 0,
        subsystem: int = 0,
        namespace: int = 1,
        minor: int = 1,
        size: int = 1 << 30,
        read_only: bool = False,
    ) -> Path:
        """Add a disk where this kernel's multipath mode has it: below the subsystem, or below the controller."""
        ctl = self.root / "devices/virtual/nvme-fabrics/ctl" / f"nvme{controller}"
        parent = self.subsystem(nqn, subsystem) if self.multipath else ctl
        if self.multipath:
            path = ctl / f"nvme{subsystem}c{controller}n{namespace}"
            write(path, dev=f"259:{minor + 100}", size=str(size // 512), hidden="1", ana_state="optimized")
            link(self.root / "class/block" / path.name, path)
        disk = parent / (f"nvme{subsystem}n{namespace}" if self.multipath else f"nvme{controller}n{namespace}")
        write(disk, dev=f"259:{minor}", size=str(size // 512), hidden="0", ro=str(int(read_only)), uuid=UUID, nsid=str(namespace))
        (disk / "holders").mkdir()
        (parent / f"ng{disk.name[4:]}").mkdir()
        link(self.root / "class/block" / disk.name, disk)
        link(self.root / "dev/block" / f"259:{minor}", disk)
        return disk


def write(directory: Path, **attributes: str) -> None:
    directory.mkdir(parents=True)
    for name, text in attributes.items():
        (directory / name).write_text(f"{text}\n")


def link(name: Path, target: Path) -> None:
    """Make a relative link, as the kernel does."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.symlink_to(os.path.relpath(target, name.parent))
