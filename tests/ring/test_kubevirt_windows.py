"""Windows follow KubeVirt's runs: what records, Events and metrics say is what KubeVirt did, whoever was away meanwhile.

All scenarios are played at once, each with a virtual machine and three nodes of its own: once with the operator there, and once
with the operator killed in the middle of all of them and started again when what decides has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Metrics, Operator, Shim
from tests.ring.kubelet import Kubelet
from tests.ring.kubevirt import KubeVirt
from tests.ring.kubevirt_scenarios import SCENARIOS, Expected, Scenario, Scene, Window, seen_of
from tests.ring.processes import Process
from tests.ring.waiting import eventually

AT_ONCE = 8
"""Scenarios that are played at the same time."""

MIGRATIONS = "rds_csi_migration_migrations_total"
ACTIVE = "rds_csi_migration_active_migrations"
OVERDUE = "rds_csi_migration_overdue"
WINDOWS = "rds_csi_migration_duration_seconds_count"
RESULTS = {"Succeeded": "success", "Failed": "failed", "TimedOut": "timeout"}


@dataclass(frozen=True)
class Played:
    """What was seen of every scenario, and what the operator's lives counted."""

    seen: dict[str, Expected]
    counted: dict[str, float]
    started: int
    after: Metrics


def begin(cluster: Cluster, kubevirt: KubeVirt, name: str, scenario: Scenario, classes: dict[int | None, str]) -> Scene:
    """Start the scenario's virtual machine on the first of three nodes."""
    one, two, three = (cluster.make_node(f"{name.lower()}-{letter}") for letter in "abc")
    nodes = (one, two, three)
    claim = cluster.make_claim(classes[scenario.timeout], stem=name.lower())
    cluster.wait_bound(claim)
    claims = [claim]
    if scenario.hotplug:
        root = cluster.make_claim(classes[None], stem="root")
        cluster.wait_bound(root)
        claims = [root]
    vm = kubevirt.run(f"vm-{name.lower()}", claims=claims, node=nodes[0])
    if scenario.hotplug:
        kubevirt.hotplug(vm, claim)
        vm.disks.reverse()
    return Scene(name, kubevirt, nodes, claim, vm)


def play_all(cluster: Cluster, operator: Operator, *, away: bool) -> Played:
    """Play every scenario, with the operator away in the middle where asked for."""
    kubevirt = KubeVirt(cluster)
    classes: dict[int | None, str] = {
        seconds: cluster.make_storage_class(
            {"migrationTimeoutSeconds": str(seconds)} if seconds else {}, stem=f"within-{seconds or 0}"
        )
        for seconds in {scenario.timeout for scenario in SCENARIOS.values()}
    }
    before = counted(operator.scrape())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = pool.map(lambda name: begin(cluster, kubevirt, name, SCENARIOS[name], classes), SCENARIOS)
        scenes = dict(zip(SCENARIOS, begun, strict=True))
        plays = {name: SCENARIOS[name].play(scene) for name, scene in scenes.items()}

        def act(play: Iterator[None]) -> None:
            next(play, None)

        # Those that wait for a deadline first; the others are played meanwhile.
        order = sorted(plays, key=lambda name: SCENARIOS[name].timeout is None)
        list(pool.map(act, [plays[name] for name in order]))
        if away:
            # A count that nobody scraped goes with its process (I5), so everything so far is counted before the scrape.
            for scene in scenes.values():
                for disk in scene.vm.disks:
                    cluster.wait_record(disk.handle, "reported", lambda status: not status.get("outbox"))
            told = counted(operator.scrape())
            operator.kill()
            list(pool.map(act, [plays[name] for name in order]))
            operator.start()
            before = {result: before[result] - told[result] for result in before}
        else:
            list(pool.map(act, [plays[name] for name in order]))
        list(pool.map(act, [plays[name] for name in order]))
    for name, scene in scenes.items():
        at_rest(name, scene)
    after = operator.scrape()
    started = sum(
        len(cluster.events(disk.claim, reason="MigrationStarted")) for scene in scenes.values() for disk in scene.vm.disks
    )
    now = counted(after)
    result = Played(
        {name: seen_of(scene) for name, scene in scenes.items()}, {key: now[key] - before[key] for key in now}, started, after
    )
    kubevirt.clean_up()
    return result


def at_rest(name: str, scene: Scene) -> None:
    """Wait until a scene has nothing left to report and its outcome is the expected one, or for so long that it never will be."""
    expected = normal(SCENARIOS[name].expected)

    def rested() -> bool:
        status = (scene.cluster.record(scene.handle) or {}).get("status", {})
        assert not status.get("outbox"), status
        seen = seen_of(scene)
        assert alike(seen, expected), f"{seen}\nis not\n{expected}"
        return True

    try:
        eventually(f"{name} comes to rest", rested, timeout=20, interval=0.3)
    except AssertionError as error:
        # Its own test says what is wrong with it; the others are to be looked at as well.
        print(error)


def normal(expected: Expected) -> Expected:
    return replace(expected, events=tuple(sorted(expected.events)), vm_events=tuple(sorted(expected.vm_events)))


def alike(seen: Expected, expected: Expected) -> bool:
    """Return whether what was seen is what was expected; of KubeVirt's reason a part is enough."""
    windows = tuple(
        replace(one, why=wanted.why) if wanted.why and wanted.why in one.why else one
        for one, wanted in zip(seen.windows, expected.windows, strict=False)
    )
    return replace(seen, windows=(*windows, *seen.windows[len(windows) :])) == expected


def counted(metrics: Metrics) -> dict[str, float]:
    """Return the counters that tell of ended migrations."""
    counts = {result: metrics.value(MIGRATIONS, result=result) for result in RESULTS.values()}
    return {**counts, "closed": metrics.value(WINDOWS)}


@pytest.fixture(scope="module", params=["operator there", "operator away in the middle"])
def played(
    request: pytest.FixtureRequest,
    installed: ControlPlane,
    kubelet: Kubelet,
    kubevirt_kinds: ControlPlane,
    operator: Operator,
    shim: Shim,
    attacher: Process,
    provisioner: Process,
) -> Iterator[Played]:
    cluster = Cluster(installed.api, kubelet)
    try:
        yield play_all(cluster, operator, away=request.param != "operator there")
    finally:
        cluster.clean_up()


@pytest.mark.requirement("R2", "R9", "R11")
@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_seen_of_a_migration_is_what_kubevirt_did(played: Played, name: str) -> None:
    seen, expected = played.seen[name], normal(SCENARIOS[name].expected)
    assert alike(seen, expected), f"{seen}\nis not\n{expected}"


@pytest.mark.requirement("R2", "R7")
def test_every_result_is_counted_once_and_their_sum_is_what_was_started(played: Played) -> None:
    # The root disk of a virtual machine with a hotplugged one moves with it, in a window of its own.
    windows: list[Window] = [
        window for one in SCENARIOS.values() for window in (*one.expected.windows, *(one.expected.windows if one.hotplug else ()))
    ]
    expected: dict[str, float] = {
        counter: sum(window.result == result for window in windows) for result, counter in RESULTS.items()
    }
    stay_open = sum(bool(scenario.expected.open_window) for scenario in SCENARIOS.values())
    assert played.counted == {**expected, "closed": len(windows) - stay_open}
    assert played.started == len(windows)


def test_the_gauges_are_what_the_records_say(played: Played) -> None:
    assert played.after.value(ACTIVE) == 0
    assert played.after.value(OVERDUE) == 0
