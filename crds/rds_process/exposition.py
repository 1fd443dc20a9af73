"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder

Readiness = tuple[bool, dict[str, object]]
"""Whether the process can do its work, and what is to be told about it."""

Alive = Callable[[], str | Awaitable[str]]
"""Why the process should be started anew; empty while it works. What is away does not count: a restart does not bring it back."""


def working() -> str:
    """Find nothing wrong: for a process whose event loop is all that can get stuck."""
    return ""


def parse_address(address: str) -> tuple[str | None, int]:
    """Return host and port of ``HOST:PORT``, ``[IPv6]:PORT`` or ``:PORT`` (host None: every interface); raises ValueError."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65_535 or (":" in bare) != host.startswith("["):
        raise ValueError(f"{address[:80]!r} is no HOST:PORT")
    return bare or None, int(port)


@asynccontextmanager
async def serve(
    address: str,
    registry: CollectorRegistry,
    ready: Callable[[], Readiness | Awaitable[Readiness]],
    refresh: Callable[[], Awaitable[None]] | None = None,
    alive: Alive = working,
) -> AsyncIterator[tuple[str, int] | None]:
    """Serve until left; yields where it listens, and serves nothing where ``address`` is empty.

    A scrape reads memory only; before it ``refresh`` may bring that up to date, and bounds its own time. ``/healthz`` says what
    ``alive`` says, ``/readyz`` what ``ready`` says; both bound their own time, too. All of it is served by the event loop that does
    the process's work, on purpose: a loop that is stuck does not answer.

    Raises ValueError for a malformed address and OSError where it cannot be listened at.
    """
    if not address:
        yield None
        return
    host, port = parse_address(address)
    # A ``_created`` series beside every counter tells nothing that a scrape does not.
    disable_created_metrics()

    async def metrics(request: web.Request) -> web.Response:
        if refresh is not None:
            await refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        answer = alive()
        trouble = await answer if inspect.isawaitable(answer) else answer
        return web.Response(status=503 if trouble else 200, text=f"{trouble or 'ok'}\n")

    async def readyz(_: web.Request) -> web.Response:
        answer = ready()
        good, detail = await answer if inspect.isawaitable(answer) else answer
        body = json.dumps({"ready": good, **detail}, default=str, indent=2)
        return web.Response(status=200 if good else 503, text=f"{body}\n", content_type="application/json")

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        yield bound[0], bound[1]
    finally:
        await runner.cleanup()
