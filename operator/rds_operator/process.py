"""One life of the operator: wait for the lease, be active, and go, either in peace (SIGTERM) or at once (lease lost)."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import kopf
from kubernetes.aio.client import Configuration

from rds_csi.routeros import Box, FilePath, Transport
from rds_csi.routeros import Settings as BoxSettings
from rds_operator import handlers
from rds_operator.active import ActiveOperator
from rds_operator.box_metrics import BoxGauges
from rds_operator.box_reporting import BoxReporter
from rds_operator.box_watch import BoxWatch
from rds_operator.claims import Claims
from rds_operator.config_maps import OwnConfigMap
from rds_operator.events import COMPONENT
from rds_operator.holders import HolderWatch
from rds_operator.inventory import Inventory
from rds_operator.lease import Leadership, LeaseLost, Timing
from rds_operator.memory import RecordMemory
from rds_operator.metrics import OperatorMetrics
from rds_operator.migrations import MigrationFollower
from rds_operator.orphan_watch import NamesInCluster, OrphanGauges, OrphanWatch
from rds_operator.reporting import Reporter
from rds_operator.suspects import SuspectStore
from rds_operator.timeouts import Deadlines, WindowAges
from rds_operator.waiting import WaitingNodes
from rds_process.exposition import Readiness, serve
from rds_records import box_report
from rds_records.clock import ServerClock
from rds_records.events import EventRecorder
from rds_records.imports import DEFAULT_BASE_PATH
from rds_records.kubernetes_api import KubernetesApi, load_configuration
from rds_records.names import DRIVER_NAME
from rds_records.store import RecordStore

logger = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 3.0
STOP_SECONDS: Final = 5.0
"""What SIGTERM waits for: reports under way, then kopf. Both are far below a pod's grace period (30 s)."""

MAX_IDENTITY: Final = 63


def default_identity() -> str:
    """Return an identity that no other process has, a restarted one on the same host included."""
    return f"{socket.gethostname()[: MAX_IDENTITY - 9]}_{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Settings:
    """How one operator runs; times in seconds."""

    kubeconfig: str | None = None
    namespace: str = "rds-csi"
    lease_name: str = "rds-operator"
    timing: Timing = field(default_factory=Timing)
    identity: str = field(default_factory=default_identity)
    driver_name: str = DRIVER_NAME
    metrics_address: str = ""
    """Where to serve metrics and health; empty: nowhere."""

    events: bool = True
    box: BoxSettings | None = None
    """How to reach the box; None: it is not looked at."""

    base_path: str = DEFAULT_BASE_PATH
    inventory_interval: float = 60.0
    every_disk: bool = False
    """Whether the traffic of each volume is measured, not of the pool alone."""

    orphan_grace: float = 86_400.0
    deployment: str = "rds-operator"
    """The operator's own Deployment, on which orphans are reported."""


