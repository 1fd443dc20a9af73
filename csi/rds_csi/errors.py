"""One table, in two parts, from exceptions to gRPC status codes; the interceptor is the only one that reads it."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Final

import grpc
from google.protobuf.message import DecodeError

from rds_csi.node.commands import CommandError
from rds_csi.node.looks import LookTooSlow, PathUnusable
from rds_csi.node.mountinfo import MountTableUnreadable
from rds_csi.node.sysfs import SysfsUnreadable
from rds_csi.node.usage import UsersUnknown


class Rejected(Exception):
    """An RPC is refused; the message goes to the caller as it is, so it says what to do and holds no secret."""

    code: ClassVar[Any]


class InvalidArgument(Rejected):
    """The request can never be right."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NameRefused(InvalidArgument):
    """A name or path of the request may not be used, whoever asks; the audit log has a kind of entry for it."""


class NotFound(Rejected):
    """There is positive evidence that what the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(Rejected):
    """What the request names exists and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(Rejected):
    """The state of the volume does not allow it now."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(Rejected):
    """Another call for the same volume is under way, or has just won."""

    code = grpc.StatusCode.ABORTED


class OutOfRange(Rejected):
    """No size fits the request."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(Rejected):
    """The box has no room."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(Rejected):
    """Nobody can tell now; the same call may be right later."""

    code = grpc.StatusCode.UNAVAILABLE


class Unimplemented(Rejected):
    """The RPC is not offered."""

    code = grpc.StatusCode.UNIMPLEMENTED


STATUS_TABLE: Final[tuple[tuple[type[Exception], Any], ...]] = (
    # The node. What may have been done in part is UNAVAILABLE: of what it takes for final, the kubelet forgets that the node may
    # have something to take away (kubernetes, pkg/volume/csi/csi_client.go, "isFinalError").
    (CommandError, grpc.StatusCode.UNAVAILABLE),
    (LookTooSlow, grpc.StatusCode.UNAVAILABLE),
    (PathUnusable, grpc.StatusCode.UNAVAILABLE),
    (SysfsUnreadable, grpc.StatusCode.UNAVAILABLE),
    (MountTableUnreadable, grpc.StatusCode.UNAVAILABLE),
    (UsersUnknown, grpc.StatusCode.UNAVAILABLE),
    # The RPC itself.
    (DecodeError, grpc.StatusCode.INVALID_ARGUMENT),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (NotImplementedError, grpc.StatusCode.UNIMPLEMENTED),
)
"""First match wins, so a class stands before its bases. What matches nothing is a defect of ours: INTERNAL, with a traceback."""


@cache
def controller_table() -> tuple[tuple[type[Exception], Any], ...]:
    """Return the part of the table that only a controller needs: its libraries take a node a second of its start, and memory."""
    from rds_csi.routeros import errors as routeros
    from rds_csi.sizes import SizeOutOfRange
    from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound, RequestRefused, WriteConflict
    from rds_records.store import Contended

    return (
        # The box. What may have been applied is UNAVAILABLE: csi-provisioner takes INTERNAL for final and would forget the
        # volume (external-provisioner, pkg/controller/controller.go, "isFinalError").
        (routeros.BoxUnreachable, grpc.StatusCode.UNAVAILABLE),
        (routeros.OutcomeUnknown, grpc.StatusCode.UNAVAILABLE),
        (routeros.MalformedAnswer, grpc.StatusCode.UNAVAILABLE),
        (routeros.PoolFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (routeros.BoxBusy, grpc.StatusCode.FAILED_PRECONDITION),
        (routeros.AlreadyThere, grpc.StatusCode.ABORTED),
        (routeros.NoSuchItem, grpc.StatusCode.ABORTED),
        (routeros.DiskInTheWay, grpc.StatusCode.ALREADY_EXISTS),
        (routeros.SubvolumesMissing, grpc.StatusCode.FAILED_PRECONDITION),
        (routeros.Conflict, grpc.StatusCode.FAILED_PRECONDITION),
        (routeros.BoxError, grpc.StatusCode.INTERNAL),
        (routeros.InvalidName, grpc.StatusCode.INVALID_ARGUMENT),
        (SizeOutOfRange, grpc.StatusCode.OUT_OF_RANGE),
        # The API server.
        (ApiUnavailable, grpc.StatusCode.UNAVAILABLE),
        (WriteConflict, grpc.StatusCode.ABORTED),
        (Contended, grpc.StatusCode.ABORTED),
        (ObjectNotFound, grpc.StatusCode.ABORTED),
        (RequestRefused, grpc.StatusCode.UNAVAILABLE),
        (ApiError, grpc.StatusCode.UNAVAILABLE),
    )


def status_of(error: BaseException) -> Any | None:
    """Return the ``grpc.StatusCode`` of an exception, or None where the tables do not know it."""
    if isinstance(error, Rejected):
        return error.code
    code = _find(STATUS_TABLE, error)
    return _find(controller_table(), error) if code is None else code


def _find(table: tuple[tuple[type[Exception], Any], ...], error: BaseException) -> Any | None:
    return next((code for kind, code in table if isinstance(error, kind)), None)
