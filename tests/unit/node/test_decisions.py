"""What is to be done next: one table per call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rds_csi.errors import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, Rejected, Unavailable
from rds_csi.node.decisions import (
    Await,
    BindDevice,
    BindMount,
    Connect,
    Disconnect,
    Done,
    ExpandFound,
    ExpandWanted,
    Format,
    Grow,
    LookAtContent,
    LookForUsers,
    MakeDeviceNode,
    MakeDirectory,
    MakeFile,
    MountDevice,
    Place,
    PlaceKind,
    PublishFound,
    Remove,
    Rescan,
    SetReadOnly,
    StageFound,
    StageWanted,
    Unmount,
    UnpublishFound,
    UnstageFound,
    expand,
    mounted_for_others,
    publish_block,
    publish_filesystem,
    stage,
    unpublish,
    unstage,
)
from rds_csi.node.filesystems import Blank, Filesystem, Occupied, Unfinished, Unknown
from rds_csi.node.sysfs import ControllerState, DeviceNumber, Session
from rds_csi.node.usage import User
from tests.unit.node.node_world import NQN, OPTIONS, OTHER, PUBLISHED, STAGING, TARGET, disk, mounted, session

WANTED = StageWanted("pvc-one", TARGET)
BLOCK = replace(WANTED, block=True)
LIVE = session(disk())
DIRECTORY = Place(PlaceKind.DIRECTORY)
HERE = mounted(STAGING)
READ_ONLY = mounted(STAGING, options=frozenset({"ro", *OPTIONS}))
LOST = mounted(STAGING, 9)
QEMU = User("has the device open", "qemu", 7)
GONE = Session(NQN, (), ())
DISK = DeviceNumber(259, 1)
LOST_NUMBER = frozenset({LOST.number})


def decided(decide: Any, *arguments: Any) -> Any:
    """Return the step, or the refusal's class and words."""
    try:
        return decide(*arguments)
    except Rejected as refused:
        return refused


