"""A real control plane on the loopback interface: etcd, kube-apiserver with RBAC, kube-controller-manager."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import urllib3
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.ring.api import Api, ApiError, Object, Unreachable
from tests.ring.audit import POLICY
from tests.ring.binaries import CONTROL_PLANE, ensure
from tests.ring.certificates import Authority, write_key
from tests.ring.processes import LOOPBACK, LOOPBACK_FROM_GUESTS, Process, free_port

ISSUER = "https://kubernetes.default.svc"
TOKEN_SECONDS = 24 * 3600
CONTROLLERS = (
    "persistentvolume-attach-detach-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
    "volumeattributesclass-protection-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "pod-garbage-collector-controller",
    "taint-eviction-controller",
    "clusterrole-aggregation-controller",
)


WORKLOADS = ("deployment-controller", "replicaset-controller", "daemonset-controller", "disruption-controller")
"""What makes pods of an installation; most tests start its processes themselves."""


class Gateway(Protocol):
    """Something before the API server that speaks for it under a certificate of the same authority."""

    @property
    def url(self) -> str:
        """Where it listens, as ``https://host:port``."""
        ...


class ControlPlane:
    """One control plane with its data, keys and logs in ``folder``. A context manager; ready when entered.

    The parts can be killed and started again one by one, on the same port with the same data: ``plane.apiserver.kill()`` and
    ``plane.apiserver.start()``.
    """

    def __init__(self, folder: Path, *, controllers: Sequence[str] = CONTROLLERS) -> None:
        self.folder = folder
        self._controllers = controllers
        self.logs = folder / "logs"
        self.audit_log = folder / "audit.log"
        self.binaries = ensure(CONTROL_PLANE)
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(folder / "pki")
        self._port = free_port()
        self.url = f"https://{LOOPBACK}:{self._port}"
        self.kubeconfig = self.kubeconfig_of("ring-admin", "system:masters")
        self.api = Api.from_kubeconfig(self.kubeconfig)
        etcd_port = free_port()
        self.etcd = self._etcd(etcd_port)
        self.apiserver = self._apiserver(etcd_port)
        self.controller_manager = self._controller_manager()

    def start(self) -> Self:
        """Start all three; on return the API server is ready and the controllers run."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.etcd.start()
            self.apiserver.start()
            self.controller_manager.start()
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End all three at once; a graceful stop of the API server would hold its port for many seconds."""
        for process in (self.controller_manager, self.apiserver, self.etcd):
            process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def make_service_account(self, namespace: str, name: str) -> None:
        """Create a ServiceAccount, and its namespace, where they are missing; it may do nothing until a role is bound to it."""
        _create_once(self.api, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        _create_once(self.api, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})

    def token_for(self, namespace: str, name: str) -> str:
        """Return a fresh token of a ServiceAccount, good for a day (TokenRequest API)."""
        self.make_service_account(namespace, name)
        answer = self.api.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_SECONDS}},
        )
        return str(answer["status"]["token"])

    def kubeconfig_for(self, namespace: str, name: str, *, through: Gateway | None = None) -> Path:
        """Write a kubeconfig that makes its holder a ServiceAccount, with a real token; ``through`` a proxy where one is named."""
        server = through.url if through else self.url
        file = self.folder / f"{namespace}-{name}{'-' + server.rsplit(':', 1)[1] if through else ''}.kubeconfig"
        return self._write_kubeconfig(file, server, namespace, {"token": self.token_for(namespace, name)})

    def api_for(self, namespace: str, name: str, *, through: Gateway | None = None, timeout: float = 30.0) -> Api:
        """Return a client that acts as a ServiceAccount."""
        return Api.from_kubeconfig(self.kubeconfig_for(namespace, name, through=through), timeout=timeout)

    def kubeconfig_of(self, user: str, group: str, *, through: Gateway | None = None) -> Path:
        """Write a kubeconfig that makes its holder a user in a group, with a client certificate."""
        certificate, key = self.authority.client(user, group)
        credentials = {
            "client-certificate-data": base64.b64encode(certificate.read_bytes()).decode(),
            "client-key-data": base64.b64encode(key.read_bytes()).decode(),
        }
        return self._write_kubeconfig(
            self.folder / f"{user}.kubeconfig", through.url if through else self.url, "default", credentials
        )

    def _write_kubeconfig(self, file: Path, server: str, namespace: str, user: dict[str, str]) -> Path:
        config: Object = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "ring",
            "contexts": [{"name": "ring", "context": {"cluster": "ring", "user": "ring", "namespace": namespace}}],
            "clusters": [
                {
                    "name": "ring",
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": base64.b64encode(self.authority.certificate_pem).decode(),
                    },
                }
            ],
            "users": [{"name": "ring", "user": user}],
        }
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(config))
        return file

    def _etcd(self, port: int) -> Process:
        client, peer = f"http://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{free_port()}"
        argv: list[str | Path] = [
            self.binaries["etcd"],
            "--name=ring",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=ring={peer}",
            # One member need not wait long for the votes of others.
            "--heartbeat-interval=50",
            "--election-timeout=250",
            "--log-level=warn",
        ]
        return Process("etcd", argv, self.logs / "etcd.log", ready=lambda: answers(f"{client}/health"))

    def _apiserver(self, etcd_port: int) -> Process:
        addresses = [LOOPBACK, "10.0.0.1", LOOPBACK_FROM_GUESTS]
        certificate, key = self.authority.server("kube-apiserver", addresses, ["localhost", "kubernetes.default.svc"])
        signing = ec.generate_private_key(ec.SECP256R1())
        private = write_key(self.folder / "pki" / "service-accounts.key", signing)
        public = self.folder / "pki" / "service-accounts.pub"
        public.write_bytes(
            signing.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        policy = self.folder / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(POLICY))
        argv: list[str | Path] = [
            self.binaries["kube-apiserver"],
            f"--etcd-servers=http://{LOOPBACK}:{etcd_port}",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.certificate}",
            "--authorization-mode=RBAC",
            # Pods need no ServiceAccount here; there is no node lifecycle controller that would take the not-ready taint off again.
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            "--allow-privileged",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit_log}",
            "--profiling=false",
        ]
        return Process("kube-apiserver", argv, self.logs / "kube-apiserver.log", ready=self._api_ready)

    def _api_ready(self) -> bool:
        try:
            return self.api.request("GET", "/readyz", timeout=5.0) == {"text": "ok"}
        except (ApiError, Unreachable):
            return False

    def _controller_manager(self) -> Process:
        port = free_port()
        certificate, key = self.authority.server("kube-controller-manager")
        argv: list[str | Path] = [
            self.binaries["kube-controller-manager"],
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={','.join(self._controllers)}",
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            "--authentication-skip-lookup",
            # A claim that came before its volume is looked at again after so long (default 15 s).
            "--pvclaimbinder-sync-period=2s",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--profiling=false",
        ]
        return Process(
            "kube-controller-manager",
            argv,
            self.logs / "kube-controller-manager.log",
            ready=lambda: answers(f"https://{LOOPBACK}:{port}/healthz", self.authority.certificate),
        )


def answers(url: str, authority: Path | None = None) -> bool:
    with urllib3.PoolManager(ca_certs=str(authority) if authority else None, retries=False, timeout=5.0) as pool:
        try:
            return pool.request("GET", url).status == 200
        except urllib3.exceptions.HTTPError:
            return False


def _create_once(api: Api, body: Object) -> None:
    try:
        api.create(body)
    except ApiError as error:
        if error.status != 409:
            raise
