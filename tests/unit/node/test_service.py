"""The Node service on a made-up sysfs, with commands that are not run: retries, deadlines, reports and codes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from rds_csi.contexts import publish_context
from rds_csi.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Unavailable, status_of
from rds_csi.node.commands import END_GRACE, Command, CommandFailed, CommandMissing, CommandTooSlow, Output
from rds_csi.node.deadlines import Clock, Deadline
from rds_csi.node.decisions import Place, PlaceKind
from rds_csi.node.device_content import content
from rds_csi.node.filesystems import Blank, Filesystem, Occupied, Unknown
from rds_csi.node.host import Host, NodePaths
from rds_csi.node.looks import Looks, LookTooSlow, PathUnusable
from rds_csi.node.mountinfo import MountTableUnreadable, mount_over, parse_mountinfo
from rds_csi.node.mounting import Mounting
from rds_csi.node.reports import NoReports
from rds_csi.node.service import NodeService
from rds_csi.node.sysfs import DeviceNumber, Namespace, Session, SysfsUnreadable
from rds_csi.node.usage import User, UsersUnknown
from rds_csi.spec import csi_pb2
from tests.unit.node.fake_sysfs import NQN, FakeSysfs, write

Mode = csi_pb2.VolumeCapability.AccessMode
BLOCK = csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=Mode(mode="SINGLE_NODE_WRITER"))
REFUSED = Output(1, "", "Failed to write to /dev/nvme-fabrics: Input/output error\n")
SILENT = Output(1, "", "Failed to write to /dev/nvme-fabrics: Connection timed out\n")
FOUND = Output(0, "", "")


class Time:
    """A clock that goes on when somebody waits for it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 3))
        self.now += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)


@dataclass
class Call:
    """A gRPC call that ends in so many seconds."""

    seconds: float | None = 120.0

    def time_remaining(self) -> float | None:
        return self.seconds


