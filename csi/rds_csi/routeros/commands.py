r"""The command lines that are sent to the box (pure).

Every value is of a type that is checked against a whitelist when it is made; nothing else can reach a command line, so no value
needs quoting (MikroTik's manual, page "Scripting": ``; [ ] { } ( ) $ " \ #`` and line ends have a meaning, none is allowed here).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from rds_csi.routeros.errors import InvalidName

MAX_SLOT = 128
MAX_PATH = 512
MAX_LABEL = 64
MAX_NQN = 223
"""Bytes of an NVMe qualified name (NVM Express base specification)."""

_SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_COMPONENT = re.compile(r"[A-Za-z0-9_.-]+")
_NQN = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.-]+:[a-z0-9._:-]+")


class Slot(str):
    """The name of a disk on the box: letters, digits and hyphens, at most 128, no hyphen first."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text; InvalidName."""
        if not _SLOT.fullmatch(text) or len(text) > MAX_SLOT:
            raise InvalidName(f"not a slot (letters, digits, hyphens, at most {MAX_SLOT}): {text[:200]!r}")
        return super().__new__(cls, text)


class FilePath(str):
    """An absolute, normalised path on the box, first its mount point: ``/storage-pool/volumes/x.img``; ``[A-Za-z0-9_.-]``."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text; InvalidName."""
        first, *components = text.split("/")
        fine = first == "" and all(_COMPONENT.fullmatch(part) and part not in (".", "..") for part in components)
        if not fine or not components or len(text) > MAX_PATH:
            raise InvalidName(f"not an absolute, normalised path of [A-Za-z0-9_.-] (at most {MAX_PATH}): {text[:200]!r}")
        return super().__new__(cls, text)

    def is_below(self, base: "FilePath") -> bool:
        """Whether this is ``base``'s descendant, by whole components: ``/a/bc`` is not below ``/a/b``."""
        return self.startswith(base + "/")

    def child(self, name: str) -> "FilePath":
        """Join the path of ``name`` in this directory; InvalidName."""
        if "/" in name:
            raise InvalidName(f"not one component of a path: {name[:200]!r}")
        return FilePath(f"{self}/{name}")

    @property
    def parent(self) -> "FilePath":
        """The directory that it lies in; InvalidName for a mount point."""
        return FilePath(self.rsplit("/", 1)[0])

    @property
    def last_name(self) -> str:
        """The last component."""
        return self.rsplit("/", 1)[1]

    @property
    def below_mount_point(self) -> str:
        """As ``/disk/btrfs/subvolume`` names it: relative to the root of its file system; empty for a mount point."""
        return self[1:].partition("/")[2]

    @property
    def mount_point(self) -> str:
        """The first component, which is how ``/disk`` names the mount point."""
        return self.split("/")[1]

    @property
    def file_name(self) -> str:
        """As ``/file`` names it: without the leading slash (seen on 7.16; with it nothing matches)."""
        return self[1:]


class Nqn(str):
    """An NVMe qualified name in lower case, at most 223 bytes: ``nqn.2000-02.com.mikrotik:pvc-…``."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text; InvalidName."""
        if not _NQN.fullmatch(text) or len(text) > MAX_NQN:
            raise InvalidName(f"not an NVMe qualified name in lower case (at most {MAX_NQN} bytes): {text[:300]!r}")
        return super().__new__(cls, text)


class Label(str):
    """The label of a file system, by which ``/disk/btrfs`` names it: ``storage-pool-fs``; ``[A-Za-z0-9_.-]``, at most 64."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text; InvalidName."""
        if not _COMPONENT.fullmatch(text) or len(text) > MAX_LABEL:
            raise InvalidName(f"not a label (letters, digits and _.-, at most {MAX_LABEL}): {text[:200]!r}")
        return super().__new__(cls, text)


@dataclass(frozen=True)
class Export:
    """How a disk is exported over NVMe/TCP: on ``port`` under ``nqn``, to these hosts; to every host where ``hosts`` is empty."""

    slot: Slot
    nqn: Nqn
    port: int
    hosts: frozenset[Nqn]

    def __post_init__(self) -> None:
        """Check the port; InvalidName."""
        if not 0 < self.port < 65536:
            raise InvalidName(f"not a TCP port: {self.port}")

    @property
    def host_list(self) -> str:
        """The value of ``nvme-tcp-server-allow-host-name``: host NQNs, comma separated."""
        return ",".join(sorted(self.hosts))


