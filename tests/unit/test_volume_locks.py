"""One call at a time per volume; nothing stays of a volume that nobody uses."""

from __future__ import annotations

import asyncio

import pytest

from rds_csi.errors import Aborted
from rds_csi.volume_locks import VolumeLocks


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_second_call_for_a_volume_waits_for_the_first() -> None:
    locks, order = VolumeLocks(), []

    async def second() -> None:
        async with locks.hold("pvc-1"):
            order.append("second")

    async with locks.hold("pvc-1"):
        waiting = asyncio.create_task(second())
        await settle()
        order.append("first")
    await waiting
    assert order == ["first", "second"]


async def test_calls_for_different_volumes_do_not_wait() -> None:
    locks = VolumeLocks()
    async with locks.hold("pvc-1"), asyncio.timeout(5), locks.hold("pvc-2"):
        assert len(locks) == 2


async def test_try_hold_aborts_while_another_call_is_in_flight() -> None:
    locks = VolumeLocks()
    async with locks.hold("pvc-1"):
        with pytest.raises(Aborted, match="pvc-1"):
            async with locks.try_hold("pvc-1"):
                pytest.fail("held twice")
    async with locks.try_hold("pvc-1"):
        assert len(locks) == 1


async def test_cancelled_waiter_leaves_the_holder_and_the_next_alone() -> None:
    locks, done = VolumeLocks(), []

    async def wait(name: str) -> None:
        async with locks.hold("pvc-1"):
            done.append(name)

    async with locks.hold("pvc-1"):
        given_up, patient = asyncio.create_task(wait("given up")), asyncio.create_task(wait("patient"))
        await settle()
        given_up.cancel()
        await settle()
        assert given_up.cancelled()
    await patient
    assert done == ["patient"]
    assert len(locks) == 0


@pytest.mark.requirement("R26")
async def test_nothing_stays_of_volumes_that_are_not_in_use() -> None:
    locks = VolumeLocks()

    async def use(number: int) -> None:
        async with locks.hold(f"pvc-{number % 50}"):
            await asyncio.sleep(0)
            if number % 7 == 0:
                raise RuntimeError("an RPC failed")

    results = await asyncio.gather(*(use(number) for number in range(500)), return_exceptions=True)
    assert sum(isinstance(result, RuntimeError) for result in results) == 72
    assert len(locks) == 0
