"""Finds the PersistentVolumeClaim of a volume: through the claimRef of its PersistentVolume, read anew each time.

Nothing else is safe: volume contexts do not carry the claim, PersistentVolumes are re-bound, and their names need not be
the handle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from rds_records.imports import volumes_of
from rds_records.kubernetes_api import ObjectNotFound
from rds_records.names import DRIVER_NAME
from rds_records.record import ObjectReference, Record
from rds_records.store import Api

VOLUMES: Final = "/api/v1/persistentvolumes"

Object = Mapping[str, Any]


class Claims:
    """Looks claims up; a PersistentVolume under another name than the record expects is found by its handle."""

    def __init__(self, api: Api, *, driver: str = DRIVER_NAME, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._driver = driver
        self._monotonic = monotonic
        self._listing = asyncio.Lock()
        self._names: dict[str, str] = {}
        self._listed: float | None = None

    async def of(self, record: Record) -> ObjectReference | None:
        """Return the volume's claim; None only where the API server says that there is none. Raises ApiError."""
        expected = record.spec.persistent_volume_name or record.metadata.name
        volume = await self._read(expected, record.handle)
        if volume is None:
            name = await self._search(record.handle)
            volume = await self._read(name, record.handle) if name else None
        return None if volume is None else _claim(volume)

    async def _read(self, name: str, handle: str) -> Object | None:
        try:
            volume = await self._api.get(f"{VOLUMES}/{name}")
        except ObjectNotFound:
            return None
        return volume if volumes_of(handle, [volume], self._driver) else None

    async def _search(self, handle: str) -> str | None:
        # Only a list that began after the question is evidence of absence. One list answers all who asked before it began.
        asked = self._monotonic()
        async with self._listing:
            if self._listed is None or self._listed < asked:
                started = self._monotonic()
                volumes, _ = await self._api.list(VOLUMES)
                self._names = {
                    volume["spec"]["csi"]["volumeHandle"]: volume["metadata"]["name"]
                    for volume in volumes
                    if (volume["spec"].get("csi") or {}).get("driver") == self._driver
                }
                self._listed = started
        return self._names.get(handle)


def _claim(volume: Object) -> ObjectReference | None:
    claim = volume["spec"].get("claimRef")
    return ObjectReference(namespace=claim["namespace"], name=claim["name"], uid=claim.get("uid")) if claim else None
