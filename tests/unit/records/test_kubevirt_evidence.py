"""A second node is admitted only for a live migration of the very VM that uses the volume."""

from __future__ import annotations

from typing import Any

import pytest

from rds_records.kubevirt_evidence import Candidates, Evidence, LiveMigration, NotExplained, Rule, candidates, explain, no_kubevirt
from rds_records.kubevirt_objects import migration_view, pod_view, vmi_view
from tests.unit.records.kubevirt import CLAIM, NAMESPACE, RUN, VM, hotplug, launcher, migration, owned, pod, pods, state, vmi

pytestmark = pytest.mark.requirement("R7")

Body = dict[str, Any]
PENDING = migration(phase="Pending")
SOURCE = launcher("src", "node-a")
TARGET = launcher("dst", "node-b", job=RUN, phase="Pending")


def evidence(
    *bodies: Body, of: Body | None = None, runs: tuple[Body, ...] = (PENDING,), claim: str = CLAIM, gone: bool = False
) -> Evidence:
    """Ask as the driver does: node-b wants what node-a holds."""
    found = candidates(pods(*bodies), claim, "node-a", "node-b")
    if not isinstance(found, Candidates):
        return found
    vm = None if gone else vmi_view(of or vmi())
    return explain(found, vm, [migration_view(run) for run in runs])


def yes(answer: Evidence) -> LiveMigration:
    assert isinstance(answer, LiveMigration), answer
    return answer


def no(answer: Evidence, rule: Rule, *words: str) -> NotExplained:
    assert isinstance(answer, NotExplained), answer
    assert answer.rule is rule, answer
    assert [word for word in words if word not in answer.text] == []
    return answer


# yes ----------------------------------------------------------------------------------------------


def test_a_live_migration_between_the_two_nodes_is_admitted_with_all_its_names() -> None:
    run = yes(evidence(SOURCE, TARGET))
    assert (run.vmi.name, run.migration.uid) == (VM, RUN)
    assert (run.source_pod.name, run.target_pod.name) == ("virt-launcher-database-src", "virt-launcher-database-dst")
    assert (run.source_node, run.target_node) == ("node-a", "node-b")


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running"])
def test_every_phase_before_the_end_is_live(phase: str) -> None:
    yes(evidence(SOURCE, TARGET, runs=(migration(phase=phase),)))


@pytest.mark.parametrize("phase", ["WaitingForSync", "Synchronizing", "SomethingOfTheFuture"])
def test_unknown_phases_of_migrations_are_live(phase: str) -> None:
    yes(evidence(SOURCE, TARGET, runs=(migration(phase=phase),)))


def test_a_pod_in_an_unknown_phase_counts() -> None:
    yes(evidence(SOURCE, launcher("dst", "node-b", job=RUN, phase="Unknown")))
    no(evidence(SOURCE, TARGET, pod("backup", "node-a", phase="Unknown")), Rule.FOREIGN_POD)


def test_a_hotplugged_disk_is_explained_by_the_launcher_pods_that_own_its_pods() -> None:
    source, target = launcher("src", "node-a", claims=()), launcher("dst", "node-b", claims=(), job=RUN, phase="Pending")
    run = yes(evidence(source, target, hotplug(source), hotplug(target, job=RUN)))
    assert (run.source_pod.name, run.target_pod.name) == (source["metadata"]["name"], target["metadata"]["name"])


def test_a_hotplug_pod_without_its_launcher_proves_nothing() -> None:
    source, target = launcher("src", "node-a", claims=()), launcher("dst", "node-b", claims=(), job=RUN)
    no(evidence(source, hotplug(source), hotplug(target, job=RUN)), Rule.NO_TARGET_POD, "hp-volume")
    elsewhere = launcher("dst", "node-c", claims=(), job=RUN)
    no(evidence(source, hotplug(source), elsewhere, hotplug(target, job=RUN)), Rule.NO_TARGET_POD, "hp-volume")


