"""What this project does on the box, each operation read before and read back after.

Nothing the box says about a change is trusted, silence least: what counts is what is read afterwards. A call that ended with
OutcomeUnknown is followed by a read before anything is sent again.
"""

import contextlib
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from rds_csi.routeros import commands, parser
from rds_csi.routeros.commands import DiskSpec, FilePath, Slot
from rds_csi.routeros.errors import (
    AlreadyThere,
    BoxBusy,
    BoxUnreachable,
    Difference,
    DiskInTheWay,
    FileInTheWay,
    MalformedAnswer,
    NoSuchItem,
    OutcomeUnknown,
    ReadBackMismatch,
)
from rds_csi.routeros.parser import Entry, Output

READ_ATTEMPTS = 3


class Runner(Protocol):
    """What runs command lines; see ``Transport.run``."""

    async def run(self, command: str, *, deadline: float) -> Output:
        """Run one command line by the deadline (``time.monotonic``)."""


@dataclass(frozen=True)
class Disk:
    """A file-backed disk as the box has it: ``size`` in bytes, exact. ``nqn`` and ``port`` are None while it is not exported."""

    slot: str
    path: str
    size: int
    exported: bool
    nqn: str | None
    port: int | None

    def differences(self, spec: DiskSpec) -> dict[str, Difference]:
        """Name the fields that are not as the specification wants them."""
        pairs: dict[str, tuple[object, object]] = {
            "slot": (str(spec.slot), self.slot),
            "file-path": (str(spec.path), self.path),
            "size": (spec.size, self.size),
            "nvme-tcp-export": (True, self.exported),
            "nvme-tcp-server-nqn": (str(spec.nqn), self.nqn),
            "nvme-tcp-server-port": (spec.port, self.port),
        }
        return {field: Difference(wanted, found) for field, (wanted, found) in pairs.items() if wanted != found}


@dataclass(frozen=True)
class File:
    """A row of ``/file`` without its (rounded) size; ``kind`` as printed: ``.img file``, ``directory``, ``disk``."""

    path: str
    kind: str

    @property
    def is_regular(self) -> bool:
        """A file, not a directory or a mount point."""
        return self.kind == "file" or self.kind.endswith("file")


@dataclass(frozen=True)
class Capacity:
    """Size and free space of a mounted file system, in bytes. Images that are sparse may still claim some of what is free."""

    size: int
    free: int


class Leftover(enum.Enum):
    """What ``create_disk`` does with a file that lies at its path without a disk."""

    REFUSE = "refuse"
    """FileInTheWay: it may hold somebody's data."""
    REMOVE = "remove"
    """Remove it first. Right only where it can be nothing but a remnant of making or deleting this very volume."""


