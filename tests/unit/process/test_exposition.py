"""``/metrics``, ``/healthz``, ``/readyz`` over real HTTP."""

from __future__ import annotations

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from rds_process.exposition import Readiness, parse_address, serve

LOCAL = "127.0.0.1:0"


async def get(address: tuple[str, int] | None, path: str, **headers: str) -> tuple[int, str, str]:
    assert address
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address[0]}:{address[1]}{path}", headers=headers) as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


def fine() -> Readiness:
    return True, {"api_server": "ok"}


async def down() -> Readiness:
    return False, {"api_server": "no answer", "box": "ok"}


async def test_metrics_are_of_the_given_registry_in_the_format_that_is_asked_for() -> None:
    registry = CollectorRegistry()
    Counter("apples_total", "Apples", registry=registry).inc()
    async with serve(LOCAL, registry, fine) as address:
        status, kind, text = await get(address, "/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        assert "apples_total 1.0" in text
        assert "python_info" not in text
        status, kind, text = await get(address, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert (status, kind.split(";")[0]) == (200, "application/openmetrics-text")
        assert text.endswith("# EOF\n")


async def test_process_is_alive_while_it_is_not_ready() -> None:
    async with serve(LOCAL, CollectorRegistry(), down) as address:
        assert (await get(address, "/healthz"))[0] == 200
        status, kind, text = await get(address, "/readyz")
        assert status == 503
        assert kind.startswith("application/json")
        assert '"box": "ok"' in text


@pytest.mark.requirement("R20")
@pytest.mark.parametrize("trouble", ["", "Probe is not answered"])
async def test_a_process_that_is_stuck_says_so_whether_it_is_ready_or_not(trouble: str) -> None:
    async def alive() -> str:
        return trouble

    for answer in (alive, lambda: trouble):
        async with serve(LOCAL, CollectorRegistry(), fine, alive=answer) as address:
            status, _, text = await get(address, "/healthz")
            assert (status, text) == ((503, f"{trouble}\n") if trouble else (200, "ok\n"))


async def test_ready_process_says_so_with_detail() -> None:
    async with serve(LOCAL, CollectorRegistry(), fine) as address:
        status, _, text = await get(address, "/readyz")
        assert status == 200
        assert '"ready": true' in text


async def test_empty_address_serves_nothing() -> None:
    async with serve("", CollectorRegistry(), fine) as address:
        assert address is None


async def test_taken_port_is_an_error() -> None:
    async with serve(LOCAL, CollectorRegistry(), fine) as address:
        assert address
        with pytest.raises(OSError, match="address already in use"):
            async with serve(f"{address[0]}:{address[1]}", CollectorRegistry(), fine):
                pytest.fail("served twice")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [(":9809", None, 9809), ("127.0.0.1:0", "127.0.0.1", 0), ("[::1]:80", "::1", 80), ("0.0.0.0:1", "0.0.0.0", 1)],
)
def test_address_is_host_and_port(text: str, host: str | None, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize("text", ["", "9809", "host:", "host:x", "host:70000", "::1:80", "host:-1", "[::1]"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no HOST:PORT"):
        parse_address(text)


async def test_what_goes_before_a_scrape_is_seen_by_it() -> None:
    registry = CollectorRegistry()
    looks = Counter("looks_total", "Looks", registry=registry)

    async def look() -> None:
        looks.inc()

    async with serve(LOCAL, registry, fine, look) as address:
        assert "looks_total 1.0" in (await get(address, "/metrics"))[2]
        assert "looks_total 2.0" in (await get(address, "/metrics"))[2]
