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

from rds_csi.errors import Rejected, status_of
from rds_csi.spec import csi_pb2
from rds_process.logs import STRIPPED

_log = logging.getLogger(__name__)
_SECRET: Final[Any] = csi_pb2.csi_secret

MAX_TEXT: Final = 256
MAX_ITEMS: Final = 16
"""Characters of a string and entries of a list or map that are logged."""

MAX_DETAILS: Final = 4096
"""Characters of a status message: it travels in an HTTP/2 header, whose size peers bound (gRPC: 8 KiB by default)."""

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
        outcome: dict[str, Any] = {}
        try:
            request = decode()
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("call begins", extra={"method": method, "call": call_id, "request": loggable(request)})
            answer = inner(request, context)
            response = await answer if inspect.isawaitable(answer) else answer
            code = grpc.StatusCode.OK
            level = logging.DEBUG if quiet else logging.INFO
            if _log.isEnabledFor(level):
                outcome = {"response": loggable(response)}
        except grpc.aio.AbortError:
            code = context.code()
            outcome = {"error": context.details()}
            raise
        except BaseException as error:
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
