"""The distribution carries what its metadata promises, and says which commit it was built from."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from rds_process.version import COMMIT_FILE, UNKNOWN, commit
from tests.documents import ROOT

PROGRAMS = {"rds-csi": "rds_csi.cli:main", "rds-operator": "rds_operator.cli:main", "kubectl-rds": "rds_kubectl.cli:main"}


def built(target: str, folder: Path, source: Path = ROOT, **environment: str) -> Path:
    """Build the distribution; returns the file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    inherited = {name: value for name, value in os.environ.items() if name != "RDS_CSI_COMMIT"}
    subprocess.run(command, cwd=source, env={**inherited, **environment}, check=True, capture_output=True)
    (file,) = folder.iterdir()
    return file


def noted_in_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as files:
        return [files.read(name).decode().strip() for name in files.namelist() if name == f"rds_process/{COMMIT_FILE}"]


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_the_distribution_installs_the_three_commands() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert PROGRAMS.items() <= scripts.items()


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_tells_version_and_commit(program: str) -> None:
    said = subprocess.run([Path(sys.prefix) / "bin" / program, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"{program} {version('rds-csi')} (commit {commit()})\n"


def test_a_checkout_tells_its_own_commit_and_that_it_was_changed() -> None:
    head, _, changed = commit().partition("-")
    assert head == git("rev-parse", "HEAD")
    assert (changed == "dirty") == bool(git("diff", "HEAD", "--stat"))


def test_a_wheel_notes_the_commit_that_it_was_built_from(tmp_path: Path) -> None:
    assert noted_in_wheel(built("wheel", tmp_path)) == [commit()]


def test_a_build_without_a_repository_is_told_the_commit_and_a_source_distribution_keeps_it(tmp_path: Path) -> None:
    source = built("sdist", tmp_path / "sdist", RDS_CSI_COMMIT="0123abc")
    with tarfile.open(source) as files:
        files.extractall(tmp_path, filter="data")
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    assert noted_in_wheel(built("wheel", tmp_path / "wheel", unpacked)) == ["0123abc"]


def test_a_repository_of_somebody_else_around_the_installation_is_not_asked(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "site-packages" / "rds_process"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path / "lib")], check=True)
    assert commit(package) == UNKNOWN
    (package / COMMIT_FILE).write_text("0123abc\n")
    assert commit(package) == "0123abc"
