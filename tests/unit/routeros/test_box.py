"""Operations on the box under every way a command can be lost; the simulator's console stands in for the link."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.routeros import (
    Box,
    BoxUnreachable,
    Conflict,
    DiskInTheWay,
    DiskSpec,
    FilePath,
    Leftover,
    MalformedAnswer,
    NoSuchItem,
    Nqn,
    OutcomeUnknown,
    Output,
    ReadBackMismatch,
    Slot,
)
from tests.simulator.console import Console
from tests.simulator.store import Store
from tests.simulator.switches import Switches

HANDLE = "pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f"
SPEC = DiskSpec(
    Slot(HANDLE), FilePath(f"/storage-pool/metal-csi/{HANDLE}.img"), 50 << 30, Nqn(f"nqn.2000-02.com.mikrotik:{HANDLE}")
)
NEIGHBOUR = "/disk add type=file file-path=/storage-pool/boot/nixos-1.img file-size=8G slot=nixos-1 nvme-tcp-export=yes"

FINE, UNSENT, LOST_BEFORE, LOST_AFTER = "fine", "unsent", "lost before", "lost after"


class Link:
    """Runs commands on a console; each may be lost as ``faults`` says, and is fine after those."""

    def __init__(self, faults: list[str] | None = None, **switches: object) -> None:
        self.console = Console(Store(), Switches(**switches))  # type: ignore[arg-type]
        self.console.run(NEIGHBOUR)
        self.faults = list(faults or [])
        self.sent: list[str] = []
        self.spoil: Callable[[str], str] = lambda text: text

    async def run(self, command: str, *, deadline: float) -> Output:
        fault = self.faults.pop(0) if self.faults else FINE
        if fault == UNSENT:
            raise BoxUnreachable("no link")
        self.sent.append(command)
        if fault == LOST_BEFORE:
            raise OutcomeUnknown("lost")
        answer = self.console.run(command)
        if fault == LOST_AFTER:
            raise OutcomeUnknown("lost")
        return Output(self.spoil(answer.text + answer.error))

    @property
    def disks(self) -> list[str]:
        return [disk.slot for disk in self.console.store.disks]

    @property
    def files(self) -> list[str]:
        return [file.name for file in self.console.store.files.values() if file.kind == "file"]


def run(call: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(call)


def until_done(link: Link, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Call again after each failure that a sidecar would retry; any other failure is the test's."""
    for _ in range(20):
        try:
            return run(call())
        except (BoxUnreachable, OutcomeUnknown):
            assert len(link.faults) < 20
    raise AssertionError("it never ends")


faults = st.lists(st.sampled_from([FINE, UNSENT, LOST_BEFORE, LOST_AFTER]), max_size=16)


@settings(deadline=None)
@given(faults)
def test_creating_ends_with_one_disk_however_links_are_lost(lost: list[str]) -> None:
    link = Link(lost)
    box = Box(link)
    disk = until_done(link, lambda: box.create_disk(SPEC, deadline=0))
    assert disk.differences(SPEC) == {}
    assert link.disks == ["nixos-1", HANDLE]
    assert len(link.files) == 2


@settings(deadline=None)
@given(faults)
def test_nothing_is_sent_again_before_the_state_was_read_again(lost: list[str]) -> None:
    link = Link(lost)
    box = Box(link)
    until_done(link, lambda: box.create_disk(SPEC, deadline=0))
    until_done(link, lambda: box.delete_disk(SPEC.slot, path=SPEC.path, deadline=0))
    until_done(link, lambda: box.delete_file(SPEC.path, deadline=0))
    for one, next_one in zip(link.sent, link.sent[1:], strict=False):
        assert " print " in one or " print " in next_one, "two changes in a row"


@settings(deadline=None)
@given(faults, faults)
def test_deleting_ends_with_neither_disk_nor_file_however_links_are_lost(lost: list[str], lost_later: list[str]) -> None:
    link = Link()
    box = Box(link)
    run(box.create_disk(SPEC, deadline=0))
    link.faults = lost
    until_done(link, lambda: box.delete_disk(SPEC.slot, path=SPEC.path, deadline=0))
    link.faults = lost_later
    until_done(link, lambda: box.delete_file(SPEC.path, deadline=0))
    assert link.disks == ["nixos-1"]
    assert link.files == ["storage-pool/boot/nixos-1.img"]


