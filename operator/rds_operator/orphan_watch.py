"""Follows, round by round, what lies on the box and is named by nobody; reports what stays so, and deletes nothing."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rds_csi.routeros import Disk, File
from rds_operator.events import EventReason
from rds_operator.inventory import Sighting
from rds_operator.orphans import Kind, Named, Suspect, follow, named_by, unnamed
from rds_operator.suspects import SuspectStore
from rds_records.events import EventRecorder, Notice, Posted, Subject, event_name
from rds_records.kubernetes_api import ApiError, ObjectNotFound, RequestRefused
from rds_records.names import DRIVER_NAME
from rds_records.record import ObjectReference
from rds_records.store import RecordStore

logger = logging.getLogger(__name__)

SAVE_SECONDS: Final = 600.0
"""How often the observed time of the same suspects is written down; a restart forgets no more of it."""

INTERVALS: Final = 3
"""A pause between complete rounds counts for so many intervals at most."""

VOLUMES: Final = "/api/v1/persistentvolumes"
ATTACHMENTS: Final = "/apis/storage.k8s.io/v1/volumeattachments"
CONTENTS: Final = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents"


class ReadApi(Protocol):
    """What is needed of the API server (``KubernetesApi`` has it)."""

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an object."""
        ...

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return all items of a collection and its version."""
        ...


@dataclass(frozen=True, slots=True)
class NamesInCluster:
    """Reads everything in the cluster that may name something on the box."""

    api: ReadApi
    store: RecordStore
    driver: str = DRIVER_NAME

    async def read(self) -> Named:
        """Return it; raises ApiError where a list cannot be had. To be read after the box: what is made names itself first."""
        volumes, _ = await self.api.list(VOLUMES)
        attachments, _ = await self.api.list(ATTACHMENTS)
        contents: list[dict[str, Any]] | None
        try:
            contents, _ = await self.api.list(CONTENTS)
        except (ObjectNotFound, RequestRefused) as error:
            logger.debug("snapshots are not judged: %s", error)
            contents = None
        return named_by(volumes, await self.store.list(), attachments, contents, self.driver)


class OrphanWatch:
    """Keeps the suspects; ``grace`` and ``interval`` in seconds."""

    def __init__(
        self,
        base_path: str,
        names: NamesInCluster,
        store: SuspectStore,
        recorder: EventRecorder | None,
        *,
        deployment: str,
        grace: float,
        interval: float,
        count: Callable[[EventReason, Posted], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``deployment`` is the operator's own, on which orphans are reported; ``count`` hears what became of each Event."""
        self._base_path = base_path
        self._names = names
        self._store = store
        self._recorder = recorder
        self._deployment = deployment
        self._grace = grace
        self._interval = interval
        self._count = count
        self._monotonic = monotonic
        self._suspects: dict[str, Suspect] | None = None
        self._since_complete = 0.0
        self._saved = -SAVE_SECONDS
        self._written: Mapping[str, Suspect] = {}
        self.judged = False

    def orphans(self) -> list[Suspect]:
        """Return those that are past their grace; safe to call from another thread."""
        return [suspect for suspect in (self._suspects or {}).values() if suspect.observed >= self._grace]

    async def see(self, seen: Sighting, *, now: datetime, elapsed: float) -> None:
        """Take in a round; what is incomplete, or cannot be compared with the whole cluster, changes nothing."""
        self._since_complete += elapsed
        if not seen.complete or seen.disks is None or seen.files is None:
            return
        try:
            if self._suspects is None:
                self._suspects = self._written = await self._store.load()
            named = await self._names.read()
            if not named.volumes:
                # No volume of ours at all: another cluster's credentials, or an etcd that is new. Nothing is judged by it.
                return
            things = unnamed(self._base_path, seen.disks, seen.files, named)
            after = follow(
                self._suspects,
                things,
                now=now,
                elapsed=self._since_complete,
                longest=INTERVALS * self._interval,
                unjudged=self._unjudged(seen.disks, seen.files, named),
            )
            self._since_complete = 0.0
            self._suspects = after
            self.judged = True
            await self._report(after, now)
            await self._save(after)
        except (ApiError, ValueError) as error:
            logger.warning("what nobody names on the box is not judged now: %s", error)

    def _unjudged(self, disks: Iterable[Disk], files: Iterable[File], named: Named) -> set[str]:
        """Return the names of what lies there and would be unnamed if no snapshot was named, where nobody can tell that."""
        if named.snapshots is not None:
            return set()
        return {thing.name for thing in unnamed(self._base_path, disks, files, replace(named, snapshots=frozenset()))}

    async def _report(self, suspects: dict[str, Suspect], now: datetime) -> None:
        due = [suspect for suspect in suspects.values() if suspect.observed >= self._grace and not suspect.reported]
        for suspect in due:
            thing = suspect.thing
            logger.warning("orphan on the box: %s %s", thing.kind, thing.path)
            if self._recorder is not None:
                try:
                    posted = await self._recorder.post(_notice(suspect, self._deployment, now), await self._subject())
                except ApiError as error:
                    # What is known is written down all the same; the next round tries again.
                    logger.warning("orphan %s: its Event is posted later: %s", thing.path, error)
                    return
                self._count(EventReason.ORPHAN_DETECTED, posted)
            # An Event that was posted and not noted down is found by its name when it is posted again.
            suspects[thing.name] = replace(suspect, reported=True)

    async def _subject(self) -> Subject:
        path = f"/apis/apps/v1/namespaces/{self._store.namespace}/deployments/{self._deployment}"
        uid = None
        try:
            uid = (await self._names.api.get(path))["metadata"]["uid"]
        except (ObjectNotFound, RequestRefused) as error:
            logger.debug("Deployment %s cannot be read: %s", self._deployment, error)
        return Subject("apps/v1", "Deployment", ObjectReference(namespace=self._store.namespace, name=self._deployment, uid=uid))

    async def _save(self, current: Mapping[str, Suspect]) -> None:
        """Write the suspects down where they are others than those that were written last, which a failed write leaves."""
        same = _essence(self._written) == _essence(current)
        if same and (not current or self._monotonic() - self._saved < SAVE_SECONDS):
            return
        await self._store.save(current)
        self._written = dict(current)
        self._saved = self._monotonic()


