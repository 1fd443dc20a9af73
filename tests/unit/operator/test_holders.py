"""The look at the nodes that hold volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rds_operator.holders import HolderWatch
from rds_operator.memory import RecordMemory
from rds_records.clock import ServerClock
from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound
from rds_records.record import Record
from rds_records.store import RecordStore
from tests.unit.records.memory_api import MemoryApi
from tests.unit.records.volumes import HANDLE, attached, fresh

READY = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
SILENT = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}


class Nodes(MemoryApi):
    """Nodes beside the records."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, dict[str, Any] | None] = {"node-a": READY, "node-b": READY}
        self.reads: list[str] = []

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        if "/nodes/" not in path:
            return await super().get(path, params)
        name = path.rsplit("/", 1)[1]
        self.reads.append(name)
        if name not in self.nodes:
            raise ObjectNotFound(path, 404)
        if (body := self.nodes[name]) is None:
            raise ApiUnavailable(path)
        return body


async def looked(api: Nodes) -> Record:
    """Return the record after one look."""
    memory, record = RecordMemory(), api.peek(HANDLE)
    assert record is not None
    memory.see(record.to_json())
    await HolderWatch(api, RecordStore(api), memory, ServerClock()).look()
    after = api.peek(HANDLE)
    assert after is not None
    return after


def nodes_ready(record: Record) -> tuple[str, str] | None:
    found = record.status.condition("NodesReady")
    return (found.status, found.reason) if found else None


@pytest.mark.requirement("R25")
async def test_what_the_nodes_say_is_written_where_it_is_news() -> None:
    api = Nodes()
    api.put(attached(fresh(), "node-a", "node-b"))
    assert nodes_ready(await looked(api)) is None
    api.nodes["node-b"] = SILENT
    assert nodes_ready(await looked(api)) == ("False", "NodeNotReady")
    api.nodes["node-b"] = None
    assert nodes_ready(await looked(api)) == ("False", "NodeNotReady")
    del api.nodes["node-b"]
    assert nodes_ready(await looked(api)) == ("False", "NodeGone")
    api.nodes["node-b"] = READY
    assert nodes_ready(await looked(api)) == ("True", "NodesReady")
    assert sum(request == "PUT" for request in api.requests) == 3


async def test_nodes_that_hold_nothing_are_not_asked_for() -> None:
    api = Nodes()
    api.put(attached(fresh(), "node-a"))
    await looked(api)
    assert api.reads == ["node-a"]
