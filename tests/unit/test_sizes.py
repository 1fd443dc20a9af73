"""Which size a volume gets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.routeros.commands import file_size
from rds_csi.sizes import GIB, MAX_SIZE, MIB, LimitBelowRequired, LimitTooSmall, SizeOutOfRange, TooLarge, exact_size


@pytest.mark.requirement("R48")
@settings(deadline=None)
@given(st.integers(0, MAX_SIZE))
def test_a_volume_is_never_smaller_than_promised_and_its_size_is_written_exactly(required: int) -> None:
    size = exact_size(required)
    assert size >= required
    assert size >= GIB
    assert size - required < MIB or size == GIB
    text = file_size(size)
    assert int(text[:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[text[-1]] == size


@pytest.mark.requirement("R48")
@pytest.mark.parametrize(
    ("required", "size"),
    [
        (0, GIB),
        (1, GIB),
        (GIB, GIB),
        (GIB + 1, GIB + MIB),
        (1536 * GIB, 1536 * GIB),
        (50_000_000_000, 47_684 * MIB),
        (5_000_000_000, 4_769 * MIB),
        (MAX_SIZE, MAX_SIZE),
    ],
)
def test_sizes_are_rounded_up_to_whole_mib(required: int, size: int) -> None:
    assert exact_size(required) == size


@settings(deadline=None)
@given(st.integers(0, 2 * MAX_SIZE), st.integers(0, 2 * MAX_SIZE))
def test_a_size_keeps_its_limit_or_says_why_not(required: int, limit: int) -> None:
    try:
        size = exact_size(required, limit)
    except LimitBelowRequired:
        assert limit < required
    except TooLarge:
        assert required > MAX_SIZE
    except LimitTooSmall:
        assert limit < exact_size(required)
    else:
        assert required <= size <= (limit or MAX_SIZE)


@settings(deadline=None)
@given(st.integers(0, MAX_SIZE))
def test_the_size_that_was_given_is_given_again(required: int) -> None:
    size = exact_size(required)
    assert exact_size(size, size) == size


@pytest.mark.parametrize(
    ("required", "limit", "kind"),
    [(2, 1, LimitBelowRequired), (MAX_SIZE + 1, 0, TooLarge), (0, GIB - 1, LimitTooSmall), (GIB + 1, GIB + 2, LimitTooSmall)],
)
def test_what_cannot_be_has_a_name(required: int, limit: int, kind: type[SizeOutOfRange]) -> None:
    with pytest.raises(kind):
        exact_size(required, limit)


def test_negative_bounds_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="negative"):
        exact_size(-1)
