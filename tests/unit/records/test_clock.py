"""The API server's time, from the header of its answers."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st

from rds_records.clock import ServerClock

SERVER = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()


class Machine:
    """Clocks that read what the test says, and an API server whose clock is ``offset`` seconds before the monotonic one."""

    def __init__(self, offset: float = SERVER, wall: float = 0.0) -> None:
        self.monotonic = 1000.0
        self.offset = offset
        self.wall = wall
        self.clock = ServerClock(monotonic=lambda: self.monotonic, wall=lambda: self.monotonic + self.wall)

    @property
    def truth(self) -> float:
        return self.monotonic + self.offset

    def exchange(self, there: float = 0.01, back: float = 0.01) -> None:
        sent = self.monotonic
        self.monotonic += there
        date = format_datetime(datetime.fromtimestamp(math.floor(self.truth), UTC), usegmt=True)
        self.monotonic += back
        self.clock.observe(date, sent, self.monotonic)


def seconds(text: datetime) -> float:
    return text.timestamp()


travel = st.floats(0.0, 3.0)
exchanges = st.lists(st.tuples(st.floats(0.0, 600.0), travel, travel), min_size=1, max_size=20)


@given(exchanges, st.floats(0.0, 1.0), st.floats(0.0, 600.0))
def test_the_true_time_is_never_before_the_earliest_nor_far_from_now(
    answers: list[tuple[float, float, float]], fraction: float, later: float
) -> None:
    machine = Machine(SERVER + fraction)
    for pause, there, back in answers:
        machine.monotonic += pause
        machine.exchange(there, back)
    machine.monotonic += later
    assert seconds(machine.clock.earliest()) <= machine.truth + 1e-4
    best = min(there + back for _, there, back in answers)
    assert abs(seconds(machine.clock.now()) - machine.truth) <= (1 + best) / 2 + 1e-3 + 20 * 700 * 200e-6


@given(exchanges, st.floats(-180e-6, 180e-6))
def test_clocks_that_drift_apart_stay_within_the_bounds(answers: list[tuple[float, float, float]], drift: float) -> None:
    machine = Machine()
    for pause, there, back in answers:
        machine.monotonic += pause
        machine.offset += pause * drift
        machine.exchange(there, back)
        assert seconds(machine.clock.earliest()) <= machine.truth + 1e-4


def test_many_answers_make_the_time_finer_than_the_second_of_the_header() -> None:
    machine = Machine(SERVER + 0.37)
    for _ in range(50):
        machine.exchange(0.004, 0.004)
        machine.monotonic += 0.313
    assert abs(seconds(machine.clock.now()) - machine.truth) < 0.05


def test_until_the_first_answer_it_is_this_machines_time() -> None:
    machine = Machine(wall=5000.0)
    assert not machine.clock.synchronized
    assert seconds(machine.clock.now()) == seconds(machine.clock.earliest()) == 6000.0
    assert machine.clock.disagreement() == timedelta(0)
    machine.exchange()
    assert machine.clock.synchronized


def test_a_step_of_the_servers_clock_starts_afresh() -> None:
    machine = Machine()
    for step in (3600.0, -7200.0):
        machine.exchange()
        machine.offset += step
        machine.exchange()
        assert abs(seconds(machine.clock.now()) - machine.truth) < 1.0
        assert seconds(machine.clock.earliest()) <= machine.truth


def test_a_step_of_this_machines_clock_is_not_seen() -> None:
    machine = Machine()
    machine.exchange()
    before = machine.clock.now()
    machine.wall += 86_400
    assert machine.clock.now() == before


def test_it_tells_how_far_this_machine_is_off() -> None:
    machine = Machine(wall=SERVER + 3600.0)
    machine.exchange()
    assert abs(machine.clock.disagreement() - timedelta(hours=1)) < timedelta(seconds=1)


def test_a_header_that_says_nothing_is_ignored() -> None:
    machine = Machine()
    for header in (None, "", "yesterday", "Sat, 99 Nov 2026 12:00:00 GMT"):
        machine.clock.observe(header, 0.0, 1.0)
    assert not machine.clock.synchronized


def test_between_answers_time_goes_on() -> None:
    machine = Machine()
    machine.exchange()
    before = machine.clock.now()
    machine.monotonic += 42.0
    assert machine.clock.now() - before == timedelta(seconds=42)
