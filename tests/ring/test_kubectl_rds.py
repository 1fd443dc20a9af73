"""``kubectl rds`` against a real API server, under the roles that people are given."""

from __future__ import annotations

import json

import pytest

from rds_records.fencing import confirmed
from tests.ring.audit import granted, used
from tests.ring.cluster import Cluster, StaticVolume
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator
from tests.ring.installation import NAMESPACE, resources
from tests.ring.kubevirt import KubeVirt
from tests.ring.plugin import DOCTOR, RELEASER, VIEWER, Plugin, through_kubectl
from tests.ring.processes import Process
from tests.ring.proxy import Proxy
from tests.ring.records import attach_to, change, detach_from, make_record, migrate, seconds_ago
from tests.ring.waiting import eventually

RECORDS_ONLY = "ring-records-only"

# Status, migrations


@pytest.fixture(scope="module")
def viewer(installed: ControlPlane) -> Plugin:
    return Plugin(installed, VIEWER)


@pytest.fixture(scope="module", autouse=True)
def records_only(installed: ControlPlane) -> None:
    """A role of somebody who may read records and nothing else."""
    rules = [{"apiGroups": ["rds.csi.srvlab.io"], "resources": ["volumeattachmentrecords"], "verbs": ["list"]}]
    installed.api.apply(
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": RECORDS_ONLY}, "rules": rules}
    )


@pytest.fixture
def volume(cluster: Cluster) -> StaticVolume:
    return cluster.make_static_volume()


@pytest.fixture
def migrating(cluster: Cluster, operator: Operator, volume: StaticVolume) -> StaticVolume:
    """A volume that migrates from node-a to node-b, which the operator has seen."""
    migrate(cluster, volume)
    cluster.wait_record(volume.handle, "is reported", lambda status: status.get("claimRef") and not status.get("outbox"))
    return volume


def test_status_lists_a_volume_with_its_claim_nodes_and_phase(viewer: Plugin, cluster: Cluster, migrating: StaticVolume) -> None:
    seen = viewer.volume(migrating.handle)
    assert (seen["claim"], seen["phase"]) == ({"namespace": cluster.namespace, "name": migrating.claim}, "Migrating")
    assert seen["nodes"] == ["node-a", "node-b"]


def test_status_lists_a_volume_that_has_no_record_yet(viewer: Plugin, volume: StaticVolume) -> None:
    assert viewer.volume(volume.handle)["phase"] is None
    assert f"{volume.handle}   no record yet" in viewer.page("status")


def test_status_for_people_ends_with_what_is_wrong_and_what_to_do(
    viewer: Plugin, cluster: Cluster, migrating: StaticVolume
) -> None:
    page = viewer.page("status")
    about = f"- {cluster.namespace}/{migrating.claim}"
    (line,) = [line for line in page.splitlines() if line.startswith(about) and "node-a, and" in line]
    assert "there is no Node node-a any more. Do: bring the node back, or see what" in line
    assert "wrong" in page.splitlines()[-1]


def test_an_overdue_migration_is_wrong_and_says_so_to_programs(
    viewer: Plugin, cluster: Cluster, operator: Operator, volume: StaticVolume
) -> None:
    migrate(cluster, volume, timeout=30, since=40)
    cluster.wait_phase(volume.handle, "Overdue")
    assert "past the deadline" in viewer.findings(volume.handle)["Overdue"]["what"]


def test_the_exit_status_tells_that_something_is_wrong_where_that_is_asked_for(viewer: Plugin, migrating: StaticVolume) -> None:
    assert viewer.run("status").returncode == 0
    assert viewer.run("status", "--exit-status").returncode == 3