def check(step: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        kind, words = expected
        assert type(step) is kind
        assert words in str(step)
    else:
        assert step == expected or (isinstance(expected, type) and isinstance(step, expected))


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        # The connection
        (WANTED, StageFound(), Connect()),
        (WANTED, StageFound(session(state=ControllerState.CONNECTING)), Await),
        (WANTED, StageFound(session(state=ControllerState.RESETTING)), Await),
        (WANTED, StageFound(session(disk(), state=ControllerState.CONNECTING)), Await),
        (WANTED, StageFound(session(disk(), state=ControllerState.DELETING)), Await),
        (WANTED, StageFound(session(state=ControllerState.DELETING, address="10.9.9.9")), Await),
        (WANTED, StageFound(replace(GONE, namespaces=(disk(),))), Await),
        (WANTED, StageFound(session()), Await),
        (WANTED, StageFound(session(), waited=True), Disconnect()),
        (WANTED, StageFound(session(), waited=True, reconnected=True), (Unavailable, "also after a new connection")),
        (WANTED, StageFound(session(disk(size=0))), Await),
        (WANTED, StageFound(session(disk(1), disk(2))), (FailedPrecondition, "nvme0n1, nvme0n2")),
        # The box has moved
        (WANTED, StageFound(session(disk(), state=ControllerState.CONNECTING, address="10.9.9.9")), LookForUsers()),
        (WANTED, StageFound(session(disk(), state=ControllerState.CONNECTING, address="10.9.9.9"), users=()), Disconnect()),
        (
            WANTED,
            StageFound(session(disk(), state=ControllerState.CONNECTING, address="10.9.9.9"), users=(QEMU,)),
            (Unavailable, "qemu (pid 7)"),
        ),
        (
            WANTED,
            StageFound(session(disk(), state=ControllerState.CONNECTING, address="10.9.9.9"), mounts=(HERE,)),
            (Unavailable, "still mounted here"),
        ),
        (BLOCK, StageFound(session(disk(), address="10.9.9.9")), Done()),
        # Block
        (BLOCK, StageFound(LIVE), Done()),
        (BLOCK, StageFound(LIVE, mounts=(HERE,)), (FailedPrecondition, "block device now")),
        # What is on it
        (WANTED, StageFound(LIVE), LookAtContent()),
        (WANTED, StageFound(LIVE, content=Unknown("because")), (Unavailable, "because")),
        (WANTED, StageFound(LIVE, content=Occupied("LVM2_member")), (FailedPrecondition, "LVM2_member")),
        (WANTED, StageFound(LIVE, content=Filesystem("xfs")), (FailedPrecondition, "holds xfs, and ext4 is asked for")),
        (WANTED, StageFound(LIVE, content=Filesystem("ext3")), (FailedPrecondition, "holds ext3")),
        (WANTED, StageFound(LIVE, content=Blank()), LookForUsers()),
        (WANTED, StageFound(LIVE, content=Blank(), users=()), Format("ext4")),
        (WANTED, StageFound(LIVE, content=Unfinished(), users=()), Format("ext4", over_unfinished=True)),
        (WANTED, StageFound(LIVE, content=Blank(), users=(QEMU,)), (FailedPrecondition, "qemu (pid 7)")),
        (replace(WANTED, read_only=True), StageFound(LIVE, content=Blank(), users=()), (FailedPrecondition, "blank and read-only")),
        (WANTED, StageFound(session(disk(read_only=True)), content=Blank(), users=()), (FailedPrecondition, "blank and read-only")),
        # The mount
        (WANTED, StageFound(LIVE, content=Filesystem("ext4")), MakeDirectory()),
        (
            WANTED,
            StageFound(session(disk(read_only=True)), content=Filesystem("ext4"), place=DIRECTORY),
            (FailedPrecondition, "lets nobody write"),
        ),
        (
            replace(WANTED, read_only=True),
            StageFound(session(disk(read_only=True)), content=Filesystem("ext4"), place=DIRECTORY),
            MountDevice(),
        ),
        (WANTED, StageFound(LIVE, content=Filesystem("ext4"), place=DIRECTORY), MountDevice()),
        (WANTED, StageFound(LIVE, content=Filesystem("ext4"), place=Place(PlaceKind.FILE)), (FailedPrecondition, "no directory")),
        (WANTED, StageFound(LIVE, mounts=(HERE,)), Grow()),
        (WANTED, StageFound(LIVE, mounts=(HERE,), grown=True), Done()),
        (WANTED, StageFound(LIVE, mounts=(HERE,), keeps_size=True), Done()),
        (WANTED, StageFound(LIVE, mounts=(HERE, HERE)), Unmount()),
        (WANTED, StageFound(LIVE, mounts=(READ_ONLY,)), (AlreadyExists, "read-only")),
        (replace(WANTED, read_only=True), StageFound(LIVE, mounts=(READ_ONLY,)), Done()),
        (replace(WANTED, read_only=True), StageFound(LIVE, mounts=(HERE,)), (AlreadyExists, "for writing")),
        (replace(WANTED, fs_type="xfs"), StageFound(LIVE, mounts=(HERE,)), (FailedPrecondition, "mounted as ext4, not as xfs")),
        # A mount whose disk was lost, or has another number now
        (WANTED, StageFound(LIVE, mounts=(LOST,)), Unmount()),
        (WANTED, StageFound(None, mounts=(LOST,)), Unmount()),
        (BLOCK, StageFound(LIVE, mounts=(LOST,)), Unmount()),
        (WANTED, StageFound(LIVE, mounts=(LOST,), present=LOST_NUMBER), (FailedPrecondition, "which is not its disk")),
    ],
)
def test_stage(wanted: StageWanted, found: StageFound, expected: Any) -> None:
    check(decided(stage, wanted, found), expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (UnstageFound(), Done()),
        (UnstageFound(LIVE), LookForUsers()),
        (UnstageFound(LIVE, users=()), Disconnect()),
        (UnstageFound(LIVE, users=(QEMU,)), (FailedPrecondition, "qemu (pid 7) has the device open")),
        (UnstageFound(LIVE, mounts=(HERE,)), Unmount()),
        (UnstageFound(LIVE, mounts=(HERE,), users=()), Unmount()),
        (UnstageFound(LIVE, mounts=(HERE, HERE)), Unmount()),
        (UnstageFound(LIVE, mounts=(HERE,), elsewhere=(mounted(OTHER),)), (FailedPrecondition, "/other is still mounted")),
        (UnstageFound(LIVE, elsewhere=(mounted(OTHER),), users=()), (FailedPrecondition, "/other is still mounted")),
        (UnstageFound(LIVE, mounts=(HERE,), below=(mounted("/staging/x", 5),)), (FailedPrecondition, "/staging/x")),
        (UnstageFound(LIVE, mounts=(LOST,)), Unmount()),
        (UnstageFound(None, mounts=(LOST,)), Unmount()),
        (UnstageFound(LIVE, mounts=(LOST,), present=LOST_NUMBER), (FailedPrecondition, "which is not its disk")),
        (UnstageFound(session(state=ControllerState.CONNECTING), users=()), Disconnect()),
        (UnstageFound(session(disk(), state=ControllerState.DELETING), users=()), Await),
        (UnstageFound(replace(GONE, namespaces=(disk(),)), users=()), Disconnect()),
    ],
)
def test_unstage(found: UnstageFound, expected: Any) -> None:
    check(decided(unstage, "pvc-one", found), expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (PublishFound(), (FailedPrecondition, "not connected here")),
        (PublishFound(session()), (Unavailable, "its disk is not there now")),
        (PublishFound(session(disk(1), disk(2))), (FailedPrecondition, "more than one disk")),
        (PublishFound(LIVE), MakeDeviceNode(DISK)),
        (PublishFound(LIVE, place=Place(PlaceKind.BLOCK_DEVICE, number=DISK)), Done()),
        (PublishFound(session(disk(), state=ControllerState.CONNECTING), place=Place(PlaceKind.BLOCK_DEVICE, number=DISK)), Done()),
        (PublishFound(LIVE, place=Place(PlaceKind.BLOCK_DEVICE, number=DeviceNumber(259, 3))), Remove(PlaceKind.BLOCK_DEVICE)),
        (PublishFound(LIVE, place=Place(PlaceKind.BLOCK_DEVICE, number=DeviceNumber(8, 1))), Remove(PlaceKind.BLOCK_DEVICE)),
        (PublishFound(LIVE, others=("/pods/two",)), (FailedPrecondition, "published at /pods/two already")),
        (PublishFound(LIVE, place=Place(PlaceKind.FILE)), Remove(PlaceKind.FILE)),
        (PublishFound(LIVE, place=Place(PlaceKind.LINK)), Remove(PlaceKind.LINK)),
        (PublishFound(LIVE, place=DIRECTORY), Remove(PlaceKind.DIRECTORY)),
        (PublishFound(LIVE, place=Place(PlaceKind.FILE, empty=False)), (FailedPrecondition, "not empty")),
        (PublishFound(LIVE, place=Place(PlaceKind.OTHER)), (FailedPrecondition, "neither")),
        # A bind mount of a device node, as other drivers make it
        (
            PublishFound(LIVE, place=Place(PlaceKind.BLOCK_DEVICE, number=DISK), mounts=(mounted(PUBLISHED, 99),)),
            Done(),
        ),
        (
            PublishFound(LIVE, place=Place(PlaceKind.BLOCK_DEVICE, number=DeviceNumber(259, 3)), mounts=(mounted(PUBLISHED, 99),)),
            Unmount(),
        ),
        (PublishFound(LIVE, place=replace(DIRECTORY, empty=False), mounts=(mounted(PUBLISHED, 9),)), Unmount()),
        (
            PublishFound(LIVE, place=replace(DIRECTORY, empty=False), mounts=(mounted(PUBLISHED, 9),), present=LOST_NUMBER),
            (FailedPrecondition, "which is not its disk"),
        ),
    ],
)
def test_publish_block(found: PublishFound, expected: Any) -> None:
    check(decided(publish_block, "pvc-one", found), expected)


