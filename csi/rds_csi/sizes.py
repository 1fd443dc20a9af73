"""Which exact size a volume gets (pure)."""

KIB = 2**10
MIB = 2**20
GIB = 2**30
TIB = 2**40

SIZE_STEP = MIB
"""Volumes are whole MiB, so that a unit of RouterOS (K, M, G, T, all binary for ``file-size``) divides every size exactly."""
MIN_SIZE = GIB
MAX_SIZE = 16 * TIB


class SizeOutOfRange(ValueError):
    """No size fits between what is required and what is allowed."""


class LimitBelowRequired(SizeOutOfRange):
    """The limit is below the required size."""


class TooLarge(SizeOutOfRange):
    """The required size is above the largest volume."""


class LimitTooSmall(SizeOutOfRange):
    """The smallest size that holds what is required is above the limit: by rounding, or because volumes have a smallest size."""


def exact_size(required: int = 0, limit: int = 0) -> int:
    """Choose the exact size of a volume for a CSI CapacityRange: ``required`` and ``limit`` in bytes, 0 where there is no bound.

    The required size is rounded up to a whole MiB, and to 1 GiB at least: what is promised is never more than what is there.

    Raises:
        ValueError: a bound is negative.
        LimitBelowRequired, TooLarge, LimitTooSmall: see there; all are SizeOutOfRange.
    """
    if required < 0 or limit < 0:
        raise ValueError("sizes are not negative")
    if limit and limit < required:
        raise LimitBelowRequired(f"the limit of {limit} bytes is below the required {required} bytes")
    if required > MAX_SIZE:
        raise TooLarge(f"{required} bytes are required; the largest volume has {MAX_SIZE} bytes (16 TiB)")
    size = max(MIN_SIZE, -(-required // SIZE_STEP) * SIZE_STEP)
    if limit and size > limit:
        raise LimitTooSmall(
            f"the smallest volume that holds {required} bytes has {size} bytes (whole MiB, 1 GiB at least),"
            f" more than the limit of {limit} bytes"
        )
    return size
