"""Looks take turns, and one that hangs keeps nobody waiting for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from rds_csi.node.looks import Looks, LookTooSlow

LONG = 60.0
"""Seconds that no test takes."""


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not ready():  # noqa: ASYNC110 threads change what is waited for
            await asyncio.sleep(0.001)


async def test_a_look_returns_what_it_found_or_raises_what_went_wrong() -> None:
    looks = Looks()
    assert await looks("one", lambda: 7, LONG) == 7
    with pytest.raises(ZeroDivisionError):
        await looks("one", lambda: 1 // 0, LONG)


async def test_no_more_than_a_few_look_at_once_and_all_have_their_turn() -> None:
    looks, running, most = Looks(at_once=2, hangs_after=LONG), 0, 0
    lock, go = threading.Lock(), threading.Event()

    def look() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(LONG)
        with lock:
            running -= 1

    asked = [asyncio.create_task(looks(f"look {number}", look, LONG)) for number in range(8)]
    await until(lambda: running == 2)
    go.set()
    await asyncio.gather(*asked)
    assert most == 2


async def test_a_look_that_hangs_gives_its_turn_away_and_is_not_joined_by_a_second() -> None:
    looks, go = Looks(at_once=1, hangs_after=0.01), threading.Event()
    hanging = asyncio.create_task(looks("hangs", lambda: go.wait(LONG), 0.05))
    await asyncio.sleep(0)
    try:
        assert await looks("another", lambda: 7, LONG) == 7
        with pytest.raises(LookTooSlow, match=r"no answer in 0\.05 s"):
            await hanging
        with pytest.raises(LookTooSlow, match="an earlier look still waits"):
            await looks("hangs", lambda: True, LONG)
    finally:
        go.set()


async def test_the_time_of_a_look_begins_with_its_turn() -> None:
    looks, go = Looks(at_once=1, hangs_after=LONG), threading.Event()
    first = asyncio.create_task(looks("first", lambda: go.wait(LONG), LONG))
    await asyncio.sleep(0)
    second = asyncio.create_task(looks("second", lambda: 7, 0.5))
    await asyncio.sleep(0)
    # Half a second in the queue would be its end.
    threading.Timer(0.7, go.set).start()
    assert await second == 7
    assert await first


async def test_a_caller_that_leaves_the_queue_takes_no_turn_with_it() -> None:
    looks, go = Looks(at_once=1, hangs_after=LONG), threading.Event()
    first = asyncio.create_task(looks("first", lambda: go.wait(LONG), LONG))
    await asyncio.sleep(0)
    second = asyncio.create_task(looks("second", lambda: 7, LONG))
    await asyncio.sleep(0)
    second.cancel()
    go.set()
    assert await first
    assert await looks("third", lambda: 8, LONG) == 8


async def test_what_comes_too_late_is_given_back() -> None:
    looks, go = Looks(), threading.Event()
    late: list[bool] = []
    with pytest.raises(LookTooSlow):
        await looks("slow", lambda: go.wait(LONG), 0.01, late=late.append)
    go.set()
    await until(lambda: bool(late))
    assert late == [True]
