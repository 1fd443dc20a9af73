"""What this project does on the box, each operation read before and read back after.

Nothing the box says about a change is trusted, silence least: what counts is what is read afterwards. A call that ended with
OutcomeUnknown is followed by a read before anything is sent again.
"""

import asyncio
import contextlib
import enum
import re
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from time import monotonic

from rds_csi.routeros import commands, exchange, readings
from rds_csi.routeros.commands import DiskSpec, Export, FilePath, Slot
from rds_csi.routeros.errors import (
    AlreadyThere,
    BoxBusy,
    BoxError,
    BoxUnreachable,
    Difference,
    DiskInTheWay,
    FileInTheWay,
    MalformedAnswer,
    NoSuchItem,
    OutcomeUnknown,
    ReadBackMismatch,
)
from rds_csi.routeros.exchange import Runner, after_a_change
from rds_csi.routeros.parser import Entry
from rds_csi.routeros.readings import Resource, Sensor, Traffic

SLOTS_IN_A_LINE = 50
"""How many disks are asked about in one command line."""

EXPORT_AGAIN_SECONDS = 20.0
"""For beginning an export again that was ended, however little time its caller has left."""


@dataclass(frozen=True)
class Disk:
    """A file-backed disk as the box has it: ``size`` in bytes, exact. ``nqn`` and ``port`` are None while it is not exported."""

    slot: str
    path: str
    size: int
    exported: bool
    nqn: str | None
    port: int | None
    hosts: frozenset[str] = frozenset()
    """The host NQNs that may connect; empty: every host, or not exported."""

    def is_exported_as(self, export: Export) -> bool:
        """Tell whether it is exported so, to these hosts and no others."""
        found = (self.exported, self.nqn, self.port, self.hosts)
        return found == (True, str(export.nqn), export.port, frozenset(map(str, export.hosts)))

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
    """A row of ``/file``; ``kind`` as printed: ``.img file``, ``directory``, ``disk``."""

    path: str
    kind: str
    size: str = ""
    """As printed, rounded (``10.0GiB``); empty for a directory."""

    @property
    def is_regular(self) -> bool:
        """A file, not a directory or a mount point."""
        return self.kind == "file" or self.kind.endswith("file")


