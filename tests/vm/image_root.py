"""A program of the image in a guest, as the DaemonSet runs it: the image's files, the machine's devices, shared mounts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.image.building import Image
from tests.vm.guests import SHARE, Guest

PREPARE = """\
set -e
root=$1; shift
for folder in "$@"; do
    mkdir -p "$folder" "$root$folder"
    mountpoint -q "$folder" || { mount --bind "$folder" "$folder"; mount --make-rshared "$folder"; }
done
"""
"""In the machine's own mount namespace: what is mounted below these folders shows on both sides (``Bidirectional``)."""

START = """\
set -e
root=$1; shift
mount --bind "$root" "$root"
mount --make-private "$root"
mount -t proc proc "$root/proc"
for folder in /sys /dev; do mount --rbind "$folder" "$root$folder"; mount --make-rslave "$root$folder"; done
while [ "$1" != -- ]; do mount --rbind "$1" "$root$1"; shift; done
shift
mount -o remount,bind,ro "$root"
exec chroot "$root" /usr/bin/env "$@"
"""
"""In a mount namespace of its own. The processes of the machine are seen (``hostPID``), its network is used (``hostNetwork``)."""

FORGET = """\
for folder in "$@"; do
    # Their last user is gone with its mount namespace.
    while mountpoint -q "$folder"; do umount "$folder"; done
done
"""


class ImageRoot:
    """Makes commands of a guest run in the image; the folders are shared with the guest, at the same paths."""

    def __init__(self, guest: Guest, image: Image, folders: Iterable[Path]) -> None:
        self.guest = guest
        self.image = image
        self.folders = [str(folder) for folder in folders]

    def prepare(self) -> None:
        """Make the folders and let mounts below them show on both sides."""
        self.guest.run("mkdir", "-p", f"{self.image.root}{SHARE}")
        self.guest.run("/bin/sh", "-c", PREPARE, "sh", str(self.image.root), *self.folders)

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command that runs a program of the image, named without a path, as root."""
        words = [f"{name}={value}" for name, value in self.image.env.items()] + [str(word) for word in argv]
        start = ["unshare", "--mount", "--propagation=unchanged", "/bin/sh", "-c", START, "sh", str(self.image.root)]
        return [*start, *self.folders, str(SHARE), "--", *words]

    def forget(self) -> None:
        """Leave the guest's mounts as they were."""
        self.guest.run("/bin/sh", "-c", FORGET, "sh", *self.folders)
