"""Which hosts an export lets in, and the drop of its sessions, under every way a command can be lost."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.routeros import (
    Box,
    BoxBusy,
    BoxError,
    BoxUnreachable,
    DiskInTheWay,
    Export,
    InvalidName,
    NoSuchItem,
    NotUnderstood,
    Nqn,
    OutcomeUnknown,
    Output,
    ReadBackMismatch,
    Slot,
)
from rds_csi.routeros.commands import add_disk, allow_hosts, export_to_hosts, unexport_disk
from tests.unit.routeros.test_box import FINE, HANDLE, LOST_AFTER, LOST_BEFORE, SPEC, UNSENT, Link, run

HOSTS = [Nqn(f"nqn.2014-08.org.nvmexpress:uuid:6b1a1d5e-0000-4000-8000-00000000000{number}") for number in range(3)]


def export(*hosts: Nqn, nqn: str = SPEC.nqn) -> Export:
    return Export(SPEC.slot, Nqn(nqn), SPEC.port, frozenset(hosts))


def linked(faults: list[str] | None = None, **switches: Any) -> Link:
    """Return a link to a box that has the disk; only then do the faults begin."""
    link = Link(**switches)
    link.console.run(add_disk(SPEC))
    link.faults = list(faults or [])
    return link


def state(link: Link) -> tuple[bool, str]:
    disk = next(disk for disk in link.console.store.disks if disk.slot == HANDLE)
    return disk.nvme_tcp_export, disk.nvme_tcp_server_allow_host_name


def test_the_list_and_the_export_are_in_one_command() -> None:
    both = ",".join(HOSTS[:2])
    assert export_to_hosts(export(*HOSTS[:2])) == (
        f"/disk set [find slot={HANDLE}] nvme-tcp-export=yes nvme-tcp-server-port=4420 nvme-tcp-server-nqn={SPEC.nqn}"
        f' nvme-tcp-server-allow-host-name="{both}"'
    )
    assert allow_hosts(export()).endswith('allow-host-name=""')


@pytest.mark.parametrize("name", ['nqn.2014-08.org:a"; /system reset', "nqn.2014-08.org:a,b", "nqn.2014-08.org:a b"])
def test_nothing_but_a_host_nqn_reaches_the_list(name: str) -> None:
    with pytest.raises(InvalidName):
        Nqn(name)


def test_a_list_that_is_as_it_should_be_is_not_written_again() -> None:
    link = linked()
    run(Box(link).allow_hosts(export(*HOSTS), deadline=0))
    link.sent.clear()
    run(Box(link).allow_hosts(export(*reversed(HOSTS)), deadline=0))
    assert len(link.sent) == 1


def test_sessions_are_dropped_after_the_list_has_changed() -> None:
    link = linked()
    run(Box(link).allow_hosts(export(HOSTS[0]), cycle=True, deadline=0))
    sets = [line for line in link.sent if line.startswith("/disk set")]
    assert sets == [allow_hosts(export(HOSTS[0])), unexport_disk(Slot(HANDLE)), export_to_hosts(export(HOSTS[0]))]


@given(
    st.lists(st.sampled_from([FINE, UNSENT, LOST_BEFORE, LOST_AFTER]), max_size=12),
    st.lists(st.sampled_from(HOSTS), max_size=3),
    st.booleans(),
)
@settings(max_examples=60)
def test_a_call_that_ends_well_has_set_list_and_export_whatever_was_lost_before(
    faults: list[str], hosts: list[Nqn], cycle: bool
) -> None:
    link = linked(faults)
    for _ in range(len(faults) + 1):
        with contextlib.suppress(BoxError):
            run(Box(link).allow_hosts(export(*hosts), cycle=cycle, deadline=0))
            break
    else:
        pytest.fail("every call failed")
    exported, value = state(link)
    assert exported
    assert set(filter(None, value.split(","))) == set(hosts)


def test_an_export_that_a_crash_left_off_comes_back_with_its_list() -> None:
    link = linked()
    link.console.run(unexport_disk(Slot(HANDLE)))
    run(Box(link).allow_hosts(export(HOSTS[1]), deadline=0))
    assert state(link) == (True, HOSTS[1])


def test_a_box_that_keeps_one_name_only_is_named() -> None:
    with pytest.raises(ReadBackMismatch, match=r"nvme-tcp-server-allow-host-name is '.*0' instead of '.*0,.*1'"):
        run(Box(linked(allow_host_name="one")).allow_hosts(export(*HOSTS[:2]), deadline=0))


def test_a_box_without_the_property_refuses() -> None:
    with pytest.raises(NotUnderstood):
        run(Box(linked(allow_host_name="refuse")).allow_hosts(export(HOSTS[0]), deadline=0))


def test_a_box_that_goes_on_exporting_is_not_taken_at_its_word() -> None:
    link = linked()
    link.spoil = lambda text: text.replace("nvme-tcp-export=no", "nvme-tcp-export=yes")
    with pytest.raises(BoxError) as caught:
        run(Box(link).allow_hosts(export(HOSTS[0]), cycle=True, deadline=0))
    assert isinstance(caught.value, BoxBusy) or "nvme-tcp-server" in str(caught.value)


class Waiting(Link):
    """A link on which the end of an export waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.console.run(add_disk(SPEC))
        self.ends, self.goes_on = asyncio.Event(), asyncio.Event()

    async def run(self, command: str, *, deadline: float) -> Output:
        output = await super().run(command, deadline=deadline)
        if command == unexport_disk(Slot(HANDLE)):
            self.ends.set()
            await self.goes_on.wait()
        return output