def test_each_disk_of_a_vm_with_several_is_explained_by_the_same_migration() -> None:
    claims = ("root", "data", "logs")
    source, target = launcher("src", "node-a", claims=claims), launcher("dst", "node-b", claims=claims, job=RUN)
    assert {yes(evidence(source, target, claim=claim)).migration.uid for claim in claims} == {RUN}


def test_other_vms_of_the_namespace_that_migrate_the_same_way_do_not_matter() -> None:
    other = [
        launcher("src", "node-a", vmi="mail", claims=("mail-root",)),
        launcher("dst", "node-b", vmi="mail", claims=("mail-root",), job="run-9"),
    ]
    assert yes(evidence(*other, SOURCE, TARGET, runs=(migration("run-9", vmi="mail"), PENDING))).vmi.name == VM


def test_a_source_that_was_the_target_of_an_earlier_run_is_no_target_now() -> None:
    source = launcher("src", "node-a", job="run-0")
    run = yes(evidence(source, TARGET, runs=(migration("run-0", phase="Succeeded"), PENDING)))
    assert run.migration.uid == RUN


def test_dead_launcher_pods_of_earlier_runs_are_passed_over() -> None:
    dead = [
        launcher("old1", "node-b", phase="Succeeded"),
        launcher("old2", "node-b", job="run-0", phase="Failed"),
        launcher("old3", "node-a", phase="Succeeded"),
    ]
    assert yes(evidence(*dead, SOURCE, TARGET)).target_pod.name.endswith("dst")
    no(evidence(*dead, SOURCE), Rule.NO_TARGET_POD, "no running pod on node node-b")


def test_the_target_of_a_failed_run_that_never_went_does_not_hide_the_new_one() -> None:
    stuck = launcher("old", "node-b", job="run-0")
    run = yes(evidence(SOURCE, stuck, TARGET, runs=(migration("run-0", phase="Failed"), PENDING)))
    assert run.target_pod.name.endswith("dst")


def test_the_node_label_of_the_target_pod_misleads_and_is_not_read() -> None:
    label = {"kubevirt.io/nodeName": "node-a"}
    yes(evidence(SOURCE, launcher("dst", "node-b", job=RUN, labels=label)))
    no(evidence(SOURCE, launcher("dst", "node-c", job=RUN, labels={"kubevirt.io/nodeName": "node-b"})), Rule.NO_TARGET_POD)


def test_of_two_live_migrations_of_one_vm_the_one_that_made_the_pod_counts() -> None:
    runs = (migration("run-2", phase="Pending"), migration(phase="Running"))
    assert yes(evidence(SOURCE, TARGET, runs=runs)).migration.uid == RUN
    assert yes(evidence(SOURCE, TARGET, runs=runs[::-1])).migration.uid == RUN


def test_what_the_vm_says_of_its_previous_run_does_not_matter() -> None:
    before = vmi(migrationState=state("run-0", completed=True, failed=True))
    yes(evidence(SOURCE, TARGET, of=before))


def test_a_source_pod_that_is_being_deleted_still_holds_the_volume() -> None:
    going = launcher("src", "node-a", deleting=True)
    assert yes(evidence(going, TARGET)).source_pod.deleting
    assert yes(evidence(going, launcher("src2", "node-a"), TARGET)).source_pod.name.endswith("src2")


# no -----------------------------------------------------------------------------------------------


def test_nobody_on_the_asking_node() -> None:
    no(evidence(SOURCE), Rule.NO_TARGET_POD, CLAIM, "node-b")
    no(evidence(SOURCE, launcher("dst", "", job=RUN)), Rule.NO_TARGET_POD)
    no(evidence(), Rule.NO_TARGET_POD)


def test_an_ordinary_pod_on_the_asking_node_is_named() -> None:
    no(evidence(SOURCE, pod("backup", "node-b")), Rule.NO_TARGET_POD, "backup", "runs no virtual machine")


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_a_foreign_pod_with_the_same_claim_on_either_node_is_named(node: str) -> None:
    answer = no(evidence(SOURCE, TARGET, pod("backup", node)), Rule.FOREIGN_POD, "backup", node, VM)
    assert answer.vmi is not None
    assert (answer.vmi.name, answer.namespace) == (VM, NAMESPACE)


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_another_vm_with_the_same_claim_on_either_node_is_foreign(node: str) -> None:
    no(evidence(SOURCE, TARGET, launcher("x", node, vmi="copycat")), Rule.FOREIGN_POD, "virt-launcher-copycat-x", node)