THERE = mounted(PUBLISHED)
BARE = mounted(PUBLISHED, options=frozenset({"rw"}))
RESTRICTED = ("nodev", "nosuid", "ro")


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        (OPTIONS, PublishFound(LIVE), (FailedPrecondition, "not staged here")),
        (OPTIONS, PublishFound(None, (HERE,)), (FailedPrecondition, "not connected here")),
        (OPTIONS, PublishFound(session(), (HERE,)), (Unavailable, "not there now")),
        (OPTIONS, PublishFound(session(disk(2)), (HERE,)), (FailedPrecondition, "stage it again")),
        (OPTIONS, PublishFound(LIVE, (HERE,)), MakeDirectory()),
        (OPTIONS, PublishFound(LIVE, (HERE,), others=("/pods/two",)), (FailedPrecondition, "published at /pods/two already")),
        (OPTIONS, PublishFound(LIVE, (HERE,), DIRECTORY), BindMount()),
        (OPTIONS, PublishFound(LIVE, (HERE,), Place(PlaceKind.FILE)), Remove(PlaceKind.FILE)),
        (OPTIONS, PublishFound(LIVE, (HERE,), Place(PlaceKind.FILE, empty=False)), (FailedPrecondition, "not empty")),
        (OPTIONS, PublishFound(LIVE, (HERE,), DIRECTORY, (THERE,)), Done()),
        (OPTIONS, PublishFound(LIVE, (HERE,), DIRECTORY, (THERE, THERE)), Unmount()),
        (OPTIONS, PublishFound(LIVE, (HERE,), DIRECTORY, (BARE,)), Unmount()),
        (RESTRICTED, PublishFound(LIVE, (HERE,), DIRECTORY, (THERE,)), Unmount()),
        (OPTIONS, PublishFound(LIVE, (HERE,), DIRECTORY, (mounted(PUBLISHED, 9),)), Unmount()),
        (
            OPTIONS,
            PublishFound(LIVE, (HERE,), DIRECTORY, (mounted(PUBLISHED, 9),), LOST_NUMBER),
            (FailedPrecondition, "which is not its disk"),
        ),
    ],
)
def test_publish_filesystem(options: tuple[str, ...], found: PublishFound, expected: Any) -> None:
    check(decided(publish_filesystem, "pvc-one", options, found), expected)