class Box:
    """Typed operations on one box. ``deadline`` is always a reading of ``time.monotonic``.

    Every operation may raise what ``Transport.run`` raises (BoxUnreachable, OutcomeUnknown), CommandFailed or a subclass for
    what the box refuses, and MalformedAnswer for what cannot be read.
    """

    def __init__(self, runner: Runner) -> None:
        """``runner`` is a Transport."""
        self._runner = runner

    # Reading

    async def disk(self, slot: Slot, *, deadline: float) -> Disk | None:
        """Read the disk in this slot. None only where the box counted none."""
        found = [entry for entry in await self._read(commands.print_disk(slot), deadline) if entry.values.get("slot") == slot]
        if len(found) > 1:
            raise MalformedAnswer(f"the box printed slot {slot} {len(found)} times")
        return _disk(found[0]) if found else None

    async def disks(self, *, deadline: float) -> tuple[Disk, ...]:
        """Read every file-backed disk on the box, whosoever it is."""
        return tuple(_disk(entry) for entry in await self._read(commands.print_disks(), deadline))

    async def disks_of(self, path: FilePath, *, deadline: float) -> tuple[Disk, ...]:
        """Read the disks that are made of this file, in whatever slot."""
        found = await self._read(commands.print_disks_of(path), deadline)
        return tuple(disk for disk in map(_disk, found) if disk.path == path)

    async def file(self, path: FilePath, *, deadline: float) -> File | None:
        """Read the file at this path. None only where the box counted none."""
        for entry in await self._read(commands.print_file(path), deadline):
            if _absolute(entry.text("name")) == path:
                return File(str(path), entry.text("type"))
        return None

    async def capacity(self, mount_point: str, *, deadline: float) -> Capacity:
        """Read size and free space of what is mounted there; NoSuchItem, InvalidName."""
        found = await self._read(commands.print_mount(mount_point), deadline)
        mounted = [entry for entry in found if entry.values.get("mount-point") == mount_point]
        if len(mounted) != 1:
            raise NoSuchItem(f"{len(mounted)} file systems are mounted at {mount_point}")
        return Capacity(mounted[0].number("size"), mounted[0].number("free"))

    # Changing

    async def create_disk(self, spec: DiskSpec, *, leftover: Leftover = Leftover.REFUSE, deadline: float) -> Disk:
        """Make the disk as specified, or find it made; the disk as read back.

        Safe to call again after any failure and after a crash at any point: before the add nothing is there; after it the disk is
        there as specified and is found; the box itself refuses a second disk in the slot.

        Raises:
            DiskInTheWay: the slot, or the file, belongs to a disk that differs.
            FileInTheWay: a file lies at the path and ``leftover`` does not say to remove it.
            PoolFull: no space.
            ReadBackMismatch: the disk was made, and is not as specified.
        """
        if (disk := await self.disk(spec.slot, deadline=deadline)) is not None:
            return await self._as_specified(disk, spec, deadline)
        rival = await self._clear_the_way(spec, leftover, deadline)
        if rival is not None:
            return await self._as_specified(rival, spec, deadline)
        try:
            await self._change(commands.add_disk(spec), deadline)
        except (OutcomeUnknown, AlreadyThere) as error:
            # It may be there (the link was lost after it was applied; an earlier attempt landed late): look before saying anything.
            with _after_a_change():
                disk = await self.disk(spec.slot, deadline=deadline)
            if disk is None:
                raise
            if isinstance(error, AlreadyThere):
                return await self._as_specified(disk, spec, deadline)
            return _checked(disk, spec)
        return _checked(await self._read_back(spec, deadline), spec)

    async def delete_disk(self, slot: Slot, *, path: FilePath | None = None, deadline: float) -> None:
        """Remove the disk, or find it gone; its file stays. With ``path``: only a disk of that file.

        Safe to call again after any failure: a disk that is gone is found gone.

        Raises:
            DiskInTheWay: the slot holds a disk of another file.
            BoxBusy: the box does not let go of it, or says nothing and keeps it.
        """
        disk = await self.disk(slot, deadline=deadline)
        if disk is None:
            return
        if path is not None and disk.path != path:
            raise DiskInTheWay(slot, {"file-path": Difference(str(path), disk.path)})
        trouble = await self._remove(commands.remove_disk(slot), deadline)
        with _after_a_change():
            disk = await self.disk(slot, deadline=deadline)
        if disk is not None:
            raise trouble or BoxBusy(f"disk {slot} is still there after its removal")

    async def delete_file(self, path: FilePath, *, deadline: float) -> None:
        """Remove the file, or find it gone.

        Safe to call again after any failure: a file that is gone is found gone.

        Raises:
            DiskInTheWay: a disk is still made of this file.
            FileInTheWay: a directory or a mount point lies there.
            BoxBusy: the box says nothing and keeps it.
        """
        file = await self.file(path, deadline=deadline)
        if file is None:
            return
        if not file.is_regular:
            raise FileInTheWay(f"{path} is no file but a {file.kind}: it is not removed")
        for disk in await self.disks_of(path, deadline=deadline):
            raise DiskInTheWay(disk.slot, {"file-path": Difference("no longer in use", disk.path)})
        trouble = await self._remove(commands.remove_file(path), deadline)
        with _after_a_change():
            file = await self.file(path, deadline=deadline)
        if file is not None:
            raise trouble or BoxBusy(f"file {path} is still there after its removal")

    # Steps

    async def _as_specified(self, disk: Disk, spec: DiskSpec, deadline: float) -> Disk:
        """Take the disk that is in the slot already, if it is ours; give its export back to one that only lacks that."""
        differences = disk.differences(spec)
        if not differences:
            return disk
        if disk.exported or differences.keys() & {"file-path", "size"}:
            raise DiskInTheWay(spec.slot, differences)
        await self._change(commands.export_disk(spec), deadline)
        exported = await self._read_back(spec, deadline)
        if differences := exported.differences(spec):
            # Not a mismatch of something that was just made: this disk was there before and may hold data.
            raise DiskInTheWay(spec.slot, differences)
        return exported

    async def _clear_the_way(self, spec: DiskSpec, leftover: Leftover, deadline: float) -> Disk | None:
        """No file may lie at the path: what the box does with one that does is not known, and it may hold data.

        Returns the disk that another caller has made in our slot since we looked there.
        """
        if await self.file(spec.path, deadline=deadline) is None:
            return None
        for disk in await self.disks_of(spec.path, deadline=deadline):
            if disk.slot == spec.slot:
                return disk
            _refuse_cut_slot(disk, spec)
            raise DiskInTheWay(disk.slot, {"slot": Difference(str(spec.slot), disk.slot)})
        if leftover is Leftover.REFUSE:
            raise FileInTheWay(f"file {spec.path} exists and no disk is made of it: it may hold data")
        await self.delete_file(spec.path, deadline=deadline)
        return None

    async def _read_back(self, spec: DiskSpec, deadline: float) -> Disk:
        with _after_a_change():
            disk = await self.disk(spec.slot, deadline=deadline)
            if disk is not None:
                return disk
            for other in await self.disks_of(spec.path, deadline=deadline):
                _refuse_cut_slot(other, spec)
        raise ReadBackMismatch(f"disk {spec.slot}", {"slot": Difference(str(spec.slot), "not there")})

    async def _read(self, command: str, deadline: float) -> tuple[Entry, ...]:
        """Read, again where the answer does not add up: something may have come or gone between the print and the count."""
        for attempt in range(1, READ_ATTEMPTS + 1):
            output = await self._runner.run(command, deadline=deadline)
            try:
                return parser.entries(output)
            except MalformedAnswer:
                if attempt == READ_ATTEMPTS:
                    raise
        raise AssertionError

    async def _change(self, command: str, deadline: float) -> None:
        parser.expect_silence(await self._runner.run(command, deadline=deadline))

    async def _remove(self, command: str, deadline: float) -> OutcomeUnknown | NoSuchItem | None:
        """Send a removal. What counts is read afterwards, so a lost answer and "no such item" are returned, not raised."""
        try:
            await self._change(command, deadline)
        except (OutcomeUnknown, NoSuchItem) as error:
            return error
        return None


