"""What ``manifests/`` runs: flags that exist, probes, and a reason for everything that reaches out of a container."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

import rds_operator.cli
from rds_csi.cli import read
from rds_csi.fence_mode import FenceMode
from rds_csi.liveness import ANSWER_SECONDS
from rds_csi.server import parse_endpoint
from rds_csi.settings import ControllerSettings, NodeSettings
from tests.flags import flags_of, parsers
from tests.ring.installation import BASE, CONTROLLER, NODE, OPERATOR, resources

FILE = BASE / "node.yaml"
Object = dict[str, Any]


def pods() -> dict[str, Object]:
    """Return the pod of every workload by the workload's name."""
    return {
        body["metadata"]["name"]: body["spec"]["template"]["spec"] for body in resources() if "template" in body.get("spec", {})
    }


def containers() -> list[tuple[str, Object]]:
    return [(name, container) for name, pod in pods().items() for container in pod["containers"]]


def ours() -> list[tuple[str, Object]]:
    return [(name, container) for name, container in containers() if container["image"].startswith("rds-csi:")]


def sidecars() -> list[tuple[str, Object]]:
    return [(name, container) for name, container in containers() if not container["image"].startswith("rds-csi:")]


@pytest.fixture
def pod() -> Object:
    return pods()[NODE]


@pytest.fixture
def settings(pod: Object) -> NodeSettings:
    """What the node's command line means."""
    (container,) = pod["containers"]
    settings, _ = read([word.replace("$(NODE_NAME)", "worker-1") for word in container["args"]], {})
    assert isinstance(settings, NodeSettings)
    return settings


def test_only_the_node_reaches_out_of_its_container() -> None:
    reaching = {
        name
        for name, pod in pods().items()
        if pod.keys() & {"hostPID", "hostNetwork", "hostIPC"}
        or any("hostPath" in volume for volume in pod.get("volumes", []))
        or any(container.get("securityContext", {}).get("privileged") for container in pod["containers"])
    }
    assert reaching == {NODE}


def test_every_container_of_ours_has_a_liveness_and_a_readiness_probe() -> None:
    assert [name for name, container in ours() if not {"livenessProbe", "readinessProbe"} <= container.keys()] == []


def test_every_sidecar_is_started_anew_when_its_leader_election_hangs() -> None:
    probes = {container["name"]: container["livenessProbe"]["httpGet"] for _, container in sidecars()}
    ports = {container["name"]: container["ports"][0]["name"] for _, container in sidecars()}
    assert probes == {name: {"path": "/healthz/leader-election", "port": port} for name, port in ports.items()}
    assert len(probes) == 4


def test_every_port_is_where_its_container_listens() -> None:
    for _, container in sidecars():
        (port,) = container["ports"]
        assert f"--http-endpoint=:{port['containerPort']}" in container["args"]
    ports = {name: [port["containerPort"] for port in container["ports"]] for name, container in ours()}
    assert ports == {CONTROLLER: [9809], OPERATOR: [9810], NODE: [9809]}


def test_a_process_has_the_time_to_say_that_it_works() -> None:
    probes = [container["livenessProbe"] for _, container in ours()]
    assert [probe for probe in probes if probe["timeoutSeconds"] <= ANSWER_SECONDS] == []


@pytest.mark.parametrize(
    "line",
    [
        *("hostPID: true", "hostNetwork: true", "privileged: true", "- operator: Exists"),
        *("- name: kubelet", "- name: socket", "- name: dev", "- name: metrics"),
    ],
)
def test_the_node_gives_a_reason_for_whatever_reaches_out_of_its_container(line: str) -> None:
    lines = [text.strip() for text in FILE.read_text().splitlines()]
    found = [number for number, text in enumerate(lines) if text == line]
    assert found
    without = [number for number in found if not any(text.startswith("#") for text in lines[max(0, number - 4) : number])]
    assert without == [], f"{line} has no comment before it"


