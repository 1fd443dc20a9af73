"""``kubectl rds doctor`` against a real API server, an operator, and a box that is reached, is off, or is somebody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rds_kubectl.workloads import CONFIG_MAP, KINDS
from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator
from tests.ring.installation import NAMESPACE, say_ready
from tests.ring.plugin import DOCTOR, VIEWER, Plugin
from tests.ring.stack import BASE_PATH, reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

OF_THE_BOX = ("Box SSH", "Box host key", "Box answers", "Box version", "Box features", "Operator clock")
WORKLOADS = ("Deployment rds-csi-controller", "Deployment rds-operator", "DaemonSet rds-csi-node")


@pytest.fixture(scope="module")
def doctor(installed: ControlPlane) -> Plugin:
    return Plugin(installed, VIEWER, DOCTOR)


@pytest.fixture(scope="module")
def watched_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """The box that the operator of this file looks at."""
    with SimulatedBox(tmp_path_factory.mktemp("watched"), version="7.24") as box:
        yield box


@pytest.fixture(scope="module")
def watching(installed: ControlPlane, watched_box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator that looks twice a second."""
    folder = tmp_path_factory.mktemp("operator")
    with Operator(installed, folder, box=reach(watched_box), extra=["--inventory-interval=0.5s"]) as operator:
        yield operator


def found(doctor: Plugin, name: str, state: str, text: str = "") -> Object:
    """Wait until a check has that state and says that; return it."""

    def said() -> Object:
        check = doctor.checks()[name]
        assert (check["state"], text in check["found"]) == (state, True), check
        return check

    return eventually(f"{name} is {state}", said, timeout=40)


# The installation


@pytest.mark.usefixtures("watching")
def test_an_installation_with_what_is_shipped_is_found_well(doctor: Plugin, cluster: Cluster) -> None:
    cluster.make_node()
    found(doctor, "Operator", "ok")
    states = {name: check["state"] for name, check in doctor.checks().items()}
    names = ("API server", "Clock", "Record definition", "CSIDriver", "Nodes", "Rights rds-csi-controller", "Rights rds-operator")
    assert {name: states[name] for name in names} == dict.fromkeys(names, "ok")


def test_accounts_without_their_rights_and_a_missing_operator_are_found(doctor: Plugin) -> None:
    checks = doctor.checks("--driver-namespace=elsewhere")
    names = ("Operator", *WORKLOADS, "Box SSH")
    assert {checks[name]["state"] for name in names} == {"unknown"}
    assert checks["Rights rds-operator"]["state"] == "WRONG"
    assert "rds-operator may not" in doctor.page("doctor", "--driver-namespace=elsewhere")


def test_whoever_may_not_look_is_told_so_and_nothing_is_called_well(installed: ControlPlane) -> None:
    stranger = Plugin(installed)
    checks = stranger.checks()
    names = ("Record definition", "CSIDriver", "Nodes", "Operator", "Rights", "Box SSH", *WORKLOADS)
    assert {checks[name]["state"] for name in names} == {"unknown"}
    assert stranger.run("doctor", "--exit-status").returncode == 3


# The box


@pytest.mark.usefixtures("watching")
def test_a_box_that_is_reached_is_told_with_its_version_and_features(doctor: Plugin, watched_box: SimulatedBox) -> None:
    found(doctor, "Box SSH", "ok", f"127.0.0.1:{watched_box.port} answers user metal-csi")
    checks = doctor.checks()
    assert {name: checks[name]["state"] for name in OF_THE_BOX} == dict.fromkeys(OF_THE_BOX, "ok")
    assert checks["Box host key"]["found"] == "the box presents the pinned one"
    assert checks["Box version"]["found"] == "RouterOS 7.24 (stable) on RDS2216"
    assert "Btrfs subvolumes" in checks["Box features"]["found"]


@pytest.mark.usefixtures("watching")
def test_a_box_that_is_off_is_told_until_it_is_back(doctor: Plugin, watched_box: SimulatedBox) -> None:
    found(doctor, "Box SSH", "ok")
    watched_box.stop()
    try:
        check = found(doctor, "Box SSH", "WRONG", "it last answered")
        assert "VMs that run do not need this link" in check["fix"]
        assert doctor.checks()["Box host key"]["state"] == "unknown"
        assert "RouterOS 7.24" in doctor.checks()["Box version"]["found"]
    finally:
        watched_box.start()
    found(doctor, "Box SSH", "ok")


@pytest.mark.usefixtures("watching")
def test_a_box_with_another_host_key_is_told_with_both_fingerprints(doctor: Plugin, watched_box: SimulatedBox) -> None:
    found(doctor, "Box SSH", "ok")
    watched_box.renew_keys()
    check = found(doctor, "Box host key", "WRONG")
    assert check["found"].count("SHA256:") == 2
    assert "find out why the key changed" in check["fix"]
    reach(watched_box)
    found(doctor, "Box host key", "ok")


