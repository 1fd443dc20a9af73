"""The node's metrics, in a registry of their own: counters of what the service reports, and the sessions as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rds_csi.metrics import STATUSES, VOLUME_BUCKETS, rpc_histogram
from rds_csi.node.health import Change, Problem
from rds_csi.node.node_events import NodeReason
from rds_csi.node.nvme import Target, foreign_host_names
from rds_csi.node.reports import MountOperation, Operation
from rds_csi.node.sysfs import DeviceNumber, Session

MAX_STALE: Final = 1024
"""Stale paths that are remembered, so that each is counted once; beyond that the oldest may be counted again."""


class NodeMetrics:
    """Counters and histograms under the Go driver's names, each label value at 0 from the start (a ``NodeReports``)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.rpcs = rpc_histogram(self.registry)
        self.operations = self._counter(
            "rds_csi_volume_operations_total", "Calls of the Node service that change something", "operation", "status"
        )
        self.durations = Histogram(
            "rds_csi_volume_operation_duration_seconds",
            "Seconds per call of the Node service that changes something",
            ("operation",),
            buckets=VOLUME_BUCKETS,
            registry=self.registry,
        )
        self.connects = self._counter("rds_csi_nvme_connects_total", "Attempts to connect to an NVMe subsystem", "status")
        self.connect_durations = Histogram(
            "rds_csi_nvme_connect_duration_seconds",
            "Seconds per attempt to connect that succeeded",
            buckets=VOLUME_BUCKETS,
            registry=self.registry,
        )
        self.mounts = self._counter(
            "rds_csi_mount_operations_total", "Mounts and file systems made, shown, unmounted or grown", "operation", "status"
        )
        self.stale = self._counter(
            "rds_csi_stale_mounts_detected_total", "Mounts and device nodes found to lead to another device than the volume's disk"
        )
        self.recoveries = self._counter("rds_csi_stale_recoveries_total", "Ends of the mending of what was stale", "status")
        self.orphans_cleaned = self._counter("rds_csi_orphans_cleaned_total", "Sessions ended that nothing on the node used")
        self.incidents = self._counter(
            "rds_csi_volume_health_incidents_total", "Times that a volume of this node became unhealthy", "problem"
        )
        self.hold_offs = self._counter(
            "rds_csi_volume_hold_offs_total", "Times that a volume that fails again and again was held off, or for longer"
        )
        self.events_posted = self._counter("rds_csi_events_posted_total", "Events that the API server took", "reason")
        self.events_dropped = self._counter("rds_csi_events_dropped_total", "Events that were given up", "reason")
        for status in STATUSES:
            self.connects.labels(status)
            self.recoveries.labels(status)
            for operation in Operation:
                self.operations.labels(operation, status)
            for mount_operation in MountOperation:
                self.mounts.labels(mount_operation, status)
        for operation in Operation:
            self.durations.labels(operation)
        for problem in Problem:
            self.incidents.labels(problem)
        for reason in NodeReason:
            self.events_posted.labels(reason)
            self.events_dropped.labels(reason)
        self._stale: OrderedDict[tuple[str, str], DeviceNumber] = OrderedDict()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def operation_ended(self, volume_id: str, operation: Operation, seconds: float, failure: str) -> None:
        """Count and time a call."""
        self.operations.labels(operation, _status(failure)).inc()
        self.durations.labels(operation).observe(max(0.0, seconds))

    def connect_ended(self, volume_id: str, target: Target, seconds: float, failure: str) -> None:
        """Count an attempt, and time one that succeeded."""
        self.connects.labels(_status(failure)).inc()
        if not failure:
            self.connect_durations.observe(max(0.0, seconds))

    def mount_ended(self, volume_id: str, operation: MountOperation, failure: str) -> None:
        """Count it."""
        self.mounts.labels(operation, _status(failure)).inc()

    def stale_mount_found(self, volume_id: str, path: str, old: DeviceNumber, now: DeviceNumber | None) -> None:
        """Count it, once for as long as that path leads to that device."""
        if self._stale.get((volume_id, path)) == old:
            return
        self.stale.inc()
        self._stale[volume_id, path] = old
        self._stale.move_to_end((volume_id, path))
        if len(self._stale) > MAX_STALE:
            self._stale.popitem(last=False)

    def stale_mount_recovered(self, volume_id: str, path: str, failure: str) -> None:
        """Count it."""
        self.recoveries.labels(_status(failure)).inc()
        if not failure:
            self._stale.pop((volume_id, path), None)

    def health_changed(self, change: Change) -> None:
        """Count that a volume became unhealthy."""
        if change.began:
            self.incidents.labels(change.problem).inc()

    def orphan_found(self, session: Session) -> None:
        """Ignore it: what is not ended is in the log, and in the gauge of sessions."""

    def orphan_cleaned(self, session: Session) -> None:
        """Count it."""
        self.orphans_cleaned.inc()

    def held_off(self, volume_id: str, failures: int, seconds: float, failure: str) -> None:
        """Count it."""
        self.hold_offs.inc()

    def released(self, volume_id: str, why: str) -> None:
        """Ignore it: how many are held off is a gauge."""

    def event_ended(self, reason: NodeReason, *, posted: bool) -> None:
        """Count an Event that the API server took, or that was given up."""
        (self.events_posted if posted else self.events_dropped).labels(reason).inc()


def _status(failure: str) -> str:
    return "failure" if failure else "success"


class NodeGauges(Collector):
    """What is so on this node at the moment of the last look; what is not known is left out."""

    def __init__(
        self,
        node: str,
        sessions: Callable[[], Sequence[Session] | None],
        problems: Callable[[], Mapping[str, frozenset[Problem]] | None],
        held_off: Callable[[], int],
    ) -> None:
        """``sessions`` are those of ours, ``problems`` of the volumes by their ids; None where nobody could look."""
        self._node = node
        self._sessions = sessions
        self._problems = problems
        self._held_off = held_off

    def describe(self) -> Iterator[Metric]:
        """Yield every family, without samples."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """Yield what is known."""
        families = self._families()
        families["held_off"].add_metric([], self._held_off())
        if (sessions := self._sessions()) is not None:
            families["active"].add_metric([], sum(bool(session.controllers) for session in sessions))
            families["foreign"].add_metric([], sum(bool(foreign_host_names(session, self._node)) for session in sessions))
            for session in sessions:
                for controller in session.controllers:
                    address = f"{controller.address}:{controller.port}"
                    labels = [session.nqn, controller.name, controller.state, address, controller.host_nqn]
                    families["info"].add_metric(labels, 1)
        if (problems := self._problems()) is not None:
            for problem in Problem:
                families["unhealthy"].add_metric([problem], sum(problem in found for found in problems.values()))
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            "active": GaugeMetricFamily(
                "rds_csi_nvme_connections_active", "NVMe subsystems of volumes that this node is connected to"
            ),
            "info": GaugeMetricFamily(
                "rds_csi_nvme_session_info",
                "1 for each connection of this node to a volume's subsystem",
                labels=["nqn", "controller", "state", "address", "host_nqn"],
            ),
            "foreign": GaugeMetricFamily(
                "rds_csi_nvme_foreign_sessions", "Sessions with volumes that were made under another host NQN than this node's"
            ),
            "unhealthy": GaugeMetricFamily(
                "rds_csi_volumes_unhealthy", "Volumes of this node that have a problem", labels=["problem"]
            ),
            "held_off": GaugeMetricFamily(
                "rds_csi_volumes_held_off", "Volumes that fail again and again and are not staged for a while"
            ),
        }