async def test_a_caller_that_leaves_between_end_and_beginning_of_an_export_leaves_none_that_is_off() -> None:
    link = Waiting()
    call = asyncio.ensure_future(Box(link).allow_hosts(export(HOSTS[0]), cycle=True, deadline=0))
    await link.ends.wait()
    call.cancel()
    await asyncio.sleep(0)
    assert state(link) == (False, HOSTS[0])
    # Whoever holds the volume's lock keeps it until the export is back.
    assert not call.done()
    link.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert state(link) == (True, HOSTS[0])


async def test_a_caller_that_is_pressed_to_leave_leaves_an_export_that_comes_back_all_the_same() -> None:
    link = Waiting()
    call = asyncio.ensure_future(Box(link).allow_hosts(export(HOSTS[0]), cycle=True, deadline=0))
    await link.ends.wait()
    for _ in range(2):
        call.cancel()
        await asyncio.sleep(0)
    link.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    for _ in range(50):
        await asyncio.sleep(0)
    assert state(link) == (True, HOSTS[0])


class Late(Link):
    """A link of a caller whose time is over once the export has ended."""

    async def run(self, command: str, *, deadline: float) -> Output:
        if unexport_disk(Slot(HANDLE)) in self.sent and deadline <= monotonic():
            raise BoxUnreachable("time ran out")
        return await super().run(command, deadline=deadline)


def test_a_call_whose_time_is_over_after_the_end_of_an_export_begins_it_again() -> None:
    link = Late()
    link.console.run(add_disk(SPEC))
    with pytest.raises(OutcomeUnknown):
        run(Box(link).allow_hosts(export(HOSTS[0]), cycle=True, deadline=0))
    assert state(link) == (True, HOSTS[0])


def test_sessions_that_a_crash_has_dropped_are_not_dropped_again() -> None:
    link = linked()
    link.console.run(unexport_disk(Slot(HANDLE)))
    run(Box(link).allow_hosts(export(HOSTS[1]), cycle=True, deadline=0))
    assert unexport_disk(Slot(HANDLE)) not in link.sent
    assert state(link) == (True, HOSTS[1])


def test_a_disk_that_is_not_there_or_is_another_one_is_not_touched() -> None:
    with pytest.raises(NoSuchItem):
        run(Box(Link()).allow_hosts(export(HOSTS[0]), deadline=0))
    link = linked()
    with pytest.raises(DiskInTheWay):
        run(Box(link).allow_hosts(export(HOSTS[0], nqn="nqn.2000-02.com.mikrotik:other"), deadline=0))
    assert state(link) == (True, "")
