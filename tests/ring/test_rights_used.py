"""Least rights: every rule that ``manifests/`` ships for shim and operator is used, so none can be left out.

That none is missing is shown by every other test of the ring: all processes run under these rules.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.ring.api import ApiError, Object
from tests.ring.audit import Right, granted, used
from tests.ring.cluster import RECORD, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator
from tests.ring.installation import CONTROLLER, NAMESPACE, OPERATOR, resources
from tests.ring.kubevirt import KubeVirt
from tests.ring.rpc import Csi, Refused
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

RARE = {
    # Only after a lost compare-and-swap: the record is read again.
    Right("rds.csi.srvlab.io", "volumeattachmentrecords", "get"),
}


def role(kind: str, name: str) -> Object:
    """Return a role as it is shipped."""
    return next(body for body in resources() if body["kind"] == kind and body["metadata"]["name"] == name)


def live_through_everything(cluster: Cluster, csi: Csi) -> None:
    """Create, migrate and delete a volume; import another, refuse a node, delete its record by hand."""
    first, second, third = (cluster.make_node() for _ in range(3))
    csi.delete(csi.create(f"pvc-{uuid.uuid4()}").volume_id)
    handle = csi.create(f"pvc-{uuid.uuid4()}").volume_id
    csi.publish(handle, first)
    csi.publish(handle, second)
    csi.unpublish(handle, first)
    csi.unpublish(handle, second)
    csi.delete(handle)
    eventually("the record of the deleted volume is gone", lambda: cluster.record(handle) is None)

    static = cluster.make_static_volume()
    csi.publish(static.handle, first)
    cluster.patch_record(static.handle, {"dualAttachPolicy": "AnyTwoNodes"})
    csi.publish(static.handle, second)
    cluster.wait_event(static.claim, "MigrationStarted")
    with pytest.raises(Refused, match="FAILED_PRECONDITION"):
        csi.publish(static.handle, third)
    cluster.wait_event(static.claim, "AttachmentConflict")
    repeat_refusal(cluster, static.handle)
    eventually("the repeat is counted", lambda: cluster.wait_event(static.claim, "AttachmentConflict")["count"] > 1)
    csi.unpublish(static.handle)
    cluster.wait_phase(static.handle, "Detached")
    cluster.api.delete(RECORD, static.handle)
    eventually("a record deleted by hand goes", lambda: cluster.record(static.handle) is None)


def migrate_a_virtual_machine(kubevirt: KubeVirt) -> None:
    """Migrate a virtual machine to the end, and cancel another migration, so that its object is gone when its node leaves."""
    cluster = kubevirt.cluster
    first, second = cluster.make_node(), cluster.make_node()
    claim = cluster.make_claim(cluster.make_storage_class())
    cluster.wait_bound(claim)
    vm = kubevirt.run("vm", claims=[claim], node=first)
    run = kubevirt.migrate(vm, to=second).until("Succeeded")
    (handle,) = vm.handles
    cluster.wait_record(handle, "concluded", lambda status: status.get("migration", {}).get("result") == "Succeeded")
    run.complete()
    kubevirt.migrate(vm, to=first).until("attached").cancel().complete()
    cluster.wait_record(handle, "cancelled", lambda status: status["history"][-1].get("reason") == "MigrationGone")


def repeat_refusal(cluster: Cluster, handle: str) -> None:
    """Raise a refusal's count, as the shim does at most once a minute."""

    def raised() -> bool:
        record = cluster.record(handle)
        assert record is not None
        for refusal in record["status"]["refusals"]:
            refusal["count"] += 1
        try:
            cluster.api.replace(record, "status")
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    eventually("the refusal's count is raised", raised)


def unused(plane: ControlPlane, account: str, *roles: Object) -> set[Right]:
    """Return what the roles grant and the account has never used."""
    return {right for role in roles for right in granted(role)} - used(plane.audit_log, account) - RARE


def assert_all_used(plane: ControlPlane, account: str, *roles: Object) -> None:
    """Wait until the audit log has seen the account use everything; a Lease is renewed every two seconds only."""

    def nothing_left() -> bool:
        left = unused(plane, account, *roles)
        assert not left, f"{account} was never seen to use {sorted(left)}"
        return True

    eventually(f"{account} has used its rights", nothing_left, timeout=15)


@pytest.fixture(scope="module")
def operator(
    installed: ControlPlane, snapshot_kinds: ControlPlane, box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """The only operator while this test runs; it looks at the box, and soon calls something an orphan."""
    extra = ["--inventory-interval=0.5s", "--orphan-grace=1s"]
    with Operator(installed, tmp_path_factory.mktemp("operator"), box=reach(box), extra=extra) as operator:
        yield operator


def lose_a_volume(cluster: Cluster, csi: Csi, box: SimulatedBox) -> None:
    """Let the cluster forget a volume, until it is an orphan, and then the box."""
    known = cluster.make_static_volume(bound=False)
    handle = csi.create(f"pvc-{uuid.uuid4()}").volume_id
    cluster.forget(handle)
    eventually(
        "the orphan is reported",
        lambda: [
            event
            for event in cluster.events("rds-operator", reason="OrphanDetected", kind="Deployment", namespace=NAMESPACE)
            if handle in event["message"]
        ],
    )
    disk = box.disks()[handle]
    box.run(f"/disk remove [find slot={handle}]")
    box.run(f'/file remove [find name="{disk["file_path"].lstrip("/")}"]')
    assert cluster.api.get("PersistentVolume", known.pv)


@pytest.mark.usefixtures("attacher", "provisioner")
def test_shim_and_operator_use_every_right_that_they_are_given(
    kubevirt: KubeVirt, csi: Csi, operator: Operator, installed: ControlPlane, box: SimulatedBox
) -> None:
    live_through_everything(kubevirt.cluster, csi)
    lose_a_volume(kubevirt.cluster, csi, box)
    migrate_a_virtual_machine(kubevirt)
    assert_all_used(installed, CONTROLLER, role("ClusterRole", "rds-csi-controller"))
    assert_all_used(installed, OPERATOR, role("ClusterRole", "rds-operator"), role("Role", "rds-operator-lease"))