class Heard(NoReports):
    """Keeps what it heard."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def operation_ended(self, volume_id: str, operation: Any, seconds: float, failure: str) -> None:
        self.said.append((str(operation), failure))

    def connect_ended(self, volume_id: str, target: Any, seconds: float, failure: str) -> None:
        self.said.append(("connect", failure))


@dataclass
class Commands:
    """Answers commands by their first words, and keeps them."""

    answers: dict[str, Callable[[], Output]] = field(default_factory=dict)
    ran: list[tuple[str, ...]] = field(default_factory=list)

    async def __call__(self, command: Command) -> Output:
        self.ran.append(command.words)
        return self.answers.get(" ".join(command.words[:2]), lambda: Output(0, "", ""))()


@dataclass
class Node:
    service: NodeService
    sysfs: FakeSysfs
    commands: Commands
    time: Time
    heard: Heard
    root: Path

    async def stage(self, *, seconds: float | None = 120.0, capability: csi_pb2.VolumeCapability = BLOCK) -> None:
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id="pvc-one",
            staging_target_path=str(self.root / "staging"),
            publish_context=publish_context(nvme_address="10.77.0.1", nvme_port=4420, nqn=NQN),
            volume_capability=capability,
        )
        await self.service.NodeStageVolume(request, Call(seconds))


@pytest.fixture
def node(sysfs: FakeSysfs, tmp_path: Path) -> Node:
    commands, time, heard = Commands(), Time(), Heard()
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "mountinfo").write_text("1 0 0:1 / / rw - tmpfs tmpfs rw\n")
    paths = NodePaths(sysfs.root, proc, tmp_path / "dev")
    service = NodeService("node-a", paths, commands, heard, clock=time.clock)
    return Node(service, sysfs, commands, time, heard, tmp_path)


def appears(node: Node) -> Callable[[], Output]:
    def connect() -> Output:
        node.sysfs.connect()
        node.sysfs.disk()
        return FOUND

    return connect


async def test_a_block_volume_is_connected_once(node: Node) -> None:
    node.commands.answers["nvme connect"] = appears(node)
    await node.stage()
    await node.stage()
    assert [words[:2] for words in node.commands.ran] == [("nvme", "connect")]
    assert node.heard.said == [("connect", ""), ("stage", ""), ("stage", "")]


async def test_a_target_that_says_no_is_asked_five_times_with_growing_delays(node: Node) -> None:
    node.commands.answers["nvme connect"] = lambda: REFUSED
    with pytest.raises(Unavailable, match=r"either does not know .* or does not admit this node's host NQN"):
        await node.stage()
    assert len(node.commands.ran) == 5
    assert all(0.8 * delay <= slept <= 1.2 * delay for slept, delay in zip(node.time.slept, (1, 2, 4, 8), strict=True))
    assert [what for what, _ in node.heard.said] == ["connect"] * 5 + ["stage"]


async def test_a_target_that_answers_at_the_third_try_is_connected(node: Node) -> None:
    answers = iter([SILENT, REFUSED])
    third = appears(node)
    node.commands.answers["nvme connect"] = lambda: next(answers, None) or third()
    await node.stage()
    assert len(node.commands.ran) == 3


async def test_no_try_begins_that_the_caller_would_not_wait_for(node: Node) -> None:
    node.commands.answers["nvme connect"] = lambda: SILENT
    with pytest.raises(Unavailable, match=r"cannot be connected to: .*Connection timed out"):
        await node.stage(seconds=4.5)
    assert 1 < len(node.commands.ran) < 5
    assert node.time.now < 104.5


async def test_a_controller_without_a_disk_is_connected_anew_once_and_then_given_up(node: Node) -> None:
    node.sysfs.connect()
    with pytest.raises(Unavailable, match="shows no disk, also after a new connection"):
        await node.stage()
    assert [words[:2] for words in node.commands.ran] == [("nvme", "disconnect")]
    assert 20 <= node.time.now - 100 < 25


async def test_a_controller_that_is_not_live_is_waited_for_as_long_as_the_caller_waits(node: Node) -> None:
    node.sysfs.connect(state="connecting")
    node.sysfs.disk()
    with pytest.raises(Unavailable, match="no controller is live"):
        await node.stage(seconds=5)
    assert 104 < node.time.now < 105
    assert node.commands.ran == []


async def test_what_is_held_off_is_not_tried_and_not_reported_as_a_failure(node: Node) -> None:
    class Held:
        def check(self, volume_id: str) -> None:
            raise Unavailable(f"{volume_id} is held off")

    held = NodeService("node-a", node.service.paths, node.commands, node.heard, Held())
    with pytest.raises(Unavailable, match="held off"):
        await Node(held, node.sysfs, node.commands, node.time, node.heard, node.root).stage()
    assert node.heard.said == node.commands.ran == []


async def test_a_second_stage_is_aborted_while_the_first_runs_and_a_cancelled_one_gives_the_volume_free(node: Node) -> None:
    going = asyncio.Event()

    async def hang(command: Command) -> Output:
        going.set()
        await asyncio.Event().wait()
        raise AssertionError

    service = NodeService("node-a", node.service.paths, hang, node.heard)
    hanging = Node(service, node.sysfs, node.commands, node.time, node.heard, node.root)
    first = asyncio.create_task(hanging.stage())
    await going.wait()
    with pytest.raises(Aborted, match="in flight"):
        await hanging.stage()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert len(service.locks) == 0
    assert node.heard.said == []


async def test_a_volume_that_is_served_under_another_name_than_its_own_is_refused(node: Node) -> None:
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id="pvc-two",
        staging_target_path="/staging",
        publish_context=publish_context(nvme_address="10.77.0.1", nvme_port=4420, nqn=NQN),
        volume_capability=BLOCK,
    )
    with pytest.raises(FailedPrecondition, match=r"only as nqn\.2000-02\.com\.mikrotik:pvc-two"):
        await node.service.NodeStageVolume(request, Call())


@pytest.mark.parametrize("path", ["staging", "/a/../b", "/a//b", "/a/./b", "/", "/a\0b"])
async def test_a_path_that_is_not_plain_is_refused(node: Node, path: str) -> None:
    with pytest.raises(InvalidArgument, match="staging_target_path"):
        await node.service.NodeUnstageVolume(csi_pb2.NodeUnstageVolumeRequest(volume_id="v", staging_target_path=path), Call())


@dataclass(frozen=True, slots=True)
class UsedHost(Host):
    """A host whose users are told by the test."""

    in_use: tuple[User, ...] = ()

    async def users(self, session: Session | None) -> tuple[User, ...]:
        return self.in_use


@pytest.mark.parametrize(
    ("users", "code", "words"),
    [
        ((), FailedPrecondition, "nobody can say which it is"),
        # The kubelet would forget of a session whose stage failed for good, and another node would be given the volume.
        ((User("has the device open", "mkfs.ext4", 7),), Unavailable, r"nobody can say.*left here.*mkfs\.ext4 \(pid 7\)"),
    ],
)
async def test_a_refusal_is_final_only_where_no_session_stays(
    node: Node, users: tuple[User, ...], code: type[Exception], words: str
) -> None:
    node.sysfs.connect()
    for number in (1, 2):
        node.sysfs.disk(namespace=number, minor=number)
    object.__setattr__(node.service, "host", UsedHost(node.service.paths, node.commands, in_use=users))

    def disconnect() -> Output:
        shutil.rmtree(node.sysfs.root / "class")
        (node.sysfs.root / "class").mkdir()
        return Output(0, "", "")

    node.commands.answers["nvme disconnect"] = disconnect
    with pytest.raises(code, match=words) as caught:
        await node.stage()
    assert type(caught.value) is code
    assert bool(node.commands.ran) is not bool(users)


async def test_a_block_volume_for_one_pod_alone_is_not_given_to_a_second_one(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.sysfs.connect()
    node.sysfs.disk()
    publish = node.root / "publish"
    publish.mkdir()
    # What an earlier start of the machine has left, a link, and the device of the pod that has the volume.
    found = {
        "old": Place(PlaceKind.BLOCK_DEVICE, number=DeviceNumber(259, 7)),
        "link": Place(PlaceKind.LINK),
        "pod-1": Place(PlaceKind.BLOCK_DEVICE, number=DISK.number),
    }
    for name in found:
        (publish / name).touch()
    monkeypatch.setattr("rds_csi.node.host._place", lambda path, *, mounted: found.get(Path(path).name, Place()))

    def request(pod: str, mode: str) -> csi_pb2.NodePublishVolumeRequest:
        return csi_pb2.NodePublishVolumeRequest(
            volume_id="pvc-one",
            staging_target_path=str(node.root / "staging"),
            target_path=str(publish / pod),
            volume_capability=csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=Mode(mode=mode)),
        )

    await node.service.NodePublishVolume(request("pod-1", "SINGLE_NODE_SINGLE_WRITER"), Call())
    with pytest.raises(FailedPrecondition, match=r"for one pod alone .*/publish/pod-1 already"):
        await node.service.NodePublishVolume(request("pod-2", "SINGLE_NODE_SINGLE_WRITER"), Call())
    found["pod-2"] = found["pod-1"]
    await node.service.NodePublishVolume(request("pod-2", "SINGLE_NODE_MULTI_WRITER"), Call())


def mounted_ext4(node: Node, *, errors: int) -> csi_pb2.VolumeCapability:
    """Have an ext4 with so many recorded errors mounted at the staging path."""
    node.sysfs.connect()
    node.sysfs.disk()
    staging = node.root / "staging"
    staging.mkdir()
    (node.service.paths.proc / "self" / "mountinfo").write_text(f"1 0 259:1 / {staging} rw - ext4 /dev/nvme0n1 rw\n")
    write(node.sysfs.root / "fs/ext4/nvme0n1", errors_count=str(errors))
    node.service.paths.dev.mkdir()
    object.__setattr__(node.service, "host", FoundHost(node.service.paths, node.commands))
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(fs_type="ext4"), access_mode=Mode(mode="SINGLE_NODE_WRITER")
    )


@dataclass(frozen=True, slots=True)
class FoundHost(Host):
    """A host in whose /dev the disk is."""

    def device(self, namespace: Namespace) -> str:
        return f"/dev/{namespace.name}"


@pytest.mark.parametrize("errors", [0, 1])
async def test_a_file_system_with_recorded_errors_is_staged_as_large_as_it_is(node: Node, errors: int) -> None:
    """Linux does not grow it, and its data are wanted all the same."""
    await node.stage(capability=mounted_ext4(node, errors=errors))
    assert [words[0] for words in node.commands.ran] == ([] if errors else ["resize2fs"])


@pytest.mark.parametrize(("errors", "code"), [(0, CommandFailed), (1, FailedPrecondition)])
async def test_a_file_system_with_recorded_errors_that_cannot_grow_is_named(node: Node, errors: int, code: type[Exception]) -> None:
    def refuses() -> Output:
        raise CommandFailed("resize2fs", 1, "resize2fs: Permission denied to resize filesystem")

    capability = mounted_ext4(node, errors=errors)
    node.commands.answers["resize2fs /dev/nvme0n1"] = refuses
    request = csi_pb2.NodeExpandVolumeRequest(
        volume_id="pvc-one", volume_path=str(node.root / "staging"), volume_capability=capability
    )
    with pytest.raises(code, match="Permission denied") as caught:
        await node.service.NodeExpandVolume(request, Call())
    assert ("e2fsck" in str(caught.value)) is bool(errors)


async def test_a_file_system_that_answers_nothing_is_not_measured(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.sysfs.connect()
    node.sysfs.disk()
    (node.service.paths.proc / "self" / "mountinfo").write_text(f"1 0 259:1 / {node.root} rw - xfs /dev/nvme0n1 rw\n")
    request = csi_pb2.NodeGetVolumeStatsRequest(volume_id="pvc-one", volume_path=str(node.root))
    assert (await node.service.NodeGetVolumeStats(request, Call())).usage[0].total

    def lstat(path: str) -> None:
        raise OSError(errno.EIO, path)

    monkeypatch.setattr("rds_csi.node.filesystem_errors.os.lstat", lstat)
    with pytest.raises(Unavailable, match="shut itself down"):
        await node.service.NodeGetVolumeStats(request, Call())
    monkeypatch.undo()


async def test_the_close_of_a_device_that_waits_for_a_lost_disk_holds_up_nobody_else(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last close writes what is dirty; no other volume's call may wait for that."""
    (node.service.paths.dev).mkdir()
    (node.service.paths.dev / "nvme0n1").touch()
    number = DeviceNumber(0, 0)
    monkeypatch.setattr("rds_csi.node.usage.device_of", lambda path: number)
    waits, goes_on, close = threading.Event(), threading.Event(), os.close

    def waiting(descriptor: int) -> None:
        waits.set()
        goes_on.wait(60)
        close(descriptor)

    async def hold() -> None:
        async with node.service.host.hold(replace(DISK, number=number)):
            monkeypatch.setattr("rds_csi.node.host.os.close", waiting)

    call = asyncio.ensure_future(hold())
    # It runs in a thread: the loop gets here while it waits.
    assert await asyncio.to_thread(waits.wait, 60)
    monkeypatch.setattr("rds_csi.node.host.os.close", close)
    assert not call.done()
    goes_on.set()
    await call


