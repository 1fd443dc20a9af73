"""What nobody in the cluster names is reported, and deleted by hand alone; what somebody may still need never is (R52)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from rds_operator.orphans import Kind, Suspect
from rds_operator.suspects import CONFIG_MAP, KEY, decode
from tests.ring.cluster import Cluster, StaticVolume
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import COMMANDS, Operator, Shim
from tests.ring.installation import NAMESPACE
from tests.ring.rpc import Csi
from tests.ring.snapshots import Snapshots
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

BASE = "storage-pool/metal-csi"
EXTRA = ("--inventory-interval=0.5s", "--orphan-grace=2s")

pytestmark = [pytest.mark.usefixtures("snapshot_kinds")]


@pytest.fixture(scope="module")
def orphan_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """The box that the operator of this file looks at."""
    with SimulatedBox(tmp_path_factory.mktemp("orphans"), version="7.24") as box:
        yield box


@pytest.fixture(scope="module")
def client(installed: ControlPlane, orphan_box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Csi]:
    """CSI calls to a shim of that box."""
    with Shim(installed, tmp_path_factory.mktemp("shim"), reach(orphan_box)) as shim, Csi(shim.endpoint) as csi:
        yield csi


@pytest.fixture(scope="module")
def deployment(installed: ControlPlane) -> str:
    """The uid of the operator's Deployment, which nobody runs here."""
    return str(installed.api.get("Deployment", "rds-operator", NAMESPACE)["metadata"]["uid"])


@pytest.fixture(scope="module")
def looking(
    installed: ControlPlane,
    snapshot_kinds: ControlPlane,
    orphan_box: SimulatedBox,
    deployment: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Operator]:
    """An operator that looks twice a second, with a grace period of two seconds."""
    folder = tmp_path_factory.mktemp("operator")
    with Operator(installed, folder, box=reach(orphan_box), extra=EXTRA) as operator:
        yield operator


@pytest.fixture
def known(cluster: Cluster) -> StaticVolume:
    """A volume that the cluster names: without any, nothing is judged."""
    return cluster.make_static_volume(bound=False)


@pytest.fixture
def lost(client: Csi, cluster: Cluster, orphan_box: SimulatedBox, known: StaticVolume) -> Iterator[str]:
    """A volume on the box that the cluster has forgotten."""
    handle = str(client.create(f"pvc-{uuid4()}").volume_id)
    cluster.forget(handle)
    yield handle
    orphan_box.run(f"/disk remove [find slot={handle}]")
    orphan_box.run(f"/disk/btrfs/subvolume/remove [find where name={handle}]")


