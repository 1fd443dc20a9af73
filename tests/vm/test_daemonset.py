"""The DaemonSet's pod of the image, run by a real kubelet and containerd as it will be on every node."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest
import urllib3

from tests.image.building import Image, built
from tests.ring.api import Object
from tests.ring.cluster import DRIVER
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import NAMESPACE, NODE, resources
from tests.ring.processes import LOOPBACK, LOOPBACK_FROM_GUESTS
from tests.ring.waiting import eventually
from tests.vm.cluster import DISK, MOUNTED, RealCluster
from tests.vm.guests import Guest
from tests.vm.kubelets import NodeKubelet
from tests.vm.node_plugin import METRICS_PORT
from tests.vm.site import Site

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MACHINE = "node-d"
POD = "rds-csi-node-d"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
AUTHORITY = "kube-root-ca.crt"
"""A ConfigMap that the controller manager keeps in every namespace of a cluster; this ring's does not."""

IMPORT_SECONDS = 600.0
READY_SECONDS = 600.0


@pytest.fixture(scope="module")
def image() -> Image:
    """The image, built where the cache does not hold it."""
    return built()


@pytest.fixture(scope="module")
def kubelet(guests: dict[str, Guest], plane: ControlPlane, image: Image) -> Iterator[NodeKubelet]:
    """A node with room for the image, which it has."""
    guest = guests[MACHINE].start()
    kubelet = NodeKubelet(guest, plane).start()
    guest.sh(f"ctr --namespace k8s.io images import {image.archive}", timeout=IMPORT_SECONDS)
    yield kubelet
    guest.stop()


@pytest.fixture(scope="module")
def node_pod(kubelet: NodeKubelet, plane: ControlPlane, image: Image) -> Iterator[Object]:
    """The node plugin's pod, Ready."""
    data = {"ca.crt": plane.authority.certificate_pem.decode()}
    metadata = {"name": AUTHORITY, "namespace": NAMESPACE}
    plane.api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    plane.api.create(pod(plane, image))
    eventually("the node plugin's pod is ready", lambda: ready(plane, kubelet), timeout=READY_SECONDS, interval=0.5)
    yield plane.api.get("Pod", POD, NAMESPACE)
    plane.api.delete("Pod", POD, NAMESPACE)
    eventually("the node plugin's pod is gone", lambda: plane.api.find("Pod", POD, NAMESPACE) is None, timeout=120)


@pytest.fixture
def own(plane: ControlPlane, kubelet: NodeKubelet, node_pod: Object, installation: Site) -> Iterator[RealCluster]:
    """This test's own claims and pods on that node, with the shim and its sidecars."""
    cluster = RealCluster(plane.api, {MACHINE: kubelet})
    yield cluster
    cluster.leave()
    cluster.clean_up()


def pod(plane: ControlPlane, image: Image) -> Object:
    """Return the DaemonSet's pod with the image that is here, and what a cluster adds: account and API server."""
    (daemon_set,) = (body for body in resources() if body["kind"] == "DaemonSet")
    template = copy.deepcopy(daemon_set["spec"]["template"])
    spec = template["spec"]
    (container,) = spec["containers"]
    container["image"] = image.name
    container["env"] += [
        {"name": "KUBERNETES_SERVICE_HOST", "value": LOOPBACK_FROM_GUESTS},
        {"name": "KUBERNETES_SERVICE_PORT", "value": plane.url.rsplit(":", 1)[1]},
    ]
    container["volumeMounts"].append({"name": "account", "mountPath": ACCOUNT, "readOnly": True})
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": AUTHORITY, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    spec["volumes"].append({"name": "account", "projected": {"sources": sources}})
    metadata = {"name": POD, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**spec, "nodeName": MACHINE}}


def ready(plane: ControlPlane, kubelet: NodeKubelet) -> bool:
    body = plane.api.get("Pod", POD, NAMESPACE)
    conditions = {condition["type"]: condition["status"] for condition in body["status"].get("conditions", [])}
    assert conditions.get("Ready") == "True", said(plane, kubelet)
    return True


def said(plane: ControlPlane, kubelet: NodeKubelet) -> str:
    """Return what is to be seen of a pod that is not ready."""
    status = plane.api.get("Pod", POD, NAMESPACE)["status"].get("containerStatuses", [])
    if not any(one.get("started") for one in status):
        return json.dumps(status)
    return json.dumps(status) + kubelet.logs(NAMESPACE, POD, NODE)[-2000:]


def metrics(kubelet: NodeKubelet) -> str:
    with urllib3.PoolManager(retries=False, timeout=30.0) as pool:
        return pool.request("GET", f"http://{LOOPBACK}:{kubelet.guest.ports[METRICS_PORT]}/metrics").data.decode()


def test_the_pod_of_the_image_registers_the_driver_with_its_kubelet(node_pod: Object, plane: ControlPlane) -> None:
    (driver,) = plane.api.get("CSINode", MACHINE)["spec"]["drivers"]
    assert (driver["name"], driver["nodeID"]) == (DRIVER, MACHINE)
    (status,) = node_pod["status"]["containerStatuses"]
    assert status["restartCount"] == 0


def test_it_serves_a_disk_to_a_pod_of_the_machine(own: RealCluster, installation: Site) -> None:
    volume = installation.provision(own)
    pod = own.pod(MACHINE, volume.claim)
    own.wait_running(pod)
    own.exec(pod, f"printf 'through the image' | dd of={DISK} bs=512 count=1 conv=sync oflag=direct 2> /dev/null")
    assert own.exec(pod, f"dd if={DISK} bs=512 count=1 iflag=direct 2> /dev/null | head -c 17") == "through the image"
    own.delete_pod(pod)
    own.wait_nodes(volume.handle, [], timeout=120)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_it_makes_and_mounts_file_systems_where_the_machine_sees_them(own: RealCluster, installation: Site, fs_type: str) -> None:
    volume = installation.provision(own, block=False, fs_type=fs_type)
    pod = own.pod(MACHINE, volume.claim)
    own.wait_running(pod)
    own.exec(pod, f"echo kept > {MOUNTED}/file; sync")
    assert f" {fs_type} " in own.exec(pod, f"grep ' {MOUNTED} ' /proc/self/mountinfo")
    own.delete_pod(pod)
    again = own.pod(MACHINE, volume.claim)
    own.wait_running(again)
    assert own.exec(again, f"cat {MOUNTED}/file").strip() == "kept"
    own.delete_pod(again)
    own.wait_nodes(volume.handle, [], timeout=120)


def test_nothing_is_left_on_the_machine(own: RealCluster, kubelet: NodeKubelet) -> None:
    assert "/volumeDevices/" not in kubelet.guest.sh("cat /proc/self/mountinfo")
    assert DRIVER + "/pvc-" not in kubelet.guest.sh("cat /proc/self/mountinfo")
    assert "rds_csi_nvme_connections_active 0.0" in metrics(kubelet)
