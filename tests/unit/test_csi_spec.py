"""Our comment-free protos are CSI 1.13 and the kubelet's plugin registration, and the committed stubs are what they generate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from rds_csi import spec
from rds_csi.spec import csi_pb2

HERE = Path(str(spec.__file__)).parent


@dataclass(frozen=True)
class Official:
    """Where the interface is published as a file of a Go module."""

    module: str
    file: str


OFFICIAL = {
    "csi": Official("github.com/container-storage-interface/spec@v1.13.0", "csi.proto"),
    "pluginregistration": Official("k8s.io/kubelet@v0.36.3", "pkg/apis/pluginregistration/v1/api.proto"),
}


def protoc(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def descriptor(root: Path, name: str, target: Path) -> FileDescriptorProto:
    protoc(f"-I{root}", f"--descriptor_set_out={target}", name)
    (found,) = FileDescriptorSet.FromString(target.read_bytes()).file
    found.ClearField("name")
    found.ClearField("source_code_info")
    found.options.ClearField("go_package")
    if not found.options.ListFields():
        found.ClearField("options")
    return found


def official(published: Official, away: Path) -> FileDescriptorProto:
    go = shutil.which("go")
    assert go, "go is needed: it fetches the official protos from the Go module proxy"
    done = subprocess.run([go, "mod", "download", "-json", published.module], capture_output=True, text=True, check=False, cwd=away)
    assert done.returncode == 0, done.stdout + done.stderr
    return descriptor(Path(json.loads(done.stdout)["Dir"]), published.file, away / "official.pb")


@pytest.mark.parametrize("name", OFFICIAL)
def test_our_proto_describes_the_official_interface(name: str, tmp_path: Path) -> None:
    ours = descriptor(HERE.parents[1], f"rds_csi/spec/{name}.proto", tmp_path / "ours.pb")
    assert ours.SerializeToString(deterministic=True) == official(OFFICIAL[name], tmp_path).SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", OFFICIAL)
def test_committed_stubs_are_what_the_proto_generates(name: str, tmp_path: Path) -> None:
    out = str(tmp_path)
    protoc(
        f"-I{HERE.parents[1]}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", f"rds_csi/spec/{name}.proto"
    )
    generated = {path.name: path.read_text() for path in (tmp_path / "rds_csi" / "spec").iterdir()}
    assert set(generated) == {f"{name}_pb2.py", f"{name}_pb2.pyi", f"{name}_pb2_grpc.py"}
    for file, text in generated.items():
        assert (HERE / file).read_text() == text, f"{file} is stale: run ./justw stubs"


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_proto_has_no_comments(name: str) -> None:
    assert "//" not in (HERE / f"{name}.proto").read_text()


def test_secrets_carry_their_option() -> None:
    secret: Any = csi_pb2.csi_secret
    field = csi_pb2.CreateVolumeRequest.DESCRIPTOR.fields_by_name["secrets"]
    assert field.GetOptions().Extensions[secret]
