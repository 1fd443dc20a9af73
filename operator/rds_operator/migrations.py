"""Follows KubeVirt's migrations on behalf of records: looks at what changed, lets the rules decide, writes what they say.

A look is safe at any time and as often as one likes: it reads, decides anew from the record's newest version, and writes by
compare-and-swap. A crash anywhere leaves it to the next look, by whichever replica; what KubeVirt says stays there to be read, and
where it has removed its migration meanwhile, who left the volume decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, TypeVar

from rds_operator.kubevirt import ClaimKey, KubeVirt, VmiKey
from rds_operator.memory import Change
from rds_operator.reflector import Access, WatchApi
from rds_records import messages
from rds_records.clock import ServerClock
from rds_records.decisions import Decided
from rds_records.kubernetes_api import ApiError, ObjectNotFound, RequestRefused
from rds_records.kubevirt_evidence import LiveMigration, foreign_pods
from rds_records.kubevirt_hangs import where_it_hangs
from rds_records.kubevirt_objects import GROUP_VERSION, Migration, Pod, Vmi, migration_view, pod_view, vmi_view
from rds_records.kubevirt_runs import next_run, verdict
from rds_records.kubevirt_sights import RunSight, Sight, Trouble, follow, used_by
from rds_records.node_health import NodeHealth, node_health
from rds_records.record import DualAttachPolicy, Record, Window
from rds_records.store import Api, Contended, RecordStore
from rds_records.window_warnings import SLOW_START
from rds_records.windows import to_follow

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""How often records with something to follow are looked at, besides at every change: warnings come with time alone."""

POD_LOOK_SECONDS: Final = 30.0
"""How often the pods on both nodes of an open window are looked at."""

Read = TypeVar("Read")

PARALLEL_LOOKS: Final = 24
FIRST_RETRY_SECONDS: Final = 0.5
LONGEST_RETRY_SECONDS: Final = 15.0


