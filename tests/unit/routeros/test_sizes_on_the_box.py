"""Every size that can be asked for, on its whole way: chosen, written, made by a box, printed, read back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.routeros import Box, DiskSpec, FilePath, Nqn, Output, Slot
from rds_csi.sizes import GIB, MAX_SIZE, MIB, exact_size
from tests.simulator.console import Console
from tests.simulator.store import Store
from tests.simulator.switches import Switches

HANDLE = "pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f"
SLOT, NQN = Slot(HANDLE), Nqn(f"nqn.2000-02.com.mikrotik:{HANDLE}")

units = st.sampled_from([1, 10**3, 2**10, 10**6, MIB, 10**9, GIB, 10**12, 2**40])
near_a_unit = st.builds(lambda unit, count, off: unit * count + off, units, st.integers(1, 2000), st.integers(-2, 2))
sizes = (st.integers(1, MAX_SIZE) | near_a_unit.filter(lambda size: 1 <= size <= MAX_SIZE)) | st.just(MAX_SIZE)
versions = st.sampled_from(["7.16", "7.24"])


class Link:
    """A box in this process, that prints as RouterOS of that version does."""

    def __init__(self, version: str) -> None:
        self.console = Console(Store(), Switches(version=version))
        self.console.store.pool.size = 4 * MAX_SIZE

    async def run(self, command: str, *, deadline: float) -> Output:
        answer = self.console.run(command)
        return Output(answer.text + answer.error)


def specification(size: int) -> DiskSpec:
    return DiskSpec(SLOT, FilePath(f"/storage-pool/metal-csi/{HANDLE}.img"), size, NQN)


@pytest.mark.requirement("R48")
@settings(deadline=None, max_examples=300)
@given(required=sizes, version=versions)
def test_a_new_volume_has_what_is_answered_and_at_least_what_was_asked(required: int, version: str) -> None:
    link, answered = Link(version), exact_size(required)
    made = asyncio.run(Box(link).create_disk(specification(answered), deadline=0))
    assert made.size == answered >= required
    assert link.console.store.disks[0].size == answered
    again = asyncio.run(Box(link).create_disk(specification(exact_size(required)), deadline=0))
    assert again == made, "a retry"


@pytest.mark.requirement("R48")
@settings(deadline=None, max_examples=300)
@given(first=sizes, then=sizes, version=versions)
def test_a_volume_that_grew_has_what_is_answered_and_one_that_need_not_is_left_alone(first: int, then: int, version: str) -> None:
    link, before, wanted = Link(version), exact_size(first), exact_size(then)
    asyncio.run(Box(link).create_disk(specification(before), deadline=0))
    for _ in ("the call", "its retry"):
        grown = asyncio.run(Box(link).resize_disk(SLOT, wanted, deadline=0))
        assert grown.size == link.console.store.disks[0].size == max(before, wanted)
        assert grown.size >= then
