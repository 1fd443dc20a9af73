"""Probe: true while the API server answers, never slow, never an error, and it does not ask at each call."""

from __future__ import annotations

import asyncio

import pytest

from rds_csi.identity import Identity, Readiness, check_driver_name
from rds_csi.spec import csi_pb2


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ApiServer:
    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error


async def probe(ready: Readiness) -> bool:
    response = await Identity("rds.csi.srvlab.io", "1", ready).Probe(csi_pb2.ProbeRequest(), None)
    assert response.HasField("ready")
    return response.ready.value


async def test_probe_is_ready_while_the_api_server_answers() -> None:
    assert await probe(Readiness(ApiServer()))


async def test_probe_is_not_ready_while_it_does_not_and_says_why() -> None:
    server = ApiServer()
    server.error = ConnectionRefusedError("nobody there")
    ready = Readiness(server)
    assert not await probe(ready)
    assert ready.trouble == "ConnectionRefusedError: nobody there"


async def test_an_api_server_that_hangs_is_not_waited_for() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    ready = Readiness(hang, timeout=0.01)
    assert not await probe(ready)
    assert "no answer" in ready.trouble


async def test_many_probes_ask_once_until_the_answer_is_old() -> None:
    server, clock = ApiServer(), Clock()
    ready = Readiness(server, fresh=5, monotonic=clock)
    assert all(await asyncio.gather(*(probe(ready) for _ in range(20))))
    assert server.asked == 1
    server.error = RuntimeError("down")
    clock.now += 4.9
    assert await probe(ready)
    clock.now += 0.1
    assert not await probe(ready)
    assert server.asked == 2


async def test_probe_is_ready_again_when_the_api_server_is_back() -> None:
    server, clock = ApiServer(), Clock()
    server.error = RuntimeError("down")
    ready = Readiness(server, monotonic=clock)
    assert not await probe(ready)
    server.error = None
    clock.now += 5
    assert await probe(ready)
    assert ready.trouble == ""


@pytest.mark.parametrize("name", ["", "-a", "a.", "a/b", "x" * 64])
def test_driver_name_must_be_one(name: str) -> None:
    with pytest.raises(ValueError, match="driver name"):
        check_driver_name(name)
