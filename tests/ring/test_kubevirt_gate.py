"""Under ``dualAttachPolicy: KubeVirt``, the default, only a live migration of the VM that uses the volume gets a second node.

Black box: KubeVirt is played, its pods are attached by the attach/detach controller and csi-attacher, and the driver reads what it
wants through a proxy that can be in its way. No operator runs, so what is in a record was written by the driver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.ring.api import Object, path_of
from tests.ring.cluster import RECORD
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Shim
from tests.ring.installation import resources
from tests.ring.kubevirt import JOB_LABEL, VMI, VMIM, KubeVirt, Run, Vm, install_kinds, remove_kinds
from tests.ring.proxy import Proxy
from tests.ring.rpc import Csi, Refused, code_of
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

pytestmark = [pytest.mark.requirement("R7"), pytest.mark.usefixtures("attacher", "provisioner")]

AGAIN = "tried again (csi-attacher: at most 5 minutes later)"


@pytest.fixture
def proxy(shared_proxy: Proxy) -> Iterator[Proxy]:
    """The proxy before the driver's API server, as good as new."""
    yield shared_proxy
    shared_proxy.clear()


@pytest.fixture(scope="module")
def shim(
    installed: ControlPlane, box: SimulatedBox, shared_proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shim]:
    """The shim of this file, which csi-attacher and csi-provisioner talk to."""
    with Shim(installed, tmp_path_factory.mktemp("gate"), reach(box), through=shared_proxy) as shim:
        yield shim


@pytest.fixture(scope="module")
def csi(shim: Shim) -> Iterator[Csi]:
    with Csi(shim.endpoint) as csi:
        yield csi


class Vms:
    """Three nodes, claims of the default policy, and how the driver answers about them."""

    def __init__(self, kubevirt: KubeVirt, csi: Csi) -> None:
        self.kubevirt = kubevirt
        self.csi = csi
        self.cluster = kubevirt.cluster
        self.api = kubevirt.api
        self.namespace = kubevirt.namespace
        self.a, self.b, self.c = (self.cluster.make_node(name) for name in "abc")
        self.storage_class = self.cluster.make_storage_class()

    def claims(self, count: int = 1) -> list[str]:
        claims = [self.cluster.make_claim(self.storage_class) for _ in range(count)]
        for claim in claims:
            self.cluster.wait_bound(claim)
        return claims

    def run(self, name: str = "vm", *, disks: int = 1, labels: Mapping[str, str] | None = None) -> Vm:
        """Start a VM on node a."""
        return self.kubevirt.run(name, claims=self.claims(disks), node=self.a, labels=labels)

    def status(self, handle: str) -> Object:
        record = self.cluster.record(handle)
        assert record is not None
        status: Object = record["status"]
        return status

    def window(self, handle: str) -> Object:
        window: Object = self.status(handle)["migration"]
        return window

    def refused(self, handle: str, node: str, rule: str, *words: str) -> str:
        """Ask for the node and be told no by this rule; return the whole message."""
        with pytest.raises(Refused) as caught:
            self.csi.publish(handle, node)
        assert caught.value.code == "FAILED_PRECONDITION", caught.value
        assert [word for word in (handle, node, "KubeVirt", f" {rule}: ", AGAIN, *words) if word not in caught.value.message] == []
        return caught.value.message

    def refusal(self, handle: str, node: str) -> Object:
        """Return what the record says of a node that was refused."""
        noted: list[Object] = self.status(handle)["refusals"]
        return next(refusal for refusal in noted if refusal["nodeName"] == node)

    def readable(self, handle: str) -> tuple[str, str, str]:
        """Return status, reason and message of the condition EvidenceReadable."""
        conditions: list[Object] = self.status(handle)["conditions"]
        found = next(condition for condition in conditions if condition["type"] == "EvidenceReadable")
        return found["status"], found["reason"], found["message"]

    def pod(self, name: str) -> Object:
        return self.api.get("Pod", name, self.namespace)

    def patch_migration(self, run: Run, body: Object, subresource: str | None = None) -> None:
        self.api.patch(VMIM, run.name, body, self.namespace, subresource)

    def put_pod(self, stem: str, node: str, vm: Vm, *, owner: Vm | None, job: str = "") -> str:
        """Put a pod with the labels of a VM's launcher and its disks on a node, owned by a VM or by nobody; return its name."""
        owned = {"apiVersion": "kubevirt.io/v1", "kind": VMI, "name": owner.name, "uid": owner.uid} if owner else None
        labels = {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": (owner or vm).uid, "vm.kubevirt.io/name": vm.name}
        body: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.cluster.name(stem), "namespace": self.namespace, "labels": labels},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "compute", "image": "x", "volumeDevices": [{"name": "disk", "devicePath": "/dev/x"}]}],
                "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": vm.disks[0].claim}}],
            },
        }
        if owned:
            body["metadata"]["ownerReferences"] = [{**owned, "controller": True}]
        if job:
            labels[JOB_LABEL] = job
        return str(self.api.create(body)["metadata"]["name"])