@dataclass(frozen=True)
class Capacity:
    """Size and free space of a mounted file system, in bytes. Images that are sparse may still claim some of what is free."""

    size: int
    free: int
    slot: str = ""


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
        printed = await exchange.read(self._runner, commands.print_disk(slot), deadline)
        found = [entry for entry in printed if entry.values.get("slot") == slot]
        if len(found) > 1:
            raise MalformedAnswer(f"the box printed slot {slot} {len(found)} times")
        return _disk(found[0]) if found else None

    async def disks(self, *, deadline: float) -> tuple[Disk, ...]:
        """Read every file-backed disk on the box, whosoever it is."""
        return tuple(_disk(entry) for entry in await exchange.read(self._runner, commands.print_disks(), deadline))

    async def disks_of(self, path: FilePath, *, deadline: float) -> tuple[Disk, ...]:
        """Read the disks that are made of this file, in whatever slot."""
        found = await exchange.read(self._runner, commands.print_disks_of(path), deadline)
        return tuple(disk for disk in map(_disk, found) if disk.path == path)

    async def disks_below(self, path: FilePath, *, deadline: float) -> tuple[Disk, ...]:
        """Read the disks that are made of files in this directory or deeper, whosoever they are."""
        found = await exchange.read(self._runner, commands.print_disks_below(path), deadline)
        return tuple(disk for disk in map(_disk, found) if disk.path.startswith(f"{path}/"))

    async def file(self, path: FilePath, *, deadline: float) -> File | None:
        """Read the file at this path. None only where the box counted none."""
        for entry in await exchange.read(self._runner, commands.print_file(path), deadline):
            file = _file(entry)
            if file.path == path:
                return file
        return None

    async def files_below(self, path: FilePath, *, deadline: float) -> tuple[File, ...]:
        """Read what lies in this directory and deeper, directories too."""
        found = map(_file, await exchange.read(self._runner, commands.print_files_below(path), deadline))
        return tuple(file for file in found if file.path.startswith(f"{path}/"))

    async def files_named(self, part: str, *, base: FilePath | None = None, deadline: float) -> tuple[File, ...]:
        """Read what has this text in its name or in that of a directory above it, on the box or below ``base``; InvalidName."""
        found = map(_file, await exchange.read(self._runner, commands.print_files_named(part), deadline))
        return tuple(file for file in found if base is None or file.path.startswith(f"{base}/"))

    async def capacity(self, mount_point: str, *, deadline: float) -> Capacity:
        """Read size and free space of what is mounted there; NoSuchItem, InvalidName."""
        found = await exchange.read(self._runner, commands.print_mount(mount_point), deadline)
        mounted = [entry for entry in found if entry.values.get("mount-point") == mount_point]
        if len(mounted) != 1:
            raise NoSuchItem(f"{len(mounted)} file systems are mounted at {mount_point}")
        return Capacity(mounted[0].number("size"), mounted[0].number("free"), mounted[0].text("slot"))

    async def health(self, *, deadline: float) -> Mapping[str, Sensor]:
        """Read all sensors by name; a device may have none."""
        return readings.health(await self._runner.run(commands.print_health(), deadline=deadline))

    async def resource(self, *, deadline: float) -> Resource:
        """Read what the box is."""
        return readings.resource(await self._runner.run(commands.print_resource(), deadline=deadline))

    async def traffic(self, slots: Iterable[Slot], *, deadline: float) -> Mapping[str, Traffic]:
        """Read the traffic of these disks by slot; NoSuchItem where the box does not know one of them."""
        found: dict[str, Traffic] = {}
        left = list(slots)
        while left:
            asked, left = left[:SLOTS_IN_A_LINE], left[SLOTS_IN_A_LINE:]
            found |= readings.traffic(await self._runner.run(commands.monitor_traffic(asked), deadline=deadline))
        return found

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
            await exchange.change(self._runner, commands.add_disk(spec), deadline)
        except (OutcomeUnknown, AlreadyThere) as error:
            # It may be there (the link was lost after it was applied; an earlier attempt landed late): look before saying anything.
            with after_a_change():
                disk = await self.disk(spec.slot, deadline=deadline)
            if disk is None:
                raise
            if isinstance(error, AlreadyThere):
                return await self._as_specified(disk, spec, deadline)
            return _checked(disk, spec)
        return _checked(await self._read_back(spec, deadline), spec)

    async def create_disk_of_file(self, spec: DiskSpec, *, deadline: float) -> Disk:
        """Make a disk of the file that lies at the path, grown to the specified size at least, or find it made; as read back.

        Safe to call again after any failure and after a crash at any point: a disk that was made and not grown yet is grown.

        Raises:
            DiskInTheWay: the slot, or the file, belongs to a disk that differs.
            NoSuchItem: no file lies at the path.
            PoolFull: no space to grow.
            ReadBackMismatch: the disk was made, and is not as specified.
        """
        disk = await self.disk(spec.slot, deadline=deadline)
        if disk is None:
            if await self.file(spec.path, deadline=deadline) is None:
                raise NoSuchItem(f"there is no file {spec.path} to make a disk of")
            for other in await self.disks_of(spec.path, deadline=deadline):
                _refuse_cut_slot(other, spec)
                raise DiskInTheWay(other.slot, {"slot": Difference(str(spec.slot), other.slot)})
            try:
                await exchange.change(self._runner, commands.add_disk_of_file(spec), deadline)
            except (OutcomeUnknown, AlreadyThere):
                # It may be there: the link was lost after it was applied, or an earlier attempt landed late.
                with after_a_change():
                    disk = await self.disk(spec.slot, deadline=deadline)
                if disk is None:
                    raise
            else:
                disk = await self._read_back(spec, deadline)
        as_it_is = replace(spec, size=disk.size)
        disk = await self._as_specified(disk, as_it_is, deadline)
        if disk.size < spec.size:
            return _checked(await self.resize_disk(spec.slot, spec.size, deadline=deadline), spec)
        return disk

    async def resize_disk(self, slot: Slot, size: int, *, deadline: float) -> Disk:
        """Grow the disk to exactly this size in bytes, or find it grown; the disk as read back. It is never made smaller.

        Safe to call again after any failure: the size is read before and after.

        Raises:
            NoSuchItem: there is no disk in the slot.
            PoolFull: no space.
            ReadBackMismatch: the box took the command, and the size is another one.
        """
        disk = await self.disk(slot, deadline=deadline)
        if disk is None:
            raise NoSuchItem(f"there is no disk in slot {slot}")
        if disk.size >= size:
            return disk
        doubt: OutcomeUnknown | None = None
        try:
            await exchange.change(self._runner, commands.resize_disk(slot, size), deadline)
        except OutcomeUnknown as error:
            doubt = error
        with after_a_change():
            disk = await self.disk(slot, deadline=deadline)
        if disk is None:
            raise NoSuchItem(f"disk {slot} is gone since it was resized")
        if disk.size != size:
            raise doubt or ReadBackMismatch(f"disk {slot}", {"size": Difference(size, disk.size)})
        return disk

    async def allow_hosts(self, export: Export, *, cycle: bool = False, deadline: float) -> None:
        """Export the disk to these hosts and no others, or find it so; with ``cycle`` every session is dropped as well.

        Linux looks at the list when a host connects, and lets its sessions live (drivers/nvme/target/fabrics-cmd.c); what RouterOS
        does is not known. So the list is changed and read back first: whoever is dropped then and is not on it does not come back.

        Safe to call again after any failure and after a crash at any point: what is there is read first, and where the crash was
        between the end of the export and its beginning, the disk is found without export and gets it back, with the list; its
        sessions were dropped by then. A caller that leaves, or whose time is over, does not come between the two.

        Raises:
            NoSuchItem: there is no disk in the slot.
            DiskInTheWay: it is exported under another NQN.
            ReadBackMismatch: the box took the command and does not keep what it says.
            BoxBusy: the box does not end the export.
        """
        disk = await self.disk(export.slot, deadline=deadline)
        if disk is None:
            raise NoSuchItem(f"there is no disk in slot {export.slot}")
        if disk.nqn not in (None, str(export.nqn)):
            raise DiskInTheWay(export.slot, {"nvme-tcp-server-nqn": Difference(str(export.nqn), disk.nqn)})
        if not disk.is_exported_as(export):
            only_hosts = disk.exported and disk.port == export.port
            command = commands.allow_hosts(export) if only_hosts else commands.export_to_hosts(export)
            await self._set_export(command, export, deadline)
        if cycle and disk.exported:
            await _to_its_end(self._cycle(export, deadline))

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
        trouble = await exchange.remove(self._runner, commands.remove_disk(slot), deadline)
        with after_a_change():
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
        trouble = await exchange.remove(self._runner, commands.remove_file(path), deadline)
        with after_a_change():
            file = await self.file(path, deadline=deadline)
        if file is not None:
            raise trouble or BoxBusy(f"file {path} is still there after its removal")

    # Steps

    async def _cycle(self, export: Export, deadline: float) -> None:
        """End the export and begin it again: once the end may have been sent, also where it was not heard of."""
        try:
            await self._set_export(commands.unexport_disk(export.slot), None, deadline, slot=export.slot)
        except BoxUnreachable:
            raise
        except BoxError:
            with contextlib.suppress(BoxError):
                await self._export_again(export, deadline)
            raise
        await self._export_again(export, deadline)

    async def _export_again(self, export: Export, deadline: float) -> None:
        await self._set_export(commands.export_to_hosts(export), export, max(deadline, monotonic() + EXPORT_AGAIN_SECONDS))

    async def _set_export(self, command: str, export: Export | None, deadline: float, *, slot: Slot | None = None) -> None:
        """Change how a disk is exported (None: not at all), and read it back."""
        doubt: OutcomeUnknown | None = None
        slot = export.slot if export else slot
        assert slot is not None  # noqa: S101 one of the two is there
        try:
            await exchange.change(self._runner, command, deadline)
        except OutcomeUnknown as error:
            doubt = error
        with after_a_change():
            disk = await self.disk(slot, deadline=deadline)
        if disk is None:
            raise NoSuchItem(f"disk {slot} is gone since its export was changed")
        if export is None:
            if disk.exported:
                raise doubt or BoxBusy(f"disk {slot} is still exported after nvme-tcp-export=no")
        elif not disk.is_exported_as(export):
            raise doubt or ReadBackMismatch(f"the export of disk {slot}", _export_differences(disk, export))

    async def _as_specified(self, disk: Disk, spec: DiskSpec, deadline: float) -> Disk:
        """Take the disk that is in the slot already, if it is ours; give its export back to one that only lacks that."""
        differences = disk.differences(spec)
        if not differences:
            return disk
        if disk.exported or differences.keys() & {"file-path", "size"}:
            raise DiskInTheWay(spec.slot, differences)
        await exchange.change(self._runner, commands.export_disk(spec), deadline)
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
        with after_a_change():
            disk = await self.disk(spec.slot, deadline=deadline)
            if disk is not None:
                return disk
            for other in await self.disks_of(spec.path, deadline=deadline):
                _refuse_cut_slot(other, spec)
        raise ReadBackMismatch(f"disk {spec.slot}", {"slot": Difference(str(spec.slot), "not there")})


