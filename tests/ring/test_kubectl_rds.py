"""``kubectl rds`` against a real API server, under the roles that people are given."""

from __future__ import annotations

import json

import pytest

from tests.ring.cluster import Cluster, StaticVolume
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator
from tests.ring.installation import NAMESPACE
from tests.ring.plugin import VIEWER, Plugin, through_kubectl
from tests.ring.proxy import Proxy
from tests.ring.records import attach_to, detach_from, make_record, migrate
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