def test_no_reason_is_missing_from_that_list(pod: Object) -> None:
    (container,) = pod["containers"]
    named = {mount["name"] for mount in container["volumeMounts"]}
    assert named == {volume["name"] for volume in pod["volumes"]} == {"kubelet", "socket", "dev"}
    assert container["securityContext"] == {"privileged": True, "runAsUser": 0}
    assert {key for key in pod if key.startswith("host")} == {"hostPID", "hostNetwork"}


def test_what_the_node_mounts_is_where_its_flags_look(pod: Object, settings: NodeSettings) -> None:
    (container,) = pod["containers"]
    inside = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    outside = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    # The kubelet names paths as it sees them, so they must be the same inside.
    assert inside == outside
    assert settings.kubelet_root_dir == inside["kubelet"]
    assert settings.plugin_registration_path == f"{inside['kubelet']}/plugins_registry"
    assert str(parse_endpoint(settings.endpoint).path) == settings.kubelet_registration_path == f"{inside['socket']}/csi.sock"


def test_mounts_of_the_node_reach_the_machine_and_back(pod: Object) -> None:
    (container,) = pod["containers"]
    assert {mount["name"]: mount.get("mountPropagation") for mount in container["volumeMounts"]} == {
        "kubelet": "Bidirectional",
        "socket": None,
        "dev": None,
    }


def test_probes_ask_where_the_node_listens_and_calls_in_flight_may_end(pod: Object, settings: NodeSettings) -> None:
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert settings.metrics_address == f":{port['containerPort']}"
    probes = [container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")]
    assert probes == [{"path": "/healthz", "port": port["name"]}, {"path": "/readyz", "port": port["name"]}]
    assert pod["terminationGracePeriodSeconds"] > settings.drain_timeout


def test_the_node_is_called_like_its_node(settings: NodeSettings, pod: Object) -> None:
    assert settings.node_id == "worker-1"
    (variable,) = pod["containers"][0]["env"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_kustomization_lists_every_manifest() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(name for name in listed if not name.startswith("..")) == sorted(
        path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml"
    )


def test_service_accounts_of_pods_are_shipped() -> None:
    accounts = {body["metadata"]["name"] for body in resources() if body["kind"] == "ServiceAccount"}
    assert {pod["serviceAccountName"] for pod in pods().values()} <= accounts


def test_our_images_name_no_registry_and_the_sidecars_the_one_of_kubernetes() -> None:
    images = {re.sub(r":v?[\d.]+$", "", container["image"]) for _, container in containers()}
    names = ("provisioner", "attacher", "resizer", "snapshotter")
    assert images == {"rds-csi", *(f"registry.k8s.io/sig-storage/csi-{name}" for name in names)}


def test_each_setting_of_the_configuration_is_read_by_controller_or_operator() -> None:
    (config,) = [body["data"] for body in resources() if body["kind"] == "ConfigMap"]
    flags = [flag for program in ("rds-csi controller", "rds-operator") for flag in flags_of(parsers()[program])]
    assert config.keys() - {name for flag in flags for name in flag.variables} == set()


@pytest.mark.parametrize("box", ["10.0.0.5", ""])
def test_controller_and_operator_start_with_what_is_shipped_and_an_address(box: str, tmp_path: Path) -> None:
    (config,) = [body["data"] for body in resources() if body["kind"] == "ConfigMap"]
    environment = {**config, "RDS_ADDRESS": box}
    args = {name: container["args"] for name, container in ours()}
    key = tmp_path / "rds-host-key"
    key.write_text(asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode())
    args = {name: [word.replace("/etc/rds-csi", str(tmp_path)) for word in words] for name, words in args.items()}
    operator, _ = rds_operator.cli.settings(rds_operator.cli.parser(environment), args[OPERATOR])
    if not box:
        assert operator.box is None
        with pytest.raises(SystemExit):
            read(args[CONTROLLER], environment)
        return
    controller, _ = read(args[CONTROLLER], environment)
    assert isinstance(controller, ControllerSettings)
    assert operator.box is not None
    assert controller.rds_address == operator.box.address == box
    assert controller.endpoint == "unix:///csi/csi.sock"
    assert controller.fence is FenceMode.NONE
    assert (controller.metrics_address, operator.metrics_address) == (":9809", ":9810")
