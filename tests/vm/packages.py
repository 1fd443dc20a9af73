"""The Debian packages that the guests need (``./justw packages``)."""

from __future__ import annotations

from tests.packages import Packages, PackagesMissing

__all__ = ["GUESTS", "PackagesMissing", "install", "missing", "require"]

GUESTS = Packages(
    part="guests",
    needs="the guests need QEMU and more, on Debian 12 (bookworm), amd64",
    recipe="./justw packages",
    names=(
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
    ),
)
"""Everything but the kernel, which is only downloaded: the host keeps its own."""

missing, require, install = GUESTS.missing, GUESTS.require, GUESTS.install

if __name__ == "__main__":
    GUESTS.main()
