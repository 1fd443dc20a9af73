"""The client's subvolumes on the simulated box, over real SSH: bytes, lost links, boxes without Btrfs."""

from __future__ import annotations

import os

import pytest

from rds_csi.routeros import (
    DiskSpec,
    FilePath,
    Nqn,
    OutcomeUnknown,
    PoolFull,
    Slot,
    SubvolumeInTheWay,
    Subvolumes,
    SubvolumesMissing,
)
from tests.simulator import SimulatedBox
from tests.simulator.conftest import BASE, HANDLE, Client, read, within, write

SOURCE = BASE.child(HANDLE)
SNAPSHOT = BASE.child("snap-1")
RESTORED = BASE.child("pvc-restored")
IMAGE = "disk.img"
ADD = "^/disk/btrfs/subvolume/add read-only=yes"
REMOVE = "^/disk/btrfs/subvolume/remove"


def image(directory: FilePath) -> str:
    return str(directory.child(IMAGE))[1:]


def disk_in(directory: FilePath, size: int = 1 << 30) -> DiskSpec:
    name = directory.last_name
    return DiskSpec(Slot(name), directory.child(IMAGE), size, Nqn(f"nqn.2000-02.com.mikrotik:{name}"))


@pytest.fixture
def ros(ros: SimulatedBox) -> SimulatedBox:
    """A box with Btrfs."""
    ros.switch(version="7.24")
    return ros


@pytest.fixture
async def subvolumes(client: Client) -> Subvolumes:
    """The client's operations, on a box with one volume."""
    made = Subvolumes(client[1])
    await made.create(SOURCE, deadline=within(5))
    await client[0].create_disk(disk_in(SOURCE), deadline=within(5))
    return made


async def test_a_snapshot_is_restored_larger_with_its_bytes(ros: SimulatedBox, client: Client, subvolumes: Subvolumes) -> None:
    box, _, _ = client
    pattern, later = os.urandom(1 << 20), os.urandom(1 << 20)
    write(ros.backing_file(image(SOURCE)), pattern, at=123)
    assert await subvolumes.create(SNAPSHOT, parent=SOURCE, read_only=True, deadline=within(5))
    write(ros.backing_file(image(SOURCE)), later, at=123)
    assert await subvolumes.create(RESTORED, parent=SNAPSHOT, deadline=within(5))
    disk = await box.create_disk_of_file(disk_in(RESTORED, 2 << 30), deadline=within(5))
    restored = ros.backing_file(image(RESTORED))
    assert (disk.size, restored.stat().st_size) == (2 << 30, 2 << 30)
    assert read(restored, 123, 1 << 20) == pattern
    assert read(ros.backing_file(image(SOURCE)), 123, 1 << 20) == later


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_snapshot_whose_answer_is_lost_is_made_once(ros: SimulatedBox, subvolumes: Subvolumes, when: str) -> None:
    ros.drop_link(when, ADD)
    if when == "before":
        with pytest.raises(OutcomeUnknown):
            await subvolumes.create(SNAPSHOT, parent=SOURCE, read_only=True, deadline=within(5))
        assert not await subvolumes.exists(SNAPSHOT, deadline=within(5))
    await subvolumes.create(SNAPSHOT, parent=SOURCE, read_only=True, deadline=within(5))
    assert ros.subvolumes()["metal-csi/snap-1"]["read_only"]
    assert sum(file.startswith(f"{BASE}/snap-1"[1:]) for file in ros.files()) == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_removal_whose_answer_is_lost_ends_well(ros: SimulatedBox, subvolumes: Subvolumes, when: str) -> None:
    await subvolumes.create(SNAPSHOT, parent=SOURCE, read_only=True, deadline=within(5))
    ros.drop_link(when, REMOVE)
    if when == "before":
        with pytest.raises(OutcomeUnknown):
            await subvolumes.remove(SNAPSHOT, holding=IMAGE, deadline=within(5))
    await subvolumes.remove(SNAPSHOT, holding=IMAGE, deadline=within(5))
    assert sorted(ros.subvolumes()) == ["metal-csi", f"metal-csi/{HANDLE}"]
    assert list(ros.files()) == [image(SOURCE)]


