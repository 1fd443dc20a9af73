"""What may keep a volume from being staged for a while."""

from __future__ import annotations

from typing import Protocol


class HoldOff(Protocol):
    """Who says whether a volume that failed again and again may be tried now."""

    def check(self, volume_id: str) -> None:
        """Raise ``rds_csi.errors.Unavailable`` where the volume is held off, with words that name the way out."""


class NoHoldOff:
    """Holds nothing off."""

    def check(self, volume_id: str) -> None:
        """Let every volume pass."""
