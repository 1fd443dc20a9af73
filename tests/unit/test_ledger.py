"""The ledger that pods keep on disks tells a disk that kept its word from one that did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vm.ledger import (
    BLOCK,
    SIZE,
    SLOTS,
    Damage,
    Disk,
    Entry,
    Found,
    Keeper,
    decode,
    encode,
    judge,
    last_of,
    read_shown,
    shown,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An empty file in the place of a disk."""
    file = tmp_path / "disk"
    file.write_bytes(bytes(SIZE))
    return file


@pytest.fixture
def disk(file: Path) -> Disk:
    """The disk; not every filesystem that a test's folder may lie on lets its caches be passed by."""
    return Disk(file, cached=True)


def filled(*writers: tuple[str, int]) -> tuple[list[Found], dict[int, str]]:
    """Return a disk after some writers have written so many blocks each, in turn, and what they acknowledged."""
    found: list[Found] = [None] * SLOTS
    acknowledged: dict[int, str] = {}
    for writer, count in writers:
        for _ in range(count):
            number = len(acknowledged) + 1
            acknowledged[number] = writer
            found[number % SLOTS] = Entry(number, writer)
    return found, acknowledged


@given(st.integers(0, 2**64 - 1), st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=40))
def test_a_block_comes_back_as_it_was_written(number: int, writer: str) -> None:
    assert decode(encode(Entry(number, writer)), number % SLOTS) == Entry(number, writer)


