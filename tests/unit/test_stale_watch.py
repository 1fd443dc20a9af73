"""Attachments without VolumeAttachment: what is released, what stays, and every interleaving with a publish of the same node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.attachments import Attachments, AttachRefused
from rds_csi.errors import Rejected
from rds_csi.fence import FenceWatch
from rds_csi.fence_mode import FenceMode
from rds_csi.stale_watch import StaleWatch
from rds_csi.volume_locks import VolumeLocks
from rds_records.clock import ServerClock
from rds_records.conditions import STALE_ATTACHMENT
from rds_records.fencing import host_nqns
from rds_records.forced_detach import OUT_OF_SERVICE
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound
from rds_records.names import DRIVER_NAME, unique_volume_name, volume_attachment_name
from rds_records.record import Announcement, ForceReason, Record
from rds_records.stale import is_marked
from rds_records.store import Contended
from rds_records.transitions import Access
from tests.unit.records.volumes import ALONE, HANDLE, SHARED, attached, fresh
from tests.unit.test_fence import World, nobody_left, publish

CLAIM = {"namespace": "vms", "name": "disk", "uid": "claim-uid"}
VOLUME = {
    "metadata": {"name": HANDLE},
    "spec": {"csi": {"driver": DRIVER_NAME, "volumeHandle": HANDLE}, "claimRef": CLAIM},
}
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
SILENT = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
NAME = unique_volume_name(HANDLE)


def attachment(node: str, pv: str = HANDLE, name: str = "") -> dict[str, Any]:
    return {
        "metadata": {"name": name or volume_attachment_name(HANDLE, node)},
        "spec": {"attacher": DRIVER_NAME, "nodeName": node, "source": {"persistentVolumeName": pv}},
    }


def pod(node: str, phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {"name": "web", "namespace": "vms", "uid": "pod-uid"},
        "spec": {"nodeName": node, "volumes": [{"persistentVolumeClaim": {"claimName": "disk"}}]},
        "status": {"phase": phase},
    }


class Kubernetes:
    """What a test has of nodes, pods and VolumeAttachments; each request waits and fails as the world's choices say."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = ServerClock()
        self.nodes: dict[str, dict[str, Any]] = {name: {"status": READY} for name in ("node-a", "node-b")}
        self.attachments: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.volumes: list[dict[str, Any]] = [VOLUME]
        self.broken: set[str] = set()

    async def _reached(self, path: str) -> str:
        if await self.world._pause() == 1 or any(part in path for part in self.broken):
            raise ApiUnavailable(f"{path}: no answer")
        return path.rsplit("/", 1)[1]

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        name = await self._reached(path)
        if "/nodes/" in path and name in self.nodes:
            return {"metadata": {"name": name}, **self.nodes[name]}
        raise ObjectNotFound(path, 404)

    async def get_metadata(self, path: str) -> dict[str, Any]:
        if "/volumeattachments/" not in path:
            return dict((await self.get(path))["metadata"])
        name = await self._reached(path)
        found = next((one for one in self.attachments if one["metadata"]["name"] == name), None)
        if found is None:
            raise ObjectNotFound(path, 404)
        return dict(found["metadata"])

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        kind = await self._reached(path)
        return {"volumeattachments": list(self.attachments), "persistentvolumes": self.volumes, "pods": list(self.pods)}[kind], "1"


def watch(world: World, kubernetes: Kubernetes, mode: FenceMode = FenceMode.NONE) -> StaleWatch:
    return StaleWatch(kubernetes, world.fence(mode), VolumeLocks(), 1.0)  # type: ignore[arg-type]


def attachments(world: World, kubernetes: Kubernetes, mode: FenceMode = FenceMode.NONE) -> Attachments:
    fence = world.fence(mode)
    return Attachments(kubernetes, fence.store, None, fence)  # type: ignore[arg-type]


def made(*nodes: str, access: Access = SHARED) -> tuple[World, Kubernetes]:
    """Return a volume that these nodes hold without VolumeAttachment."""
    world = World([], attached(fresh(), *nodes, access=access))
    return world, Kubernetes(world)


def looked(world: World, kubernetes: Kubernetes, times: int = 2, mode: FenceMode = FenceMode.NONE) -> Record:
    """Return the record after so many looks of one replica."""
    replica = watch(world, kubernetes, mode)

    async def live() -> None:
        for _ in range(times):
            await replica.round()

    asyncio.run(live())
    return world.record


def holders(record: Record) -> list[str]:
    return [held.node_name for held in record.status.attachments]


