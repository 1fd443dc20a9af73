"""The Debian packages that the guests need: what is missing, and its installation (``./justw packages``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = (
    "qemu-system-x86",
    "ipxe-qemu",
    "seabios",
    "busybox-static",
    "nvme-cli",
    "e2fsprogs",
    "xfsprogs",
    "util-linux",
    "fdisk",
    "kmod",
    "cpio",
    "containerd",
    "runc",
)
"""Everything but the kernel, which is only downloaded: the host keeps its own."""

INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends")
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}


class PackagesMissing(RuntimeError):
    """Programs are missing; the message has the command that installs them."""


def missing() -> list[str]:
    """Return the packages that are not installed; all of them where there is no dpkg."""
    if not shutil.which("dpkg-query"):
        return list(PACKAGES)
    asked = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {name for name, _, status in (line.partition(" ") for line in asked.stdout.splitlines()) if status == "installed"}
    return [name for name in PACKAGES if name not in installed]


def require() -> None:
    """Do nothing where everything is installed.

    Raises:
        PackagesMissing: it is not.
    """
    if names := missing():
        command = f"apt-get update && {' '.join(INSTALL)} {' '.join(names)}"
        raise PackagesMissing(
            f"the guests need QEMU and more, on Debian 12 (bookworm), amd64. Run ./justw packages, or:\n{command}"
        )


def install() -> None:
    """Install what is missing and say so.

    Raises:
        PackagesMissing: that did not work; the message has what apt-get said and the command.
    """
    names = missing()
    if not names:
        return
    print(f"guests: installing {' '.join(names)} (apt-get)", file=sys.stderr, flush=True)
    said = [_said(["apt-get", "update"]), _said([*INSTALL, *names])]
    try:
        require()
    except PackagesMissing as still:
        raise PackagesMissing("\n".join([*said, str(still)])) from None
    print("guests: installed", file=sys.stderr, flush=True)


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env={**os.environ, **QUIET}
        ).stdout
    except OSError as error:
        return str(error)


def main() -> None:
    """Install what is missing; tests that need it fail and say why where that does not work, so this never stops the others."""
    try:
        install()
    except PackagesMissing as failure:
        print(failure, file=sys.stderr)


if __name__ == "__main__":
    main()