@pytest.mark.parametrize("removed", [FilePath(f"/storage-pool/copied/{HANDLE}"), SOURCE], ids=["the copy", "the subvolume"])
async def test_nothing_is_removed_where_a_copied_directory_has_a_subvolumes_last_name(
    ros: SimulatedBox, client: Client, subvolumes: Subvolumes, removed: FilePath
) -> None:
    box, _, _ = client
    copied = FilePath(f"/storage-pool/copied/{HANDLE}")
    disk = disk_in(copied)
    await box.create_disk(DiskSpec(Slot("copied"), disk.path, disk.size, Nqn(f"{disk.nqn}-copied")), deadline=within(5))
    await box.delete_disk(Slot("copied"), deadline=within(5))
    await box.delete_disk(Slot(HANDLE), deadline=within(5))
    with pytest.raises(SubvolumeInTheWay, match="last name"):
        await subvolumes.remove(removed, holding=IMAGE, deadline=within(5))
    assert sorted(ros.files()) == sorted([image(SOURCE), image(copied)])
    assert f"metal-csi/{HANDLE}" in ros.subvolumes()


async def test_an_empty_directory_of_the_same_last_name_keeps_no_subvolume(
    ros: SimulatedBox, client: Client, subvolumes: Subvolumes
) -> None:
    box, _, _ = client
    empty = FilePath(f"/storage-pool/backup/{HANDLE}")
    disk = disk_in(empty)
    await box.create_disk(DiskSpec(Slot("copied"), disk.path, disk.size, Nqn(f"{disk.nqn}-copied")), deadline=within(5))
    for slot in ("copied", HANDLE):
        await box.delete_disk(Slot(slot), deadline=within(5))
    await box.delete_file(disk.path, deadline=within(5))
    assert await box.file(empty, deadline=within(5)) is not None
    await subvolumes.remove(SOURCE, holding=IMAGE, deadline=within(5))
    assert f"metal-csi/{HANDLE}" not in ros.subvolumes()


async def test_a_command_that_fails_on_the_box_makes_nothing(ros: SimulatedBox, subvolumes: Subvolumes) -> None:
    ros.fail_command(ADD, "failure: not enough space")
    with pytest.raises(PoolFull):
        await subvolumes.create(SNAPSHOT, parent=SOURCE, read_only=True, deadline=within(5))
    assert "metal-csi/snap-1" not in ros.subvolumes()
    assert await subvolumes.create(SNAPSHOT, parent=SOURCE, read_only=True, deadline=within(5))


@pytest.mark.parametrize("flavour", [{"version": "7.16"}, {"rose_storage": False}])
async def test_a_box_without_btrfs_offers_no_subvolumes(ros: SimulatedBox, client: Client, flavour: dict[str, object]) -> None:
    ros.switch(**flavour)
    with pytest.raises(SubvolumesMissing, match="bad command name btrfs"):
        await Subvolumes(client[1]).label("storage-pool", deadline=within(5))


async def test_a_pool_with_another_file_system_offers_no_subvolumes(ros: SimulatedBox, client: Client) -> None:
    ros.pool(fs="xfs")
    with pytest.raises(SubvolumesMissing, match="xfs"):
        await Subvolumes(client[1]).label("storage-pool", deadline=within(5))


async def test_another_label_is_found_out(ros: SimulatedBox, client: Client) -> None:
    ros.pool(fs_label="ocp-storage")
    subvolumes = Subvolumes(client[1])
    assert await subvolumes.label("storage-pool", deadline=within(5)) == "ocp-storage"
    assert await subvolumes.create(SOURCE, deadline=within(5))


@pytest.mark.parametrize("width", [40, 80, 132, 200])
async def test_answers_of_7_24_are_read_at_any_width(ros: SimulatedBox, client: Client, subvolumes: Subvolumes, width: int) -> None:
    box, _, _ = client
    ros.switch(width=width)
    for number in range(12):
        await subvolumes.create(BASE.child(f"snap-{number}"), parent=SOURCE, read_only=True, deadline=within(5))
    files = await box.files_below(BASE, deadline=within(5))
    assert sum(file.is_regular for file in files) == 13
    assert {str(file.path).lstrip("/") for file in files if file.is_regular} == set(ros.files())
    assert [disk.slot for disk in await box.disks(deadline=within(5))] == [HANDLE]
    assert await box.disk(Slot("nobody"), deadline=within(5)) is None
