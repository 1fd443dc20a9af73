"""Btrfs subvolumes on the box: make, snapshot, copy, remove; each operation read before and read back after.

From MikroTik's manual, pages "Btrfs" and "Btrfs subvolumes and snapshots" (RouterOS 7.18 and newer, package rose-storage); never
seen on hardware. A subvolume appears as a directory in ``/file``; ``name`` in its own menu is the last component only, and removal
is by that name, so nothing is done where two have the same.
"""

from rds_csi.routeros import commands, exchange
from rds_csi.routeros.box import Box
from rds_csi.routeros.commands import FilePath, Label
from rds_csi.routeros.errors import (
    AlreadyThere,
    BoxBusy,
    CommandFailed,
    Difference,
    DiskInTheWay,
    InvalidName,
    NoSuchItem,
    NotUnderstood,
    OutcomeUnknown,
    ReadBackMismatch,
    SubvolumeInTheWay,
    SubvolumesMissing,
)
from rds_csi.routeros.exchange import Runner, after_a_change

FILE_SYSTEM = "btrfs"


class Subvolumes:
    """Typed operations on the subvolumes of one box; ``deadline`` is always a reading of ``time.monotonic``.

    Every operation may raise what ``Box``'s do, and SubvolumesMissing where the file system of the path has none to offer.
    """

    def __init__(self, runner: Runner) -> None:
        """``runner`` is a Transport."""
        self._runner = runner
        self._box = Box(runner)
        self._labels: dict[str, Label] = {}

    async def label(self, mount_point: str, *, deadline: float) -> Label:
        """Return the label of the Btrfs that is mounted there: by it the box names the file system of a new subvolume."""
        if mount_point not in self._labels:
            self._labels[mount_point] = await self._look_for_btrfs(mount_point, deadline)
        return self._labels[mount_point]

    async def exists(self, path: FilePath, *, deadline: float) -> bool:
        """Tell whether the subvolume is there; SubvolumeInTheWay where that cannot be said of this path."""
        return _is_there(path, *await self._count(path, deadline))

    async def create(self, path: FilePath, *, parent: FilePath | None = None, read_only: bool = False, deadline: float) -> bool:
        """Make the subvolume, or find it made; empty, or with what ``parent`` holds in this moment. Whether it was made now.

        Safe to call again after any failure and after a crash at any point: it is there in whole or not at all.

        Raises:
            NoSuchItem: there is no subvolume ``parent``.
            SubvolumeInTheWay: something else has this path, or this last name.
            ReadBackMismatch: the box said nothing and made nothing.
        """
        label = await self.label(path.mount_point, deadline=deadline)
        subvolumes, rows = await self._count(path, deadline)
        if _is_there(path, subvolumes, rows):
            return False
        if subvolumes:
            raise SubvolumeInTheWay(f"another subvolume of the box is called {path.last_name}: {path} could not be told from it")
        if parent is not None and not await self.exists(parent, deadline=deadline):
            raise NoSuchItem(f"there is no subvolume {parent}")
        await self._make_directory(path.parent, deadline)
        doubt: CommandFailed | OutcomeUnknown | None = None
        try:
            await exchange.change(self._runner, commands.add_subvolume(path, label, parent=parent, read_only=read_only), deadline)
        except (AlreadyThere, OutcomeUnknown) as error:
            doubt = error
        with after_a_change():
            there = await self.exists(path, deadline=deadline)
        if not there:
            raise doubt or ReadBackMismatch(f"subvolume {path}", {"name": Difference(path.last_name, "not there")})
        return True

    async def remove(self, path: FilePath, *, holding: str, deadline: float) -> None:
        """Remove the subvolume with the one file ``holding`` in it, or find it gone.

        Safe to call again after any failure: one that is gone is found gone.

        Raises:
            SubvolumeInTheWay: it holds anything else, or cannot be told from another one.
            DiskInTheWay: a disk is made of a file in it.
            BoxBusy: the box says nothing and keeps it.
        """
        if not await self.exists(path, deadline=deadline):
            return
        for file in await self._box.files_named(path.last_name, deadline=deadline):
            if file.path.startswith(f"{path}/"):
                if file.path != f"{path}/{holding}":
                    raise SubvolumeInTheWay(f"{path} holds {file.path}, which is not ours: it is not removed")
            elif f"/{path.last_name}/" in file.path:
                # One of them may be a plain directory, as /file/copy makes them, and the subvolume of that name the other one. One
                # with nothing in it, as a snapshot of the directory above shows in place of each subvolume, has nothing to lose.
                raise SubvolumeInTheWay(
                    f"the box removes subvolumes by their last name, and {file.path} lies in another of the name: {path} is not "
                    "removed; rename or remove one of the two by hand"
                )
        for disk in await self._box.disks_below(path, deadline=deadline):
            raise DiskInTheWay(disk.slot, {"file-path": Difference("no longer in use", disk.path)})
        trouble = await exchange.remove(self._runner, commands.remove_subvolume(path), deadline)
        with after_a_change():
            there = await self.exists(path, deadline=deadline)
        if there:
            raise trouble or BoxBusy(f"subvolume {path} is still there after its removal")

    async def _look_for_btrfs(self, mount_point: str, deadline: float) -> Label:
        found = [
            entry
            for entry in await exchange.read(self._runner, commands.print_mount(mount_point), deadline)
            if entry.values.get("mount-point") == mount_point
        ]
        if len(found) != 1:
            raise NoSuchItem(f"{len(found)} file systems are mounted at {mount_point}")
        if (kind := found[0].values.get("fs", "-")) != FILE_SYSTEM:
            raise SubvolumesMissing(f"the file system at {mount_point} is {kind}, not {FILE_SYSTEM}")
        try:
            await exchange.count(self._runner, commands.count_subvolumes(), 1, deadline)
        except NotUnderstood as error:
            raise SubvolumesMissing(
                f"no /disk/btrfs/subvolume (RouterOS 7.18 and package rose-storage have it): {error}"
            ) from error
        try:
            return Label(found[0].text("fs-label"))
        except InvalidName as error:
            raise SubvolumesMissing(f"the file system at {mount_point} cannot be named in a command: {error}") from error

    async def _count(self, path: FilePath, deadline: float) -> tuple[int, int]:
        subvolumes, rows = await exchange.count(self._runner, commands.count_subvolume(path), 2, deadline)
        return subvolumes, rows

    async def _make_directory(self, path: FilePath, deadline: float) -> None:
        """Make the directory that a subvolume is to lie in, where it is missing: as a subvolume, the one documented way."""
        if path.below_mount_point and await self._box.file(path, deadline=deadline) is None:
            await self.create(path, deadline=deadline)


def _is_there(path: FilePath, subvolumes: int, rows: int) -> bool:
    """Tell it from how many subvolumes have the last name, and how many files and directories the path."""
    if not rows:
        return False
    if subvolumes == 1:
        return True
    if subvolumes:
        raise SubvolumeInTheWay(f"{subvolumes} subvolumes of the box are called {path.last_name}; remove all but {path} by hand")
    raise SubvolumeInTheWay(f"{path} exists and is no subvolume")
