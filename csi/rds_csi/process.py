"""One life of ``rds-csi``: put the parts together, serve until a signal, let calls in flight finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from importlib.metadata import version

from kubernetes.config.config_exception import ConfigException
from prometheus_client import CollectorRegistry, Histogram

from rds_csi.attachments import Attachments
from rds_csi.controller import Addresses, Controller
from rds_csi.expansions import Expansions
from rds_csi.identity import Identity, Readiness
from rds_csi.interceptors import RpcInterceptor
from rds_csi.metrics import BoxLink, ShimMetrics, rpc_histogram
from rds_csi.migration_evidence import MigrationEvidence
from rds_csi.node.registration import Registration, registration_socket, serve_registration
from rds_csi.node.service import NodeService
from rds_csi.routeros import Box, FilePath, Subvolumes, Transport
from rds_csi.routeros.options import BOX_OPTIONS, box_settings
from rds_csi.server import CsiServer, served_methods, wait_for_signal
from rds_csi.settings import ControllerSettings, NodeSettings, Settings
from rds_csi.snapshot_backend import BtrfsBackend
from rds_csi.snapshots import Snapshots
from rds_csi.volume_locks import VolumeLocks
from rds_csi.volumes import Volumes
from rds_process import exposition
from rds_records.kubernetes_api import ApiError, KubernetesApi, load_configuration
from rds_records.names import check_ip_address
from rds_records.store import RecordStore

_log = logging.getLogger(__name__)

RECONCILE_FIRST = 1.0
RECONCILE_LONGEST = 30.0
"""Seconds between tries to compare all records with all VolumeAttachments, after a start."""


async def controller(settings: ControllerSettings) -> None:
    """Run the controller until SIGTERM or SIGINT.

    Raises OSError where it cannot listen, and ValueError where a key or a kubeconfig cannot be used.
    """
    metrics = ShimMetrics()
    box_at = box_settings(**{name: getattr(settings, name) for name in BOX_OPTIONS})
    try:
        configuration = await load_configuration(settings.kubeconfig or None)
    except ConfigException as error:
        raise ValueError(f"no way to reach the API server: {error}") from error
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(KubernetesApi(configuration))
        transport = await stack.enter_async_context(Transport(box_at, BoxLink(metrics, settings.rds_address)))
        store = RecordStore(api)
        ready = Readiness(lambda: api.get("/version"))
        attachments = Attachments(
            api,
            store,
            MigrationEvidence(api, settings.driver_name),
            driver=settings.driver_name,
            base_path=settings.rds_volume_base_path,
        )
        box = Box(transport)
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
            locks=VolumeLocks(),
            reserve=settings.pool_reserve,
        )

        async def readiness() -> exposition.Readiness:
            good = await ready()
            return good, {"api_server": ready.trouble or "ok", "box": str(transport.trouble or "ok")}

        await stack.enter_async_context(_background(_reconcile(attachments)))
        await stack.enter_async_context(_background(backend.find_out()))
        await _serve(settings, [service], ready, readiness, metrics.registry, metrics.rpcs)


async def node(settings: NodeSettings) -> None:
    """Run the node service until SIGTERM or SIGINT; raises OSError where it cannot listen."""
    registry = CollectorRegistry(auto_describe=True)
    registration = Registration(settings.driver_name, settings.kubelet_registration_path)

    async def ready() -> bool:
        return True

    def readiness() -> exposition.Readiness:
        if not settings.plugin_registration_path:
            return True, {"registration": "left to node-driver-registrar"}
        return not registration.trouble, {"registration": registration.trouble or "ok"}

    await _serve(settings, [], ready, readiness, registry, rpc_histogram(registry), lambda: _register(settings, registration))


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
    announce: Callable[[], contextlib.AbstractAsyncContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Serve until a signal; ``announce`` tells somebody of the server while it serves."""
    served = [Identity(settings.driver_name, version("rds-csi"), ready), *servicers]
    if settings.node_id:
        served.append(NodeService(settings.node_id))
    interceptor = RpcInterceptor(rpcs, driver_name=settings.driver_name, methods=served_methods(served))
    server = CsiServer(settings.endpoint, served, [interceptor])
    async with exposition.serve(settings.metrics_address, registry, readiness) as listening:
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