async def test_what_is_nowhere_cannot_be_measured_or_grown(node: Node) -> None:
    for path in ("some/path", str(node.root / "nothing")):
        with pytest.raises(NotFound):
            await node.service.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id="v", volume_path=path), Call())
        with pytest.raises(NotFound):
            await node.service.NodeExpandVolume(csi_pb2.NodeExpandVolumeRequest(volume_id="v", volume_path=path), Call())


async def test_a_block_volume_is_grown_by_asking_the_target_and_waiting(node: Node) -> None:
    controller = node.sysfs.connect()
    disk = node.sysfs.disk(size=1 << 30)
    (controller / "rescan_controller").write_text("")

    async def sleep(seconds: float) -> None:
        await node.time.sleep(seconds)
        if node.time.now > 102:
            (disk / "size").write_text(f"{(2 << 30) // 512}\n")

    service = NodeService("node-a", node.service.paths, node.commands, clock=Clock(lambda: node.time.now, sleep))
    request = csi_pb2.NodeExpandVolumeRequest(
        volume_id="pvc-one",
        volume_path=str(node.root),
        volume_capability=BLOCK,
        capacity_range=csi_pb2.CapacityRange(required_bytes=2 << 30),
    )
    assert (await service.NodeExpandVolume(request, Call())).capacity_bytes == 2 << 30
    assert (controller / "rescan_controller").read_text() == "1"


