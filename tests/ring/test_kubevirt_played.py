"""The played KubeVirt writes what KubeVirt was seen to write, in that order, and the cluster attaches and detaches as it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.ring.api import Api, Object, path_of
from tests.ring.cluster import Cluster
from tests.ring.kubevirt import VMI, VMIM, KubeVirt, Run, Step, Vm
from tests.ring.processes import Process

pytestmark = pytest.mark.usefixtures("attacher", "provisioner")


class Trio:
    """A VM that runs on the first of three nodes, and its disk."""

    def __init__(self, kubevirt: KubeVirt) -> None:
        self.kubevirt = kubevirt
        cluster = self.cluster = kubevirt.cluster
        self.a, self.b, self.c = (cluster.make_node(name) for name in "abc")
        self.storage_class = cluster.make_storage_class({"dualAttachPolicy": "AnyTwoNodes"})
        self.claim = self.make_claim()
        self.since = version(kubevirt.api)
        self.vm = kubevirt.run("vm", claims=[self.claim], node=self.a)
        self.handle = self.vm.handles[0]

    def make_claim(self) -> str:
        claim = self.cluster.make_claim(self.storage_class)
        self.cluster.wait_bound(claim)
        return claim

    def attached(self) -> list[str]:
        return [node for node in (self.a, self.b, self.c) if self.cluster.attachment(self.handle, node)]

    def migration(self, run: Run) -> Object:
        return self.cluster.api.get(VMIM, run.name, self.cluster.namespace)

    def migration_is_gone(self, run: Run) -> bool:
        return self.cluster.api.find(VMIM, run.name, self.cluster.namespace) is None

    def state(self) -> Object:
        state: Object = self.kubevirt.vmi(self.vm)["status"]["migrationState"]
        return state

    def pod(self, name: str) -> Object:
        return self.cluster.api.get("Pod", name, self.cluster.namespace)


@pytest.fixture
def trio(kubevirt: KubeVirt, attacher: Process, provisioner: Process) -> Trio:
    return Trio(kubevirt)


def version(api: Api) -> str:
    """Return a version to watch every kind from; the API server's cache of a kind may be younger than others."""
    found = [api.request("GET", path_of(kind), query={"limit": 1})["metadata"]["resourceVersion"] for kind in ("Pod", VMI, VMIM)]
    return str(max(int(each) for each in found))


def versions(cluster: Cluster, kind: str, since: str, name: str) -> Iterator[Object]:
    """Yield every version of an object since then, to the one that is there now or to its end."""
    found = cluster.api.find(kind, name, cluster.namespace)
    last = found["metadata"]["resourceVersion"] if found else None
    for event in cluster.api.watch(
        kind, cluster.namespace, resource_version=since, seconds=5, fieldSelector=f"metadata.name={name}"
    ):
        if event["type"] == "BOOKMARK":
            continue
        yield event["object"]
        if event["type"] == "DELETED" or event["object"]["metadata"]["resourceVersion"] == last:
            return


def first(found: Iterator[Object], what: Callable[[Object], object]) -> int:
    """Return the resourceVersion of the first version of which something is true."""
    return next(int(body["metadata"]["resourceVersion"]) for body in found if what(body))