def condition(record: Record) -> tuple[str, str] | None:
    found = record.status.condition(STALE_ATTACHMENT)
    return (found.status, found.reason) if found else None


@pytest.mark.requirement("R22")
def test_a_node_that_does_not_use_the_volume_is_released_at_the_second_look_and_that_is_announced() -> None:
    world, kubernetes = made("node-a")
    assert holders(looked(world, kubernetes, 1)) == ["node-a"]
    record = looked(world, kubernetes)
    assert holders(record) == []
    (entry,) = record.status.outbox
    assert (entry.kind, entry.source_node) == (Announcement.STALE_CLEARED, "node-a")
    assert record.status.forced_detaches == ()
    assert condition(record) is None


@pytest.mark.requirement("R22")
@pytest.mark.parametrize(
    ("node", "pods", "ground"),
    [
        ({"status": READY}, [pod("node-a")], "InUse"),
        ({"status": {**READY, "volumesInUse": [NAME]}}, [], "Mounted"),
        ({"status": {**READY, "volumesAttached": [{"name": NAME}]}}, [], "Detaching"),
        ({"status": SILENT}, [], "NodeNotReady"),
        ({"status": READY, "spec": {"taints": [{"key": OUT_OF_SERVICE}]}}, [], "OutOfServiceButReady"),
        (None, [pod("node-a")], "PodsThere"),
    ],
)
def test_a_node_that_is_not_proven_out_stays_and_the_record_says_why(
    node: dict[str, Any] | None, pods: list[dict[str, Any]], ground: str
) -> None:
    world, kubernetes = made("node-a")
    kubernetes.pods = pods
    if node is None:
        del kubernetes.nodes["node-a"]
    else:
        kubernetes.nodes["node-a"] = node
    record = looked(world, kubernetes, 4)
    assert holders(record) == ["node-a"]
    assert condition(record) == ("True", ground)
    assert record.status.outbox == ()
    kubernetes.attachments = [attachment("node-a")]
    assert condition(looked(world, kubernetes)) == ("False", "NotStaleAttachment")


@pytest.mark.requirement("R22")
@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (None, ForceReason.NODE_GONE),
        ({"status": SILENT, "spec": {"taints": [{"key": OUT_OF_SERVICE}]}}, ForceReason.OUT_OF_SERVICE),
    ],
)
@pytest.mark.parametrize("mode", FenceMode)
def test_a_node_that_is_gone_or_out_of_service_is_released_by_force(
    node: dict[str, Any] | None, reason: ForceReason, mode: FenceMode
) -> None:
    world = World([], fresh())
    kubernetes = Kubernetes(world)

    async def hold() -> None:
        for name in ("node-a", "node-b"):
            await publish(world, world.fence(mode), name)

    asyncio.run(hold())
    kubernetes.attachments = [attachment("node-b")]
    kubernetes.nodes.pop("node-a")
    if node:
        kubernetes.nodes["node-a"] = node
    record = looked(world, kubernetes, mode=mode)
    assert holders(record) == ["node-b"]
    assert [(mark.node_name, mark.reason, mark.fenced) for mark in record.status.forced_detaches] == [
        ("node-a", reason, mode is FenceMode.ALLOW_HOST_NAME)
    ]
    if mode is FenceMode.ALLOW_HOST_NAME:
        assert world.hosts == host_nqns({"node-b"})
        assert world.sessions == {"node-b"}
        assert any("nvme-tcp-export=no" in command for command in world.commands), "the sessions are dropped"


@pytest.mark.parametrize(
    "there",
    [attachment("node-a"), attachment("node-a", name="made-by-hand"), attachment("node-a", pv="restored", name="by-another-name")],
)
def test_an_attachment_with_a_volume_attachment_is_never_released(there: dict[str, Any]) -> None:
    world, kubernetes = made("node-a")
    kubernetes.volumes = [VOLUME, {**VOLUME, "metadata": {"name": "restored"}}]
    kubernetes.attachments = [there]
    assert holders(looked(world, kubernetes, 5)) == ["node-a"]


def test_one_of_another_node_does_not_count() -> None:
    world, kubernetes = made("node-a")
    kubernetes.attachments = [attachment("node-b")]
    assert holders(looked(world, kubernetes)) == []


