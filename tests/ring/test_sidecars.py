# ruff: noqa: N802
"""The sidecars work under the roles that are shipped for each of them, before a driver that says yes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import pytest

from rds_csi.spec import csi_pb2, csi_pb2_grpc
from tests.ring.cluster import DRIVER, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import NAMESPACE
from tests.ring.sidecars import csi_attacher, csi_provisioner, socket_path

stubs: Any = csi_pb2_grpc


class Agreeable(stubs.IdentityServicer, stubs.ControllerServicer):  # type: ignore[misc]
    """A CSI driver that remembers what it was asked and says yes, except to nodes in ``refused``."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.refused: set[str] = set()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version="0")

    def GetPluginCapabilities(self, request: Any, context: Any) -> Any:
        service = csi_pb2.PluginCapability.Service(type="CONTROLLER_SERVICE")
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=[csi_pb2.PluginCapability(service=service)])

    def Probe(self, request: Any, context: Any) -> Any:
        return csi_pb2.ProbeResponse()

    def ControllerGetCapabilities(self, request: Any, context: Any) -> Any:
        kind = csi_pb2.ControllerServiceCapability
        kinds: tuple[Any, ...] = ("CREATE_DELETE_VOLUME", "PUBLISH_UNPUBLISH_VOLUME")
        return csi_pb2.ControllerGetCapabilitiesResponse(capabilities=[kind(rpc=kind.RPC(type=name)) for name in kinds])

    def CreateVolume(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        volume = csi_pb2.Volume(volume_id=request.name, capacity_bytes=request.capacity_range.required_bytes)
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


@pytest.fixture(scope="module")
def driver(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agreeable]:
    """The driver, with a provisioner and an attacher beside it."""
    driver, folder = Agreeable(), tmp_path_factory.mktemp("csi")
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    stubs.add_IdentityServicer_to_server(driver, server)
    stubs.add_ControllerServicer_to_server(driver, server)
    socket = socket_path(folder)
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    provisioner = csi_provisioner(installed, socket, folder, leader_election=True)
    attacher = csi_attacher(installed, socket, folder, leader_election=True)
    with provisioner, attacher:
        yield driver
        logs = provisioner.output() + attacher.output()
    server.stop(None).wait()
    # Events of the provisioner are best effort: a missing rule for them would only be logged.
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
    claim = cluster.make_claim(cluster.make_storage_class(volumeBindingMode="WaitForFirstConsumer"))
    chosen = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}
    cluster.api.patch("PersistentVolumeClaim", claim, chosen, cluster.namespace)
    cluster.wait_bound(claim)


def test_one_sidecar_of_several_leads(driver: Agreeable, installed: ControlPlane) -> None:
    leases = {lease["metadata"]["name"] for lease in installed.api.list("Lease", NAMESPACE)}
    assert {"external-attacher-leader-rds-csi-srvlab-io", "rds-csi-srvlab-io"} <= leases


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="too long for a unix socket"):
        socket_path(Path("/" + "x" * 110))
