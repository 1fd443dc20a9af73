"""SIGKILL at each step of each migration changes nothing that anybody sees afterwards.

One volume stands at each step of each of the three migrations when shim, operator or API server is killed; all of them share that
kill. What records and Events say in the end is compared with the same migrations undisturbed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator, Shim
from tests.ring.migration_steps import (
    BACK_SECONDS,
    RECORDS,
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

        return eventually(f"{volume} comes to rest", rested, timeout=60, interval=0.7)


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
        # However long the API server takes to come back on a busy machine: the operator does not end for want of its Lease.
        patient = ("--lease-duration=180s", "--renew-deadline=120s")
        operator = ends.enter_context(Operator(stack.plane, folder / "operator", through=operator_proxy, extra=patient))
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
    counted = eventually("what is claimed is counted", lambda: _counted_since(world, before_all), interval=0.5)
    world.each(lambda volume: world.holds.advance(volume, Point.CLAIMED), _at(volumes, Point.CLAIMED))
    _keep_the_box_busy(world, volumes, running)

    world.victim(victim).kill()
    world.holds.let_go()
    if victim != "API server":
        at_the_kill = claimed_results(world.records()) - before_all.claimed
    world.box.switch(latency={})
    world.victim(victim).start()
    for future in running:
        future.result()
    world.each(lambda volume: world.perform(volume, volume.after), volumes)
    outcomes = world.each(world.outcome, volumes)

    assert not _differences(volumes, outcomes, undisturbed)
    truth = results(records_of(world.cluster, volumes))
    finally_counted = counted_results(world.operator.scrape())
    if victim == "operator":
        # Its next life counts what nobody had claimed, and nothing else: what is missing was claimed after the last scrape.
        assert finally_counted == truth - at_the_kill
        assert (at_the_kill - counted).total() >= len(_at(volumes, Point.CLAIMED)) - 4  # of which four tell no result
    else:
        assert finally_counted - before_all.counted == truth


def _differences(
    volumes: Sequence[Volume], outcomes: Sequence[dict[str, Any]], undisturbed: dict[Scenario, dict[str, Any]]
) -> dict[str, Any]:
    """Return what is seen, and what should be, of the volumes of which something else is seen."""
    return {
        str(volume): {
            key: (seen[key], undisturbed[volume.scenario][key]) for key in seen if seen[key] != undisturbed[volume.scenario][key]
        }
        for volume, seen in zip(volumes, outcomes, strict=True)
        if seen != undisturbed[volume.scenario]
    }


@dataclass(frozen=True)
class Tally:
    """What an operator life had counted, and what had been claimed by any life."""

    counted: Counter[str]
    claimed: Counter[str]


def _counted_so_far(world: World) -> Tally:
    return Tally(counted_results(world.operator.scrape()), claimed_results(world.records()))


def _counted_since(world: World, before: Tally) -> Counter[str] | None:
    """Return what the operator has counted since then, None while it has claimed more than that."""
    counted = counted_results(world.operator.scrape()) - before.counted
    return counted if counted == claimed_results(world.records()) - before.claimed else None


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


@pytest.mark.requirement("R32")
@pytest.mark.parametrize("victim", ["shim", "API server"])
def test_a_kill_at_each_step_of_a_deletion_leaves_nothing_behind(world: World, victim: str) -> None:
    writes = {
        "deleting": ("PUT", "/status$", '"deleting": ?true'),
        "removed from the box": ("PUT", "/status$", '"removedFromBox": ?true'),
        "finalizer": ("PUT", "$", ""),
        "record": ("DELETE", "$", ""),
    }
    held = [world.volume(Scenario.COMPLETES) for _ in range(2 * len(writes))]
    at_the_box = [world.volume(Scenario.COMPLETES) for _ in range(2)]
    world.each(lambda volume: world.perform(volume, [Operation.CREATE]), [*held, *at_the_box])
    rules = [
        world.shim_proxy.freeze(method, f"{RECORDS}/{volume.handle}{path}", body=body, applied=applied)
        for volume, (applied, (method, path, body)) in zip(held, product((False, True), writes.values()), strict=True)
    ]
    running = [world.pool.submit(world.hands.delete, volume) for volume in held]
    for rule in rules:
        # The claim goes first, and the controller manager may still be looking for an API server that was killed before.
        rule.wait_hit(timeout=120)
    world.box.switch(latency={"/disk remove": 1.0, "/file remove": 1.0})
    running.extend(world.pool.submit(world.hands.delete, volume) for volume in at_the_box)
    eventually(
        "the box removes a disk",
        lambda: any(one.handle in line for one in at_the_box for line in world.box.received("/disk remove")),
    )

    world.victim(victim).kill()
    for rule in rules:
        rule.release(cut=True)
    world.box.switch(latency={})
    world.victim(victim).start()
    for future in running:
        future.result()

    gone = [volume.handle for volume in (*held, *at_the_box)]
    assert not records_of(world.cluster, [*held, *at_the_box])
    assert not set(gone) & world.box.disks().keys()
    assert not [name for name in world.box.files() for handle in gone if handle in name]


def test_a_link_that_drops_at_any_command_of_a_creation_or_deletion_is_made_good(world: World) -> None:
    undisturbed = world.volume(Scenario.COMPLETES)
    creation = _commands(world, undisturbed, lambda: world.perform(undisturbed, [Operation.CREATE]))
    like = world.box.disks()[undisturbed.handle]
    deletion = _commands(world, undisturbed, lambda: world.hands.delete(undisturbed))
    assert creation > 1
    assert deletion > 1

    def drop_links(commands: int) -> None:
        drops = product(("before", "after"), range(1, commands + 1))
        for volume, (when, nth) in zip(volumes[: 2 * commands], drops, strict=True):
            world.box.drop_link(when, volume.handle, nth)

    volumes = [world.volume(Scenario.COMPLETES) for _ in range(2 * max(creation, deletion))]
    drop_links(creation)
    world.each(lambda volume: world.perform(volume, [Operation.CREATE]), volumes)
    disks, files = world.box.disks(), world.box.files()
    for volume in volumes:
        assert _without_names(disks[volume.handle], volume) == _without_names(like, undisturbed)
        assert len([name for name in files if volume.handle in name]) == 1
    drop_links(deletion)
    world.each(world.hands.delete, volumes)
    assert not {volume.handle for volume in volumes} & world.box.disks().keys()
    assert not [name for name in world.box.files() for volume in volumes if volume.handle in name]
    assert not records_of(world.cluster, volumes)


def test_a_box_that_is_killed_while_it_makes_and_removes_disks_has_the_right_ones_in_the_end(world: World) -> None:
    leaving = [world.volume(Scenario.COMPLETES) for _ in range(4)]
    coming = [world.volume(Scenario.COMPLETES) for _ in range(4)]
    world.each(lambda volume: world.perform(volume, [Operation.CREATE]), leaving)
    world.box.switch(latency={"/disk add": 0.3, "/disk remove": 0.3})
    running = [
        *(world.pool.submit(world.perform, volume, [Operation.CREATE]) for volume in coming),
        *(world.pool.submit(world.hands.delete, volume) for volume in leaving),
    ]
    eventually("some are made", lambda: any(volume.handle in world.box.disks() for volume in coming))
    world.box.kill()
    world.box.start()
    world.box.switch(latency={})
    for future in running:
        future.result()
    there = world.box.disks().keys()
    assert {volume.handle for volume in coming} <= there
    assert not {volume.handle for volume in leaving} & there
    world.each(world.hands.delete, coming)


def _commands(world: World, volume: Volume, work: Callable[[], object]) -> int:
    """Return how many commands that name the volume the box receives while the work is done."""
    before = len([line for line in world.box.received() if volume.handle in line])
    work()
    return len([line for line in world.box.received() if volume.handle in line]) - before


def _without_names(disk: dict[str, Any], volume: Volume) -> dict[str, Any]:
    return {key: str(value).replace(volume.handle, "VOLUME") for key, value in disk.items() if key not in {"id", ".id"}}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.requirement("R4", "R14")
@pytest.mark.parametrize("seed", range(8))
def test_kills_at_random_moments_change_nothing_that_is_seen_in_the_end(
    world: World, undisturbed: dict[Scenario, dict[str, Any]], seed: int
) -> None:
    choose = random.Random(seed)
    volumes = [world.volume(scenario) for scenario in Scenario for _ in range(12)]
    life = _counted_so_far(world)
    running = [world.pool.submit(world.perform, volume, SCRIPTS[volume.scenario]) for volume in volumes]
    for _ in range(5):
        name = choose.choice(VICTIMS)
        _wait_for_requests(choose.choice((world.shim_proxy, world.operator_proxy)), choose.randrange(1, 120), running)
        if name == "operator":
            counted = counted_results(world.operator.scrape()) - life.counted
            world.operator.kill()
            claimed = claimed_results(world.records())
            assert counted <= claimed - life.claimed
            life = Tally(Counter(), claimed)
        else:
            world.victim(name).kill()
        world.victim(name).start()
    for future in running:
        future.result()
    outcomes = world.each(world.outcome, volumes)
    assert not _differences(volumes, outcomes, undisturbed)
    assert counted_results(world.operator.scrape()) - life.counted == claimed_results(world.records()) - life.claimed


def _wait_for_requests(proxy: Proxy, count: int, running: Sequence[Future[None]]) -> None:
    """Wait until so many more requests have passed the proxy, or there is nothing left to wait for."""
    with proxy.delay(".*", "", 0.0) as passing:
        eventually(
            f"{count} requests pass", lambda: passing.hits >= count or all(future.done() for future in running), interval=0.005
        )