def test_whoever_may_not_read_records_is_told_which_role_lets_them(installed: ControlPlane) -> None:
    done = Plugin(installed).run("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the ClusterRole rds-csi-viewer has what this command needs" in done.stderr


def test_what_else_a_person_may_not_read_is_said_and_not_taken_for_absent(installed: ControlPlane, migrating: StaticVolume) -> None:
    person = Plugin(installed, RECORDS_ONLY)
    assert {one["what"] for one in person.json("status")["unread"]} == {"persistentvolumes", "volumeattachments", "nodes", "lease"}
    assert person.findings(migrating.handle) == {}
    assert person.run("status", "--exit-status").returncode == 3


def test_migrations_shows_the_open_window_of_a_volume(viewer: Plugin, migrating: StaticVolume) -> None:
    (row,) = [one for one in viewer.json("migrations")["migrations"] if one["volume"] == migrating.handle]
    assert (row["sourceNode"], row["targetNode"], row["state"], row["open"]) == ("node-a", "node-b", "Running", True)


def test_migrations_shows_how_a_window_ended(viewer: Plugin, cluster: Cluster, migrating: StaticVolume) -> None:
    detach_from(cluster, migrating.handle, "node-a")
    (row,) = [one for one in viewer.json("migrations")["migrations"] if one["volume"] == migrating.handle]
    assert (row["state"], row["open"], row["leftNode"]) == ("Succeeded", False, "node-a")


def test_a_watch_prints_each_change_as_it_happens(
    viewer: Plugin, cluster: Cluster, operator: Operator, volume: StaticVolume
) -> None:
    make_record(cluster, volume)
    attach_to(cluster, volume.handle, "node-a")
    with viewer.watching("migrations", "-w", "-o", "json") as watch:
        attach_to(cluster, volume.handle, "node-b")
        eventually("the open window is printed", lambda: told(watch.log.read_text(), volume) == ["Running"])
        detach_from(cluster, volume.handle, "node-a")
        eventually("its end is printed", lambda: told(watch.log.read_text(), volume) == ["Running", "Succeeded"])


@pytest.mark.usefixtures("operator")
def test_a_watch_goes_on_after_its_connection_was_cut(
    installed: ControlPlane, cluster: Cluster, volume: StaticVolume, proxy: Proxy
) -> None:
    make_record(cluster, volume)
    attach_to(cluster, volume.handle, "node-a")
    with Plugin(installed, VIEWER, through=proxy).watching("migrations", "-w", "-o", "json") as watch:
        attach_to(cluster, volume.handle, "node-b")
        eventually("the open window is printed", lambda: told(watch.log.read_text(), volume) == ["Running"])
        proxy.cut_watches()
        detach_from(cluster, volume.handle, "node-a")
        eventually("its end is printed", lambda: told(watch.log.read_text(), volume) == ["Running", "Succeeded"])


def told(log: str, volume: StaticVolume) -> list[str]:
    """Return the states that a watch has printed of a volume."""
    rows = [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [row["state"] for row in rows if row["volume"] == volume.handle]


# Volume


@pytest.mark.usefixtures("attacher", "provisioner", "operator")
def test_the_page_of_a_volume_has_all_that_stands_around_it(viewer: Plugin, kubevirt: KubeVirt) -> None:
    cluster = kubevirt.cluster
    node, other = cluster.make_node(), cluster.make_node()
    claim = cluster.make_claim(cluster.make_storage_class())
    cluster.wait_bound(claim)
    vm = kubevirt.run("vm", claims=[claim], node=node)
    kubevirt.migrate(vm, to=other).complete()
    (handle,) = vm.handles
    cluster.wait_event(claim, "MigrationEnded")
    page = viewer.json("volume", f"{cluster.namespace}/{claim}")
    assert (page["volume"], page["persistentVolumeClaim"]["metadata"]["name"]) == (handle, claim)
    assert page["virtualMachineInstance"]["status"]["nodeName"] == other
    assert [window["result"] for window in page["record"]["status"]["history"]] == ["Succeeded"]
    assert [one["spec"]["nodeName"] for one in page["volumeAttachments"]] == [other]
    assert vm.launcher.name in {pod["metadata"]["name"] for pod in page["pods"]}
    assert {"MigrationStarted", "MigrationCompleted", "MigrationEnded"} <= {event["reason"] for event in page["events"]}
    assert [one["status"]["phase"] for one in page["virtualMachineInstanceMigrations"]] == ["Succeeded"]
    assert (page["findings"], page["unread"]) == ([], [])
    assert f"runs on {other}" in viewer.page("volume", handle)


def test_a_claim_is_looked_for_in_the_namespace_that_is_named(viewer: Plugin, cluster: Cluster, volume: StaticVolume) -> None:
    assert volume.handle in viewer.page("volume", volume.claim, "-n", cluster.namespace)
    done = viewer.run("volume", volume.claim)
    assert (done.returncode, f"claim in namespace {NAMESPACE}" in done.stderr) == (1, True)


# Release


@pytest.fixture(scope="module")
def releaser(installed: ControlPlane) -> Plugin:
    return Plugin(installed, VIEWER, RELEASER)


@pytest.fixture
def held(cluster: Cluster, volume: StaticVolume, attacher: Process) -> tuple[StaticVolume, str]:
    """A volume that csi-attacher has attached to a node, for a VolumeAttachment that nobody wants any more."""
    node = cluster.make_node()
    cluster.make_attachment(volume.pv, volume.handle, node)
    cluster.wait_attached(volume.handle, node)
    return volume, node


def silence(cluster: Cluster, node: str, *, taint: str = "") -> None:
    """Let the node say nothing of itself any more, as when it has no power, or no network."""
    conditions = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting"}]
    cluster.api.patch("Node", node, {"status": {"conditions": conditions}}, subresource="status")
    if taint:
        cluster.api.patch("Node", node, {"spec": {"taints": [{"key": taint, "value": "nodeshutdown", "effect": "NoExecute"}]}})


def released(plugin: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]) -> str:
    """Release a volume, and wait until csi-attacher and driver have done their part; return on what ground."""
    volume, node = held
    answer = plugin.json("release", volume.handle, node)
    assert answer["released"], answer
    cluster.wait_detached(volume.handle, node)
    cluster.wait_nodes(volume.handle, [])
    return str(answer["ground"])


def refused(plugin: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]) -> str:
    """Ask for a release that must be refused; return on what ground."""
    volume, node = held
    answer = plugin.json("release", volume.handle, node, status=1)
    assert not answer["released"]
    cluster.wait_attached(volume.handle, node)
    return str(answer["ground"])


