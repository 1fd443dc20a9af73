"""Keeps a copy of all objects of one kind: a list, then a watch, for ever; what is kept of each is a small view.

For kinds that are not ours. They may not be installed, may appear later, and may be forbidden to us; each is a state that can be
read here. kopf gives up on a kind that it may not list, and hears of new kinds only with the right to watch all definitions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

from rds_records.kubernetes_api import ApiError, ObjectNotFound, RequestRefused

logger = logging.getLogger(__name__)

NOT_INSTALLED_SECONDS: Final = 5.0
"""How often a kind that the API server does not know is looked for."""

RETRY_SECONDS: Final = 2.0
WATCH_SECONDS: Final = 60
"""How long one watch lasts; one that has fallen silent is noticed ten seconds after that."""

_GONE: Final = 410
_FORBIDDEN: Final = frozenset({401, 403})

Object = Mapping[str, Any]
View = TypeVar("View")


class WatchApi(Protocol):
    """What a reflector needs of the API server (``KubernetesApi`` has it)."""

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return all items of a collection and its version."""
        ...

    def watch(
        self, path: str, resource_version: str, params: Mapping[str, str] | None = None, *, seconds: int = 300
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield watch events from that version on."""
        ...


class Access(StrEnum):
    """Whether the objects can be read."""

    UNKNOWN = "Unknown"
    READABLE = "Readable"
    NOT_INSTALLED = "NotInstalled"
    """The API server does not know the kind: positive evidence that there are no such objects."""

    FORBIDDEN = "Forbidden"
    UNAVAILABLE = "Unavailable"


class Reflector(Generic[View]):
    """All objects of one kind as views, by uid.

    ``changed`` is called with what an object was and is (None: not there), ``settled`` when ``access`` is another than before.
    """

    def __init__(
        self,
        api: WatchApi,
        path: str,
        view: Callable[[Object], View],
        changed: Callable[[View | None, View | None], None],
        settled: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._monotonic = monotonic
        self._api = api
        self._path = path
        self._view = view
        self._changed = changed
        self._settled = settled
        self._sleep = sleep
        self._views: dict[str, View] = {}
        self.access = Access.UNKNOWN
        self.trouble = ""
        self.since = monotonic()

    @property
    def lasting(self) -> float:
        """For how many seconds ``access`` has been what it is."""
        return self._monotonic() - self.since

    async def run(self) -> NoReturn:
        """List and watch for ever. Views that were seen stay while the API server is in trouble: they were true once."""
        version = ""
        while True:
            try:
                version = version or await self._list()
                version = await self._watch(version)
            except ObjectNotFound as error:
                version = ""
                self._replace({})
                self._is(Access.NOT_INSTALLED, str(error))
                await self._sleep(NOT_INSTALLED_SECONDS)
            except ApiError as error:
                version = ""
                if error.status == _GONE:
                    continue
                forbidden = isinstance(error, RequestRefused) and error.status in _FORBIDDEN
                self._is(Access.FORBIDDEN if forbidden else Access.UNAVAILABLE, str(error))
                await self._sleep(RETRY_SECONDS)

    async def _list(self) -> str:
        items, version = await self._api.list(self._path)
        self._replace({item["metadata"]["uid"]: self._view(item) for item in items})
        self._is(Access.READABLE, "")
        return version

    def _replace(self, views: dict[str, View]) -> None:
        before, self._views = self._views, views
        # First what is gone: another object may have its name now.
        for uid in (*(before.keys() - views.keys()), *views):
            if before.get(uid) != views.get(uid):
                self._changed(before.get(uid), views.get(uid))

    async def _watch(self, version: str) -> str:
        async for event in self._api.watch(self._path, version, seconds=WATCH_SECONDS):
            body = event["object"]
            version = body["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            uid = body["metadata"]["uid"]
            before = self._views.pop(uid, None)
            after = None if event["type"] == "DELETED" else self._view(body)
            if after is not None:
                self._views[uid] = after
            if before != after:
                self._changed(before, after)
        return version

    def _is(self, access: Access, trouble: str) -> None:
        if access is not self.access:
            logger.log(
                logging.INFO if access in {Access.READABLE, Access.NOT_INSTALLED} else logging.WARNING,
                "%s: %s%s",
                self._path,
                access.value,
                f": {trouble}" if trouble else "",
            )
        if access is not self.access:
            self.access, self.trouble, self.since = access, trouble, self._monotonic()
            self._settled()
