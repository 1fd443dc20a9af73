"""Which way to keep snapshots is chosen."""

from __future__ import annotations

from enum import StrEnum


class SnapshotMode(StrEnum):
    """What ``--snapshot-backend`` may say."""

    AUTO = "auto"
    """Subvolumes where the box has them; else volumes lie as the Go driver lays them, and snapshots are not offered."""

    BTRFS = "btrfs"
    """Subvolumes; where the box has none, volumes cannot be made."""

    NONE = "none"
    """As with a box that has no subvolumes."""