def test_a_node_that_is_ready_and_does_not_use_the_volume_is_released(
    releaser: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]
) -> None:
    assert released(releaser, cluster, held) == "NotUsed"
    volume, node = held
    assert "nothing to do: node" in releaser.page("release", volume.handle, node)


def test_a_node_that_is_gone_is_released(releaser: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]) -> None:
    cluster.delete_node(held[1])
    assert released(releaser, cluster, held) == "NodeGone"


def test_a_silent_node_is_not_released_before_it_is_marked_out_of_service(
    releaser: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]
) -> None:
    silence(cluster, held[1])
    assert refused(releaser, cluster, held) == "NodeNotReady"
    silence(cluster, held[1], taint="node.kubernetes.io/out-of-service")
    assert released(releaser, cluster, held) == "OutOfService"


def test_a_silent_node_is_released_where_the_fence_is_on(
    releaser: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]
) -> None:
    silence(cluster, held[1])
    change(cluster, held[0].handle, lambda fresh: confirmed(fresh, enabled=True, disk=True, now=seconds_ago(0)))
    assert released(releaser, cluster, held) == "Fenced"


def test_a_volume_is_not_released_from_under_a_pod(releaser: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]) -> None:
    volume, node = held
    pod = cluster.launcher_pod(volume.claim, node)
    cluster.wait_running(pod)
    done = releaser.run("release", f"{cluster.namespace}/{volume.claim}", node)
    assert done.returncode == 1
    assert f"not released: node {node} is Ready and pod {cluster.namespace}/{pod} uses it there. Do: stop what made" in done.stdout
    assert refused(releaser, cluster, held) == "InUse"


def test_a_dry_run_changes_nothing(releaser: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]) -> None:
    volume, node = held
    assert "would be released" in releaser.page("release", volume.handle, node, "--dry-run")
    attachment = cluster.wait_attached(volume.handle, node)
    assert "deletionTimestamp" not in attachment["metadata"]


def test_whoever_only_looks_cannot_release(viewer: Plugin, cluster: Cluster, held: tuple[StaticVolume, str]) -> None:
    volume, node = held
    done = viewer.run("release", volume.handle, node)
    assert (done.returncode, "cannot delete resource" in done.stderr) == (1, True)
    cluster.wait_attached(volume.handle, node)


# Rights


@pytest.mark.usefixtures("attacher", "provisioner", "operator")
def test_every_right_that_people_are_given_is_used(kubevirt: KubeVirt, installed: ControlPlane) -> None:
    cluster = kubevirt.cluster
    node = cluster.make_node()
    claim = cluster.make_claim(cluster.make_storage_class())
    cluster.wait_bound(claim)
    (handle,) = kubevirt.run("vm", claims=[claim], node=node).handles
    cluster.wait_record(handle, "knows its VM", lambda status: status.get("vmi"))
    unused = cluster.make_static_volume()
    cluster.make_attachment(unused.pv, unused.handle, node)
    cluster.wait_attached(unused.handle, node)
    person = Plugin(installed, VIEWER, RELEASER, DOCTOR)
    for command in (["status"], ["volume", handle], ["doctor"], ["release", unused.handle, node, "--dry-run"]):
        person.page(*command)
    roles = [body for body in resources() if body["metadata"]["name"] in {VIEWER, RELEASER, DOCTOR}]
    assert len(roles) == 5
    wanted = {right for body in roles for right in granted(body)}
    with person.watching("migrations", "-w"):
        eventually("all rights are used", lambda: not wanted - used(installed.audit_log, person.account))


# As kubectl runs it


def test_kubectl_finds_the_plugin_and_its_flags_count(installed: ControlPlane, viewer: Plugin, volume: StaticVolume) -> None:
    done = through_kubectl(installed, viewer, ["status", "--context=ring", f"--namespace={NAMESPACE}"])
    assert (done.returncode, volume.handle in done.stdout) == (0, True), done.stderr


def test_a_context_that_does_not_exist_is_named(viewer: Plugin) -> None:
    done = viewer.run("status", "--context=nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr


def test_a_missing_kubeconfig_says_what_to_give(viewer: Plugin) -> None:
    done = viewer.run("status", "--kubeconfig=/nonexistent/config")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no way to reach the API server from /nonexistent/config" in done.stderr


def test_who_may_impersonate_looks_with_the_rights_of_another(installed: ControlPlane, viewer: Plugin) -> None:
    done = viewer.run(f"--kubeconfig={installed.kubeconfig}", "status", "--as=system:serviceaccount:nobody:nobody")
    assert done.returncode == 1
    assert 'User "system:serviceaccount:nobody:nobody" cannot list' in done.stderr