@contextlib.contextmanager
def _after_a_change() -> Iterator[None]:
    """Say of a read that cannot be sent after a change what that means for the whole: not that nothing was sent."""
    try:
        yield
    except BoxUnreachable as error:
        raise OutcomeUnknown(f"a change was sent and cannot be read back: {error}") from error


def _absolute(path: str) -> str:
    """``/file`` prints no leading slash, ``/disk`` prints one (seen on 7.16): with one everywhere."""
    return "/" + path.lstrip("/")


def _disk(entry: Entry) -> Disk:
    exported = entry.flag("nvme-tcp-export")
    values: Mapping[str, str] = entry.values
    return Disk(
        slot=entry.text("slot"),
        path=_absolute(entry.text("file-path")),
        size=entry.number("size"),
        exported=exported,
        nqn=values.get("nvme-tcp-server-nqn") if exported else None,
        port=entry.number("nvme-tcp-server-port") if exported else None,
    )


def _checked(disk: Disk, spec: DiskSpec) -> Disk:
    if differences := disk.differences(spec):
        raise ReadBackMismatch(f"disk {spec.slot}", differences)
    return disk


def _refuse_cut_slot(disk: Disk, spec: DiskSpec) -> None:
    """Name the one thing that makes a disk appear in a shorter slot: the box keeps only so many characters."""
    if disk.slot != spec.slot and spec.slot.startswith(disk.slot):
        raise ReadBackMismatch(
            f"disk {spec.slot}",
            {"slot": Difference(str(spec.slot), disk.slot)},
            hint=f"The box keeps only {len(disk.slot)} characters of a slot: use --slot-names=short",
        )
