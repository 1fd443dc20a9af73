"""Snapshots, restores and clones on a box that keeps the bytes: what they promise, whatever breaks in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from rds_records.names import record_name
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Shim
from tests.ring.rpc import GIB, Csi, Refused, at_once, code_of
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

BASE = "storage-pool/metal-csi"
OLD, NEW = b"before the snapshot", b"after the snapshot!"
SNAPSHOT_RPCS = {"CREATE_DELETE_SNAPSHOT", "LIST_SNAPSHOTS", "CLONE_VOLUME"}


@pytest.fixture(scope="module")
def btrfs_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """A box that has Btrfs subvolumes."""
    with SimulatedBox(tmp_path_factory.mktemp("btrfs"), version="7.24") as box:
        yield box


@pytest.fixture(scope="module")
def snapshot_shim(installed: ControlPlane, btrfs_box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """A shim of that box."""
    with Shim(installed, tmp_path_factory.mktemp("shim"), reach(btrfs_box)) as shim:
        yield shim


@pytest.fixture(scope="module")
def snapshotting(snapshot_shim: Shim) -> Iterator[Csi]:
    """CSI calls to that shim."""
    with Csi(snapshot_shim.endpoint) as csi:
        yield csi


class Volumes:
    """This test's volumes and snapshots, removed afterwards."""

    def __init__(self, csi: Csi, box: SimulatedBox) -> None:
        self.csi = csi
        self.box = box
        self._volumes: list[str] = []
        self._snapshots: list[str] = []

    def make(self, name: str = "", **arguments: object) -> str:
        volume = self.csi.create(name or f"pvc-{uuid4()}", **arguments)  # type: ignore[arg-type]
        self._volumes.append(volume.volume_id)
        return str(volume.volume_id)

    def snapshot(self, source: str, name: str = "") -> str:
        snapshot = self.csi.snapshot(name or f"snapshot-{uuid4()}", source)
        self._snapshots.append(snapshot.snapshot_id)
        return str(snapshot.snapshot_id)

    def write(self, handle: str, data: bytes) -> None:
        with self.box.backing_file(f"{BASE}/{handle}/disk.img").open("r+b") as file:
            file.seek(4096)
            file.write(data)

    def read(self, handle: str) -> bytes:
        with self.box.backing_file(f"{BASE}/{handle}/disk.img").open("rb") as file:
            file.seek(4096)
            return file.read(len(OLD))

    def clean_up(self) -> None:
        for handle in self._volumes:
            self.csi.unpublish(handle)
            self.csi.delete(handle)
        for snapshot in self._snapshots:
            self.csi.delete_snapshot(snapshot)


@pytest.fixture
def volumes(snapshotting: Csi, btrfs_box: SimulatedBox) -> Iterator[Volumes]:
    """Volumes of this test; nothing of them may be left on the box at its end."""
    volumes = Volumes(snapshotting, btrfs_box)
    yield volumes
    volumes.clean_up()
    assert (btrfs_box.disks(), btrfs_box.files(), set(btrfs_box.subvolumes()) - {"metal-csi"}) == ({}, {}, set())


