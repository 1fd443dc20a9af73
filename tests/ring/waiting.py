"""Wait for a fact with a deadline; the only way in which tests of the ring let time pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T | None], *, timeout: float = 30.0, interval: float = 0.05) -> T:
    """Return the first true value of ``probe``, asked every ``interval`` seconds.

    A probe that raises ``AssertionError`` is asked again; its last words are part of the message.

    Raises:
        AssertionError: ``what`` did not come true within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            value = probe()
            last = repr(value)
        except AssertionError as still_wrong:
            value, last = None, str(still_wrong)
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what} (last seen: {last[:2000]})")
        time.sleep(interval)
