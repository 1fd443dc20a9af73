"""Windows are measured so that disagreeing clocks fire nothing early, and found late by at most two seconds."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rds_operator.active import ActiveOperator
from rds_operator.memory import RecordMemory
from rds_operator.timeouts import CHECK_SECONDS, PARALLEL_DEADLINES, Deadlines, Sighting, WindowAges, first_sight, runs, time_left
from rds_records.clock import ServerClock
from rds_records.record import Record, Result
from rds_records.store import RecordStore
from tests.unit.operator.api_server import ApiServer
from tests.unit.operator.volumes import HANDLE, NOW, detached, migrating, read_record, record, store_record

OFFSETS = st.floats(-1e6, 1e6)
DATE_RESOLUTION = 1.0


class World:
    """True time, and the clocks of one operator process; monotonic time runs with true time, the others as they are set."""

    def __init__(self, *, wall_offset: float = 0.0, server_offset: float = 0.0) -> None:
        self.true = NOW.timestamp()
        self.wall_offset = wall_offset
        self.server_offset = server_offset
        self.clock = ServerClock(monotonic=self.monotonic, wall=self.wall)

    def monotonic(self) -> float:
        return self.true - NOW.timestamp() + 5000.0

    def wall(self) -> float:
        return self.true + self.wall_offset

    def ask_server(self, round_trip: float = 0.0) -> None:
        sent = self.monotonic()
        date = datetime.fromtimestamp(int(self.true + self.server_offset), NOW.tzinfo)
        self.true += round_trip
        self.clock.observe(format_datetime(date, usegmt=True), sent, self.monotonic())

    async def sleep(self, seconds: float) -> None:
        self.true += seconds

    def ages(self) -> WindowAges:
        return WindowAges(self.clock, wall=self.wall, monotonic=self.monotonic)


def opened(at: float, **changes: Any) -> Record:
    body = migrating(since=datetime.fromtimestamp(at, NOW.tzinfo), **changes)
    return body.replace(metadata=body.metadata.replace(uid="uid-1"))


def test_a_start_in_the_future_counts_as_now() -> None:
    seen = first_sight(NOW + timedelta(hours=1), server=NOW, wall=NOW, monotonic=7.0)
    assert seen == Sighting(timedelta(), 7.0)


@pytest.mark.parametrize(("server", "wall"), [(10, 3600), (3600, 10)])
def test_the_clock_that_says_less_is_believed(server: int, wall: int) -> None:
    seen = first_sight(NOW, server=NOW + timedelta(seconds=server), wall=NOW + timedelta(seconds=wall), monotonic=0.0)
    assert seen.elapsed == timedelta(seconds=10)


def test_without_the_servers_time_a_window_counts_from_first_sight() -> None:
    assert first_sight(NOW, server=None, wall=NOW + timedelta(hours=1), monotonic=0.0).elapsed == timedelta()


@pytest.mark.requirement("R45")
@given(wall=OFFSETS, server=OFFSETS, opener=st.sampled_from(["server", "true"]), before=st.floats(0, 1e5), after=st.floats(0, 1e5))
@example(wall=0.0, server=3600.0, opener="true", before=1.0, after=1.0)
def test_no_offset_of_one_clock_makes_a_window_older_than_it_is(
    wall: float, server: float, opener: str, before: float, after: float
) -> None:
    """The start was written by the API server's clock, or that was stepped afterwards; this machine's may be right or wrong."""
    world = World(wall_offset=wall if opener == "server" else 0.0, server_offset=server)
    start = world.true + (server if opener == "server" else 0.0)
    world.true += before
    world.ask_server()
    ages = world.ages()
    body = opened(start)
    ages.observe(body)
    world.true += after
    assert ages.age(body).total_seconds() <= before + after + 1e-3


@pytest.mark.requirement("R45")
@given(jumps=st.lists(st.tuples(st.floats(0, 100), OFFSETS, OFFSETS), max_size=10))
def test_clocks_that_jump_while_the_operator_lives_change_nothing(jumps: list[tuple[float, float, float]]) -> None:
    world = World()
    start = world.true
    world.ask_server()
    ages = world.ages()
    body = opened(start)
    ages.observe(body)
    first = ages.age(body).total_seconds()
    for passed, wall, server in jumps:
        world.true += passed
        world.wall_offset, world.server_offset = wall, server
        world.ask_server()
    assert ages.age(body).total_seconds() == pytest.approx(first + sum(jump[0] for jump in jumps), abs=1e-3)


@given(before=st.floats(0, 1e5), round_trip=st.floats(0, 0.5))
def test_with_clocks_that_agree_a_window_is_at_most_a_tick_of_the_date_header_younger_than_it_is(
    before: float, round_trip: float
) -> None:
    world = World()
    start = world.true
    world.true += before
    world.ask_server(round_trip)
    ages = world.ages()
    body = opened(start)
    age = ages.age(body).total_seconds()
    assert before + round_trip - DATE_RESOLUTION - round_trip - 1e-3 <= age <= before + round_trip + 1e-3


def test_another_window_of_the_same_volume_is_measured_anew() -> None:
    world = World()
    world.ask_server()
    ages = world.ages()
    first = opened(world.true)
    ages.observe(first)
    world.true += 100
    again = opened(world.true).with_status(migration=opened(world.true).status.migration.replace(id="other"))  # type: ignore[union-attr]
    assert ages.age(again) < timedelta(seconds=1)


def test_a_closed_window_is_forgotten() -> None:
    world = World()
    ages = world.ages()
    body = opened(world.true)
    ages.observe(body)
    ages.observe(body.with_status(migration=None))
    assert ages._seen == {}


def operator(world: World, server: ApiServer) -> tuple[ActiveOperator, RecordMemory]:
    memory = RecordMemory()
    client = server.client()
    store = RecordStore(client)
    deadlines = Deadlines(store, world.ages(), world.clock)
    return ActiveOperator(client, memory, deadlines, (), sleep=world.sleep), memory


async def until_result(world: World, active: ActiveOperator, server: ApiServer, *, limit: float) -> Record:
    """Look each second until the window has its result."""
    while True:
        body = read_record(server)
        active.record_changed(server.get(f"/apis/rds.csi.srvlab.io/v1alpha1/volumeattachmentrecords/{HANDLE}"), deleted=False)
        for uid in active.due():
            await active.check_deadline(uid)
        body = read_record(server)
        if not runs(body):
            return body
        assert world.true < limit, "not found in time"
        await world.sleep(CHECK_SECONDS)


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("already", [0.0, 3.3, 29.2, 29.99, 500.0])
async def test_a_deadline_is_found_within_two_seconds(already: float) -> None:
    world = World()
    server = ApiServer()
    start = world.true
    world.true += already
    store_record(server, opened(start, migration_timeout_seconds=30))
    world.ask_server()
    active, _ = operator(world, server)
    body = await until_result(world, active, server, limit=start + max(30.0, already) + 60)
    assert body.status.migration
    assert body.status.migration.result is Result.TIMED_OUT
    assert max(30.0, already) <= world.true - start <= max(30.0, already) + 2.0


@pytest.mark.requirement("R1")
async def test_a_window_is_timed_out_once_and_both_nodes_stay() -> None:
    world = World()
    server = ApiServer()
    store_record(server, opened(world.true - 100, migration_timeout_seconds=30))
    world.ask_server()
    active, _ = operator(world, server)
    body = await until_result(world, active, server, limit=world.true + 5)
    for _ in range(5):
        await active.check_deadline(body.metadata.uid or "")
    active.record_changed(body.to_json(), deleted=False)
    assert active.due() == set()
    after = read_record(server)
    assert after.metadata.resource_version == body.metadata.resource_version
    assert [entry.kind for entry in after.status.outbox] == ["Started", "TimedOut"]
    assert after.status.nodes == "node-a,node-b"


@pytest.mark.requirement("R1")
async def test_a_deadline_that_was_written_is_not_written_again_while_the_watch_is_behind() -> None:
    world = World()
    server = ApiServer()
    stored = store_record(server, opened(world.true - 100, migration_timeout_seconds=30))
    world.ask_server()
    active, memory = operator(world, server)
    active.record_changed(stored.to_json(), deleted=False)
    uid = stored.metadata.uid or ""
    await active.check_deadline(uid)
    behind = memory.get(uid)
    assert behind
    assert runs(behind)
    assert active.due() == set()
    active.record_changed(store_record(server, stored).to_json(), deleted=False)
    assert active.due() == {uid}


@pytest.mark.requirement("R1")
async def test_deadlines_that_pass_together_go_before_what_is_to_be_reported() -> None:
    world = World()
    server = ApiServer()
    world.ask_server()
    active, _ = operator(world, server)
    handles = [f"pvc-{number:03}" for number in range(3 * PARALLEL_DEADLINES)]
    for handle in handles:
        stored = store_record(server, migrating(handle, since=NOW - timedelta(seconds=100), migration_timeout_seconds=30))
        active.record_changed(stored.to_json(), deleted=False)
    assert len(active.due()) == len(handles)
    async with asyncio.TaskGroup() as checks:
        for uid in active.due():
            checks.create_task(active.check_deadline(uid))
        await asyncio.sleep(0)
        assert server.writes == []
        await active._deadlines.first()
        assert len(server.writes) > len(handles) - PARALLEL_DEADLINES
    assert not any(runs(read_record(server, handle)) for handle in handles)


@pytest.mark.requirement("R10")
@pytest.mark.parametrize(("before", "edited"), [(300, 60), (60, 300)])
async def test_an_edited_timeout_moves_a_running_deadline(before: int, edited: int) -> None:
    world = World()
    server = ApiServer()
    start = world.true
    stored = store_record(server, opened(start, migration_timeout_seconds=before))
    world.ask_server()
    active, _ = operator(world, server)
    active.record_changed(stored.to_json(), deleted=False)
    await world.sleep(30)
    edited_body = stored.replace(spec=stored.spec.replace(migration_timeout_seconds=edited))
    store_record(server, edited_body)
    active.record_changed(server.get(f"/apis/rds.csi.srvlab.io/v1alpha1/volumeattachmentrecords/{HANDLE}"), deleted=False)
    await active.check_deadline(stored.metadata.uid or "")
    window = read_record(server).status.migration
    assert window
    assert window.timeout_seconds == edited
    assert window.deadline_time == window.start_time + timedelta(seconds=edited)
    body = await until_result(world, active, server, limit=start + 400)
    assert body.status.migration
    assert edited <= world.true - start <= edited + 2


async def test_a_window_that_closed_meanwhile_is_left_alone() -> None:
    world = World()
    server = ApiServer()
    stored = store_record(server, opened(world.true - 100, migration_timeout_seconds=30))
    world.ask_server()
    active, _ = operator(world, server)
    active.record_changed(stored.to_json(), deleted=False)
    store_record(server, detached(read_record(server), "node-a"))
    await active.check_deadline(stored.metadata.uid or "")
    assert [closed.result for closed in read_record(server).status.history] == [Result.SUCCEEDED]


async def test_a_volume_without_timeout_has_no_deadline() -> None:
    body = opened(NOW.timestamp())
    kubevirt = body.replace(spec=body.spec.replace(dual_attach_policy="KubeVirt"))
    assert time_left(kubevirt, timedelta(days=1)) is None
    assert time_left(record(), timedelta()) is None


async def test_a_window_far_from_its_deadline_costs_no_request() -> None:
    world = World()
    server = ApiServer()
    stored = store_record(server, opened(world.true - 28.9, migration_timeout_seconds=30))
    world.ask_server()
    active, _ = operator(world, server)
    active.record_changed(stored.to_json(), deleted=False)
    assert active.due() == set()
    await world.sleep(1.5)
    assert active.due() == {stored.metadata.uid}
