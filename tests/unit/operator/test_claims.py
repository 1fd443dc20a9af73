"""Claims are found through the claimRef of the PersistentVolume, whatever its name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from rds_operator.claims import Claims
from tests.unit.operator.api_server import ApiServer, Client
from tests.unit.operator.volumes import HANDLE, bind, record


class Counting(Client):
    lists = 0

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        return await super().list(path, params)


async def test_the_volume_that_the_record_names_needs_no_list() -> None:
    server = ApiServer()
    bind(server)
    client = Counting(server)
    claim = await Claims(client).of(record())
    assert claim
    assert (claim.name, claim.uid) == ("data", "uid-of-data")
    assert client.lists == 0


@pytest.mark.requirement("R23")
async def test_a_volume_that_appeared_since_the_last_list_is_found() -> None:
    server = ApiServer()
    claims = Claims(server.client())
    assert await claims.of(record()) is None
    bind(server, volume="restored-db")
    assert await claims.of(record())


async def test_many_questions_at_once_ask_for_two_lists_at_most() -> None:
    client = Counting(ApiServer())
    claims = Claims(client)
    await asyncio.gather(*(claims.of(record(f"{HANDLE[:-3]}{number}")) for number in range(100, 150)))
    assert client.lists <= 2


async def test_a_volume_without_claim_has_none() -> None:
    server = ApiServer()
    bind(server)
    path = f"/api/v1/persistentvolumes/{HANDLE}"
    body = server.get(path)
    del body["spec"]["claimRef"]
    server.put(path, body)
    assert await Claims(server.client()).of(record()) is None


async def test_another_drivers_volume_of_that_handle_is_not_ours() -> None:
    server = ApiServer()
    bind(server)
    assert await Claims(server.client(), driver="other.example").of(record()) is None
