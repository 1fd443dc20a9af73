"""Leader election by a Lease: one replica is active, the others wait.

The holder's word counts for its lease duration *on the observer's monotonic clock*, so neither a wall clock that jumps nor clocks
that disagree can make two leaders. The holder gives up before that: it is lost as soon as the renew deadline has passed since the
*start* of its last successful renewal, and no request may take longer than that. The scheme is client-go's (tools/leaderelection).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn, Protocol

from rds_records.clock import ServerClock
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound, WriteConflict

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]

RELEASED_SECONDS: Final = 1
"""Lease duration of a released lease (the API server demands more than 0)."""


class LeaseLost(Exception):
    """The replica must stop at once: another one is, or may be, active."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a lease holds, how long the holder tries to renew it, and how often; seconds.

    Raises ValueError where two replicas could be active at once.
    """

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration > self.renew_deadline > self.retry_period > 0:
            raise ValueError(
                f"lease duration ({self.duration:g} s) must be longer than the renew deadline ({self.renew_deadline:g} s), "
                f"and that longer than the retry period ({self.retry_period:g} s)"
            )

    @property
    def request_timeout(self) -> float:
        """What one request may take: two of them fit into the renew deadline."""
        return self.renew_deadline / 2


@dataclass(frozen=True, slots=True)
class Observed:
    """What the lease says, and since when this process has seen it say that (its own monotonic clock, seconds)."""

    content: str
    since: float


def observe(known: Observed | None, lease: Object, now: float) -> Observed:
    """Return the observation, with the time of the first one that saw the same content."""
    content = json.dumps(lease.get("spec") or {}, sort_keys=True)
    return known if known and known.content == content else Observed(content, now)


def holder_of(lease: Object) -> str:
    """Return who holds the lease; empty where nobody does."""
    return (lease.get("spec") or {}).get("holderIdentity") or ""


def may_take(lease: Object, observed: Observed, identity: str, timing: Timing, now: float) -> bool:
    """Tell whether the lease is free: released, our own, or unchanged for as long as its holder promised to renew it."""
    if holder_of(lease) in {"", identity}:
        return True
    duration = (lease.get("spec") or {}).get("leaseDurationSeconds") or timing.duration
    return now - observed.since >= duration


def taken(lease: Object | None, identity: str, timing: Timing, now: datetime) -> dict[str, Any]:
    """Return the spec of the lease when this replica takes or renews it; times are for people only."""
    before = (lease or {}).get("spec") or {}
    stamp = _micro_time(now)
    spec = {**before, "holderIdentity": identity, "leaseDurationSeconds": math.ceil(timing.duration), "renewTime": stamp}
    if before.get("holderIdentity") != identity:
        spec["acquireTime"] = stamp
        spec["leaseTransitions"] = int(before.get("leaseTransitions") or 0) + (1 if lease else 0)
    return spec


def released(lease: Object, now: datetime) -> dict[str, Any]:
    """Return the spec of the lease when this replica gives it up."""
    return {
        **(lease.get("spec") or {}),
        "holderIdentity": "",
        "leaseDurationSeconds": RELEASED_SECONDS,
        "renewTime": _micro_time(now),
    }


def _micro_time(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class LeaseApi(Protocol):
    """What the election needs of the API server (``KubernetesApi`` has it)."""

    async def get(self, path: str) -> dict[str, Any]:
        """Return an object."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object at the version that was read."""
        ...


