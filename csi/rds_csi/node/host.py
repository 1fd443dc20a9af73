"""The node as it is found just now, and the smallest changes to its files: what blocks is done in threads with deadlines."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rds_csi.errors import Unavailable
from rds_csi.node import usage
from rds_csi.node.commands import END_GRACE, Command, Output, Run, run
from rds_csi.node.decisions import Place, PlaceKind
from rds_csi.node.filesystem_errors import NO_ERRORS, Errors, errors_of, has_stopped
from rds_csi.node.looks import Looks, LookTooSlow, PathUnusable
from rds_csi.node.mountinfo import Mount, mounts_at, read_mountinfo
from rds_csi.node.sysfs import DeviceNumber, Namespace, Session, SysfsUnreadable, find_session, present
from rds_csi.node.usage import User, UsersUnknown

LOOK_SECONDS: Final = 20.0
USERS_SECONDS: Final = 30.0
"""Every open file of every process is looked at."""

DIRECTORY_MODE: Final = 0o750
DEVICE_MODE: Final = 0o660
READ_ONLY_DEVICE_MODE: Final = 0o440
RESCAN: Final = "rescan_controller"

_closes: Final = itertools.count()
_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Mount points that the node service looks into; tests give others."""

    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")
    """Of the host (hostPID), else other pods' processes are not in it."""

    dev: Path = Path("/dev")


@dataclass(frozen=True, slots=True)
class Seen:
    """A subsystem and a path at one moment."""

    session: Session | None
    path: str
    """As the mount table has it: links in its parent directories are followed."""

    place: Place
    table: tuple[Mount, ...]
    """What this process sees mounted, everywhere."""

    present: frozenset[DeviceNumber]
    """Those devices of the mounts at the path that the kernel has."""

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The mounts at the path, the uppermost last."""
        return mounts_at(self.table, self.path)

    @property
    def numbers(self) -> frozenset[DeviceNumber]:
        """The device numbers of the subsystem's disks."""
        return frozenset(namespace.number for namespace in self.session.namespaces) if self.session else frozenset()


