"""What the node service calls of the image."""

from __future__ import annotations

TOOLS = {
    "nvme": "version",
    "blkid": "--version",
    "blockdev": "--version",
    "dd": "--version",
    "mount": "--version",
    "umount": "--version",
    "mkfs.ext3": "-V",
    "mkfs.ext4": "-V",
    "mkfs.xfs": "-V",
    "resize2fs": "",
    "xfs_growfs": "-V",
}
"""What the node service calls, and how each says that it runs; resize2fs tells its version before it asks for a device."""

PACKAGES = {
    "coreutils": {"dd"},
    "e2fsprogs": {"mkfs.ext3", "mkfs.ext4", "resize2fs"},
    "mount": {"mount", "umount"},
    "nvme-cli": {"nvme"},
    "util-linux": {"blkid", "blockdev"},
    "xfsprogs": {"mkfs.xfs", "xfs_growfs"},
}
"""Debian's packages that have them."""

ESSENTIAL = {"coreutils"}
"""In every Debian."""
