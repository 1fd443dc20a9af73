"""The shim's metrics have the Go driver's names, and all label values from the start."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rds_csi.metrics import BoxLink, ShimMetrics


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


@pytest.mark.requirement("R37")
def test_every_label_value_is_there_at_zero_from_the_start() -> None:
    metrics = ShimMetrics()
    BoxLink(metrics, "10.0.0.5").link_state(connected=False)
    registry = metrics.registry
    for status in ("success", "failure"):
        assert value(registry, "rds_csi_attachment_attach_total", status=status) == 0
        assert value(registry, "rds_csi_attachment_detach_total", status=status) == 0
        assert value(registry, "rds_csi_rds_reconnect_total", status=status) == 0
        for operation in ("create", "delete"):
            assert value(registry, "rds_csi_volume_operations_total", operation=operation, status=status) == 0
    for operation in ("create", "delete"):
        assert value(registry, "rds_csi_volume_operation_duration_seconds_count", operation=operation) == 0
    for operation in ("attach", "attach_secondary", "detach", "detach_partial"):
        assert value(registry, "rds_csi_attachment_operation_duration_seconds_count", operation=operation) == 0
    assert value(registry, "rds_csi_attachment_conflicts_total") == 0
    for operation in ("hosts", "cycle"):
        assert value(registry, "rds_csi_fence_changes_total", operation=operation, status="failure") == 0
    assert value(registry, "rds_csi_rds_connection_state", address="10.0.0.5") == 0
    assert value(registry, "rds_csi_rds_reconnect_duration_seconds_count") == 0
    assert value(registry, "rds_csi_box_last_success_timestamp_seconds") == 0


def test_all_names_are_known_to_users_of_the_go_driver_or_of_csi() -> None:
    text = generate_latest(ShimMetrics().registry).decode()
    names = {family.name for family in text_string_to_metric_families(text) if not family.name.endswith("_created")}
    assert all(name.startswith(("rds_csi_", "csi_plugin_operations_seconds")) for name in names)
    assert len(names) == 13


def test_buckets_are_those_of_the_go_driver() -> None:
    registry = ShimMetrics().registry
    assert value(registry, "rds_csi_volume_operation_duration_seconds_bucket", operation="create", le="60.0") == 0
    assert value(registry, "rds_csi_attachment_operation_duration_seconds_bucket", operation="attach", le="0.025") == 0
    assert value(registry, "rds_csi_rds_reconnect_duration_seconds_bucket", le="0.5") == 0


@pytest.mark.requirement("R43")
def test_failed_volume_operation_counts_as_failure_and_is_timed() -> None:
    clock = Clock()
    metrics = ShimMetrics(monotonic=clock)

    def fail() -> None:
        with metrics.volume_operation("create"):
            clock.now += 3
            raise RuntimeError("box is away")

    with pytest.raises(RuntimeError):
        fail()
    with metrics.volume_operation("delete"):
        clock.now += 2
    registry = metrics.registry
    assert value(registry, "rds_csi_volume_operations_total", operation="create", status="failure") == 1
    assert value(registry, "rds_csi_volume_operations_total", operation="delete", status="success") == 1
    assert value(registry, "rds_csi_volume_operation_duration_seconds_sum", operation="create") == 3


def test_link_to_the_box_is_shown() -> None:
    clock = Clock()
    metrics = ShimMetrics()
    link = BoxLink(metrics, "10.0.0.5", wall=clock)
    registry = metrics.registry
    link.link_state(connected=False)
    link.connect_attempt(succeeded=False, outage=1)
    link.connect_attempt(succeeded=True, outage=2.5)
    link.link_state(connected=True)
    assert value(registry, "rds_csi_rds_connection_state", address="10.0.0.5") == 1
    assert value(registry, "rds_csi_rds_reconnect_total", status="failure") == 1
    assert value(registry, "rds_csi_rds_reconnect_total", status="success") == 1
    assert value(registry, "rds_csi_rds_reconnect_duration_seconds_sum") == 2.5
    clock.now = 1600
    assert value(registry, "rds_csi_box_last_success_timestamp_seconds") == 1600
    link.link_state(connected=False)
    clock.now = 9999
    assert value(registry, "rds_csi_box_last_success_timestamp_seconds") == 1600
    assert value(registry, "rds_csi_rds_connection_state", address="10.0.0.5") == 0