@dataclass(frozen=True, slots=True)
class Host:
    """Looks at the node and changes single files of it; commands are run by whoever decided on them."""

    paths: NodePaths = field(default_factory=NodePaths)
    run_command: Run = run
    looks: Looks = field(default_factory=Looks)

    async def run(self, command: Command, *, within: float) -> Output:
        """Run a command, for at most ``within`` seconds; raises CommandError, and Unavailable where no time is left at all."""
        if within <= 0:
            raise Unavailable(f"no time is left for {command.name}; the call is continued by its repetition")
        # To leave one behind that waits in the kernel takes END_GRACE, and the caller is to hear of it in its time.
        seconds = min(command.seconds, max(within - END_GRACE, within / 2))
        return await self.run_command(Command(command.words, seconds, command.answers))

    async def see(self, nqn: str, path: str) -> Seen:
        """Look at a subsystem and a path.

        Raises SysfsUnreadable, MountTableUnreadable, PathUnusable, and LookTooSlow.
        """
        return await self.looks(f"look at {path}", lambda: self._see(nqn, path), LOOK_SECONDS)

    def _see(self, nqn: str, path: str) -> Seen:
        # The mount table before the place: a mount that comes in between makes the place wrong, and the next step fails on it.
        real = _real(path)
        try:
            table = read_mountinfo(self.paths.proc / "self")
        except OSError as error:
            raise PathUnusable(f"the mount table cannot be read: {error.strerror}") from error
        here = mounts_at(table, real)
        return Seen(
            session=find_session(self.paths.sysfs, nqn),
            path=real,
            place=_place(real, mounted=bool(here)),
            table=table,
            present=frozenset(mount.number for mount in here if present(self.paths.sysfs, mount.number)),
        )

    def device(self, namespace: Namespace) -> str:
        """Return the path of a disk's device; raises Unavailable where another device, or none, is at it."""
        path = self.paths.dev / namespace.name
        try:
            number = usage.device_of(path)
        except OSError as error:
            raise Unavailable(f"{path} cannot be looked at: {error.strerror}") from error
        if number != namespace.number:
            raise Unavailable(f"{path} is not device {namespace.number}, as sysfs has it: is the host's /dev mounted here?")
        return str(path)

    @asynccontextmanager
    async def hold(self, namespace: Namespace) -> AsyncIterator[str]:
        """Hold a disk's device open, and yield a path that leads to this very device, whatever its name is given to meanwhile.

        Names and numbers are given anew at each connect, but no number as long as somebody has its device open.
        """
        path = self.device(namespace)
        try:
            descriptor = await self._open(path, os.O_RDONLY)
        except OSError as error:
            raise Unavailable(f"{path} cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            if DeviceNumber(os.major(status.st_rdev), os.minor(status.st_rdev)) != namespace.number:
                raise Unavailable(f"{path} is not device {namespace.number} any more")
            yield str(self.paths.proc / str(os.getpid()) / "fd" / str(descriptor))
        finally:
            await self._close(path, descriptor)

    async def users(self, session: Session | None) -> tuple[User, ...]:
        """Return who uses the disks of a subsystem; raises UsersUnknown, SysfsUnreadable and LookTooSlow."""
        found: set[User] = set()
        for namespace in session.namespaces if session else ():
            found.update(await self._users(namespace))
        return tuple(sorted(found))

    async def _users(self, namespace: Namespace) -> tuple[User, ...]:
        users = await self.looks(
            f"users of {namespace.name}",
            lambda: usage.users_of(namespace.number, sysfs=self.paths.sysfs, proc=self.paths.proc, own_pid=os.getpid()),
            USERS_SECONDS,
        )
        if not users and await self._claimed(namespace):
            return (User(f"device {namespace.name} is mounted, or in use by the kernel, where no process of this node shows it"),)
        return users

    async def _claimed(self, namespace: Namespace) -> bool:
        """Tell whether the kernel holds the device for one user alone: also a mount in a namespace that no process lives in."""
        path = self.device(namespace)
        try:
            await self._close(path, await self._open(path, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            if error.errno in _GONE:
                return False
            raise UsersUnknown(f"{namespace.name} cannot be opened: {error.strerror}") from error
        return False

    async def _open(self, path: str, flags: int) -> int:
        return await self.looks(
            f"open {path}", lambda: os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK), LOOK_SECONDS, late=_close_aside
        )

    async def _close(self, path: str, descriptor: int) -> None:
        """Close a device. Whoever closes it last writes what a killed mkfs has left in memory, and waits for a lost disk in it."""
        # Each under a name of its own: a number is given anew while its last close still waits.
        with suppress(LookTooSlow):
            await self.looks(f"close {path}, {next(_closes)}", lambda: os.close(descriptor), LOOK_SECONDS)

    async def filesystem_users(self, number: DeviceNumber) -> tuple[User, ...]:
        """Return the processes that have a file or directory of a mounted file system in use, as far as it can be seen."""
        return await self.looks(
            f"files in use on {number}", lambda: usage.filesystem_users(number, proc=self.paths.proc), USERS_SECONDS
        )

    async def space(self, path: str) -> os.statvfs_result:
        """Return the size and the room of the file system at a path; raises PathUnusable, and LookTooSlow."""

        def work() -> os.statvfs_result:
            try:
                return os.statvfs(path)
            except OSError as error:
                raise PathUnusable(f"{path} cannot be measured: {error.strerror}") from error

        return await self.looks(f"measure {path}", work, LOOK_SECONDS)

    async def errors(self, seen: Seen) -> Errors:
        """Return what the file system says of itself that is mounted at the path from the subsystem; raises LookTooSlow."""
        top = seen.mounts[-1] if seen.mounts else None
        disks = seen.session.namespaces if seen.session else ()
        name = next((disk.name for disk in disks if top is not None and disk.number == top.number), "")
        if top is None or not name:
            return NO_ERRORS
        paths = self.paths
        return await self.looks(
            f"errors of {seen.path}", lambda: errors_of(top, name, seen.path, sysfs=paths.sysfs, proc=paths.proc), LOOK_SECONDS
        )

    async def has_stopped(self, seen: Seen) -> bool:
        """Tell whether that file system has stopped after an error; raises LookTooSlow."""
        return bool(seen.mounts) and has_stopped(seen.mounts[-1], await self.errors(seen))

    async def device_nodes_beside(self, path: str, numbers: frozenset[DeviceNumber]) -> tuple[str, ...]:
        """Return what lies beside a path and leads to one of these devices; raises PathUnusable, and LookTooSlow."""

        def work() -> tuple[str, ...]:
            try:
                with os.scandir(os.path.dirname(path)) as entries:  # noqa: PTH120
                    found = [entry.path for entry in entries if entry.path != path]
            except (FileNotFoundError, NotADirectoryError):
                return ()
            except OSError as error:
                raise PathUnusable(f"what lies beside {path} cannot be looked at: {error.strerror}") from error
            return tuple(other for other in sorted(found) if _place(other, mounted=True).number in numbers)

        return await self.looks(f"device nodes beside {path}", work, LOOK_SECONDS)

    async def rescan(self, session: Session) -> None:
        """Have the kernel ask each controller of a subsystem for its disks and their sizes again; raises SysfsUnreadable."""

        def work() -> None:
            for controller in session.controllers:
                try:
                    (self.paths.sysfs / "class" / "nvme" / controller.name / RESCAN).write_text("1")
                except OSError as error:
                    # A controller that is gone or not live has nothing to ask; the size is looked at in any case.
                    if error.errno not in _GONE | {errno.EBUSY, errno.EAGAIN}:
                        raise SysfsUnreadable(f"{controller.name} cannot be asked again: {error.strerror}") from error

        await self.looks(f"rescan of {session.nqn}", work, LOOK_SECONDS)

    # Files

    async def make_directory(self, path: str) -> None:
        """Make a directory and its parents; raises PathUnusable."""
        await self._change(f"make directory {path}", lambda: Path(path).mkdir(DIRECTORY_MODE, parents=True, exist_ok=True))

    async def make_device_node(self, path: str, number: DeviceNumber, *, read_only: bool) -> None:
        """Make a block device node and its parent directory; raises PathUnusable."""
        mode = READ_ONLY_DEVICE_MODE if read_only else DEVICE_MODE

        def work() -> None:
            Path(path).parent.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            os.mknod(path, stat.S_IFBLK | mode, os.makedev(number.major, number.minor))

        await self._change(f"make device node {path}", work)

    async def make_file(self, path: str) -> None:
        """Make an empty file and its parent directory; raises PathUnusable."""

        def work() -> None:
            Path(path).parent.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            Path(path).touch(DEVICE_MODE, exist_ok=False)

        await self._change(f"make file {path}", work)

    async def remove(self, path: str, kind: PlaceKind) -> None:
        """Remove one entry, a directory only where it is empty; raises PathUnusable. One that is gone is removed."""

        def work() -> None:
            entry = Path(path)
            try:
                entry.rmdir() if kind is PlaceKind.DIRECTORY else entry.unlink()
            except FileNotFoundError:
                return

        await self._change(f"remove {path}", work)

    async def _change(self, what: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except OSError as error:
                raise PathUnusable(f"cannot {what}: {error.strerror}") from error

        await self.looks(what, guarded, LOOK_SECONDS)


def _close_aside(descriptor: int) -> None:
    threading.Thread(target=os.close, args=(descriptor,), daemon=True).start()


def _real(path: str) -> str:
    """Return the path as the mount table has it; what is at its end is not followed."""
    parent, name = os.path.split(path.rstrip("/"))
    return str(Path(os.path.realpath(parent)) / name)


def _place(path: str, *, mounted: bool) -> Place:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Place()
    except OSError as error:
        # What is mounted there does not answer any more (EIO of a lost disk): it is a mount all the same.
        if mounted:
            return Place(PlaceKind.DIRECTORY, empty=False)
        raise PathUnusable(f"{path} cannot be looked at: {error.strerror}") from error
    if stat.S_ISBLK(status.st_mode):
        return Place(PlaceKind.BLOCK_DEVICE, number=DeviceNumber(os.major(status.st_rdev), os.minor(status.st_rdev)))
    if stat.S_ISDIR(status.st_mode):
        return Place(PlaceKind.DIRECTORY, empty=not mounted and _empty(path))
    if stat.S_ISREG(status.st_mode):
        return Place(PlaceKind.FILE, empty=status.st_size == 0)
    return Place(PlaceKind.LINK if stat.S_ISLNK(status.st_mode) else PlaceKind.OTHER)


def _empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError as error:
        raise PathUnusable(f"{path} cannot be looked at: {error.strerror}") from error