@pytest.mark.usefixtures("watching")
def test_a_user_who_may_not_ask_is_told_in_the_words_of_the_box(doctor: Plugin, watched_box: SimulatedBox) -> None:
    found(doctor, "Box SSH", "ok")
    watched_box.pool(mount_point="elsewhere")
    try:
        found(doctor, "Box answers", "WRONG", "it does not tell its pool: 0 file systems are mounted at storage-pool")
        assert doctor.checks()["Box SSH"]["state"] == "ok"
    finally:
        watched_box.pool(mount_point="storage-pool")
    found(doctor, "Box answers", "ok")


def test_an_operator_that_is_away_makes_the_box_unknown_and_old(doctor: Plugin, watching: Operator) -> None:
    found(doctor, "Box SSH", "ok")
    watching.stop()
    try:
        check = found(doctor, "Box SSH", "unknown", "no operator is known to be active; ")
        assert "ago: 127.0.0.1:" in check["found"]
        checks = doctor.checks()
        assert {checks[name]["state"] for name in OF_THE_BOX} == {"unknown"}
        assert doctor.run("doctor", "--exit-status").returncode == 3
    finally:
        watching.start()
    found(doctor, "Box SSH", "ok")


# Workloads


@pytest.fixture
def deployed(installed: ControlPlane, watching: Operator, watched_box: SimulatedBox) -> Iterator[ControlPlane]:
    """All three workloads with ready pods and the operator's box, as their ConfigMap says: nothing makes pods here."""
    api = installed.api
    before = {name: api.get(kind, name, NAMESPACE)["spec"] for name, kind in KINDS.items()}
    api.patch("ConfigMap", CONFIG_MAP, {"data": {"RDS_ADDRESS": "127.0.0.1", "RDS_PORT": str(watched_box.port)}}, NAMESPACE)
    for name, kind in KINDS.items():
        say_ready(installed, kind, name)
    yield installed
    api.patch("ConfigMap", CONFIG_MAP, {"data": {"RDS_ADDRESS": "", "RDS_PORT": "22"}}, NAMESPACE)
    for name, kind in KINDS.items():
        api.replace({**api.get(kind, name, NAMESPACE), "spec": before[name]})


def test_workloads_whose_pods_are_ready_are_fine_and_their_options_shown(doctor: Plugin, deployed: ControlPlane) -> None:
    checks = doctor.checks()
    names = (*WORKLOADS, "Versions", "Configuration")
    assert {name: checks[name]["state"] for name in names} == dict.fromkeys(names, "ok"), deployed
    assert checks["Configuration"]["found"].startswith(f"rds-address 127.0.0.1, rds-volume-base-path {BASE_PATH}, fence none")


def test_pods_that_are_not_ready_and_programs_that_differ_are_found(doctor: Plugin, deployed: ControlPlane) -> None:
    say_ready(deployed, "Deployment", "rds-csi-controller", missing=1)
    other: Object = {"name": "rds-operator", "image": "rds-csi:0.2.0", "args": ["--rds-volume-base-path=/other"]}
    other["envFrom"] = [{"configMapRef": {"name": CONFIG_MAP}}]
    deployed.api.patch("Deployment", "rds-operator", {"spec": {"template": {"spec": {"containers": [other]}}}}, NAMESPACE)
    checks = doctor.checks()
    assert checks["Deployment rds-csi-controller"]["found"] == "1 of 2 ready"
    assert "being rolled out" in checks["Deployment rds-operator"]["found"]
    assert (checks["Versions"]["state"], checks["Configuration"]["state"]) == ("note", "WRONG")
    assert f"another base path (/other) than the controller ({BASE_PATH})" in checks["Configuration"]["found"]


def test_pods_that_run_with_another_box_than_the_config_map_names_are_found(doctor: Plugin, deployed: ControlPlane) -> None:
    found(doctor, "Box SSH", "ok")
    deployed.api.patch("ConfigMap", CONFIG_MAP, {"data": {"RDS_ADDRESS": "192.0.2.1"}}, NAMESPACE)
    check = doctor.checks()["Configuration"]
    assert (check["state"], "the operator runs with another box (127.0.0.1:" in check["found"]) == ("WRONG", True)


def test_an_installation_that_nobody_has_told_of_a_box_is_wrong(doctor: Plugin) -> None:
    check = doctor.checks()["Configuration"]
    assert (check["state"], "RDS_ADDRESS in the ConfigMap" in check["fix"]) == ("WRONG", True)
