"""What every RPC gets: measured, logged with its secrets stripped, and its exceptions turned into a gRPC status."""

from __future__ import annotations

import inspect
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from prometheus_client import Histogram

from rds_csi.errors import NameRefused, Rejected, status_of
from rds_csi.spec import csi_pb2
from rds_process import audit
from rds_process.logs import STRIPPED

_log = logging.getLogger(__name__)
_SECRET: Final[Any] = csi_pb2.csi_secret

MAX_TEXT: Final = 256
MAX_ITEMS: Final = 16
"""Characters of a string and entries of a list or map that are logged."""

MAX_DETAILS: Final = 4096
"""Characters of a status message: it travels in an HTTP/2 header, whose size peers bound (gRPC: 8 KiB by default)."""

AUDITED: Final = {
    "CreateVolume": ("name",),
    "DeleteVolume": ("volume_id",),
    "ControllerPublishVolume": ("volume_id", "node_id", "readonly"),
    "ControllerUnpublishVolume": ("volume_id", "node_id"),
    "ControllerExpandVolume": ("volume_id",),
    "ControllerModifyVolume": ("volume_id",),
    "CreateSnapshot": ("name", "source_volume_id"),
    "DeleteSnapshot": ("snapshot_id",),
    "NodeStageVolume": ("volume_id", "staging_target_path"),
    "NodeUnstageVolume": ("volume_id", "staging_target_path"),
    "NodePublishVolume": ("volume_id", "target_path", "readonly"),
    "NodeUnpublishVolume": ("volume_id", "target_path"),
    "NodeExpandVolume": ("volume_id", "volume_path"),
}
"""The calls that change something, and the fields of their requests that the audit log names."""

AUDIT_NAMES: Final = {
    "name": "asked_name",
    "volume_id": "volume",
    "node_id": "node",
    "snapshot_id": "snapshot",
    "source_volume_id": "source",
}
"""What the audit log calls them, where that differs."""

QUIET: Final = frozenset(
    {"Probe", "GetPluginInfo", "GetPluginCapabilities", "ControllerGetCapabilities", "NodeGetCapabilities", "NodeGetVolumeStats"}
)
"""Asked again and again by sidecars: logged at debug level while they succeed."""


def loggable(message: Message) -> dict[str, Any]:
    """Return the fields that are set as plain values; secrets (CSI's field option ``csi_secret``) stripped, what is long cut."""
    return {
        field.name: STRIPPED if field.GetOptions().Extensions[_SECRET] else _value(field, value)
        for field, value in message.ListFields()
    }


