"""The tests of the image know what the node service calls, and the image installs it."""

from __future__ import annotations

import re
from pathlib import Path

from rds_csi.node import filesystems, nvme
from rds_csi.node.commands import Command
from tests.documents import ROOT
from tests.image.tools import ESSENTIAL, PACKAGES, TOOLS


def test_all_that_the_node_calls_is_listed_here() -> None:
    made: list[Command] = [
        *(filesystems.make(kind, "/dev/x") for kind in ("ext3", "ext4", "xfs")),
        *(filesystems.grow(kind, "/dev/x", "/y") for kind in ("ext4", "xfs")),
        filesystems.mount("xfs", "/dev/x", "/y", []),
        filesystems.unmount("/y"),
        nvme.disconnect("nqn.2000-02.com.mikrotik:pvc-x", prefix="nqn.2000-02.com.mikrotik:pvc-"),
    ]
    source = "".join(path.read_text() for path in Path(filesystems.__file__).parent.glob("*.py"))
    literal = set(re.findall(r'Command\(\s*\(\s*"([\w.]+)"', source))
    assert {command.name for command in made} | literal == set(TOOLS)


def test_the_image_installs_the_packages_that_have_them() -> None:
    text = (ROOT / "manifests" / "image" / "Containerfile").read_text()
    (programs,) = re.findall(r"^FROM \$\{BASE\} AS programs\n(.*?)^COPY", text, re.DOTALL | re.MULTILINE)
    (installed,) = re.findall(r"--no-install-recommends \\\n(.*?) \\\n", programs)
    assert set(installed.split()) == PACKAGES.keys() - ESSENTIAL | {"python3"}
    assert set().union(*PACKAGES.values()) == TOOLS.keys()
