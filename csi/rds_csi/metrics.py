"""The shim's metrics, in a registry of their own; every label value is there at 0 from the start (R37)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

RPC_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600)
"""Seconds (kubernetes-csi/csi-lib-utils, metrics/metrics.go)."""

VOLUME_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ATTACHMENT_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
RECONNECT_BUCKETS: Final = (0.1, 0.5, 1, 2, 5, 10, 30, 60)

STATUSES: Final = ("success", "failure")
VOLUME_OPERATIONS: Final = ("create", "delete", "expand", "create_snapshot", "delete_snapshot")
FENCE_OPERATIONS: Final = ("hosts", "cycle")
ATTACHMENT_OPERATIONS: Final = ("attach", "attach_secondary", "detach", "detach_partial")


def rpc_histogram(registry: CollectorRegistry) -> Histogram:
    """Return the histogram of all RPCs that every CSI driver is expected to have."""
    return Histogram(
        "csi_plugin_operations_seconds",
        "Seconds per CSI call, by method and gRPC status code",
        ("driver_name", "method_name", "grpc_status_code"),
        buckets=RPC_BUCKETS,
        registry=registry,
    )


class ShimMetrics:
    """Counters and histograms of the CSI driver under the Go driver's names; ``monotonic`` is a clock in seconds."""

    def __init__(self, registry: CollectorRegistry | None = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry or CollectorRegistry(auto_describe=True)
        self._monotonic = monotonic
        self.rpcs = rpc_histogram(self.registry)
        self.volume_operations = Counter(
            "rds_csi_volume_operations_total",
            "Changes of volumes and snapshots on the box",
            ("operation", "status"),
            registry=self.registry,
        )
        self.volume_durations = Histogram(
            "rds_csi_volume_operation_duration_seconds",
            "Seconds per change of a volume or snapshot on the box",
            ("operation",),
            buckets=VOLUME_BUCKETS,
            registry=self.registry,
        )
        self.attaches = Counter(
            "rds_csi_attachment_attach_total", "Attaches, of second nodes too", ("status",), registry=self.registry
        )
        self.detaches = Counter(
            "rds_csi_attachment_detach_total", "Detaches, also of one of two nodes", ("status",), registry=self.registry
        )
        self.conflicts = Counter(
            "rds_csi_attachment_conflicts_total", "Attaches refused because another node holds the volume", registry=self.registry
        )
        self.attachment_durations = Histogram(
            "rds_csi_attachment_operation_duration_seconds",
            "Seconds per attach and detach",
            ("operation",),
            buckets=ATTACHMENT_BUCKETS,
            registry=self.registry,
        )
        self.fence_changes = Counter(
            "rds_csi_fence_changes_total",
            "Times that the box was told which hosts to accept, and to drop all sessions of the volume as well (cycle)",
            ("operation", "status"),
            registry=self.registry,
        )
        self.fence_enabled = Gauge(
            "rds_csi_fence_enabled", "1 where the box is told which hosts may connect (--fence)", registry=self.registry
        )
        self.box_connected = Gauge(
            "rds_csi_rds_connection_state", "1 while the SSH link to the box works", ("address",), registry=self.registry
        )
        self.box_reconnects = Counter(
            "rds_csi_rds_reconnect_total", "Attempts to connect to the box again", ("status",), registry=self.registry
        )
        self.box_reconnect_duration = Histogram(
            "rds_csi_rds_reconnect_duration_seconds",
            "Seconds from the loss of the link until it works again",
            buckets=RECONNECT_BUCKETS,
            registry=self.registry,
        )
        self.box_last_success = Gauge(
            "rds_csi_box_last_success_timestamp_seconds", "When the box last answered (0: never)", registry=self.registry
        )
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        for operation in VOLUME_OPERATIONS:
            self.volume_durations.labels(operation)
            for status in STATUSES:
                self.volume_operations.labels(operation, status)
        for status in STATUSES:
            self.attaches.labels(status)
            self.detaches.labels(status)
            self.box_reconnects.labels(status)
        for operation in FENCE_OPERATIONS:
            for status in STATUSES:
                self.fence_changes.labels(operation, status)
        for operation in ATTACHMENT_OPERATIONS:
            self.attachment_durations.labels(operation)

    @contextmanager
    def volume_operation(self, operation: str) -> Iterator[None]:
        """Count and time one of VOLUME_OPERATIONS; an exception is a failure."""
        started = self._monotonic()
        status = "failure"
        try:
            yield
            status = "success"
        finally:
            self.volume_operations.labels(operation, status).inc()
            self.volume_durations.labels(operation).observe(max(0.0, self._monotonic() - started))


class BoxLink:
    """Watches the SSH link to one box (``routeros.Observer``); ``wall`` is a clock in Unix seconds."""

    def __init__(self, metrics: ShimMetrics, address: str, *, wall: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._wall = wall
        self._connected = False
        self._last_success = 0.0
        self._state = metrics.box_connected.labels(address)
        metrics.box_last_success.set_function(self._answered)

    def link_state(self, connected: bool) -> None:
        """Note that the link came up or went down."""
        if connected or self._connected:
            self._last_success = self._wall()
        self._connected = connected
        self._state.set(connected)

    def connect_attempt(self, succeeded: bool, outage: float) -> None:
        """Note that an attempt to connect ended; ``outage`` is in seconds."""
        self._metrics.box_reconnects.labels("success" if succeeded else "failure").inc()
        if succeeded:
            self._metrics.box_reconnect_duration.observe(max(0.0, outage))

    def _answered(self) -> float:
        # A link that is up is probed every few seconds, so "now" is right but for that.
        return self._wall() if self._connected else self._last_success
