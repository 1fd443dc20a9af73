"""Our comment-free ``csi.proto`` is CSI 1.13, and the committed stubs are what it generates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from rds_csi import spec
from rds_csi.spec import csi_pb2

OFFICIAL = "github.com/container-storage-interface/spec@v1.13.0"
HERE = Path(str(spec.__file__)).parent


def protoc(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def descriptor(root: Path, name: str, target: Path) -> FileDescriptorProto:
    protoc(f"-I{root}", f"--descriptor_set_out={target}", name)
    (found,) = FileDescriptorSet.FromString(target.read_bytes()).file
    found.ClearField("name")
    found.ClearField("source_code_info")
    found.options.ClearField("go_package")
    return found


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    go = shutil.which("go")
    assert go, "go is needed: it fetches the official csi.proto from the Go module proxy"
    away = tmp_path_factory.mktemp("official")
    done = subprocess.run([go, "mod", "download", "-json", OFFICIAL], capture_output=True, text=True, check=False, cwd=away)
    assert done.returncode == 0, done.stdout + done.stderr
    return descriptor(Path(json.loads(done.stdout)["Dir"]), "csi.proto", away / "official.pb")


def test_our_proto_describes_the_official_interface(official: FileDescriptorProto, tmp_path: Path) -> None:
    ours = descriptor(HERE.parents[1], "rds_csi/spec/csi.proto", tmp_path / "ours.pb")
    ours.options.ClearField("go_package")
    assert ours.SerializeToString(deterministic=True) == official.SerializeToString(deterministic=True)


def test_committed_stubs_are_what_the_proto_generates(tmp_path: Path) -> None:
    out = str(tmp_path)
    protoc(f"-I{HERE.parents[1]}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", "rds_csi/spec/csi.proto")
    generated = {path.name: path.read_text() for path in (tmp_path / "rds_csi" / "spec").iterdir()}
    assert set(generated) == {"csi_pb2.py", "csi_pb2.pyi", "csi_pb2_grpc.py"}
    for name, text in generated.items():
        assert (HERE / name).read_text() == text, f"{name} is stale: run ./justw stubs"


def test_the_proto_has_no_comments() -> None:
    assert "//" not in (HERE / "csi.proto").read_text()


def test_secrets_carry_their_option() -> None:
    secret: Any = csi_pb2.csi_secret
    field = csi_pb2.CreateVolumeRequest.DESCRIPTOR.fields_by_name["secrets"]
    assert field.GetOptions().Extensions[secret]
