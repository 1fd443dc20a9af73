"""NVMe over Fabrics as the kernel shows it in sysfs: which subsystem is connected how, and which block device it is.

Source: linux, drivers/nvme/host/sysfs.c and multipath.c. A device's name says nothing: with native multipath the controller
holds hidden path devices (``nvme0c0n1``) and the subsystem the disk (``nvme0n1``), without it the controller holds the disk;
numbers are given anew at every connect. So the way is always from the NQN down, and nothing is remembered.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

SECTOR: Final = 512
"""Bytes; the kernel counts every disk's size in these, whatever its logical block size is."""

_DISK = re.compile(r"nvme\d+n\d+")
_CONTROLLER = re.compile(r"nvme\d+")
_SUBSYSTEM = re.compile(r"nvme-subsys\d+")
_NUMBER = re.compile(r"(\d{1,8}):(\d{1,8})")
_VANISHED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})


class SysfsUnreadable(Exception):
    """The tree cannot be read, or holds what no kernel writes: nothing is known, least of all that nothing is there."""


class ControllerState(StrEnum):
    """What a controller does (linux, drivers/nvme/host/sysfs.c, ``nvme_sysfs_show_state``)."""

    NEW = "new"
    LIVE = "live"
    RESETTING = "resetting"
    CONNECTING = "connecting"
    DELETING = "deleting"
    DELETING_NO_IO = "deleting (no IO)"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """A word that this list does not have; taken for not live."""


GOING: Final = frozenset({ControllerState.DELETING, ControllerState.DELETING_NO_IO, ControllerState.DEAD})
"""These do not come back."""


