"""Says on records which of the nodes that hold their volumes are not Ready; one read per round and node that holds any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from rds_operator.memory import RecordMemory
from rds_records.clock import ServerClock
from rds_records.conditions import NODES_READY
from rds_records.kubernetes_api import ApiError, ObjectNotFound
from rds_records.node_health import NodeHealth, node_health, note_holders
from rds_records.record import Record
from rds_records.store import Api, Contended, RecordStore

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""Between two looks. A node that is not Ready shows within 30 s, also where one look found the API server away."""

PARALLEL: Final = 8
"""Reads and writes at once."""


class HolderWatch:
    """Looks at the nodes again and again: a Node changes without any change of a record."""

    def __init__(
        self,
        api: Api,
        store: RecordStore,
        memory: RecordMemory,
        clock: ServerClock,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._store = store
        self._memory = memory
        self._clock = clock
        self._sleep = sleep
        self._slots = asyncio.Semaphore(PARALLEL)

    async def keep_looking(self) -> NoReturn:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("a look at the nodes that hold volumes broke; the next one comes")
            await self._sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look once; trouble with one node or record is logged and holds up no other."""
        records = [record for record in self._memory.records() if record.status.attachments or _is_false(record)]
        nodes = sorted({held.node_name for record in records for held in record.status.attachments})
        answers = await asyncio.gather(*map(self._health, nodes))
        found = {health.name: health for health in answers if health}
        await asyncio.gather(*(self._note(record, found) for record in records))

    async def _health(self, node: str) -> NodeHealth | None:
        async with self._slots:
            try:
                return node_health(node, await self._api.get(f"/api/v1/nodes/{node}"))
            except ObjectNotFound:
                return node_health(node, None)
            except ApiError as error:
                logger.warning("Node %s cannot be read: %s", node, error)
                return None

    async def _note(self, record: Record, found: dict[str, NodeHealth]) -> None:
        # What is in memory may be old; what it says is right in most cases, and the write decides on what is there.
        if not note_holders(record, found, now=self._clock.now()).changed:
            return
        async with self._slots:
            try:
                await self._store.change(record, lambda newest: note_holders(newest, found, now=self._clock.now()))
            except (ApiError, Contended) as error:
                logger.warning("%s: which of its nodes is not Ready is not noted: %s", record.metadata.name, error)


def _is_false(record: Record) -> bool:
    condition = record.status.condition(NODES_READY)
    return condition is not None and condition.status == "False"
