"""``rds-csi``: every flag also from the environment, bad values told by name, a real process that comes and goes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import grpc
import pytest
import yaml

from rds_csi.cli import parser, read
from rds_csi.settings import ControllerSettings, NodeSettings
from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_records.names import SlotNames

NEEDED = ["controller", "--rds-address", "10.0.0.5", "--rds-host-key", "/etc/rds-csi/rds-host-key"]


def controller(*argv: str, **environment: str) -> ControllerSettings:
    return cast("ControllerSettings", read([*NEEDED, *argv], environment)[0])


def node(*argv: str, **environment: str) -> NodeSettings:
    return cast("NodeSettings", read(["node", *argv], {"NODE_ID": "node-a", **environment})[0])


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], environment: dict[str, str] | None = None) -> str:
    with pytest.raises(SystemExit) as caught:
        read(argv, environment or {})
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_those_of_the_go_driver() -> None:
    settings = controller()
    assert settings.endpoint == "unix:///var/lib/kubelet/plugins/rds.csi.srvlab.io/csi.sock"
    assert (settings.rds_port, settings.rds_user, settings.rds_key_file) == (22, "admin", "/etc/rds-csi/ssh-key/id_rsa")
    assert (settings.driver_name, settings.metrics_address, settings.drain_timeout) == ("rds.csi.srvlab.io", ":9809", 30)
    assert (settings.nvme_address, settings.nvme_port, settings.slot_names) == ("", 4420, SlotNames.HANDLE)
    assert settings.rds_insecure_skip_verify is False


def test_flags_of_the_go_driver_work_with_and_without_equals_sign() -> None:
    settings = controller("--rds-port=2222", "--rds-user", "metal-csi", "--rds-insecure-skip-verify=true", "--metrics-address=")
    assert (settings.rds_port, settings.rds_user, settings.rds_insecure_skip_verify) == (2222, "metal-csi", True)
    assert settings.metrics_address == ""


def test_environment_of_the_go_drivers_manifests_works() -> None:
    settings = controller(CSI_ENDPOINT="unix:///csi/csi.sock", NODE_ID="node-a", RDS_PORT="2222", RDS_VOLUME_BASE_PATH="/pool/csi")
    assert (settings.endpoint, settings.rds_port) == ("unix:///csi/csi.sock", 2222)
    assert node(NODE_ID="node-b", CSI_MANAGED_NQN_PREFIX="nqn.2024-01.io.test:v-").managed_nqn_prefix == "nqn.2024-01.io.test:v-"
    assert settings.rds_volume_base_path == "/pool/csi"


def test_own_variable_comes_before_the_go_drivers_and_the_command_line_before_both() -> None:
    environment = {"RDS_CSI_ENDPOINT": "/own", "CSI_ENDPOINT": "/go"}
    assert controller(**environment).endpoint == "/own"
    assert controller("--endpoint", "/line", **environment).endpoint == "/line"


def test_empty_variable_counts_as_not_set() -> None:
    assert controller(RDS_CSI_RDS_PORT="", RDS_CSI_DRAIN_TIMEOUT="").rds_port == 22


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_what_a_service_called_rds_leaves_in_the_environment_is_no_port(protocol: str) -> None:
    assert controller(RDS_PORT=f"{protocol}://10.96.0.7:22").rds_port == 22
    assert controller(RDS_CSI_RDS_PORT="2222", RDS_PORT=f"{protocol}://10.96.0.7:22").rds_port == 2222


@pytest.mark.parametrize("command", ["controller", "node"])
def test_every_flag_can_be_given_as_an_environment_variable_and_help_says_how(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        parser({}).parse_args([command, "--help"])
    text = capsys.readouterr().out
    flags = set(re.findall(r"^  --([a-z-]+)", text, re.MULTILINE))
    assert {"endpoint", "driver-name", "metrics-address", "drain-timeout", "log-level", "log-format"} <= flags
    for flag in flags:
        assert f"RDS_CSI_{flag.replace('-', '_').upper()}" in text


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--endpoint", "http://x"),
        ("--driver-name", "-x"),
        ("--metrics-address", "9809"),
        ("--drain-timeout", "soon"),
        ("--rds-address", "a b"),
        ("--rds-port", "70000"),
        ("--rds-user", "a;b"),
        ("--rds-volume-base-path", "/a/../b"),
        ("--nvme-address", "storage.example"),
        ("--nvme-port", "0"),
        ("--slot-names", "long"),
        ("--log-format", "xml"),
        ("--rds-insecure-skip-verify", "maybe"),
    ],
)
def test_bad_value_is_told_by_name_from_line_and_environment(capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    assert flag in refused(capsys, [*NEEDED, f"{flag}={value}"])
    if flag != "--rds-address":
        variable = "RDS_CSI_" + flag.removeprefix("--").replace("-", "_").upper()
        assert flag in refused(capsys, NEEDED, {variable: value})


def test_box_needs_an_address_and_a_pinned_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--rds-address" in refused(capsys, ["controller"])
    assert "--rds-host-key" in refused(capsys, ["controller", "--rds-address", "10.0.0.5"])
    assert isinstance(read(["controller", "--rds-address", "10.0.0.5", "--rds-insecure-skip-verify"], {})[0], ControllerSettings)


def test_node_needs_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--node-id" in refused(capsys, ["node"])
    assert type(read(["node"], {"NODE_ID": "node-a"})[0]) is NodeSettings


def test_kubelet_is_told_the_path_of_the_endpoint_unless_it_sees_another() -> None:
    assert node("--endpoint=unix:///csi/csi.sock").kubelet_registration_path == "/csi/csi.sock"
    seen = "/var/lib/kubelet/plugins/x/csi.sock"
    settings = node("--endpoint=tcp://127.0.0.1:1", f"--kubelet-registration-path={seen}")
    assert settings.kubelet_registration_path == seen
    assert settings.plugin_registration_path == "/var/lib/kubelet/plugins_registry"


def test_registration_can_be_left_to_node_driver_registrar() -> None:
    assert node("--disable-registration", "--endpoint=tcp://127.0.0.1:1").plugin_registration_path == ""


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--endpoint=tcp://127.0.0.1:1", "--disable-registration"),
        ("--plugin-registration-path=registry", "--plugin-registration-path"),
        ("--kubelet-registration-path=csi.sock", "--kubelet-registration-path"),
        (f"--plugin-registration-path=/{'x' * 100}", "at most 107 bytes"),
        ("--node-id=Node_A", "--node-id"),
        ("--kubelet-root-dir=kubelet", "--kubelet-root-dir"),
        ("--managed-nqn-prefix=", "CSI_MANAGED_NQN_PREFIX"),
        ("--session-interval=0", "--session-interval"),
        ("--orphan-session-grace=soon", "--orphan-session-grace"),
    ],
)
def test_what_a_node_cannot_work_with_is_refused(capsys: pytest.CaptureFixture[str], argument: str, named: str) -> None:
    assert named in refused(capsys, ["node", "--node-id=node-a", argument])


def test_flags_are_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--rds-addr" in refused(capsys, [*NEEDED, "--rds-addr", "10.0.0.6"])


def test_process_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rds_csi", *NEEDED, "--rds-host-key", str(tmp_path / "missing"), "--log-format", "text"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={})
    assert done.returncode == 1
    assert "--rds-host-key cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def write_kubeconfig(file: Path, server: str) -> Path:
    cluster = {"name": "c", "cluster": {"server": server}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    document = {"apiVersion": "v1", "kind": "Config", "current-context": "c"}
    file.write_text(yaml.safe_dump({**document, "clusters": [cluster], "contexts": [context], "users": [user]}))
    return file


def test_node_process_serves_until_sigterm(tmp_path: Path) -> None:
    socket = tmp_path / "csi.sock"
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:9")
    where = [
        f"--kubeconfig={kubeconfig}",
        f"--endpoint={socket}",
        f"--plugin-registration-path={tmp_path}",
        "--metrics-address=127.0.0.1:0",
    ]
    command = [sys.executable, "-m", "rds_csi", "node", "--node-id=node-a", *where]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={}) as process:
        try:
            deadline = time.monotonic() + 60
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                info = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(
                    csi_pb2.NodeGetInfoRequest(), wait_for_ready=True, timeout=deadline - time.monotonic()
                )
            assert info.node_id == "node-a"
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert '"message": "draining"' in errors
    assert list(tmp_path.iterdir()) == [kubeconfig]
    assert "node not found yet" in errors, "nobody answers there, and it serves all the same"


def test_controller_serves_no_node_service_whatever_the_go_drivers_manifests_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--node-id" in refused(capsys, [*NEEDED, "--node-id=node-a"])
    assert not hasattr(controller(NODE_ID="node-a"), "node_id")