# What is on a device

DISK = Namespace("nvme0n1", DeviceNumber(259, 1), 1 << 30, False, "")


async def look(node: Node, answers: dict[str, Callable[[], Output]]) -> object:
    node.sysfs.connect()
    node.sysfs.disk(size=1 << 30)
    node.commands.answers = answers
    host = Host(node.service.paths, node.commands)
    return await content(host, NQN, DISK, "/dev/nvme0n1", Deadline(node.time.clock, node.time.now + 60))


ZEROS = Output(0, "", "", bytes(4096))


async def test_only_three_empty_looks_make_a_blank_device(node: Node) -> None:
    assert await look(node, {"dd if=/dev/nvme0n1": lambda: ZEROS, "blkid -p": lambda: Output(2, "", "")}) == Blank()
    assert [words[0] for words in node.commands.ran] == ["dd", "blkid"] * 3


async def test_one_look_is_enough_for_what_is_found(node: Node) -> None:
    found = await look(
        node, {"dd if=/dev/nvme0n1": lambda: ZEROS, "blkid -p": lambda: Output(0, "TYPE=ext4\nUSAGE=filesystem\n", "")}
    )
    assert found == Filesystem("ext4")
    assert len(node.commands.ran) == 2


async def test_bytes_that_nothing_names_are_no_blank_device(node: Node) -> None:
    some = Output(0, "", "", b"\0" * 4095 + b"x")
    found = await look(node, {"dd if=/dev/nvme0n1": lambda: some, "blkid -p": lambda: Output(2, "", "")})
    assert found == Occupied("data that blkid does not know")