@dataclass(frozen=True)
class DiskSpec:
    """A file-backed disk as it should be: ``size`` in bytes, exact; exported over NVMe/TCP on ``port`` under ``nqn``."""

    slot: Slot
    path: FilePath
    size: int
    nqn: Nqn
    port: int = 4420

    def __post_init__(self) -> None:
        """Check the numbers; InvalidName."""
        if not 0 < self.port < 65536:
            raise InvalidName(f"not a TCP port: {self.port}")
        if self.path.count("/") < 2:
            raise InvalidName(f"an image lies below a mount point, not at {self.path}")
        file_size(self.size)


def file_size(size: int) -> str:
    """Write the size as ``file-size=`` takes it: in the largest unit that divides it exactly, never rounded.

    Units are binary there (seen on 7.16 and 7.24: ``1T`` reads back as 1 099 511 627 776). Plain bytes were seen over REST
    only, so a size that not even K divides is InvalidName; ``rds_csi.sizes`` makes whole MiB.
    """
    for shift, suffix in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        count, rest = divmod(size, 1 << shift)
        if count > 0 and rest == 0:
            return f"{count}{suffix}"
    raise InvalidName(f"not a whole number of KiB: {size}")


# Reading. A print is followed by the number of items that it should have shown, found and counted by the box itself: an answer
# without it was cut short, and "0" is the positive evidence of absence that silence would not be. (On 7.16 a legend is printed
# where nothing matches; a public driver saw nothing at all on 7.24.) Both commands go in one line, as exec channels take only one.


def _print_and_count(menu: str, condition: str) -> str:
    where = f" where {condition}" if condition else ""
    return f"/{menu} print detail{where}; :put [:len [/{menu} find{where}]]"


def print_disk(slot: Slot) -> str:
    """Read one disk."""
    return _print_and_count("disk", f"slot={slot}")


def print_disks() -> str:
    """Read every file-backed disk."""
    return _print_and_count("disk", "type=file")


def print_disks_of(path: FilePath) -> str:
    """Read the disks whose file path contains the names of this file and its directory; the caller compares whole paths.

    A pattern, because whether the box keeps the leading slash differs (7.24 takes the path without and prints it with one).
    """
    return _print_and_count("disk", f'file-path~"{path.parent.last_name}/{path.last_name}"')


def print_disks_below(path: FilePath) -> str:
    """Read the disks whose file path contains this directory's name; the caller compares whole paths."""
    return _print_and_count("disk", f'file-path~"{path.last_name}/"')


def print_mount(mount_point: str) -> str:
    """Read the file system that is mounted there. Raises InvalidName."""
    if not _COMPONENT.fullmatch(mount_point):
        raise InvalidName(f"not a mount point: {mount_point[:200]!r}")
    return _print_and_count("disk", f'mount-point="{mount_point}"')


def print_file(path: FilePath) -> str:
    """Read one row of ``/file``."""
    return _print_and_count("file", f'name="{path.file_name}"')


def print_files_below(path: FilePath) -> str:
    """Read the rows of ``/file`` whose name contains this directory's; the caller compares whole paths.

    A pattern that begins with a slash or with ^ matches nothing (seen on 7.16).
    """
    return _print_and_count("file", f'name~"{path.file_name}/"')


def print_files_named(part: str) -> str:
    """Read the rows of ``/file`` whose name contains this text; the caller compares whole paths. Raises InvalidName."""
    if not _COMPONENT.fullmatch(part):
        raise InvalidName(f"not a part of a file's name: {part[:200]!r}")
    return _print_and_count("file", f'name~"{part}"')


def count_subvolumes() -> str:
    """Count the subvolumes of all file systems: an error where the box has none to offer."""
    return ":put [:len [/disk/btrfs/subvolume find]]"