@pytest.fixture
def vms(kubevirt: KubeVirt, csi: Csi, proxy: Proxy) -> Vms:
    return Vms(kubevirt, csi)


# Admitted -----------------------------------------------------------------------------------------


def test_a_live_migration_gets_its_second_node_and_the_window_names_it(vms: Vms) -> None:
    vm = vms.run()
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    window = vms.window(vm.handles[0])
    assert window["vmi"] == {"namespace": vms.namespace, "name": "vm", "uid": vm.uid}
    assert (window["migrationName"], window["migrationUID"]) == (run.name, run.uid)
    assert (window["sourcePod"], window["targetPod"]) == (run.source.name, run.target.name)
    assert (window["sourceNode"], window["targetNode"], window["liveNode"]) == (vms.a, vms.b, vms.a)
    assert (window["origin"], "deadlineTime" in window) == ("Publish", False)
    run.complete()
    assert vms.cluster.wait_phase(vm.handles[0], "Attached")["status"]["nodes"] == vms.b


def test_the_record_knows_from_the_start_which_claim_it_is_for(vms: Vms) -> None:
    (claim,) = vms.claims()
    assert vms.status(vms.cluster.handle_of(claim))["claimRef"] == {"namespace": vms.namespace, "name": claim}


def test_a_volume_of_the_go_driver_is_imported_with_its_claim_and_migrates(vms: Vms) -> None:
    volume = vms.cluster.make_static_volume(pv=vms.cluster.name("static"))
    vm = vms.kubevirt.run("vm", claims=[volume.claim], node=vms.a)
    claim = vms.cluster.claim(volume.claim)["metadata"]
    assert vms.status(volume.handle)["claimRef"] == {
        "namespace": vms.namespace,
        "name": volume.claim,
        "uid": claim["uid"],
    }
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    assert vms.window(volume.handle)["migrationUID"] == run.uid


@pytest.mark.parametrize("hint", [None, {"namespace": "default", "name": "another"}], ids=["no hint", "wrong hint"])
def test_a_record_that_does_not_know_its_claim_admits_a_migration_all_the_same(vms: Vms, hint: Object | None) -> None:
    vm = vms.run()
    vms.api.patch(RECORD, vm.handles[0], {"status": {"claimRef": hint}}, None, "status")
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    assert vms.window(vm.handles[0])["migrationUID"] == run.uid


def test_a_hotplugged_disk_follows_while_the_migration_is_pending(vms: Vms) -> None:
    vm = vms.run()
    (claim,) = vms.claims()
    vms.kubevirt.hotplug(vm, claim)
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    assert vms.api.get(VMIM, run.name, vms.namespace)["status"]["phase"] == "Pending"
    for handle in vm.handles:
        window = vms.window(handle)
        assert (window["migrationUID"], window["targetPod"]) == (run.uid, run.target.name)


def test_all_disks_of_a_vm_follow_the_same_migration(vms: Vms) -> None:
    vm = vms.run(disks=4)
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    assert {vms.window(handle)["migrationUID"] for handle in vm.handles} == {run.uid}