class Operator:
    """Builds the parts once and connects them."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        self.settings = settings
        self.configuration = configuration
        # The life differs from the identity where that is fixed by a flag: a claim must never be taken for one of an earlier life.
        self.life = f"{settings.identity[:MAX_IDENTITY]}_{secrets.token_hex(4)}"
        clock = ServerClock()
        self.api = KubernetesApi(configuration, clock=clock)
        self.memory = RecordMemory()
        self.metrics = OperatorMetrics(self.memory)
        self.leadership = Leadership(
            self.api,
            clock,
            namespace=settings.namespace,
            name=settings.lease_name,
            identity=settings.identity,
            timing=settings.timing,
        )
        store = RecordStore(self.api)
        deadlines = Deadlines(store, WindowAges(clock), clock)
        recorder = EventRecorder(self.api, COMPONENT, self.life) if settings.events else None
        self.reporter = Reporter(
            store,
            Claims(self.api, driver=settings.driver_name),
            recorder,
            self.metrics,
            clock,
            life=self.life,
            after=deadlines.first,
        )
        self.migrations = MigrationFollower(self.api, self.api, store, clock, self.memory.get)
        self.holders = HolderWatch(self.api, store, self.memory, clock)
        self.transport = Transport(settings.box) if settings.box else None
        self.box_watch: BoxWatch | None = None
        if settings.box and self.transport:
            self.box_watch = self._watch_box(settings.box, self.transport, store, recorder, clock)
        self.active = ActiveOperator(
            self.api,
            self.memory,
            deadlines,
            (self.reporter, self.migrations, WaitingNodes(self.api, clock, driver=settings.driver_name)),
        )

    def _watch_box(
        self, box: BoxSettings, transport: Transport, store: RecordStore, recorder: EventRecorder | None, clock: ServerClock
    ) -> BoxWatch:
        settings, inventory, base_path = self.settings, Inventory(), FilePath(self.settings.base_path)
        orphans = OrphanWatch(
            base_path,
            NamesInCluster(self.api, store, settings.driver_name),
            SuspectStore(self.api, settings.namespace),
            recorder,
            deployment=settings.deployment,
            grace=settings.orphan_grace,
            interval=settings.inventory_interval,
            count=self.metrics.count_event,
        )
        reporter = BoxReporter(
            transport,
            box,
            base_path,
            OwnConfigMap(self.api, settings.namespace, box_report.CONFIG_MAP),
            operator=settings.identity,
            interval=settings.inventory_interval,
            disagreement=clock.disagreement,
        )
        self.metrics.registry.register(BoxGauges(inventory, base_path.mount_point))
        self.metrics.registry.register(OrphanGauges(orphans))
        return BoxWatch(
            Box(transport),
            base_path,
            store,
            self.memory,
            inventory,
            clock,
            interval=settings.inventory_interval,
            every_disk=settings.every_disk,
            observers=(orphans, reporter),
        )

    async def _keep_watching_box(self) -> None:
        if self.box_watch is None or self.transport is None:
            await asyncio.Event().wait()
            return
        async with self.transport:
            await self.box_watch.run()

    def readiness(self) -> Readiness:
        """Tell whether this replica does, or could do, its work; a standby that sees the API server is ready."""
        silence = self.leadership.silence
        ready = silence is not None and silence < self.settings.timing.duration
        detail: dict[str, object] = {
            "role": "active" if self.leadership.leading else "standby",
            "identity": self.settings.identity,
            "lease_holder": self.leadership.holder,
            "api_server_silent_seconds": None if silence is None else round(silence, 1),
            "records_loaded": self.memory.complete,
            "volumes_to_report": self.reporter.busy,
            "kubevirt": self.migrations.kubevirt.access,
            "box": "not watched" if self.transport is None else str(self.transport.trouble or "ok"),
        }
        return ready, detail

    def alive(self) -> str:
        """Tell what is stuck: tasks that end, end the process, and the Lease's is the one that never rests for long."""
        idle = self.leadership.idle
        return f"the Lease was not tried for in {idle:.0f} s" if idle > self.leadership.longest_idle else ""

    async def run(self, stop: asyncio.Event) -> None:
        """Wait for the lease, be active until told to stop; raises whatever ended kopf. A lost lease ends the process at once."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await _first(stopping, asyncio.create_task(self.leadership.acquire(), name="acquire the lease"))
        if stop.is_set():
            # It may have been acquired in the same moment.
            await self.leadership.release()
            return
        keeping = asyncio.create_task(self._keep_lease(), name="keep the lease")
        try:
            await _first(stopping, keeping, asyncio.create_task(self.active.load(), name="list records"))
            if not stop.is_set():
                await self._serve(stop, stopping, keeping)
        finally:
            keeping.cancel()
            await self.leadership.release()

    async def _keep_lease(self) -> None:
        try:
            await self.leadership.keep()
        except LeaseLost as lost:
            # Nothing is tidied up: another replica may be active already, and every write is safe to be cut off anywhere.
            logger.critical("%s; this process ends now", lost)
            logging.shutdown()
            os._exit(1)

    async def _serve(self, stop: asyncio.Event, *watchers: asyncio.Task[Any]) -> None:
        # When kopf ends it ends every task that began after it, so these begin before.
        ours = (
            *watchers,
            asyncio.create_task(self.active.keep_in_step(), name="resync"),
            asyncio.create_task(self.active.keep_deadlines(), name="deadlines"),
            asyncio.create_task(self.migrations.keep_looking(), name="migrations"),
            asyncio.create_task(self.holders.keep_looking(), name="holders"),
            asyncio.create_task(self._keep_watching_box(), name="box"),
            *(asyncio.create_task(one.run(), name="reflector") for one in self.migrations.kubevirt.reflectors),
        )
        framework = asyncio.create_task(self._kopf(stop), name="kopf")
        try:
            await _first(*ours, framework)
            if not stop.is_set():
                raise RuntimeError("kopf ended by itself")
            await self.reporter.drain(DRAIN_SECONDS)
        finally:
            for task in (*ours, framework):
                task.cancel()
            await asyncio.wait([framework], timeout=STOP_SECONDS)

    async def _kopf(self, stop: asyncio.Event) -> None:
        """Run kopf as ``kopf.operator`` does, but for the signals: it must not end before what is under way is reported."""
        before = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=handlers.registry(self.active, self.configuration),
            settings=handlers.settings(),
            standalone=True,
            clusterwide=True,
        )
        # The last that it did was to take SIGTERM and SIGINT, and the loop has not turned since: they are taken back unheard.
        _on_signals(stop.set)
        await kopf.run_tasks(tasks, ignored=before)


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Return when the first task ends; raises what ended it."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _on_signals(act: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, act)


async def live(settings: Settings) -> None:
    """Live one life: return after SIGTERM or SIGINT, or raise what ended it."""
    stop = asyncio.Event()
    _on_signals(stop.set)
    operator = Operator(settings, await load_configuration(settings.kubeconfig))
    async with (
        operator.api,
        serve(settings.metrics_address, operator.metrics.registry, operator.readiness, alive=operator.alive),
    ):
        await operator.run(stop)