class Leadership:
    """One replica's part in the election: ``acquire``, then ``keep`` until LeaseLost or the process ends, then ``release``."""

    def __init__(
        self,
        api: LeaseApi,
        clock: ServerClock,
        *,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._clock = clock
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._metadata = {"namespace": namespace, "name": name}
        self._identity = identity
        self._timing = timing
        self._monotonic = monotonic
        self._sleep = sleep
        self._observed: Observed | None = None
        self._lease: dict[str, Any] = {}
        self._renewed = monotonic()
        self._answered: float | None = None
        self._turned = monotonic()
        self.leading = False

    @property
    def silence(self) -> float | None:
        """Seconds since the API server last answered; None where it never did."""
        return None if self._answered is None else self._monotonic() - self._answered

    @property
    def idle(self) -> float:
        """Seconds since the lease was last tried for or renewed, in vain or not."""
        return self._monotonic() - self._turned

    @property
    def longest_idle(self) -> float:
        """More seconds than that ever takes while this works, whatever the API server does."""
        return 2 * (self._timing.retry_period + self._timing.request_timeout + self._timing.duration)

    @property
    def holder(self) -> str:
        """Who holds the lease, as last seen."""
        return holder_of(self._lease)

    async def acquire(self) -> None:
        """Return when this replica holds the lease; trouble with the API server is waited out."""
        trouble = ""
        while True:
            self._turned = self._monotonic()
            try:
                async with asyncio.timeout(self._timing.request_timeout):
                    if await self._try():
                        logger.info("lease %s acquired as %s", self._path, self._identity)
                        return
                trouble = ""
            except (ApiError, TimeoutError) as error:
                if trouble != (trouble := _describe(error)):
                    logger.warning("lease %s: %s", self._path, trouble)
            await self._sleep(self._timing.retry_period)

    async def _try(self) -> bool:
        started = self._monotonic()
        try:
            lease = await self._api.get(self._path)
        except ObjectNotFound:
            self._answered = self._monotonic()
            return await self._write(None, started)
        now = self._answered = self._monotonic()
        self._observed = observe(self._observed, lease, now)
        self._lease = lease
        return may_take(lease, self._observed, self._identity, self._timing, now) and await self._write(lease, started)

    async def _write(self, lease: dict[str, Any] | None, started: float) -> bool:
        # A write whose answer is lost may have been applied: the next round finds our own name in the lease and writes again, so
        # that ``_renewed`` is never later than the start of a write that is known to have been applied.
        spec = taken(lease, self._identity, self._timing, self._clock.now())
        try:
            if lease is None:
                body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": self._metadata, "spec": spec}
                self._lease = await self._api.create(self._collection, body)
            else:
                self._lease = await self._api.replace(self._path, {**lease, "spec": spec})
        except WriteConflict:
            return False
        self._answered = self._monotonic()
        self._renewed = started
        self.leading = True
        return True

    async def keep(self) -> NoReturn:
        """Renew until the lease is lost; raises LeaseLost."""
        while True:
            self._turned = self._monotonic()
            await self._sleep(max(0.0, min(self._timing.retry_period, self._left())))
            left = self._left()
            if left <= 0:
                self.leading = False
                raise LeaseLost(f"lease {self._path} could not be renewed within {self._timing.renew_deadline:g} s")
            try:
                async with asyncio.timeout(min(left, self._timing.request_timeout)):
                    await self._renew()
            except (ApiError, TimeoutError) as error:
                logger.warning("lease %s was not renewed: %s", self._path, _describe(error))

    def _left(self) -> float:
        return self._renewed + self._timing.renew_deadline - self._monotonic()

    async def _renew(self) -> None:
        started = self._monotonic()
        try:
            if await self._write(self._lease, started):
                return
            lease: dict[str, Any] | None = await self._api.get(self._path)
        except ObjectNotFound:
            lease = None
        self._answered = self._monotonic()
        if lease is not None and holder_of(lease) != self._identity:
            self.leading = False
            raise LeaseLost(f"lease {self._path} was taken by {holder_of(lease) or 'nobody'}")
        self._lease = lease or self._lease
        if not await self._write(lease, started):
            raise ApiUnavailable(f"lease {self._path} changed while it was renewed")

    async def release(self) -> None:
        """Give the lease up, so that another replica takes over at once; failing at that costs only its lease duration."""
        if not self.leading:
            return
        self.leading = False
        try:
            async with asyncio.timeout(self._timing.request_timeout):
                lease = await self._api.get(self._path)
                if holder_of(lease) == self._identity:
                    await self._api.replace(self._path, {**lease, "spec": released(lease, self._clock.now())})
                    logger.info("lease %s released", self._path)
        except (ApiError, TimeoutError) as error:
            logger.warning("lease %s was not released: %s", self._path, _describe(error))


def _describe(error: BaseException) -> str:
    return str(error) or "no answer in time"
