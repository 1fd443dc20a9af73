"""Every label value is there from the start; gauges come from memory, and only where that is complete."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from rds_operator.events import EventReason
from rds_operator.memory import RecordMemory
from rds_operator.metrics import OperatorMetrics
from rds_records.record import ForcedDetach, ForceReason, Record
from rds_records.windows import expire
from tests.unit.operator.api_server import ApiServer
from tests.unit.operator.volumes import NOW, attached, migrating, record, store_record


def handle(number: int) -> str:
    return f"pvc-{number:08}-2222-3333-4444-555555555555"


def metrics_of(*records: Record, complete: bool = True) -> OperatorMetrics:
    server, memory = ApiServer(), RecordMemory()
    for body in records:
        memory.see(store_record(server, body).to_json())
    memory.complete = complete
    return OperatorMetrics(memory)


@pytest.mark.requirement("R37")
def test_all_label_values_are_there_from_the_start_at_zero() -> None:
    registry = metrics_of().registry
    for result in ("success", "failed", "timeout"):
        assert registry.get_sample_value("rds_csi_migration_migrations_total", {"result": result}) == 0
    for reason in EventReason:
        assert registry.get_sample_value("rds_csi_events_posted_total", {"reason": reason}) == 0
        assert registry.get_sample_value("rds_csi_events_failed_total", {"reason": reason}) == 0
    for phase in ("Detached", "Attached", "Migrating", "Overdue"):
        assert registry.get_sample_value("rds_csi_attachment_records", {"phase": phase}) == 0


@pytest.mark.requirement("R9")
def test_a_migration_of_twenty_minutes_lands_in_a_finite_bucket() -> None:
    metrics = metrics_of()
    metrics.durations.observe(1200)
    value = metrics.registry.get_sample_value
    assert value("rds_csi_migration_duration_seconds_bucket", {"le": "1200.0"}) == 1
    assert value("rds_csi_migration_duration_seconds_bucket", {"le": "600.0"}) == 0


@pytest.mark.requirement("R4")
def test_gauges_are_computed_from_the_records() -> None:
    overdue = expire(migrating(handle(3)), now=NOW + timedelta(seconds=301), elapsed=timedelta(seconds=301))
    assert overdue
    metrics = metrics_of(
        record(handle(1)),
        migrating(handle(2)),
        overdue,
        migrating(handle(4), since=NOW - timedelta(seconds=5)),
        attached(record(handle(5)), "node-a"),
    )
    value = metrics.registry.get_sample_value
    assert value("rds_csi_migration_active_migrations") == 2
    assert value("rds_csi_migration_overdue") == 1
    assert value("rds_csi_migration_oldest_active_start_timestamp_seconds") == NOW.timestamp() - 5
    phases = {
        phase: value("rds_csi_attachment_records", {"phase": phase}) for phase in ("Detached", "Attached", "Migrating", "Overdue")
    }
    assert phases == {"Detached": 1, "Attached": 1, "Migrating": 2, "Overdue": 1}


def test_without_an_active_migration_there_is_no_oldest_one() -> None:
    assert metrics_of(record()).registry.get_sample_value("rds_csi_migration_oldest_active_start_timestamp_seconds") is None


def test_a_standby_shows_no_gauges_rather_than_zeros() -> None:
    registry = metrics_of(migrating(), complete=False).registry
    assert registry.get_sample_value("rds_csi_migration_active_migrations") is None
    assert registry.get_sample_value("rds_csi_attachment_records", {"phase": "Migrating"}) is None


def test_the_oldest_transition_that_is_not_reported_is_told_by_its_time() -> None:
    value = metrics_of(
        migrating(handle(1)), migrating(handle(2), since=NOW - timedelta(seconds=90)), record(handle(3))
    ).registry.get_sample_value
    assert value("rds_csi_outbox_entries") == 2
    assert value("rds_csi_outbox_oldest_timestamp_seconds") == NOW.timestamp() - 90


def test_without_anything_to_report_there_is_no_oldest_transition() -> None:
    value = metrics_of(record()).registry.get_sample_value
    assert value("rds_csi_outbox_entries") == 0
    assert value("rds_csi_outbox_oldest_timestamp_seconds") is None


def taken_by_force(number: int, *times: datetime, fenced: bool) -> Record:
    marks = [
        ForcedDetach(id=f"{number}-{at}", node_name="node-a", time=at, reason=ForceReason.NODE_GONE, message="gone", fenced=fenced)
        for at in times
    ]
    return record(handle(number)).with_status(forced_detaches=tuple(marks))


def test_the_last_forced_detach_is_told_by_its_time_and_whether_the_box_refused_the_node() -> None:
    name = "rds_csi_attachment_last_forced_detach_timestamp_seconds"
    later = NOW + timedelta(hours=1)
    value = metrics_of(taken_by_force(1, NOW, later, fenced=True), taken_by_force(2, NOW, fenced=False)).registry.get_sample_value
    assert value(name, {"fenced": "true"}) == later.timestamp()
    assert value(name, {"fenced": "false"}) == NOW.timestamp()
    value = metrics_of(taken_by_force(1, NOW, fenced=True), record(handle(2))).registry.get_sample_value
    assert value(name, {"fenced": "false"}) is None


def series(metrics: OperatorMetrics) -> int:
    return sum(len(metric.samples) for metric in metrics.registry.collect())


@pytest.mark.requirement("R44")
def test_the_number_of_series_does_not_depend_on_the_number_of_volumes() -> None:
    few = metrics_of(*(migrating(handle(number)) for number in range(2)))
    many = metrics_of(*(migrating(handle(number)) for number in range(50)))
    assert series(few) == series(many)
