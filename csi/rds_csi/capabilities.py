"""What a CSI VolumeCapability asks for, and whether this driver can give it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rds_csi.errors import InvalidArgument
from rds_csi.spec import csi_pb2
from rds_records.record import AccessMode, VolumeMode

if TYPE_CHECKING:
    from rds_records.transitions import Access

FILE_SYSTEMS: Final = ("ext4", "ext3", "xfs")
MAX_CAPABILITIES: Final = 32
MAX_MOUNT_FLAGS: Final = 64
MAX_FLAGS_LENGTH: Final = 4096
"""Bytes of all mount flags together (the CSI spec bounds maps so, and leaves lists open)."""

_FLAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+=%-]{0,127}")

_Mode = csi_pb2.VolumeCapability.AccessMode
_SUPPORTED: Final = {
    # ReadWriteOnce arrives as either of these two, as the sidecar knows SINGLE_NODE_MULTI_WRITER of the driver or not.
    _Mode.SINGLE_NODE_WRITER: AccessMode.READ_WRITE_ONCE,
    _Mode.SINGLE_NODE_MULTI_WRITER: AccessMode.READ_WRITE_ONCE,
    _Mode.SINGLE_NODE_READER_ONLY: AccessMode.READ_WRITE_ONCE,
    _Mode.SINGLE_NODE_SINGLE_WRITER: AccessMode.READ_WRITE_ONCE_POD,
    _Mode.MULTI_NODE_READER_ONLY: AccessMode.READ_ONLY_MANY,
    _Mode.MULTI_NODE_MULTI_WRITER: AccessMode.READ_WRITE_MANY,
}
_READ_ONLY: Final = frozenset({_Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY})
_UNSUPPORTED: Final = {
    _Mode.MULTI_NODE_SINGLE_WRITER: "one writer with many readers is not offered; use ReadWriteMany with volumeMode Block",
}

NO_SHARED_FILE_SYSTEM: Final = (
    "ReadWriteMany and ReadOnlyMany need volumeMode Block: a file system that two nodes mount is destroyed, and mounting one "
    "for reading writes too (its journal); for KubeVirt live migration use volumeMode Block"
)


class Unsupported(InvalidArgument):
    """The capability is well-formed, and this driver does not offer it."""


@dataclass(frozen=True, slots=True)
class Capability:
    """One way to use a volume."""

    access_mode: AccessMode
    """Kubernetes' name of the mode."""

    volume_mode: VolumeMode
    read_only: bool = False
    csi_mode: str = "SINGLE_NODE_WRITER"
    fs_type: str = ""
    """Empty where the volume is a block device, and where nobody chose."""

    mount_flags: tuple[str, ...] = ()

    @property
    def multi_node(self) -> bool:
        """Whether more than one node may use the volume."""
        return self.access_mode.multi_node

    @property
    def block(self) -> bool:
        """Whether the volume is presented as a device."""
        return self.volume_mode is VolumeMode.BLOCK

    @property
    def access(self) -> Access:
        """The class by which the rules compare two ways of use."""
        # The rules bring Kubernetes' client along, which a node does not need.
        from rds_records.transitions import Access

        return Access(mode=self.access_mode, volume_mode=self.volume_mode, read_only=self.read_only)


def parse_capability(capability: csi_pb2.VolumeCapability) -> Capability:
    """Return what the capability asks for.

    Raises Unsupported where the access mode is one that this driver does not offer, and InvalidArgument where the capability is
    malformed, or multi-node with a file system.
    """
    access_type = capability.WhichOneof("access_type")
    if access_type is None:
        raise InvalidArgument("volume capability: access_type is missing; it must be block or mount")
    if not capability.HasField("access_mode"):
        raise InvalidArgument("volume capability: access_mode is missing")
    number = capability.access_mode.mode
    if number in _UNSUPPORTED:
        raise Unsupported(f"access mode {_Mode.Mode.Name(number)}: {_UNSUPPORTED[number]}")
    if number not in _SUPPORTED:
        raise InvalidArgument(f"volume capability: access mode {number} is unknown")
    mode = _SUPPORTED[number]
    volume_mode = VolumeMode.BLOCK if access_type == "block" else VolumeMode.FILESYSTEM
    if mode.multi_node and volume_mode is VolumeMode.FILESYSTEM:
        raise InvalidArgument(f"access mode {_Mode.Mode.Name(number)}: {NO_SHARED_FILE_SYSTEM}")
    return Capability(
        access_mode=mode,
        volume_mode=volume_mode,
        read_only=number in _READ_ONLY,
        csi_mode=_Mode.Mode.Name(number),
        fs_type=check_fs_type(capability.mount.fs_type),
        mount_flags=_mount_flags(capability.mount),
    )


def parse_capabilities(capabilities: Iterable[csi_pb2.VolumeCapability]) -> tuple[Capability, ...]:
    """Return what each of a request's capabilities asks for, in order; raises as ``parse_capability``, and where there is none."""
    listed = list(capabilities)
    if not listed:
        raise InvalidArgument("volume_capabilities are missing")
    if len(listed) > MAX_CAPABILITIES:
        raise InvalidArgument(f"{len(listed)} volume_capabilities; at most {MAX_CAPABILITIES} are taken")
    return tuple(parse_capability(one) for one in listed)


def combine(capabilities: tuple[Capability, ...]) -> Capability:
    """Return the one that a volume must be made for so that it can be used in every one of these ways.

    Raises InvalidArgument where block and mount are mixed, or two file systems.
    """
    if len({one.volume_mode for one in capabilities}) > 1:
        raise InvalidArgument("volume_capabilities mix block and mount; a volume is one or the other")
    fs_types = {one.fs_type for one in capabilities if one.fs_type}
    if len(fs_types) > 1:
        raise InvalidArgument(f"volume_capabilities name several file systems: {', '.join(sorted(fs_types))}")
    return max(capabilities, key=_width)


def _width(capability: Capability) -> tuple[bool, bool, bool, bool]:
    for_one_pod = capability.access_mode is AccessMode.READ_WRITE_ONCE_POD
    return capability.multi_node, not capability.read_only, not for_one_pod, bool(capability.fs_type)


def check_fs_type(fs_type: str) -> str:
    """Return the file system unchanged (empty: nobody chose), or raise InvalidArgument where it cannot be made here."""
    if fs_type and fs_type not in FILE_SYSTEMS:
        raise InvalidArgument(f"file system {fs_type[:40]!r} is not offered; allowed are {', '.join(FILE_SYSTEMS)}")
    return fs_type


def _mount_flags(mount: csi_pb2.VolumeCapability.MountVolume) -> tuple[str, ...]:
    if mount.volume_mount_group:
        raise InvalidArgument("volume_mount_group is not offered; use fsGroup in the pod")
    flags = tuple(mount.mount_flags)
    if len(flags) > MAX_MOUNT_FLAGS or sum(len(flag.encode()) for flag in flags) > MAX_FLAGS_LENGTH:
        raise InvalidArgument(f"mount_flags: at most {MAX_MOUNT_FLAGS} flags and {MAX_FLAGS_LENGTH} bytes are taken")
    for flag in flags:
        # One element is one option: a comma in it would carry a second one past every check of the first.
        if not _FLAG.fullmatch(flag):
            raise InvalidArgument(f"mount flag {flag[:40]!r} is not one option of letters, digits and _.:/@+=%-")
    return flags
