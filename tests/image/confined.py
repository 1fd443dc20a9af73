"""Programs of the image as a container runtime would run them: its files read-only, its user, its environment and nothing else.

No container runtime is needed for that: a mount namespace and a change of root are enough, and the network is the machine's.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.image.building import Image

LENT = Path("/mnt")
"""Where a program sees the folder that it is lent; a Debian has it, empty."""

START = """\
set -e
root=$1 user=$2 lent=$3; shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ -n "$lent" ]; then mount --bind "$lent" "$root/mnt"; fi
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" --groups= "$root" /usr/bin/env -i "$@"
"""


def confined(image: Image, argv: Sequence[str | Path], *, user: str = "", folder: Path | None = None) -> list[str]:
    """Return the command that runs a program of the image, as its own user unless another is named (``UID:GID``).

    It may write to ``folder`` alone, which it sees at ``LENT``: every path in it is rewritten, also in options.
    """
    words = [str(word).replace(str(folder), str(LENT)) if folder else str(word) for word in argv]
    environment = [f"{name}={value}" for name, value in {"HOME": "/nonexistent", **image.env}.items()]
    start = ["unshare", "--mount", "--propagation=private", "sh", "-c", START, "sh"]
    return [*start, str(image.root), user or image.config["User"], str(folder or ""), *environment, *words]


def run(
    image: Image, *argv: str | Path, user: str = "", folder: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program of the image to its end."""
    command = confined(image, argv, user=user, folder=folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 or not check, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def lend(argv: Sequence[str | Path], folder: Path, user: str) -> list[str]:
    """Return a command whose files, also those in ``--option=FILE``, are copies in the folder that the user may read."""
    owner, group = (int(number) for number in user.split(":"))
    words = []
    for number, word in enumerate(map(str, argv)):
        option, _, value = word.rpartition("=")
        if value.startswith("/") and Path(value).is_file() and option:
            copy = folder / f"{number}-{Path(value).name}"
            shutil.copy(value, copy)
            if copy.suffix == ".kubeconfig":
                _name_authority(copy)
            words.append(f"{option}={copy}")
        else:
            words.append(word)
    for path in (folder, *folder.iterdir()):
        os.chown(path, owner, group)
    return words


def _name_authority(kubeconfig: Path) -> None:
    """Let a kubeconfig name the API server's authority as a file, as a pod's account has it: inlined, it would be written out."""
    config = yaml.safe_load(kubeconfig.read_text())
    for cluster in (entry["cluster"] for entry in config["clusters"]):
        file = kubeconfig.with_suffix(".crt")
        file.write_bytes(base64.b64decode(cluster.pop("certificate-authority-data")))
        cluster["certificate-authority"] = str(LENT / file.name)
    kubeconfig.write_text(yaml.safe_dump(config))
