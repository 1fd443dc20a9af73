"""How to reach the API server as ``kubectl`` would: kubeconfig, context, namespace, impersonation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.config_exception import ConfigException

from rds_records.kubernetes_api import KubernetesApi

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
        if not _any_exists(paths) and not access.kubeconfig and "KUBERNETES_SERVICE_HOST" in environment:
            kubernetes_config.load_incluster_config(client_configuration=configuration)
            namespace = POD_NAMESPACE.read_text().strip()
        elif not _any_exists(paths):
            raise NoConnection(f"no way to reach the API server from {paths}: there is no such file; see --kubeconfig")
        else:
            loader = await kubernetes_config.load_kube_config(paths, access.context or None, configuration)
            namespace = loader.current_context["context"].get("namespace") or DEFAULT_NAMESPACE
    except (ConfigException, OSError, KeyError, TypeError, ValueError) as error:
        raise NoConnection(f"no way to reach the API server from {paths}: {error}; see --kubeconfig and --context") from error
    headers = {"Impersonate-User": access.impersonate} if access.impersonate else {}
    return KubernetesApi(configuration, timeout=access.timeout, headers=headers), access.namespace or namespace


def _any_exists(paths: str) -> bool:
    return any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path)
