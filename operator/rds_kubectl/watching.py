"""Follows records by the API server's watch, and prints what changes of their migrations; nothing is polled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from rds_records.kubernetes_api import ApiError, ApiUnavailable, RequestRefused
from rds_records.store import COLLECTION

WATCH_SECONDS: Final = 300
RETRY_SECONDS: Final = 2.0
_GONE: Final = 410

Object = Mapping[str, Any]


class WatchApi(Protocol):
    """What is needed of the API server (``KubernetesApi`` has it)."""

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return all items of a collection and its version."""
        ...

    def watch(
        self, path: str, resource_version: str, params: Mapping[str, str] | None = None, *, seconds: int = 300
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield watch events from that version on."""
        ...


async def follow(
    api: WatchApi,
    version: str,
    *,
    told: Callable[[str], object],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[Object]:
    """Yield every record that is added or changed after that version, for ever; after a gap, all of them as they are then.

    ``told`` hears why the watch was broken off, once per outage. Raises RequestRefused where records may not be watched.
    """
    trouble = ""
    while True:
        try:
            if not version:
                items, version = await api.list(COLLECTION)
                for item in items:
                    yield item
            async for event in api.watch(COLLECTION, version, seconds=WATCH_SECONDS):
                version = event["object"]["metadata"]["resourceVersion"]
                trouble = ""
                if event["type"] in {"ADDED", "MODIFIED"}:
                    yield event["object"]
        except RequestRefused as error:
            if error.status != _GONE:
                raise
            version = ""
        except ApiUnavailable as error:
            if trouble != (trouble := str(error)):
                told(trouble)
            await sleep(RETRY_SECONDS)
        except ApiError:
            # The kind itself may be away for a moment, as while its definition is replaced.
            version = ""
            await sleep(RETRY_SECONDS)