def test_a_foreign_pod_that_goes_still_writes_on_the_holding_node_but_never_starts_on_the_asking_one() -> None:
    no(evidence(SOURCE, TARGET, pod("backup", "node-a", deleting=True)), Rule.FOREIGN_POD)
    yes(evidence(SOURCE, TARGET, pod("backup", "node-b", deleting=True)))


def test_foreign_pods_that_ended_or_use_other_claims_or_other_nodes_do_not_matter() -> None:
    yes(
        evidence(SOURCE, TARGET, pod("done", "node-a", phase="Succeeded"), pod("else", "node-b", claims=("x",)), pod("c", "node-c"))
    )


def test_a_generic_ephemeral_volume_is_a_claim_too() -> None:
    body = pod("database", "node-a", claims=())
    body["spec"]["volumes"].append({"name": "root", "ephemeral": {}})
    no(evidence(SOURCE, TARGET, body), Rule.FOREIGN_POD)


def test_two_vms_with_look_alike_labels_are_two_vms() -> None:
    impostor = launcher("dst", "node-b", vmi="database2", job=RUN)
    impostor["metadata"]["labels"] |= {"vm.kubevirt.io/name": VM, "vmi.kubevirt.io/id": VM}
    no(evidence(SOURCE, impostor), Rule.NOT_SAME_VM, "virt-launcher-database-src", "virt-launcher-database2-dst")


def test_a_stopped_and_restarted_vm_of_the_same_name_is_another_one() -> None:
    again = launcher("dst", "node-b", vmi_uid="newer-uid")
    no(evidence(SOURCE, again), Rule.NOT_SAME_VM)
    no(evidence(SOURCE, TARGET, of=vmi(uid="newer-uid")), Rule.NOT_SAME_VM, "stopped and started again")
    ended = launcher("src", "node-a", phase="Succeeded")
    no(evidence(ended, again), Rule.NO_SOURCE_POD, "no running pod any more", "node-a has to be detached")


def test_a_cdi_importer_on_the_holding_node_is_no_vm() -> None:
    importer = owned(pod("importer-prime-1", "node-a"), "PersistentVolumeClaim", "prime-1", "claim-uid")
    no(evidence(importer, launcher("first", "node-b")), Rule.NO_SOURCE_POD, "importer-prime-1", "runs no virtual machine")


def test_labels_without_an_owner_prove_nothing() -> None:
    forged = pod("virt-launcher-database-dst", "node-b")
    forged["metadata"]["labels"] = TARGET["metadata"]["labels"]
    no(evidence(SOURCE, forged), Rule.NO_TARGET_POD, "virt-launcher-database-dst")
    no(evidence(SOURCE, TARGET, forged), Rule.FOREIGN_POD)
    forged["spec"]["nodeName"] = "node-a"
    no(evidence(forged, TARGET), Rule.NO_SOURCE_POD)


@pytest.mark.parametrize("label", ["kubevirt.io", "kubevirt.io/created-by"])
def test_an_owner_without_the_labels_that_kubevirt_sets_proves_nothing_either(label: str) -> None:
    forged = launcher("dst", "node-b", job=RUN)
    forged["metadata"]["labels"][label] = "forged"
    no(evidence(SOURCE, forged), Rule.NO_TARGET_POD)


def test_only_the_controller_among_the_owners_counts_and_only_of_kubevirts_group() -> None:
    guest, other = launcher("dst", "node-b", job=RUN), launcher("dst", "node-b", job=RUN)
    guest["metadata"]["ownerReferences"][0]["controller"] = False
    other["metadata"]["ownerReferences"][0]["apiVersion"] = "example.com/v1"
    no(evidence(SOURCE, guest), Rule.NO_TARGET_POD)
    no(evidence(SOURCE, other), Rule.NO_TARGET_POD)


