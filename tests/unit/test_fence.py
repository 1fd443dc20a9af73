"""The fence under every interleaving: two replicas, lost links and answers, and replicas that die, on one record and one box.

The box is the simulator's console, with hosts that connect whenever they may, as kernels with ``ctrl_loss_tmo=-1`` do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.attachments import Attachments
from rds_csi.errors import Rejected
from rds_csi.fence import Fence, FenceWatch, out_of_line
from rds_csi.fence_mode import FenceMode
from rds_csi.metrics import ShimMetrics
from rds_csi.routeros import Box, BoxUnreachable, Disk, OutcomeUnknown, Output
from rds_csi.volume_locks import VolumeLocks
from rds_records.clock import ServerClock
from rds_records.decisions import Refused
from rds_records.fencing import NOBODY, admitted, confirmed, host_nqns, is_confirmed, noted
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound
from rds_records.names import host_nqn_for, volume_attachment_name
from rds_records.record import Force, ForceReason, Record
from rds_records.store import Contended, RecordStore
from rds_records.transitions import attach, begin_detach, detach
from tests.simulator.console import Console
from tests.simulator.store import Store
from tests.simulator.switches import Switches
from tests.unit.records.memory_api import MemoryApi, Mishap
from tests.unit.records.volumes import HANDLE, SHARED, at, attached, fresh

NODES = ("node-a", "node-b")
PAUSES = (0, 0, 1, 2, 5, 15, 40, 80)
"""Turns of the event loop: from none to what others need for a whole call."""

FORCE = Force(reason=ForceReason.NODE_NOT_READY, message="gone")


class World:
    """One record, one box and the hosts of two nodes; ``choices`` say who waits how long and what is lost."""

    def __init__(self, choices: list[int], record: Record) -> None:
        self.choices = choices
        self.api = MemoryApi(self._fate)
        self.api.put(record)
        self.console = Console(Store(), Switches())
        self.console.run(
            f"/disk add type=file file-path=/storage-pool/metal-csi/{HANDLE}.img file-size=1G slot={HANDLE} nvme-tcp-export=yes"
            f" nvme-tcp-server-port=4420 nvme-tcp-server-nqn=nqn.2000-02.com.mikrotik:{HANDLE}"
        )
        self.sessions: set[str] = set()
        self.commands: list[str] = []
        self.held: tuple[frozenset[str], asyncio.Event, asyncio.Event] | None = None
        """Hosts of a command that waits on its way, once: that it waits, and that it may go on."""

    def choose(self) -> int:
        return self.choices.pop() if self.choices else 0

    async def _pause(self) -> int:
        choice = self.choose()
        for _ in range(PAUSES[choice % 8]):
            await asyncio.sleep(0)
        return choice // 8

    async def _fate(self, method: str, path: str) -> Mishap:
        return {1: Mishap.DROPPED, 2: Mishap.ANSWER_LOST, 3: Mishap.SENT_TWICE}.get(await self._pause(), Mishap.NONE)

    async def run(self, command: str, *, deadline: float) -> Output:
        fate = await self._pause()
        if fate == 1:
            raise BoxUnreachable("no link")
        if self.held and ",".join(sorted(self.held[0])) in command:
            (_, waits, goes_on), self.held = self.held, None
            waits.set()
            await goes_on.wait()
        self.commands.append(command)
        answer = self.console.run(command)
        self._reconnect()
        # Others get on with their work before this one hears of it.
        await self._pause()
        if fate == 2:
            raise OutcomeUnknown("lost")
        return Output(answer.text + answer.error)

    def _reconnect(self) -> None:
        """Let hosts connect that may; a list is looked at then alone, as Linux does."""
        if not self.disk.nvme_tcp_export:
            self.sessions.clear()
            return
        self.sessions |= {node for node in NODES if not self.hosts or host_nqn_for(node) in self.hosts}

    @property
    def disk(self) -> Any:
        return self.console.store.disks[0]

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(filter(None, self.disk.nvme_tcp_server_allow_host_name.split(",")))

    @property
    def record(self) -> Record:
        found = self.api.peek(HANDLE)
        assert found is not None
        return found

    def fence(self, mode: FenceMode = FenceMode.ALLOW_HOST_NAME) -> Fence:
        return Fence(mode, Box(self), RecordStore(self.api), ServerClock(), 4420, ShimMetrics())


async def publish(world: World, fence: Fence, node: str) -> bool:
    record = await fence.store.read(HANDLE)
    assert record is not None
    decided = await fence.store.change(
        record, fence.noting(lambda newest: attach(newest, node, SHARED, now=at(1), new_id=f"id-{node}", node_exists=True))
    )
    if isinstance(decided, Refused):
        return False
    await fence.settle(decided.record, deadline=0)
    return True


async def unpublish(world: World, fence: Fence, node: str) -> bool:
    record = await fence.store.read(HANDLE)
    assert record is not None
    held = record.status.attachment_of(node)
    if held is None:
        return True
    decided = await fence.expel(
        record,
        lambda newest: begin_detach(newest, node, attachment_id=held.id, wanted=False, now=at(2), force=FORCE),
        lambda newest: detach(newest, node, attachment_id=held.id, wanted=False, now=at(2), fenced=True),
        deadline=0,
    )
    return not isinstance(decided, Refused)


Call = Callable[[World, Fence, str], Coroutine[Any, Any, bool]]


async def until_ok(world: World, call: Call, node: str) -> None:
    """Call as csi-attacher does, each time another replica; one that dies in the middle leaves what it has done."""
    for _ in range(60):
        task = asyncio.ensure_future(call(world, world.fence(), node))
        if world.choose() % 5 == 4:
            for _ in range(world.choose()):
                await asyncio.sleep(0)
            task.cancel()
        try:
            if await task:
                return
        except (asyncio.CancelledError, Rejected, ApiError, Contended):
            continue
    raise AssertionError(f"{call.__name__} of {node} never ends")


@given(st.lists(st.integers(0, 31), max_size=120))
@settings(max_examples=150, deadline=None)
def test_when_all_calls_have_ended_who_is_on_the_record_is_who_has_a_session(choices: list[int]) -> None:
    world = World(choices, fresh())

    async def live() -> None:
        await until_ok(world, publish, "node-a")
        await asyncio.gather(until_ok(world, publish, "node-b"), until_ok(world, unpublish, "node-a"))

    asyncio.run(live())
    assert admitted(world.record) == {"node-b"}
    assert world.hosts == host_nqns({"node-b"})
    assert world.sessions == {"node-b"}
    assert is_confirmed(world.record)
    assert [mark.node_name for mark in world.record.status.forced_detaches] == ["node-a"]


def test_a_replica_whose_late_command_lets_a_node_in_that_has_left_drops_its_session() -> None:
    world = World([], fresh())

    async def live() -> None:
        await publish(world, world.fence(), "node-a")
        waits, goes_on = asyncio.Event(), asyncio.Event()
        world.held = host_nqns(NODES), waits, goes_on
        late = asyncio.ensure_future(publish(world, world.fence(), "node-b"))
        await waits.wait()
        await unpublish(world, world.fence(), "node-a")
        assert world.sessions == {"node-b"}
        goes_on.set()
        await late

    asyncio.run(live())
    assert world.hosts == host_nqns({"node-b"})
    assert world.sessions == {"node-b"}


@given(st.lists(st.integers(0, 31), max_size=60))
@settings(max_examples=80, deadline=None)
def test_an_answered_forced_detach_left_no_session_where_no_other_call_is_under_way(choices: list[int]) -> None:
    world = World(choices, fresh())

    async def live() -> None:
        for node in NODES:
            await until_ok(world, publish, node)
        assert world.sessions == set(NODES)
        await until_ok(world, unpublish, "node-a")
        assert world.sessions == {"node-b"}
        await until_ok(world, unpublish, "node-b")
        assert world.sessions == set()
        assert world.hosts == {NOBODY}

    asyncio.run(live())


class Overtaken(World):
    """Another replica does something between a change that lets nobody in and the look at what it did, once."""

    other: Callable[[], Coroutine[Any, Any, bool]] | None = None

    async def run(self, command: str, *, deadline: float) -> Output:
        output = await super().run(command, deadline=deadline)
        if self.other and NOBODY in command:
            other, self.other = self.other, None
            assert await other()
        return output


def test_a_read_back_that_another_replica_has_overtaken_is_no_refusal() -> None:
    world = Overtaken([], fresh())

    async def live() -> None:
        await publish(world, world.fence(), "node-a")
        world.other = lambda: publish(world, world.fence(), "node-b")
        assert await unpublish(world, world.fence(), "node-a")

    asyncio.run(live())
    assert world.other is None
    assert [held.node_name for held in world.record.status.attachments] == ["node-b"]
    assert world.hosts == host_nqns({"node-b"})
    assert world.sessions == {"node-b"}


async def nobody_left(handle: str, node: str, *, deadline: float) -> bool:
    raise AssertionError(f"{node} is not leaving")


def test_with_the_fence_off_the_box_is_not_asked() -> None:
    world = World([], fresh())

    async def live() -> None:
        fence = world.fence(FenceMode.NONE)
        await publish(world, fence, "node-a")
        assert not await FenceWatch(fence, VolumeLocks(), nobody_left).round()

    asyncio.run(live())
    assert world.commands == []


def is_right(world: World) -> bool:
    return bool(world.disk.nvme_tcp_export and world.hosts == host_nqns({"node-a"}))


@pytest.mark.parametrize("left", ["nvme-tcp-export=no", "nvme-tcp-server-allow-host-name=x"])
def test_what_a_dead_replica_has_left_is_put_right_at_the_second_sight(left: str) -> None:
    world = World([], fresh())

    async def live() -> None:
        fence = world.fence()
        await publish(world, fence, "node-a")
        world.console.run(f"/disk set [find slot={HANDLE}] {left}")
        watch = FenceWatch(fence, VolumeLocks(), nobody_left)
        await watch.round()
        assert not is_right(world)
        await watch.round()

    asyncio.run(live())
    assert is_right(world)


def test_a_list_that_is_left_from_before_is_cleared_with_the_fence_off() -> None:
    world = World([], fresh())

    async def live() -> None:
        await publish(world, world.fence(), "node-a")
        watch = FenceWatch(world.fence(FenceMode.NONE), VolumeLocks(), nobody_left)
        await watch.round()
        await watch.round()
        assert not await watch.round()

    asyncio.run(live())
    assert not world.hosts


DISK = Disk(HANDLE, f"/storage-pool/metal-csi/{HANDLE}.img", 1 << 30, True, f"nqn.2000-02.com.mikrotik:{HANDLE}", 4420)


def test_a_volume_whose_list_nobody_has_set_is_left_alone() -> None:
    assert not out_of_line(attached(fresh(), "node-a"), DISK, enabled=True)
    assert not out_of_line(attached(fresh(), "node-a"), DISK, enabled=False)


def test_while_a_node_is_leaving_only_a_lost_export_is_put_right() -> None:
    before = attached(fresh(), "node-a", "node-b")
    record = confirmed(noted(before, before, enabled=True, now=at(5)), enabled=True, disk=True, now=at(5))
    held = record.status.attachment_of("node-a")
    assert held is not None
    leaving = begin_detach(record, "node-a", attachment_id=held.id, wanted=False, now=at(6))
    assert not isinstance(leaving, Refused)
    assert not out_of_line(leaving.record, DISK, enabled=True)
    assert out_of_line(leaving.record, replace(DISK, exported=False), enabled=True)


class Cluster:
    """Nodes that are Ready, and the VolumeAttachments that a test has."""

    def __init__(self) -> None:
        self.clock = ServerClock()
        self.attachments: dict[str, dict[str, Any]] = {}
        self.trouble: ApiError | None = None

    async def get(self, path: str) -> dict[str, Any]:
        return {"metadata": {"name": path.rsplit("/", 1)[1]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}

    async def get_metadata(self, path: str) -> dict[str, Any]:
        if self.trouble:
            raise self.trouble
        if (found := self.attachments.get(path.rsplit("/", 1)[1])) is None:
            raise ObjectNotFound(path, 404)
        return found


def watching(world: World, cluster: Cluster, mode: FenceMode = FenceMode.ALLOW_HOST_NAME) -> FenceWatch:
    fence = world.fence(mode)
    attachments = Attachments(cluster, fence.store, None, fence)  # type: ignore[arg-type]
    return FenceWatch(fence, VolumeLocks(), attachments.end_abandoned_detach)


async def killed_while_the_export_is_off(world: World, *nodes: str) -> None:
    """Attach these nodes, and let a replica die in a forced detach of the first."""
    for node in nodes:
        await publish(world, world.fence(), node)
    record = world.record
    held = record.status.attachment_of(nodes[0])
    assert held is not None
    begun = begin_detach(record, nodes[0], attachment_id=held.id, wanted=False, now=at(3), force=FORCE)
    assert not isinstance(begun, Refused)
    await world.fence().store.change(record, lambda _: begun)
    world.console.run(f"/disk set [find slot={HANDLE}] nvme-tcp-export=no")


@pytest.mark.parametrize("others", [(), ("node-b",)])
@pytest.mark.parametrize("mode", FenceMode)
def test_a_detach_that_nobody_will_call_for_again_is_ended(others: tuple[str, ...], mode: FenceMode) -> None:
    world = World([], fresh())

    async def live() -> None:
        await killed_while_the_export_is_off(world, "node-a", *others)
        watch = watching(world, Cluster(), mode)
        await watch.round()
        assert world.record.status.attachment_of("node-a")
        await watch.round()

    asyncio.run(live())
    assert admitted(world.record) == set(others)
    assert [held.node_name for held in world.record.status.attachments] == [*others]
    assert [(mark.reason, mark.fenced) for mark in world.record.status.forced_detaches] == [
        (ForceReason.NODE_NOT_READY, mode is FenceMode.ALLOW_HOST_NAME)
    ]
    if mode is FenceMode.ALLOW_HOST_NAME:
        assert world.disk.nvme_tcp_export
        assert world.hosts == host_nqns(others)
        assert is_confirmed(world.record)


@pytest.mark.parametrize("metadata", [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}])
def test_a_detach_whose_attachment_is_still_there_is_its_callers_and_only_the_export_comes_back(metadata: dict[str, Any]) -> None:
    world = World([], fresh())

    async def live() -> None:
        await killed_while_the_export_is_off(world, *NODES)
        cluster = Cluster()
        cluster.attachments[volume_attachment_name(HANDLE, "node-a")] = metadata
        watch = watching(world, cluster)
        for _ in range(3):
            await watch.round()

    asyncio.run(live())
    assert world.record.status.attachment_of("node-a")
    assert world.disk.nvme_tcp_export
    assert world.hosts == host_nqns({"node-b"})


def test_one_volume_that_cannot_be_put_right_does_not_end_the_round() -> None:
    world = World([], fresh())

    async def live() -> None:
        await killed_while_the_export_is_off(world, "node-a")
        cluster = Cluster()
        cluster.trouble = ApiUnavailable("no API server")
        watch = watching(world, cluster)
        for _ in range(2):
            assert await watch.round()
        cluster.trouble = None
        await watch.round()

    asyncio.run(live())
    assert world.record.status.attachments == ()
