"""The mount table as ``/proc/PID/mountinfo`` has it (proc_pid_mountinfo(5)). Pure, but for the one that reads the file."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rds_csi.node.sysfs import DeviceNumber

_ESCAPE = re.compile(r"\\([0-7]{3})")
_FIXED_FIELDS: Final = 6
_LAST_FIELDS: Final = 3
DELETED: Final = "//deleted"
"""What the kernel puts behind the root of a mount whose directory was removed."""


class MountTableUnreadable(Exception):
    """The table cannot be read or understood: nothing is known of any mount."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount; the later one in the table lies on top of an earlier one at the same place."""

    mount_id: int
    parent_id: int
    number: DeviceNumber
    """Of the file system; for ext4 and xfs the number of the block device it is on."""

    root: str
    """What of the file system is mounted; of a bind mount of a device node, its path in the devtmpfs."""

    mount_point: str
    options: frozenset[str]
    """Of this mount: ``ro``, ``nosuid``, ``noexec`` and the like."""

    fs_type: str
    source: str
    super_options: frozenset[str]
    """Of the file system, for all its mounts."""

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through this mount, be it the mount's doing or the file system's."""
        return "ro" in self.options or "ro" in self.super_options


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Return the mounts in the order of the table; raises MountTableUnreadable for a line that is none."""
    # By line feed alone: a path may hold every other sign that ends lines elsewhere, and the kernel does not escape those.
    return tuple(_mount(line) for line in text.removesuffix("\n").split("\n")) if text else ()


def read_mountinfo(process: Path) -> tuple[Mount, ...]:
    """Return the mounts that a process sees, given its directory in ``/proc``; raises MountTableUnreadable, and OSError."""
    # A path may hold any byte: what is no UTF-8 comes back as it went in.
    return parse_mountinfo((process / "mountinfo").read_bytes().decode(errors="surrogateescape"))


def mounts_at(mounts: Iterable[Mount], path: str) -> tuple[Mount, ...]:
    """Return the stack of mounts at exactly this path; the last one is what a process sees there."""
    return tuple(mount for mount in mounts if mount.mount_point == path)


def mounts_below(mounts: Iterable[Mount], path: str) -> tuple[Mount, ...]:
    """Return the mounts somewhere below this path, but not at it."""
    return tuple(mount for mount in mounts if mount.mount_point.startswith(path.rstrip("/") + "/"))


def mounts_of(mounts: Iterable[Mount], numbers: Container[DeviceNumber]) -> tuple[Mount, ...]:
    """Return the mounts of file systems on these block devices, bind mounts among them."""
    return tuple(mount for mount in mounts if mount.number in numbers)


def mount_over(mounts: Iterable[Mount], path: str) -> Mount | None:
    """Return the mount that a new entry at this path would lie on, or None where the table has none."""
    above = [mount for mount in mounts if path.startswith(mount.mount_point.rstrip("/") + "/")]
    deepest = max((len(mount.mount_point) for mount in above), default=0)
    return next((mount for mount in reversed(above) if len(mount.mount_point) == deepest), None)


def _mount(line: str) -> Mount:
    words = line.split(" ")
    try:
        separator = words.index("-", _FIXED_FIELDS)
        fs_type, source, super_options = words[separator + 1 : separator + 1 + _LAST_FIELDS]
        return Mount(
            mount_id=int(words[0]),
            parent_id=int(words[1]),
            number=DeviceNumber.parse(words[2]),
            root=_unescape(words[3]),
            mount_point=_unescape(words[4]),
            options=frozenset(words[5].split(",")),
            fs_type=_unescape(fs_type),
            source=_unescape(source),
            super_options=frozenset(super_options.split(",")),
        )
    except (ValueError, IndexError):
        raise MountTableUnreadable(f"no line of a mount table: {line[:200]!r}") from None


def _unescape(text: str) -> str:
    r"""Undo the kernel's escapes: blank, tab, newline and backslash (and ``#``) stand as ``\040`` and so on."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
