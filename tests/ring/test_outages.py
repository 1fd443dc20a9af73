"""What the shim answers while the API server or the box is in trouble, and that nothing it answered is ever undone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.driver import Shim
from tests.ring.history import nodes_of, version_now, versions
from tests.ring.proxy import Proxy, Rule
from tests.ring.rpc import RWO, Csi, at_once, code_of
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

MakeVolume = Callable[..., str]
MakeShim = Callable[..., Shim]

RECORDS = "/volumeattachmentrecords"


def status_of(handle: str) -> str:
    """Return the pattern of the path under which a record's status is written."""
    return f"{RECORDS}/{handle}/status$"


@pytest.fixture
def nodes(cluster: Cluster) -> tuple[str, str, str]:
    """Nodes A, B and C."""
    return cluster.make_node("a"), cluster.make_node("b"), cluster.make_node("c")


@pytest.fixture
def proxy(shared_proxy: Proxy) -> Iterator[Proxy]:
    """That proxy, as good as new."""
    yield shared_proxy
    shared_proxy.clear()


@pytest.fixture
def own_box(tmp_path: Path) -> Iterator[SimulatedBox]:
    """A box of the test's own, to stop and start."""
    with SimulatedBox(tmp_path / "box") as box:
        yield box


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that are held up on purpose."""
    with ThreadPoolExecutor(max_workers=32) as pool:
        yield pool


def record_of(cluster: Cluster, handle: str) -> Object:
    record = cluster.record(handle)
    assert record is not None, f"no record of {handle}"
    return record


def attached(cluster: Cluster, handle: str) -> list[str]:
    """Return the nodes that the record names."""
    return nodes_of(record_of(cluster, handle))


def holds(cluster: Cluster, handle: str, pv: str, node: str) -> None:
    """Say through a VolumeAttachment that a node holds the volume."""
    name = cluster.make_attachment(pv, handle, node)
    cluster.api.patch("VolumeAttachment", name, {"status": {"attached": True}}, subresource="status")


# Nothing is answered from a state that is not known


@pytest.mark.requirement("R12")
@pytest.mark.parametrize(
    ("what", "trouble"),
    [
        ("volumeattachmentrecords", "error"),
        ("persistentvolumes", "error"),
        ("volumeattachments", "error"),
        ("volumeattachments", "cut"),
    ],
)
def test_no_publish_is_answered_before_the_state_could_be_read(
    cluster: Cluster, proxy: Proxy, make_shim: MakeShim, nodes: tuple[str, ...], what: str, trouble: str
) -> None:
    a, b, _ = nodes
    volume = cluster.make_static_volume(access_mode="ReadWriteOnce", bound=False)
    holds(cluster, volume.handle, volume.pv, a)
    path = f"/(apis|api)/.*{what}"
    rule = proxy.fail("GET", path, status=500, times=12) if trouble == "error" else proxy.drop("GET", path, times=24)
    with Csi(make_shim(through=proxy).endpoint) as csi:
        answers: list[str] = []

        def settled() -> bool:
            answers.append(csi.publish_code(volume.handle, b, RWO))
            return answers[-1] != "UNAVAILABLE"

        eventually("the state is read", settled)
    assert answers[-1] == "FAILED_PRECONDITION"
    assert len(answers) > 1
    assert rule.hits == rule.times
    assert attached(cluster, volume.handle) == [a]


@pytest.mark.requirement("R12", "R17")
def test_a_node_that_cannot_be_looked_up_is_not_called_absent(
    cluster: Cluster, proxy: Proxy, through: Csi, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    handle = make_volume()
    with proxy.fail("GET", f"/nodes/{nodes[0]}$", status=504):
        assert through.publish_code(handle, nodes[0]) == "UNAVAILABLE"
    assert attached(cluster, handle) == []
    assert through.publish_code(handle, nodes[0]) == "OK"
    with proxy.fail("GET", f"/nodes/{nodes[0]}$", status=504):
        assert through.publish_code(handle, nodes[0]) == "OK", "it is attached: its Node does not matter"


@pytest.mark.requirement("R12")
def test_a_detach_waits_until_it_is_known_whether_it_is_late(
    cluster: Cluster, proxy: Proxy, through: Csi, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    handle = make_volume()
    through.publish(handle, nodes[0])
    with proxy.fail("GET", "/volumeattachments/", status=503):
        assert code_of(lambda: through.unpublish(handle, nodes[0])) == "UNAVAILABLE"
        assert code_of(lambda: through.unpublish(handle, nodes[1])) == "OK", "B holds nothing"
    assert attached(cluster, handle) == [nodes[0]]
    through.unpublish(handle, nodes[0])
    assert attached(cluster, handle) == []


# OK means written


@pytest.mark.requirement("R14")
def test_a_duplicate_is_not_answered_ok_before_the_first_is_written(
    cluster: Cluster,
    proxy: Proxy,
    behind: Shim,
    through: Csi,
    make_volume: MakeVolume,
    nodes: tuple[str, ...],
    background: ThreadPoolExecutor,
) -> None:
    a, b, _ = nodes
    handle = make_volume(capability=RWO)
    rule = proxy.freeze("PUT", status_of(handle), times=1)
    first = background.submit(through.publish_code, handle, a, RWO)
    rule.wait_hit()
    second = background.submit(through.publish_code, handle, a, RWO)
    # Calls to the same shim are answered in order of arrival here; this one came after the duplicate.
    assert through.publish_code(make_volume(), b) == "OK"
    assert not first.done()
    assert not second.done()
    rule.status = 503
    rule.release()
    assert first.result() == "UNAVAILABLE"
    assert second.result() == "OK"
    assert attached(cluster, handle) == [a]
    assert through.publish_code(handle, b, RWO) == "FAILED_PRECONDITION"


@pytest.mark.requirement("R14")
def test_a_duplicate_of_a_write_that_fails_leaves_nothing(
    cluster: Cluster,
    proxy: Proxy,
    through: Csi,
    make_volume: MakeVolume,
    nodes: tuple[str, ...],
    background: ThreadPoolExecutor,
) -> None:
    a, b, _ = nodes
    handle = make_volume(capability=RWO)
    slow = proxy.delay("PUT", status_of(handle), 0.3)
    slow.status = 503
    calls = [background.submit(through.publish_code, handle, a, RWO) for _ in range(3)]
    assert {call.result() for call in calls} == {"UNAVAILABLE"}
    slow.remove()
    assert attached(cluster, handle) == []
    assert through.publish_code(handle, b, RWO) == "OK"


@pytest.mark.requirement("R14", "R15")
def test_a_failed_call_cannot_undo_what_another_was_answered(
    csi: Csi,
    cluster: Cluster,
    proxy: Proxy,
    through: Csi,
    make_volume: MakeVolume,
    nodes: tuple[str, ...],
    background: ThreadPoolExecutor,
) -> None:
    a, b, _ = nodes
    handle = make_volume(capability=RWO)
    rule = proxy.freeze("PUT", status_of(handle), times=1)
    first = background.submit(through.publish_code, handle, b, RWO)
    rule.wait_hit()
    assert csi.publish_code(handle, a, RWO) == "OK", "through the other shim"
    rule.release()
    assert first.result() == "FAILED_PRECONDITION"
    assert attached(cluster, handle) == [a]


@pytest.mark.requirement("R15")
@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_record_that_cannot_be_written_is_unavailable_and_nothing_is_attached(
    cluster: Cluster, proxy: Proxy, through: Csi, make_volume: MakeVolume, nodes: tuple[str, ...], status: int
) -> None:
    a, b, _ = nodes
    handle = make_volume()
    with proxy.fail("PUT|PATCH|POST", RECORDS, status=status):
        assert through.publish_code(handle, a) == "UNAVAILABLE"
    assert attached(cluster, handle) == []
    through.publish(handle, a)
    with proxy.fail("PUT|PATCH|POST", RECORDS, status=status):
        assert code_of(lambda: through.unpublish(handle, a)) == "UNAVAILABLE"
        assert through.publish_code(handle, b) == "UNAVAILABLE"
        assert through.publish_code(handle, a) == "OK", "nothing to write"
    assert attached(cluster, handle) == [a]


@pytest.mark.requirement("R15")
def test_a_record_that_others_always_write_first_is_aborted(
    cluster: Cluster, proxy: Proxy, through: Csi, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    handle = make_volume()
    with proxy.fail("PUT", RECORDS, status=409):
        assert through.publish_code(handle, nodes[0]) == "ABORTED"
    assert attached(cluster, handle) == []


@pytest.mark.requirement("R15")
def test_only_the_record_has_to_be_written(
    cluster: Cluster, proxy: Proxy, through: Csi, nodes: tuple[str, ...], make_volume: MakeVolume
) -> None:
    a, b, c = nodes
    volume = cluster.make_static_volume(attributes={"dualAttachPolicy": "AnyTwoNodes"}, bound=False)
    with proxy.fail("POST|PUT|PATCH|DELETE", "^(?!.*/volumeattachmentrecords)", status=403) as cosmetic:
        assert [through.publish_code(volume.handle, node) for node in nodes] == ["OK", "OK", "FAILED_PRECONDITION"]
        through.unpublish(volume.handle, a)
        assert cosmetic.hits == 0
    assert attached(cluster, volume.handle) == [b]
    assert through.publish_code(volume.handle, c) == "OK"


@pytest.mark.requirement("R15")
def test_a_refusal_that_cannot_be_noted_is_the_same_refusal(
    proxy: Proxy, through: Csi, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    handle = make_volume(capability=RWO)
    through.publish(handle, nodes[0], RWO)

    def refused_all_the_same(trouble: Rule) -> None:
        with trouble:
            assert through.publish_code(handle, nodes[1], RWO) == "FAILED_PRECONDITION"
            assert trouble.hits > 0

    refused_all_the_same(proxy.fail("PUT", RECORDS, status=503))
    refused_all_the_same(proxy.drop("PUT", RECORDS))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
def test_a_link_that_is_cut_around_the_write_attaches_once(
    cluster: Cluster, proxy: Proxy, through: Csi, make_volume: MakeVolume, nodes: tuple[str, ...], applied: bool, times: int
) -> None:
    a, b, _ = nodes
    handle = make_volume()
    since = version_now(cluster.api)
    for node in (a, b):
        with proxy.drop("PUT", status_of(handle), applied=applied, times=times) as cut:
            assert through.publish_code(handle, node) == "OK"
            assert cut.hits >= 1
    seen = list(versions(cluster.api, handle, since))
    ids = {entry["id"] for record in seen for entry in record["status"]["attachments"]}
    assert (attached(cluster, handle), len(ids)) == ([a, b], 2)
    assert len([entry for entry in seen[-1]["status"]["outbox"] if entry["kind"] == "Started"]) == 1
    with proxy.drop("PUT", status_of(handle), applied=applied, times=times) as cut:
        assert code_of(lambda: through.unpublish(handle, a)) == "OK"
        assert cut.hits >= 1
    record = record_of(cluster, handle)
    assert (nodes_of(record), len(record["status"]["history"])) == ([b], 1)


@pytest.mark.requirement("R12", "R23")
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("method", "times"), [("POST", 1), ("PUT", 1), ("PUT", 2), ("PUT", 4)])
def test_an_import_that_is_cut_off_is_done_again(
    cluster: Cluster, proxy: Proxy, through: Csi, nodes: tuple[str, ...], method: str, times: int, applied: bool
) -> None:
    a, b, _ = nodes
    volume = cluster.make_static_volume(access_mode="ReadWriteOnce", bound=False)
    holds(cluster, volume.handle, volume.pv, a)
    cut = proxy.drop(method, RECORDS, applied=applied, times=times)

    def refused() -> bool:
        code = through.publish_code(volume.handle, b, RWO)
        assert code in {"UNAVAILABLE", "FAILED_PRECONDITION"}, code
        return code == "FAILED_PRECONDITION"

    eventually("B is refused", refused)
    assert cut.hits >= 1
    assert attached(cluster, volume.handle) == [a]
    assert through.publish_code(volume.handle, a, RWO) == "OK"


def test_a_kill_at_any_step_of_an_attach_or_detach_is_made_good_by_the_retry(
    cluster: Cluster,
    proxy: Proxy,
    behind: Shim,
    through: Csi,
    make_volume: MakeVolume,
    nodes: tuple[str, ...],
    background: ThreadPoolExecutor,
) -> None:
    a, b, _ = nodes
    calls: dict[str, Callable[[], object]] = {}
    rules: list[Rule] = []
    for applied in (False, True):
        first, second, leaving = (make_volume() for _ in range(3))
        through.publish(second, a)
        through.publish(leaving, a)
        through.publish(leaving, b)
        calls[first] = lambda handle=first: through.publish(handle, a)  # type: ignore[misc]
        calls[second] = lambda handle=second: through.publish(handle, b)  # type: ignore[misc]
        calls[leaving] = lambda handle=leaving: through.unpublish(handle, a)  # type: ignore[misc]
        rules += [proxy.freeze("PUT", status_of(handle), applied=applied) for handle in (first, second, leaving)]
    flying = [background.submit(code_of, call) for call in calls.values()]
    for rule in rules:
        rule.wait_hit()
    behind.kill()
    assert {call.result() for call in flying} == {"UNAVAILABLE"}
    for rule in rules:
        rule.release(cut=True)
    behind.start()
    for call in calls.values():
        assert code_of(call) == "OK"
    for handle, wanted in zip(calls, [[a], [a, b], [b]] * 2, strict=True):
        record = record_of(cluster, handle)
        kinds = [entry["kind"] for entry in record["status"]["outbox"]]
        assert nodes_of(record) == wanted
        assert kinds == {1: [], 2: ["Started"]}[len(wanted)] or (wanted == [b] and kinds == ["Started", "Succeeded"])


# SIGTERM


@pytest.mark.requirement("R27")
def test_a_publish_that_is_under_way_at_the_end_is_finished(
    cluster: Cluster,
    proxy: Proxy,
    make_shim: MakeShim,
    make_volume: MakeVolume,
    nodes: tuple[str, ...],
    background: ThreadPoolExecutor,
) -> None:
    handle = make_volume()
    shim = make_shim(through=proxy)
    with Csi(shim.endpoint) as csi:
        rule = proxy.freeze("PUT", status_of(handle))
        call = background.submit(csi.publish_code, handle, nodes[0])
        rule.wait_hit()
        shim.signal(signal.SIGTERM)
        eventually("it drains", lambda: "draining" in shim.output())
        assert not call.done()
        rule.release()
        assert call.result() == "OK"
        assert shim.wait_ended() == 0
    assert attached(cluster, handle) == [nodes[0]]


@pytest.mark.requirement("R27")
def test_a_publish_that_takes_too_long_at_the_end_is_not_recorded(
    cluster: Cluster,
    proxy: Proxy,
    make_shim: MakeShim,
    make_volume: MakeVolume,
    nodes: tuple[str, ...],
    background: ThreadPoolExecutor,
) -> None:
    handle = make_volume()
    shim = make_shim(through=proxy, extra=["--drain-timeout=200ms"])
    with Csi(shim.endpoint) as csi:
        rule = proxy.freeze("PUT", status_of(handle))
        call = background.submit(csi.publish_code, handle, nodes[0])
        rule.wait_hit()
        shim.signal(signal.SIGTERM)
        assert call.result() in {"UNAVAILABLE", "CANCELLED"}
        assert shim.wait_ended() == 0
        rule.release()
    assert attached(cluster, handle) == []


# One slow API server does not stop everything


@pytest.mark.requirement("R16")
def test_slow_writes_hold_up_neither_other_volumes_nor_the_metrics(
    cluster: Cluster,
    proxy: Proxy,
    behind: Shim,
    through: Csi,
    make_volume: MakeVolume,
    nodes: tuple[str, ...],
    background: ThreadPoolExecutor,
) -> None:
    handles = [make_volume() for _ in range(20)]
    for handle in handles:
        through.publish(handle, nodes[0])
    with proxy.delay("PUT", RECORDS, 5.0):
        started = time.monotonic()
        calls: list[Future[str]] = [
            background.submit(code_of, lambda h=handle: through.unpublish(h, nodes[0])) for handle in handles
        ]
        scrapes: list[float] = []

        def ended() -> bool:
            before = time.monotonic()
            behind.scrape()
            scrapes.append(time.monotonic() - before)
            return all(call.done() for call in calls)

        eventually("all are detached", ended, interval=0.2)
        took = time.monotonic() - started
    assert {call.result() for call in calls} == {"OK"}
    assert 5 <= took < 15
    assert max(scrapes) < 1
    assert all(attached(cluster, handle) == [] for handle in handles)


# The box is away


def connected(shim: Shim) -> float:
    """Return what the connection gauge says; a scrape must be quick."""
    before = time.monotonic()
    metrics = shim.scrape()
    assert time.monotonic() - before < 1
    return metrics.value("rds_csi_rds_connection_state")


def needing_the_box(csi: Csi, handle: str, *, timeout: float) -> list[Callable[[], object]]:
    """Return calls that cannot be answered without the box."""
    return [
        lambda: csi.create(f"pvc-{uuid4()}", timeout=timeout),
        lambda: csi.create(f"pvc-{uuid4()}", capability=RWO, timeout=timeout),
        lambda: csi.delete(handle, timeout=timeout),
    ]


def as_ever(csi: Csi, handle: str, nodes: tuple[str, ...]) -> None:
    """Attach, repeat, migrate and detach a known volume."""
    a, b, c = nodes
    assert [csi.publish_code(handle, node) for node in (a, a, b, c)] == ["OK", "OK", "OK", "FAILED_PRECONDITION"]
    csi.unpublish(handle, a)
    csi.unpublish(handle, b)


@pytest.mark.requirement("R17", "R18")
def test_a_box_that_is_down_is_unavailable_and_attaches_go_on(
    cluster: Cluster, make_shim: MakeShim, make_volume: MakeVolume, own_box: SimulatedBox, nodes: tuple[str, ...]
) -> None:
    shim = make_shim(own_box)
    with Csi(shim.endpoint) as csi:
        handle, doomed = make_volume(by=csi), make_volume(by=csi)
        csi.publish(handle, nodes[0])
        own_box.stop()
        assert csi.publish_code(handle, nodes[0]) == "OK"
        csi.unpublish(handle, nodes[0])
        as_ever(csi, handle, nodes)
        codes = at_once(needing_the_box(csi, doomed, timeout=3))
        assert set(codes) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        eventually("the gauge says so", lambda: connected(shim) == 0)
        assert shim.get("/readyz")[0] == 200
        own_box.start()
        eventually("the link is back", lambda: connected(shim) == 1)
        assert at_once(needing_the_box(csi, doomed, timeout=10)) == ["OK", "OK", "OK"]
        assert cluster.record(doomed) is None or record_of(cluster, doomed)["metadata"]["deletionTimestamp"]
        assert doomed not in own_box.disks()


@pytest.mark.requirement("R19", "R18")
def test_a_box_that_falls_silent_holds_up_nobody(
    make_shim: MakeShim, make_volume: MakeVolume, own_box: SimulatedBox, nodes: tuple[str, ...]
) -> None:
    shim = make_shim(own_box)
    with Csi(shim.endpoint, timeout=60) as csi:
        handle, doomed = make_volume(by=csi), make_volume(by=csi)
        own_box.switch(black_hole=True)
        silent = time.monotonic()
        codes = at_once(needing_the_box(csi, doomed, timeout=4))
        assert time.monotonic() - silent < 6
        assert set(codes) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        as_ever(csi, handle, nodes)
        eventually("the gauge says so", lambda: connected(shim) == 0, timeout=silent + 30 - time.monotonic())
        # The client has given up by itself at its deadline; the shim has, too.
        metrics = shim.scrape()
        calls = metrics.value("csi_plugin_operations_seconds_count", method_name="/csi.v1.Controller/CreateVolume")
        within = metrics.value("csi_plugin_operations_seconds_bucket", method_name="/csi.v1.Controller/CreateVolume", le="5.0")
        assert (calls, within) == (4, 4)
        own_box.switch(black_hole=False)
        back = time.monotonic()
        assert at_once(needing_the_box(csi, doomed, timeout=30)) == ["OK", "OK", "OK"]
        assert time.monotonic() - back < 30
        assert connected(shim) == 1


@pytest.mark.requirement("R20", "R18")
def test_a_shim_starts_and_serves_while_the_box_is_down(
    cluster: Cluster, make_shim: MakeShim, make_volume: MakeVolume, own_box: SimulatedBox, nodes: tuple[str, ...]
) -> None:
    known = make_volume()
    never_seen = cluster.make_static_volume(attributes={"dualAttachPolicy": "AnyTwoNodes"}, bound=False).handle
    own_box.stop()
    shim = make_shim(own_box)
    with Csi(shim.endpoint) as csi:
        assert csi.call(csi.identity.Probe, _probe()).ready.value
        for handle in (known, never_seen):
            as_ever(csi, handle, nodes)
        assert connected(shim) == 0
        assert set(at_once(needing_the_box(csi, known, timeout=2))) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        own_box.start()
        assert code_of(lambda: csi.create(f"pvc-{uuid4()}", timeout=30)) == "OK"
        assert connected(shim) == 1


def _probe() -> object:
    from rds_csi.spec import csi_pb2

    return csi_pb2.ProbeRequest()
