"""The node's metrics: all there at 0, each report counted, gauges of what is so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from rds_csi.node.health import Change, Problem
from rds_csi.node.metrics import MAX_STALE, NodeGauges, NodeMetrics
from rds_csi.node.node_events import NodeReason
from rds_csi.node.reports import MountOperation, Operation
from rds_csi.node.sysfs import ControllerState, DeviceNumber, Session
from rds_records.names import host_nqn_for
from tests.unit.node.node_world import NQN, TARGET, disk, session

VOLUME, NODE = "pvc-one", "node-a"
OLD, NEW = DeviceNumber(259, 1), DeviceNumber(259, 2)


def value(metrics: NodeMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"rds_csi_{name}", labels)


def test_every_label_value_is_there_at_zero() -> None:
    metrics = NodeMetrics()
    for status in ("success", "failure"):
        assert value(metrics, "nvme_connects_total", status=status) == 0
        assert value(metrics, "stale_recoveries_total", status=status) == 0
        for operation in Operation:
            assert value(metrics, "volume_operations_total", operation=operation, status=status) == 0
        for mount in MountOperation:
            assert value(metrics, "mount_operations_total", operation=mount, status=status) == 0
    for operation in Operation:
        assert value(metrics, "volume_operation_duration_seconds_count", operation=operation) == 0
    for name in ("stale_mounts_detected_total", "orphans_cleaned_total", "volume_hold_offs_total"):
        assert value(metrics, name) == 0
    for problem in Problem:
        assert value(metrics, "volume_health_incidents_total", problem=problem) == 0
    for reason in NodeReason:
        assert value(metrics, "events_posted_total", reason=reason) == value(metrics, "events_dropped_total", reason=reason) == 0


@pytest.mark.parametrize(("failure", "status"), [("", "success"), ("it broke", "failure")])
def test_calls_connects_and_mounts_are_counted_by_how_they_ended(failure: str, status: str) -> None:
    metrics = NodeMetrics()
    metrics.operation_ended(VOLUME, Operation.STAGE, 2.0, failure)
    metrics.connect_ended(VOLUME, TARGET, 3.0, failure)
    metrics.mount_ended(VOLUME, MountOperation.FORMAT, failure)
    assert value(metrics, "volume_operations_total", operation="stage", status=status) == 1
    assert value(metrics, "volume_operation_duration_seconds_sum", operation="stage") == 2
    assert value(metrics, "nvme_connects_total", status=status) == 1
    assert value(metrics, "nvme_connect_duration_seconds_sum") == (0 if failure else 3)
    assert value(metrics, "mount_operations_total", operation="format", status=status) == 1


def test_a_stale_mount_counts_once_per_incident() -> None:
    metrics = NodeMetrics()
    for _ in range(3):
        metrics.stale_mount_found(VOLUME, "/staging", OLD, NEW)
    metrics.stale_mount_recovered(VOLUME, "/staging", "still in use")
    metrics.stale_mount_found(VOLUME, "/staging", OLD, NEW)
    assert value(metrics, "stale_mounts_detected_total") == 1
    metrics.stale_mount_recovered(VOLUME, "/staging", "")
    metrics.stale_mount_found(VOLUME, "/staging", OLD, NEW)
    metrics.stale_mount_found(VOLUME, "/staging", NEW, OLD)
    assert value(metrics, "stale_mounts_detected_total") == 3
    assert value(metrics, "stale_recoveries_total", status="failure") == 1
    assert value(metrics, "stale_recoveries_total", status="success") == 1


def test_memory_of_stale_mounts_is_bounded() -> None:
    metrics = NodeMetrics()
    for number in range(MAX_STALE + 100):
        metrics.stale_mount_found(f"pvc-{number}", "/staging", OLD, NEW)
    assert len(metrics._stale) == MAX_STALE


def test_an_incident_counts_when_it_begins() -> None:
    metrics = NodeMetrics()
    for began in (True, False):
        metrics.health_changed(Change(VOLUME, Problem.CONNECTION_LOST, began, 1.0))
    assert value(metrics, "volume_health_incidents_total", problem="connection_lost") == 1


def gauges(
    sessions: tuple[Session, ...] | None, problems: dict[str, frozenset[Problem]] | None = None, held_off: int = 0
) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(NodeGauges(NODE, lambda: sessions, lambda: problems, lambda: held_off))
    return registry


def ours(**changes: object) -> Session:
    one = session(disk())
    return replace(one, controllers=(replace(one.controllers[0], host_nqn=host_nqn_for(NODE), **changes),))  # type: ignore[arg-type]


def test_each_session_is_one_series_with_its_state_and_host_nqn() -> None:
    registry = gauges((ours(state=ControllerState.CONNECTING),))
    labels = {"nqn": NQN, "controller": "nvme0", "state": "connecting", "host_nqn": host_nqn_for(NODE)}
    address = f"{TARGET.address}:{TARGET.port}"
    assert registry.get_sample_value("rds_csi_nvme_session_info", {**labels, "address": address}) == 1


def test_active_connections_are_the_sessions_of_this_node() -> None:
    leftover = replace(session(disk()), nqn="nqn.2000-02.com.mikrotik:pvc-gone", controllers=())
    assert gauges((ours(), leftover)).get_sample_value("rds_csi_nvme_connections_active") == 1
    assert gauges(()).get_sample_value("rds_csi_nvme_connections_active") == 0


def test_sessions_under_another_host_nqn_are_counted() -> None:
    assert gauges((ours(), session(disk()))).get_sample_value("rds_csi_nvme_foreign_sessions") == 1
    assert gauges((ours(),)).get_sample_value("rds_csi_nvme_foreign_sessions") == 0


def test_what_cannot_be_looked_at_has_no_series() -> None:
    registry = gauges(None)
    assert registry.get_sample_value("rds_csi_nvme_connections_active") is None
    assert registry.get_sample_value("rds_csi_volumes_unhealthy", {"problem": "connection_lost"}) is None
    assert registry.get_sample_value("rds_csi_volumes_held_off") == 0


def test_unhealthy_volumes_are_counted_by_what_is_wrong() -> None:
    registry = gauges((), {"a": frozenset({Problem.CONNECTION_LOST}), "b": frozenset(Problem)}, held_off=2)
    count = {p: registry.get_sample_value("rds_csi_volumes_unhealthy", {"problem": p}) for p in Problem}
    assert count == {problem: 2 if problem is Problem.CONNECTION_LOST else 1 for problem in Problem}
    assert registry.get_sample_value("rds_csi_volumes_held_off") == 2