def command(operator: Operator, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``rds-operator orphans`` as somebody in the operator's pod would."""
    argv = [str(one) for one in (COMMANDS / "rds-operator", *operator.options, "orphans", *arguments)]
    return subprocess.run(argv, input=f"{answer}\n", capture_output=True, text=True, check=False, timeout=60)


def kept(cluster: Cluster) -> dict[str, Suspect]:
    """Return the list as the active operator keeps it."""
    body = cluster.api.find("ConfigMap", CONFIG_MAP, NAMESPACE)
    return decode(body["data"][KEY]) if body else {}


def wait_orphan(cluster: Cluster, name: str) -> Suspect:
    """Wait until it is past its grace period and reported."""

    def reported() -> Suspect | None:
        one = kept(cluster).get(name)
        return one if one and one.reported else None

    return eventually(f"{name} is an orphan", reported)


def rounds(operator: Operator, count: int) -> None:
    def last() -> float:
        return operator.scrape().value("rds_csi_inventory_last_success_timestamp_seconds", source="files")

    for _ in range(count):
        before = eventually("the box is looked at", last)
        eventually("a round has ended", lambda before=before: last() > before)  # type: ignore[misc]


def test_a_volume_that_the_cluster_forgot_is_reported_once_and_stays(
    lost: str, looking: Operator, cluster: Cluster, orphan_box: SimulatedBox, deployment: str
) -> None:
    # A round that was under way when the volume was made may have seen its subvolume and not yet its disk.
    thing = wait_orphan(cluster, lost).thing
    assert (thing.kind, thing.slot, thing.size) == (Kind.DISK, lost, 2**30)

    def event() -> Any:
        found = cluster.events("rds-operator", reason="OrphanDetected", kind="Deployment", namespace=NAMESPACE)
        return [one for one in found if lost in one["message"]]

    reported = eventually("it is reported", event)
    assert (len(reported), reported[0]["type"], reported[0]["involvedObject"]["uid"]) == (1, "Warning", deployment)
    eventually("it is counted", lambda: looking.scrape().value("rds_csi_orphans", kind="disk") == 1)
    assert looking.scrape().value("rds_csi_orphan_bytes") == 2**30
    rounds(looking, 4)
    assert len(event()) == 1
    assert lost in orphan_box.disks()


def test_the_list_says_what_it_is_and_since_when(lost: str, looking: Operator, cluster: Cluster) -> None:
    since = wait_orphan(cluster, lost).first_seen
    one = next(one for one in json.loads(command(looking, "-o", "json").stdout) if one["name"] == lost)
    assert (one["kind"], one["slot"], one["sizeBytes"], one["orphan"]) == ("disk", lost, 2**30, True)
    assert one["firstSeen"] == since.isoformat()
    shown = command(looking).stdout
    row = next(line for line in shown.splitlines() if line.startswith(lost))
    assert "disk" in row
    assert "1 GiB" in row
    assert "no PersistentVolume or record names it" in row
    assert "Nothing is deleted by itself" in shown


@pytest.mark.requirement("R52")
def test_what_somebody_names_is_never_on_the_list(
    client: Csi, cluster: Cluster, orphan_box: SimulatedBox, looking: Operator, known: StaticVolume, snapshots: Snapshots
) -> None:
    volume = str(client.create(f"pvc-{uuid4()}").volume_id)
    snapshot = client.snapshot(f"snapshot-{uuid4()}", volume).snapshot_id
    content = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": cluster.name("content")},
        "spec": {
            "deletionPolicy": "Retain",
            "driver": "rds.csi.srvlab.io",
            "source": {"snapshotHandle": snapshot},
            "volumeSnapshotRef": {"name": "mine", "namespace": cluster.namespace},
        },
    }
    cluster.api.create(content)
    named = cluster.make_static_volume(bound=False, attributes={"volumePath": f"/{BASE}/by-hand.img"})
    for path, slot in (
        ("/storage-pool/metal-csi-other-tenant/a.img", "tenant"),
        ("/storage-pool/boot/nixos.img", "nixos-1"),
        (f"/{BASE}/by-hand.img", named.handle),
    ):
        orphan_box.run(f"/disk add type=file file-path={path} file-size=1G slot={slot}")
    try:
        rounds(looking, 8)
        assert kept(cluster) == {}
    finally:
        cluster.api.delete("VolumeSnapshotContent", cluster.name("content"))
        for slot in ("tenant", "nixos-1", named.handle):
            orphan_box.run(f"/disk remove [find slot={slot}]")
        for name in list(orphan_box.files()):
            orphan_box.run(f'/file remove [find name="{name}"]')
        client.delete(volume)
        client.delete_snapshot(snapshot)


@pytest.mark.requirement("R52")
def test_a_snapshot_that_no_content_names_any_more_is_an_orphan(
    client: Csi, looking: Operator, known: StaticVolume, orphan_box: SimulatedBox, cluster: Cluster
) -> None:
    volume = str(client.create(f"pvc-{uuid4()}").volume_id)
    snapshot = client.snapshot(f"snapshot-{uuid4()}", volume).snapshot_id
    name = next(path.split("/")[-1] for path in orphan_box.subvolumes() if snapshot in path)
    assert wait_orphan(cluster, name).thing.kind is Kind.SNAPSHOT
    done = command(looking, "delete", name, answer=name)
    assert (done.returncode, [path for path in orphan_box.subvolumes() if snapshot in path]) == (0, []), done.stderr
    client.delete(volume)


@pytest.mark.requirement("R52")
def test_a_listing_that_is_cut_short_makes_nothing_an_orphan_and_forgets_none(
    lost: str, looking: Operator, orphan_box: SimulatedBox, cluster: Cluster
) -> None:
    since = wait_orphan(cluster, lost).first_seen
    for _ in range(9):
        orphan_box.fail_command("^/file print detail where name~", "Flags: \r\n0\r\n2\r\n")
    last = "rds_csi_inventory_last_success_timestamp_seconds"
    before = looking.scrape().value(last, source="disks")
    eventually("three rounds have ended", lambda: looking.scrape().value(last, source="disks") > before + 1)
    assert kept(cluster)[lost].first_seen == since
    rounds(looking, 2)
    assert kept(cluster)[lost].first_seen == since


