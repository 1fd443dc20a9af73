from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.node.fake_sysfs import FakeSysfs


@pytest.fixture(params=[True, False], ids=["multipath", "no multipath"])
def sysfs(tmp_path: Path, request: pytest.FixtureRequest) -> FakeSysfs:
    return FakeSysfs(tmp_path / "sys", request.param)