async def test_a_device_that_cannot_be_read_or_a_look_that_hangs_is_unknown(node: Node) -> None:
    def fails() -> Output:
        raise CommandFailed("dd", 1, "Input/output error")

    def hangs() -> Output:
        raise CommandTooSlow("blkid", "not done in 20 s")

    assert isinstance(await look(node, {"dd if=/dev/nvme0n1": fails, "blkid -p": lambda: Output(2, "", "")}), Unknown)
    node.commands.answers = {"dd if=/dev/nvme0n1": lambda: ZEROS, "blkid -p": hangs}
    host = Host(node.service.paths, node.commands)
    deadline = Deadline(node.time.clock, node.time.now + 60)
    assert isinstance(await content(host, NQN, DISK, "/dev/nvme0n1", deadline), Unknown)


# Mounts


async def test_a_mount_that_is_busy_is_refused_by_the_names_of_who_uses_it(node: Node, tmp_path: Path) -> None:
    def busy() -> Output:
        raise CommandFailed("umount", 32, "umount: /target: target is busy.")

    node.commands.answers["umount --"] = busy
    device = tmp_path.stat().st_dev  # noqa: ASYNC240
    process = node.service.paths.proc / "77"
    (process / "fd").mkdir(parents=True)
    (process / "comm").write_text("qemu\n")
    (process / "cwd").symlink_to(tmp_path)
    (mount,) = parse_mountinfo(f"1 0 {os.major(device)}:{os.minor(device)} / /target rw - ext4 /dev/nvme0n1 rw\n")
    mounting = Mounting(Host(node.service.paths, node.commands), NoReports())
    with pytest.raises(FailedPrecondition, match=r"/target cannot be unmounted: qemu \(pid 77\) has files of it in use"):
        await mounting.unmount("pvc-one", mount, Deadline(node.time.clock, node.time.now + 60))


