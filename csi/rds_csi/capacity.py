"""How much of the pool new volumes may take (pure)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from rds_csi.sizes import MAX_SIZE, MIN_SIZE, SIZE_STEP

_UNITS: Final = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_BYTES = re.compile(r"([0-9]{1,15})(KiB|MiB|GiB|TiB|)")
_PERCENT = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,2})?)%")


@dataclass(frozen=True, slots=True)
class Reserve:
    """What is kept free of the pool: bytes, or a share of its size in hundredths of a percent."""

    size: int = 0
    share: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``50GiB``, plain bytes or ``5%`` (below 100 %); ValueError."""
        if match := _PERCENT.fullmatch(text):
            return cls(share=round(float(match[1]) * 100))
        if match := _BYTES.fullmatch(text):
            return cls(size=int(match[1]) * _UNITS[match[2]])
        raise ValueError(f"{text[:60]!r} is neither a size (50GiB, 1TiB, bytes) nor a share of the pool (5%)")

    def of(self, pool: int) -> int:
        """Return what is kept free of a pool of that size, in bytes."""
        return self.size + -(-pool * self.share // 10_000)


NO_RESERVE: Final = Reserve()


@dataclass(frozen=True, slots=True)
class Offer:
    """What is left for new volumes, and how small and large one may be; all in bytes."""

    available: int
    smallest: int
    largest: int


def offer(size: int, free: int, reserve: Reserve) -> Offer:
    """Return what a pool of ``size`` bytes with ``free`` ones offers; the largest is a size that CreateVolume makes exactly."""
    available = max(0, free - reserve.of(size))
    largest = min(MAX_SIZE, available // SIZE_STEP * SIZE_STEP)
    return Offer(available, MIN_SIZE, largest if largest >= MIN_SIZE else 0)
