"""How long to wait before the next attempt."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.routeros.transport import backoff


@settings(deadline=None)
@given(st.integers(1, 10_000), st.floats(0, 1))
def test_waiting_is_bounded_and_never_below_half(failures: int, jitter: float) -> None:
    full = min(8.0, 0.5 * 2.0 ** min(failures - 1, 30))
    assert full / 2 <= backoff(failures, 0.5, 8.0, jitter) <= full


def test_waiting_doubles() -> None:
    assert [backoff(failures, 0.5, 8.0, 0) for failures in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
