"""Wakes nodes that wait for a slot: csi-attacher retries a refused attach after up to five minutes, unless something changes.

csi-attacher takes up a VolumeAttachment at once whose metadata changed (external-attacher, pkg/controller/controller.go,
``shouldEnqueueVAChange``), so an annotation is enough. Best effort: a wake-up that is lost costs the wait that there was before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from rds_operator.memory import Change
from rds_records.clock import ServerClock
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound
from rds_records.names import API_GROUP, DRIVER_NAME, volume_attachment_name
from rds_records.record import Record, format_time

logger = logging.getLogger(__name__)

SLOT_FREED_ANNOTATION: Final = f"{API_GROUP}/slot-freed"
RECENT_REFUSAL: Final = timedelta(minutes=10)
"""csi-attacher asks again at least that often while the node still waits."""

RETRIES: Final = 5
RETRY_SECONDS: Final = 1.0

_VOLUME_ATTACHMENTS: Final = "/apis/storage.k8s.io/v1/volumeattachments"


class PatchApi(Protocol):
    """What is needed of the API server (``KubernetesApi`` has it)."""

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a JSON merge patch."""
        ...


def waiting_nodes(before: Record | None, after: Record, *, now: datetime) -> tuple[str, ...]:
    """Return the refused nodes that a slot may now be free for.

    That is when a node has left or the volume has grown, and, of a record that is seen for the first time, whenever fewer than two
    are attached: the node may have left while nobody looked.
    """
    if before is not None:
        left = {held.id for held in before.status.attachments} - {held.id for held in after.status.attachments}
        grown = before.status.expansion and not after.status.expansion
        if not left and not grown:
            return ()
    if len(after.status.attachments) > 1 or after.status.deleting:
        return ()
    recent = (refusal for refusal in after.status.refusals if now - refusal.last_time < RECENT_REFUSAL)
    return tuple(refusal.node_name for refusal in recent if not after.status.attachment_of(refusal.node_name))


class WaitingNodes:
    """Touches the VolumeAttachments of nodes for which a slot became free."""

    def __init__(
        self,
        api: PatchApi,
        clock: ServerClock,
        *,
        driver: str = DRIVER_NAME,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._clock = clock
        self._driver = driver
        self._sleep = sleep
        self._tasks: set[asyncio.Task[None]] = set()

    def see(self, change: Change) -> None:
        """Take in what the watch told of a record; returns at once."""
        if change.after is None:
            return
        for node in waiting_nodes(change.before, change.after, now=self._clock.now()):
            task = asyncio.create_task(self._wake(change.after.handle, node), name=f"wake {node}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _wake(self, handle: str, node: str) -> None:
        path = f"{_VOLUME_ATTACHMENTS}/{volume_attachment_name(handle, node, self._driver)}"
        for _ in range(RETRIES):
            body = {"metadata": {"annotations": {SLOT_FREED_ANNOTATION: format_time(self._clock.now())}}}
            try:
                await self._api.patch(path, body)
            except ObjectNotFound:
                return
            except ApiUnavailable:
                await self._sleep(RETRY_SECONDS)
            except ApiError as error:
                logger.warning("%s: node %s waits and cannot be woken: %s", handle, node, error)
                return
            else:
                logger.info("%s: a slot is free, node %s is woken", handle, node)
                return