def test_since_when_it_is_an_orphan_survives_the_operator(lost: str, looking: Operator, cluster: Cluster) -> None:
    since = wait_orphan(cluster, lost).first_seen
    looking.kill()
    looking.start()
    rounds(looking, 3)
    assert kept(cluster)[lost].first_seen == since
    eventually("it is counted again", lambda: looking.scrape().value("rds_csi_orphans", kind="disk") == 1)


# Deleting


def test_an_orphan_is_deleted_when_its_name_is_typed_again(
    lost: str, looking: Operator, orphan_box: SimulatedBox, cluster: Cluster
) -> None:
    wait_orphan(cluster, lost)
    done = command(looking, "delete", lost, answer=lost)
    assert done.returncode == 0, done.stderr
    assert "stop here" in done.stdout
    assert lost not in orphan_box.disks()
    assert not [name for name in (*orphan_box.files(), *orphan_box.subvolumes()) if lost in name]
    eventually("it is off the list", lambda: lost not in kept(cluster))


@pytest.mark.requirement("R52")
@pytest.mark.parametrize("answer", ["", "yes", "pvc-other"])
def test_an_orphan_stays_when_anything_else_is_typed(
    lost: str, looking: Operator, orphan_box: SimulatedBox, cluster: Cluster, answer: str
) -> None:
    wait_orphan(cluster, lost)
    refused = command(looking, "delete", lost, answer=answer)
    assert (refused.returncode, "nothing was deleted" in refused.stderr) == (1, True)
    assert lost in orphan_box.disks()


@pytest.mark.requirement("R52")
def test_what_is_named_again_at_that_moment_is_not_deleted(
    lost: str, looking: Operator, cluster: Cluster, orphan_box: SimulatedBox
) -> None:
    wait_orphan(cluster, lost)
    looking.stop()
    try:
        cluster.make_static_volume(handle=lost, bound=False)
        refused = command(looking, "delete", lost, answer=lost)
    finally:
        looking.start()
    assert (refused.returncode, "is named now" in refused.stderr) == (1, True)
    assert lost in orphan_box.disks()


@pytest.mark.requirement("R52")
def test_what_cannot_be_checked_or_is_not_on_the_list_is_not_deleted(
    lost: str, looking: Operator, orphan_box: SimulatedBox, cluster: Cluster
) -> None:
    wait_orphan(cluster, lost)
    assert "not in the list" in command(looking, "delete", "pvc-1.img", answer="pvc-1.img").stderr
    orphan_box.stop()
    refused = command(looking, "delete", lost, answer=lost)
    orphan_box.start()
    assert refused.returncode == 1
    assert lost in orphan_box.disks()


@pytest.mark.requirement("R52")
def test_what_is_not_past_its_grace_period_is_not_deleted(
    lost: str, looking: Operator, orphan_box: SimulatedBox, cluster: Cluster
) -> None:
    wait_orphan(cluster, lost)
    argv = [str(one) for one in (COMMANDS / "rds-operator", *looking.options, "--orphan-grace=24h", "orphans", "delete", lost)]
    refused = subprocess.run(argv, input=f"{lost}\n", capture_output=True, text=True, check=False, timeout=60)
    assert (refused.returncode, "grace period" in refused.stderr) == (1, True)
    assert lost in orphan_box.disks()


@pytest.mark.requirement("R52")
def test_a_cluster_without_any_volume_judges_nothing(
    client: Csi, looking: Operator, cluster: Cluster, orphan_box: SimulatedBox, known: StaticVolume
) -> None:
    handle = str(client.create(f"pvc-{uuid4()}").volume_id)
    cluster.forget(handle)
    wait_orphan(cluster, handle)
    others = [one["metadata"]["name"] for one in cluster.api.list("PersistentVolume")]
    assert others == [known.pv]
    cluster.api.delete("PersistentVolume", known.pv)
    cluster.delete_claim(known.claim)
    cluster.wait_volume_gone(known.pv)
    refused = command(looking, "delete", handle, answer=handle)
    assert (refused.returncode, "is it the right one" in refused.stderr) == (1, True)
    assert handle in orphan_box.disks()
    orphan_box.run(f"/disk remove [find slot={handle}]")
    orphan_box.run(f"/disk/btrfs/subvolume/remove [find where name={handle}]")
