"""Validation of the requests of each RPC, in the reference driver's order of checks. Pure: wire form in, frozen values out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from rds_csi.capabilities import Capability, Unsupported, combine, parse_capabilities, parse_capability
from rds_csi.errors import Aborted, InvalidArgument, NameRefused, NotFound, OutOfRange, ResourceExhausted
from rds_csi.parameters import VolumeParameters, parse_mutable_parameters, parse_parameters
from rds_csi.request_fields import check_map, parse_volume_id
from rds_csi.sizes import SizeOutOfRange, exact_size
from rds_csi.spec import csi_pb2
from rds_csi.topology import TOPOLOGY, is_met
from rds_records.names import check_node_name, is_handle
from rds_records.record import ContentSource
from rds_records.volume_layout import is_snapshot_id

MAX_STRING: Final = 128

SNAPSHOT_IGNORED: Final = ("volumePath",)
"""The Go driver's one VolumeSnapshotClass parameter: a snapshot lies beside its volume here."""

SNAPSHOT_EXTRAS: Final = "csi.storage.k8s.io/"
"""What csi-snapshotter adds with --extra-create-metadata, and the keys of secrets that it takes out itself."""

PAGE_AFTER: Final = "after:"
"""What the token of a page of volumes begins with; the handle of the last volume of the page before follows."""

_SECRET = re.compile(r"csi\.storage\.k8s\.io/[a-z-]+-secret-(?:name|namespace)")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """A volume that is wanted."""

    name: str
    """As the CO suggests it; not yet the handle."""

    capacity_bytes: int
    """What the volume will have: what is required, rounded up to what the box can make exactly."""

    limit_bytes: int
    """0 where there is no limit."""

    capability: Capability
    """The one that covers all."""

    parameters: VolumeParameters
    source: ContentSource | None = None


@dataclass(frozen=True, slots=True)
class CreateSnapshot:
    """A snapshot that is wanted."""

    name: str
    """As the CO suggests it; not yet the id."""

    source_handle: str
    ignored: tuple[str, ...] = ()
    """Parameters that were given and have no effect; worth a warning."""


@dataclass(frozen=True, slots=True)
class ListSnapshots:
    """Which snapshots are asked for; empty and 0 where there is no bound."""

    snapshot_id: str
    source_handle: str
    after: str
    """The id of the last snapshot of the page before."""

    max_entries: int


@dataclass(frozen=True, slots=True)
class ListVolumes:
    """Which page of volumes is asked for; empty and 0 where there is no bound."""

    after: str
    """The handle of the last volume of the page before."""

    max_entries: int


@dataclass(frozen=True, slots=True)
class GetCapacity:
    """A question how much room there is."""

    directory: str
    """Where volumes of that StorageClass would lie."""

    offered: bool
    """Whether volumes can be made for all of the capabilities at all."""


@dataclass(frozen=True, slots=True)
class ExpandVolume:
    """A volume that is to grow; sizes in bytes, ``limit_bytes`` is 0 where there is none."""

    handle: str
    capacity_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class ModifyVolume:
    """What a VolumeAttributesClass wants of a volume."""

    handle: str
    migration_timeout_seconds: int | None
    """None: nothing is asked for."""


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """A volume that is to go."""

    handle: str


@dataclass(frozen=True, slots=True)
class ControllerPublish:
    """A node that wants a volume."""

    handle: str
    node: str
    capability: Capability
    volume_context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ControllerUnpublish:
    """A node that leaves a volume; all nodes where ``node`` is empty."""

    handle: str
    node: str


@dataclass(frozen=True, slots=True)
class ValidateCapabilities:
    """A question whether a volume can be used in all of these ways."""

    handle: str
    capabilities: tuple[Capability, ...]
    unsupported: str
    """Why not, where one of them is not offered at all; else empty."""

    volume_context: Mapping[str, str] = field(default_factory=dict)


