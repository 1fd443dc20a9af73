"""The operator's metrics: a registry of its own, counters for what happened, gauges computed from memory at scrape."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rds_operator.events import EventReason
from rds_operator.inventory import AVAILABLE
from rds_operator.memory import RecordMemory
from rds_operator.timeouts import runs
from rds_records.conditions import NODES_READY, derive_phase
from rds_records.events import Posted, Reason
from rds_records.record import Announcement, ForcedDetach, OutboxEntry, Phase, Record

DURATION_BUCKETS: Final = (15, 30, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600, 7200)
"""Seconds; the Go driver's, and further ones up to the longest timeout in use."""

RESULTS: Final = {Announcement.SUCCEEDED: "success", Announcement.FAILED: "failed", Announcement.TIMED_OUT: "timeout"}


class OperatorMetrics:
    """What the operator counts, from 0 at the start of its life, and what it sees in its memory of records."""

    def __init__(self, memory: RecordMemory) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.migrations = Counter(
            "rds_csi_migration_migrations", "Migration windows by result.", ["result"], registry=self.registry
        )
        self.durations = Histogram(
            "rds_csi_migration_duration_seconds",
            "Seconds that both nodes of a migration window were attached.",
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self.kubevirt_durations = Histogram(
            "rds_csi_migration_kubevirt_duration_seconds",
            "Seconds from the start to the end of a migration as KubeVirt says, once per volume that moved.",
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self.forced_detaches = Counter(
            "rds_csi_attachment_forced_detaches",
            "Nodes from which a volume was taken without proof that they had let go of it.",
            registry=self.registry,
        )
        self.stale_cleared = Counter(
            "rds_csi_attachment_stale_cleared",
            "Attachments released whose VolumeAttachment was gone and whose node was proven out.",
            registry=self.registry,
        )
        self.clock_clamps = Counter(
            "rds_csi_migration_clock_clamps",
            "Windows that ended before they began according to the clocks; their duration counts as 0.",
            registry=self.registry,
        )
        self.events_posted = Counter(
            "rds_csi_events_posted", "Kubernetes Events that the API server took.", ["reason"], registry=self.registry
        )
        self.events_failed = Counter(
            "rds_csi_events_failed", "Kubernetes Events that were given up.", ["reason"], registry=self.registry
        )
        for result in RESULTS.values():
            self.migrations.labels(result)
        for reason in EventReason:
            self.events_posted.labels(reason)
            self.events_failed.labels(reason)
        self.registry.register(RecordGauges(memory))

    def count_event(self, reason: Reason, posted: Posted) -> None:
        """Count what became of an Event; one that was found posted before was counted then."""
        if posted is Posted.CREATED:
            self.events_posted.labels(reason).inc()
        elif posted is Posted.REFUSED:
            self.events_failed.labels(reason).inc()

    def count(self, entry: OutboxEntry) -> None:
        """Count one announced transition, or the totals that collapsed ones left."""
        if entry.kind in RESULTS:
            self.migrations.labels(RESULTS[entry.kind]).inc()
        if entry.kind is Announcement.FORCED_DETACH:
            self.forced_detaches.inc()
        if entry.kind is Announcement.STALE_CLEARED:
            self.stale_cleared.inc()
        if entry.counts:
            self.stale_cleared.inc(entry.counts.stale_cleared)
            self.forced_detaches.inc(entry.counts.forced_detaches)
            self.migrations.labels("success").inc(entry.counts.succeeded)
            self.migrations.labels("failed").inc(entry.counts.failed)
            self.migrations.labels("timeout").inc(entry.counts.timed_out)
        if entry.duration_seconds is not None:
            self.durations.observe(max(0.0, entry.duration_seconds))
        if entry.kubevirt_duration_seconds is not None:
            self.kubevirt_durations.observe(max(0.0, entry.kubevirt_duration_seconds))
        if entry.clock_clamped:
            self.clock_clamps.inc()


class RecordGauges(Collector):
    """Gauges of the records in memory. A replica that has not listed them all, such as the standby, has none rather than zeros."""

    def __init__(self, memory: RecordMemory) -> None:
        self._memory = memory

    def describe(self) -> list[Metric]:
        """Name the metrics without looking at memory (called when the collector is registered)."""
        return list(self._families([]))

    def collect(self) -> Iterator[Metric]:
        """Compute the gauges; waits for nothing."""
        return self._families(self._memory.records()) if self._memory.complete else iter(())

    @staticmethod
    def _families(records: list[Record]) -> Iterator[Metric]:
        phases = Tally(derive_phase(record.status) for record in records)
        starts = [record.status.migration.start_time.timestamp() for record in records if record.status.migration and runs(record)]
        yield GaugeMetricFamily(
            "rds_csi_migration_active_migrations", "Open migration windows without a result.", value=len(starts)
        )
        yield GaugeMetricFamily(
            "rds_csi_migration_overdue", "Volumes with two nodes attached past the deadline.", value=phases[Phase.OVERDUE]
        )
        oldest = GaugeMetricFamily(
            "rds_csi_migration_oldest_active_start_timestamp_seconds",
            "Start of the oldest open migration window without a result; absent where there is none.",
        )
        if starts:
            oldest.add_metric([], min(starts))
        yield oldest
        unavailable = [record for record in records if _is_false(record, AVAILABLE)]
        yield GaugeMetricFamily(
            "rds_csi_volumes_unavailable", "Volumes that the box does not have, or does not export.", value=len(unavailable)
        )
        yield GaugeMetricFamily(
            "rds_csi_volumes_on_unready_nodes",
            "Volumes held by a node that is not Ready, or gone.",
            value=sum(_is_false(record, NODES_READY) for record in records),
        )
        by_phase = GaugeMetricFamily("rds_csi_attachment_records", "Volume attachment records by phase.", labels=["phase"])
        for phase in Phase:
            by_phase.add_metric([phase], phases[phase])
        yield by_phase
        yield from _outbox([entry for record in records for entry in record.status.outbox])
        yield _forced([mark for record in records for mark in record.status.forced_detaches])


def _outbox(entries: list[OutboxEntry]) -> Iterator[Metric]:
    yield GaugeMetricFamily("rds_csi_outbox_entries", "Transitions that are not reported yet.", value=len(entries))
    oldest = GaugeMetricFamily(
        "rds_csi_outbox_oldest_timestamp_seconds",
        "When the oldest transition happened that is not reported yet; absent where there is none.",
    )
    if entries:
        oldest.add_metric([], min(entry.time.timestamp() for entry in entries))
    yield oldest


def _forced(marks: list[ForcedDetach]) -> Metric:
    """Return when a node last lost a volume by force: unlike a count, it is there after a restart, and a scrape cannot miss it."""
    family = GaugeMetricFamily(
        "rds_csi_attachment_last_forced_detach_timestamp_seconds",
        "When a volume was last taken from a node by force, by whether the box refused that node before; absent where never.",
        labels=["fenced"],
    )
    for label, fenced in (("true", True), ("false", False)):
        if times := [mark.time.timestamp() for mark in marks if mark.fenced is fenced]:
            family.add_metric([label], max(times))
    return family


def _is_false(record: Record, kind: str) -> bool:
    condition = record.status.condition(kind)
    return condition is not None and condition.status == "False"
