"""The fence: the box accepts for each volume the hosts of the nodes in its record, and the record says so.

Real API server, the simulated box over real SSH, shims as real processes. That the list keeps a kernel out is shown in guests.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from rds_records.fencing import NOBODY
from rds_records.names import host_nqn_for
from tests.ring.api import ApiError
from tests.ring.cluster import Cluster
from tests.ring.driver import Shim
from tests.ring.proxy import Proxy
from tests.ring.rpc import Csi, Refused, code_of
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

LIST = "nvme_tcp_server_allow_host_name"
ON = "--fence=allow-host-name"
STATUS = "/volumeattachmentrecords/.*/status$"


@pytest.fixture(scope="module")
def fence_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    with SimulatedBox(tmp_path_factory.mktemp("fence-box")) as box:
        yield box


@pytest.fixture
def shims(make_shim: Callable[..., Shim], fence_box: SimulatedBox, cluster: Cluster) -> Iterator[Callable[..., tuple[Shim, Csi]]]:
    """Return a function that starts a shim of this test's box, with the fence on unless flags say otherwise."""
    clients: list[Csi] = []

    def make(*extra: str, **arguments: Any) -> tuple[Shim, Csi]:
        shim = make_shim(fence_box, extra=extra or (ON,), **arguments)
        client = Csi(shim.endpoint).__enter__()
        clients.append(client)
        return shim, client

    yield make
    fence_box.reset()
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def fenced(shims: Callable[..., tuple[Shim, Csi]]) -> Csi:
    return shims()[1]


@pytest.fixture
def volume(fenced: Csi, cluster: Cluster) -> Iterator[str]:
    handle = make(fenced, cluster)
    yield handle
    cluster.forget(handle)


def make(csi: Csi, cluster: Cluster) -> str:
    """Make a volume that any two nodes may hold."""
    return str(csi.create(f"pvc-{uuid.uuid4()}").volume_id)


def hosts(box: SimulatedBox, handle: str) -> set[str]:
    """Return who may connect, as the box has it."""
    return set(filter(None, box.disks()[handle][LIST].split(",")))


def of(*nodes: str) -> set[str]:
    return {host_nqn_for(node) for node in nodes} or {NOBODY}


def status(cluster: Cluster, handle: str) -> dict[str, Any]:
    record = cluster.record(handle)
    assert record is not None
    found: dict[str, Any] = record["status"]
    return found


def condition(cluster: Cluster, handle: str) -> tuple[str, str]:
    """Return status and reason of Fenced."""
    found = next(one for one in status(cluster, handle)["conditions"] if one["type"] == "Fenced")
    return found["status"], found["reason"]


def attached(cluster: Cluster, handle: str) -> set[str]:
    return {held["nodeName"] for held in status(cluster, handle).get("attachments", [])}


def changes(box: SimulatedBox, handle: str) -> list[str]:
    """Return the commands that changed the volume's export."""
    return [line for line in box.received("/disk set") if handle in line]


def cycles(box: SimulatedBox, handle: str) -> int:
    return sum("nvme-tcp-export=no" in line for line in changes(box, handle))


def change_node(cluster: Cluster, node: str, edit: Callable[[dict[str, Any]], object], *subresource: str) -> None:
    """Change a Node, whoever else writes it."""

    def changed() -> bool:
        body = cluster.api.get("Node", node)
        edit(body)
        try:
            cluster.api.replace(body, *subresource)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    eventually(f"Node {node} is changed", changed)


def take_down(cluster: Cluster, node: str) -> None:
    """Have the Node say that it is not ready."""
    silence = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
    change_node(cluster, node, lambda body: body["status"].update(conditions=silence), "status")


@pytest.mark.requirement("R31b")
def test_the_box_accepts_the_nodes_of_the_record_before_a_publish_and_no_longer_before_an_unpublish_is_answered(
    fenced: Csi, cluster: Cluster, fence_box: SimulatedBox, volume: str
) -> None:
    first, second = cluster.make_node(), cluster.make_node()
    seen = []
    for call, nodes in (
        (lambda: fenced.publish(volume, first), [first]),
        (lambda: fenced.publish(volume, second), [first, second]),
        (lambda: fenced.unpublish(volume, first), [second]),
        (lambda: fenced.unpublish(volume, second), []),
    ):
        call()
        seen.append(hosts(fence_box, volume))
        assert seen[-1] == of(*nodes)
        assert condition(cluster, volume) == ("True", "HostsConfirmed")
    assert not cycles(fence_box, volume)