def create_volume(request: csi_pb2.CreateVolumeRequest, *, base_path: str) -> CreateVolume:
    """Return what CreateVolume asks for; raises InvalidArgument, OutOfRange where no size fits, or ResourceExhausted."""
    if not request.name:
        raise InvalidArgument("name is missing")
    capability = combine(parse_capabilities(request.volume_capabilities))
    required, limit = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
    if required < 0 or limit < 0:
        raise InvalidArgument("capacity_range is negative")
    try:
        capacity = exact_size(required, limit)
    except SizeOutOfRange as error:
        raise OutOfRange(str(error)) from error
    if not _NAME.fullmatch(request.name):
        raise NameRefused(f"name {request.name[:140]!r} is not valid: 1 to {MAX_STRING} letters, digits and inner ._-")
    source = _content_source(request)
    if not is_met(request.accessibility_requirements):
        raise ResourceExhausted(f"accessibility_requirements: volumes are in {TOPOLOGY} only, which is none of the requisite")
    check_map("mutable_parameters", request.mutable_parameters)
    timeout = parse_mutable_parameters(request.mutable_parameters)
    check_map("parameters", request.parameters)
    check_map("secrets", request.secrets)
    parameters = parse_parameters(request.parameters, base_path=base_path)
    if timeout is not None:
        parameters = replace(parameters, migration_timeout_seconds=timeout)
    return CreateVolume(
        name=request.name,
        capacity_bytes=capacity,
        limit_bytes=limit,
        capability=capability,
        parameters=parameters,
        source=source,
    )


def create_snapshot(request: csi_pb2.CreateSnapshotRequest) -> CreateSnapshot:
    """Return what CreateSnapshot asks for; raises InvalidArgument."""
    if not request.name:
        raise InvalidArgument("name is missing")
    if not request.source_volume_id:
        raise InvalidArgument("source_volume_id is missing")
    if not _NAME.fullmatch(request.name):
        raise NameRefused(f"name {request.name[:140]!r} is not valid: 1 to {MAX_STRING} letters, digits and inner ._-")
    handle = parse_volume_id(request.source_volume_id)
    check_map("parameters", request.parameters)
    check_map("secrets", request.secrets)
    unknown = [key for key in request.parameters if key not in SNAPSHOT_IGNORED and not key.startswith(SNAPSHOT_EXTRAS)]
    if unknown:
        raise InvalidArgument(f"VolumeSnapshotClass parameter {unknown[0][:60]!r} is unknown; there are none to give")
    ignored = tuple(key for key in SNAPSHOT_IGNORED if key in request.parameters)
    return CreateSnapshot(request.name, handle, ignored)


def delete_snapshot(request: csi_pb2.DeleteSnapshotRequest) -> str:
    """Return the id of the snapshot that is to go, which need not be one of ours; raises InvalidArgument where there is none."""
    if not request.snapshot_id:
        raise InvalidArgument("snapshot_id is missing")
    check_map("secrets", request.secrets)
    return request.snapshot_id


def list_snapshots(request: csi_pb2.ListSnapshotsRequest) -> ListSnapshots:
    """Return which snapshots ListSnapshots asks for; raises InvalidArgument, and Aborted for a token that is none of ours."""
    if request.max_entries < 0:
        raise InvalidArgument(f"max_entries is {request.max_entries}; it must not be negative")
    if request.starting_token and not is_snapshot_id(request.starting_token):
        raise Aborted(f"starting_token {request.starting_token[:140]!r} is none that was given out; list from the beginning")
    check_map("secrets", request.secrets)
    return ListSnapshots(request.snapshot_id, request.source_volume_id, request.starting_token, request.max_entries)


def list_volumes(request: csi_pb2.ListVolumesRequest) -> ListVolumes:
    """Return which volumes ListVolumes asks for; raises InvalidArgument, and Aborted for a token that is none of ours."""
    if request.max_entries < 0:
        raise InvalidArgument(f"max_entries is {request.max_entries}; it must not be negative")
    after = request.starting_token.removeprefix(PAGE_AFTER)
    if request.starting_token and (after == request.starting_token or not is_handle(after)):
        raise Aborted(f"starting_token {request.starting_token[:140]!r} is none that was given out; list from the beginning")
    return ListVolumes(after, request.max_entries)


def get_capacity(request: csi_pb2.GetCapacityRequest, *, base_path: str) -> GetCapacity:
    """Return what GetCapacity asks; raises InvalidArgument for parameters that CreateVolume would refuse."""
    # csi-provisioner hands the StorageClass on as it is here; for CreateVolume it takes the keys out that name secrets.
    given = {key: value for key, value in check_map("parameters", request.parameters).items() if not _SECRET.fullmatch(key)}
    parameters = parse_parameters(given, base_path=base_path)
    try:
        offered = not request.volume_capabilities or bool(combine(parse_capabilities(request.volume_capabilities)))
    except InvalidArgument:
        offered = False
    return GetCapacity(parameters.volume_path, offered)