def test_vms_with_labels_that_look_alike_are_kept_apart(vms: Vms) -> None:
    labels = {"kubevirt.io/vm": "same", "app": "same"}
    one, other = vms.run("vm", labels=labels), vms.run("vm-2", labels=labels)
    impostor = vms.put_pod("impostor", vms.b, one, owner=other)
    vms.refused(one.handles[0], vms.b, "NotSameVM", impostor, one.launcher.name)
    vms.cluster.delete_pod(impostor)
    runs = [vms.kubevirt.migrate(vm, to=vms.b).until("bound") for vm in (one, other)]
    for run in runs:
        run.until("attached")
        window = vms.window(run.vm.handles[0])
        assert (window["migrationUID"], window["vmi"]["name"]) == (run.uid, run.vm.name)


def test_marks_of_earlier_runs_do_not_mislead(vms: Vms) -> None:
    vm = vms.run()
    vms.kubevirt.migrate(vm, to=vms.b).complete()
    assert vms.pod(vm.launcher.name)["metadata"]["labels"][JOB_LABEL], "the next source was a target"
    cancelled = vms.kubevirt.migrate(vm, to=vms.a).until("attached").cancel().complete()
    back = vms.kubevirt.migrate(vm, to=vms.a).until("attached")
    dead = vms.api.list("Pod", vms.namespace, fieldSelector=f"spec.nodeName={vms.a},status.phase=Succeeded")
    assert dead, "the source of the first run is still there, dead"
    window = vms.window(vm.handles[0])
    assert (window["migrationUID"], window["sourceNode"], window["targetPod"]) == (back.uid, vms.b, back.target.name)
    assert window["migrationUID"] != cancelled.uid


def test_of_two_live_migrations_of_a_vm_the_one_that_made_the_pod_counts(vms: Vms) -> None:
    vm = vms.run()
    vms.kubevirt.migrate(vm, to=vms.c).until("Pending")
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    vms.kubevirt.migrate(vm, to=vms.c).until("Pending")
    assert vms.window(vm.handles[0])["migrationUID"] == run.uid


@pytest.mark.parametrize("phase", ["WaitingForSync", "SomethingNew"])
def test_a_migration_in_an_unknown_phase_is_live(vms: Vms, phase: str) -> None:
    vm = vms.run()
    run = vms.kubevirt.migrate(vm, to=vms.b).until("Scheduling")
    vms.patch_migration(run, {"status": {"phase": phase}}, "status")
    run.until("attached")
    assert vms.window(vm.handles[0])["migrationUID"] == run.uid


# Refused ------------------------------------------------------------------------------------------


def test_a_node_without_a_pod_of_the_vm_is_refused(vms: Vms) -> None:
    vm = vms.run()
    vms.refused(vm.handles[0], vms.b, "NoTargetPod", vm.disks[0].claim, vms.a)


def test_the_label_that_names_a_node_is_not_believed(vms: Vms) -> None:
    vm = vms.run()
    vms.api.patch("Pod", vm.launcher.name, {"metadata": {"labels": {"kubevirt.io/nodeName": vms.b}}}, vms.namespace)
    vms.refused(vm.handles[0], vms.b, "NoTargetPod")
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    assert vms.pod(run.target.name)["metadata"]["labels"]["kubevirt.io/nodeName"] == vms.a


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_foreign_pod_with_the_claim_on_either_node_keeps_the_migration_waiting_and_is_named(vms: Vms, side: str) -> None:
    vm = vms.run()
    handle = vm.handles[0]
    run = vms.kubevirt.migrate(vm, to=vms.b).until("Scheduling")
    foreign = vms.cluster.launcher_pod(vm.disks[0].claim, {"source": vms.a, "target": vms.b}[side], stem="backup")
    vms.cluster.wait_running(foreign)
    run.until("bound")
    vms.cluster.wait_attach_error(handle, vms.b, "ForeignPod")
    message = vms.refused(handle, vms.b, "ForeignPod", foreign, "VirtualMachineInstance vm")
    noted = vms.refusal(handle, vms.b)
    assert (noted["reason"], noted["message"]) == ("NoLiveMigration", message)
    assert noted["vmi"] == {"namespace": vms.namespace, "name": "vm", "uid": vm.uid}
    vms.cluster.delete_pod(foreign)
    run.until("attached")
    assert not vms.status(handle).get("refusals")


