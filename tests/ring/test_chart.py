"""The chart and the kustomization are one installation, and a real API server takes it as it is."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rds_records.record import AccessMode, DualAttachPolicy, Record, Spec, VolumeMode
from tests.ring.api import Object
from tests.ring.binaries import ensure
from tests.ring.cluster import GIB, RECORD
from tests.ring.controlplane import ControlPlane
from tests.ring.definitions import install_definitions
from tests.ring.installation import CONTROLLER, NAMESPACE, NODE, OPERATOR
from tests.ring.packaging import (
    CHART,
    EXAMPLE,
    RELEASE,
    VALUES,
    Key,
    Refused,
    rendered_by_helm,
    rendered_by_kustomize,
    run,
)

OF_HELM_ALONE = {"helm.sh/resource-policy", "checksum/config"}
"""Annotations that only Helm has a use for: to keep the records' definition, and to replace pods when their settings change."""

LEVELS = ("privileged", "baseline", "restricted")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An empty cluster with the kinds that an installation needs of other projects."""
    with ControlPlane(tmp_path_factory.mktemp("cluster")) as plane:
        kinds = ensure(["snapshot-kinds", "monitoring-kinds"])
        for name in ("volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots"):
            install_definitions(plane.api, kinds["snapshot-kinds"] / f"snapshot.storage.k8s.io_{name}.yaml")
        for name in ("podmonitors", "prometheusrules"):
            install_definitions(plane.api, kinds["monitoring-kinds"] / f"monitoring.coreos.com_{name}.yaml")
        yield plane


def without_helms_own(body: Object) -> Object:
    """Return an object without the annotations that only Helm has a use for."""
    body = copy.deepcopy(body)
    for metadata in (body["metadata"], body.get("spec", {}).get("template", {}).get("metadata", {})):
        if "annotations" in metadata:
            metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if key not in OF_HELM_ALONE}
            if not metadata["annotations"]:
                del metadata["annotations"]
    return body


def test_kustomize_and_helm_render_the_same_objects() -> None:
    by_kustomize = rendered_by_kustomize()
    # Helm makes no namespace: a release lies in one that is there, and its Secret too.
    del by_kustomize["Namespace", "", NAMESPACE]
    by_helm = {key: without_helms_own(body) for key, body in rendered_by_helm().items()}
    assert by_helm == by_kustomize


def test_the_chart_has_no_fault_that_helm_finds() -> None:
    run("helm", "lint", "--strict", CHART, "--values", VALUES)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("box.address=", "box/address"),
        ("image.repository=", "image/repository"),
        ("box.sshPort=65536", "box/sshPort"),
        ("box.address=-oProxyCommand", "box/address"),
        ("box.basePath=storage", "box/basePath"),
        ("box.adress=10.0.0.5", "adress"),
        ("controller.fence=on", "controller/fence"),
        ("controller.replicas=0", "controller/replicas"),
        ("operator.orphanGrace=1 day", "operator/orphanGrace"),
        ("node.kubeletPath=/var/lib/kubelet/", "node/kubeletPath"),
        ("storageClasses[0].reclaimPolicy=Recycle", "storageClasses/0"),
        ("extraConfig.RDS_PASSWORD=x", "extraConfig"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(setting: str, named: str) -> None:
    with pytest.raises(Refused) as refused:
        rendered_by_helm("--set", setting)
    assert named in str(refused.value)


def test_every_value_of_the_chart_is_in_its_schema() -> None:
    def missing(values: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, value in values.items():
            known = schema.get("properties", {})
            if name not in known:
                if schema.get("additionalProperties") is False:
                    yield f"{path}{name}"
            elif isinstance(value, dict):
                yield from missing(value, known[name], f"{path}{name}.")

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert list(missing(values, schema, "")) == []
    assert schema["properties"].keys() - values.keys() == {"global"}


def test_another_kubelet_directory_is_followed_everywhere() -> None:
    pod = rendered_by_helm("--set", "node.kubeletPath=/var/lib/k0s/kubelet")["DaemonSet", NAMESPACE, NODE]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert [word for word in container["args"] if "kubelet" in word] == [
        "--kubelet-root-dir=/var/lib/k0s/kubelet",
        "--plugin-registration-path=/var/lib/k0s/kubelet/plugins_registry",
        "--endpoint=unix:///var/lib/k0s/kubelet/plugins/rds.csi.srvlab.io/csi.sock",
    ]
    assert "/var/lib/kubelet" not in json.dumps(pod)


def test_without_snapshots_nothing_of_the_snapshot_kinds_is_left() -> None:
    rendered = rendered_by_helm("--set", "snapshots.enabled=false")
    assert [key for key in rendered if key[0] == "VolumeSnapshotClass"] == []
    pod = rendered["Deployment", NAMESPACE, CONTROLLER]["spec"]["template"]["spec"]
    names = [container["name"] for container in pod["containers"]]
    assert names == [CONTROLLER, "csi-provisioner", "csi-attacher", "csi-resizer"]


def test_alerts_lead_to_where_the_runbooks_are_served() -> None:
    place = "https://wiki.example/storage/"
    rule = rendered_by_helm("--set", f"monitoring.runbooks={place}")["PrometheusRule", NAMESPACE, "rds-csi"]
    links = re.findall(r"'runbook_url': '([^']+)'", str(rule))
    assert len(links) > 10
    assert [link for link in links if not re.fullmatch(rf"{place}RdsCsi\w+\.html", link)] == []


def test_pods_are_replaced_when_their_settings_change() -> None:
    def checksum(*arguments: str) -> str:
        template = rendered_by_helm(*arguments)["Deployment", NAMESPACE, OPERATOR]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "operator.orphanGrace=2h")


def test_helm_installs_it_and_keeps_the_records_when_it_is_uninstalled(plane: ControlPlane, tmp_path: Path) -> None:
    def helm(*arguments: str | Path) -> str:
        return run("helm", *arguments, "--namespace", NAMESPACE, kubeconfig=plane.kubeconfig, home=tmp_path)

    plane.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    helm("install", RELEASE, CHART, "--values", VALUES)
    try:
        made = {key for key in rendered_by_helm() if exists(plane, key)}
        assert made == set(rendered_by_helm())
        plane.api.create(record("pvc-kept"))
        helm("upgrade", RELEASE, CHART, "--values", VALUES, "--set", "controller.replicas=3")
        assert plane.api.get("Deployment", CONTROLLER, NAMESPACE)["spec"]["replicas"] == 3
    finally:
        helm("uninstall", RELEASE, "--wait", "--timeout", "60s")
    assert plane.api.find(RECORD, "pvc-kept") is not None
    assert {key[0] for key in made if exists(plane, key)} == {"CustomResourceDefinition"}
    # Whoever installs it again takes over what was kept.
    helm("install", RELEASE, CHART, "--values", VALUES)
    helm("uninstall", RELEASE, "--wait", "--timeout", "60s")
    plane.api.delete(RECORD, "pvc-kept")
    run("kubectl", "delete", "namespace", NAMESPACE, "--wait", "--timeout=60s", kubeconfig=plane.kubeconfig)


def test_kubectl_applies_it_under_strict_validation_and_changes_nothing_the_second_time(plane: ControlPlane) -> None:
    arguments = ("apply", "--server-side", "--validate=strict", "--kustomize", EXAMPLE)
    run("kubectl", *arguments, kubeconfig=plane.kubeconfig)
    versions = {key: version_of(plane, key) for key in rendered_by_kustomize()}
    run("kubectl", *arguments, kubeconfig=plane.kubeconfig)
    assert {key: version_of(plane, key) for key in rendered_by_kustomize()} == versions


@pytest.mark.parametrize("workload", [CONTROLLER, OPERATOR])
def test_controller_and_operator_run_in_a_namespace_that_admits_no_privilege(plane: ControlPlane, workload: str) -> None:
    assert admitted(plane, ("Deployment", NAMESPACE, workload)) == {"privileged", "baseline", "restricted"}


def test_only_a_privileged_namespace_admits_the_node(plane: ControlPlane) -> None:
    assert admitted(plane, ("DaemonSet", NAMESPACE, NODE)) == {"privileged"}


def admitted(plane: ControlPlane, workload: Key) -> set[str]:
    """Return the Pod Security levels whose namespaces admit the pods of a workload (server-side dry run)."""
    template = rendered_by_kustomize()[workload]["spec"]["template"]
    found = set()
    for level in LEVELS:
        name = f"admits-{level}"
        labels = {"pod-security.kubernetes.io/enforce": level}
        plane.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asked", "namespace": name}, "spec": template["spec"]}
        file = plane.folder / f"{workload[2]}-{level}.yaml"
        file.write_text(yaml.safe_dump(body))
        said = refusal_of("create", "--dry-run=server", "--validate=strict", "-f", file, kubeconfig=plane.kubeconfig)
        assert not said or "violates PodSecurity" in said, said
        if not said:
            found.add(level)
    return found


def refusal_of(*arguments: str | Path, kubeconfig: Path) -> str:
    """Return what kubectl said where it failed, else nothing."""
    try:
        run("kubectl", *arguments, kubeconfig=kubeconfig)
    except Refused as refused:
        return str(refused)
    return ""


def exists(plane: ControlPlane, key: Key) -> bool:
    kind, namespace, name = key
    arguments = ["get", kind, name, "--ignore-not-found", "--output=name", *(["--namespace", namespace] if namespace else [])]
    return run("kubectl", *arguments, kubeconfig=plane.kubeconfig) != ""


def version_of(plane: ControlPlane, key: Key) -> str:
    kind, namespace, name = key
    arguments = ["get", kind, name, "--output=jsonpath={.metadata.generation} {.metadata.managedFields[*].time}"]
    return run("kubectl", *arguments, *(["--namespace", namespace] if namespace else []), kubeconfig=plane.kubeconfig)


def record(handle: str) -> Object:
    """Return a record that holds nobody."""
    spec = Spec(
        volume_handle=handle,
        volume_mode=VolumeMode.BLOCK,
        access_mode=AccessMode.READ_WRITE_MANY,
        capacity_bytes=GIB,
        dual_attach_policy=DualAttachPolicy.KUBEVIRT,
    )
    body = Record.new(spec, finalizers=()).to_json()
    del body["status"]
    return body