@pytest.mark.requirement("R31b")
@pytest.mark.parametrize("answer", ["failure: not allowed (9)", "failure: whatever"])
def test_a_box_that_refuses_the_change_makes_the_unpublish_fail_and_the_record_says_so(
    fenced: Csi, cluster: Cluster, fence_box: SimulatedBox, volume: str, answer: str
) -> None:
    node = cluster.make_node()
    fenced.publish(volume, node)
    fence_box.fail_command(f"/disk set .*{volume}", answer)
    with pytest.raises(Refused, match="FAILED_PRECONDITION"):
        fenced.unpublish(volume, node)
    assert attached(cluster, volume) == {node}
    assert condition(cluster, volume) == ("False", "BoxRefused")
    fenced.unpublish(volume, node)
    assert (attached(cluster, volume), hosts(fence_box, volume)) == (set(), of())


def test_a_box_that_keeps_one_host_only_admits_no_second_node_and_is_named(
    fenced: Csi, cluster: Cluster, fence_box: SimulatedBox, volume: str
) -> None:
    first, second = cluster.make_node(), cluster.make_node()
    fence_box.switch(allow_host_name="one")
    fenced.publish(volume, first)
    with pytest.raises(Refused, match="nvme-tcp-server-allow-host-name"):
        fenced.publish(volume, second)
    assert condition(cluster, volume) == ("False", "BoxRefused")
    fenced.unpublish(volume, second)
    assert hosts(fence_box, volume) == of(first)


def test_a_publish_of_a_known_volume_needs_the_box_while_the_fence_is_on_and_a_repeat_does_not(
    fenced: Csi, cluster: Cluster, fence_box: SimulatedBox, volume: str
) -> None:
    first, second = cluster.make_node(), cluster.make_node()
    fenced.publish(volume, first)
    fence_box.stop()
    fenced.publish(volume, first)
    assert code_of(lambda: fenced.publish(volume, second, timeout=5)) == "UNAVAILABLE"
    assert condition(cluster, volume) == ("False", "BoxUnreachable")
    assert code_of(lambda: fenced.unpublish(volume, first, timeout=5)) == "UNAVAILABLE"
    assert attached(cluster, volume) == {first, second}
    fence_box.start()
    fenced.unpublish(volume, first)
    assert (attached(cluster, volume), hosts(fence_box, volume)) == ({second}, of(second))


@pytest.mark.parametrize("how", ["NodeNotReady", "OutOfService", "VolumeInUse", "NodeGone"])
def test_a_detach_that_was_forced_drops_the_sessions_of_the_volume_and_is_marked(
    fenced: Csi, cluster: Cluster, fence_box: SimulatedBox, volume: str, how: str
) -> None:
    lost, other = cluster.make_node(), cluster.make_node()
    fenced.publish(volume, lost)
    fenced.publish(volume, other)
    force(cluster, lost, volume, how)
    fenced.unpublish(volume, lost)
    lines = changes(fence_box, volume)
    assert "nvme-tcp-export=no" in lines[-2]
    assert host_nqn_for(lost) not in lines[-3], "the list comes first"
    disk = fence_box.disks()[volume]
    assert (disk["nvme_tcp_export"], hosts(fence_box, volume)) == (True, of(other))
    assert condition(cluster, volume) == ("True", "HostsConfirmed")
    (mark,) = status(cluster, volume)["forcedDetaches"]
    assert (mark["nodeName"], mark["reason"], mark["fenced"]) == (lost, how, True)
    assert status(cluster, volume)["history"][-1]["forced"] is True


def force(cluster: Cluster, node: str, handle: str, how: str) -> None:
    match how:
        case "NodeNotReady":
            take_down(cluster, node)
        case "OutOfService":
            taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
            change_node(cluster, node, lambda body: body["spec"].setdefault("taints", []).append(taint))
        case "VolumeInUse":
            cluster.hold_detach(node, handle)
        case "NodeGone":
            cluster.delete_node(node)


