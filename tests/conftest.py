"""What all tests share: what a test wants to be read at the end of a run."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ``summary`` that tests have recorded (``record_property``)."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports if isinstance(report, pytest.TestReport)]
    texts = [text for report in reports if report.when == "call" for name, text in report.user_properties if name == "summary"]
    if texts:
        terminalreporter.section("reports")
        for text in texts:
            terminalreporter.write_line(str(text))
