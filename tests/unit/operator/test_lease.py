"""Leader election: the decisions on a fake clock, and the loop against an API server in memory."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_operator.lease import Leadership, LeaseLost, Observed, Timing, holder_of, may_take, observe, released, taken
from rds_records.clock import ServerClock
from tests.unit.operator.api_server import ApiServer, Client, Fault, with_faults

TIMING = Timing(15, 10, 2)
NOW = datetime(2026, 11, 20, tzinfo=UTC)
PATH = "/apis/coordination.k8s.io/v1/namespaces/rds-csi/leases/rds-operator"


class Time:
    """Monotonic seconds that pass only in ``sleep``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def replica(api: Client, time: Time, identity: str, timing: Timing = TIMING) -> Leadership:
    return Leadership(
        api,
        ServerClock(),
        namespace="rds-csi",
        name="rds-operator",
        identity=identity,
        timing=timing,
        monotonic=time,
        sleep=time.sleep,
    )


def lease(holder: str, duration: int = 15, renewed: str = "a") -> dict[str, Any]:
    return {"metadata": {"name": "x"}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": duration, "renewTime": renewed}}


@pytest.mark.parametrize("numbers", [(10, 10, 2), (15, 2, 2), (15, 10, 0), (15, 10, -1)])
def test_timing_that_allows_two_leaders_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be longer"):
        Timing(*numbers)


def test_two_requests_fit_into_the_renew_deadline() -> None:
    assert TIMING.request_timeout * 2 <= TIMING.renew_deadline


def test_a_lease_that_another_holds_is_taken_only_after_its_duration_without_change() -> None:
    seen = observe(None, lease("other"), 100.0)
    assert not may_take(lease("other"), seen, "me", TIMING, 114.9)
    assert may_take(lease("other"), seen, "me", TIMING, 115.0)


def test_every_renewal_starts_the_wait_anew() -> None:
    seen = observe(None, lease("other", renewed="a"), 100.0)
    seen = observe(seen, lease("other", renewed="b"), 110.0)
    assert seen.since == 110.0
    assert not may_take(lease("other", renewed="b"), seen, "me", TIMING, 124.0)


def test_the_holders_own_duration_counts_not_the_observers() -> None:
    seen = observe(None, lease("other", duration=60), 100.0)
    assert not may_take(lease("other", duration=60), seen, "me", TIMING, 159.0)
    assert may_take(lease("other", duration=60), seen, "me", TIMING, 160.0)


@pytest.mark.parametrize("holder", ["", "me"])
def test_a_released_lease_and_ones_own_are_taken_at_once(holder: str) -> None:
    assert may_take(lease(holder), Observed("", 100.0), "me", TIMING, 100.0)


@given(times=st.lists(st.floats(0, 14.9), max_size=20))
def test_a_lease_that_is_renewed_in_time_is_never_taken(times: list[float]) -> None:
    now, seen = 0.0, None
    for number, pause in enumerate(times):
        now += pause
        current = lease("other", renewed=str(number))
        if seen:
            assert not may_take(lease("other", renewed=str(number - 1)), seen, "me", TIMING, now)
        seen = observe(seen, current, now)


def test_taking_over_counts_a_transition_and_renewing_does_not() -> None:
    first = taken(None, "a", TIMING, NOW)
    assert (first["leaseTransitions"], first["holderIdentity"], first["leaseDurationSeconds"]) == (0, "a", 15)
    renewed = taken({"spec": first}, "a", TIMING, NOW)
    assert renewed["leaseTransitions"] == 0
    assert taken({"spec": renewed}, "b", TIMING, NOW)["leaseTransitions"] == 1


def test_times_on_the_lease_have_microseconds() -> None:
    assert taken(None, "a", TIMING, NOW)["renewTime"] == "2026-11-20T00:00:00.000000Z"


def test_a_released_lease_names_nobody() -> None:
    assert holder_of({"spec": released(lease("me"), NOW)}) == ""


async def test_the_first_replica_creates_the_lease() -> None:
    server = ApiServer()
    time = Time()
    first = replica(server.client(), time, "a")
    await first.acquire()
    assert first.leading
    assert server.get(PATH)["spec"]["holderIdentity"] == "a"


async def test_a_standby_takes_over_when_the_holder_falls_silent() -> None:
    server = ApiServer()
    time = Time()
    await replica(server.client(), time, "a").acquire()
    started = time.now
    standby = replica(server.client(), time, "b")
    await standby.acquire()
    assert 15 <= time.now - started <= 15 + 2 * TIMING.retry_period
    assert server.get(PATH)["spec"]["leaseTransitions"] == 1


async def test_a_standby_waits_while_the_holder_renews() -> None:
    server = ApiServer()
    holder, standby = (replica(server.client(), Time(), name) for name in "ab")
    await holder.acquire()
    keeping, waiting = asyncio.create_task(holder.keep()), asyncio.create_task(standby.acquire())
    for _ in range(500):
        await asyncio.sleep(0)
    assert not keeping.done()
    assert not waiting.done()
    assert not standby.leading
    for task in (keeping, waiting):
        task.cancel()


async def test_a_released_lease_is_taken_at_once() -> None:
    server = ApiServer()
    time = Time()
    first = replica(server.client(), time, "a")
    await first.acquire()
    await first.release()
    started = time.now
    await replica(server.client(), time, "b").acquire()
    assert time.now == started


async def test_a_release_never_takes_the_lease_from_another() -> None:
    server = ApiServer()
    time = Time()
    first = replica(server.client(), time, "a")
    await first.acquire()
    await replica(server.client(), time, "b").acquire()
    await first.release()
    assert server.get(PATH)["spec"]["holderIdentity"] == "b"


async def test_a_holder_whose_writes_fail_gives_up_before_anybody_may_take_over() -> None:
    server = ApiServer()
    time = Time()
    holder = replica(server.client(), time, "a")
    await holder.acquire()
    renewed = time.now
    with_faults(server, [Fault.LOST_REQUEST] * 100)
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await holder.keep()
    assert TIMING.renew_deadline <= time.now - renewed < TIMING.duration
    assert not holder.leading


async def test_a_lost_answer_to_a_renewal_does_not_end_the_leadership() -> None:
    server = ApiServer()
    time = Time()
    holder = replica(server.client(), time, "a")
    await holder.acquire()
    with_faults(server, [Fault.NONE, Fault.LOST_ANSWER, Fault.NONE, Fault.LOST_REQUEST] * 3)
    keeping = asyncio.create_task(holder.keep())
    for _ in range(200):
        await asyncio.sleep(0)
    assert not keeping.done()
    keeping.cancel()


async def test_a_lost_answer_to_the_first_write_is_found_to_be_ones_own() -> None:
    server = with_faults(ApiServer(), [Fault.LOST_ANSWER])
    time = Time()
    holder = replica(server.client(), time, "a")
    await holder.acquire()
    assert holder.leading


async def test_a_holder_that_finds_another_name_in_the_lease_is_lost_at_once() -> None:
    server = ApiServer()
    time = Time()
    holder = replica(server.client(), time, "a")
    await holder.acquire()
    stolen = server.get(PATH)
    stolen["spec"]["holderIdentity"] = "b"
    server.put(PATH, stolen)
    started = time.now
    with pytest.raises(LeaseLost, match="taken by b"):
        await holder.keep()
    assert time.now - started <= TIMING.retry_period


async def test_a_deleted_lease_is_made_anew_by_its_holder() -> None:
    server = ApiServer()
    holder = replica(server.client(), Time(), "a")
    await holder.acquire()
    del server.objects[PATH]
    keeping = asyncio.create_task(holder.keep())
    for _ in range(50):
        await asyncio.sleep(0)
    assert server.get(PATH)["spec"]["holderIdentity"] == "a"
    keeping.cancel()


class Frozen(Client):
    """Accepts requests and never answers."""

    async def _turn(self) -> None:
        await asyncio.Event().wait()


async def test_a_frozen_api_server_ends_the_leadership_within_the_renew_deadline() -> None:
    server = ApiServer()
    timing = Timing(0.4, 0.2, 0.05)
    loop = asyncio.get_running_loop()
    holder = Leadership(
        server.client(), ServerClock(), namespace="rds-csi", name="rds-operator", identity="a", timing=timing, monotonic=loop.time
    )
    await holder.acquire()
    started = loop.time()
    holder._api = Frozen(server)
    with pytest.raises(LeaseLost):
        await holder.keep()
    assert loop.time() - started < timing.duration


async def test_acquiring_outlasts_any_trouble() -> None:
    server = with_faults(ApiServer(), [Fault.LOST_REQUEST] * 30)
    holder = replica(server.client(), Time(), "a")
    await holder.acquire()
    assert holder.leading


@pytest.mark.requirement("R20")
async def test_a_replica_that_goes_on_is_never_idle_for_long_and_one_that_is_stuck_is() -> None:
    server = with_faults(ApiServer(), [Fault.LOST_REQUEST] * 30)
    time = Time()
    holder = replica(server.client(), time, "a")
    idle: list[float] = []

    async def sleep(seconds: float) -> None:
        await time.sleep(seconds)
        idle.append(holder.idle)

    holder._sleep = sleep
    await holder.acquire()
    keeping = asyncio.create_task(holder.keep())
    while len(idle) < 50:  # noqa: ASYNC110 no time passes
        await asyncio.sleep(0)
    assert 0 < max(idle) < holder.longest_idle / 2
    keeping.cancel()
    time.now += holder.longest_idle + 1
    assert holder.idle > holder.longest_idle