POD = "/var/lib/kubelet/pods/11111111-2222-4333-8444-555555555555"
TARGET_PATH = f"{POD}/volumes/kubernetes.io~csi/pvc-one/mount"


@pytest.mark.parametrize(
    ("target", "place", "another_pods"),
    [
        (TARGET_PATH, TARGET_PATH, False),
        (TARGET_PATH, STAGING, False),
        # What a kubelet mounts for subPath is of the pod that has the volume, and there when it publishes again after its restart.
        (TARGET_PATH, f"{POD}/volume-subpaths/pvc-one/db/0", False),
        (TARGET_PATH, f"{POD.replace('1111-', '9999-')}/volume-subpaths/pvc-one/db/0", True),
        (TARGET_PATH, f"{POD.replace('1111-', '9999-')}/volumes/kubernetes.io~csi/pvc-one/mount", True),
        (PUBLISHED, "/volume-subpaths/pvc-one/db/0", True),
    ],
)
def test_where_a_volume_is_mounted_for_another_pod(target: str, place: str, another_pods: bool) -> None:
    assert mounted_for_others([mounted(place)], STAGING, target) == ((place,) if another_pods else ())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (UnpublishFound(), Done()),
        (UnpublishFound(replace(DIRECTORY, empty=False), (THERE,)), Unmount()),
        (UnpublishFound(replace(DIRECTORY, empty=False), (THERE, THERE)), Unmount()),
        (UnpublishFound(Place(PlaceKind.BLOCK_DEVICE, number=DISK), (THERE,)), Unmount()),
        (UnpublishFound(Place(PlaceKind.BLOCK_DEVICE, number=DISK)), Remove(PlaceKind.BLOCK_DEVICE)),
        (UnpublishFound(DIRECTORY), Remove(PlaceKind.DIRECTORY)),
        (UnpublishFound(Place(PlaceKind.FILE)), Remove(PlaceKind.FILE)),
        (UnpublishFound(Place(PlaceKind.LINK)), Remove(PlaceKind.LINK)),
        (UnpublishFound(replace(DIRECTORY, empty=False)), (FailedPrecondition, "not empty")),
        (UnpublishFound(Place(PlaceKind.OTHER)), (FailedPrecondition, "neither")),
        (UnpublishFound(DIRECTORY, (THERE,), (mounted("/target/x"),)), (FailedPrecondition, "/target/x is mounted below")),
    ],
)
def test_unpublish(found: UnpublishFound, expected: Any) -> None:
    check(decided(unpublish, "pvc-one", found), expected)


