"""What is on a device, and the commands that make, mount, grow and unmount file systems. Pure.

Nothing is formatted that is not proven blank: see ``conclude``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rds_csi.capabilities import check_fs_type
from rds_csi.errors import InvalidArgument
from rds_csi.node.commands import Command
from rds_csi.node.sysfs import DeviceNumber

DEFAULT_FS_TYPE: Final = "ext4"
BLANK_TRIES: Final = 3
"""So many looks in a row must agree before a device counts as blank."""

MIN_SECTOR: Final = 512
PROBE_SECONDS: Final = 20.0
MKFS_SECONDS: Final = 600.0
MOUNT_SECONDS: Final = 120.0
"""A journal of a large, dirty file system is replayed in it."""

UNMOUNT_SECONDS: Final = 60.0
GROW_SECONDS: Final = 300.0

ALLOWED_OPTIONS: Final = frozenset(
    {
        "nosuid",
        "nodev",
        "noexec",
        "exec",
        "ro",
        "rw",
        "relatime",
        "noatime",
        "nodiratime",
        "strictatime",
        "lazytime",
        "nolazytime",
        "defaults",
        "sync",
        "async",
        "auto",
        "noauto",
        "user",
        "nouser",
        "_netdev",
    }
)
ENFORCED_OPTIONS: Final = ("nosuid", "nodev")
"""On every mount: a volume's content can come from anywhere. ``noexec`` is the user's choice."""

_WORDS_OF_FSTAB: Final = frozenset({"defaults", "auto", "noauto", "user", "nouser", "_netdev"})
"""Accepted, and of no meaning to a mount that names device and place."""

_PER_MOUNT: Final = ("noexec", "exec", "relatime", "noatime", "nodiratime", "strictatime")
"""What a bind mount can have of its own; the rest is the file system's."""

_FOUND: Final = 0
_NOTHING_FOUND: Final = 2
_AMBIVALENT: Final = 8
_PAIR = re.compile(r"([A-Z_]+)=(.*)")
_XFS_MAGIC: Final = b"XFSB"
_XFS_IN_PROGRESS: Final = 126
"""Offset of ``sb_inprogress`` in the first sector (linux, fs/xfs/libxfs/xfs_format.h, ``struct xfs_dsb``)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at a device: blkid's answer, and what the kernel said before and after it."""

    code: int
    stdout: str
    number: DeviceNumber
    size_bytes: int
    """0 where size or number changed during the look."""

    first_sector: bytes | None
    """Read around the page cache; None where it could not be read."""


@dataclass(frozen=True, slots=True)
class Blank:
    """Proven: the device can be read, is what it was, and nothing known is on it."""


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A file system is on the device."""

    fs_type: str
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A mkfs.xfs was ended half-way; no kernel mounts that, so there was never anything in it."""


