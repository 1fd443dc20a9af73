"""What ``doctor`` makes of the workloads: pods that are ready, images, and options where the template says them."""

from __future__ import annotations

from typing import Any

import pytest

from rds_csi import cli as csi_cli
from rds_kubectl.examination import State
from rds_kubectl.installation import shipped
from rds_kubectl.workloads import (
    CONFIG_MAP,
    CONTROLLER,
    FLAGS,
    KINDS,
    NODE,
    OPERATOR,
    PREFIXES,
    Workload,
    configuration,
    running,
    versions,
)
from rds_operator import cli as operator_cli
from tests.unit.kubectl.cluster_objects import Object
from tests.unit.kubectl.test_box_examination import GOOD

IMAGE = "registry.example/storage/rds-csi:0.1.0"
BOX = ["--rds-address=192.0.2.1", "--rds-volume-base-path=/pool/volumes"]


def body(name: str, *args: str, image: str = IMAGE, **changes: Any) -> Object:
    """Return a workload of two pods that are ready."""
    container = {"name": "main", "image": image, "args": list(args), **changes}
    sidecar = {"name": "csi-attacher", "image": "registry.example/csi-attacher:v4"}
    status = {"readyReplicas": 2, "updatedReplicas": 2, "observedGeneration": 3}
    if KINDS[name] == "DaemonSet":
        status = {"desiredNumberScheduled": 2, "numberReady": 2, "updatedNumberScheduled": 2, "observedGeneration": 3}
    spec = {"replicas": 2, "template": {"spec": {"containers": [sidecar, container]}}}
    return {"metadata": {"name": name, "generation": 3}, "spec": spec, "status": status}


def workload(name: str, *args: str, **changes: Any) -> Workload:
    return Workload(name, body(name, *args, **changes))


def configured(*args: str, operator: list[str] | None = None, **changes: Any) -> tuple[State, str]:
    ours = workload(CONTROLLER, "controller", *args, **changes)
    (check,) = configuration(ours, workload(OPERATOR, *(BOX if operator is None else operator)))
    return check.state, check.found


@pytest.mark.parametrize("name", list(KINDS))
def test_a_workload_whose_pods_are_all_ready_is_fine(name: str) -> None:
    check = running(workload(name), "rds-csi")
    assert (check.state, check.found) == (State.OK, "2 of 2 ready")


@pytest.mark.parametrize("name", list(KINDS))
def test_a_workload_that_is_not_there_is_wrong(name: str) -> None:
    check = running(Workload(name, None), "rds-csi")
    assert (check.state, bool(check.fix)) == (State.WRONG, True)


@pytest.mark.parametrize(("name", "key"), [(CONTROLLER, "readyReplicas"), (OPERATOR, "readyReplicas"), (NODE, "numberReady")])
def test_pods_that_are_not_ready_are_counted(name: str, key: str) -> None:
    one = body(name)
    one["status"][key] = 1
    check = running(Workload(name, one), "elsewhere")
    assert (check.state, check.found) == (State.WRONG, "1 of 2 ready")
    assert "kubectl -n elsewhere describe" in check.fix


def test_a_workload_whose_status_is_not_of_its_newest_template_is_being_rolled_out() -> None:
    one = body(CONTROLLER)
    one["metadata"]["generation"] = 4
    assert "being rolled out" in running(Workload(CONTROLLER, one), "rds-csi").found


def test_a_workload_that_asks_for_no_pod_is_wrong() -> None:
    one = body(OPERATOR)
    one["spec"]["replicas"] = 0
    assert running(Workload(OPERATOR, one), "rds-csi").state is State.WRONG


def test_the_node_plugin_that_is_shipped_is_told_apart_from_its_neighbours() -> None:
    (daemon_set,) = [one for one in shipped() if one["kind"] == "DaemonSet"]
    container = Workload(NODE, daemon_set).container
    assert container is not None
    assert container["args"][0] == "node"


def test_images_that_differ_are_told() -> None:
    same = [workload(name) for name in KINDS]
    assert versions(same, "0.1.0").state is State.OK
    mixed = [workload(CONTROLLER), workload(NODE, image="rds-csi:0.2.0")]
    check = versions(mixed, "0.1.0")
    assert (check.state, "rds-csi-node rds-csi:0.2.0" in check.found) == (State.NOTE, True)


def test_an_image_that_cannot_be_told_is_not_taken_for_the_same() -> None:
    check = versions([workload(CONTROLLER), workload(NODE, image="other")], "0.1.0")
    assert (check.state, "rds-csi-node not told" in check.found) == (State.NOTE, True)


def test_a_configuration_that_fits_is_shown() -> None:
    assert configured(*BOX, "--fence", "allow-host-name") == (
        State.OK,
        "rds-address 192.0.2.1, rds-volume-base-path /pool/volumes, fence allow-host-name, snapshot-backend auto",
    )


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--rds-address=192.0.2.9", BOX[1]], "another box (192.0.2.1) than the controller (192.0.2.9)"),
        ([BOX[0], "--rds-volume-base-path=/pool"], "another base path (/pool/volumes) than the controller (/pool)"),
        ([*BOX, "--rds-port=2222"], "another port of the box (22) than the controller (2222)"),
        ([*BOX, "--rds-insecure-skip-verify"], "rds-csi-controller takes whoever answers for the box"),
        ([*BOX, "--rds-insecure-skip-verify", "true"], "rds-csi-controller takes whoever answers for the box"),
    ],
)
def test_options_that_do_not_fit_are_wrong(args: list[str], what: str) -> None:
    state, text = configured(*args)
    assert (state, what in text) == (State.WRONG, True)


