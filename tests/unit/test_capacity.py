"""What a pool offers to new volumes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.capacity import Offer, Reserve, offer
from rds_csi.sizes import GIB, MAX_SIZE, MIB, TIB, exact_size


@pytest.mark.parametrize(
    ("text", "kept"),
    [("0", 0), ("1073741824", GIB), ("50GiB", 50 * GIB), ("1TiB", TIB), ("5%", 5 * GIB), ("0.5%", GIB // 2), ("0%", 0)],
)
def test_a_reserve_is_a_size_or_a_share_of_the_pool(text: str, kept: int) -> None:
    assert Reserve.parse(text).of(100 * GIB) == kept


@pytest.mark.parametrize("text", ["", "-1", "5 %", "100%", "1e9", "50GB", "50Gi", "5.555%", "٥٪"])
def test_what_is_no_reserve_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a size"):
        Reserve.parse(text)


def test_a_reserve_is_kept_free() -> None:
    assert offer(100 * GIB, 30 * GIB, Reserve.parse("5%")) == Offer(25 * GIB, GIB, 25 * GIB)


def test_less_than_the_smallest_volume_has_no_largest() -> None:
    assert offer(100 * GIB, GIB - 1, Reserve()) == Offer(GIB - 1, GIB, 0)


@given(
    size=st.integers(1, 2**50), free=st.integers(0, 2**50), reserve=st.builds(Reserve, st.integers(0, 2**50), st.integers(0, 9999))
)
def test_what_is_offered_is_free_and_can_be_made_exactly(size: int, free: int, reserve: Reserve) -> None:
    made = offer(size, free, reserve)
    assert 0 <= made.available <= max(0, free - reserve.size)
    assert made.largest <= min(made.available, MAX_SIZE)
    assert made.largest == 0 or exact_size(made.largest, made.largest) == made.largest
    assert made.available - made.largest < MIB or made.largest in {0, MAX_SIZE}
