# ruff: noqa: N802
"""The sidecars work under the roles that are shipped for each of them, before a driver that says yes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import pytest

from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_csi.topology import TOPOLOGY
from tests.documents import ROOT
from tests.ring.api import Object
from tests.ring.audit import Right, granted, used
from tests.ring.cluster import CLAIM, DRIVER, GIB, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import CONTROLLER, NAMESPACE, SIDECAR_ROLES, resources
from tests.ring.processes import Process
from tests.ring.sidecars import csi_attacher, csi_provisioner, csi_resizer, csi_snapshotter, socket_path
from tests.ring.snapshots import SNAPSHOT, Snapshots
from tests.ring.waiting import eventually

stubs: Any = csi_pb2_grpc


class Agreeable(stubs.IdentityServicer, stubs.ControllerServicer):  # type: ignore[misc]
    """A CSI driver that remembers what it was asked and says yes, except to nodes in ``refused``."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.refused: set[str] = set()
        self.room = 100 * GIB

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version="0")

    def GetPluginCapabilities(self, request: Any, context: Any) -> Any:
        service = csi_pb2.PluginCapability.Service(type="CONTROLLER_SERVICE")
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=[csi_pb2.PluginCapability(service=service)])

    def Probe(self, request: Any, context: Any) -> Any:
        return csi_pb2.ProbeResponse()

    def ControllerGetCapabilities(self, request: Any, context: Any) -> Any:
        kind = csi_pb2.ControllerServiceCapability
        kinds: tuple[Any, ...] = (
            "CREATE_DELETE_VOLUME",
            "PUBLISH_UNPUBLISH_VOLUME",
            "GET_CAPACITY",
            "EXPAND_VOLUME",
            "MODIFY_VOLUME",
            "CREATE_DELETE_SNAPSHOT",
            "CLONE_VOLUME",
        )
        return csi_pb2.ControllerGetCapabilitiesResponse(capabilities=[kind(rpc=kind.RPC(type=name)) for name in kinds])

    def CreateVolume(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        volume = csi_pb2.Volume(volume_id=request.name, capacity_bytes=request.capacity_range.required_bytes)
        if request.HasField("volume_content_source"):
            volume.content_source.CopyFrom(request.volume_content_source)
        return csi_pb2.CreateVolumeResponse(volume=volume)

    def DeleteVolume(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return csi_pb2.DeleteVolumeResponse()

    def ControllerPublishVolume(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        if request.node_id in self.refused:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no room for a third node")
        return csi_pb2.ControllerPublishVolumeResponse(publish_context={"nqn": request.volume_id})

    def ControllerUnpublishVolume(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return csi_pb2.ControllerUnpublishVolumeResponse()

    def GetCapacity(self, request: Any, context: Any) -> Any:
        return csi_pb2.GetCapacityResponse(available_capacity=self.room)

    def ControllerExpandVolume(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=request.capacity_range.required_bytes, node_expansion_required=True
        )

    def ControllerModifyVolume(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return csi_pb2.ControllerModifyVolumeResponse()

    def CreateSnapshot(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        snapshot = csi_pb2.Snapshot(
            snapshot_id=f"snap-{request.name}", source_volume_id=request.source_volume_id, size_bytes=GIB, ready_to_use=True
        )
        snapshot.creation_time.GetCurrentTime()
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshot)

    def DeleteSnapshot(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return csi_pb2.DeleteSnapshotResponse()


@pytest.fixture(scope="module")
def driver(
    snapshot_control: Process, snapshot_kinds: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agreeable]:
    """The driver, with all sidecars beside it."""
    driver, folder, plane = Agreeable(), tmp_path_factory.mktemp("csi"), snapshot_kinds
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    stubs.add_IdentityServicer_to_server(driver, server)
    stubs.add_ControllerServicer_to_server(driver, server)
    socket = socket_path(folder)
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    makers = (csi_provisioner, csi_attacher, csi_resizer, csi_snapshotter)
    sidecars = [make(plane, socket, folder, leader_election=True) for make in makers]
    with ExitStack() as ends:
        for sidecar in sidecars:
            ends.enter_context(sidecar)
        yield driver
        logs = "".join(sidecar.output() for sidecar in sidecars)
    server.stop(None).wait()
    # Events of the sidecars are best effort: a missing rule for them would only be logged.
    assert "forbidden" not in logs, [line for line in logs.splitlines() if "forbidden" in line]


def test_a_claim_is_bound_attached_detached_and_deleted(driver: Agreeable, cluster: Cluster) -> None:
    node = cluster.make_node()
    claim = cluster.make_claim(cluster.make_storage_class({"nvmePort": "4420"}))
    pv = cluster.wait_bound(claim)
    handle = cluster.handle_of(claim)
    pod = cluster.launcher_pod(claim, node)
    attachment = cluster.wait_attached(handle, node)
    assert attachment["status"]["attachmentMetadata"] == {"nqn": handle}
    cluster.delete_pod(pod)
    cluster.wait_detached(handle, node)
    cluster.delete_claim(claim)
    cluster.wait_volume_gone(pv)
    about_it = [request for request in driver.asked if handle in {getattr(request, name, "") for name in ("volume_id", "name")}]
    # Sidecars may ask twice.
    assert [kind for kind, _ in groupby(type(request).__name__ for request in about_it)] == [
        "CreateVolumeRequest",
        "ControllerPublishVolumeRequest",
        "ControllerUnpublishVolumeRequest",
        "DeleteVolumeRequest",
    ]


def test_the_provisioner_tells_the_driver_which_claim_it_is_for(driver: Agreeable, cluster: Cluster) -> None:
    claim = cluster.make_claim(cluster.make_storage_class())
    pv = cluster.wait_bound(claim)
    (request,) = [request for request in driver.asked if getattr(request, "name", "") == pv]
    assert request.parameters["csi.storage.k8s.io/pvc/name"] == claim
    assert request.parameters["csi.storage.k8s.io/pvc/namespace"] == cluster.namespace
    assert request.parameters["csi.storage.k8s.io/pv/name"] == pv


def test_provisioning_is_told_on_the_claim(driver: Agreeable, cluster: Cluster) -> None:
    claim = cluster.make_claim(cluster.make_storage_class())
    cluster.wait_bound(claim)
    assert cluster.wait_event(claim, "ProvisioningSucceeded")["type"] == "Normal"


def test_a_refused_attachment_shows_the_drivers_words_and_is_tried_again(driver: Agreeable, cluster: Cluster) -> None:
    node, volume = cluster.make_node(), cluster.make_static_volume()
    driver.refused.add(node)
    cluster.launcher_pod(volume.claim, node)
    cluster.wait_attach_error(volume.handle, node, "no room for a third node")
    driver.refused.clear()
    cluster.wait_attached(volume.handle, node)


def test_a_claim_that_waits_for_its_first_consumer_is_provisioned_for_the_chosen_node(driver: Agreeable, cluster: Cluster) -> None:
    node = cluster.make_node()
    storage_class = cluster.make_storage_class(volumeBindingMode="WaitForFirstConsumer")
    wait_room(cluster, storage_class, driver.room)
    claim = cluster.make_claim(storage_class)
    chosen = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}
    cluster.api.patch("PersistentVolumeClaim", claim, chosen, cluster.namespace)
    cluster.wait_bound(claim)


def room(cluster: Cluster, storage_class: str) -> list[Object]:
    """Return the capacity objects of a class."""
    return [body for body in cluster.api.list("CSIStorageCapacity", NAMESPACE) if body["storageClassName"] == storage_class]


def wait_room(cluster: Cluster, storage_class: str, size: int) -> Object:
    """Wait until one capacity object says how much room a class has; return it."""

    def published() -> Object:
        found = room(cluster, storage_class)
        assert [body["capacity"] for body in found] == [f"{size // GIB}Gi"], found
        return found[0]

    return eventually(f"{storage_class} has room for {size} bytes", published)


@pytest.mark.requirement("R56")
def test_the_scheduler_is_told_how_much_room_there_is_on_all_nodes(driver: Agreeable, cluster: Cluster) -> None:
    cluster.make_node()
    waiting = cluster.make_storage_class(volumeBindingMode="WaitForFirstConsumer", stem="waiting")
    immediate = cluster.make_storage_class(stem="immediate")
    capacity = wait_room(cluster, waiting, driver.room)
    assert capacity["nodeTopology"] == {"matchLabels": TOPOLOGY}
    (owner,) = capacity["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Deployment", CONTROLLER)
    assert room(cluster, immediate) == []
    driver.room = 42 * GIB
    # One that is made anew at each look would be missing in between.
    assert wait_room(cluster, waiting, driver.room)["metadata"]["uid"] == capacity["metadata"]["uid"]
    cluster.api.delete("StorageClass", waiting)
    eventually("no room is told of a class that is gone", lambda: room(cluster, waiting) == [])


@pytest.mark.requirement("R56")
def test_storage_capacity_is_promised_exactly_where_it_is_published(installed: ControlPlane, tmp_path: Path) -> None:
    (promise,) = [body["spec"]["storageCapacity"] for body in resources() if body["kind"] == "CSIDriver"]
    may = {right for body in resources() if body["kind"] == "Role" for right in granted(body)}
    documented = (ROOT / "docs" / "configuration.md").read_text().partition("## Sidecars")[2]
    assert promise is True
    assert Right("storage.k8s.io", "csistoragecapacities", "create") in may
    assert "--enable-capacity" in csi_provisioner(installed, tmp_path / "csi.sock", tmp_path).argv
    assert "`--enable-capacity`" in documented


def test_a_claim_is_expanded(driver: Agreeable, cluster: Cluster) -> None:
    claim = cluster.make_claim(cluster.make_storage_class())
    pv = cluster.wait_bound(claim)
    cluster.expand(claim, "2Gi")
    cluster.wait_capacity(pv, "2Gi")
    assert [request.capacity_range.required_bytes for request in asked(driver, "ControllerExpandVolumeRequest", pv)] == [2 * GIB]
    assert cluster.wait_event(claim, "FileSystemResizeRequired")["type"] == "Normal"


def test_a_claim_gets_another_class_of_attributes(driver: Agreeable, cluster: Cluster) -> None:
    first, second = (cluster.make_attributes_class({"migrationTimeoutSeconds": seconds}) for seconds in ("600", "900"))
    claim = cluster.make_claim(cluster.make_storage_class(), attributes_class=first)
    pv = cluster.wait_bound(claim)
    cluster.wait_attributes_class(pv, first)
    cluster.change_attributes_class(claim, second)
    cluster.wait_attributes_class(pv, second)
    (created,) = [request for request in driver.asked if getattr(request, "name", "") == pv]
    assert dict(created.mutable_parameters) == {"migrationTimeoutSeconds": "600"}
    (modified,) = asked(driver, "ControllerModifyVolumeRequest", pv)
    assert dict(modified.mutable_parameters) == {"migrationTimeoutSeconds": "900"}


def test_a_claim_is_snapshotted_restored_and_cloned(driver: Agreeable, cluster: Cluster, snapshots: Snapshots) -> None:
    storage_class = cluster.make_storage_class()
    claim = cluster.make_claim(storage_class)
    pv = cluster.wait_bound(claim)
    snapshot = snapshots.take(claim, snapshots.make_class())
    snapshots.wait_ready(snapshot)
    handle, content = snapshots.handle_of(snapshot), snapshots.content_of(snapshot)["metadata"]["name"]
    restored = cluster.wait_bound(cluster.make_claim(storage_class, source=(SNAPSHOT, snapshot)))
    cloned = cluster.wait_bound(cluster.make_claim(storage_class, source=(CLAIM, claim)))
    created = [request for request in driver.asked if type(request).__name__ == "CreateVolumeRequest"]
    sources = {request.name: request.volume_content_source for request in created}
    assert sources[restored].snapshot.snapshot_id == handle
    assert sources[cloned].volume.volume_id == pv
    snapshots.delete(snapshot)
    snapshots.wait_gone(snapshot, content)
    assert handle in {getattr(request, "snapshot_id", "") for request in driver.asked}


def test_one_sidecar_of_several_leads(driver: Agreeable, installed: ControlPlane) -> None:
    leases = {lease["metadata"]["name"] for lease in installed.api.list("Lease", NAMESPACE)}
    leaders = {"external-attacher-leader-rds-csi-srvlab-io", "external-snapshotter-leader-rds-csi-srvlab-io"}
    assert leaders | {"rds-csi-srvlab-io", "external-resizer-rds-csi-srvlab-io"} <= leases


RARE = {
    # A repeat of an Event raises its count.
    Right("", "events", "patch"),
}


@pytest.mark.parametrize("sidecar", sorted({name for names in SIDECAR_ROLES.values() for name in names}))
def test_a_sidecar_used_every_right_that_it_is_given(sidecar: str, driver: Agreeable, installed: ControlPlane) -> None:
    roles = [body for body in resources() if body["kind"] in {"Role", "ClusterRole"}]
    mine = [body for body in roles if sidecar in SIDECAR_ROLES.get(body["metadata"]["name"], [])]
    given = {right for body in mine for right in granted(body)}
    # What is watched comes with the watch: whether a sidecar also lists or reads it is a matter of its version.
    watched = {right for right in given if right.verb == "watch"}
    reading = {Right(right.group, right.resource, verb) for right in watched for verb in ("get", "list")}

    def nothing_left() -> bool:
        left = [right for right in given - used(installed.audit_log, sidecar) - RARE if right not in reading]
        assert not left, sorted(left)
        return True

    assert given
    eventually(f"{sidecar} has used its rights", nothing_left, timeout=15)


def asked(driver: Agreeable, kind: str, volume: str) -> list[Any]:
    """Return what the driver was asked about a volume, repeats left out."""
    requests = [request for request in driver.asked if type(request).__name__ == kind and request.volume_id == volume]
    return [request for number, request in enumerate(requests) if request not in requests[:number]]


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="too long for a unix socket"):
        socket_path(Path("/" + "x" * 110))
