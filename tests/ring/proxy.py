"""A TLS proxy before the API server that delays, fails, cuts, freezes and counts what passes.

Clients must authenticate by token: a client certificate ends at the proxy. It speaks HTTP/1.1, in a thread and an event loop of its
own, and never sends a request twice.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import ssl
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.ring.controlplane import ControlPlane
from tests.ring.processes import LOOPBACK, free_port

T = TypeVar("T")

WRITES = "POST|PUT|PATCH|DELETE"
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "trailer", "upgrade"})
REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
}


@dataclass(frozen=True)
class Seen:
    """One request that ended.

    ``time`` is when it came (monotonic seconds), ``status`` what the client was told (``None``: nothing).
    ``forwarded`` says whether the API server got it; it may have been applied then even where the client heard nothing.
    """

    method: str
    path: str
    query: str
    time: float
    seconds: float
    status: int | None
    forwarded: bool


@dataclass(eq=False)
class Rule:
    """What happens to matching requests; made by the methods of ``Proxy``. As a context manager it is removed at the end.

    Attributes:
        method: regular expression that the whole method matches, as ``PUT`` or ``PUT|PATCH``.
        path: regular expression searched in the path (without the query), as ``/volumeattachmentrecords/.*/status$``.
        query: regular expression searched in the query, as ``watch=true``.
        times: how many requests it is for; ``None`` for all.
        applied: act after the API server has answered, instead of before it is asked.
        body: regular expression searched in the request's body.
        hits: requests that met the rule so far; if ``applied``, that took effect.
        taken: those, and others that may yet.
    """

    proxy: Proxy
    method: str
    path: str
    query: str = ""
    times: int | None = None
    applied: bool = False
    seconds: float = 0.0
    status: int | None = None
    message: str = ""
    retry_after: int | None = None
    cut: bool = False
    gate: asyncio.Event | None = None
    body: str = ""
    hits: int = 0
    taken: int = 0
    _met: threading.Condition = field(default_factory=threading.Condition)

    def matches(self, method: str, path: str, query: str, body: bytes) -> bool:
        return bool(
            (self.times is None or self.taken < self.times)
            and re.fullmatch(self.method, method)
            and re.search(self.path, path)
            and re.search(self.query, query)
            and (not self.body or re.search(self.body.encode(), body))
        )

    def met(self) -> None:
        with self._met:
            self.hits += 1
            self._met.notify_all()

    def wait_hit(self, count: int = 1, *, timeout: float = 30.0) -> None:
        """Wait until ``count`` requests have met the rule."""
        with self._met:
            if not self._met.wait_for(lambda: self.hits >= count, timeout):
                raise AssertionError(f"{self.hits} of {count} {self.method} {self.path} within {timeout:g} s")

    def release(self, *, cut: bool = False) -> None:
        """Let frozen requests go on, or ``cut`` their connections; the rule holds no request any more."""
        self.cut = cut
        self.proxy.forget(self)
        if (gate := self.gate) is not None:
            self.proxy.soon(gate.set)

    def remove(self) -> None:
        """Stop acting on further requests; frozen ones go on."""
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Cut(Exception):
    """The client's connection is to be cut without an answer."""


