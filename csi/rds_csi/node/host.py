"""Where the node's kernel and device files are found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Mount points that the node service looks into; tests give others."""

    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")
    """Of the host (hostPID), else other pods' processes are not in it."""

    dev: Path = Path("/dev")
