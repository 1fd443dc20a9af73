"""Whether a mounted file system has stopped by itself, from what can be read without writing to it.

The mount table alone does not tell. Of ext4 it says ``ro`` with older kernels, ``emergency_ro`` or ``shutdown`` with new ones
(seen with Linux 6.18), and nothing with some in between (seen with 6.1.192); of XFS it never says anything. So besides:

- ext4 counts its errors, with the time of the last one, in its superblock, where only fsck clears them: what is counted may be of
  another mount, or another node. It is of this mount where it is not older than the journal's kernel thread, which lives as long.
- XFS that has shut itself down answers with EIO whatever is asked but statfs, also of its root directory, which needs no disk.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rds_csi.node.mountinfo import Mount

EXT: Final = frozenset({"ext3", "ext4"})
"""Linux has one driver for both."""

_STOPPED_WORDS: Final = frozenset({"emergency_ro", "shutdown"})
_STOPS_AT_ERRORS: Final = frozenset({"errors=remount-ro", "errors=panic"})
_JOURNAL_ABORTED: Final = "ext4_journal_check_start"
"""The function of the kernel that finds that there is no journal to write to any more, and says so as an error."""

_START_TIME: Final = 19
"""Index of ``starttime`` behind the program's name (proc_pid_stat(5))."""

_CLOCK_SECONDS: Final = 1
"""What times of whole seconds of two clocks may differ."""


@dataclass(frozen=True, slots=True)
class Errors:
    """What a file system says of itself besides the mount table; what cannot be read is not said."""

    recorded: int = 0
    """Errors of ext4 that no fsck has cleared."""

    since_mount: bool = False
    """Whether the last of them happened since it was mounted here."""

    stops: bool = False
    """Whether ext4 stopped writing at it: by default it goes on, unless it lost its journal."""

    dead: bool = False
    """Whether it answers nothing any more."""


NO_ERRORS: Final = Errors()


def has_stopped(mount: Mount, errors: Errors = NO_ERRORS) -> bool:
    """Tell whether nothing can be written any more to a file system that was mounted for writing.

    Whoever mounts it read-only makes both the mount and the file system so.
    """
    if errors.dead:
        return True
    if "ro" in mount.super_options:
        return "rw" in mount.options
    return bool(mount.super_options & _STOPPED_WORDS) or (errors.since_mount and errors.stops)


def errors_of(mount: Mount, device: str, at: str | Path, *, sysfs: Path, proc: Path) -> Errors:
    """Read what the file system of a mount says of itself; ``device`` is its disk's name, and it can be found ``at`` a path.

    Blocks no longer than reads of sysfs and of what is in memory do: run it in a thread.
    """
    if mount.fs_type == "xfs":
        return Errors(dead=_answers_nothing(at))
    if mount.fs_type not in EXT:
        return NO_ERRORS
    attributes = sysfs / "fs" / "ext4" / device
    recorded = _number(attributes / "errors_count")
    if not recorded:
        return NO_ERRORS
    options = mount.super_options | set(_text(proc / "fs" / "ext4" / device / "options").split())
    began = _mounted_at(attributes, proc)
    since_mount = began is not None and _number(attributes / "last_error_time") >= began - _CLOCK_SECONDS
    stops = bool(options & _STOPS_AT_ERRORS) or _text(attributes / "last_error_func") == _JOURNAL_ABORTED
    return Errors(recorded, since_mount, stops)


def _answers_nothing(at: str | Path) -> bool:
    try:
        os.lstat(at)
    except OSError as error:
        return error.errno == errno.EIO
    return False


def _mounted_at(attributes: Path, proc: Path) -> int | None:
    """Return when the journal's thread began, in seconds of the wall clock of now; None where none can be seen."""
    pid = _text(attributes / "journal_task")
    boot = next((line.split()[1] for line in _text(proc / "stat").splitlines() if line.startswith("btime ")), "")
    fields = _text(proc / pid / "stat").rpartition(")")[2].split() if pid.isdecimal() else []
    if not boot.isdecimal() or len(fields) <= _START_TIME or not fields[_START_TIME].isdecimal():
        return None
    return int(boot) + int(fields[_START_TIME]) // os.sysconf("SC_CLK_TCK")


def _number(file: Path) -> int:
    text = _text(file)
    return int(text) if text.isdecimal() else 0


def _text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(errors="replace").strip()
    return ""
