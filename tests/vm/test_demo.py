"""``./justw demo --vm``, from the boot of its machines to its last fact."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.vm.guests import ROOT

TIMEOUT = 600
"""Seconds; a quiet machine needs less than half."""


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT + 60)
def test_every_fact_of_the_demo_on_machines_is_as_expected() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--vm"], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