def test_a_completed_run_is_written_in_the_measured_order(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b)
    run.until("attached")
    second = trio.cluster.attachment(trio.handle, trio.b)
    assert second is not None
    run.complete()
    cluster, since = trio.cluster, trio.since
    migrations = list(versions(cluster, VMIM, since, run.name))
    instances = list(versions(cluster, VMI, since, "vm"))
    targets = list(versions(cluster, "Pod", since, run.target.name))
    sources = list(versions(cluster, "Pod", since, run.source.name))

    def phase(name: str) -> int:
        return first(iter(migrations), lambda body: body.get("status", {}).get("phase", "") == name)

    def state(what: Callable[[Object], object]) -> int:
        return first(
            iter(instances), lambda body: what({"node": body["status"].get("nodeName"), **body["status"].get("migrationState", {})})
        )

    order = [
        phase(""),
        phase("Pending"),
        first(iter(targets), lambda _: True),
        phase("Scheduling"),
        first(iter(targets), lambda pod: pod["spec"].get("nodeName")),
        int(second["metadata"]["resourceVersion"]),
        first(iter(targets), lambda pod: pod["status"]["phase"] == "Running"),
        phase("Scheduled"),
        state(lambda state: state.get("migrationUid") == run.uid),
        phase("PreparingTarget"),
        phase("TargetReady"),
        state(lambda state: state.get("startTimestamp")),
        phase("Running"),
        state(lambda state: state["node"] == trio.b and state.get("endTimestamp") and not state.get("completed")),
        state(lambda state: state.get("completed")),
        phase("Succeeded"),
        first(iter(migrations), lambda body: "completed" in body.get("status", {}).get("migrationState", {})),
        first(iter(sources), lambda pod: pod["status"]["phase"] == "Succeeded"),
    ]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    assert trio.attached() == [trio.b]