def test_the_mount_that_a_path_lies_on_is_the_deepest_and_uppermost() -> None:
    table = parse_mountinfo(
        "1 0 0:1 / / rw - tmpfs a rw\n"
        "2 1 0:2 / /var/lib rw - tmpfs b rw\n"
        "3 2 0:3 / /var/lib rw,nodev - tmpfs c rw\n"
        "4 1 0:4 / /var/library rw - tmpfs d rw\n"
    )
    assert [(mount_over(table, path) or table[3]).source for path in ("/var/lib/x", "/var/lib", "/x")] == ["c", "a", "a"]
    assert mount_over((), "/x") is None


# Looks and codes


async def test_a_look_that_hangs_is_given_up_and_not_joined_by_another_of_its_kind() -> None:
    looks, release, late = Looks(), threading.Event(), threading.Event()

    def hang() -> str:
        release.wait(60)
        return "late"

    with pytest.raises(LookTooSlow, match=r"no answer in 0\.05 s"):
        await looks("look", hang, 0.05, late=lambda _: late.set())
    with pytest.raises(LookTooSlow, match="an earlier look still waits"):
        await looks("look", lambda: "at once", 5)
    assert await looks("another look", lambda: "at once", 5) == "at once"
    release.set()
    # The late answer goes through the loop, after which the thread ends.
    assert await asyncio.to_thread(late.wait, 5)


async def test_an_answer_that_comes_in_the_moment_in_which_its_caller_leaves_is_not_lost() -> None:
    """It may be an open device."""
    looks, loop = Looks(), asyncio.get_running_loop()
    late: list[str] = []

    def leave() -> None:
        # Nothing else runs here until the answer is on its way.
        for thread in threading.enumerate():
            if thread.name == "open":
                thread.join(60)
        loop.call_soon(call.cancel)

    def look() -> str:
        loop.call_soon_threadsafe(leave)
        return "descriptor"

    call = asyncio.ensure_future(looks("open", look, 60, late=late.append))
    with pytest.raises(asyncio.CancelledError):
        await call
    assert late == ["descriptor"]


@pytest.mark.parametrize(
    "error",
    [
        CommandFailed("mount", 32, "wrong fs type"),
        CommandTooSlow("mount", "not done in 120 s"),
        CommandMissing("mkfs.xfs", "cannot be started"),
        LookTooSlow("look"),
        PathUnusable("path"),
        SysfsUnreadable("sysfs"),
        MountTableUnreadable("table"),
        UsersUnknown("users"),
    ],
)
def test_what_may_have_been_done_in_part_or_is_not_known_is_never_final_for_the_kubelet(error: Exception) -> None:
    assert status_of(error) is grpc.StatusCode.UNAVAILABLE


async def test_a_command_that_the_kernel_holds_can_be_left_behind_within_the_call() -> None:
    given: list[float] = []

    async def run(command: Command) -> Output:
        given.append(command.seconds)
        return Output(0, "", "")

    host = Host(run_command=run)
    for within in (600.0, 15.0, 1.0):
        await host.run(Command(("blkid",), 20.0), within=within)
    assert given == [20.0, 15.0 - END_GRACE, 0.5]
