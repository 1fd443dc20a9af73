"""Many callers, several shims, long runs: the rules hold in every version that a record ever had."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import psutil
import pytest

from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.driver import Operator, Shim
from tests.ring.history import nodes_of, version_now, versions
from tests.ring.rpc import RWO, RWX, Csi, at_once, code_of
from tests.ring.waiting import eventually

MakeVolume = Callable[..., str]
MakeShim = Callable[..., Shim]

ANSWERS = {"OK", "FAILED_PRECONDITION", "ABORTED"}
"""What an attach or detach between known nodes can be answered while nothing is broken."""


@pytest.fixture
def second(make_shim: MakeShim) -> Iterator[Csi]:
    """CSI calls to a second shim on the same API server."""
    with Csi(make_shim().endpoint) as csi:
        yield csi


def spread(calls: Sequence[Callable[[], object]], callers: int) -> list[str]:
    """Make all calls, so many at a time; return the codes in order."""
    with ThreadPoolExecutor(max_workers=callers) as pool:
        return list(pool.map(code_of, calls))


def random_call(
    dice: random.Random, shims: Sequence[Csi], handle: str, nodes: Sequence[str], capability: Any
) -> Callable[[], object]:
    csi, node = dice.choice(shims), dice.choice(nodes)
    if dice.random() < 0.5:
        return lambda: csi.publish(handle, node, capability)
    return lambda: csi.unpublish(handle, "" if dice.random() < 0.02 else node)


def never_more_than(limit: int, seen: list[Object]) -> None:
    """Check every version: how many nodes, a window exactly while there are two, each attachment under one id."""
    owner: dict[str, str] = {}
    for record in seen:
        status = record["status"]
        nodes = nodes_of(record)
        assert len(set(nodes)) == len(nodes) <= limit, status
        assert "overAttached" not in status
        assert ("migration" in status) == (len(nodes) == 2), status
        for entry in status["attachments"]:
            assert owner.setdefault(entry["id"], entry["nodeName"]) == entry["nodeName"]


@pytest.mark.requirement("R13")
def test_two_shims_never_let_more_nodes_in_than_the_rules_allow(
    csi: Csi, second: Csi, cluster: Cluster, make_volume: MakeVolume
) -> None:
    nodes = [cluster.make_node(stem) for stem in "abcd"]
    volumes = {make_volume(capability=capability): capability for capability in (RWO, RWX, RWO, RWX)}
    since = version_now(cluster.api)
    dice = random.Random(13)
    calls = [random_call(dice, (csi, second), handle, nodes, volumes[handle]) for handle in dice.choices(list(volumes), k=400)]
    codes = Counter(spread(calls, callers=8))
    assert set(codes) <= ANSWERS, codes
    assert codes["OK"] > 100
    for handle, capability in volumes.items():
        seen = list(versions(cluster.api, handle, since))
        never_more_than(1 if capability is RWO else 2, seen)
        assert len(seen) > 20


@pytest.mark.requirement("R13")
def test_what_one_shim_admitted_the_other_knows_at_once(csi: Csi, second: Csi, cluster: Cluster, make_volume: MakeVolume) -> None:
    a, b, c = (cluster.make_node(stem) for stem in "abc")
    single, shared = make_volume(capability=RWO), make_volume()
    csi.publish(single, a, RWO)
    assert second.publish_code(single, b, RWO) == "FAILED_PRECONDITION"
    csi.publish(shared, a)
    second.publish(shared, b)
    assert csi.publish_code(shared, c) == second.publish_code(shared, c) == "FAILED_PRECONDITION"
    second.unpublish(shared, a)
    assert csi.publish_code(shared, c) == "OK"


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("capability", [RWO, RWX], ids=["RWO", "RWX"])
def test_of_many_nodes_that_ask_at_once_only_the_allowed_number_gets_in(
    csi: Csi, second: Csi, cluster: Cluster, make_volume: MakeVolume, capability: Any
) -> None:
    nodes = [cluster.make_node(f"n{number}") for number in range(6)]
    limit = 1 if capability is RWO else 2
    for handle in [make_volume(capability=capability) for _ in range(5)]:
        calls = [partial(by.publish, handle, node, capability) for node in nodes for by in (csi, second)]
        codes = at_once(calls)
        granted = {node for node, one, two in zip(nodes, codes[::2], codes[1::2], strict=True) if "OK" in (one, two)}
        assert len(granted) == limit
        record = cluster.record(handle)
        assert record
        assert set(nodes_of(record)) == granted


def interleaved(csi: Csi, cluster: Cluster, operator: Operator, shim: Shim, count: int) -> None:
    """Let four clients attach and detach one volume and check record, counters and Events against each other."""
    nodes = [cluster.make_node(stem) for stem in "abcd"]
    volume = cluster.make_static_volume(attributes={"dualAttachPolicy": "AnyTwoNodes"})
    handle = volume.handle
    csi.publish(handle, nodes[0])
    since, before, told = version_now(cluster.api), shim.scrape(), operator.scrape()
    dice = random.Random(21)
    calls = [random_call(dice, [csi], handle, nodes, RWX) for _ in range(count)]
    codes: Counter[str] = Counter()
    seen: list[Object] = []
    for begin in range(0, count, 200):  # the API server forgets old versions
        codes.update(spread(calls[begin : begin + 200], callers=4))
        seen += versions(cluster.api, handle, since)
        since = seen[-1]["metadata"]["resourceVersion"]
    assert set(codes) <= ANSWERS, codes
    csi.unpublish(handle)
    seen += versions(cluster.api, handle, since)
    never_more_than(2, seen)
    # Every window of the history, in whatever version it was still to be read.
    ended = {window["id"]: window["result"] for record in seen for window in record["status"]["history"]}
    begun = {record["status"]["migration"]["id"] for record in seen if "migration" in record["status"]}
    assert ended.keys() == begun
    assert len(begun) > count / 100
    after = shim.scrape()

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    answered = grown("csi_plugin_operations_seconds_count", method_name="/csi.v1.Controller/ControllerPublishVolume") + grown(
        "csi_plugin_operations_seconds_count", method_name="/csi.v1.Controller/ControllerUnpublishVolume"
    )
    assert answered == count + 1
    assert grown("rds_csi_attachment_attach_total") + grown("rds_csi_attachment_detach_total") == count + 1
    assert grown("rds_csi_attachment_attach_total", status="success") + grown(
        "rds_csi_attachment_detach_total", status="success"
    ) == (codes["OK"] + 1)

    def reported() -> bool:
        scrape = operator.scrape()
        results = Counter({"Succeeded": "success", "Failed": "failed", "TimedOut": "timeout"}[result] for result in ended.values())
        name = "rds_csi_migration_migrations_total"
        for result in ("success", "failed", "timeout"):
            assert scrape.value(name, result=result) - told.value(name, result=result) == results[result], (result, results)
        record = cluster.record(handle)
        assert record
        assert record["status"]["outbox"] == []
        return True

    eventually("all migrations are counted", reported, timeout=60)
    told_one_by_one = all(entry["kind"] != "Collapsed" for record in seen for entry in record["status"]["outbox"])
    for reason, result in (("MigrationCompleted", "Succeeded"), ("MigrationFailed", "Failed")):
        events, windows = len(cluster.events(volume.claim, reason=reason)), list(ended.values()).count(result)
        # Where the operator did not keep up, some were put together in the record and have no Event of their own.
        assert events == windows if told_one_by_one else events < windows


@pytest.mark.requirement("R21")
def test_four_clients_on_one_volume_keep_record_counters_and_events_in_step(
    csi: Csi, cluster: Cluster, operator: Operator, shim: Shim
) -> None:
    interleaved(csi, cluster, operator, shim, 400)


@pytest.mark.long
@pytest.mark.requirement("R21")
def test_thousands_of_calls_on_one_volume_keep_record_counters_and_events_in_step(
    csi: Csi, cluster: Cluster, operator: Operator, shim: Shim
) -> None:
    interleaved(csi, cluster, operator, shim, 4000)


def cycles(shim: Shim, csi: Csi, cluster: Cluster, *, volumes: int, rounds: int) -> None:
    """Make volumes, attach and detach each so many times, delete them; compare memory and threads before and after."""
    nodes = [cluster.make_node(stem) for stem in "ab"]

    def life(number: int, times: int) -> None:
        handle = csi.create(f"pvc-{uuid4()}", capability=RWO).volume_id
        for turn in range(times):
            csi.publish(handle, nodes[(number + turn) % 2], RWO)
            csi.unpublish(handle, nodes[(number + turn) % 2])
        csi.delete(handle)

    def many(volumes: int, times: int) -> None:
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(lambda number: life(number, times), range(volumes)))

    process = psutil.Process(shim.pid)
    many(volumes // 5, 2)
    memory, threads = process.memory_info().rss, process.num_threads()
    started = time.monotonic()
    many(volumes, rounds)
    print(f"{volumes * rounds} cycles in {time.monotonic() - started:.1f} s")
    grown = process.memory_info().rss
    print(f"resident {memory / 2**20:.1f} -> {grown / 2**20:.1f} MiB, threads {threads} -> {process.num_threads()}")
    assert grown <= 1.2 * memory
    assert process.num_threads() <= 1.2 * threads
    assert "Traceback" not in shim.output()


@pytest.mark.requirement("R26")
def test_volumes_that_are_gone_leave_nothing_in_memory(make_shim: MakeShim, cluster: Cluster) -> None:
    shim = make_shim()
    with Csi(shim.endpoint) as csi:
        cycles(shim, csi, cluster, volumes=500, rounds=3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.requirement("R26")
def test_five_thousand_cycles_leave_nothing_in_memory(make_shim: MakeShim, cluster: Cluster) -> None:
    shim = make_shim()
    with Csi(shim.endpoint) as csi:
        cycles(shim, csi, cluster, volumes=500, rounds=10)
