"""A machine that cannot run the guests is told what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT
from tests.vm import packages


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without dpkg and apt."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_what_is_missing_is_named_with_the_command_that_installs_it(bare: None) -> None:
    with pytest.raises(packages.PackagesMissing, match=r"\./justw packages(?s:.)*apt-get install .*qemu-system-x86 .*containerd"):
        packages.require()


def test_an_installation_that_fails_says_the_same(bare: None) -> None:
    with pytest.raises(packages.PackagesMissing, match=r"apt-get'(?s:.)*apt-get install .*qemu-system-x86"):
        packages.install()


def test_the_other_tests_run_where_nothing_can_be_installed(bare: None) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.vm.packages"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "apt-get install" in done.stderr
