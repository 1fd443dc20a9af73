"""Btrfs subvolumes of the simulated box, and the bytes of the images in them."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from tests.simulator import SimulatedBox
from tests.simulator.conftest import read, write
from tests.simulator.images import Images
from tests.simulator.server import Box
from tests.simulator.store import Store
from tests.simulator.test_simulator import logged_in

FS = "fs=storage-pool-fs"
MENU = "/disk/btrfs/subvolume"
BASE = "storage-pool/metal-csi"
IMAGE = f"{BASE}/pvc-1/disk.img"
SNAPSHOT = f"{MENU}/add read-only=yes parent=pvc-1 {FS} name=metal-csi/snap-1"
RESTORE = f"{MENU}/add parent=snap-1 {FS} name=metal-csi/pvc-2"
EXISTS = "failure: already have such entry\r\n"


def disk(path: str, slot: str, size: str = " file-size=1G") -> str:
    return f"/disk add type=file file-path=/{path} slot={slot}{size}"


@pytest.fixture
def ros(ros: SimulatedBox) -> SimulatedBox:
    """A box with subvolumes, one of them with a disk in it."""
    ros.switch(version="7.24")
    lines = (f"{MENU}/add {FS} name=metal-csi", f"{MENU}/add {FS} name=metal-csi/pvc-1", disk(IMAGE, "pvc-1"))
    assert [ros.run(line) for line in lines] == ["", "", ""]
    return ros


def count(ros: SimulatedBox, where: str = "") -> int:
    return int(ros.run(f":put [:len [{MENU} find{where}]]"))


# The menu


def test_a_subvolume_is_a_directory_that_is_found_by_its_last_name(ros: SimulatedBox) -> None:
    assert count(ros) == 2
    assert count(ros, ' where name="pvc-1"') == 1
    assert count(ros, ' where name="metal-csi/pvc-1"') == 0
    printed = ros.run(f'/file print detail where name~"{BASE}/"; :put [:len [/file find where name~"{BASE}/"]]')
    assert f"name={BASE}/pvc-1 type=directory" in printed
    assert f"name={IMAGE} type=.img file size=1024.0MiB" in " ".join(printed.split())
    assert printed.endswith("\r\n2\r\n")


@pytest.mark.parametrize(
    ("name", "value"), [("name", "pvc-1"), ("fullname", "metal-csi/pvc-1"), ("path", f"/{BASE}/pvc-1"), ("fs", "storage-pool-fs")]
)
def test_single_properties_are_told(ros: SimulatedBox, name: str, value: str) -> None:
    assert ros.run(f":put [{MENU} get [find where name=pvc-1] {name}]") == value + "\r\n"


def test_it_has_a_uuid_and_a_time_of_creation(ros: SimulatedBox) -> None:
    uuids = {ros.run(f":put [{MENU} get [find where name={name}] uuid]") for name in ("pvc-1", "metal-csi")}
    assert len(uuids) == 2
    created = ros.run(f":put [{MENU} get [find where name=pvc-1] creation-time]")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\r\n", created)


@pytest.mark.parametrize("spelling", [MENU + "/add", MENU + " add", "/disk btrfs subvolume add"])
def test_a_menu_may_be_spelled_with_spaces(ros: SimulatedBox, spelling: str) -> None:
    assert ros.run(f"{spelling} {FS} name=here") == ""
    assert "here" in ros.subvolumes()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (f"{MENU}/add {FS} name=metal-csi/pvc-1", EXISTS),
        (f"{MENU}/add {FS} name=metal-csi/pvc-1/disk.img", EXISTS),
        (f"{MENU}/add fs=other name=x", "input does not match any value of fs\r\n"),
        (f"{MENU}/add {FS} name=x parent=nobody", "input does not match any value of parent\r\n"),
        (f"{MENU}/add {FS} name=x parent=metal-csi/pvc-1", "input does not match any value of parent\r\n"),
        (f"{MENU}/add {FS} name=x read-only=maybe", "invalid value for argument read-only\r\n"),
        (f"{MENU}/add {FS}", "missing =name=\r\n"),
        (f"{MENU}/add name=x", "missing =fs=\r\n"),
        (f"{MENU}/print", "bad command name print (line 1 column 1)\r\n"),
        (f"{MENU}/add {FS} name=x nonsense=1", "expected end of command (line 1 column 53)\r\n"),
    ],
)
def test_what_cannot_be_is_refused(ros: SimulatedBox, line: str, text: str) -> None:
    before = ros.subvolumes(), ros.files()
    assert ros.run(line) == text
    assert (ros.subvolumes(), ros.files()) == before


def test_a_missing_directory_above_is_refused_or_created(ros: SimulatedBox) -> None:
    assert ros.run(f"{MENU}/add {FS} name=metal-csi/gold/pvc-3").startswith("failure: ")
    ros.switch(missing_parent="create")
    assert ros.run(f"{MENU}/add {FS} name=metal-csi/gold/pvc-3") == ""
    assert f"name={BASE}/gold type=directory" in ros.run(f'/file print detail where name="{BASE}/gold"')


def test_a_last_name_in_two_directories_is_found_and_removed_twice(ros: SimulatedBox) -> None:
    assert ros.run(f"{MENU}/add {FS} name=pvc-1") == ""
    assert count(ros, " where name=pvc-1") == 2
    assert ros.run(f"{MENU}/remove [find where name=pvc-1]") == ""
    assert list(ros.subvolumes()) == ["metal-csi"]
    assert ros.files() == {}


def test_a_pool_without_btrfs_takes_no_subvolume(ros: SimulatedBox) -> None:
    ros.pool(fs="xfs")
    assert ros.run(f"{MENU}/add {FS} name=x") == "input does not match any value of fs\r\n"


def test_a_disk_outlives_the_subvolume_that_its_file_was_in(ros: SimulatedBox) -> None:
    assert ros.run(f"{MENU}/remove [find where name=pvc-1]") == ""
    assert (list(ros.disks()), list(ros.files()), list(ros.subvolumes())) == (["pvc-1"], [], ["metal-csi"])


def test_a_subvolume_with_subvolumes_in_it_stays(ros: SimulatedBox) -> None:
    assert ros.run(f"{MENU}/remove [find where name=metal-csi]").startswith("failure: ")
    assert len(ros.subvolumes()) == 2


def test_nothing_in_a_read_only_subvolume_changes(ros: SimulatedBox) -> None:
    assert ros.run(SNAPSHOT) == ""
    before = ros.disks(), ros.files(), ros.subvolumes()
    for line in (
        disk(f"{BASE}/snap-1/disk.img", "snap-1", ""),
        disk(f"{BASE}/snap-1/new.img", "snap-1"),
        f'/file remove [find name="{BASE}/snap-1/disk.img"]',
        f"{MENU}/add {FS} name=metal-csi/snap-1/in",
    ):
        assert ros.run(line).startswith("failure: ")
    assert (ros.disks(), ros.files(), ros.subvolumes()) == before
    assert ros.run(f"{MENU}/remove [find where name=snap-1]") == ""
    assert list(ros.files()) == [IMAGE]


def test_directories_are_removed_only_when_empty_and_subvolumes_never(ros: SimulatedBox) -> None:
    ros.run(disk(f"{BASE}/plain/x.img", "x"))
    assert ros.run(f"/file remove {BASE}/plain") == "failure: directory not empty\r\n"
    ros.run(f"/file remove {BASE}/plain/x.img")
    assert ros.run(f"/file remove {BASE}/plain") == ""
    ros.run(f"/file remove {IMAGE}")
    assert ros.run(f"/file remove {BASE}/pvc-1").startswith("failure: ")
    assert len(ros.subvolumes()) == 2


# Bytes


def test_a_snapshot_keeps_the_bytes_that_its_source_loses(ros: SimulatedBox) -> None:
    source = ros.backing_file(IMAGE)
    write(source, b"first", 512 << 20)
    assert ros.run(SNAPSHOT) == ""
    write(source, b"later", 512 << 20)
    snapshot = ros.backing_file(f"{BASE}/snap-1/disk.img")
    assert read(snapshot, 512 << 20, 5) == b"first"
    assert read(source, 512 << 20, 5) == b"later"


def test_a_restored_disk_holds_what_the_snapshot_held_and_goes_its_own_way(ros: SimulatedBox) -> None:
    pattern = os.urandom(3 << 20)
    write(ros.backing_file(IMAGE), pattern, 5)
    assert [ros.run(SNAPSHOT), ros.run(RESTORE), ros.run(disk(f"{BASE}/pvc-2/disk.img", "pvc-2", ""))] == ["", "", ""]
    assert ros.disks()["pvc-2"]["size"] == 1 << 30
    restored = ros.backing_file(f"{BASE}/pvc-2/disk.img")
    assert (restored.stat().st_size, read(restored, 5, 3 << 20)) == (1 << 30, pattern)
    write(restored, b"changed", 5)
    assert read(ros.backing_file(f"{BASE}/snap-1/disk.img"), 5, 3 << 20) == pattern


def test_an_image_nobody_wrote_to_costs_nothing_and_reads_as_zeros(ros: SimulatedBox) -> None:
    ros.pool(size=64 << 40)
    assert ros.run(disk(f"{BASE}/pvc-1/huge.img", "huge", " file-size=16T")) == ""
    assert ros.run(SNAPSHOT) == ""
    assert list(Images.beside(ros.state_file).directory.glob("*")) == []
    image = ros.backing_file(f"{BASE}/snap-1/disk.img")
    assert (image.stat().st_size, image.stat().st_blocks, read(image, 0, 5)) == (1 << 30, 0, bytes(5))


def test_a_copy_is_as_sparse_as_what_it_was_made_of(ros: SimulatedBox) -> None:
    source = ros.backing_file(IMAGE)
    write(source, b"x" * 8192, 1 << 29)
    ros.run(SNAPSHOT)
    assert ros.backing_file(f"{BASE}/snap-1/disk.img").stat().st_blocks <= source.stat().st_blocks


def test_growing_keeps_the_bytes(ros: SimulatedBox) -> None:
    image = ros.backing_file(IMAGE)
    write(image, b"kept", (1 << 30) - 4)
    assert ros.run("/disk set [find slot=pvc-1] file-size=2G") == ""
    assert (image.stat().st_size, read(image, (1 << 30) - 4, 8)) == (2 << 30, b"kept" + bytes(4))


def test_a_disk_added_on_a_file_that_is_there_has_its_bytes_and_size(ros: SimulatedBox) -> None:
    write(ros.backing_file(IMAGE), b"kept", 0)
    ros.run("/disk remove [find slot=pvc-1]")
    assert ros.run(disk(IMAGE, "pvc-1", "")) == ""
    assert ros.disks()["pvc-1"]["size"] == 1 << 30
    assert read(ros.backing_file(IMAGE), 0, 4) == b"kept"
    ros.switch(existing_file="refuse")
    ros.run("/disk remove [find slot=pvc-1]")
    assert ros.run(disk(IMAGE, "pvc-1", "")) == "failure: file already exists\r\n"


def test_bytes_go_with_their_file_and_never_come_back(ros: SimulatedBox) -> None:
    first = ros.backing_file(IMAGE)
    write(first, b"secret", 0)
    ros.run(f"/disk remove [find slot=pvc-1]; /file remove {IMAGE}")
    assert not first.exists()
    ros.run(disk(IMAGE, "pvc-1"))
    second = ros.backing_file(IMAGE)
    assert read(second, 0, 6) == bytes(6)
    ros.run(f"{MENU}/remove [find where name=pvc-1]")
    assert not second.exists()
    with pytest.raises(KeyError):
        ros.backing_file(IMAGE)


def test_snapshots_take_no_room_of_their_own(ros: SimulatedBox) -> None:
    free = ":put [/disk get storage-pool free]"
    before = ros.run(free)
    assert [ros.run(SNAPSHOT), ros.run(RESTORE)] == ["", ""]
    assert ros.run(free) == before
    ros.switch(full_pool=True)
    assert ros.run(f"{MENU}/add {FS} name=more") == "failure: not enough space\r\n"


# Kills and lost links


def test_subvolumes_and_bytes_survive_a_kill(ros: SimulatedBox) -> None:
    write(ros.backing_file(IMAGE), b"kept", 0)
    ros.run(SNAPSHOT)
    before = ros.subvolumes(), ros.files()
    ros.kill()
    assert read(ros.backing_file(f"{BASE}/snap-1/disk.img"), 0, 4) == b"kept"
    ros.start()
    assert (ros.subvolumes(), ros.files()) == before


@pytest.mark.parametrize("line", [SNAPSHOT, f"{MENU}/remove [find where name=pvc-1]"])
def test_a_kill_before_the_state_is_kept_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    state = tmp_path / "box.json"
    box = Box(state)
    box.switches.change({"version": "7.24"})
    for each in (f"{MENU}/add {FS} name=metal-csi", f"{MENU}/add {FS} name=metal-csi/pvc-1", disk(IMAGE, "pvc-1")):
        assert box.apply(each).error == ""
    kept = Store.load(state)
    write(Images.beside(state).make(kept.files[IMAGE].image, 1 << 30), b"kept", 0)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "save", die)
        with pytest.raises(KeyboardInterrupt):
            box.apply(line)
    again = Box(state)
    assert again.store == kept
    assert [path.name for path in Images.beside(state).directory.iterdir()] == [str(kept.files[IMAGE].image)]
    assert read(Images.beside(state).path(kept.files[IMAGE].image), 0, 4) == b"kept"


def test_a_kill_at_any_moment_leaves_whole_snapshots(ros: SimulatedBox) -> None:
    pattern = os.urandom(1 << 20)
    write(ros.backing_file(IMAGE), pattern, 0)
    begun = threading.Event()

    def work() -> None:
        try:
            for number in range(10_000):
                ros.run(f"{MENU}/add read-only=yes parent=pvc-1 {FS} name=metal-csi/snap-{number}")
                ros.run(f"{MENU}/remove [find where name=snap-{number - 2}]")
                if number == 5:
                    begun.set()
        except (OSError, ValueError):
            pass

    worker = threading.Thread(target=work)
    worker.start()
    assert begun.wait(20)
    ros.kill()
    worker.join(20)
    assert not worker.is_alive()
    ros.start()
    names = [name for name in ros.files() if "snap-" in name]
    assert len(names) in (2, 3)
    assert len(names) + 2 == len(ros.subvolumes())
    assert all(read(ros.backing_file(name), 0, 1 << 20) == pattern for name in [*names, IMAGE])
    assert len(list(Images.beside(ros.state_file).directory.iterdir())) == len(names) + 1


@pytest.mark.parametrize(("when", "there"), [("before", False), ("after", True)])
async def test_the_link_is_cut_before_or_after_a_snapshot_is_made(ros: SimulatedBox, when: str, there: bool) -> None:
    ros.drop_link(when, "^/disk/btrfs/subvolume/add read-only=yes")
    async with logged_in(ros) as connection:
        assert (await connection.run(SNAPSHOT)).exit_status is None
    assert ("metal-csi/snap-1" in ros.subvolumes()) == there


async def test_the_nth_command_that_fits_can_fail_without_effect(ros: SimulatedBox) -> None:
    ros.fail_command("subvolume/add", "failure: transaction aborted", nth=2)
    async with logged_in(ros) as connection:
        said = [str((await connection.run(line)).stdout) for line in (SNAPSHOT, RESTORE, RESTORE)]
    assert said == ["", "failure: transaction aborted\r\n", ""]
    assert sorted(ros.subvolumes()) == ["metal-csi", "metal-csi/pvc-1", "metal-csi/pvc-2", "metal-csi/snap-1"]