@dataclass(frozen=True, slots=True, order=True)
class DeviceNumber:
    """Major and minor number: what the kernel knows a device by for as long as it exists."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"

    @classmethod
    def parse(cls, text: str) -> DeviceNumber:
        """Read ``259:1``; raises ValueError."""
        if not (match := _NUMBER.fullmatch(text)):
            raise ValueError(f"{text[:40]!r} is no device number")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Controller:
    """One connection of this node to a subsystem."""

    name: str
    nqn: str
    state: ControllerState
    transport: str
    address: str
    """Empty where the transport has none."""

    port: int | None
    host_nqn: str
    host_id: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """A disk of a subsystem as it is called today; compare ``number`` and ``uuid``, never the name."""

    name: str
    number: DeviceNumber
    size_bytes: int
    read_only: bool
    uuid: str
    """Empty where the target gives none."""


@dataclass(frozen=True, slots=True)
class Session:
    """All that this node has of one subsystem."""

    nqn: str
    controllers: tuple[Controller, ...]
    namespaces: tuple[Namespace, ...]

    @property
    def live(self) -> bool:
        """Whether at least one controller is live."""
        return any(controller.state is ControllerState.LIVE for controller in self.controllers)

    @property
    def going(self) -> bool:
        """Whether every controller is on its way out."""
        return bool(self.controllers) and all(controller.state in GOING for controller in self.controllers)


def sessions(sysfs: Path) -> tuple[Session, ...]:
    """Return every subsystem that this node is or was just connected to, by NQN; ``sysfs`` is the mount point.

    None is returned only where the tree can be read: raises SysfsUnreadable otherwise.
    """
    return _sessions(sysfs)


def _sessions(sysfs: Path, wanted: str | None = None) -> tuple[Session, ...]:
    """Return every subsystem, or the one that is wanted: of the others nothing but the names is read."""
    classes = sysfs / "class"
    if not classes.is_dir():
        raise SysfsUnreadable(f"{classes} is no directory: sysfs is not mounted here")
    controllers: dict[str, list[Controller]] = {}
    namespaces: dict[str, dict[str, Namespace]] = {}
    for directory in _children(classes / "nvme", _CONTROLLER):
        if (controller := _controller(directory, wanted)) is None:
            continue
        controllers.setdefault(controller.nqn, []).append(controller)
        namespaces.setdefault(controller.nqn, {}).update(_disks(directory))
    for directory in _children(classes / "nvme-subsystem", _SUBSYSTEM):
        if (nqn := _read(directory / "subsysnqn")) and wanted in {None, nqn}:
            controllers.setdefault(nqn, [])
            namespaces.setdefault(nqn, {}).update(_disks(directory))
    # A subsystem without controller and disk is only a name that the kernel has not freed yet.
    return tuple(
        Session(nqn, tuple(found), tuple(namespaces[nqn].values()))
        for nqn, found in sorted(controllers.items())
        if found or namespaces[nqn]
    )


def find_session(sysfs: Path, nqn: str) -> Session | None:
    """Return what this node has of the subsystem, or None where it is positively not there; raises SysfsUnreadable."""
    return next(iter(_sessions(sysfs, nqn)), None)


def partition_numbers(sysfs: Path, number: DeviceNumber) -> tuple[DeviceNumber, ...]:
    """Return the device numbers of the partitions that the kernel found on a disk; raises SysfsUnreadable."""
    children = _children(sysfs / "dev" / "block" / str(number), re.compile(r"[a-z0-9]+p\d+"))
    return tuple(
        _number(text, child) for child in children if (child / "partition").exists() and (text := _read(child / "dev")) is not None
    )


def holders(sysfs: Path, number: DeviceNumber) -> tuple[str, ...]:
    """Return the names of the devices that are built on this one (device mapper, MD); raises SysfsUnreadable."""
    return tuple(child.name for child in _children(sysfs / "dev" / "block" / str(number) / "holders", re.compile(r".+")))


def present(sysfs: Path, number: DeviceNumber) -> bool:
    """Tell whether the kernel has a block device of this number; raises SysfsUnreadable."""
    directory = sysfs / "dev" / "block"
    if not directory.is_dir():
        raise SysfsUnreadable(f"{directory} is no directory: sysfs is not mounted here")
    return (directory / str(number)).exists()


def renumbered(before: DeviceNumber, now: Session | None) -> bool:
    """Tell whether what stood on a device must be set up anew, for the subsystem's disk is another device now.

    False while the subsystem has no disk: a lost device may come back under its old number.
    """
    return now is not None and bool(now.namespaces) and before not in {namespace.number for namespace in now.namespaces}


def _controller(directory: Path, wanted: str | None) -> Controller | None:
    """Return the controller, or None where it went while it was read, or is of another subsystem than the wanted one."""
    nqn = _read(directory / "subsysnqn")
    if not nqn or wanted not in {None, nqn} or (state := _read(directory / "state")) is None:
        return None
    address = dict(part.partition("=")[::2] for part in (_read(directory / "address") or "").split(","))
    port = address.get("trsvcid", "").strip()
    return Controller(
        name=directory.name,
        nqn=nqn,
        state=ControllerState(state) if state in set(ControllerState) else ControllerState.UNKNOWN,
        transport=_read(directory / "transport") or "",
        address=address.get("traddr", "").strip(),
        port=int(port) if port.isdecimal() else None,
        host_nqn=_read(directory / "hostnqn") or "",
        host_id=_read(directory / "hostid") or "",
    )


def _disks(directory: Path) -> Iterator[tuple[str, Namespace]]:
    for child in _children(directory, _DISK):
        number, size = _read(child / "dev"), _read(child / "size")
        if number is None or size is None or _read(child / "hidden") == "1":
            continue
        if not size.isdecimal():
            raise SysfsUnreadable(f"{child / 'size'} says {size[:40]!r}, which is no number of sectors")
        yield (
            child.name,
            Namespace(
                name=child.name,
                number=_number(number, child),
                size_bytes=int(size) * SECTOR,
                read_only=_read(child / "ro") == "1",
                uuid=_read(child / "uuid") or "",
            ),
        )


def _number(text: str, directory: Path) -> DeviceNumber:
    try:
        return DeviceNumber.parse(text)
    except ValueError as error:
        raise SysfsUnreadable(f"{directory / 'dev'}: {error}") from None


def _children(directory: Path, names: re.Pattern[str]) -> list[Path]:
    """Return the entries of a directory whose whole names match; none where it does not exist."""
    try:
        return sorted(child for child in directory.iterdir() if names.fullmatch(child.name))
    except OSError as error:
        if error.errno in _VANISHED:
            return []
        raise SysfsUnreadable(f"{directory}: {error.strerror}") from error


def _read(file: Path) -> str | None:
    """Return an attribute without blanks around it, or None where it, or its device, is not there (any more)."""
    try:
        return file.read_bytes().decode(errors="replace").strip()
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        raise SysfsUnreadable(f"{file}: {error.strerror}") from error