@given(st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_any_changed_byte_is_damage(position: int, change: int) -> None:
    block = bytearray(encode(Entry(7, "writer")))
    block[position] ^= change
    assert isinstance(decode(bytes(block), 7), Damage)


def test_a_block_in_another_s_place_is_damage() -> None:
    assert isinstance(decode(encode(Entry(7, "writer")), 8), Damage)


def test_half_a_block_is_damage() -> None:
    old, new = encode(Entry(7, "writer")), encode(Entry(7 + SLOTS, "writer"))
    assert isinstance(decode(new[: BLOCK // 2] + old[BLOCK // 2 :], 7), Damage)


def test_a_disk_that_kept_everything_is_fine_once_around_and_more() -> None:
    assert judge(*filled(("a", SLOTS + 20), ("b", 30))) == []


def test_a_lost_write_is_noticed() -> None:
    found, acknowledged = filled(("a", 20))
    found[20] = None
    assert judge(found, acknowledged) == ["slot 20: block 20 was acknowledged, and the disk holds nothing"]


def test_a_late_write_over_a_newer_one_is_noticed() -> None:
    found, acknowledged = filled(("a", SLOTS + 20))
    found[20] = Entry(20, "a")
    assert judge(found, acknowledged) == [f"slot 20: block {SLOTS + 20} was acknowledged, and the disk holds 20"]


def test_a_write_of_another_under_the_same_number_is_noticed() -> None:
    found, acknowledged = filled(("a", 20), ("b", 5))
    found[21] = Entry(21, "a")
    assert judge(found, acknowledged) == ["slot 21: block 21 is a's, and b was told that it is written"]


def test_a_write_that_was_not_acknowledged_before_its_writer_died_may_be_there_or_not() -> None:
    found, acknowledged = filled(("a", 21))
    del acknowledged[21]
    assert judge(found, acknowledged) == []
    found[21] = None
    assert judge(found, acknowledged) == []


def test_a_write_far_ahead_is_noticed() -> None:
    found, acknowledged = filled(("a", 20))
    found[22] = Entry(22, "a")
    assert judge(found, acknowledged) == ["slot 22: block 22 is there, and the last one acknowledged is 20"]
    assert judge(found, acknowledged, in_flight=2) == []


def test_damage_is_noticed() -> None:
    found, acknowledged = filled(("a", 20))
    found[3] = Damage(3, "half of it")
    assert judge(found, acknowledged) == ["slot 3: half of it"]


def test_a_disk_holds_what_was_written(disk: Disk, file: Path) -> None:
    for number in (1, SLOTS + 1, 5):
        disk.write(Entry(number, "writer"))
    expected = {1: Entry(SLOTS + 1, "writer"), 5: Entry(5, "writer")}
    assert disk.read() == [expected.get(slot) for slot in range(SLOTS)]
    assert file.stat().st_size == SIZE


def test_what_a_disk_holds_survives_being_printed() -> None:
    found, _ = filled(("a", 20))
    found[3] = Damage(3, "half of it")
    assert read_shown(shown(found)) == found


class Ordered:
    """A keeper and who gives it orders."""

    def __init__(self, disk: Disk, folder: Path, name: str = "writer") -> None:
        self.folder = folder
        self.name = name
        self.keeper = Keeper(disk, folder, name)

    def order(self, number: int, *, write: bool) -> None:
        new = self.folder / "new"
        new.write_text(json.dumps({"id": number, "write": write}))
        new.replace(self.folder / f"{self.name}.order")

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{self.name}.log").read_text().splitlines()]


def test_a_keeper_without_orders_touches_nothing(disk: Disk, tmp_path: Path) -> None:
    ordered = Ordered(disk, tmp_path)
    ordered.keeper.step()
    assert ordered.log() == []
    assert last_of(disk.read()) == 0


def test_a_keeper_acknowledges_each_block_that_it_wrote(disk: Disk, tmp_path: Path) -> None:
    ordered = Ordered(disk, tmp_path)
    ordered.order(1, write=True)
    for _ in range(3):
        ordered.keeper.step()
    assert [line.get("wrote") for line in ordered.log()] == [None, 1, 2, 3]
    assert judge(disk.read(), dict.fromkeys((1, 2, 3), "writer")) == []


def test_a_keeper_stops_when_told_to_and_says_where(disk: Disk, tmp_path: Path) -> None:
    ordered = Ordered(disk, tmp_path)
    ordered.order(1, write=True)
    ordered.keeper.step()
    ordered.order(2, write=False)
    for _ in range(3):
        ordered.keeper.step()
    assert ordered.log()[-1] == {"id": 2, "last": 1}


def test_a_second_keeper_goes_on_where_the_first_one_stopped(disk: Disk, tmp_path: Path) -> None:
    disk.write(Entry(41, "somebody"))
    ordered = Ordered(disk, tmp_path)
    ordered.order(1, write=True)
    ordered.keeper.step()
    assert ordered.log()[0] == {"id": 1, "last": 41}
    assert ordered.log()[1]["wrote"] == 42


def test_a_keeper_that_is_started_again_goes_on_with_its_last_order(disk: Disk, tmp_path: Path) -> None:
    ordered = Ordered(disk, tmp_path)
    ordered.order(1, write=True)
    ordered.keeper.step()
    Ordered(disk, tmp_path).keeper.step()
    assert [line.get("wrote") for line in ordered.log()] == [None, 1, None, 2]


def test_a_keeper_ends_where_the_disk_is_damaged(disk: Disk, file: Path, tmp_path: Path) -> None:
    disk.write(Entry(1, "writer"))
    with file.open("r+b") as raw:
        raw.seek(BLOCK + 100)
        raw.write(b"!")
    ordered = Ordered(disk, tmp_path)
    ordered.order(1, write=False)
    with pytest.raises(SystemExit, match="checksum"):
        ordered.keeper.step()
    assert "checksum" in ordered.log()[-1]["error"]


def test_a_keeper_ends_where_the_disk_refuses_a_write(file: Path, tmp_path: Path) -> None:
    ordered = Ordered(Disk(file, cached=True, read_only=True), tmp_path)
    ordered.order(1, write=True)
    with pytest.raises(SystemExit, match="write 1"):
        ordered.keeper.step()
    assert ordered.log()[-1]["failed"] == "write 1"