def _value(field: FieldDescriptor, value: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        shown: Any = {_scalar(key): _single(inner, value[key]) for key in sorted(value)[:MAX_ITEMS]}
        return {**shown, "…": f"{len(value)} entries"} if len(value) > MAX_ITEMS else shown
    if field.is_repeated:
        shown = [_single(field, one) for one in value[:MAX_ITEMS]]
        return [*shown, f"… {len(value)} entries"] if len(value) > MAX_ITEMS else shown
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return loggable(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    return value


def code_name(code: Any) -> str:
    """Return a ``grpc.StatusCode`` as Go spells it (``InvalidArgument``), as dashboards for CSI drivers expect it."""
    if code is grpc.StatusCode.OK:
        return "OK"
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return str(code.name).title().replace("_", "")


def audit_kind(error: BaseException) -> audit.Kind:
    """Tell whether a call that was not admitted was refused by a decision, or something failed."""
    if isinstance(error, NameRefused):
        return audit.Kind.NAME_REFUSED
    return audit.Kind.CALL_REFUSED if isinstance(error, Rejected) else audit.Kind.CALL_FAILED


def audit_fields(name: str, request: Message | None, response: Message | None) -> dict[str, object]:
    """Return what the audit log says of a request, and of the volume or snapshot that was made for it."""
    asked: Any = request
    fields = {} if asked is None else {AUDIT_NAMES.get(field, field): getattr(asked, field) for field in AUDITED[name]}
    made: Any = response
    if name == "CreateVolume" and made is not None:
        fields |= {"volume": made.volume.volume_id, "bytes": made.volume.capacity_bytes}
    if name == "CreateSnapshot" and made is not None:
        fields |= {"snapshot": made.snapshot.snapshot_id}
    if name.endswith("ExpandVolume") and asked is not None:
        fields |= {"bytes": asked.capacity_range.required_bytes}
    return fields


class RpcInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps every unary RPC of the server.

    A ``Rejected`` or an exception of ``errors.STATUS_TABLE`` becomes its status, with its message. Any other becomes INTERNAL with
    a short id and nothing else; the traceback is in the log under the same id. A cancelled call stays cancelled.
    """

    def __init__(
        self,
        rpcs: Histogram,
        *,
        driver_name: str,
        methods: Iterable[str] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``rpcs`` is ``metrics.rpc_histogram``; ``methods`` (``/csi.v1.Identity/Probe``) are there at 0 from the start."""
        self._rpcs = rpcs
        self._driver_name = driver_name
        self._monotonic = monotonic
        for method in methods:
            rpcs.labels(driver_name, method, "OK")

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            # An RPC that nobody serves, or a streaming one: none of those is offered.
            return handler
        inner = handler.unary_unary
        method = handler_call_details.method

        async def behaviour(data: bytes, context: Any) -> Any:
            return await self._call(method, inner, lambda: handler.request_deserializer(data), context)

        # Decoded inside the call: gRPC would answer UNKNOWN to what is no message, neither measured nor logged.
        return grpc.unary_unary_rpc_method_handler(behaviour, response_serializer=handler.response_serializer)

    async def _call(self, method: str, inner: Callable[[Message, Any], Any], decode: Callable[[], Message], context: Any) -> Any:
        call_id = secrets.token_hex(4)
        quiet = method.rpartition("/")[2] in QUIET
        started = self._monotonic()
        code, level = grpc.StatusCode.UNKNOWN, logging.WARNING
        request: Message | None = None
        response: Message | None = None
        kind = audit.Kind.CALL_FAILED
        outcome: dict[str, Any] = {}
        try:
            request = decode()
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("call begins", extra={"method": method, "call": call_id, "request": loggable(request)})
            answer = inner(request, context)
            response = await answer if inspect.isawaitable(answer) else answer
            code, kind = grpc.StatusCode.OK, audit.Kind.CALL_ADMITTED
            level = logging.DEBUG if quiet else logging.INFO
            if _log.isEnabledFor(level):
                outcome = {"response": loggable(response)}
        except grpc.aio.AbortError:
            code = context.code()
            outcome = {"error": context.details()}
            raise
        except BaseException as error:
            kind = audit_kind(error)
            code, level, details = self._judge(error, method, call_id, context)
            outcome = {"error": details}
            if not isinstance(error, Exception):
                raise
            await context.abort(code, details[:MAX_DETAILS])
        else:
            return response
        finally:
            elapsed = max(0.0, self._monotonic() - started)
            self._rpcs.labels(self._driver_name, method, code_name(code)).observe(elapsed)
            name = method.rpartition("/")[2]
            if name in AUDITED:
                said = {"code": code_name(code), "reason": outcome.get("error", "")}
                audit.record(kind, method=name, call=call_id, **audit_fields(name, request, response), **said)
            if _log.isEnabledFor(level):
                extra = {"method": method, "call": call_id, "code": code_name(code), "seconds": round(elapsed, 6)}
                asked = {} if request is None else {"request": loggable(request)}
                _log.log(level, "call", extra={**extra, **asked, **outcome})

    def _judge(self, error: BaseException, method: str, call_id: str, context: Any) -> tuple[Any, int, str]:
        """Return status code, log level and message of what a handler raised."""
        if not isinstance(error, Exception):
            # The caller left, its deadline passed, or the drain time is over; gRPC has answered, or will.
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= 0
            return (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED), logging.WARNING, "cancelled"
        code = status_of(error)
        if code is None:
            _log.error("unexpected %s", type(error).__name__, exc_info=error, extra={"method": method, "call": call_id})
            return grpc.StatusCode.INTERNAL, logging.ERROR, f"internal error {call_id}: see the log of the driver"
        if isinstance(error, NotImplementedError):
            return code, logging.INFO, f"{method} is not offered"
        if isinstance(error, Rejected):
            return code, logging.INFO, str(error)
        return code, logging.WARNING, str(error) or type(error).__name__