class Proxy:
    """One proxy before one control plane. A context manager; listens when entered.

    The newest rule that matches a request acts on it, alone.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self._upstream = plane.url
        self._port = free_port()
        self.url = f"https://{LOOPBACK}:{self._port}"
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._watches: set[_Exchange] = set()
        self._date_shift = datetime.timedelta()
        self._server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._server_tls.load_cert_chain(*plane.authority.server(f"proxy-{self._port}"))
        self._client_tls = ssl.create_default_context(cafile=str(plane.authority.certificate))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self._port}", daemon=True)

    def delay(
        self, method: str, path: str, seconds: float, *, times: int | None = None, applied: bool = False, query: str = ""
    ) -> Rule:
        """Make matching requests (or, if ``applied``, their answers) wait."""
        return self._add(Rule(self, method, path, query, times, applied, seconds=seconds))

    def fail(
        self,
        method: str,
        path: str,
        *,
        status: int,
        times: int | None = None,
        message: str = "refused by the test's proxy",
        retry_after: int | None = None,
        applied: bool = False,
        query: str = "",
    ) -> Rule:
        """Answer with a Kubernetes Status of that code: unforwarded, or, if ``applied``, after the request took effect."""
        return self._add(Rule(self, method, path, query, times, applied, status=status, message=message, retry_after=retry_after))

    def drop(self, method: str, path: str, *, applied: bool = False, times: int | None = None, query: str = "") -> Rule:
        """Cut the connection of matching requests before they are forwarded, or, if ``applied``, after they took effect."""
        return self._add(Rule(self, method, path, query, times, applied, cut=True))

    def freeze(
        self,
        method: str = ".*",
        path: str = "",
        *,
        applied: bool = False,
        times: int | None = None,
        query: str = "",
        body: str = "",
    ) -> Rule:
        """Accept matching requests (all by default) and never answer, until the rule is released or the client gives up.

        If ``applied``, they have taken effect; this is how a test holds a process exactly behind one of its writes.
        """
        return self._add(Rule(self, method, path, query, times, applied, gate=asyncio.Event(), body=body))

    def shift_date(self, seconds: float) -> None:
        """From now on, tell clients in ``Date`` that it is so much later (negative: earlier) than it is."""
        self._date_shift = datetime.timedelta(seconds=seconds)

    def cut_watches(self, path: str = "") -> int:
        """Cut all open watches whose path matches; return how many there were."""

        async def cut() -> int:
            victims = [watch for watch in self._watches if re.search(path, watch.path)]
            for watch in victims:
                _abort(watch.request)
            return len(victims)

        return self._run(cut())

    def open_watches(self, path: str = "") -> int:
        """Return how many watches on matching paths are open."""
        return sum(1 for watch in list(self._watches) if re.search(path, watch.path))

    def clear(self) -> None:
        """Remove all rules, let everything frozen go on, tell the true time."""
        for rule in list(self._rules):
            rule.remove()
        self._date_shift = datetime.timedelta()

    def requests(self, method: str = ".*", path: str = "") -> list[Seen]:
        """Return the requests that ended so far and match."""
        return [seen for seen in list(self.seen) if re.fullmatch(method, seen.method) and re.search(path, seen.path)]

    def writes(self, path: str = "") -> list[Seen]:
        """Return the matching writes that reached the API server."""
        return [seen for seen in self.requests(WRITES, path) if seen.forwarded]

    def forget(self, rule: Rule) -> None:
        with self._lock:
            if rule in self._rules:
                self._rules.remove(rule)

    def soon(self, call: Any) -> None:
        self._loop.call_soon_threadsafe(call)

    def start(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def stop(self) -> None:
        """Cut everything that is open and stop listening."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.insert(0, rule)
        return rule

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._client_tls, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # aiohttp sends a PUT or DELETE again when a kept connection breaks; the API server would see what the client never sent.
        self._session._retry_connection = False
        self._server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port, ssl_context=self._server_tls, backlog=1024).start()

    async def _close(self) -> None:
        # A graceful end of TLS would wait for the clients, which may be gone without a word.
        for connection in self._server.connections:
            if (transport := connection.transport) is not None:
                transport.abort()
        await self._runner.cleanup()
        await self._session.close()
        # Transports close in the loop's next rounds.
        await asyncio.sleep(0.01)

    def _match(self, exchange: _Exchange) -> Rule | None:
        address = exchange.request.rel_url
        with self._lock:
            for rule in self._rules:
                if rule.matches(exchange.request.method, address.raw_path, address.raw_query_string, exchange.body):
                    rule.taken += 1
                    if not rule.applied:
                        rule.met()
                    return rule
        return None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        exchange = _Exchange(request, await request.content.read())
        try:
            return await self._exchange(exchange, self._match(exchange))
        except (_Cut, aiohttp.ClientError, ConnectionError):
            _abort(request)
            return web.Response()
        finally:
            address = request.rel_url
            self.seen.append(
                Seen(
                    request.method,
                    address.raw_path,
                    address.raw_query_string,
                    started,
                    time.monotonic() - started,
                    exchange.told,
                    exchange.forwarded,
                )
            )

    async def _exchange(self, exchange: _Exchange, rule: Rule | None) -> web.StreamResponse:
        if rule is not None and not rule.applied and (answer := await self._act(exchange, rule)) is not None:
            return answer
        request = exchange.request
        target = URL(self._upstream + request.raw_path, encoded=True)
        exchange.forwarded = True
        async with self._session.request(
            request.method,
            target,
            data=exchange.body or None,
            headers=_passed_on(request.headers),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            allow_redirects=False,
        ) as upstream:
            headers = self._answer_headers(upstream.headers)
            if re.search(r"(^|&)watch=(true|1)(&|$)", request.rel_url.raw_query_string) and upstream.status == 200:
                return await self._stream(exchange, upstream, headers)
            body = await upstream.read()
            if rule is not None and rule.applied and upstream.status >= 300:
                rule.taken -= 1
            elif rule is not None and rule.applied:
                rule.met()
                if (answer := await self._act(exchange, rule)) is not None:
                    return answer
            exchange.told = upstream.status
            return web.Response(status=upstream.status, headers=headers, body=body)

    async def _stream(self, exchange: _Exchange, upstream: aiohttp.ClientResponse, headers: CIMultiDict[str]) -> web.StreamResponse:
        exchange.told = upstream.status
        response = web.StreamResponse(status=upstream.status, headers=headers)
        self._watches.add(exchange)
        try:
            await response.prepare(exchange.request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
        finally:
            self._watches.remove(exchange)
        return response

    async def _act(self, exchange: _Exchange, rule: Rule) -> web.Response | None:
        """Do what the rule says; return the answer that it gives, ``None`` where the exchange goes on."""
        if rule.seconds:
            await asyncio.sleep(rule.seconds)
        if rule.gate is not None:
            await rule.gate.wait()
        if rule.cut:
            raise _Cut
        if rule.status is None:
            return None
        exchange.told = rule.status
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": rule.message,
            "reason": REASONS.get(rule.status, "InternalError"),
            "code": rule.status,
        }
        extra = {} if rule.retry_after is None else {"Retry-After": str(rule.retry_after)}
        headers = self._answer_headers({"Content-Type": "application/json", "Date": format_datetime(_now(), usegmt=True), **extra})
        return web.Response(status=rule.status, headers=headers, body=json.dumps(status).encode())

    def _answer_headers(self, headers: Any) -> CIMultiDict[str]:
        passed = _passed_on(headers)
        if self._date_shift and "Date" in passed:
            passed["Date"] = format_datetime(parsedate_to_datetime(passed["Date"]) + self._date_shift, usegmt=True)
        return passed


@dataclass(eq=False)
class _Exchange:
    request: web.BaseRequest
    body: bytes
    forwarded: bool = False
    told: int | None = None

    @property
    def path(self) -> str:
        return self.request.rel_url.raw_path


def _passed_on(headers: Any) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
