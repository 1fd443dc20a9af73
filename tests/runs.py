"""Run the tests in two goes, those of the guests alone after all others, and end with one sum: ``python -m tests.runs [ARG …]``.

The arguments are pytest's. Both goes are run whatever the first says, and the last line is in pytest's words: how many tests
passed, failed, … in both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

TALLY = "RDS_CSI_TEST_TALLY"
"""Names the file that one go writes its counts and failures to; see ``tests/conftest.py``."""

SHOWN = ("failed", "passed", "skipped", "xfailed", "xpassed", "warnings", "error")


def main() -> None:
    """Run both goes, print the sum and exit as pytest would have after one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--choose", default="", help="a mark expression for both goes")
    parser.add_argument("--numprocesses", default="0", help="how many tests beside the guests run at once")
    options, arguments = parser.parse_known_args()
    beside = ["--numprocesses", options.numprocesses, "--dist", "loadfile"] if options.numprocesses != "0" else []
    started = time.monotonic()
    tallies, statuses = [], []
    for mark, more in (("not guests", beside), ("guests", [])):
        expression = f"{mark} and ({options.choose})" if options.choose else mark
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tally.json"
            command = [sys.executable, "-m", "pytest", "-m", expression, *more, *arguments]
            statuses.append(subprocess.run(command, check=False, env={**os.environ, TALLY: str(file)}).returncode)
            tallies.append(json.loads(file.read_text()) if file.exists() else {})
    print(summary(tallies, time.monotonic() - started))
    sys.exit(verdict(statuses))


def summary(tallies: list[dict[str, list[str]]], seconds: float) -> str:
    """Return what failed, and the counts of both goes together."""
    counts = Counter({name: sum(len(tally.get(name, [])) for tally in tallies) for name in SHOWN})
    failures = [f"{name.upper()} {test}" for name in ("failed", "error") for tally in tallies for test in tally.get(name, [])]
    words = ", ".join(f"{number} {name}" for name in SHOWN if (number := counts[name])) or "no tests ran"
    return "\n".join([*failures, f" {words} in {seconds:.2f}s ".center(80, "=")])


def verdict(statuses: list[int]) -> int:
    """Return the exit status of both goes together: one that had no tests to run decides nothing, unless both had none."""
    ran = [status for status in statuses if status != pytest.ExitCode.NO_TESTS_COLLECTED]
    return next((status for status in ran if status), 0) if ran else int(pytest.ExitCode.NO_TESTS_COLLECTED)


if __name__ == "__main__":
    main()