def _essence(suspects: Mapping[str, Suspect]) -> dict[str, tuple[datetime, bool]]:
    return {name: (one.first_seen, one.reported) for name, one in suspects.items()}


def _notice(suspect: Suspect, deployment: str, now: datetime) -> Notice:
    thing = suspect.thing
    size = f"{thing.size} bytes" if thing.size is not None else thing.printed_size or "size unknown"
    message = (
        f"{thing.kind} {thing.path} on the box ({size}) is named by no PersistentVolume, record or VolumeSnapshotContent since "
        f"{suspect.first_seen:%Y-%m-%d %H:%M} UTC. Nothing is deleted by itself: see `rds-operator orphans`"
    )
    name = event_name(deployment, "orphan", thing.path, suspect.first_seen.isoformat())
    return Notice(name, EventReason.ORPHAN_DETECTED, message, now, now)


class OrphanGauges(Collector):
    """How many orphans there are; none of these before the box and the cluster were compared once."""

    def __init__(self, watch: OrphanWatch) -> None:
        self._watch = watch

    def describe(self) -> list[Metric]:
        """Name nothing before the first comparison (called when the collector is registered)."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Compute the gauges; waits for nothing."""
        if not self._watch.judged:
            return
        orphans = self._watch.orphans()
        kinds = Counter(suspect.thing.kind for suspect in orphans)
        family = GaugeMetricFamily(
            "rds_csi_orphans", "Things on the box that nobody in the cluster names, past their grace period.", labels=["kind"]
        )
        for kind in Kind:
            family.add_metric([kind], kinds[kind])
        yield family
        yield GaugeMetricFamily(
            "rds_csi_orphan_bytes",
            "Sizes of the orphans whose exact size the box tells, together.",
            value=sum(suspect.thing.size or 0 for suspect in orphans),
        )
