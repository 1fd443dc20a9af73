"""``kubectl rds`` as people run it, under an account that has one of the roles that ``manifests/`` ships for them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tests.ring.api import Object
from tests.ring.controlplane import ControlPlane, Gateway
from tests.ring.driver import COMMANDS
from tests.ring.installation import NAMESPACE
from tests.ring.processes import Process

VIEWER = "rds-csi-viewer"
RELEASER = "rds-csi-releaser"
DOCTOR = "rds-csi-doctor"


class Plugin:
    """The plugin of one person. A person's account lies in the namespace of the installation, so that the audit log has it."""

    def __init__(self, plane: ControlPlane, *roles: str, through: Gateway | None = None) -> None:
        self._plane = plane
        self.account = f"person-{'-'.join(roles) or 'without-roles'}"
        self.kubeconfig = plane.kubeconfig_for(NAMESPACE, self.account, through=through)
        for role in roles:
            bind(plane, role, self.account)

    def argv(self, *arguments: str) -> list[str]:
        return [str(COMMANDS / "kubectl-rds"), f"--kubeconfig={self.kubeconfig}", *arguments]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        environment = {**os.environ, **(env or {})}
        return subprocess.run(self.argv(*arguments), capture_output=True, text=True, check=False, timeout=60, env=environment)

    def page(self, *arguments: str, status: int = 0) -> str:
        """Return what it prints for people; it must end with ``status``."""
        done = self.run(*arguments)
        assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *arguments: str, status: int = 0) -> Any:
        """Return what it prints for programs."""
        return json.loads(self.page(*arguments, "-o", "json", status=status))

    def volume(self, handle: str) -> Object:
        """Return what ``status`` says of a volume."""
        return next(one for one in self.json("status")["volumes"] if one["volume"] == handle)

    def findings(self, handle: str) -> dict[str, Object]:
        """Return what ``status`` says is wrong with a volume, by kind."""
        return {one["kind"]: one for one in self.json("status")["findings"] if one["volume"] == handle}

    def checks(self, *arguments: str) -> dict[str, Object]:
        """Return the checks of ``doctor`` by their names."""
        return {one["name"]: one for one in self.json("doctor", *arguments)["checks"]}

    def watching(self, *arguments: str) -> Process:
        """Return a process that goes on; its log has what it prints."""
        log = self._plane.logs / f"plugin-{os.urandom(4).hex()}.log"
        return Process("kubectl-rds", self.argv(*arguments), log)


def bind(plane: ControlPlane, role: str, account: str) -> None:
    """Bind every role of that name, in the cluster and in the namespace of the installation, to an account."""
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
    for kind, namespace in (("ClusterRole", None), ("Role", NAMESPACE)):
        if plane.api.find(kind, role, namespace) is None:
            continue
        metadata: Object = {"name": f"{account}-{role}", **({"namespace": namespace} if namespace else {})}
        plane.api.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
                "subjects": subjects,
            }
        )


def through_kubectl(plane: ControlPlane, plugin: Plugin, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``kubectl rds``: kubectl finds ``kubectl-rds`` in PATH."""
    argv = [str(plane.binaries["kubectl"]), "rds", *arguments]
    env = {**os.environ, "PATH": f"{COMMANDS}:{os.environ['PATH']}", "KUBECONFIG": str(plugin.kubeconfig)}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=env)
