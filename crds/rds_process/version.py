"""What a program is: its version, and the commit that it was built from (``--version``)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

DISTRIBUTION: Final = "rds-csi"
COMMIT_FILE: Final = "commit.txt"
"""Lies beside this file where the distribution was built; a checkout has none (``crds/hatch_build.py``)."""

UNKNOWN: Final = "unknown"


def commit(package: Path = Path(__file__).parent) -> str:
    """Return the commit as it was noted when the distribution was built; in a checkout what git says; else ``unknown``.

    A checkout with changes that are not committed is told by ``-dirty``.
    """
    noted = package / COMMIT_FILE
    if noted.is_file():
        return noted.read_text().strip() or UNKNOWN
    checkout = package.parents[1]
    # Nothing above it is asked: an environment may lie in a repository of somebody else's.
    if not ((checkout / ".git").exists() and (checkout / "crds" / package.name).is_dir()):
        return UNKNOWN
    return _said_by_git(checkout) or UNKNOWN


def _said_by_git(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def described(program: str) -> str:
    """Return the line that ``--version`` prints."""
    return f"{program} {version(DISTRIBUTION)} (commit {commit()})"


class ShowVersion(argparse.Action):
    """``--version``: looks for the commit only where it is asked for."""

    def __init__(self, option_strings: list[str], dest: str, *, program: str) -> None:
        super().__init__(
            option_strings, dest=dest, default=argparse.SUPPRESS, nargs=0, help="show version and commit, and do nothing else"
        )
        self._program = program

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the line and end the process."""
        sys.stdout.write(f"{described(self._program)}\n")
        parser.exit()
