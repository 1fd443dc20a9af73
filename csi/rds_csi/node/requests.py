"""Validation of the requests of the Node RPCs. Pure: wire form in, frozen values out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rds_csi.capabilities import Capability, parse_capability
from rds_csi.errors import InvalidArgument, NameRefused
from rds_csi.node.decisions import ExpandWanted, StageWanted
from rds_csi.node.filesystems import fs_type_for, publish_options, stage_options
from rds_csi.node.nvme import target_for
from rds_csi.request_fields import check_map, parse_volume_id
from rds_csi.spec import csi_pb2

MAX_PATH: Final = 4095
"""Bytes (Linux, ``PATH_MAX`` without its final NUL)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A volume that is wanted on this node."""

    wanted: StageWanted
    path: str
    options: tuple[str, ...]
    """Of the mount; empty for a block device."""


@dataclass(frozen=True, slots=True)
class Unstage:
    """A volume that this node needs no more."""

    volume_id: str
    path: str


@dataclass(frozen=True, slots=True)
class Publish:
    """A pod that wants a staged volume."""

    volume_id: str
    staging_path: str
    path: str
    block: bool
    read_only: bool
    single_writer: bool
    """Whether no other pod may have it (SINGLE_NODE_SINGLE_WRITER)."""

    options: tuple[str, ...]
    """Of the bind mount; empty for a block device."""


@dataclass(frozen=True, slots=True)
class Unpublish:
    """A pod that needs a volume no more."""

    volume_id: str
    path: str


@dataclass(frozen=True, slots=True)
class Measure:
    """A volume that is to be measured, or whose health is asked for, where it is published or staged."""

    volume_id: str
    path: str


@dataclass(frozen=True, slots=True)
class Expand:
    """A volume that has grown, and is to be used as large as it is."""

    wanted: ExpandWanted
    staging_path: str
    """Empty where the caller names none."""


def stage(request: csi_pb2.NodeStageVolumeRequest, *, prefix: str) -> Stage:
    """Return what NodeStageVolume asks for; raises InvalidArgument, and FailedPrecondition for a volume that is not ours."""
    volume_id = parse_volume_id(request.volume_id)
    path = _path("staging_target_path", request.staging_target_path)
    capability = _capability(request)
    check_map("secrets", request.secrets)
    contexts = (check_map("volume_context", request.volume_context), check_map("publish_context", request.publish_context))
    fs_type = fs_type_for(capability.fs_type)
    wanted = StageWanted(
        volume_id=volume_id,
        target=target_for(volume_id, *contexts, prefix=prefix),
        block=capability.block,
        fs_type=fs_type,
        read_only=capability.read_only,
    )
    options = () if capability.block else stage_options(fs_type, capability.mount_flags, read_only=capability.read_only)
    return Stage(wanted, path, options)


def unstage(request: csi_pb2.NodeUnstageVolumeRequest) -> Unstage:
    """Return what NodeUnstageVolume asks for; raises InvalidArgument."""
    return Unstage(parse_volume_id(request.volume_id), _path("staging_target_path", request.staging_target_path))


def publish(request: csi_pb2.NodePublishVolumeRequest) -> Publish:
    """Return what NodePublishVolume asks for; raises InvalidArgument."""
    volume_id = parse_volume_id(request.volume_id)
    path = _path("target_path", request.target_path)
    capability = _capability(request)
    staging_path = _path("staging_target_path", request.staging_target_path)
    for name in ("secrets", "volume_context", "publish_context"):
        check_map(name, getattr(request, name))
    read_only = request.readonly or capability.read_only
    return Publish(
        volume_id=volume_id,
        staging_path=staging_path,
        path=path,
        block=capability.block,
        read_only=read_only,
        single_writer=capability.csi_mode == "SINGLE_NODE_SINGLE_WRITER",
        options=() if capability.block else publish_options(capability.mount_flags, read_only=read_only),
    )


def unpublish(request: csi_pb2.NodeUnpublishVolumeRequest) -> Unpublish:
    """Return what NodeUnpublishVolume asks for; raises InvalidArgument."""
    return Unpublish(parse_volume_id(request.volume_id), _path("target_path", request.target_path))


def measure(request: csi_pb2.NodeGetVolumeStatsRequest) -> Measure:
    """Return what NodeGetVolumeStats asks for; raises InvalidArgument. A path at which nothing can be is none that is malformed."""
    return Measure(parse_volume_id(request.volume_id), _given("volume_path", request.volume_path))


def expand(request: csi_pb2.NodeExpandVolumeRequest) -> Expand:
    """Return what NodeExpandVolume asks for; raises InvalidArgument."""
    volume_id = parse_volume_id(request.volume_id)
    path = _given("volume_path", request.volume_path)
    required, limit = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
    if required < 0 or limit < 0:
        raise InvalidArgument("capacity_range is negative")
    if 0 < limit < required:
        raise InvalidArgument("capacity_range: limit_bytes is less than required_bytes")
    check_map("secrets", request.secrets)
    block = request.volume_capability.WhichOneof("access_type") == "block"
    staging_path = _path("staging_target_path", request.staging_target_path) if request.staging_target_path else ""
    return Expand(ExpandWanted(volume_id, path, required, limit, block), staging_path)


def _capability(request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest) -> Capability:
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability is missing")
    return parse_capability(request.volume_capability)


def _given(name: str, path: str) -> str:
    if not path:
        raise InvalidArgument(f"{name} is missing")
    if "\0" in path or len(path.encode()) > MAX_PATH:
        raise NameRefused(f"{name} {path[:120]!r} is no path")
    return path


def _path(name: str, path: str) -> str:
    _given(name, path)
    if not path.startswith("/") or any(part in {"", ".", ".."} for part in path.rstrip("/").split("/")[1:]) or path == "/":
        raise NameRefused(f"{name} {path[:120]!r} is not absolute, or has an empty, '.' or '..' part")
    return path.rstrip("/")