class MigrationFollower:
    """Looks at records when they, their virtual machine or its migrations change; one look at a time per record."""

    def __init__(
        self,
        api: Api,
        watch: WatchApi,
        store: RecordStore,
        clock: ServerClock,
        latest: Callable[[str], Record | None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._store = store
        self._clock = clock
        self._latest = latest
        self._monotonic = monotonic
        self._sleep = sleep
        self.kubevirt = KubeVirt(watch, self._vmi_touched, self._claims_touched, self._look_at_all, sleep=sleep)
        self._by_vmi: dict[VmiKey, set[str]] = defaultdict(set)
        self._by_claim: dict[ClaimKey, set[str]] = defaultdict(set)
        self._keys: dict[str, tuple[frozenset[VmiKey], ClaimKey | None]] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._pods_seen: dict[str, float] = {}
        self._slots = asyncio.Semaphore(PARALLEL_LOOKS)

    @property
    def busy(self) -> int:
        """How many records are being looked at."""
        return len(self._looks)

    def see(self, change: Change) -> None:
        """Take in what the watch told of a record; returns at once."""
        record = change.after
        seen = record or change.before
        if seen is None:
            return
        uid = seen.metadata.uid or ""
        self._index(uid, record)
        if record is None:
            self._pods_seen.pop(uid, None)
        elif self._wants_look(record):
            self._trigger(uid)

    def _index(self, uid: str, record: Record | None) -> None:
        vmis = frozenset((one.vmi.namespace, one.vmi.name) for one in _windows(record) if one.vmi) if record else frozenset()
        claim = record.status.claim_ref if record else None
        key = (claim.namespace, claim.name) if claim else None
        old_vmis, old_key = self._keys.pop(uid, (frozenset(), None))
        if record is not None:
            self._keys[uid] = vmis, key
        for name in old_vmis - vmis:
            _discard(self._by_vmi, name, uid)
        for name in vmis - old_vmis:
            self._by_vmi[name].add(uid)
        if old_key != key:
            if old_key:
                _discard(self._by_claim, old_key, uid)
            if key:
                self._by_claim[key].add(uid)

    def _wants_look(self, record: Record) -> bool:
        return self._follows(record) or (self.kubevirt.known and used_by(record, self.kubevirt.user_of(record)).changed)

    def _follows(self, record: Record) -> bool:
        window = record.status.migration
        open_run = window is not None and (window.migration_uid or record.spec.dual_attach_policy is DualAttachPolicy.KUBEVIRT)
        return bool(open_run or record.status.pending or to_follow(record, now=self._clock.now()))

    # What makes a look due -------------------------------------------------------------------------------------------------------

    def _vmi_touched(self, key: VmiKey) -> None:
        for uid in tuple(self._by_vmi.get(key, ())):
            self._trigger(uid)

    def _claims_touched(self, keys: Iterable[ClaimKey]) -> None:
        for key in keys:
            for uid in tuple(self._by_claim.get(key, ())):
                self._trigger(uid)

    def _look_at_all(self) -> None:
        for uid in tuple(self._keys):
            record = self._latest(uid)
            if record and self._wants_look(record):
                self._trigger(uid)

    async def keep_looking(self) -> NoReturn:
        """Look again and again at what is to be followed, for ever: time passes without any event."""
        while True:
            await self._sleep(LOOK_SECONDS)
            self._look_at_all()

    def _trigger(self, uid: str) -> None:
        self._again.add(uid)
        if uid not in self._looks:
            self._looks[uid] = asyncio.create_task(self._work(uid), name=f"follow {uid}")

    async def _work(self, uid: str) -> None:
        pause = FIRST_RETRY_SECONDS
        try:
            while uid in self._again:
                self._again.discard(uid)
                record = self._latest(uid)
                if record is None:
                    return
                try:
                    async with self._slots:
                        await self.look(record)
                    pause = FIRST_RETRY_SECONDS
                except ObjectNotFound:
                    return
                except (ApiError, Contended) as error:
                    logger.warning("%s: KubeVirt is asked again in %g s: %s", record.metadata.name, pause, error)
                    await self._sleep(pause)
                    pause = min(LONGEST_RETRY_SECONDS, pause * 2)
                    self._again.add(uid)
        except Exception:
            logger.exception("following one record ended; it is taken up again at the next change")
        finally:
            del self._looks[uid]
            if uid in self._again:
                self._trigger(uid)

    # A look ----------------------------------------------------------------------------------------------------------------------

    async def look(self, record: Record) -> None:
        """Look once at everything that the record is about, and write what follows from it. Raises ApiError, Contended."""
        sight = await self._sight(record) if self._follows(record) else None
        new_id = uuid.uuid4().hex[:16]

        def decide(fresh: Record) -> Decided:
            newest = follow(fresh, sight, now=self._clock.now(), new_id=new_id).record if sight else fresh
            if self.kubevirt.known:
                newest = used_by(newest, self.kubevirt.user_of(newest)).record
            return Decided(newest, changed=newest is not fresh)

        await self._store.change(record, decide)

    async def _sight(self, record: Record) -> Sight:
        window, wanted = record.status.migration, to_follow(record, now=self._clock.now())
        allowed = _Allowed()
        # What the next run rests on comes first: whatever had to be over for it to begin is told by the time that it is read below.
        pods = await allowed(self._pods(record, window)) if window else None
        known = self.kubevirt.known
        following = self._next_run(record, window, pods) if known else None
        runs: dict[str, RunSight] = {}
        if known:
            if window and window.vmi and window.migration_uid:
                # Where the virtual machine runs is of interest until a node has left.
                runs[window.migration_uid] = RunSight(self._vmi_of(record, window), None, migration_gone=False)
            for one in wanted:
                if seen := await allowed(self._run(one)):
                    runs[one.migration_uid or ""] = seen
                elif one is window:
                    following = None
        leaving = await allowed(self._leaving(window))
        hangs = await allowed(self._hangs(window, runs)) or ""
        trouble = (self.kubevirt.trouble if wanted else None) or allowed.trouble
        return Sight(
            runs=runs,
            next_run=following,
            leaving=leaving,
            foreign_pods=self._foreign(record, window, pods),
            hangs=hangs,
            trouble=trouble,
            readable=self.kubevirt.known and trouble is None,
        )

    async def _run(self, window: Window) -> RunSight:
        """Return what is known of a window's run; that its migration is gone wants an answer of the API server itself.

        The two watches are not in step with each other, nor with records. So where the migration is over, or is not known here,
        what the virtual machine says of it is read anew: it alone says why, and from when to when.
        """
        if window.vmi is None:
            return RunSight(None, None, migration_gone=False)
        key = (window.vmi.namespace, window.vmi.name)
        runs = {one.uid: one for one in self.kubevirt.migrations_of(key)}
        names = {uid: one.name for uid, one in runs.items()}
        known = runs.get(window.migration_uid or "")
        vmi = self.kubevirt.vmi(key)
        if known and (known.live or verdict(window, vmi, None, migration_gone=False, left=None)):
            return RunSight(vmi, known, migration_gone=False, names=names)
        found = None if known else await self._read(key[0], "virtualmachineinstancemigrations", window.migration_name or "")
        migration = known or (migration_view(found) if found else None)
        machine = await self._read(key[0], "virtualmachineinstances", key[1])
        vmi = vmi_view(machine) if machine else None
        if migration and migration.uid == window.migration_uid:
            return RunSight(vmi, migration, migration_gone=False, names=names)
        return RunSight(vmi, None, migration_gone=True, names=names)

    async def _read(self, namespace: str, plural: str, name: str) -> Mapping[str, Any] | None:
        try:
            return await self._api.get(f"{GROUP_VERSION}/namespaces/{namespace}/{plural}/{name}")
        except ObjectNotFound:
            return None

    async def _pods(self, record: Record, window: Window) -> list[Pod] | None:
        """Return the pods on both nodes of an open window now and then, and always when another run began."""
        uid = record.metadata.uid or ""
        vmi = self._vmi_of(record, window)
        if vmi is None:
            return None
        due = self._monotonic() - self._pods_seen.get(uid, float("-inf")) >= POD_LOOK_SECONDS
        if not due and not self._other_runs(vmi, window):
            return None
        lists = await asyncio.gather(
            *(
                self._api.list(f"/api/v1/namespaces/{vmi.namespace}/pods", {"fieldSelector": f"spec.nodeName={node}"})
                for node in (window.source_node, window.target_node)
            )
        )
        self._pods_seen[uid] = self._monotonic()
        return [pod_view(pod) for pods, _ in lists for pod in pods]

    def _vmi_of(self, record: Record, window: Window) -> Vmi | None:
        return self.kubevirt.vmi((window.vmi.namespace, window.vmi.name)) if window.vmi else self.kubevirt.user_of(record)

    def _other_runs(self, vmi: Vmi, window: Window) -> list[Migration]:
        found = self.kubevirt.migrations_of((vmi.namespace, vmi.name))
        return [one for one in found if one.live and one.uid != window.migration_uid]

    def _next_run(self, record: Record, window: Window | None, pods: list[Pod] | None) -> LiveMigration | None:
        vmi = self._vmi_of(record, window) if window and pods else None
        if vmi is None or window is None or pods is None:
            return None
        return next_run(record, vmi, self._other_runs(vmi, window), pods)

    def _foreign(self, record: Record, window: Window | None, pods: list[Pod] | None) -> tuple[str, ...] | None:
        claim = record.status.claim_ref
        if window is None or window.vmi is None or window.vmi.uid is None or claim is None or pods is None:
            return None
        return foreign_pods(pods, claim.name, window.vmi.uid, (window.source_node, window.target_node))

    async def _leaving(self, window: Window | None) -> NodeHealth | None:
        node = messages.leaving_node(window) if window else None
        if node is None:
            return None
        try:
            return node_health(node, await self._api.get(f"/api/v1/nodes/{node}"))
        except ObjectNotFound:
            return node_health(node, None)

    async def _hangs(self, window: Window | None, runs: Mapping[str, RunSight]) -> str:
        """Say where a migration hangs that is late to start; nobody asks before."""
        seen = runs.get(window.migration_uid or "") if window else None
        if window is None or seen is None or window.vmi is None or window.run_start_time or window.result:
            return ""
        if self._clock.now() - window.start_time < SLOW_START:
            return ""
        pods = f"/api/v1/namespaces/{window.vmi.namespace}/pods"
        found, _ = await self._api.list(pods, {"fieldSelector": f"metadata.name={window.target_pod}"})
        return where_it_hangs(window, seen.migration, found[0] if found else None)


class _Allowed:
    """Awaits reads; one that the API server does not allow gives None, and is remembered: it must not hide what others say."""

    def __init__(self) -> None:
        self._refused: RequestRefused | None = None

    async def __call__(self, read: Awaitable[Read]) -> Read | None:
        try:
            return await read
        except RequestRefused as error:
            self._refused = error
            return None

    @property
    def trouble(self) -> Trouble | None:
        """What was not allowed, if anything was."""
        if self._refused is None:
            return None
        text = f"the operator may not read what tells of the migration: {self._refused}"
        return Trouble(Access.FORBIDDEN.value, f"{text}; grant it to its ServiceAccount (ClusterRole rds-operator)")


def _windows(record: Record) -> tuple[Window, ...]:
    open_window = record.status.migration
    return (*record.status.history, open_window) if open_window else record.status.history


def _discard(index: dict[Any, set[str]], key: Any, uid: str) -> None:
    index[key].discard(uid)
    if not index[key]:
        del index[key]
