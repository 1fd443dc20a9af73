"""A process asks itself whether it answers calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rds_csi.identity import PROBE_SECONDS, Identity
from rds_csi.liveness import ANSWER_SECONDS, trouble_of
from rds_csi.server import CsiServer


async def away() -> bool:
    return False


async def never() -> bool:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    def make(ready: Callable[[], Any] = away, endpoint: str = f"unix://{tmp_path}/csi.sock") -> CsiServer:
        return CsiServer(endpoint, [Identity("rds.csi.srvlab.io", "1.2.3", ready)])

    return make


@pytest.mark.parametrize("endpoint", ["", "tcp://127.0.0.1:0", "tcp://[::]:0"])
async def test_a_server_that_is_not_ready_answers(serve: Callable[..., CsiServer], endpoint: str) -> None:
    server = serve(endpoint=endpoint) if endpoint else serve()
    assert not server.serving
    await server.start()
    assert (server.serving, await trouble_of(server.target)) == (True, "")
    await server.stop(0)
    assert not server.serving


async def test_a_probe_without_an_answer_is_trouble(serve: Callable[..., CsiServer]) -> None:
    server = serve(never)
    await server.start()
    assert "DEADLINE_EXCEEDED" in await trouble_of(server.target, seconds=0.2)
    await server.stop(0)


async def test_a_socket_that_somebody_removed_is_trouble_whoever_asked_before(
    serve: Callable[..., CsiServer], tmp_path: Path
) -> None:
    server = serve()
    await server.start()
    assert await trouble_of(server.target) == ""
    (tmp_path / "csi.sock").unlink()
    assert f"Probe at unix:{tmp_path}/csi.sock: UNAVAILABLE" in await trouble_of(server.target)
    await server.stop(0)


def test_an_api_server_that_does_not_answer_leaves_time_to_say_so() -> None:
    assert PROBE_SECONDS + 1 < ANSWER_SECONDS
