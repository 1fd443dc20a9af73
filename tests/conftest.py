"""What all tests share: what a test wants to be read at the end of a run, and the run's share of a sum."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.runs import TALLY

# How long an example takes says how busy the machine is.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ``summary`` that tests have recorded (``record_property``), and leave the counts to who asks for them."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports if isinstance(report, pytest.TestReport)]
    texts = [text for report in reports if report.when == "call" for name, text in report.user_properties if name == "summary"]
    if texts:
        terminalreporter.section("reports")
        for text in texts:
            terminalreporter.write_line(str(text))
    if file := os.environ.get(TALLY):
        tally = {name: [getattr(it, "nodeid", "") for it in stats] for name, stats in terminalreporter.stats.items() if name}
        Path(file).write_text(json.dumps(tally))
