"""Debian packages that a part of the tests needs: what is missing, and its installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends")
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}


class PackagesMissing(RuntimeError):
    """Programs are missing; the message has the command that installs them."""


@dataclass(frozen=True)
class Packages:
    """What one part of the tests needs; ``recipe`` installs it."""

    part: str
    needs: str
    recipe: str
    names: tuple[str, ...]

    def missing(self) -> list[str]:
        """Return the packages that are not installed; all of them where there is no dpkg."""
        if not shutil.which("dpkg-query"):
            return list(self.names)
        asked = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *self.names],
            capture_output=True,
            text=True,
            check=False,
        )
        installed = {
            name for name, _, status in (line.partition(" ") for line in asked.stdout.splitlines()) if status == "installed"
        }
        return [name for name in self.names if name not in installed]

    def require(self) -> None:
        """Do nothing where everything is installed.

        Raises:
            PackagesMissing: it is not.
        """
        if names := self.missing():
            command = f"apt-get update && {' '.join(INSTALL)} {' '.join(names)}"
            raise PackagesMissing(f"{self.needs}. Run {self.recipe}, or:\n{command}")

    def install(self) -> None:
        """Install what is missing and say so.

        Raises:
            PackagesMissing: that did not work; the message has what apt-get said and the command.
        """
        names = self.missing()
        if not names:
            return
        print(f"{self.part}: installing {' '.join(names)} (apt-get)", file=sys.stderr, flush=True)
        said = [_said(["apt-get", "update"]), _said([*INSTALL, *names])]
        try:
            self.require()
        except PackagesMissing as still:
            raise PackagesMissing("\n".join([*said, str(still)])) from None
        print(f"{self.part}: installed", file=sys.stderr, flush=True)

    def main(self) -> None:
        """Install what is missing; tests that need it fail and say why where that does not work, so this never stops the others."""
        try:
            self.install()
        except PackagesMissing as failure:
            print(failure, file=sys.stderr)


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env={**os.environ, **QUIET}
        ).stdout
    except OSError as error:
        return str(error)