def refusal(call: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def persevering(call: Callable[[], object]) -> object:
    """Call again, as a sidecar does, for as long as the answer is that it may be right later; return the answer."""

    def attempt() -> object:
        try:
            return call() or True
        except Refused as error:
            if error.code not in {"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"}:
                raise
            return None

    return eventually("the call is answered", attempt)


# What they promise


@pytest.mark.requirement("R49")
def test_a_restored_volume_has_the_bytes_that_its_source_had_at_the_snapshot(volumes: Volumes) -> None:
    source = volumes.make()
    volumes.write(source, OLD)
    snapshot = volumes.snapshot(source)
    volumes.write(source, NEW)
    restored = volumes.make(snapshot=snapshot)
    assert (volumes.read(restored), volumes.read(source)) == (OLD, NEW)


def test_a_restored_volume_is_written_without_a_trace_in_its_snapshot(volumes: Volumes) -> None:
    source = volumes.make()
    volumes.write(source, OLD)
    snapshot = volumes.snapshot(source)
    volumes.write(volumes.make(snapshot=snapshot), NEW)
    assert volumes.read(volumes.make(snapshot=snapshot)) == OLD


def test_a_clone_has_the_bytes_of_its_source_and_goes_its_own_way(volumes: Volumes) -> None:
    source = volumes.make()
    volumes.write(source, OLD)
    clone = volumes.make(clone=source)
    volumes.write(clone, NEW)
    assert (volumes.read(source), volumes.read(clone)) == (OLD, NEW)


def test_restores_outlive_snapshot_and_source(volumes: Volumes) -> None:
    source = volumes.make()
    volumes.write(source, OLD)
    snapshot = volumes.snapshot(source)
    restored = volumes.make(snapshot=snapshot)
    volumes.csi.delete(source)
    volumes.csi.delete_snapshot(snapshot)
    assert volumes.read(restored) == OLD


def test_a_snapshot_outlives_its_source(volumes: Volumes) -> None:
    source = volumes.make()
    volumes.write(source, OLD)
    snapshot = volumes.snapshot(source)
    volumes.csi.delete(source)
    assert volumes.read(volumes.make(snapshot=snapshot)) == OLD


@pytest.mark.requirement("R32")
def test_a_snapshot_is_taken_while_two_nodes_hold_the_volume(volumes: Volumes, cluster: Cluster) -> None:
    source = volumes.make()
    for node in (cluster.make_node("a"), cluster.make_node("b")):
        volumes.csi.publish(source, node)
    volumes.snapshot(source)
    (taken,) = volumes.csi.snapshots(source_volume_id=source)[0]
    assert taken.ready_to_use
    volumes.csi.unpublish(source)
    volumes.csi.delete(source)
    # No operator runs here: what is to be reported would keep the record, and be told to the next one.
    cluster.forget(source)


def test_a_restore_may_be_larger_than_its_snapshot(volumes: Volumes) -> None:
    source = volumes.make(size=GIB)
    volumes.write(source, OLD)
    restored = volumes.csi.create(name := f"pvc-{uuid4()}", size=3 * GIB, snapshot=volumes.snapshot(source))
    volumes.make(name, size=3 * GIB, snapshot=restored.content_source.snapshot.snapshot_id)
    assert (restored.capacity_bytes, volumes.box.disks()[name]["size"], volumes.read(name)) == (3 * GIB, 3 * GIB, OLD)


def test_a_restore_is_never_smaller_than_its_snapshot(volumes: Volumes) -> None:
    snapshot = volumes.snapshot(volumes.make(size=2 * GIB))
    handle = volumes.make(size=GIB, snapshot=snapshot)
    assert volumes.box.disks()[handle]["size"] == 2 * GIB
    assert refusal(lambda: volumes.make(size=GIB, limit=GIB, snapshot=snapshot)).code == "OUT_OF_RANGE"


def test_a_restore_is_as_large_as_what_the_snapshot_really_holds(volumes: Volumes, cluster: Cluster) -> None:
    snapshot = volumes.snapshot(volumes.make(size=GIB))
    (path,) = [path for path in volumes.box.subvolumes() if snapshot in path]
    volumes.box.grow_file(f"storage-pool/{path}/disk.img", 3 * GIB)
    name = f"pvc-{uuid4()}"
    assert code_of(lambda: volumes.csi.create(name, size=GIB, limit=2 * GIB, snapshot=snapshot)) == "OUT_OF_RANGE"
    assert (name in volumes.box.disks(), cluster.record(name)) == (False, None)
    volumes.make(name, size=GIB, snapshot=snapshot)
    record = cluster.record(name)
    assert record
    assert (record["spec"]["capacityBytes"], volumes.box.disks()[name]["size"]) == (3 * GIB, 3 * GIB)


def test_a_volume_in_a_directory_of_its_storage_class_is_snapshotted_there(volumes: Volumes) -> None:
    directory = f"/{BASE}/vms/fast"
    handle = volumes.make(parameters={"volumePath": directory})
    snapshot = volumes.snapshot(handle)
    assert [one.snapshot_id for one in volumes.csi.snapshots(source_volume_id=handle)[0]] == [snapshot]
    assert {path.split("_")[0] for path in volumes.box.subvolumes()} == {
        "metal-csi", "metal-csi/vms", "metal-csi/vms/fast", f"metal-csi/vms/fast/{handle}", f"metal-csi/vms/fast/{snapshot}"
    }  # fmt: skip
    restored = volumes.make(snapshot=snapshot)
    assert volumes.box.disks()[restored]["file_path"] == f"/{BASE}/{restored}/disk.img"
    volumes.clean_up()
    for name in ("fast", "vms"):
        volumes.box.run(f"/disk/btrfs/subvolume/remove [find where name={name}]")


# The same answer to every retry


@pytest.mark.requirement("R50")
def test_a_repeated_snapshot_is_the_first_one(volumes: Volumes) -> None:
    source = volumes.make(size=GIB)
    first = volumes.csi.snapshot("snapshot-x", source)
    volumes.write(source, NEW)
    assert volumes.csi.snapshot("snapshot-x", source) == first
    volumes.snapshot(source, "snapshot-x")
    assert (first.source_volume_id, first.size_bytes, first.ready_to_use) == (source, GIB, True)
    assert first.creation_time.seconds > 1_700_000_000


@pytest.mark.requirement("R50")
def test_a_snapshots_name_is_for_one_volume(volumes: Volumes) -> None:
    one, other = volumes.make(), volumes.make()
    volumes.snapshot(one, "snapshot-y")
    refused = refusal(lambda: volumes.csi.snapshot("snapshot-y", other))
    assert (refused.code, one in refused.message, other in refused.message) == ("ALREADY_EXISTS", True, True)


@pytest.mark.requirement("R51")
def test_a_repeated_restore_is_answered_the_same_with_its_source(volumes: Volumes) -> None:
    snapshot = volumes.snapshot(volumes.make(size=2 * GIB))
    name = f"pvc-{uuid4()}"
    volumes.make(name, size=GIB, snapshot=snapshot)
    first, second = (volumes.csi.create(name, size=GIB, snapshot=snapshot) for _ in range(2))
    assert first == second
    assert second.content_source.snapshot.snapshot_id == snapshot


@pytest.mark.requirement("R51")
def test_a_repeated_clone_is_answered_the_same_after_its_source_is_gone(volumes: Volumes) -> None:
    source, name = volumes.make(), f"pvc-{uuid4()}"
    first = volumes.csi.create(name, clone=source)
    volumes.csi.delete(source)
    volumes.make(name, clone=source)
    assert volumes.csi.create(name, clone=source) == first
    assert first.content_source.volume.volume_id == source


def test_a_volume_of_another_source_is_another_volume(volumes: Volumes) -> None:
    source = volumes.make()
    handle = volumes.make(clone=source)
    for snapshot, clone in (("", ""), ("", handle), (volumes.snapshot(source), "")):
        assert code_of(partial(volumes.csi.create, handle, snapshot=snapshot, clone=clone)) == "ALREADY_EXISTS"


def test_the_same_snapshot_asked_for_at_once_is_taken_once(volumes: Volumes) -> None:
    source = volumes.make()
    codes = at_once([lambda: volumes.csi.snapshot("snapshot-z", source)] * 6)
    assert set(codes) <= {"OK", "ABORTED"}
    volumes.snapshot(source, "snapshot-z")
    assert len([name for name in volumes.box.subvolumes() if "snap-" in name]) == 1


# Lists


@pytest.mark.requirement("R50")
def test_snapshots_are_listed_by_source_and_by_id(volumes: Volumes) -> None:
    one, other = volumes.make(), volumes.make()
    first, second, third = volumes.snapshot(one), volumes.snapshot(one), volumes.snapshot(other)

    def ids(**asked: str) -> set[str]:
        return {snapshot.snapshot_id for snapshot in volumes.csi.snapshots(**asked)[0]}

    assert (ids(source_volume_id=one), ids(source_volume_id=other), ids()) == ({first, second}, {third}, {first, second, third})
    assert (ids(snapshot_id=first), ids(snapshot_id="no-such"), ids(source_volume_id="no-such")) == ({first}, set(), set())


def test_pages_of_snapshots_stay_in_step_while_snapshots_go(volumes: Volumes) -> None:
    source = volumes.make()
    taken = sorted(volumes.snapshot(source) for _ in range(5))
    page, token = volumes.csi.snapshots(max_entries=2)
    assert [one.snapshot_id for one in page] == taken[:2]
    volumes.csi.delete_snapshot(taken[1])
    rest, end = volumes.csi.snapshots(starting_token=token)
    assert ([one.snapshot_id for one in rest], end) == (taken[2:], "")
    assert refusal(lambda: volumes.csi.snapshots(starting_token="2")).code == "ABORTED"


def test_a_cluster_that_lost_everything_lists_its_snapshots(volumes: Volumes, cluster: Cluster) -> None:
    source = volumes.make(size=2 * GIB)
    snapshot = volumes.snapshot(source)
    cluster.forget(source)
    found = volumes.csi.snapshots()[0]
    assert [(one.snapshot_id, one.source_volume_id, one.size_bytes) for one in found] == [(snapshot, source, 2 * GIB)]


# What cannot be snapshotted


def test_a_volume_without_a_subvolume_says_why_it_cannot_be_snapshotted(
    volumes: Volumes, make_shim: Callable[..., Shim], btrfs_box: SimulatedBox
) -> None:
    with Csi(make_shim(btrfs_box, extra=["--snapshot-backend=none"]).endpoint) as plain:
        assert not plain.capabilities() & SNAPSHOT_RPCS
        handle = plain.create(f"pvc-{uuid4()}").volume_id
        assert refusal(lambda: plain.snapshot("snapshot-n", handle)).code == "FAILED_PRECONDITION"
        for refused in (
            refusal(lambda: volumes.csi.snapshot("snapshot-n", handle)),
            refusal(lambda: volumes.csi.create(f"pvc-{uuid4()}", clone=handle)),
        ):
            assert (refused.code, "Go driver" in refused.message) == ("FAILED_PRECONDITION", True)
        plain.delete(handle)


def test_a_volume_that_does_not_exist_is_not_snapshotted(volumes: Volumes) -> None:
    unknown = f"pvc-{uuid4()}"
    assert code_of(lambda: volumes.csi.snapshot("snapshot-u", unknown)) == "NOT_FOUND"
    assert code_of(lambda: volumes.csi.create(f"pvc-{uuid4()}", clone=unknown)) == "NOT_FOUND"
    assert code_of(lambda: volumes.csi.create(f"pvc-{uuid4()}", snapshot=f"snap-{uuid4()}")) == "NOT_FOUND"


def test_deleting_what_is_no_snapshot_succeeds(volumes: Volumes) -> None:
    for snapshot in (f"snap-{uuid4()}", "anything", f"snap-{uuid4()}-at-0123456789"):
        volumes.csi.delete_snapshot(snapshot)


@pytest.mark.requirement("R49")
@pytest.mark.parametrize(
    "without", [{"version": "7.16"}, {"version": "7.24", "rose_storage": False}, {"version": "7.24", "fs": "xfs"}], ids=str
)
def test_a_box_that_keeps_no_snapshots_is_not_said_to(
    make_shim: Callable[..., Shim], without: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    switches = {name: value for name, value in without.items() if name != "fs"}
    with SimulatedBox(tmp_path_factory.mktemp("box"), **switches) as box:
        box.pool(fs=without.get("fs", "btrfs"))
        with Csi(make_shim(box).endpoint) as csi:
            assert not csi.capabilities() & SNAPSHOT_RPCS
            assert refusal(lambda: csi.snapshot("snapshot-o", f"pvc-{uuid4()}")).code in {"FAILED_PRECONDITION", "NOT_FOUND"}


@pytest.mark.requirement("R49")
def test_a_box_that_cannot_copy_what_is_read_only_is_not_said_to_restore(
    make_shim: Callable[..., Shim], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with SimulatedBox(tmp_path_factory.mktemp("box"), version="7.24") as box:
        box.fail_command("add parent=rds-csi-probe-.*-snapshot", "failure: parent is read-only")
        with Csi(make_shim(box).endpoint) as csi:
            assert not csi.capabilities() & SNAPSHOT_RPCS
            assert set(box.subvolumes()) <= {"metal-csi"}
            handle = csi.create(f"pvc-{uuid4()}").volume_id
            assert list(box.files()) == [f"{BASE}/{handle}.img"]
            csi.delete(handle)


def test_volumes_are_not_made_otherwise_where_subvolumes_are_demanded(
    make_shim: Callable[..., Shim], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with SimulatedBox(tmp_path_factory.mktemp("box"), version="7.16") as box:
        with Csi(make_shim(box, extra=["--snapshot-backend=btrfs"]).endpoint) as csi:
            refused = refusal(lambda: csi.create(f"pvc-{uuid4()}"))
        assert (refused.code, "7.18" in refused.message, box.disks()) == ("FAILED_PRECONDITION", True, {})


def test_trying_the_box_out_leaves_nothing_on_it(volumes: Volumes) -> None:
    assert volumes.csi.capabilities() >= SNAPSHOT_RPCS
    assert set(volumes.box.subvolumes()) <= {"metal-csi"}
    assert len(volumes.box.received("/disk/btrfs/subvolume/remove [find where name=rds-csi-probe-")) >= 3


@pytest.mark.requirement("R17", "R20")
def test_a_box_that_is_away_at_the_start_is_asked_when_it_is_back(
    make_shim: Callable[..., Shim], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with SimulatedBox(tmp_path_factory.mktemp("box"), version="7.24") as box:
        box.stop()
        with Csi(make_shim(box).endpoint) as csi:
            assert csi.capabilities() >= SNAPSHOT_RPCS
            assert code_of(lambda: csi.create(f"pvc-{uuid4()}", timeout=3)) in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
            box.start()
            name = f"pvc-{uuid4()}"
            persevering(lambda: csi.create(name))
            snapshot = csi.snapshot("snapshot-b", name).snapshot_id
            csi.delete(name)
            csi.delete_snapshot(snapshot)


# What must not be removed


def test_a_volume_whose_subvolume_would_be_the_base_directory_is_not_deleted(volumes: Volumes, cluster: Cluster) -> None:
    innocent = volumes.make()
    crafted = cluster.make_static_volume(handle="metal-csi", attributes={"volumePath": f"/{BASE}/disk.img"}, pv=cluster.name("pv"))
    assert refusal(lambda: volumes.csi.delete(crafted.handle)).code == "FAILED_PRECONDITION"
    assert f"metal-csi/{innocent}" in volumes.box.subvolumes()
    cluster.forget(crafted.handle)


def test_a_subvolume_with_more_in_it_than_the_volume_is_not_deleted(volumes: Volumes) -> None:
    handle = volumes.make()
    volumes.box.run(f"/disk add type=file file-path=/{BASE}/{handle}/other.img file-size=1G slot=other")
    refused = refusal(lambda: volumes.csi.delete(handle))
    assert (refused.code, "other.img" in refused.message) == ("FAILED_PRECONDITION", True)
    assert f"{BASE}/{handle}/other.img" in volumes.box.files()
    volumes.box.run("/disk remove [find slot=other]")
    volumes.box.run(f'/file remove [find name="{BASE}/{handle}/other.img"]')


def test_a_subvolume_that_no_record_names_is_not_taken_for_a_new_volume(volumes: Volumes, cluster: Cluster) -> None:
    handle = volumes.make()
    volumes.write(handle, OLD)
    cluster.forget(handle)
    volumes.box.run(f"/disk remove [find slot={handle}]")
    refused = refusal(lambda: volumes.csi.create(handle))
    assert (refused.code, "may hold data" in refused.message) == ("FAILED_PRECONDITION", True)
    assert volumes.read(handle) == OLD
    assert cluster.api.find("VolumeAttachmentRecord", record_name(handle)) is None
    volumes.box.run(f"/disk/btrfs/subvolume/remove [find where name={handle}]")


# Whatever breaks in between

CHANGES = {
    "subvolume": r"subvolume/add .*name=metal-csi/pvc-",
    "disk": r"^/disk add",
    "growth": r"^/disk set",
    "snapshot": r"subvolume/add read-only=yes",
    "removal of the disk": r"^/disk remove",
    "removal of the subvolume": r"subvolume/remove .*name=pvc-",
    "removal of the snapshot": r"subvolume/remove .*name=snap-",
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_may_be_lost_or_its_answer(volumes: Volumes, when: str, change: str) -> None:
    source, restored, snapshot = f"pvc-{uuid4()}", f"pvc-{uuid4()}", f"snapshot-{uuid4()}"
    volumes.box.drop_link(when, CHANGES[change])
    persevering(lambda: volumes.make(source))
    volumes.write(source, OLD)
    persevering(lambda: volumes.snapshot(source, snapshot))
    volumes.write(source, NEW)
    taken = volumes.snapshot(source, snapshot)
    persevering(lambda: volumes.make(restored, size=2 * GIB, snapshot=taken))
    assert volumes.read(restored) == OLD
    assert sorted(volumes.box.disks()) == sorted([source, restored])
    for handle in (source, restored):
        persevering(partial(volumes.csi.delete, handle))
    persevering(lambda: volumes.csi.delete_snapshot(taken))
    assert set(volumes.box.subvolumes()) == {"metal-csi"}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_may_fail_once(volumes: Volumes, change: str) -> None:
    source, restored = f"pvc-{uuid4()}", f"pvc-{uuid4()}"
    volumes.box.fail_command(CHANGES[change], "failure: disk is busy")

    def again(call: Callable[[], object]) -> None:
        with suppress(Refused):
            call()
        call()

    again(lambda: volumes.make(source))
    volumes.write(source, OLD)
    again(lambda: volumes.snapshot(source, "snapshot-f"))
    taken = volumes.snapshot(source, "snapshot-f")
    again(lambda: volumes.make(restored, size=2 * GIB, snapshot=taken))
    assert volumes.read(restored) == OLD
    for handle in (source, restored):
        again(partial(volumes.csi.delete, handle))
    again(lambda: volumes.csi.delete_snapshot(taken))
    assert (volumes.box.disks(), set(volumes.box.subvolumes())) == ({}, {"metal-csi"})


@pytest.mark.parametrize("size", [GIB, 2 * GIB])
def test_a_full_pool_leaves_nothing_of_a_volume_or_its_copy(volumes: Volumes, cluster: Cluster, size: int) -> None:
    snapshot = volumes.snapshot(volumes.make())
    volumes.box.switch(full_pool=True)
    for source in ("", snapshot):
        refused = refusal(partial(volumes.csi.create, f"pvc-{uuid4()}", size=size, snapshot=source))
        assert refused.code == "RESOURCE_EXHAUSTED"
    volumes.box.switch(full_pool=False)
    assert len(volumes.box.subvolumes()) == 3
    assert len(volumes.box.disks()) == 1


@pytest.mark.requirement("R18")
def test_no_attach_waits_for_a_snapshot(snapshotting: Csi, btrfs_box: SimulatedBox, volumes: Volumes, cluster: Cluster) -> None:
    handle, node = volumes.make(), cluster.make_node()
    btrfs_box.switch(latency={"/disk/btrfs/subvolume/add": 3.0})
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(volumes.snapshot, handle)
        eventually("the box is at work", lambda: btrfs_box.received(f"/disk/btrfs/subvolume/add read-only=yes parent={handle}"))
        assert snapshotting.publish_code(handle, node) == "OK"
        assert not taking.done()
        btrfs_box.switch(latency={})
        assert taking.result()
