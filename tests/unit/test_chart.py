"""The chart is made of the manifests, and names the versions that are tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.chart.templates import CHART, ROOT, made

GO_MODULES = ROOT / "tests" / "ring" / "build" / "csitools" / "go.mod"


@pytest.mark.parametrize("path", made(), ids=lambda path: path.name)
def test_a_template_is_what_its_manifest_makes_of_it(path: Path) -> None:
    assert path.read_text() == made()[path], "run ./justw chart"


def test_chart_image_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)
    images = re.findall(r"image: rds-csi:(\S+)", "".join(path.read_text() for path in (ROOT / "manifests" / "base").glob("*.yaml")))
    assert images == [version] * 3


@pytest.mark.parametrize("name", ["provisioner", "attacher", "resizer", "snapshotter"])
def test_the_sidecars_that_are_shipped_are_those_that_are_tested(name: str) -> None:
    image = yaml.safe_load((CHART / "values.yaml").read_text())["sidecars"][name]["image"]
    (tested,) = re.findall(rf"external-{name}/v\d+ (v\S+)$", GO_MODULES.read_text(), re.MULTILINE)
    assert image == f"registry.k8s.io/sig-storage/csi-{name}:{tested}"