def test_with_the_fence_off_nothing_changes_on_the_box_and_the_record_gives_the_reason(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox
) -> None:
    csi = shims("--fence=none")[1]
    node, lost = cluster.make_node(), cluster.make_node()
    handle = make(csi, cluster)
    before = len(fence_box.received())
    csi.publish(handle, node)
    csi.publish(handle, lost)
    take_down(cluster, lost)
    csi.unpublish(handle, lost)
    csi.unpublish(handle, node)
    assert not [line for line in fence_box.received()[before:] if handle in line]
    assert condition(cluster, handle) == ("False", "NotEnabled")
    (mark,) = status(cluster, handle)["forcedDetaches"]
    assert (mark["nodeName"], mark["fenced"]) == (lost, False)
    cluster.forget(handle)


@pytest.mark.usefixtures("operator")
def test_a_forced_detach_is_a_warning_event_and_counted(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, operator: Any
) -> None:
    csi = shims("--fence=none")[1]
    node = cluster.make_node()
    static = cluster.make_static_volume()
    csi.publish(static.handle, node)
    take_down(cluster, node)
    csi.unpublish(static.handle, node)
    event = cluster.wait_event(static.claim, "VolumeForceDetached")
    assert event["type"] == "Warning"
    assert node in event["message"]
    eventually("it is counted", lambda: operator.scrape().value("rds_csi_attachment_forced_detaches_total") == 1, interval=0.2)
    last = "rds_csi_attachment_last_forced_detach_timestamp_seconds"
    assert abs(operator.scrape().value(last, fenced="false") - time.time()) < 60


def test_a_list_is_cleared_once_the_fence_is_switched_off(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox
) -> None:
    shim, csi = shims()
    first, second = cluster.make_node(), cluster.make_node()
    published, idle = make(csi, cluster), make(csi, cluster)
    csi.publish(published, first)
    csi.publish(idle, first)
    csi.unpublish(idle, first)
    assert shim.scrape().value("rds_csi_fence_enabled") == 1
    shim.kill()
    shim, csi = shims("--fence=none")
    assert shim.scrape().value("rds_csi_fence_enabled") == 0
    csi.publish(published, second)
    assert hosts(fence_box, published) == set()
    assert condition(cluster, published) == ("False", "NotEnabled")
    eventually("the other list is cleared too", lambda: hosts(fence_box, idle) == set(), timeout=60, interval=0.5)
    for handle in (published, idle):
        cluster.forget(handle)


STEPS = {
    "mark on the record": ("PUT", '"leaving"'),
    "removal from the record": ("PUT", '"HostsConfirmed"'),
}


@pytest.mark.requirement("R31b")
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_shim_killed_at_a_write_of_a_forced_unpublish_leaves_it_to_the_next(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox, proxy: Proxy, step: str, applied: bool
) -> None:
    shim, csi = shims(through=proxy)
    lost, other = cluster.make_node(), cluster.make_node()
    handle = make(csi, cluster)
    csi.publish(handle, lost)
    csi.publish(handle, other)
    take_down(cluster, lost)
    method, body = STEPS[step]
    rule = proxy.freeze(method, STATUS, body=body, applied=applied)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(code_of, lambda: csi.unpublish(handle, lost))
        rule.wait_hit()
        shim.kill()
        rule.release(cut=True)
        assert call.result() == "UNAVAILABLE"
    shim.start()
    csi.unpublish(handle, lost)
    assert_only(cluster, fence_box, handle, other)
    assert [mark["nodeName"] for mark in status(cluster, handle)["forcedDetaches"]] == [lost]
    assert cycles(fence_box, handle) >= 1
    cluster.forget(handle)


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("reason", ["Changing", "HostsConfirmed"])
def test_a_shim_killed_at_a_write_of_a_publish_leaves_it_to_the_next(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox, proxy: Proxy, reason: str, applied: bool
) -> None:
    shim, csi = shims(through=proxy)
    node = cluster.make_node()
    handle = make(csi, cluster)
    rule = proxy.freeze("PUT", STATUS, body=f'"{reason}"', applied=applied)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(code_of, lambda: csi.publish(handle, node))
        rule.wait_hit()
        shim.kill()
        rule.release(cut=True)
        assert call.result() == "UNAVAILABLE"
    shim.start()
    csi.publish(handle, node)
    assert_only(cluster, fence_box, handle, node)
    cluster.forget(handle)