def _content_source(request: csi_pb2.CreateVolumeRequest) -> ContentSource | None:
    if not request.HasField("volume_content_source"):
        return None
    source = request.volume_content_source
    match source.WhichOneof("type"):
        case "snapshot":
            snapshot_id = source.snapshot.snapshot_id
            if not snapshot_id:
                raise InvalidArgument("volume_content_source: snapshot_id is missing")
            if not is_snapshot_id(snapshot_id):
                raise NotFound(f"there is no snapshot {snapshot_id[:140]!r}: this driver gives out no such ids")
            return ContentSource(snapshot_id=snapshot_id)
        case "volume":
            return ContentSource(volume_handle=parse_volume_id(source.volume.volume_id))
    raise InvalidArgument("volume_content_source: neither a snapshot nor a volume is named")


def delete_volume(request: csi_pb2.DeleteVolumeRequest) -> DeleteVolume:
    """Return what DeleteVolume asks for; raises InvalidArgument."""
    handle = parse_volume_id(request.volume_id)
    check_map("secrets", request.secrets)
    return DeleteVolume(handle)


def expand_volume(request: csi_pb2.ControllerExpandVolumeRequest) -> ExpandVolume:
    """Return what ControllerExpandVolume asks for; raises InvalidArgument, or OutOfRange where no size fits."""
    handle = parse_volume_id(request.volume_id)
    if not request.HasField("capacity_range"):
        raise InvalidArgument("capacity_range is missing")
    required, limit = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
    if required < 0 or limit < 0:
        raise InvalidArgument("capacity_range is negative")
    if required == 0:
        raise InvalidArgument("capacity_range: required_bytes is missing")
    try:
        capacity = exact_size(required, limit)
    except SizeOutOfRange as error:
        raise OutOfRange(str(error)) from error
    if request.HasField("volume_capability"):
        parse_capability(request.volume_capability)
    check_map("secrets", request.secrets)
    return ExpandVolume(handle, capacity, limit)


def modify_volume(request: csi_pb2.ControllerModifyVolumeRequest) -> ModifyVolume:
    """Return what ControllerModifyVolume asks for; raises InvalidArgument."""
    handle = parse_volume_id(request.volume_id)
    check_map("mutable_parameters", request.mutable_parameters)
    check_map("secrets", request.secrets)
    return ModifyVolume(handle, parse_mutable_parameters(request.mutable_parameters))


def controller_publish(request: csi_pb2.ControllerPublishVolumeRequest) -> ControllerPublish:
    """Return what ControllerPublishVolume asks for; raises InvalidArgument.

    The volume context is bounded and else taken as it is: it may be the Go driver's.
    """
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    if not request.node_id:
        raise InvalidArgument("node_id is missing")
    handle = parse_volume_id(request.volume_id)
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability is missing")
    node = _node(request.node_id)
    capability = parse_capability(request.volume_capability)
    if request.readonly:
        capability = replace(capability, read_only=True)
    check_map("secrets", request.secrets)
    return ControllerPublish(handle, node, capability, check_map("volume_context", request.volume_context))


def controller_unpublish(request: csi_pb2.ControllerUnpublishVolumeRequest) -> ControllerUnpublish:
    """Return what ControllerUnpublishVolume asks for; an empty node id is valid and means every node; raises InvalidArgument."""
    handle = parse_volume_id(request.volume_id)
    node = _node(request.node_id) if request.node_id else ""
    check_map("secrets", request.secrets)
    return ControllerUnpublish(handle, node)


def validate_capabilities(request: csi_pb2.ValidateVolumeCapabilitiesRequest) -> ValidateCapabilities:
    """Return what ValidateVolumeCapabilities asks; raises InvalidArgument where the request is malformed.

    A mode that is not offered is no error here: it is answered with OK, a message and no confirmation. Parameters are not looked
    at, so the answer must not confirm them.
    """
    handle = parse_volume_id(request.volume_id)
    if not request.volume_capabilities:
        raise InvalidArgument("volume_capabilities are missing")
    for name in ("volume_context", "parameters", "mutable_parameters", "secrets"):
        check_map(name, getattr(request, name))
    context = dict(request.volume_context)
    try:
        return ValidateCapabilities(handle, parse_capabilities(request.volume_capabilities), "", context)
    except Unsupported as error:
        return ValidateCapabilities(handle, (), str(error), context)


def _node(node_id: str) -> str:
    try:
        return check_node_name(node_id)
    except ValueError as error:
        raise NameRefused(str(error)) from error
