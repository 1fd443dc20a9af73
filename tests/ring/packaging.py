"""Helm, and kubectl's kustomize, run as whoever installs the driver would run them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.ring.api import Object
from tests.ring.binaries import ensure
from tests.ring.installation import NAMESPACE, ROOT

MANIFESTS = ROOT / "manifests"
CHART = MANIFESTS / "chart"
EXAMPLE = MANIFESTS / "example"
VALUES = EXAMPLE / "values.yaml"
RELEASE = "rds-csi"

Key = tuple[str, str, str]
"""Kind, namespace (empty: none) and name of an object."""


class Refused(AssertionError):
    """A command failed; the message has what it said."""


def run(program: str, *arguments: str | Path, kubeconfig: Path | None = None, home: Path | None = None) -> str:
    """Run helm or kubectl, return what it printed; ``home`` keeps what helm remembers of itself.

    Raises:
        Refused: it ended with another status than 0.
    """
    environment = {**os.environ, "HOME": str(home or "/nonexistent")}
    for variable in ("KUBECONFIG", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "XDG_CACHE_HOME"):
        environment.pop(variable, None)
    if kubeconfig is not None:
        environment["KUBECONFIG"] = str(kubeconfig)
    command = [ensure([program])[program], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise Refused(f"{program} {' '.join(str(word) for word in arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def rendered_by_helm(*arguments: str | Path, values: Path = VALUES, chart: Path = CHART) -> dict[Key, Object]:
    """Return every object of the chart (``helm template``)."""
    return by_key(run("helm", "template", RELEASE, chart, "--namespace", NAMESPACE, "--values", values, *arguments))


def rendered_by_kustomize(folder: Path = EXAMPLE) -> dict[Key, Object]:
    """Return every object of a kustomization (``kubectl kustomize``)."""
    return by_key(run("kubectl", "kustomize", folder))


def by_key(text: str) -> dict[Key, Object]:
    """Return the objects of a stream of YAML documents; raises AssertionError where one comes twice."""
    found: dict[Key, Object] = {}
    for body in yaml.safe_load_all(text):
        if body:
            key = key_of(body)
            assert key not in found, f"{key} comes twice"
            found[key] = body
    return found


def key_of(body: Mapping[str, object]) -> Key:
    """Return what an object is told apart by."""
    metadata = body["metadata"]
    assert isinstance(metadata, dict)
    return str(body["kind"]), str(metadata.get("namespace", "")), str(metadata["name"])