@dataclass(frozen=True, slots=True)
class Occupied:
    """Something is on the device that is no file system that can be mounted here."""

    what: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The looks give no answer; above all no blank device."""

    why: str


Content = Blank | Filesystem | Unfinished | Occupied | Unknown


def probe(device: str) -> Command:
    """Return the command that looks at a device past every cache; blkid(8) has what its exit codes mean."""
    return Command(("blkid", "-p", "-o", "export", device), PROBE_SECONDS, frozenset({_FOUND, _NOTHING_FOUND, _AMBIVALENT}))


def conclude(probes: Sequence[Probe]) -> Content:
    """Return what is on the device, from looks in the order in which they were made.

    Exit code 2 says "nothing found", and just as well "could not be read": so a device is blank only if ``BLANK_TRIES``
    looks in a row say so and name nothing, its first bytes could be read each time and are all zero, and it kept number and size
    all along.
    """
    if not probes:
        return Unknown("nobody looked")
    last = probes[-1]
    if last.code == _AMBIVALENT:
        return Occupied("signatures of more than one file system")
    if last.code == _FOUND:
        return _content(last)
    if last.code != _NOTHING_FOUND:
        return Unknown(f"blkid ended with exit code {last.code}")
    if len(probes) < BLANK_TRIES:
        return Unknown(f"nothing found, and only {len(probes)} of {BLANK_TRIES} looks made")
    looks = probes[-BLANK_TRIES:]
    if any(look.code != _NOTHING_FOUND for look in looks):
        return Unknown("the last looks do not agree")
    if any(look.stdout.strip() for look in looks):
        return Unknown("blkid names something and says that it found nothing")
    if any(look.first_sector is None or len(look.first_sector) < MIN_SECTOR for look in looks):
        return Unknown("the device cannot be read")
    if any(look.first_sector != last.first_sector for look in looks):
        return Unknown("the device was written to meanwhile")
    if last.size_bytes <= 0 or any((look.number, look.size_bytes) != (last.number, last.size_bytes) for look in looks):
        return Unknown("the device changed meanwhile")
    if any(last.first_sector or b""):
        return Occupied("data that blkid does not know")
    return Blank()


def first_sector(device: str) -> Command:
    """Return the command that reads the beginning of a device around the page cache, in a process that can be left behind."""
    return Command(("dd", f"if={device}", "bs=4096", "count=1", "iflag=direct", "status=none"), PROBE_SECONDS)


def set_read_only(device: str) -> Command:
    """Return the command that lets nobody on this node write to a device; it holds until the device goes."""
    return Command(("blockdev", "--setro", device), PROBE_SECONDS)


def bind_device(device: str, target: str) -> Command:
    """Return the command that shows a device of /dev at a file."""
    return Command(("mount", "-o", "bind", "--", device, target), MOUNT_SECONDS)


def fs_type_for(asked: str) -> str:
    """Return the file system to make and mount: the one asked for, else ``DEFAULT_FS_TYPE``; raises InvalidArgument."""
    return check_fs_type(asked) or DEFAULT_FS_TYPE


def check_options(options: Sequence[str]) -> tuple[str, ...]:
    """Return the mount options unchanged; each element is exactly one option of the list, without value or comma.

    Raises InvalidArgument.
    """
    for option in options:
        if option not in ALLOWED_OPTIONS:
            raise InvalidArgument(f"mount option {option[:40]!r} is not allowed; allowed are {', '.join(sorted(ALLOWED_OPTIONS))}")
    for one, other in (("ro", "rw"), ("exec", "noexec"), ("sync", "async"), ("lazytime", "nolazytime")):
        if one in options and other in options:
            raise InvalidArgument(f"mount options {one} and {other} exclude each other")
    return tuple(options)


def stage_options(fs_type: str, options: Sequence[str], *, read_only: bool) -> tuple[str, ...]:
    """Return the options of the mount at the staging path, sorted; raises InvalidArgument.

    ``nouuid`` lets an xfs be mounted beside the one that it is a copy of.
    """
    wanted = set(check_options(options)) - _WORDS_OF_FSTAB | set(ENFORCED_OPTIONS)
    if fs_type == "xfs":
        wanted.add("nouuid")
    return tuple(sorted(_read_only(wanted, read_only=read_only)))


def publish_options(options: Sequence[str], *, read_only: bool) -> tuple[str, ...]:
    """Return the options of the bind mount at a target path, without ``bind``, sorted; raises InvalidArgument."""
    wanted = set(check_options(options)) & {*_PER_MOUNT, "ro"} | set(ENFORCED_OPTIONS)
    return tuple(sorted(_read_only(wanted, read_only=read_only)))


def lacks(options: frozenset[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return those of the wanted restrictions that a mount does not have; ``ro`` also where it is there and not wanted."""
    restrictions = ("ro", "nosuid", "nodev", "noexec")
    return tuple(one for one in restrictions if one in wanted and one not in options) + (
        ("rw",) if "ro" in options and "ro" not in wanted else ()
    )


def make(fs_type: str, device: str, *, over_unfinished: bool = False) -> Command:
    """Return the command that makes a file system; mkfs.xfs itself refuses what is not blank, unless told ``over_unfinished``."""
    words = {
        # Nothing is discarded: a blank volume has nothing to discard, and a box may take long to find that out.
        "ext3": ("mkfs.ext3", "-q", "-E", "nodiscard"),
        "ext4": ("mkfs.ext4", "-q", "-E", "nodiscard"),
        "xfs": ("mkfs.xfs", "-q", "-K", *(("-f",) if over_unfinished else ())),
    }[check_fs_type(fs_type)]
    return Command((*words, device), MKFS_SECONDS)


def mount(fs_type: str, device: str, path: str, options: Sequence[str]) -> Command:
    """Return the command that mounts a file system; the kernel replays its journal, which is no error."""
    return Command(("mount", "-t", fs_type, "-o", ",".join(options), "--", device, path), MOUNT_SECONDS)


def bind(source: str, target: str, options: Sequence[str]) -> Command:
    """Return the command that shows one directory at another place as well."""
    return Command(("mount", "-o", ",".join(("bind", *options)), "--", source, target), MOUNT_SECONDS)


def unmount(path: str) -> Command:
    """Return the command that takes off the uppermost mount at a path: never lazily, never by force."""
    return Command(("umount", "--", path), UNMOUNT_SECONDS)


def grow(fs_type: str, device: str, path: str) -> Command:
    """Return the command that makes a mounted file system as large as its device; it does nothing where it is so already."""
    words = ("xfs_growfs", path) if fs_type == "xfs" else ("resize2fs", device)
    return Command(words, GROW_SECONDS)


def _content(look: Probe) -> Content:
    found = {match[1]: match[2] for line in look.stdout.splitlines() if (match := _PAIR.fullmatch(line))}
    fs_type = found.get("TYPE", "")
    if fs_type == "xfs" and _unfinished_xfs(look.first_sector):
        return Unfinished()
    if fs_type and found.get("USAGE", "filesystem") == "filesystem":
        return Filesystem(fs_type, found.get("UUID", ""))
    if fs_type:
        return Occupied(fs_type)
    if table := found.get("PTTYPE", ""):
        return Occupied(f"a partition table ({table})")
    return Occupied("something that blkid does not name")


def _unfinished_xfs(sector: bytes | None) -> bool:
    return sector is not None and sector[:4] == _XFS_MAGIC and sector[_XFS_IN_PROGRESS : _XFS_IN_PROGRESS + 1] == b"\x01"


def _read_only(options: set[str], *, read_only: bool) -> set[str]:
    return (options - {"rw"}) | {"ro"} if read_only else options
