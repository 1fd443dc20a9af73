"""``/metrics``, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


@contextlib.asynccontextmanager
async def serve(
    address: str, registry: CollectorRegistry, ready: Callable[[], tuple[bool, dict[str, object]]]
) -> AsyncIterator[None]:
    """Serve until left."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        good, detail = ready()
        return web.Response(status=200 if good else 503, text=json.dumps(detail), content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host or None, int(port)).start()
    try:
        yield
    finally:
        await runner.cleanup()