def test_a_pod_after_its_migration_was_cancelled_is_refused(vms: Vms) -> None:
    vm = vms.run()
    run = vms.kubevirt.migrate(vm, to=vms.b).until("Scheduling").ask_to_cancel().until("bound")
    vms.refused(vm.handles[0], vms.b, "NoLiveMigration", run.name, "being deleted", f"{vms.namespace}/vm")
    vms.patch_migration(run, {"metadata": {"finalizers": None}})
    vms.refused(vm.handles[0], vms.b, "NoLiveMigration", run.uid, "does not exist", run.target.name)
    vms.kubevirt._delete_pods(run.target)
    vms.refused(vm.handles[0], vms.b, "NoTargetPod")


def test_a_forged_label_proves_nothing(vms: Vms) -> None:
    vm, other = vms.run(), vms.run("other")
    handle = vm.handles[0]
    run = vms.kubevirt.migrate(other, to=vms.b).until("attached")
    orphan = vms.put_pod("orphan", vms.b, vm, owner=None, job=run.uid)
    vms.refused(handle, vms.b, "NoTargetPod", orphan, "runs no virtual machine")
    vms.cluster.delete_pod(orphan)
    owned = vms.put_pod("forged", vms.b, vm, owner=vm, job=run.uid)
    vms.refused(handle, vms.b, "NoLiveMigration", owned, run.uid, "does not exist")


def test_a_decentralised_migration_is_refused(vms: Vms) -> None:
    vm = vms.run()
    spec = {"sendTo": {"migrationID": "m-1", "connectURL": "10.0.0.1:9185"}}
    run = vms.kubevirt.migrate(vm, to=vms.b, spec=spec).until("bound")
    vms.refused(vm.handles[0], vms.b, "DecentralizedMigration", run.name)


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Something that waits while the test goes on."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool


def test_a_vm_that_was_stopped_and_started_elsewhere_waits_for_its_old_node(vms: Vms, aside: ThreadPoolExecutor) -> None:
    vm = vms.run()
    (handle,), (claim,) = vm.handles, [disk.claim for disk in vm.disks]
    vms.kubevirt.stop(vm, unmount=False)
    again: Future[Vm] = aside.submit(vms.kubevirt.run, "vm", claims=[claim], node=vms.b)
    vms.cluster.wait_attach_error(handle, vms.b, "NoSourcePod")
    vms.refused(handle, vms.b, "NoSourcePod", "not detached yet", vms.a)
    vms.cluster.release_detach(vms.a, handle)
    assert again.result().uid != vm.uid
    assert vms.status(handle)["nodes"] == vms.b


def test_a_vm_waits_for_the_importer_that_filled_its_disk_on_another_node(vms: Vms, aside: ThreadPoolExecutor) -> None:
    (claim,) = vms.claims()
    handle = vms.cluster.handle_of(claim)
    importer = vms.cluster.launcher_pod(claim, vms.a, stem="importer", labels={"app": "containerized-data-importer"})
    vms.cluster.wait_attached(handle, vms.a)
    started: Future[Vm] = aside.submit(vms.kubevirt.run, "vm", claims=[claim], node=vms.b)
    vms.cluster.wait_attach_error(handle, vms.b, "NoSourcePod")
    vms.refused(handle, vms.b, "NoSourcePod", importer)
    vms.cluster.delete_pod(importer)
    started.result()
    assert vms.status(handle)["nodes"] == vms.b