NODE_OF_THE_DISK = Place(PlaceKind.BLOCK_DEVICE, number=DISK)
BOUND = (mounted(PUBLISHED, 99),)


@pytest.mark.parametrize(
    ("place", "mounts", "expected"),
    [
        (Place(), (), MakeFile()),
        (Place(PlaceKind.FILE), (), BindDevice(disk())),
        (Place(PlaceKind.FILE, empty=False), (), (FailedPrecondition, "not empty")),
        (NODE_OF_THE_DISK, BOUND, Done()),
        (NODE_OF_THE_DISK, BOUND * 2, Unmount()),
        (NODE_OF_THE_DISK, (), Remove(PlaceKind.BLOCK_DEVICE)),
    ],
)
def test_publish_block_where_device_nodes_cannot_be_opened(place: Place, mounts: Any, expected: Any) -> None:
    check(decided(publish_block, "pvc-one", PublishFound(LIVE, place=place, mounts=mounts, nodev=True)), expected)


READ_ONLY_DISK = session(disk(read_only=True))


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        (replace(BLOCK, read_only=True), StageFound(LIVE), SetReadOnly(disk())),
        (replace(BLOCK, read_only=True), StageFound(READ_ONLY_DISK), Done()),
        (BLOCK, StageFound(READ_ONLY_DISK), LookForUsers()),
        (BLOCK, StageFound(READ_ONLY_DISK, users=(QEMU,)), Done()),
        (BLOCK, StageFound(READ_ONLY_DISK, users=()), Disconnect()),
        (BLOCK, StageFound(READ_ONLY_DISK, users=(), reconnected=True), (FailedPrecondition, "lets nobody write")),
    ],
)
def test_stage_of_a_block_device_for_reading_and_writing(wanted: StageWanted, found: StageFound, expected: Any) -> None:
    check(decided(stage, wanted, found), expected)


GIB = 1 << 30
LARGER = ExpandWanted("pvc-one", STAGING, 2 * GIB)
GROWN = session(disk(size=2 * GIB))
REMOUNTED = replace(HERE, super_options=frozenset({"ro"}))


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        (LARGER, ExpandFound(), (NotFound, "not connected here")),
        (LARGER, ExpandFound(place=DIRECTORY), (Unavailable, "stage it again")),
        (LARGER, ExpandFound(session(disk(), state=ControllerState.CONNECTING)), Await),
        (LARGER, ExpandFound(session()), Await),
        (LARGER, ExpandFound(LIVE, DIRECTORY, (HERE,)), Rescan()),
        (LARGER, ExpandFound(LIVE, DIRECTORY, (HERE,), rescanned=True), Await),
        (LARGER, ExpandFound(GROWN, DIRECTORY, (HERE,)), Grow()),
        (LARGER, ExpandFound(GROWN, DIRECTORY, (HERE,), grown=True), Done()),
        (LARGER, ExpandFound(GROWN, DIRECTORY, (REMOUNTED,)), (FailedPrecondition, "read-only now")),
        (LARGER, ExpandFound(GROWN, DIRECTORY, (HERE,), stopped=True), (FailedPrecondition, "read-only now")),
        (LARGER, ExpandFound(GROWN), (NotFound, "nothing is at")),
        (LARGER, ExpandFound(GROWN, Place(PlaceKind.BLOCK_DEVICE, number=DISK)), Done()),
        (LARGER, ExpandFound(LIVE, Place(PlaceKind.BLOCK_DEVICE, number=DISK)), Rescan()),
        (LARGER, ExpandFound(GROWN, DIRECTORY), (FailedPrecondition, "not mounted")),
        (LARGER, ExpandFound(GROWN, DIRECTORY, (LOST,)), (FailedPrecondition, "not mounted")),
        (replace(LARGER, block=True), ExpandFound(GROWN), Done()),
        (replace(LARGER, block=True), ExpandFound(LIVE), Rescan()),
        (replace(LARGER, required_bytes=0, limit_bytes=GIB), ExpandFound(GROWN), (OutOfRange, "more than")),
        (ExpandWanted("pvc-one", STAGING), ExpandFound(LIVE, DIRECTORY, (HERE,)), Grow()),
    ],
)
def test_expand(wanted: ExpandWanted, found: ExpandFound, expected: Any) -> None:
    check(decided(expand, wanted, found), expected)
