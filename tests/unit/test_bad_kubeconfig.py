"""A kubeconfig that cannot be used ends each program with one line that says why, without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rds_kubectl.connection import Access, NoConnection, connect
from rds_records.kubernetes_api import UnusableConfiguration, load_configuration

COMMANDS = Path(sys.executable).parent

CLUSTER = """\
apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://127.0.0.1:1"%s}}]
users: [{name: me, user: {token: hush-hush}}]
contexts: [{name: all, context: {cluster: here, user: me}}]
current-context: %s
"""

BAD = {
    "empty": ("", "form of a kubeconfig"),
    "a word": ("hush-hush", "form of a kubeconfig"),
    "a list": ("- hush-hush\n", "form of a kubeconfig"),
    "half a list": ("apiVersion: v1\ntoken: [hush-hush\n", "no YAML: line 3"),
    "a tab": ("a:\n\thush-hush: 1\n", "no YAML: line 2"),
    "bytes": ("\x00\x01", "no YAML"),
    "no context": ("apiVersion: v1\nkind: Config\n", "current-context"),
    "a context that is not there": (CLUSTER % ("", "other"), "other"),
    "no certificate": (CLUSTER % (', certificate-authority-data: "aHVzaC1odXNo"', "all"), "certificate"),
    "no base64": (CLUSTER % (', certificate-authority-data: "h"', "all"), "form of a kubeconfig"),
    "a certificate file that is not there": (CLUSTER % (", certificate-authority: /nowhere/ca.crt", "all"), "/nowhere/ca.crt"),
}
FORMS = pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD)


@pytest.fixture
def kubeconfig(tmp_path: Path, text: str) -> Path:
    """A kubeconfig with that text."""
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    return file


@FORMS
async def test_a_process_is_told_what_is_wrong_with_its_kubeconfig(kubeconfig: Path, why: str) -> None:
    with pytest.raises(UnusableConfiguration) as caught:
        await load_configuration(str(kubeconfig))
    said = str(caught.value)
    assert str(kubeconfig) in said
    assert why in said.partition(str(kubeconfig))[2]
    assert "\n" not in said
    assert "hush" not in said


@FORMS
async def test_kubectl_rds_says_the_same_and_which_flags_help(kubeconfig: Path, why: str) -> None:
    with pytest.raises(NoConnection) as caught:
        await connect(Access(kubeconfig=str(kubeconfig)), {})
    said = str(caught.value)
    assert why in said.partition(str(kubeconfig))[2]
    assert "--kubeconfig" in said
    assert "\n" not in said
    assert "hush" not in said


async def test_a_file_that_is_not_there_is_not_an_empty_one(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with pytest.raises(UnusableConfiguration, match="no such file"):
        await load_configuration(str(kubeconfig))
    with pytest.raises(NoConnection, match="no such file"):
        await connect(Access(kubeconfig=str(kubeconfig)), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})


async def test_a_directory_is_no_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(UnusableConfiguration, match="directory"):
        await load_configuration(str(tmp_path))


async def test_outside_a_pod_there_is_no_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UnusableConfiguration, match="service account"):
        await load_configuration(None)


@pytest.mark.parametrize("text", [CLUSTER % ("", "all")])
async def test_a_good_kubeconfig_is_taken(kubeconfig: Path) -> None:
    assert (await load_configuration(str(kubeconfig))).host == "https://127.0.0.1:1"
    api, namespace = await connect(Access(kubeconfig=str(kubeconfig)), {})
    await api.close()
    assert namespace == "default"


@pytest.mark.parametrize("text", [BAD["no context"][0]])
@pytest.mark.parametrize(
    "command",
    [
        ["rds-csi", "controller", "--rds-address=10.0.0.5", "--rds-insecure-skip-verify"],
        ["rds-csi", "node", "--node-id=node-a", "--disable-registration"],
        ["rds-operator", "--metrics-address="],
    ],
    ids=["controller", "node", "operator"],
)
def test_a_program_ends_with_one_line(kubeconfig: Path, command: list[str]) -> None:
    program = subprocess.run(
        [COMMANDS / command[0], *command[1:], f"--kubeconfig={kubeconfig}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert program.returncode == 1
    assert program.stdout == ""
    [line] = program.stderr.splitlines()
    said = json.loads(line)
    assert (said["level"], said["message"]) == ("critical", "cannot run")
    assert str(kubeconfig) in said["error"]
    assert "current-context" in said["error"]
