"""Events of a node: on the right object, one per thing that happens, and never in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from rds_csi.node.health import Change, Problem
from rds_csi.node.node_events import COMPONENT, FORGET_SECONDS, MAX_ENTRIES, REPEAT_SECONDS, NodeEvents, NodeReason
from rds_csi.node.reports import MountOperation
from rds_csi.node.sysfs import DeviceNumber
from rds_records.events import EventRecorder, Subject, claim_subject, node_subject
from rds_records.kubernetes_api import ApiUnavailable
from rds_records.record import ObjectReference
from tests.unit.node.node_world import TARGET, disk, session
from tests.unit.operator.api_server import ApiServer, Fault, Object

VOLUME = "pvc-one"
START = datetime(2026, 1, 1, tzinfo=UTC)


class Node:
    """Node events against an API server in memory; claims are called like their volumes."""

    def __init__(self) -> None:
        self.server = ApiServer()
        self.at = 0.0
        self.away = False
        self.ended: list[tuple[NodeReason, bool]] = []
        recorder = EventRecorder(self.server.client(), COMPONENT, "node-a-life")
        now = lambda: START + timedelta(seconds=self.at)  # noqa: E731
        self.events = NodeEvents("node-a", recorder, self.subject_of, self, now=now, monotonic=lambda: self.at)

    async def subject_of(self, volume_id: str) -> Subject:
        if self.away:
            raise ApiUnavailable("the API server is away")
        if not volume_id:
            return node_subject("node-a", "node-uid")
        return claim_subject(ObjectReference(namespace="vms", name=f"claim-of-{volume_id}", uid="uid"))

    def event_ended(self, reason: NodeReason, *, posted: bool) -> None:
        self.ended.append((reason, posted))

    async def posted(self, namespace: str = "vms") -> list[Object]:
        await self.events.post_due()
        return self.server.events(namespace)


@pytest.fixture
def node() -> Node:
    return Node()


async def test_a_failed_connection_is_told_on_the_claim(node: Node) -> None:
    node.events.connect_ended(VOLUME, TARGET, 1.0, "connection refused")
    (event,) = await node.posted()
    where = f"{TARGET.address}:{TARGET.port}"
    assert (event["reason"], event["type"], event["source"]["component"]) == ("ConnectionFailure", "Warning", "rds-csi-node")
    assert event["message"] == f"[{VOLUME}] on [node-a]: NVMe/TCP connection to {where} failed: connection refused"
    assert event["involvedObject"]["name"] == f"claim-of-{VOLUME}"
    assert node.ended == [(NodeReason.CONNECTION_FAILURE, True)]


async def test_the_first_connection_after_failures_is_told_with_the_number_of_attempts(node: Node) -> None:
    node.events.connect_ended(VOLUME, TARGET, 1.0, "")
    for failure in ("no", "no", ""):
        node.events.connect_ended(VOLUME, TARGET, 1.0, failure)
    node.events.connect_ended(VOLUME, TARGET, 1.0, "")
    told = {event["reason"]: event for event in await node.posted()}
    assert set(told) == {"ConnectionFailure", "ConnectionRecovery"}
    assert "after 3 attempts" in told["ConnectionRecovery"]["message"]
    assert told["ConnectionFailure"]["count"] == 2


@pytest.mark.parametrize(
    ("change", "reason", "kind"),
    [
        (Change(VOLUME, Problem.CONNECTION_LOST, began=True, seconds=30), "ConnectionLost", "Warning"),
        (Change(VOLUME, Problem.CONNECTION_LOST, began=False, seconds=90), "ConnectionRecovery", "Normal"),
        (Change(VOLUME, Problem.DEVICE_VANISHED, began=True, seconds=30), "DeviceVanished", "Warning"),
        (Change(VOLUME, Problem.DEVICE_VANISHED, began=False, seconds=90), "DeviceReturned", "Normal"),
        (Change(VOLUME, Problem.FILESYSTEM_READ_ONLY, began=True, seconds=0), "FilesystemReadOnly", "Warning"),
        (Change(VOLUME, Problem.FILESYSTEM_READ_ONLY, began=False, seconds=90), "FilesystemWritable", "Normal"),
        (Change(VOLUME, Problem.FILESYSTEM_ERRORS, began=True, seconds=0), "FilesystemErrors", "Warning"),
        (Change(VOLUME, Problem.FILESYSTEM_ERRORS, began=False, seconds=90), "FilesystemRepaired", "Normal"),
    ],
)
async def test_health_is_told(node: Node, change: Change, reason: str, kind: str) -> None:
    node.events.health_changed(change)
    (event,) = await node.posted()
    assert (event["reason"], event["type"]) == (reason, kind)
    assert "{" not in event["message"]


async def test_mounts_stale_paths_and_hold_offs_are_told(node: Node) -> None:
    old, now = DeviceNumber(259, 1), DeviceNumber(259, 2)
    node.events.mount_ended(VOLUME, MountOperation.MOUNT, "")
    node.events.stale_mount_recovered(VOLUME, "/staging", "")
    assert await node.posted() == []
    node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad superblock")
    node.events.stale_mount_found(VOLUME, "/staging", old, now)
    node.events.stale_mount_recovered(VOLUME, "/staging", "in use")
    node.events.held_off(VOLUME, 3, 10.0, "no answer")
    node.events.released(VOLUME, "it was staged")
    told = {event["reason"]: event["message"] for event in await node.posted()}
    assert "mount failed: bad superblock" in told["MountFailure"]
    assert "leads to device 259:1, and the volume's disk is 259:2" in told["StaleMountDetected"]
    assert "in use" in told["RecoveryFailed"]
    assert "failed 3 times in a row and is not tried for 10s: no answer" in told["VolumeHeldOff"]
    assert "it was staged" in told["VolumeReleased"]


async def test_orphans_are_told_on_the_node_each_by_itself(node: Node) -> None:
    one, two = session(disk()), session(disk(2))
    object.__setattr__(two, "nqn", "nqn.2000-02.com.mikrotik:pvc-two")
    for orphan in (one, two):
        node.events.orphan_found(orphan)
        node.events.orphan_cleaned(orphan)
    told = await node.posted("default")
    assert sorted(event["reason"] for event in told) == ["OrphanCleaned"] * 2 + ["OrphanDetected"] * 2
    assert {event["involvedObject"]["kind"] for event in told} == {"Node"}


async def test_the_same_again_raises_one_events_count_at_most_twice_a_minute(node: Node) -> None:
    for second in range(100):
        node.at = second
        node.events.connect_ended(VOLUME, TARGET, 1.0, f"failure {second}")
        await node.events.post_due()
    node.at = 100 + REPEAT_SECONDS
    (event,) = await node.posted()
    assert (event["count"], event["message"].rpartition(": ")[2]) == (100, "failure 99")
    assert (event["firstTimestamp"], event["lastTimestamp"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:01:39Z")
    assert [verb for verb, _ in node.server.writes].count("PATCH") == 4
    assert node.ended == [(NodeReason.CONNECTION_FAILURE, True)], "an Event counts once"


async def test_the_same_after_an_hour_is_another_event(node: Node) -> None:
    for at in (0, FORGET_SECONDS):
        node.at = at
        node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad")
        await node.events.post_due()
    assert [event["count"] for event in await node.posted()] == [1, 1]


async def test_what_happens_while_the_api_server_is_away_is_told_when_it_is_back(node: Node) -> None:
    node.away = True
    node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad")
    assert not await node.events.post_due()
    node.away = False
    assert len(await node.posted()) == 1


async def test_a_lost_answer_makes_no_second_event(node: Node) -> None:
    node.server.faults = [Fault.LOST_ANSWER]
    node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad")
    assert not await node.events.post_due()
    assert len(await node.posted()) == 1


async def test_what_the_api_server_does_not_take_for_an_hour_is_dropped_and_counted(node: Node) -> None:
    node.away = True
    node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad")
    await node.events.post_due()
    node.at, node.away = FORGET_SECONDS, False
    assert await node.posted() == []
    assert node.ended == [(NodeReason.MOUNT_FAILURE, False)]


async def test_a_namespace_that_is_going_takes_no_event_and_stops_no_other(node: Node) -> None:
    node.server.refuse_events_in.add("vms")
    node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad")
    node.events.orphan_cleaned(session(disk()))
    assert await node.events.post_due()
    assert sorted(node.ended) == [(NodeReason.MOUNT_FAILURE, False), (NodeReason.ORPHAN_CLEANED, True)]


async def test_an_event_that_cannot_be_made_stops_no_other(node: Node) -> None:
    find = node.events._subject_of

    async def broken(volume_id: str) -> Subject:
        if volume_id == VOLUME:
            raise KeyError("a defect")
        return await find(volume_id)

    node.events._subject_of = broken
    for volume in (VOLUME, "pvc-two"):
        node.events.mount_ended(volume, MountOperation.MOUNT, "bad")
    assert [event["involvedObject"]["name"] for event in await node.posted()] == ["claim-of-pvc-two"]
    assert node.ended == [(NodeReason.MOUNT_FAILURE, False), (NodeReason.MOUNT_FAILURE, True)]


async def test_too_much_at_once_is_dropped_and_counted_oldest_first(node: Node) -> None:
    node.away = True
    for number in range(MAX_ENTRIES + 10):
        node.events.mount_ended(f"pvc-{number}", MountOperation.MOUNT, "bad")
    assert node.ended == [(NodeReason.MOUNT_FAILURE, False)] * 10
    node.away = False
    names = {event["involvedObject"]["name"] for event in await node.posted()}
    assert len(names) == MAX_ENTRIES
    assert "claim-of-pvc-9" not in names


async def test_what_was_told_makes_room_first(node: Node) -> None:
    node.events.mount_ended("pvc-told", MountOperation.MOUNT, "bad")
    await node.events.post_due()
    for number in range(MAX_ENTRIES):
        node.events.mount_ended(f"pvc-{number}", MountOperation.MOUNT, "bad")
    assert node.ended == [(NodeReason.MOUNT_FAILURE, True)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 the server in memory tells nobody
        await asyncio.sleep(0)


async def test_the_loop_posts_what_comes_and_what_comes_again_when_its_time_is_over(node: Node) -> None:
    slept: asyncio.Queue[float] = asyncio.Queue()
    go_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.put_nowait(seconds)
        await go_on.wait()
        go_on.clear()

    running = asyncio.create_task(node.events.run(sleep))
    try:
        async with asyncio.timeout(10):
            node.away = True
            node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad")
            backoffs = []
            for _ in range(3):
                backoffs.append(await slept.get())
                node.away = len(backoffs) < 3
                go_on.set()
            assert backoffs == [1, 2, 4]
            await until(lambda: bool(node.server.events("vms")))
            node.at = 20.0
            node.events.mount_ended(VOLUME, MountOperation.MOUNT, "bad")
            assert await slept.get() == REPEAT_SECONDS - 20.0
            node.at = REPEAT_SECONDS
            go_on.set()
            await until(lambda: node.server.events("vms")[0]["count"] == 2)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
