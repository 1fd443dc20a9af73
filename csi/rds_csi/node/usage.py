"""Who uses a block device: devices built on it, processes that have it open, mounts in every mount namespace of the host.

What it cannot see: a mount namespace that no process lives in, and a device whose only user is a memory map or io_uring.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rds_csi.node.mountinfo import Mount, mounts_of, read_mountinfo
from rds_csi.node.sysfs import DeviceNumber, holders, partition_numbers

MAX_NAMED: Final = 5
"""Users that a message names; the rest is counted."""

DeviceOf = Callable[[Path], DeviceNumber | None]
"""The number of the block device that a path leads to, or None where it leads to none; raises OSError."""


class UsersUnknown(Exception):
    """Not everything could be looked at, so nobody may say that nobody uses the device."""


@dataclass(frozen=True, slots=True, order=True)
class User:
    """Somebody who uses the device, for a message."""

    how: str
    process: str = ""
    """Name of the program."""

    pid: int = 0
    """0 where it is no process."""

    def __str__(self) -> str:
        return f"{self.process} (pid {self.pid}) {self.how}" if self.pid else self.how


def describe(users: tuple[User, ...]) -> str:
    """Return the users as a part of a sentence, at most ``MAX_NAMED`` of them by name."""
    more = f" and {len(users) - MAX_NAMED} more" if len(users) > MAX_NAMED else ""
    return "; ".join(str(user) for user in users[:MAX_NAMED]) + more


def device_of(path: Path) -> DeviceNumber | None:
    """Return the number of the block device that the path leads to, or None where that is no block device; raises OSError."""
    status = path.stat()
    if not stat.S_ISBLK(status.st_mode):
        return None
    return DeviceNumber(os.major(status.st_rdev), os.minor(status.st_rdev))


def users_of(
    number: DeviceNumber, *, sysfs: Path, proc: Path, device_of: DeviceOf = device_of, own_pid: int | None = None
) -> tuple[User, ...]:
    """Return all users of a disk and of its partitions; empty means that there is none.

    ``proc`` is the host's (hostPID), else other pods' processes are not in it. Raises UsersUnknown where a process cannot be
    looked at, and SysfsUnreadable. Blocks: run it in a thread.
    """
    numbers = (number, *partition_numbers(sysfs, number))
    found = [User(f"device {name} is built on it") for one in numbers for name in holders(sysfs, one)]
    found += _loop_devices(numbers, sysfs, proc, device_of)
    seen: set[str] = set()
    for process in _processes(proc):
        try:
            found += _process_users(process, frozenset(numbers), seen, device_of, own_pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended while it was looked at, and holds nothing any more.
        except OSError as error:
            raise UsersUnknown(f"process {process.name} cannot be looked at: {error.strerror}") from error
    return tuple(sorted(set(found)))


def filesystem_users(number: DeviceNumber, *, proc: Path) -> tuple[User, ...]:
    """Return the processes that have a file or directory of a mounted file system in use; what cannot be looked at is left out.

    For the words of a refusal, when the kernel has said already that there are such. Blocks: run it in a thread.
    """
    found = set()
    for process in _processes(proc):
        with suppress(OSError):
            places = (process / "cwd", process / "root", *(process / "fd").iterdir())
            if any(_lies_on(place, number) for place in places):
                found.add(User("has files of it in use", _name(process), int(process.name)))
    return tuple(sorted(found))


def _lies_on(place: Path, number: DeviceNumber) -> bool:
    with suppress(OSError):
        device = place.stat().st_dev
        return DeviceNumber(os.major(device), os.minor(device)) == number
    return False


def _loop_devices(numbers: tuple[DeviceNumber, ...], sysfs: Path, proc: Path, device_of: DeviceOf) -> Iterator[User]:
    """Yield loop devices on the disk: the kubelet makes one for every block volume, and holders do not show them."""
    for file in sorted((sysfs / "class" / "block").glob("loop*/loop/backing_file")):
        with suppress(FileNotFoundError):
            backing = file.read_text().strip()
            # Its path as the host's first process sees it; a node that was removed meanwhile has "(deleted)" behind it.
            if device_of(proc / "1" / "root" / backing.removesuffix(" (deleted)").lstrip("/")) in numbers:
                yield User(f"loop device {file.parent.parent.name} is set up on {backing}")


def _process_users(
    process: Path, numbers: frozenset[DeviceNumber], seen: set[str], device_of: DeviceOf, own_pid: int | None
) -> Iterator[User]:
    pid = int(process.name)
    if pid != own_pid and any(_open_device(file, device_of) in numbers for file in (process / "fd").iterdir()):
        yield User("has the device open", _name(process), pid)
    namespace = str((process / "ns" / "mnt").readlink())
    if namespace not in seen:
        for mount in mounts_of(_mounts(process), numbers):
            yield User(f"sees it mounted at {mount.mount_point}", _name(process), pid)
        # Only now: a process that ends half-way must not stand for its namespace.
        seen.add(namespace)


def _mounts(process: Path) -> tuple[Mount, ...]:
    try:
        return read_mountinfo(process)
    except OSError as error:
        if error.errno == errno.EINVAL:  # What the kernel says of a process that has let go of its namespaces: it ends.
            raise ProcessLookupError from error
        raise


def _open_device(file: Path, device_of: DeviceOf) -> DeviceNumber | None:
    try:
        return device_of(file)
    except (FileNotFoundError, ProcessLookupError):
        return None  # It was closed meanwhile.


def _processes(proc: Path) -> list[Path]:
    try:
        found = sorted((entry for entry in proc.iterdir() if entry.name.isdecimal()), key=lambda entry: int(entry.name))
    except OSError as error:
        raise UsersUnknown(f"{proc} cannot be read: {error.strerror}") from error
    if not found:
        raise UsersUnknown(f"{proc} shows no process: it is not mounted")
    return found


def _name(process: Path) -> str:
    with suppress(OSError):
        return (process / "comm").read_text(errors="replace").strip()
    return "?"