async def _to_its_end(work: Coroutine[None, None, None]) -> None:
    """Run what must not stop half-way; a caller that is cancelled meanwhile is so only after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody else asks
        raise


def _absolute(path: str) -> str:
    """``/file`` prints no leading slash, ``/disk`` prints one (seen on 7.16): with one everywhere."""
    return "/" + path.lstrip("/")


def _file(entry: Entry) -> File:
    return File(_absolute(entry.text("name")), entry.text("type"), entry.values.get("size", ""))


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
        hosts=_hosts(values.get("nvme-tcp-server-allow-host-name", "")) if exported else frozenset(),
    )


def _export_differences(disk: Disk, export: Export) -> dict[str, Difference]:
    pairs: dict[str, tuple[object, object]] = {
        "nvme-tcp-export": ("yes", "yes" if disk.exported else "no"),
        "nvme-tcp-server-nqn": (str(export.nqn), disk.nqn),
        "nvme-tcp-server-port": (export.port, disk.port),
        "nvme-tcp-server-allow-host-name": (repr(export.host_list), repr(",".join(sorted(disk.hosts)))),
    }
    return {field: Difference(wanted, found) for field, (wanted, found) in pairs.items() if wanted != found}


def _hosts(value: str) -> frozenset[str]:
    """Read a list of hosts in any order; RouterOS separates the elements of a list by commas or semicolons when it prints them."""
    return frozenset(name for name in re.split(r"[,; ]+", value) if name)


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