@pytest.mark.requirement("R22")
@pytest.mark.parametrize("unread", ["/nodes/", "/pods", "/persistentvolumes", "/volumeattachments"])
def test_what_cannot_be_read_releases_nothing(unread: str) -> None:
    world, kubernetes = made("node-a")
    replica = watch(world, kubernetes)

    async def live() -> None:
        await replica.round()
        kubernetes.broken = {unread}
        for _ in range(3):
            try:
                await replica.round()
            except ApiUnavailable:
                assert unread == "/volumeattachments"
        assert holders(world.record) == ["node-a"]
        assert not any(map(is_marked, world.record.status.attachments))
        kubernetes.broken = set()
        await replica.round()

    asyncio.run(live())
    assert holders(world.record) == []


@pytest.mark.requirement("R22")
@pytest.mark.parametrize("mode", FenceMode)
def test_what_a_dead_replica_has_marked_another_goes_on_with_or_takes_back(mode: FenceMode) -> None:
    for back in (False, True):
        world, kubernetes = made("node-a")
        replica = watch(world, kubernetes, mode)

        async def live(replica: StaleWatch = replica, world: World = world) -> None:
            (held,) = world.record.status.attachments
            assert await replica._mark(world.record, held, None)

        asyncio.run(live())
        assert is_marked(world.record.status.attachments[0])
        if back:
            kubernetes.attachments = [attachment("node-a")]
        record = looked(world, kubernetes, 1, mode)
        assert holders(record) == (["node-a"] if back else [])
        assert not any(map(is_marked, record.status.attachments))
        if mode is FenceMode.ALLOW_HOST_NAME:
            assert world.hosts == host_nqns({"node-a"} if back else set())


def test_a_refusal_names_the_holder_whose_volume_attachment_is_gone() -> None:
    world, kubernetes = made("node-a", access=ALONE)
    kubernetes.nodes["node-a"] = {"status": SILENT}
    looked(world, kubernetes)
    with pytest.raises(AttachRefused, match="its VolumeAttachment is gone: node node-a is not Ready"):
        asyncio.run(attachments(world, kubernetes).attach(HANDLE, "node-b", ALONE, deadline=0))


async def compare_box(world: World) -> None:
    fence_watch = FenceWatch(world.fence(), VolumeLocks(), nobody_left)
    for _ in range(2):
        await fence_watch.round()


async def look(world: World, kubernetes: Kubernetes, mode: FenceMode, times: int) -> None:
    """Look so many times; now and then the replica dies in the middle, and another takes its place."""
    replica = watch(world, kubernetes, mode)
    for _ in range(times):
        task = asyncio.ensure_future(replica.round())
        if world.choose() % 5 == 4:
            for _ in range(world.choose()):
                await asyncio.sleep(0)
            task.cancel()
            seen, replica = replica._seen, watch(world, kubernetes, mode)
            replica._seen = seen
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await task


@pytest.mark.requirement("R22")
@given(
    random=st.randoms(use_true_random=False),
    mode=st.sampled_from(list(FenceMode)),
    looks=st.integers(1, 5),
    rival=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_publish_that_comes_meanwhile_wins_and_never_are_two_told_yes(
    random: Random, mode: FenceMode, looks: int, rival: bool
) -> None:
    world = World([], attached(fresh(), "node-a", access=ALONE))
    kubernetes = Kubernetes(world)
    told: set[str] = set()

    async def ask(node: str) -> None:
        for _ in range(random.randrange(150)):
            await asyncio.sleep(0)
        # As the attach/detach controller and csi-attacher do: no publish without a VolumeAttachment.
        kubernetes.attachments.append(attachment(node))
        for _ in range(4):
            try:
                await attachments(world, kubernetes, mode).attach(HANDLE, node, ALONE, deadline=0)
            except (AttachRefused, Rejected, ApiError, Contended):
                continue
            told.add(node)
            assert holders(world.record) == [node], "what is answered is on the record"
            return

    async def live() -> None:
        # Mostly short waits: each step of a release meets each step of a publish.
        world.choices = [random.choice((0, 0, 1, 2, 3, 4, 5, 8, 20)) for _ in range(150)]
        replicas = [look(world, kubernetes, mode, looks) for _ in range(2)]
        await asyncio.gather(*replicas, ask("node-a"), *([ask("node-b")] if rival else []))

    asyncio.run(live())
    assert len(told) < 2, "two nodes were told yes"
    for node in told:
        assert holders(world.record) == [node], "nobody who was told yes was released"
    world.choices = []
    record = looked(world, kubernetes, 3, mode)
    assert not any(map(is_marked, record.status.attachments))
    for node in told:
        assert holders(record) == [node]
        if mode is FenceMode.ALLOW_HOST_NAME and any("allow-host-name" in command for command in world.commands):
            # What a replica that died has left on the box is the fence's own to find.
            asyncio.run(compare_box(world))
            assert world.hosts == host_nqns({node})