@settings(deadline=None)
@given(st.integers(0, 12))
def test_a_volume_can_be_made_again_after_a_delete_that_stopped_anywhere(stop: int) -> None:
    link = Link()
    box = Box(link)
    run(box.create_disk(SPEC, deadline=0))

    async def delete() -> None:
        await box.delete_disk(SPEC.slot, path=SPEC.path, deadline=0)
        await box.delete_file(SPEC.path, deadline=0)

    link.faults = [FINE] * stop + [UNSENT] * 20
    with contextlib.suppress(BoxUnreachable, OutcomeUnknown):
        run(delete())
    link.faults = []
    assert run(box.create_disk(SPEC, leftover=Leftover.REMOVE, deadline=0)).differences(SPEC) == {}
    run(delete())
    assert (link.disks, link.files) == (["nixos-1"], ["storage-pool/boot/nixos-1.img"])


@pytest.mark.requirement("R17")
@settings(deadline=None)
@given(st.integers(0, 30))
def test_absence_is_never_concluded_from_a_shortened_answer(cut: int) -> None:
    link = Link()
    box = Box(link)
    run(box.create_disk(SPEC, deadline=0))
    link.spoil = lambda text: text[: len(text) * cut // 31]
    with pytest.raises(MalformedAnswer):
        run(box.disk(SPEC.slot, deadline=0))


def test_a_list_that_changed_between_print_and_count_is_read_again() -> None:
    link = Link()
    counts = iter(["0", "7"])
    link.spoil = lambda text: text.removesuffix("1\r\n") + next(counts, "1") + "\r\n"
    assert [disk.slot for disk in run(Box(link).disks(deadline=0))] == ["nixos-1"]
    assert len(link.sent) == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"slot": "pvc-other"}, "slot"),
        ({"size": 51 << 30}, "size"),
        ({"nvme_tcp_server_nqn": "nqn.2000-02.com.mikrotik:other"}, "nvme-tcp-server-nqn"),
        ({"nvme_tcp_server_port": 4421}, "nvme-tcp-server-port"),
        ({"nvme_tcp_export": False}, "nvme-tcp-export"),
        ({"file_path": "/storage-pool/elsewhere.img"}, "file-path"),
    ],
)
def test_a_disk_that_reads_back_otherwise_is_named_with_its_field(change: dict[str, object], field: str) -> None:
    link = Link()
    box = Box(link)
    plain_run = link.console.run

    def add_otherwise(line: str) -> Any:
        answer = plain_run(line)
        if line.startswith("/disk add"):
            for name, value in change.items():
                setattr(link.console.store.disks[-1], name, value)
        return answer

    link.console.run = add_otherwise  # type: ignore[method-assign]
    with pytest.raises(ReadBackMismatch) as caught:
        run(box.create_disk(SPEC, deadline=0))
    assert field in caught.value.differences
    assert field in str(caught.value)


def test_a_foreign_disk_in_our_slot_is_neither_taken_nor_removed() -> None:
    link = Link()
    box = Box(link)
    link.console.run(f"/disk add type=file file-path=/storage-pool/x.img file-size=1G slot={HANDLE}")
    with pytest.raises(DiskInTheWay, match="file-path"):
        run(box.create_disk(SPEC, deadline=0))
    with pytest.raises(DiskInTheWay, match="file-path"):
        run(box.delete_disk(SPEC.slot, path=SPEC.path, deadline=0))
    assert HANDLE in link.disks


def test_a_file_that_another_slot_is_made_of_is_in_the_way_whatever_the_policy() -> None:
    link = Link()
    box = Box(link)
    link.console.run(f"/disk add type=file file-path={SPEC.path} file-size=1G slot=somebody")
    for leftover in Leftover:
        with pytest.raises(Conflict, match="somebody"):
            run(box.create_disk(SPEC, leftover=leftover, deadline=0))
    assert link.files == ["storage-pool/boot/nixos-1.img", SPEC.path.file_name]


def test_a_mount_point_that_is_not_there_is_no_capacity() -> None:
    with pytest.raises(NoSuchItem):
        run(Box(Link()).capacity("elsewhere", deadline=0))


def test_a_box_that_refuses_an_existing_file_is_no_success() -> None:
    link = Link(existing_file="refuse")
    box = Box(link)
    run(box.create_disk(SPEC, deadline=0))
    run(box.delete_disk(SPEC.slot, deadline=0))
    with pytest.raises(Conflict):
        run(box.create_disk(SPEC, deadline=0))
    assert run(box.create_disk(SPEC, leftover=Leftover.REMOVE, deadline=0)).size == SPEC.size