def test_an_operator_that_is_given_no_box_contradicts_nobody() -> None:
    assert configured(*BOX, operator=[])[0] is State.OK


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"env": [{"name": "RDS_ADDRESS", "valueFrom": {"configMapKeyRef": {"name": "box", "key": "address"}}}]},
        {"envFrom": [{"configMapRef": {"name": "box"}}]},
        {"command": ["sh", "-c", "exec rds-csi controller"]},
        {"env": [{"name": "HOST", "valueFrom": {}}], "args": ["controller", "--rds-address=$(HOST)", BOX[1]]},
        {"image": "something-else"},
    ],
)
def test_what_comes_from_elsewhere_is_not_guessed(elsewhere: dict[str, Any]) -> None:
    state, text = configured(BOX[1], **elsewhere)
    assert (state, "rds-address not known" in text) == (State.NOTE, True)


def from_config(data: Object | None, *args: str, **changes: Any) -> Workload:
    source: dict[str, Any] = {"envFrom": [{"configMapRef": {"name": CONFIG_MAP}}]}
    config = None if data is None else {"metadata": {"name": CONFIG_MAP}, "data": data}
    return Workload(CONTROLLER, body(CONTROLLER, "controller", *args, **source, **changes), config)


def test_what_the_config_map_says_counts_after_the_command_line_and_before_the_default() -> None:
    one = from_config({"RDS_ADDRESS": "192.0.2.1", "RDS_CSI_FENCE": "allow-host-name", "RDS_PORT": ""}, "--rds-address=a")
    assert (one.option("--rds-address"), one.option("--fence"), one.option("--rds-port")) == ("a", "allow-host-name", "22")
    given = from_config({"RDS_ADDRESS": "b"}, env=[{"name": "RDS_ADDRESS", "value": "c"}])
    assert given.option("--rds-address") == "c"


def test_a_config_map_that_was_not_read_says_nothing() -> None:
    assert from_config(None).option("--fence") is None
    assert from_config(None, "--fence=none").option("--fence") == "none"


def test_another_source_of_variables_may_say_anything() -> None:
    one = from_config({"RDS_ADDRESS": "a"})
    container = one.container
    assert container is not None
    container["envFrom"].append({"secretRef": {"name": "more"}})
    assert one.option("--rds-address") is None


def test_a_controller_that_is_given_no_box_is_wrong() -> None:
    (check,) = configuration(from_config({"RDS_ADDRESS": ""}), workload(OPERATOR))
    assert (check.state, "the controller is given no box" in check.found) == (State.WRONG, True)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"address": "192.0.2.9:22"}, "another box (192.0.2.9:22) than it is given now (192.0.2.1:22)"),
        ({"base_path": "/old"}, "another base path (/old) than it is given now (/pool/volumes)"),
    ],
)
def test_an_operator_that_was_not_restarted_since_it_was_given_another_box_is_told(changes: dict[str, Any], what: str) -> None:
    report = GOOD.replace(base_path="/pool/volumes")
    controller, operator = workload(CONTROLLER, "controller", *BOX), workload(OPERATOR, *BOX)
    (fine,) = configuration(controller, operator, report)
    assert fine.state is State.OK
    (check,) = configuration(controller, operator, report.replace(**changes), "elsewhere")
    assert (check.state, what in check.found) == (State.WRONG, True)
    assert "kubectl -n elsewhere rollout restart deployment rds-csi-controller" in check.fix


@pytest.mark.parametrize("name", [CONTROLLER, OPERATOR])
def test_the_manifests_that_are_shipped_can_be_read(name: str) -> None:
    objects = {(one["kind"], one["metadata"]["name"]): one for one in shipped()}
    one = Workload(name, objects[KINDS[name], name], objects["ConfigMap", CONFIG_MAP])
    assert {flag: one.option(flag) for flag in FLAGS} == {flag: default for flag, (default, _) in FLAGS.items()}


def test_nothing_is_said_where_neither_is_there() -> None:
    assert list(configuration(Workload(CONTROLLER, None), Workload(OPERATOR, None))) == []


@pytest.mark.parametrize("name", [CONTROLLER, OPERATOR])
@pytest.mark.parametrize(
    ("args", "env"),
    [
        ([], {}),
        (["--rds-address=a", "--rds-address", "b", "--rds-port=2222"], {}),
        (["--rds-insecure-skip-verify", "--rds-address=a"], {"RDS_ADDRESS": "b"}),
        ([], {"RDS_ADDRESS": "a", "RDS_VOLUME_BASE_PATH": "/a/b", "PREFIX_FENCE": "allow-host-name"}),
        ([], {"RDS_ADDRESS": "a", "PREFIX_RDS_ADDRESS": "b", "PREFIX_RDS_INSECURE_SKIP_VERIFY": "true"}),
        ([], {"RDS_PORT": "tcp://10.0.0.1:22"}),
        ([], {"RDS_PORT": "2222"}),
        ([], {"RDS_ADDRESS": "", "PREFIX_RDS_ADDRESS": "", "PREFIX_SNAPSHOT_BACKEND": "btrfs"}),
    ],
)
def test_an_option_is_read_as_the_program_reads_it(name: str, args: list[str], env: dict[str, str]) -> None:
    prefix = PREFIXES[name]
    given = {key.replace("PREFIX_", prefix): value for key, value in env.items()}
    parser = operator_cli.parser(given) if name == OPERATOR else csi_cli.parser(given)
    words = args if name == OPERATOR else ["controller", *args]
    chosen = vars(parser.parse_args(words))
    container = [{"name": key, "value": value} for key, value in given.items()]
    ours = workload(name, *words, env=container)
    for flag in FLAGS:
        key = flag.removeprefix("--").replace("-", "_")
        if key in chosen:
            assert ours.option(flag) == str(chosen[key]).lower()
