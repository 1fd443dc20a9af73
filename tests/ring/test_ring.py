"""The ring is what it claims to be; tests that use it may rest on that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from tests.ring.api import ApiError
from tests.ring.cluster import DRIVER, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import BASE, resources
from tests.ring.waiting import eventually

ROOT = Path(__file__).parents[2]


def test_a_service_account_without_a_role_is_refused(control_plane: ControlPlane) -> None:
    nobody = control_plane.api_for("rds-csi", "nobody")
    with pytest.raises(ApiError, match='User "system:serviceaccount:rds-csi:nobody" cannot list resource "nodes"'):
        nobody.list("Node")


def test_a_killed_api_server_comes_back_on_its_port_with_its_data(control_plane: ControlPlane) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept", "namespace": "default"}, "data": {"a": "b"}}
    uid = control_plane.api.create(body)["metadata"]["uid"]
    control_plane.apiserver.restart()
    assert control_plane.api.get("ConfigMap", "kept", "default")["metadata"]["uid"] == uid


def test_a_pod_with_a_block_claim_makes_a_volume_attachment(cluster: Cluster) -> None:
    node, volume = cluster.make_node(), cluster.make_static_volume()
    pod = cluster.launcher_pod(volume.claim, node)
    cluster.wait_running(pod)
    attachment = cluster.wait_attachment(volume.handle, node)
    assert attachment["spec"] == {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume.pv}}


def test_a_read_write_many_volume_gets_two_attachments(cluster: Cluster) -> None:
    source, target, volume = cluster.make_node("source"), cluster.make_node("target"), cluster.make_static_volume()
    for node in (source, target):
        cluster.launcher_pod(volume.claim, node)
    assert cluster.wait_attachment(volume.handle, source)
    assert cluster.wait_attachment(volume.handle, target)


def attached_by_hand(cluster: Cluster, handle: str, node: str) -> None:
    """Say what csi-attacher would say."""
    name = cluster.wait_attachment(handle, node)["metadata"]["name"]
    cluster.api.patch("VolumeAttachment", name, {"status": {"attached": True}}, subresource="status")


def is_reported_attached(cluster: Cluster, handle: str, node: str) -> bool:
    attached = cluster.api.get("Node", node)["status"].get("volumesAttached", [])
    return any(volume["name"].endswith(f"^{handle}") for volume in attached)


def is_gone(cluster: Cluster, kind: str, name: str) -> bool:
    return cluster.api.find(kind, name) is None


def test_a_pod_that_goes_takes_its_volume_attachment_with_it(cluster: Cluster) -> None:
    node, volume = cluster.make_node(), cluster.make_static_volume()
    pod = cluster.launcher_pod(volume.claim, node)
    attached_by_hand(cluster, volume.handle, node)
    eventually("the node is told", lambda: is_reported_attached(cluster, volume.handle, node))
    cluster.delete_pod(pod)
    cluster.wait_detached(volume.handle, node)


def test_volumes_in_use_holds_the_detach_back(cluster: Cluster) -> None:
    node, volume, other = cluster.make_node(), cluster.make_static_volume(), cluster.make_static_volume()
    pods = [cluster.launcher_pod(claim, node) for claim in (volume.claim, other.claim)]
    for handle in (volume.handle, other.handle):
        attached_by_hand(cluster, handle, node)
        eventually("the node is told", partial(is_reported_attached, cluster, handle, node))
    cluster.hold_detach(node, volume.handle)
    for pod in pods:
        cluster.delete_pod(pod)
    # The controller takes both in one round: once the one is gone, the other was looked at and kept.
    cluster.wait_detached(other.handle, node)
    assert cluster.attachment(volume.handle, node)
    cluster.release_detach(node, volume.handle)
    cluster.wait_detached(volume.handle, node)


def test_a_silent_node_keeps_its_pods(cluster: Cluster) -> None:
    node, volume = cluster.make_node(), cluster.make_static_volume()
    pod = cluster.launcher_pod(volume.claim, node)
    cluster.wait_running(pod)
    cluster.kubelet.silent.add(node)
    cluster.delete_pod(pod, wait=False)
    other = cluster.make_node()
    cluster.wait_running(cluster.launcher_pod(volume.claim, other))
    assert cluster.api.get("Pod", pod, cluster.namespace)["metadata"]["deletionTimestamp"]


def test_clean_up_leaves_nothing_behind(installed: ControlPlane, cluster: Cluster) -> None:
    mine = Cluster(installed.api, cluster.kubelet)
    node, volume = mine.make_node(), mine.make_static_volume()
    mine.launcher_pod(volume.claim, node)
    attachment = mine.wait_attachment(volume.handle, node)
    mine.clean_up()
    for kind, name in (("Node", node), ("CSINode", node), ("PersistentVolume", volume.pv)):
        eventually(f"{kind} {name} is gone", partial(is_gone, mine, kind, name))
    eventually("the attachment is gone", lambda: mine.api.find("VolumeAttachment", attachment["metadata"]["name"]) is None)


def test_every_role_that_is_shipped_is_bound_but_those_for_people(installed: ControlPlane) -> None:
    for_people = {document["metadata"]["name"] for document in yaml.safe_load_all((BASE / "rbac-kubectl.yaml").read_text())}
    shipped = [body for body in resources() if body["metadata"]["name"] not in for_people]
    roles = {(body["kind"], body["metadata"]["name"]) for body in shipped if body["kind"] in {"Role", "ClusterRole"}}
    bound = {(body["roleRef"]["kind"], body["roleRef"]["name"]) for body in shipped if "roleRef" in body}
    assert roles == bound


def test_kustomize_builds_what_the_ring_installs(control_plane: ControlPlane) -> None:
    command = [str(control_plane.binaries["kubectl"]), "kustomize", str(BASE)]
    built = yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    in_one_order = partial(json.dumps, sort_keys=True)
    assert sorted(map(in_one_order, built)) == sorted(map(in_one_order, resources()))


def test_no_role_that_is_shipped_uses_wildcards_or_reads_secrets() -> None:
    for body in resources():
        for rule in body.get("rules", []):
            words = [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert "*" not in words, body["metadata"]["name"]
            assert "secrets" not in rule["resources"], body["metadata"]["name"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_nothing_is_left_of_a_ring_whose_owner_was_ended(tmp_path: Path, number: signal.Signals) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.ring"]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("export KUBECONFIG=")
        children = psutil.Process(owner.pid).children(recursive=True)
        assert {child.name()[:14] for child in children} == {"etcd", "kube-apiserver", "kube-controlle"}
        owner.send_signal(number)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


FAILING = """
import pathlib, pytest
from tests.ring.processes import Process
def test_that_fails(tmp_path):
    with Process("talker", ["sh", "-c", "echo famous last words; exec sleep 60"], tmp_path / "talker.log", ready=None) as talker:
        while "famous" not in talker.output():
            pass
        pytest.fail("on purpose")
"""


def test_logs_of_every_process_are_kept_when_a_test_fails(tmp_path: Path) -> None:
    test = tmp_path / "test_failing.py"
    test.write_text(FAILING)
    kept = tmp_path / "kept"
    environ = {**os.environ, "RDS_CSI_TEST_LOGS": str(kept)}
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "tests.ring.conftest"]
    command = [sys.executable, "-m", "pytest", *options, str(test)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    (log,) = kept.rglob("*.log")
    assert log.parent.name == "test_failing.py_test_that_fails"
    assert log.read_text() == "famous last words\n"
