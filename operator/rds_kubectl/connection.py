"""How to reach the API server as ``kubectl`` would: kubeconfig, context, namespace, impersonation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration

from rds_records.kubernetes_api import (
    KubernetesApi,
    UnusableConfiguration,
    any_exists,
    check_certificates,
    one_line_for_bad_configuration,
)

DEFAULT_NAMESPACE: Final = "default"
POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds its own namespace (Kubernetes documentation, "Accessing the Kubernetes API from a Pod")."""


class NoConnection(Exception):
    """There is no usable kubeconfig; the message says what to give."""


@dataclass(frozen=True, slots=True)
class Access:
    """What of kubectl's own flags was given; ``timeout`` in seconds."""

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""
    impersonate: str = ""
    timeout: float = 10.0


def kubeconfig_paths(access: Access, environment: Mapping[str, str]) -> str:
    """Return the kubeconfig files that count, as kubectl chooses them: the flag, KUBECONFIG, ``~/.kube/config``."""
    return access.kubeconfig or environment.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")


async def connect(access: Access, environment: Mapping[str, str] = os.environ) -> tuple[KubernetesApi, str]:
    """Return a connection and the namespace that counts where none is named; raises NoConnection."""
    paths = kubeconfig_paths(access, environment)
    configuration = Configuration()
    try:
        with one_line_for_bad_configuration(paths):
            namespace = await _load(paths, access, environment, configuration)
            check_certificates(configuration)
    except UnusableConfiguration as error:
        raise NoConnection(f"{error}; see --kubeconfig and --context") from error
    headers = {"Impersonate-User": access.impersonate} if access.impersonate else {}
    return KubernetesApi(configuration, timeout=access.timeout, headers=headers), access.namespace or namespace


async def _load(paths: str, access: Access, environment: Mapping[str, str], configuration: Configuration) -> str:
    """Fill the configuration; return the namespace that counts where none is named."""
    if any_exists(paths):
        loader = await kubernetes_config.load_kube_config(paths, access.context or None, configuration)
        return loader.current_context["context"].get("namespace") or DEFAULT_NAMESPACE
    if access.kubeconfig or "KUBERNETES_SERVICE_HOST" not in environment:
        raise UnusableConfiguration("there is no such file")
    kubernetes_config.load_incluster_config(client_configuration=configuration)
    return POD_NAMESPACE.read_text().strip()
