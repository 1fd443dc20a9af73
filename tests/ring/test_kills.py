"""SIGKILL at each step of each migration changes nothing that anybody sees afterwards.

One volume stands at each step of each of the three migrations when shim, operator or API server is killed; all of them share that
kill. What records and Events say in the end is compared with the same migrations undisturbed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator, Shim
from tests.ring.migration_steps import (
    BACK_SECONDS,
    SCRIPTS,
    Hands,
    Holds,
    Operation,
    Point,
    Scenario,
    Step,
    Volume,
    at_rest,
    claimed_results,
    counted_results,
    outcome,
    records_of,
    results,
    steps_of,
)
from tests.ring.processes import Process
from tests.ring.proxy import Proxy
from tests.ring.rpc import Csi
from tests.ring.stack import Stack, reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

VICTIMS = ("shim", "operator", "API server")
LAST = Step(Operation.UNPUBLISH_TARGET, Point.DONE)


@dataclass
class World:
    """A whole installation whose shim and operator reach the API server through a proxy each."""

    plane: ControlPlane
    cluster: Cluster
    box: SimulatedBox
    shim: Shim
    operator: Operator
    csi: Csi
    shim_proxy: Proxy
    operator_proxy: Proxy
    source: str
    target: str
    pool: ThreadPoolExecutor

    def __post_init__(self) -> None:
        self.hands = Hands(self.cluster, self.csi)
        self.holds = Holds(self.shim_proxy, self.operator_proxy)

    def victim(self, name: str) -> Process:
        """Return who is to be killed."""
        return {"shim": self.shim, "operator": self.operator, "API server": self.plane.apiserver}[name]

    def revive(self, process: Process) -> None:
        """Start what was killed, as its Deployment would; and the operator, should it have ended for want of its Lease."""
        process.start()
        if not self.operator.running:
            self.operator.start()

    def volume(self, scenario: Scenario, step: Step = LAST) -> Volume:
        """Return a volume that does not exist yet."""
        return Volume(scenario, step, self.source, self.target)

    def each(self, work: Any, volumes: Sequence[Any]) -> list[Any]:
        """Do the work for all of them at the same time."""
        return list(self.pool.map(work, volumes))

    def perform(self, volume: Volume, operations: Sequence[Operation]) -> None:
        """Do operations one after another."""
        for operation in operations:
            self.hands.do(volume, operation)

    def records(self) -> list[Object]:
        """Return all records."""
        return self.cluster.api.list("VolumeAttachmentRecord")

    def outcome(self, volume: Volume) -> dict[str, Any]:
        """Return what is seen of a volume when it has come to rest."""

        def rested() -> dict[str, Any] | None:
            seen = outcome(self.cluster, volume)
            assert at_rest(seen), seen
            return seen

        return eventually(f"{volume} comes to rest", rested, timeout=60, interval=0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kills")
    with ExitStack() as ends:
        stack = ends.enter_context(Stack(folder))
        box = stack.box()
        shim_proxy, operator_proxy = ends.enter_context(Proxy(stack.plane)), ends.enter_context(Proxy(stack.plane))
        # Windows that begin a while ago can run out at once, without waiting for the least timeout.
        shim_proxy.shift_date(-BACK_SECONDS)
        shim = ends.enter_context(Shim(stack.plane, folder / "shim", reach(box), through=shim_proxy))
        operator = ends.enter_context(Operator(stack.plane, folder / "operator", through=operator_proxy))
        csi = ends.enter_context(Csi(shim.endpoint))
        pool = ends.enter_context(ThreadPoolExecutor(max_workers=128))
        source, target = stack.cluster.make_node("source"), stack.cluster.make_node("target")
        world = World(stack.plane, stack.cluster, box, shim, operator, csi, shim_proxy, operator_proxy, source, target, pool)
        # Calls that a failed test left behind end with the pool.
        ends.callback(world.holds.let_go)
        yield world


@pytest.fixture(scope="module")
def undisturbed(world: World) -> dict[Scenario, dict[str, Any]]:
    """What is seen of each migration where nobody is killed."""
    volumes = [world.volume(scenario) for scenario in Scenario]
    world.each(lambda volume: world.perform(volume, SCRIPTS[volume.scenario]), volumes)
    return {volume.scenario: world.outcome(volume) for volume in volumes}


def test_the_migrations_to_compare_with_are_the_three_of_the_book(undisturbed: dict[Scenario, dict[str, Any]]) -> None:
    def told(scenario: Scenario) -> list[str]:
        return [reason for _, reason, _ in undisturbed[scenario]["events"]]

    assert {scenario: seen["history"][0]["result"] for scenario, seen in undisturbed.items()} == {
        Scenario.COMPLETES: "Succeeded",
        Scenario.ROLLS_BACK: "Failed",
        Scenario.RUNS_OUT: "TimedOut",
    }
    assert told(Scenario.COMPLETES) == ["MigrationStarted", "MigrationCompleted"]
    assert told(Scenario.ROLLS_BACK) == ["MigrationStarted", "MigrationFailed"]
    assert told(Scenario.RUNS_OUT) == ["MigrationStarted", "MigrationFailed", "MigrationEnded"]
    assert all(len(seen["history"]) == 1 for seen in undisturbed.values())


@pytest.mark.requirement("R4", "R14", "R24")
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_at_each_step_of_each_migration_changes_nothing_that_is_seen_in_the_end(
    world: World, undisturbed: dict[Scenario, dict[str, Any]], victim: str
) -> None:
    volumes = [world.volume(scenario, step) for scenario in Scenario for step in steps_of(scenario)]
    before_all = _counted_so_far(world)
    running = _bring_to_their_steps(world, volumes)
    # The last scrape. Whoever is to be met between claim and count gets there after it.
    counted = counted_results(world.operator.scrape()) - before_all.counted
    claimed = claimed_results(world.records()) - before_all.claimed
    assert counted == claimed
    world.each(lambda volume: world.holds.advance(volume, Point.CLAIMED), _at(volumes, Point.CLAIMED))
    _keep_the_box_busy(world, volumes, running)

    world.victim(victim).kill()
    world.holds.let_go()
    if victim != "API server":
        at_the_kill = claimed_results(world.records()) - before_all.claimed
    world.box.switch(latency={})
    world.revive(world.victim(victim))
    for future in running:
        future.result()
    world.each(lambda volume: world.perform(volume, volume.after), volumes)
    outcomes = world.each(world.outcome, volumes)

    different = {str(volume): seen for volume, seen in zip(volumes, outcomes, strict=True) if seen != undisturbed[volume.scenario]}
    assert not different
    truth = results(records_of(world.cluster, volumes))
    finally_counted = counted_results(world.operator.scrape())
    if victim == "operator":
        # Its next life counts what nobody had claimed, and nothing else: what is missing was claimed after the last scrape.
        assert finally_counted == truth - at_the_kill
        assert (at_the_kill - counted).total() == len(
            [
                volume
                for volume in _at(volumes, Point.CLAIMED)
                if volume.step.operation is not Operation.PUBLISH_TARGET
                and not (volume.scenario is Scenario.RUNS_OUT and volume.step.operation is Operation.UNPUBLISH_TARGET)
            ]
        )
    else:
        assert finally_counted - before_all.counted == truth


@dataclass(frozen=True)
class Tally:
    """What an operator life had counted, and what had been claimed by any life."""

    counted: Counter[str]
    claimed: Counter[str]


def _counted_so_far(world: World) -> Tally:
    return Tally(counted_results(world.operator.scrape()), claimed_results(world.records()))


def _at(volumes: Sequence[Volume], *points: Point) -> list[Volume]:
    return [volume for volume in volumes if volume.step.point in points]


def _bring_to_their_steps(world: World, volumes: Sequence[Volume]) -> list[Future[None]]:
    """Bring every volume to its step, those at CLAIMED to the point before; return the operations that are in flight then."""
    hands, holds = world.hands, world.holds

    def prepare(volume: Volume) -> None:
        done = [*volume.before, *([volume.step.operation] if volume.step.point is Point.DONE else [])]
        world.perform(volume, done)
        hands.settle(volume, done)

    world.each(prepare, volumes)
    held = [volume for volume in volumes if volume.step.point not in {Point.DONE, Point.AT_THE_BOX}]
    # Whoever is to be met at CLAIMED stays before that for the moment.
    points = [Point.NOT_TOLD if volume.step.point is Point.CLAIMED else volume.step.point for volume in held]
    rules = [holds.arm(volume, point) for volume, point in zip(held, points, strict=True)]
    running = [world.pool.submit(hands.do, volume, volume.step.operation) for volume in held]
    for rule in rules:
        rule.wait_hit()
    return running


def _keep_the_box_busy(world: World, volumes: Sequence[Volume], running: list[Future[None]]) -> None:
    """Have the box take its time with the disk of the volumes whose creation is to be met there."""
    world.box.switch(latency={"/disk add": 2.0})
    some = _at(volumes, Point.AT_THE_BOX)
    running.extend(world.pool.submit(world.hands.do, volume, volume.step.operation) for volume in some)
    eventually(
        "the box makes one of their disks",
        lambda: any(volume.handle in command for volume in some for command in world.box.received("/disk add")),
    )
