"""What an installation's processes have said is kept where a test fails."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests import logs
from tests.ring.processes import known_processes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the log of every process where a test fails: ``test-logs/TEST/PROCESS.log``."""
    report = yield
    if report.failed:
        logs.keep(item.nodeid, {process.log.name: process.log for process in known_processes()})
    return report
