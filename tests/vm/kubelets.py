"""Real kubelets: a guest becomes a node of a ring's cluster, with containerd and Kubernetes' own kubelet."""

from __future__ import annotations

import base64
import ipaddress
import shutil
from pathlib import Path
from typing import Self
from uuid import uuid4

import yaml

from tests.ring.api import Api, ApiError, Object, Unreachable
from tests.ring.binaries import NODES, ensure
from tests.ring.controlplane import ControlPlane
from tests.ring.processes import LOOPBACK, LOOPBACK_FROM_GUESTS
from tests.ring.waiting import eventually
from tests.vm.guests import SHARE, Guest
from tests.vm.images import write_images

KUBELET_PORT = 10250
GUEST_ADDRESS = ipaddress.ip_address("10.0.2.15")
"""Every guest's own address in its private network to the host."""

CONTAINERD_TOML = Path(__file__).with_name("kubelet") / "containerd.toml"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
NO_NETWORK = '{"cniVersion":"0.3.1","name":"none","type":"loopback"}'
"""Pods use the guest's network and run no CNI plugin, but without a configuration containerd says that the network is not ready."""

READY_TIMEOUT = 120.0
"""Seconds until a Node is Ready. Alone it takes about ten."""


class FromGuests:
    """The API server as guests reach it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.url = plane.url.replace(LOOPBACK, LOOPBACK_FROM_GUESTS)


class NodeKubelet:
    """containerd and kubelet of one guest, which forwards ``KUBELET_PORT``. The Node has the guest's name.

    A kubelet acts as its node, with the rules that Kubernetes ships for nodes (ClusterRole ``system:node``); it takes commands from
    whoever has a certificate of the ring's authority.

    Attributes:
        containerd: the process; it may be killed and started again.
        kubelet: the process; it may be killed and started again, its pods live on.
    """

    def __init__(self, guest: Guest, plane: ControlPlane) -> None:
        self.guest = guest
        self.plane = plane
        folder = guest.share / "kubelet" / guest.name
        folder.mkdir(parents=True, exist_ok=True)
        seen = SHARE / folder.relative_to(guest.share)
        shutil.copy(CONTAINERD_TOML, folder / "containerd.toml")
        write_images(folder / "images.tar")
        certificate, key = plane.authority.server(f"kubelet-{guest.name}")
        for name, file in (
            ("kubelet.crt", certificate),
            ("kubelet.key", key),
            ("ca.crt", plane.authority.certificate),
            ("kubeconfig", plane.kubeconfig_of(f"system:node:{guest.name}", "system:nodes", through=FromGuests(plane))),
        ):
            shutil.copy(file, folder / name)
        (folder / "kubelet.yaml").write_text(yaml.safe_dump(_configuration(seen)))
        self._images = seen / "images.tar"
        self.containerd = guest.process("containerd", ["containerd", "--config", seen / "containerd.toml"])
        self.kubelet = guest.process(
            "kubelet",
            [
                ensure(NODES)["kubelet"],
                f"--config={seen / 'kubelet.yaml'}",
                f"--kubeconfig={seen / 'kubeconfig'}",
                f"--hostname-override={guest.name}",
                f"--node-ip={GUEST_ADDRESS}",
                "--root-dir=/var/lib/kubelet",
                "--v=2",
            ],
        )
        admin = Api.from_kubeconfig(plane.kubeconfig, timeout=60.0)
        self._api = admin.at(f"https://{LOOPBACK}:{guest.ports[KUBELET_PORT]}")

    @property
    def name(self) -> str:
        """The Node's name."""
        return self.guest.name

    def launch(self) -> Self:
        """Start what does not run; on return the images are there, but the Node may not be Ready yet."""
        allow_nodes(self.plane.api)
        if not self.containerd.running:
            self.guest.sh(
                "mkdir -p /etc/cni/net.d /opt/cni/bin /run/containerd;"
                f"echo '{NO_NETWORK}' > /etc/cni/net.d/10-none.conf; rm -f {CONTAINERD_SOCKET}"
            )
            self.containerd.start()
            # A Go program takes seconds to start here, so that nothing asks containerd whether it is ready; its socket tells.
            self.guest.sh(f"until [ -S {CONTAINERD_SOCKET} ]; do sleep 0.1; done")
        if not self.kubelet.running:
            self.kubelet.start()
        self.guest.sh(f"ctr --namespace k8s.io images import --no-unpack {self._images}", timeout=READY_TIMEOUT)
        return self

    def start(self) -> Self:
        """Start both and wait until the Node is Ready."""
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until this kubelet answers and its Node is Ready; a Node outlives its kubelet, so both are asked."""
        eventually(f"the kubelet of {self.name} answers", self._healthy, timeout=READY_TIMEOUT, interval=0.2)
        eventually(f"{self.name} is Ready", self._ready, timeout=READY_TIMEOUT, interval=0.2)

    def _healthy(self) -> bool:
        try:
            return self._api.text("GET", "/healthz", timeout=5.0) == "ok"
        except (ApiError, Unreachable):
            return False

    def _ready(self) -> bool:
        node = self.plane.api.find("Node", self.name) or {}
        conditions = node.get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    # Its pods, without a way through the API server

    def logs(self, namespace: str, pod: str, container: str = "main") -> str:
        """Return what a container has said so far."""
        return self._api.text("GET", f"/containerLogs/{namespace}/{pod}/{container}")

    def exec(self, namespace: str, pod: str, script: str, container: str = "main", *, timeout: float = 60.0) -> str:
        """Run a shell script in a container and return what it said (stdout and stderr).

        Raises:
            AssertionError: its exit status is not 0.
            ApiError: the kubelet has no such container running.
        """
        mark = f"__{uuid4().hex}__"
        whole = f"({script}\n) 2>&1\nprintf '\\n%s %s\\n' {mark} $?\n"
        # The kubelet cuts the command at blanks.
        word = f"echo${{IFS}}{base64.b64encode(whole.encode()).decode()}|base64${{IFS}}-d|sh"
        said = self._api.text("POST", f"/run/{namespace}/{pod}/{container}", query={"cmd": f"/bin/sh -c {word}"}, timeout=timeout)
        output, _, status = said.rpartition(f"\n{mark} ")
        if status.strip() != "0":
            raise AssertionError(
                f"in pod {pod} on {self.name}: exit status {status.strip()!r} of:\n{script}\nwhich said:\n{output or said}"
            )
        return output

    def stats(self) -> Object:
        """Return the kubelet's summary of its pods and their volumes (``/stats/summary``)."""
        return self._api.request("GET", "/stats/summary")


def allow_nodes(api: Api) -> None:
    """Let every kubelet do what Kubernetes ships as the rules of nodes; the ring has no Node authorizer that would."""
    api.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "ring-nodes"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}],
        }
    )


def _configuration(folder: Path) -> Object:
    none = {f"{what}.{of}": "0%" for what in ("nodefs", "imagefs") for of in ("available", "inodesFree")}
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "port": KUBELET_PORT,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(folder / "ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": True,
        "enableControllerAttachDetach": True,
        "enforceNodeAllocatable": ["none"],
        "evictionHard": {"memory.available": "0%", **none},
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "makeIPTablesUtilChains": False,
        "maxPods": 40,
        "nodeStatusUpdateFrequency": "5s",
        "resolvConf": "",
        "syncFrequency": "10s",
        "tlsCertFile": str(folder / "kubelet.crt"),
        "tlsPrivateKeyFile": str(folder / "kubelet.key"),
        "volumeStatsAggPeriod": "5s",
    }