def test_a_forged_job_label_names_no_migration_of_this_vm() -> None:
    forged = launcher("dst", "node-b", job="run-of-mail")
    answer = evidence(SOURCE, forged, runs=(migration("run-of-mail", vmi="mail"),))
    no(answer, Rule.NO_LIVE_MIGRATION, "run-of-mail", "does not exist")


def test_a_pod_that_no_migration_made_is_no_target() -> None:
    no(evidence(SOURCE, launcher("dst", "node-b")), Rule.NO_LIVE_MIGRATION, "no migration made", f"{NAMESPACE}/{VM}")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_migration_that_is_over_admits_nobody(phase: str) -> None:
    no(evidence(SOURCE, TARGET, runs=(migration(phase=phase),)), Rule.NO_LIVE_MIGRATION, f"migration-{RUN}", phase)


def test_a_migration_that_is_being_deleted_admits_nobody() -> None:
    no(evidence(SOURCE, TARGET, runs=(migration(deleting=True),)), Rule.NO_LIVE_MIGRATION, "being deleted")


def test_a_retry_after_the_migration_was_cancelled_is_refused() -> None:
    no(evidence(SOURCE, TARGET, runs=()), Rule.NO_LIVE_MIGRATION, RUN, "does not exist")
    going = launcher("dst", "node-b", job=RUN, deleting=True)
    no(evidence(SOURCE, going, runs=()), Rule.NO_TARGET_POD, "virt-launcher-database-dst", "being deleted")


def test_a_vm_that_is_gone_does_not_migrate() -> None:
    no(evidence(SOURCE, TARGET, gone=True), Rule.NO_LIVE_MIGRATION, "does not exist any more")


@pytest.mark.parametrize("direction", [{"sendTo": {"migrationID": "m", "connectURL": "u"}}, {"receive": {"migrationID": "m"}}])
def test_a_decentralised_migration_is_refused(direction: Body) -> None:
    no(evidence(SOURCE, TARGET, runs=(migration(**direction),)), Rule.DECENTRALIZED, f"migration-{RUN}")


def test_without_kubevirt_nothing_migrates() -> None:
    no(no_kubevirt("node-a", "node-b"), Rule.NO_KUBEVIRT, "node-a", "node-b")


# views --------------------------------------------------------------------------------------------


def test_a_bare_object_has_a_view() -> None:
    assert pod_view({"metadata": {"namespace": "n", "name": "p"}}).claims == frozenset()
    assert migration_view({"metadata": {"namespace": "n", "name": "m"}}).live
    bare = vmi_view({"metadata": {"namespace": "n", "name": "v"}})
    assert (bare.node, bare.guest_memory_bytes, bare.migrated_volume_bytes, bare.migration) == ("", 0, 0, None)


@pytest.mark.parametrize(
    ("domain", "size"),
    [
        ({"memory": {"guest": "2Gi"}, "resources": {"requests": {"memory": "1Gi"}}}, 2 << 30),
        ({"resources": {"requests": {"memory": "1500M"}}}, 1_500_000_000),
        ({"memory": {"guest": "0.1"}}, 1),
        ({"memory": {"guest": "nonsense"}}, 0),
        ({"memory": {"guest": "inf"}}, 0),
    ],
)
def test_guest_memory_is_what_the_guest_has_else_what_is_requested(domain: Body, size: int) -> None:
    body = vmi()
    body["spec"]["domain"] = domain
    assert vmi_view(body).guest_memory_bytes == size


def test_volumes_that_migrate_with_the_vm_are_added_up() -> None:
    volumes = [{"volumeName": f"d{number}", "sourcePVCInfo": {"capacity": {"storage": "5Gi"}}} for number in range(2)]
    assert vmi_view(vmi(migratedVolumes=[*volumes, {"volumeName": "x"}])).migrated_volume_bytes == 10 << 30


def test_times_that_cannot_be_read_are_no_times() -> None:
    told = vmi_view(vmi(migrationState=state(startTimestamp="soon", endTimestamp="2026-11-21T12:00:00Z"))).migration
    assert told is not None
    assert (told.start, told.end and told.end.hour) == (None, 12)