def test_the_first_write_of_succeeded_carries_only_the_source_pod(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("Succeeded")
    assert trio.migration(run)["status"]["migrationState"] == {"sourcePod": run.source.name}
    run.until("reported")
    assert trio.migration(run)["status"]["migrationState"]["migrationUid"] == run.uid


def test_launcher_pods_look_as_kubevirt_makes_them(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("bound")
    source, target = trio.pod(run.source.name), trio.pod(run.target.name)
    for pod in (source, target):
        (owner,) = pod["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == (VMI, trio.vm.uid, True)
        assert pod["metadata"]["labels"]["kubevirt.io/created-by"] == trio.vm.uid
    assert "kubevirt.io/migrationJobUID" not in source["metadata"]["labels"]
    assert target["metadata"]["labels"]["kubevirt.io/migrationJobUID"] == run.uid
    assert target["metadata"]["annotations"]["kubevirt.io/migrationJobName"] == run.name


def test_the_targets_node_label_names_the_source(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("bound")
    target = trio.pod(run.target.name)
    assert (target["metadata"]["labels"]["kubevirt.io/nodeName"], target["spec"]["nodeName"]) == (trio.a, trio.b)


def test_the_source_of_a_second_run_carries_the_uid_of_the_first(trio: Trio) -> None:
    first_run = trio.kubevirt.migrate(trio.vm, to=trio.b).complete()
    second = trio.kubevirt.migrate(trio.vm, to=trio.c).until("bound")
    assert trio.pod(second.source.name)["metadata"]["labels"]["kubevirt.io/migrationJobUID"] == first_run.uid


def test_the_state_of_the_run_before_stays_until_hand_off(trio: Trio) -> None:
    before = trio.kubevirt.migrate(trio.vm, to=trio.b).complete()
    run = trio.kubevirt.migrate(trio.vm, to=trio.c).until("Scheduled")
    assert (trio.state()["migrationUid"], trio.state()["completed"]) == (before.uid, True)
    run.until("hand-off")
    assert trio.state()["migrationUid"] == run.uid
    assert not {"completed", "startTimestamp", "endTimestamp"} & set(trio.state())


def test_the_dead_source_pod_of_a_success_stays(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).complete()
    assert trio.pod(run.source.name)["status"]["phase"] == "Succeeded"


def test_a_source_that_is_not_unmounted_stays_attached(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("pod ended")
    assert trio.attached() == [trio.a, trio.b]
    run.complete()
    assert trio.attached() == [trio.b]


@pytest.mark.parametrize("step", ["Pending", "target pod", "Scheduling", "bound", "attached", "Scheduled"])
def test_cancelled_before_hand_off_the_migration_is_gone_at_once(trio: Trio, step: str) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until(step)
    run.cancel()
    assert trio.migration_is_gone(run)
    assert "migrationState" not in trio.kubevirt.vmi(trio.vm)["status"]
    run.complete()
    assert trio.attached() == [trio.a]


@pytest.mark.parametrize("step", ["PreparingTarget", "TargetReady"])
def test_cancelled_after_hand_off_nothing_happens_until_running(trio: Trio, step: str) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until(step).cancel()
    assert "deletionTimestamp" in trio.migration(run)["metadata"]
    run.until("Running")
    assert trio.migration(run)["status"]["phase"] == "Running"
    run.until("migration gone")
    assert trio.migration_is_gone(run)


def test_an_aborted_run_says_so_and_its_migration_is_gone(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).abort()
    assert trio.migration_is_gone(run)
    assert trio.attached() == [trio.a, trio.b]
    state = trio.state()
    assert (state["abortRequested"], state["abortStatus"], state["completed"], state["failed"]) == (True, "Succeeded", True, True)
    assert {"failureReason", "startTimestamp", "endTimestamp"} <= set(state)
    run.complete()
    assert (trio.attached(), trio.vm.node) == ([trio.a], trio.a)


@pytest.mark.parametrize("step", ["Pending", "Scheduling", "attached", "Scheduled"])
def test_failed_before_hand_off_only_the_phase_tells(trio: Trio, step: str) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until(step).fail("target pod timed out")
    assert trio.migration(run)["status"]["phase"] == "Failed"
    assert trio.migration(run)["status"]["migrationState"] == {"sourcePod": run.source.name}
    assert "migrationState" not in trio.kubevirt.vmi(trio.vm)["status"]
    run.complete()
    assert trio.attached() == [trio.a]


def test_failed_after_hand_off_is_completed_and_failed(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("TargetReady").fail("Target pod is down")
    state = trio.state()
    assert (state["completed"], state["failed"], state["failureReason"]) == (True, True, "Target pod is down")
    assert state["startTimestamp"] == state["endTimestamp"]
    assert trio.kubevirt.vmi(trio.vm)["status"]["nodeName"] == trio.a
    run.complete()
    assert trio.pod(run.target.name)["status"]["phase"] == "Failed"


def test_an_unschedulable_target_never_asks_for_the_disk(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).unschedulable()
    assert trio.migration(run)["status"]["phase"] == "Failed"
    run.complete()
    assert trio.attached() == [trio.a]


def test_back_and_forth_needs_no_new_attachment(trio: Trio) -> None:
    trio.kubevirt.migrate(trio.vm, to=trio.b).until("pod ended")
    before = {node: trio.cluster.wait_attached(trio.handle, node)["metadata"]["uid"] for node in (trio.a, trio.b)}
    back = trio.kubevirt.migrate(trio.vm, to=trio.a).until("Succeeded")
    assert {node: trio.cluster.wait_attached(trio.handle, node)["metadata"]["uid"] for node in (trio.a, trio.b)} == before
    back.complete()
    assert trio.attached() == [trio.a]


def test_hotplugged_disks_are_attached_while_the_migration_is_pending(trio: Trio) -> None:
    claim = trio.make_claim()
    trio.kubevirt.hotplug(trio.vm, claim)
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("attached")
    assert trio.migration(run)["status"]["phase"] == "Pending"
    assert trio.kubevirt.attached(trio.vm.handles, trio.b)
    (target_name, target_uid), (source_name, _) = run.target.attachment_pods[0], run.source.attachment_pods[0]
    target, source = trio.pod(target_name)["metadata"], trio.pod(source_name)["metadata"]
    assert (target["ownerReferences"][0]["kind"], target["ownerReferences"][0]["uid"]) == ("Pod", run.target.uid)
    assert target["labels"] == {"kubevirt.io": "hotplug-disk", "kubevirt.io/migrationJobUID": run.uid}
    assert source["labels"] == {"kubevirt.io": "hotplug-disk"}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in trio.pod(run.target.name)["spec"]["volumes"]]
    assert claims == [trio.claim]
    run.until("hand-off")
    assert trio.state()["targetAttachmentPodUID"] == target_uid
    run.complete()
    assert trio.kubevirt.detached(trio.vm.handles, trio.a)


def test_a_failed_runs_target_can_stay_for_good(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("Running").fail("virt-handler is dead", target_stays=True)
    assert run.next is None
    assert trio.attached() == [trio.a, trio.b]


def test_a_lost_target_stays_attached_until_it_is_taken_out_of_service(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("Running")
    trio.kubevirt.lose(trio.b)
    run.fail("connection lost")
    assert trio.attached() == [trio.a, trio.b]
    trio.kubevirt.take_out(trio.b)
    run.complete()
    assert trio.attached() == [trio.a]


def test_a_lost_source_fails_the_vm_and_the_migration_with_it(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("Running").lose_source()
    assert trio.kubevirt.vmi(trio.vm)["status"]["phase"] == "Failed"
    assert trio.migration(run)["status"]["phase"] == "Failed"
    assert trio.attached() == [trio.a, trio.b]
    run.complete()
    assert trio.attached() == [trio.a]


def test_a_target_that_is_not_ready_keeps_the_migration_in_scheduling(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).not_ready()
    assert trio.migration(run)["status"]["phase"] == "Scheduling"
    conditions = {each["type"]: each["status"] for each in trio.pod(run.target.name)["status"]["conditions"]}
    assert (trio.pod(run.target.name)["status"]["phase"], conditions["Ready"]) == ("Running", "False")
    run.cancel().complete()
    assert trio.attached() == [trio.a]


def test_a_migration_that_is_deleted_while_nobody_looks_stays_as_it_is(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b).until("attached").ask_to_cancel()
    migration = trio.migration(run)
    assert "deletionTimestamp" in migration["metadata"]
    assert migration["status"]["phase"] == "Scheduling"
    run.cancel()
    assert trio.migration_is_gone(run)


def test_a_third_node_is_refused_until_the_first_has_left(trio: Trio) -> None:
    earlier = trio.kubevirt.migrate(trio.vm, to=trio.b).until("pod ended")
    chained = trio.kubevirt.migrate(trio.vm, to=trio.c).until("bound")
    trio.cluster.wait_attach_error(trio.handle, trio.c, trio.a)
    assert not chained.advance()
    earlier.complete()
    chained.complete()
    assert (trio.attached(), trio.vm.node) == ([trio.c], trio.c)


def test_a_vm_that_is_started_again_has_another_uid(trio: Trio) -> None:
    trio.kubevirt.stop(trio.vm)
    trio.cluster.wait_detached(trio.handle, trio.a)
    again = trio.kubevirt.run("vm", claims=[trio.claim], node=trio.c)
    assert again.uid != trio.vm.uid
    assert trio.attached() == [trio.c]


def test_post_copy_is_a_mode_of_the_run(trio: Trio) -> None:
    run = trio.kubevirt.migrate(trio.vm, to=trio.b, configuration={"allowPostCopy": True}).post_copy()
    assert (trio.state()["mode"], trio.state()["migrationConfiguration"]["allowPostCopy"]) == ("PostCopy", True)
    run.complete()


def test_an_evacuation_keeps_kubevirts_limits(kubevirt: KubeVirt, attacher: Process, provisioner: Process) -> None:
    cluster = kubevirt.cluster
    a, b, c = (cluster.make_node(name) for name in "abc")
    storage_class = cluster.make_storage_class({"dualAttachPolicy": "AnyTwoNodes"})
    claims = [cluster.make_claim(storage_class) for _ in range(4)]
    for claim in claims:
        cluster.wait_bound(claim)
    vms: list[Vm] = [kubevirt.run(f"vm-{index}", claims=[claim], node=a) for index, claim in enumerate(claims)]
    evacuation = kubevirt.evacuate({vm: (b, c)[index % 2] for index, vm in enumerate(vms)})
    evacuation.complete()
    assert evacuation.most_at_once == 2
    assert all(run.name.startswith("kubevirt-evacuation-") and Step.LEFT in run.done for run in evacuation.runs)
    assert [vm.node for vm in vms] == [b, c, b, c]