def count_subvolume(path: FilePath) -> str:
    """Count the subvolumes of this last name, then the files and directories at the path.

    The layout of ``/disk/btrfs/subvolume/print`` is documented nowhere, and its ``name`` is the last component only (MikroTik's
    manual, page "Btrfs subvolumes and snapshots"): both counts together tell whether it is there, and whether it is the only one.
    """
    named = f':put [:len [/disk/btrfs/subvolume find where name="{path.last_name}"]]'
    return f'{named}; :put [:len [/file find where name="{path.file_name}"]]'


def print_health() -> str:
    """Read all sensors, and count them. Not ``detail``: some menus refuse it, and this one is documented as a table."""
    return "/system health print; :put [:len [/system health find]]"


def print_resource() -> str:
    """Read version and board; the menu has one item, so there is nothing to count."""
    return "/system resource print"


def monitor_traffic(slots: Iterable[Slot]) -> str:
    """Read the traffic of each of these disks once; without ``once`` the command never ends."""
    return "; ".join(f"/disk monitor-traffic {slot} once" for slot in slots)


# Changing


def add_disk(spec: DiskSpec) -> str:
    """Make a disk with its export, in one command.

    One step, as the Go driver does it on 7.16, and not two as in MikroTik's own example: there is no moment, and after a crash no
    disk, with file and slot but without export. Nothing is mounted: by default the box would mount what the guest writes.
    """
    return (
        f"/disk add type=file file-path={spec.path} file-size={file_size(spec.size)} slot={spec.slot}"
        " mount-filesystem=no mount-read-only=no compress=no"
        f" nvme-tcp-export=yes nvme-tcp-server-port={spec.port} nvme-tcp-server-nqn={spec.nqn}"
    )


def export_disk(spec: DiskSpec) -> str:
    """Export a disk that exists."""
    return f"/disk set [find slot={spec.slot}] nvme-tcp-export=yes nvme-tcp-server-port={spec.port} nvme-tcp-server-nqn={spec.nqn}"


def allow_hosts(export: Export) -> str:
    """Say which hosts may connect to a disk that is exported."""
    return f'/disk set [find slot={export.slot}] nvme-tcp-server-allow-host-name="{export.host_list}"'


def export_to_hosts(export: Export) -> str:
    """Export a disk that exists; in one command with its list, so that there is no moment with the export and without the list."""
    return (
        f"/disk set [find slot={export.slot}] nvme-tcp-export=yes nvme-tcp-server-port={export.port}"
        f' nvme-tcp-server-nqn={export.nqn} nvme-tcp-server-allow-host-name="{export.host_list}"'
    )


def unexport_disk(slot: Slot) -> str:
    """End the export of a disk; the disk stays."""
    return f"/disk set [find slot={slot}] nvme-tcp-export=no"


def remove_disk(slot: Slot) -> str:
    """Remove the disk; its file stays (seen on 7.16, and MikroTik's reference of ``/disk``)."""
    return f"/disk remove [find slot={slot}]"


def remove_file(path: FilePath) -> str:
    """Remove the file."""
    return f'/file remove [find name="{path.file_name}"]'


def add_disk_of_file(spec: DiskSpec) -> str:
    """Make a disk with its export of a file that is there, which keeps its size."""
    return (
        f"/disk add type=file file-path={spec.path} slot={spec.slot} mount-filesystem=no mount-read-only=no compress=no"
        f" nvme-tcp-export=yes nvme-tcp-server-port={spec.port} nvme-tcp-server-nqn={spec.nqn}"
    )


def resize_disk(slot: Slot, size: int) -> str:
    """Give a disk another size, in bytes; InvalidName."""
    return f"/disk set [find slot={slot}] file-size={file_size(size)}"


def add_subvolume(path: FilePath, label: Label, *, parent: FilePath | None = None, read_only: bool = False) -> str:
    """Make a subvolume that is empty, or has the contents that ``parent`` has in this moment."""
    kind = " read-only=yes" if read_only else ""
    source = f" parent={parent.last_name}" if parent else ""
    return f"/disk/btrfs/subvolume/add{kind}{source} fs={label} name={path.below_mount_point}"


def remove_subvolume(path: FilePath) -> str:
    """Remove the subvolumes of this last name, with everything in them."""
    return f"/disk/btrfs/subvolume/remove [find where name={path.last_name}]"