def test_a_detach_waits_where_nobody_can_tell_whether_it_is_forced(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, proxy: Proxy
) -> None:
    csi = shims("--fence=none", through=proxy)[1]
    node = cluster.make_node()
    handle = make(csi, cluster)
    csi.publish(handle, node)
    with proxy.fail("GET", f"/nodes/{node}$", status=504):
        assert code_of(lambda: csi.unpublish(handle, node)) == "UNAVAILABLE"
    assert attached(cluster, handle) == {node}
    csi.unpublish(handle, node)
    assert not status(cluster, handle).get("forcedDetaches")
    cluster.forget(handle)


def assert_only(cluster: Cluster, box: SimulatedBox, handle: str, *nodes: str) -> None:
    """Assert that record and box know these nodes and no others."""
    assert attached(cluster, handle) == set(nodes)
    assert (box.disks()[handle]["nvme_tcp_export"], hosts(box, handle)) == (True, of(*nodes))
    assert condition(cluster, handle) == ("True", "HostsConfirmed")


@pytest.mark.requirement("R31b")
@pytest.mark.parametrize("command", ["allow-host-name", "nvme-tcp-export=no", "nvme-tcp-export=yes"])
def test_a_shim_killed_at_a_command_of_a_forced_unpublish_leaves_it_to_the_next(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox, command: str
) -> None:
    shim, csi = shims()
    lost, other = cluster.make_node(), cluster.make_node()
    handle = make(csi, cluster)
    csi.publish(handle, lost)
    csi.publish(handle, other)
    take_down(cluster, lost)
    before = len(changes(fence_box, handle))
    fence_box.switch(latency={"/disk set": 0.5})
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(code_of, lambda: csi.unpublish(handle, lost))
        eventually(
            "the command arrives",
            lambda: any(command in line for line in changes(fence_box, handle)[before:]),
            interval=0.01,
        )
        shim.kill()
        assert call.result() == "UNAVAILABLE"
    fence_box.switch(latency={})
    shim.start()
    csi.unpublish(handle, lost)
    assert_only(cluster, fence_box, handle, other)
    cluster.forget(handle)


def test_an_export_that_a_killed_shim_left_off_comes_back_though_nobody_calls_again(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox
) -> None:
    csi = shims()[1]
    node = cluster.make_node()
    handle = make(csi, cluster)
    csi.publish(handle, node)
    fence_box.run(f"/disk set [find slot={handle}] nvme-tcp-export=no")
    eventually("it is exported again", lambda: fence_box.disks()[handle]["nvme_tcp_export"], timeout=90, interval=0.5)
    eventually("record and box agree", lambda: hosts(fence_box, handle) == of(node), timeout=30)
    cluster.forget(handle)


def test_two_shims_that_publish_and_unpublish_at_once_leave_on_the_box_what_the_record_says(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox
) -> None:
    one, other = shims()[1], shims()[1]
    first, second = cluster.make_node(), cluster.make_node()
    handle = make(one, cluster)
    one.publish(handle, first)
    fence_box.switch(latency={"/disk set": 0.2})
    with ThreadPoolExecutor(2) as pool:
        calls: list[Future[Any]] = [pool.submit(other.publish, handle, second), pool.submit(one.unpublish, handle, first)]
        for call in calls:
            call.result()
    fence_box.switch(latency={})
    assert_only(cluster, fence_box, handle, second)
    cluster.forget(handle)


def test_a_volume_that_was_attached_before_the_fence_was_on_is_brought_in_line_at_its_next_publish_and_not_earlier(
    shims: Callable[..., tuple[Shim, Csi]], cluster: Cluster, fence_box: SimulatedBox
) -> None:
    csi = shims("--fence=none")[1]
    first, second = cluster.make_node(), cluster.make_node()
    handle = make(csi, cluster)
    csi.publish(handle, first)
    csi = shims()[1]
    assert hosts(fence_box, handle) == set()
    csi.publish(handle, second)
    assert_only(cluster, fence_box, handle, first, second)
    cluster.forget(handle)