def test_a_claim_that_was_made_anew_under_its_old_name_does_not_open_the_volume(vms: Vms) -> None:
    vm = vms.run()
    (claim,), (handle,) = [disk.claim for disk in vm.disks], vm.handles
    vms.api.patch("PersistentVolume", handle, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
    vms.cluster.delete_claim(claim)
    vms.api.patch("PersistentVolumeClaim", claim, {"metadata": {"finalizers": None}}, vms.namespace)
    vms.refused(handle, vms.b, "NoClaim", f"{vms.namespace}/{claim}", "does not exist any more")
    vms.cluster.make_claim(vms.storage_class, name=claim)
    vms.refused(handle, vms.b, "NoClaim", f"{vms.namespace}/{claim}", "another one")


@pytest.mark.requirement("R34")
@pytest.mark.parametrize("gone", [False, True], ids=["down", "removed"])
def test_an_old_source_that_is_dead_and_blocks_the_next_migration_is_named(vms: Vms, gone: bool) -> None:
    vm = vms.run()
    vms.kubevirt.migrate(vm, to=vms.b).until("Succeeded")
    vms.kubevirt.lose(vms.a)
    if gone:
        vms.cluster.delete_node(vms.a)
    vms.kubevirt.migrate(vm, to=vms.c).until("bound")
    words = f"there is no Node {vms.a} any more" if gone else f"node {vms.a} is not Ready"
    message = vms.cluster.wait_attach_error(vm.handles[0], vms.c, words)
    assert ("NodeStatusUnknown" in message) is not gone
    for word in (f"{vms.a} and {vms.b}, the limit", f"from {vms.a} to {vms.b}"):
        assert word in message
    assert f"node {vms.b} is not Ready" not in message


# Trouble ------------------------------------------------------------------------------------------

READS = {
    "the volume": "/persistentvolumes/",
    "the claim": "/persistentvolumeclaims/",
    "pods": "/pods$",
    "the VM": "/virtualmachineinstances/",
    "its migrations": "/virtualmachineinstancemigrations$",
}


@pytest.mark.parametrize(("what", "path"), READS.items(), ids=READS)
def test_what_cannot_be_read_is_unavailable_and_a_condition_until_it_can(vms: Vms, proxy: Proxy, what: str, path: str) -> None:
    vm = vms.run()
    (handle,) = vm.handles
    with proxy.fail("GET", path, status=503):
        run = vms.kubevirt.migrate(vm, to=vms.b).until("bound")
        vms.cluster.wait_attach_error(handle, vms.b, "could not be found out")
        assert vms.csi.publish_code(handle, vms.b) == "UNAVAILABLE"
        status, reason, message = vms.readable(handle)
        assert (status, reason) == ("False", "Unavailable")
        assert "refused by the test's proxy" in message
        assert vms.refusal(handle, vms.b)["reason"] == "EvidenceUnavailable"
    run.until("attached")
    assert vms.readable(handle)[:2] == ("True", "Readable")


def test_an_api_server_that_does_not_answer_is_unavailable(vms: Vms, proxy: Proxy) -> None:
    vm = vms.run()
    with proxy.drop("GET", "/pods$"):
        assert vms.csi.publish_code(vm.handles[0], vms.b) == "UNAVAILABLE"
    vms.refused(vm.handles[0], vms.b, "NoTargetPod")
    assert vms.readable(vm.handles[0])[:2] == ("True", "Readable")


def test_a_right_that_is_missing_is_named(vms: Vms) -> None:
    vm = vms.run()
    (handle,) = vm.handles
    role = next(body for body in resources() if (body["kind"], body["metadata"]["name"]) == ("ClusterRole", "rds-csi-controller"))
    less = [rule for rule in role["rules"] if "pods" not in rule["resources"]]
    assert len(less) == len(role["rules"]) - 1
    try:
        vms.api.patch("ClusterRole", "rds-csi-controller", {"rules": less})
        # The authorizer learns of it a moment later.
        eventually("pods may not be listed", lambda: vms.csi.publish_code(handle, vms.b) == "UNAVAILABLE")
        run = vms.kubevirt.migrate(vm, to=vms.b).until("bound")
        vms.cluster.wait_attach_error(handle, vms.b, f"may not list pods in namespace {vms.namespace}")
        status, reason, message = vms.readable(handle)
        assert (status, reason) == ("False", "Forbidden")
        assert "grant it, the rule is in manifests/base/rbac-controller.yaml" in message
    finally:
        vms.api.patch("ClusterRole", "rds-csi-controller", {"rules": role["rules"]})
    run.until("attached")
    assert vms.readable(handle)[:2] == ("True", "Readable")


def test_without_kubevirt_the_refusal_names_the_other_policy_until_kubevirt_is_there(vms: Vms) -> None:
    remove_kinds(vms.api)
    try:
        (claim,) = vms.claims()
        handle = vms.cluster.handle_of(claim)
        first = vms.cluster.launcher_pod(claim, vms.a)
        vms.cluster.wait_attached(handle, vms.a)
        vms.refused(handle, vms.b, "NoKubeVirt", f"set spec.dualAttachPolicy: AnyTwoNodes on the record {handle}")
        vms.cluster.delete_pod(first)
        vms.cluster.wait_detached(handle, vms.a)
    finally:
        install_kinds(vms.api)
    vm = vms.kubevirt.run("vm", claims=[claim], node=vms.a)
    vms.refused(handle, vms.c, "NoTargetPod")
    run = vms.kubevirt.migrate(vm, to=vms.b).until("attached")
    assert vms.window(handle)["migrationUID"] == run.uid


# What it costs ------------------------------------------------------------------------------------


def reads(proxy: Proxy, since: int) -> list[str]:
    """Return what the driver has read since then of what a migration shows itself in."""
    kinds = ("/pods", "/persistentvolume", "/apis/kubevirt.io")
    return [seen.path for seen in proxy.seen[since:] if seen.method == "GET" and any(kind in seen.path for kind in kinds)]


def test_only_a_second_node_costs_reads_and_six_at_most(vms: Vms, proxy: Proxy) -> None:
    vm = vms.run()
    (handle,) = vm.handles
    before = len(proxy.seen)
    vms.csi.publish(handle, vms.a)
    assert reads(proxy, before) == []
    vms.refused(handle, vms.b, "NoTargetPod")
    assert len(reads(proxy, before)) == 5
    run = vms.kubevirt.migrate(vm, to=vms.b)
    assert run.until("Scheduling").done
    before = len(proxy.seen)
    run.until("attached")
    found = reads(proxy, before)
    assert len(found) % 6 == 0, "admitted at the first try, or not long after"
    assert sorted(found[-6:]) == sorted(
        [
            f"/api/v1/persistentvolumes/{handle}",
            path_of("PersistentVolumeClaim", vm.disks[0].claim, vms.namespace),
            *[path_of("Pod", None, vms.namespace)] * 2,
            path_of(VMI, "vm", vms.namespace),
            path_of(VMIM, None, vms.namespace),
        ]
    )
    before = len(proxy.seen)
    vms.csi.publish(handle, vms.b)
    assert reads(proxy, before) == []


@pytest.mark.requirement("R35")
def test_the_disks_of_a_vm_do_not_wait_for_each_other(vms: Vms, proxy: Proxy) -> None:
    vm = vms.run(disks=3)
    stuck, *others = vm.handles
    with proxy.freeze("GET", f"/persistentvolumes/{stuck}$") as frozen:
        run = vms.kubevirt.migrate(vm, to=vms.b).until("bound")
        frozen.wait_hit()
        for handle in others:
            vms.cluster.wait_attached(handle, vms.b, timeout=8.0)
        assert vms.status(stuck)["nodes"] == vms.a
    run.until("attached")
    assert {vms.window(handle)["migrationUID"] for handle in vm.handles} == {run.uid}


@pytest.mark.requirement("R35")
def test_a_call_that_is_given_up_while_evidence_is_read_frees_the_next(vms: Vms, proxy: Proxy) -> None:
    vm = vms.run()
    (handle,) = vm.handles
    with proxy.freeze("GET", f"/persistentvolumes/{handle}$", times=1) as frozen:
        assert code_of(lambda: vms.csi.publish(handle, vms.b, timeout=1.0)) == "DEADLINE_EXCEEDED"
        frozen.wait_hit()
        vms.refused(handle, vms.b, "NoTargetPod")
