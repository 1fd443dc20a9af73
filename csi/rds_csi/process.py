"""One life of ``rds-csi``: put the parts together, serve until a signal, let calls in flight finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram

from rds_csi.attachments import Attachments
from rds_csi.controller import Addresses, Controller
from rds_csi.expansions import Expansions
from rds_csi.fence import Fence, FenceWatch
from rds_csi.identity import Identity, Readiness
from rds_csi.interceptors import RpcInterceptor
from rds_csi.liveness import trouble_of
from rds_csi.metrics import BoxLink, ShimMetrics
from rds_csi.migration_evidence import MigrationEvidence
from rds_csi.node import node_events
from rds_csi.node.cluster import EventSubjects, NodeCheck, PersistentVolumes, watch_annotations
from rds_csi.node.health import HealthWatch
from rds_csi.node.hold_off import VolumeHoldOff
from rds_csi.node.incidents import EachIncident
from rds_csi.node.metrics import NodeGauges, NodeMetrics
from rds_csi.node.node_events import NodeEvents
from rds_csi.node.orphan_sessions import OrphanSessions
from rds_csi.node.registration import Registration, registration_socket, serve_registration
from rds_csi.node.reports import EachOf
from rds_csi.node.service import NodeService
from rds_csi.node.session_watch import SessionWatch
from rds_csi.routeros import Box, FilePath, Subvolumes, Transport
from rds_csi.routeros.options import BOX_OPTIONS, box_settings
from rds_csi.server import CsiServer, served_methods, wait_for_signal
from rds_csi.settings import ControllerSettings, NodeSettings, Settings
from rds_csi.snapshot_backend import BtrfsBackend
from rds_csi.snapshots import Snapshots
from rds_csi.stale_watch import StaleWatch
from rds_csi.volume_locks import VolumeLocks
from rds_csi.volumes import Volumes
from rds_process import exposition
from rds_records.events import EventRecorder
from rds_records.kubernetes_api import ApiError, KubernetesApi, load_configuration
from rds_records.names import check_ip_address
from rds_records.store import RecordStore

_log = logging.getLogger(__name__)

RECONCILE_FIRST = 1.0
RECONCILE_LONGEST = 30.0
"""Seconds between tries to compare all records with all VolumeAttachments, after a start."""

NODE_CHECK_SECONDS = 3.0
"""How long a node waits for the API server before it serves without having seen its Node."""


async def controller(settings: ControllerSettings) -> None:
    """Run the controller until SIGTERM or SIGINT.

    Raises OSError where it cannot listen, and ValueError where a key or a kubeconfig cannot be used.
    """
    metrics = ShimMetrics()
    box_at = box_settings(**{name: getattr(settings, name) for name in BOX_OPTIONS})
    configuration = await load_configuration(settings.kubeconfig or None)
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(KubernetesApi(configuration))
        transport = await stack.enter_async_context(Transport(box_at, BoxLink(metrics, settings.rds_address)))
        store = RecordStore(api)
        ready = Readiness(lambda: api.get("/version"))
        box = Box(transport)
        fence = Fence(settings.fence, box, store, api.clock, settings.nvme_port, metrics)
        metrics.fence_enabled.set(fence.enabled)
        locks = VolumeLocks()
        attachments = Attachments(
            api,
            store,
            MigrationEvidence(api, settings.driver_name),
            fence,
            driver=settings.driver_name,
            base_path=settings.rds_volume_base_path,
        )
        backend = BtrfsBackend(Subvolumes(transport), box, FilePath(settings.rds_volume_base_path), settings.snapshot_backend)
        service = Controller(
            attachments=attachments,
            volumes=Volumes(
                api=api,
                store=store,
                box=box,
                backend=backend,
                known=lambda handle: attachments.known(handle, caller=None),
                slot_names=settings.slot_names,
                nvme_port=settings.nvme_port,
                base_path=settings.rds_volume_base_path,
            ),
            expansions=Expansions(store, box, api.clock),
            snapshots=Snapshots(backend, box, api.clock.now),
            addresses=_addresses(settings),
            base_path=settings.rds_volume_base_path,
            metrics=metrics,
            locks=locks,
            reserve=settings.pool_reserve,
        )

        async def readiness() -> exposition.Readiness:
            good = await ready()
            return good, {"api_server": ready.trouble or "ok", "box": str(transport.trouble or "ok")}

        await stack.enter_async_context(_background(_reconcile(attachments)))
        await stack.enter_async_context(_background(FenceWatch(fence, locks, attachments.end_abandoned_detach).run()))
        stale = StaleWatch(api, fence, locks, settings.attachment_reconcile_interval, settings.driver_name)
        await stack.enter_async_context(_background(stale.run()))
        await stack.enter_async_context(_background(backend.find_out()))
        await _serve(settings, [service], ready, readiness, metrics.registry, metrics.rpcs)


async def node(settings: NodeSettings) -> None:
    """Run the node service until SIGTERM or SIGINT.

    Raises OSError where it cannot listen, and ValueError where a kubeconfig cannot be used. The API server may be away, also at
    the start.
    """
    metrics = NodeMetrics()
    configuration = await load_configuration(settings.kubeconfig or None)
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(KubernetesApi(configuration))
        check = NodeCheck(api, settings.node_id)
        volumes = PersistentVolumes(api, RecordStore(api), settings.driver_name)
        subjects = EventSubjects(volumes, settings.node_id, lambda: check.uid)
        recorder = EventRecorder(api, node_events.COMPONENT, f"{settings.node_id}-{secrets.token_hex(4)}")
        events = NodeEvents(settings.node_id, recorder, subjects.of, metrics, now=api.clock.now)
        incidents = EachIncident(metrics, events) if settings.events else metrics
        hold_off = VolumeHoldOff(settings.node_id, incidents)
        locks = VolumeLocks()
        service = NodeService(
            settings.node_id,
            reports=EachOf(metrics, hold_off, *([events] if settings.events else [])),
            hold_off=hold_off,
            prefix=settings.managed_nqn_prefix,
            refuse_unknown_node=check.refuse_if_absent,
            locks=locks,
        )
        watch = SessionWatch(
            service.host,
            settings.node_id,
            incidents,
            locks,
            OrphanSessions(settings.node_id, settings.managed_nqn_prefix, settings.orphan_session_grace),
            HealthWatch(settings.health_grace),
            driver=settings.driver_name,
            kubelet_root=Path(settings.kubelet_root_dir),
            clean=settings.orphan_cleanup,
        )
        metrics.registry.register(
            NodeGauges(settings.node_id, lambda: watch.sessions, lambda: watch.problems, lambda: len(hold_off.held()))
        )
        registration = Registration(settings.driver_name, settings.kubelet_registration_path)

        async def ready() -> bool:
            return True

        def readiness() -> exposition.Readiness:
            registered = registration.trouble if settings.plugin_registration_path else ""
            detail: dict[str, object] = {
                "registration": registered or "ok",
                "node": check.trouble or "ok",
                "sessions": watch.trouble or "ok",
            }
            return not registered and not check.absent, detail

        # Before the kubelet asks for the node's name, which it does as soon as it is told of the driver.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NODE_CHECK_SECONDS):
                await check.look()
        if check.trouble:
            await stack.enter_async_context(_background(check.run()))
        if settings.events:
            await stack.enter_async_context(_background(events.run()))
        await stack.enter_async_context(_background(watch_annotations(hold_off, volumes)))
        await stack.enter_async_context(_background(watch.run(settings.session_interval)))
        await _serve(
            settings,
            [service],
            ready,
            readiness,
            metrics.registry,
            metrics.rpcs,
            announce=lambda: _register(settings, registration),
            refresh=watch.refresh,
        )


@contextlib.asynccontextmanager
async def _register(settings: NodeSettings, registration: Registration) -> AsyncIterator[None]:
    if not settings.plugin_registration_path:
        yield
        return
    socket = registration_socket(settings.plugin_registration_path, settings.driver_name)
    async with serve_registration(registration, socket):
        yield


async def _serve(
    settings: Settings,
    servicers: Sequence[object],
    ready: Callable[[], Awaitable[bool]],
    readiness: Callable[[], exposition.Readiness | Awaitable[exposition.Readiness]],
    registry: CollectorRegistry,
    rpcs: Histogram,
    *,
    announce: Callable[[], contextlib.AbstractAsyncContextManager[None]] = contextlib.nullcontext,
    refresh: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until a signal; ``announce`` tells somebody of the server while it serves, ``refresh`` goes before each scrape."""
    served = [Identity(settings.driver_name, version("rds-csi"), ready), *servicers]
    interceptor = RpcInterceptor(rpcs, driver_name=settings.driver_name, methods=served_methods(served))
    server = CsiServer(settings.endpoint, served, [interceptor])

    async def alive() -> str:
        # Before and after it serves, nobody may take it for stuck.
        return await trouble_of(server.target) if server.serving else ""

    async with exposition.serve(settings.metrics_address, registry, readiness, refresh, alive) as listening:
        if listening:
            _log.info("metrics", extra={"host": listening[0], "port": listening[1]})
        await server.start()
        try:
            async with announce():
                received = await wait_for_signal()
            _log.info("draining", extra={"signal": received.name, "seconds": settings.drain_timeout})
        finally:
            await server.stop(settings.drain_timeout)
    _log.info("ended")


def _addresses(settings: ControllerSettings) -> Addresses:
    nvme = settings.nvme_address
    if not nvme:
        try:
            nvme = check_ip_address(settings.rds_address)
        except ValueError as error:
            raise ValueError("--nvme-address is required where --rds-address is no IP address: nodes connect by address") from error
    return Addresses(rds_address=settings.rds_address, nvme_address=nvme, nvme_port=settings.nvme_port)


@contextlib.asynccontextmanager
async def _background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _reconcile(attachments: Attachments) -> None:
    """Compare all records with all VolumeAttachments once; publishes need not wait for it, each looks after its own volume."""
    pause = RECONCILE_FIRST
    while True:
        try:
            changed = await attachments.reconcile()
        except ApiError as error:
            _log.warning("records not compared with VolumeAttachments yet", extra={"error": str(error)})
        except Exception:  # noqa: BLE001 publishes go on without
            _log.exception("records cannot be compared with VolumeAttachments")
            return
        else:
            _log.info("records compared with VolumeAttachments", extra={"changed": changed})
            return
        await asyncio.sleep(pause)
        pause = min(RECONCILE_LONGEST, pause * 2)
