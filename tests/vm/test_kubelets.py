"""Real kubelets run pods in the guests, and know the driver."""

from __future__ import annotations

import sys

import pytest

from tests.ring.cluster import DRIVER
from tests.ring.controlplane import ControlPlane
from tests.ring.waiting import eventually
from tests.vm.cluster import RealCluster
from tests.vm.guests import ROOT, Guest
from tests.vm.kubelets import NodeKubelet
from tests.vm.node_plugin import NodePlugin


def test_a_pod_runs_and_is_heard_and_obeys(cluster: RealCluster) -> None:
    pod = cluster.pod("node-a", command="echo 'said  by a pod'; exec sleep 600")
    cluster.wait_running(pod)
    assert cluster.logs(pod) == "said  by a pod\n"
    assert cluster.exec(pod, "hostname; echo 'two  blanks' >&2") == "node-a\ntwo  blanks\n"
    with pytest.raises(AssertionError, match="exit status '3'"):
        cluster.exec(pod, "exit 3")
    cluster.delete_pod(pod)


def test_a_pod_can_run_this_python(cluster: RealCluster) -> None:
    pod = cluster.pod("node-b", python=True)
    cluster.wait_running(pod)
    program = ROOT / "tests" / "vm" / "ledger.py"
    assert "ledger.py" in cluster.exec(pod, f"{sys.base_prefix}/bin/python3 -I {program} --help")


@pytest.mark.long
def test_the_kubelet_knows_the_driver_of_a_node(
    kubelets: dict[str, NodeKubelet], plugins: dict[str, NodePlugin], plane: ControlPlane
) -> None:
    def known(node: str) -> bool:
        body = plane.api.find("CSINode", node) or {}
        return any(driver["name"] == DRIVER and driver["nodeID"] == node for driver in body.get("spec", {}).get("drivers") or [])

    for node in kubelets:
        eventually(f"the driver is registered on {node}", lambda: known(node), timeout=60)  # noqa: B023


@pytest.mark.long
def test_a_node_that_was_reset_is_the_same_node(node_b: Guest, kubelets: dict[str, NodeKubelet], plane: ControlPlane) -> None:
    uid = plane.api.get("Node", "node-b")["metadata"]["uid"]
    before = plane.api.get("Node", "node-b")["status"]["nodeInfo"]["bootID"]
    node_b.restart()
    kubelets["node-b"].start()
    eventually("another boot is told", lambda: plane.api.get("Node", "node-b")["status"]["nodeInfo"]["bootID"] != before)
    assert plane.api.get("Node", "node-b")["metadata"]["uid"] == uid
