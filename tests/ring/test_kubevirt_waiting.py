"""Nodes that wait for a slot, and who keeps them waiting. csi-attacher alone would try again only after minutes here."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator, Shim
from tests.ring.kubevirt import KubeVirt, Vm
from tests.ring.processes import Process
from tests.ring.sidecars import csi_attacher

pytestmark = pytest.mark.usefixtures("attacher", "provisioner", "operator")


@pytest.fixture(scope="module")
def attacher(installed: ControlPlane, shim: Shim) -> Iterator[Process]:
    """A csi-attacher that comes back to a refused attach after minutes, as it does after some tries."""
    with csi_attacher(
        installed, shim.socket, installed.logs, retry_start="100s", retry_max="300s", reconcile_sync="30m"
    ) as process:
        yield process


class Trio:
    """A virtual machine on the first of three nodes."""

    def __init__(self, kubevirt: KubeVirt) -> None:
        self.kubevirt = kubevirt
        self.cluster = kubevirt.cluster
        self.a, self.b, self.c = (self.cluster.make_node(name) for name in "abc")
        self.claim = self.cluster.make_claim(self.cluster.make_storage_class({}))
        self.cluster.wait_bound(self.claim)
        self.vm: Vm = kubevirt.run("vm", claims=[self.claim], node=self.a)
        self.handle = self.vm.handles[0]


@pytest.fixture
def trio(kubevirt: KubeVirt, attacher: Process, provisioner: Process) -> Trio:
    return Trio(kubevirt)


def seconds_until_attached(cluster: Cluster, handle: str, node: str) -> float:
    begin = time.monotonic()
    cluster.wait_attached(handle, node, timeout=30)
    return time.monotonic() - begin


@pytest.mark.requirement("R33")
def test_a_chained_migration_goes_on_within_seconds_after_the_first_node_left(trio: Trio) -> None:
    earlier = trio.kubevirt.migrate(trio.vm, to=trio.b).until("pod ended")
    chained = trio.kubevirt.migrate(trio.vm, to=trio.c).until("bound")
    trio.cluster.wait_attach_error(trio.handle, trio.c, trio.a)
    trio.cluster.wait_record(trio.handle, "names who waits", lambda status: status.get("refusals"))
    earlier.complete()
    assert seconds_until_attached(trio.cluster, trio.handle, trio.c) < 10
    chained.complete()


@pytest.mark.requirement("R33")
def test_who_waits_is_woken_by_the_next_operator_where_the_slot_was_freed_while_none_was_there(
    trio: Trio, operator: Operator
) -> None:
    earlier = trio.kubevirt.migrate(trio.vm, to=trio.b).until("pod ended")
    chained = trio.kubevirt.migrate(trio.vm, to=trio.c).until("bound")
    trio.cluster.wait_attach_error(trio.handle, trio.c, trio.a)
    trio.cluster.wait_record(trio.handle, "names who waits", lambda status: status.get("refusals"))
    operator.kill()
    earlier.complete()
    assert not trio.kubevirt.attached([trio.handle], trio.c)
    operator.start()
    assert seconds_until_attached(trio.cluster, trio.handle, trio.c) < 10
    chained.complete()


@pytest.mark.requirement("R34")
def test_a_dead_old_source_that_blocks_the_next_migration_is_named_wherever_one_looks(trio: Trio) -> None:
    earlier = trio.kubevirt.migrate(trio.vm, to=trio.b).until("reported")
    trio.kubevirt.lose(trio.a)
    record = trio.cluster.wait_record(
        trio.handle,
        "names the node that cannot leave",
        lambda status: any(one["type"] == "LeavingNodeReady" and one["status"] == "False" for one in status["conditions"]),
    )
    (condition,) = [one for one in record["status"]["conditions"] if one["type"] == "LeavingNodeReady"]
    assert f"node {trio.a} is not Ready" in condition["message"]
    trio.kubevirt.migrate(trio.vm, to=trio.c).until("bound")
    refused = trio.cluster.wait_attach_error(trio.handle, trio.c, trio.a)
    assert "NodeStatusUnknown" in refused
    for event in (
        trio.cluster.wait_event(trio.claim, "MigrationLeavingBlocked"),
        *trio.cluster.events("vm", kind="VirtualMachineInstance", reason="MigrationLeavingBlocked"),
    ):
        assert f"node {trio.a} is not Ready" in event["message"]
        assert f"kubectl taint nodes {trio.a} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in event["message"]
    # What the message says is what helps: the node is taken out of service, and the one that waits is woken.
    trio.kubevirt.take_out(trio.a)
    earlier.until("left")
    assert seconds_until_attached(trio.cluster, trio.handle, trio.c) < 10
