"""The shim and the operator as real processes, each under its own ServiceAccount with the rules that ``manifests/`` ships."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from tests.ring.controlplane import ControlPlane, Gateway, answers
from tests.ring.installation import CONTROLLER, NAMESPACE, NODE, OPERATOR
from tests.ring.processes import LOOPBACK, Process, free_port
from tests.ring.sidecars import socket_path

COMMANDS = Path(sys.executable).parent


@dataclass(frozen=True)
class Box:
    """How to reach a box over SSH (the files hold our private key and its public host key), and where volumes lie on it."""

    address: str
    port: int
    user: str
    key_file: Path
    host_key_file: Path
    base_path: str

    def options(self) -> list[str]:
        """Return the options that say so."""
        return [
            f"--rds-address={self.address}",
            f"--rds-port={self.port}",
            f"--rds-user={self.user}",
            f"--rds-key-file={self.key_file}",
            f"--rds-host-key={self.host_key_file}",
            f"--rds-volume-base-path={self.base_path}",
        ]


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of that name whose labels contain these.

        Raises:
            AssertionError: there is none; a counter that was never touched must be there at 0.
        """
        found = [sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()]
        assert found, f"no sample {name}{labels} in:\n{self.text}"
        return sum(found)

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels of every sample of that name."""
        return [dict(sample.labels) for sample in self._samples if sample.name == name]


class Served(Process):
    """A process of ours that serves /metrics, /healthz and /readyz."""

    def __init__(
        self, name: str, argv: Sequence[str | Path], log: Path, address: str, *, env: Mapping[str, str] | None = None
    ) -> None:
        self.address = address
        super().__init__(name, argv, log, env=env, ready=lambda: answers(f"http://{address}/readyz"))

    def get(self, path: str) -> tuple[int, str]:
        """GET a path; return status and body."""
        with urllib3.PoolManager(retries=False, timeout=10.0) as pool:
            answer = pool.request("GET", f"http://{self.address}{path}")
            return answer.status, answer.data.decode()

    def scrape(self) -> Metrics:
        """Return what /metrics says now."""
        status, text = self.get("/metrics")
        assert status == 200, text
        return Metrics(text)


class Shim(Served):
    """``rds-csi controller`` with a unix socket in ``folder``.

    Args:
        plane: the control plane that it talks to, ``through`` a proxy where one is named.
        folder: an empty folder for its socket and log.
        box: the box that it talks to.
        extra: further flags; a later flag wins over an earlier one.
        env: further environment variables.
    """

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        box: Box,
        *,
        name: str = "rds-csi-controller",
        through: Gateway | None = None,
        account: str = CONTROLLER,
        extra: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = socket_path(folder)
        self.endpoint = f"unix://{self.socket}"
        address = f"{LOOPBACK}:{free_port()}"
        argv: list[str | Path] = [
            COMMANDS / "rds-csi",
            "controller",
            f"--endpoint={self.endpoint}",
            *box.options(),
            f"--kubeconfig={plane.kubeconfig_for(NAMESPACE, account, through=through)}",
            f"--metrics-address={address}",
            # Most tests publish without a VolumeAttachment, which is what this looks for; those that are about it say how often.
            "--attachment-reconcile-interval=1h",
            *extra,
        ]
        super().__init__(name, argv, folder / f"{name}.log", address, env=env)
        if "--metrics-address=none" in argv:
            self.ready = self.socket.exists


class Node(Served):
    """``rds-csi node`` on this machine, which has a kubelet directory of its own in ``folder`` and no kubelet.

    It stages nothing here: what it does with a kernel of its own is asked in guests.
    """

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        node: str,
        *,
        through: Gateway | None = None,
        account: str = NODE,
        extra: Iterable[str] = (),
    ) -> None:
        registry, kubelet = folder / "registry", folder / "kubelet"
        for directory in (registry, kubelet / "plugins" / "kubernetes.io" / "csi"):
            directory.mkdir(parents=True, exist_ok=True)
        self.endpoint = f"unix://{socket_path(folder)}"
        address = f"{LOOPBACK}:{free_port()}"
        argv: list[str | Path] = [
            COMMANDS / "rds-csi",
            "node",
            f"--node-id={node}",
            f"--endpoint={self.endpoint}",
            f"--kubelet-root-dir={kubelet}",
            "--disable-registration",
            f"--kubeconfig={plane.kubeconfig_for(NAMESPACE, account, through=through)}",
            f"--metrics-address={address}",
            *extra,
        ]
        super().__init__("rds-csi-node", argv, folder / "rds-csi-node.log", address)
        self.ready = lambda: answers(f"http://{address}/healthz")


class Operator(Served):
    """``rds-operator``; several may be started, of which one becomes active."""

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        *,
        name: str = "rds-operator",
        through: Gateway | None = None,
        account: str = OPERATOR,
        box: Box | None = None,
        extra: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        address = f"{LOOPBACK}:{free_port()}"
        self.options: list[str | Path] = [
            f"--kubeconfig={plane.kubeconfig_for(NAMESPACE, account, through=through)}",
            f"--namespace={NAMESPACE}",
            *(box.options() if box else ()),
            *extra,
        ]
        argv: list[str | Path] = [
            COMMANDS / "rds-operator",
            f"--identity={name}",
            f"--metrics-address={address}",
            *self.options,
        ]
        super().__init__(name, argv, folder / f"{name}.log", address, env=env)
