"""What the documentation tells people to apply and to type is taken by a real API server and by kubectl."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rds_csi.parameters import parse_parameters
from tests.documents import ROOT, blocks, objects
from tests.monitoring.rules import RUNBOOKS, prometheus_rule
from tests.ring.api import ApiError, Object, path_of
from tests.ring.cluster import DRIVER, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.definitions import install_definitions, remove_definitions
from tests.ring.installation import NAMESPACE, OPERATOR
from tests.ring.records import make_record
from tests.ring.stack import BASE_PATH
from tests.ring.waiting import eventually

DEFINITIONS = Path(__file__).with_name("documents_crds.yaml")
GUIDE = "kubevirt-migration.md"
SHIPPED = [("manifests/monitoring", {**prometheus_rule(), "metadata": {"name": "rds-csi"}})]
PAGES = {f"{page}: {body['kind']} {body['metadata']['name']}": body for page, body in (*objects(), *SHIPPED)}


@pytest.fixture(scope="module", autouse=True)
def kinds(kubevirt_kinds: ControlPlane, snapshot_kinds: ControlPlane) -> Iterator[None]:
    """The kinds of CDI, KubeVirt and the Prometheus operator, and the snapshot kinds."""
    install_definitions(kubevirt_kinds.api, DEFINITIONS)
    yield
    remove_definitions(kubevirt_kinds.api, DEFINITIONS)


def place(body: Object, cluster: Cluster) -> str:
    return path_of(body["kind"], None, cluster.namespace)


def contains(whole: Any, part: Any) -> bool:
    """Return whether all that is said in ``part`` is said in ``whole`` too."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


@pytest.mark.requirement("R57")
@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_api_server_takes_and_keeps(name: str, cluster: Cluster) -> None:
    body, api = PAGES[name], cluster.api
    own = f"{place(body, cluster)}/{body['metadata']['name']}"
    api.request("POST", place(body, cluster), body, query={"fieldValidation": "Strict"})
    try:
        assert contains(api.request("GET", own), body)
    finally:
        api.request("DELETE", own)

    def gone() -> bool:
        try:
            api.request("GET", own)
        except ApiError as error:
            return error.status == 404
        return False

    eventually(f"{name} is gone", gone)


@pytest.mark.parametrize("name", sorted(name for name, body in PAGES.items() if "spec" in body))
def test_a_field_that_the_kind_does_not_have_would_be_refused(name: str, cluster: Cluster) -> None:
    wrong = {**PAGES[name], "spec": {**PAGES[name]["spec"], "notThere": 1}}
    with pytest.raises(ApiError, match=r"unknown field \"spec\.notThere\""):
        cluster.api.request("POST", place(wrong, cluster), wrong, query={"fieldValidation": "Strict", "dryRun": "All"})


@pytest.mark.requirement("R57")
def test_storage_classes_in_documents_name_this_driver_and_its_parameters() -> None:
    classes = [body for body in PAGES.values() if body["kind"] == "StorageClass"]
    assert classes
    for body in classes:
        assert body["provisioner"] == DRIVER
        parse_parameters(body.get("parameters", {}), base_path=BASE_PATH)


# Commands

NOT_HERE = re.compile(r"kubectl (?:-n rds-csi (?:logs|exec|rollout)|rds) ")
"""What needs containers that run, or is no kubectl's own; a unit test looks at those."""


def commands() -> list[str]:
    """Return every kubectl command of the guide, in its order, from blocks and from the text, and those of the runbooks."""
    told = {GUIDE, *(path.name for path in RUNBOOKS.glob("RdsCsi*.md"))}
    lines = [line for page, text in blocks("sh") if page in told for line in text.splitlines() if not NOT_HERE.match(line)]
    text = re.sub(r"^```.*?^```$", "", (ROOT / "docs" / GUIDE).read_text(), flags=re.DOTALL | re.MULTILINE)
    lines += [line for line in re.findall(r"`(kubectl [a-z-]+ [^`]+)`", text) if not NOT_HERE.match(line)]
    return list(dict.fromkeys(lines))


@pytest.fixture
def known(cluster: Cluster) -> dict[str, str]:
    """What the guide's placeholders stand for: objects that exist."""
    volume = cluster.make_static_volume()
    make_record(cluster, volume)
    node = cluster.make_node()
    pod = cluster.launcher_pod(volume.claim, node)
    specs: dict[str, Object] = {"VirtualMachineInstance": {}, "VirtualMachineInstanceMigration": {"vmiName": "web"}}
    for kind, spec in specs.items():
        metadata = {"name": "web", "namespace": cluster.namespace}
        cluster.api.create({"apiVersion": "kubevirt.io/v1", "kind": kind, "metadata": metadata, "spec": spec})
    # An operator's, as one that ended leaves it.
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": OPERATOR, "namespace": NAMESPACE}}
    if cluster.api.find("Lease", OPERATOR, NAMESPACE) is None:
        cluster.api.create(lease)
    return {
        "NAMESPACE": cluster.namespace,
        "RECORD": volume.handle,
        "CLAIM": volume.claim,
        "VM": "web",
        "MIGRATION": "web",
        "POD": pod,
        "NODE": node,
    }


@pytest.mark.requirement("R57")
def test_kubectl_takes_every_command_of_the_guide(known: dict[str, str], installed: ControlPlane, tmp_path: Path) -> None:
    kubectl = [str(installed.binaries["kubectl"]), f"--kubeconfig={installed.kubeconfig}", f"--cache-dir={tmp_path}"]
    assert len(commands()) > 15
    wrong = []
    for command in commands():
        _, *words = shlex.split(re.sub(rf"\b({'|'.join(known)})\b", lambda found: known[found[0]], command), comments=True)
        # What would take the objects away is only asked for.
        rehearsed = ["--dry-run=server"] if {"apply", "delete"} & set(words) else []
        done = subprocess.run([*kubectl, *words, *rehearsed], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            wrong.append(f"{command}: {done.stdout} {done.stderr}")
    assert not wrong, "\n".join(wrong)
