"""The whole life of a volume through the real sidecars, undisturbed and with everything going wrong once in each step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.ring.cluster import CLAIM, GIB, RECORD, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator, Shim
from tests.ring.installation import NAMESPACE
from tests.ring.processes import Process, Supervisor
from tests.ring.rpc import Csi
from tests.ring.sidecars import csi_provisioner, csi_resizer, csi_snapshotter
from tests.ring.snapshots import CONTENT, SNAPSHOT, Snapshots
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

BASE = "storage-pool/metal-csi"
OLD, NEW, NEWEST = b"before the snapshot", b"after the snapshot!", b"after the cloning!!"

FAULTS = (
    "undisturbed",
    "the link is lost before each change",
    "the link is lost after each change",
    "each change fails once",
    "a look at each thing fails once in each step",
    "the driver is killed before each change",
    "the driver is killed after each change",
)


@pytest.fixture(scope="module")
def life_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """A box that has Btrfs subvolumes."""
    with SimulatedBox(tmp_path_factory.mktemp("btrfs"), version="7.24") as box:
        yield box


@pytest.fixture(scope="module")
def life_shim(installed: ControlPlane, life_box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """A shim of that box; tests kill it."""
    with Shim(installed, tmp_path_factory.mktemp("shim"), reach(life_box)) as shim:
        yield shim


@pytest.fixture(scope="module", autouse=True)
def sidecars(snapshot_control: Process, snapshot_kinds: ControlPlane, life_shim: Shim) -> Iterator[Supervisor]:
    """The sidecars beside that shim; each ends when it loses the driver, and is started again."""
    plane = snapshot_kinds
    makers = (csi_provisioner, csi_resizer, csi_snapshotter)
    made = [make(plane, life_shim.socket, plane.logs, retry_start="100ms", retry_max="1s") for make in makers]
    with Supervisor(*made) as supervisor:
        yield supervisor


@dataclass(frozen=True)
class Change:
    """A command that changes the box: how it begins, and a regular expression that it fits."""

    beginning: str
    pattern: str


SUBVOLUME = Change("/disk/btrfs/subvolume/add", r"subvolume/add .*name=metal-csi/pvc-")
DISK = Change("/disk add", r"^/disk add")
GROWTH = Change("/disk set", r"^/disk set .*file-size=")
FREEZING = Change("/disk/btrfs/subvolume/add", r"subvolume/add read-only=yes")
DISK_REMOVAL = Change("/disk remove", r"^/disk remove")
SUBVOLUME_REMOVAL = Change("/disk/btrfs/subvolume/remove", r"subvolume/remove .*name=pvc-")
SNAPSHOT_REMOVAL = Change("/disk/btrfs/subvolume/remove", r"subvolume/remove .*name=snap-")
CHANGES = (SUBVOLUME, DISK, GROWTH, FREEZING, DISK_REMOVAL, SUBVOLUME_REMOVAL, SNAPSHOT_REMOVAL)


def records(cluster: Cluster) -> set[str]:
    return {record["metadata"]["name"] for record in cluster.api.list(RECORD)}


@dataclass
class World:
    """What should be there: volumes and snapshots by their handles, and what is there."""

    cluster: Cluster
    snapshots: Snapshots
    box: SimulatedBox
    shim: Shim
    volumes: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    """Records that were there before: those of deleted volumes stay where no operator ran that reported their last transitions."""

    met: Counter[Change] = field(default_factory=Counter)
    """How many changes of each kind something was to befall."""

    def check(self) -> None:
        """Nothing is lost, nothing is left over, nothing is there twice: on the box, in records, PersistentVolumes and contents.

        csi-provisioner may delete a volume once more that it has just deleted, so that is waited for.
        """
        eventually("the world is as it should be", self._is_right, timeout=10)

    def _is_right(self) -> bool:
        names = sorted(name.removeprefix("metal-csi/") for name in self.box.subvolumes() if name != "metal-csi")
        assert sorted(name.split("_")[0] for name in names) == sorted(self.volumes | self.taken)
        assert sorted(self.box.files()) == [f"{BASE}/{name}/disk.img" for name in names]
        assert set(self.box.disks()) == self.volumes
        assert records(self.cluster) - self.others == self.volumes
        claims = [volume["spec"].get("claimRef", {}).get("namespace") for volume in self.cluster.api.list("PersistentVolume")]
        assert claims.count(self.cluster.namespace) == len(self.volumes)
        contents = [content["status"]["snapshotHandle"] for content in self.cluster.api.list(CONTENT)]
        assert sorted(contents) == sorted(self.taken)
        return True

    def write(self, handle: str, data: bytes) -> None:
        with self.box.backing_file(f"{BASE}/{handle}/disk.img").open("r+b") as file:
            file.seek(4096)
            file.write(data)

    def read(self, handle: str) -> bytes:
        with self.box.backing_file(f"{BASE}/{handle}/disk.img").open("rb") as file:
            file.seek(4096)
            return file.read(len(OLD))


@pytest.fixture
def world(cluster: Cluster, snapshots: Snapshots, life_box: SimulatedBox, life_shim: Shim) -> World:
    """The empty world of one test."""
    life_box.reset()
    cluster.make_node()
    return World(cluster, snapshots, life_box, life_shim, others=records(cluster))


def disturbed(world: World, fault: str, changes: Sequence[Change], ask: Callable[[], str]) -> str:
    """Ask the cluster for something that makes the driver send these changes, and let the fault befall each.

    Returns what ``ask`` returns; whether it is done in the end is for the caller to wait for.
    """
    box, shim = world.box, world.shim
    if "look" in fault:
        for look in (r"^/disk print", r"^/file print", r"^:put \[:len \[/disk/btrfs"):
            box.fail_command(look, "failure: disk is busy")
        return ask()
    if "killed" not in fault:
        for change in changes:
            world.met[change] += 1
            if "link" in fault:
                box.drop_link("before" if "before" in fault else "after", change.pattern)
            elif "fails" in fault:
                box.fail_command(change.pattern, "failure: disk is busy")
        return ask()

    def arm(change: Change) -> int:
        if "before" in fault:
            box.switch(latency={change.beginning: 0.5})
        else:
            box.drop_link("after", change.pattern)
        return seen(box, change)

    before = arm(changes[0])
    asked = ask()
    for change, following in zip(changes, [*changes[1:], None], strict=True):
        eventually(f"{change.pattern} is sent", partial(is_sent, box, change, before))
        shim.kill()
        box.switch(latency={})
        before = arm(following) if following else 0
        shim.start()
    return asked


def seen(box: SimulatedBox, change: Change) -> int:
    """Return how often such a command has arrived so far."""
    return sum(bool(re.search(change.pattern, command)) for command in box.received())


def is_sent(box: SimulatedBox, change: Change, before: int) -> bool:
    return seen(box, change) > before


@pytest.mark.requirement("R48", "R49", "R50", "R51")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_claim_is_made_expanded_snapshotted_restored_cloned_and_deleted(world: World, fault: str) -> None:
    cluster, snapshots = world.cluster, world.snapshots
    storage_class, snapshot_class = cluster.make_storage_class(), snapshots.make_class()
    before = {change: seen(world.box, change) for change in CHANGES}

    claim = disturbed(world, fault, [SUBVOLUME, DISK], lambda: cluster.make_claim(storage_class, size="1Gi"))
    source = cluster.wait_bound(claim)
    world.volumes.add(source)
    world.check()
    world.write(source, OLD)

    def expand() -> str:
        cluster.expand(claim, "2Gi")
        return claim

    disturbed(world, fault, [GROWTH], expand)
    cluster.wait_capacity(source, "2Gi")
    assert (world.box.disks()[source]["size"], world.read(source)) == (2 * GIB, OLD)
    world.check()

    snapshot = disturbed(world, fault, [FREEZING], lambda: snapshots.take(claim, snapshot_class))
    assert snapshots.wait_ready(snapshot)["restoreSize"] == "2Gi"
    world.taken.add(snapshots.handle_of(snapshot))
    world.check()
    world.write(source, NEW)

    def restore() -> str:
        return cluster.make_claim(storage_class, size="2Gi", source=(SNAPSHOT, snapshot), stem="restored")

    restored = cluster.wait_bound(disturbed(world, fault, [SUBVOLUME, DISK], restore))
    world.volumes.add(restored)
    world.check()
    assert (world.read(restored), world.read(source)) == (OLD, NEW)

    def clone() -> str:
        return cluster.make_claim(storage_class, size="2Gi", source=(CLAIM, claim), stem="cloned")

    cloned = cluster.wait_bound(disturbed(world, fault, [SUBVOLUME, DISK], clone))
    world.volumes.add(cloned)
    world.write(source, NEWEST)
    world.check()
    assert [world.read(handle) for handle in (source, restored, cloned)] == [NEWEST, OLD, NEW]

    def delete(claim: str) -> str:
        cluster.delete_claim(claim)
        return claim

    disturbed(world, fault, [DISK_REMOVAL, SUBVOLUME_REMOVAL], lambda: delete(claim))
    cluster.wait_volume_gone(source)
    world.volumes.remove(source)
    world.check()

    def forget() -> str:
        content = str(snapshots.content_of(snapshot)["metadata"]["name"])
        snapshots.delete(snapshot)
        return content

    snapshots.wait_gone(snapshot, disturbed(world, fault, [SNAPSHOT_REMOVAL], forget))
    world.taken.clear()
    world.check()
    assert [world.read(handle) for handle in (restored, cloned)] == [OLD, NEW]

    for body in cluster.api.list(CLAIM, cluster.namespace):
        delete(body["metadata"]["name"])
    for handle in (restored, cloned):
        cluster.wait_volume_gone(handle)
    world.volumes.clear()
    world.check()
    if "before" in fault or "fails" in fault:
        # Each was sent again after it had met the fault.
        assert all(seen(world.box, change) - before[change] >= 2 * count for change, count in world.met.items())


@pytest.mark.requirement("R32")
def test_an_expansion_that_must_wait_for_a_migration_comes_after_it(world: World, make_operator: Callable[..., Operator]) -> None:
    cluster = world.cluster
    # The record of a deleted volume stays until an operator has told how its migration ended.
    make_operator()
    claim = cluster.make_claim(cluster.make_storage_class({"dualAttachPolicy": "AnyTwoNodes"}))
    handle = cluster.wait_bound(claim)
    first, second = cluster.make_node(), cluster.make_node()
    with Csi(world.shim.endpoint) as csi:
        for node in (first, second):
            csi.publish(handle, node)
        cluster.expand(claim, "2Gi")
        assert second in cluster.wait_event(claim, "VolumeResizeFailed")["message"]
        assert world.box.disks()[handle]["size"] == GIB
        csi.unpublish(handle, first)
        cluster.wait_capacity(handle, "2Gi")
        csi.unpublish(handle)
    cluster.delete_claim(claim)
    cluster.wait_volume_gone(handle)
    world.check()


@pytest.mark.requirement("R48")
@pytest.mark.parametrize("size", ["1", "1500M", "5G", "1536Gi", "1000000000001"])
def test_a_claim_is_never_smaller_than_it_asks_for_and_says_its_real_size(world: World, size: str) -> None:
    claim = world.cluster.make_claim(world.cluster.make_storage_class(), size=size)
    handle = world.cluster.wait_bound(claim)
    real = world.box.disks()[handle]["size"]
    capacity = quantity(world.cluster.api.get("PersistentVolume", handle)["spec"]["capacity"]["storage"])
    assert capacity == real >= quantity(size)
    world.cluster.delete_claim(claim)
    world.cluster.wait_volume_gone(handle)
    world.check()


@pytest.mark.requirement("R56")
def test_a_claim_that_waits_for_its_first_consumer_finds_room_and_takes_it(world: World) -> None:
    cluster = world.cluster
    world.box.pool(size=100 * GIB, used_elsewhere=20 * GIB)
    storage_class = cluster.make_storage_class(volumeBindingMode="WaitForFirstConsumer")

    def room(expected: int) -> bool:
        objects = cluster.api.list("CSIStorageCapacity", NAMESPACE)
        found = [body for body in objects if body["storageClassName"] == storage_class]
        assert [quantity(body["capacity"]) for body in found] == [expected], found
        assert quantity(found[0]["maximumVolumeSize"]) == expected
        return True

    # The default reserve is 5 % of the pool.
    eventually("there is room for 75 GiB", lambda: room(75 * GIB))
    claim = cluster.make_claim(storage_class, size="10Gi")
    (node,) = cluster.nodes()
    chosen = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}
    cluster.api.patch(CLAIM, claim, chosen, cluster.namespace)
    handle = cluster.wait_bound(claim)
    eventually("10 GiB are taken", lambda: room(65 * GIB))
    cluster.delete_claim(claim)
    cluster.wait_volume_gone(handle)
    eventually("they are free again", lambda: room(75 * GIB))
    world.check()


@pytest.mark.requirement("R10")
def test_a_volume_attributes_class_sets_the_timeout_of_a_volume_and_changes_it(world: World) -> None:
    cluster = world.cluster
    short, long = (cluster.make_attributes_class({"migrationTimeoutSeconds": seconds}) for seconds in ("120", "1800"))
    claim = cluster.make_claim(cluster.make_storage_class(), attributes_class=short)
    handle = cluster.wait_bound(claim)
    assert timeout(cluster, handle) == 120
    cluster.change_attributes_class(claim, long)
    cluster.wait_attributes_class(handle, long)
    assert timeout(cluster, handle) == 1800
    gate = cluster.make_attributes_class({"dualAttachPolicy": "AnyTwoNodes"})
    cluster.change_attributes_class(claim, gate)
    assert "dualAttachPolicy" in cluster.wait_event(claim, "VolumeModifyFailed")["message"]
    assert timeout(cluster, handle) == 1800
    cluster.delete_claim(claim)
    cluster.wait_volume_gone(handle)
    world.check()


def timeout(cluster: Cluster, handle: str) -> int | None:
    record = cluster.record(handle)
    assert record is not None
    seconds: int | None = record["spec"].get("migrationTimeoutSeconds")
    return seconds


def quantity(text: str) -> int:
    """Return the bytes of a Kubernetes quantity, as far as the tests have any."""
    units = {"": 1, "M": 10**6, "G": 10**9, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()  # type: ignore[union-attr]
    return int(number) * units[unit]
