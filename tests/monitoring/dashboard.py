"""The dashboard for Grafana, panel by panel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.monitoring.rules import FOLDER

DASHBOARD: Final = FOLDER / "dashboard.json"
CONFIG_MAP: Final = FOLDER / "dashboard-configmap.yaml"
WIDTH: Final = 24
HEIGHT: Final = 7

Object = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """A panel: its queries by legend."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    text: str = ""


def stat(title: str, query: str, unit: str = "short", text: str = "") -> Panel:
    """Return a panel that shows one number."""
    return Panel(title, {"": query}, unit, "stat", 4, text)


RPCS: Final = 'csi_plugin_operations_seconds_count{driver_name="rds.csi.srvlab.io"'
NO_SERIES: Final = "Nothing is shown while there is none."
ONE: Final = "Needs --disk-metrics=volumes at the operator."

ROWS: Final[dict[str, list[Panel]]] = {
    "Migrations at a glance": [
        stat("Open", "sum(rds_csi_migration_active_migrations)"),
        stat("Overdue", "sum(rds_csi_migration_overdue)"),
        stat("Oldest, running for", "time() - min(rds_csi_migration_oldest_active_start_timestamp_seconds)", "s", NO_SERIES),
        stat("Both nodes attached, 19 of 20 in a week", "rds_csi:migration_duration_seconds:p95_7d", "s"),
        stat("Not reported yet", "sum(rds_csi_outbox_entries)"),
        stat("Forced detaches in a day", "sum(increase(rds_csi_attachment_forced_detaches_total[1d]))"),
        Panel("Results per hour", {"{{result}}": "sum by (result) (increase(rds_csi_migration_migrations_total[1h]))"}),
        Panel("Volumes by phase", {"{{phase}}": "sum by (phase) (rds_csi_attachment_records)"}),
        Panel("Attaches refused per minute", {"refused": "60 * sum(rate(rds_csi_attachment_conflicts_total[$__rate_interval]))"}),
        Panel(
            "How long both nodes were attached",
            {
                "half": "histogram_quantile(0.5, sum by (le) (increase(rds_csi_migration_duration_seconds_bucket[1d])))",
                "19 of 20": "histogram_quantile(0.95, sum by (le) (increase(rds_csi_migration_duration_seconds_bucket[1d])))",
            },
            "s",
        ),
        Panel(
            "How long KubeVirt moved them",
            {
                "half": "histogram_quantile(0.5, sum by (le) (increase(rds_csi_migration_kubevirt_duration_seconds_bucket[1d])))",
                "19 of 20": "histogram_quantile(0.95, sum by (le) "
                "(increase(rds_csi_migration_kubevirt_duration_seconds_bucket[1d])))",
            },
            "s",
        ),
        Panel(
            "Firing alerts",
            {"{{alertname}}": 'sum by (alertname, severity) (ALERTS{alertname=~"RdsCsi.+",alertstate="firing"})'},
            text="Nothing is shown while none fires.",
        ),
    ],
    "One migration in detail: volume $volume": [
        Panel(
            "Connections by node and state",
            {"{{instance}} {{state}}": 'sum by (instance, state) (rds_csi_nvme_session_info{nqn=~".+:$volume"})'},
            text="Two nodes while the volume migrates, one before and after.",
        ),
        Panel(
            "Bytes per second",
            {
                "read": 'sum(rds_disk_read_bytes_per_second{slot="$volume"})',
                "written": 'sum(rds_disk_write_bytes_per_second{slot="$volume"})',
            },
            "Bps",
            text=ONE,
        ),
        Panel(
            "Operations per second, and queued",
            {
                "reads": 'sum(rds_disk_read_ops_per_second{slot="$volume"})',
                "writes": 'sum(rds_disk_write_ops_per_second{slot="$volume"})',
                "queued": 'sum(rds_disk_in_flight_operations{slot="$volume"})',
            },
            text=ONE,
        ),
        Panel(
            "Attach and detach, 99 of 100",
            {
                "{{operation}}": "histogram_quantile(0.99, sum by (operation, le) "
                "(rate(rds_csi_attachment_operation_duration_seconds_bucket[$__rate_interval])))"
            },
            "s",
            text="Of all volumes.",
        ),
        Panel(
            "Events told",
            {"{{reason}}": 'sum by (reason) (increase(rds_csi_events_posted_total{reason=~"Migration.+|AttachmentConflict"}[1h]))'},
            text="Of all volumes, per hour; their texts: kubectl rds volume $volume",
        ),
        Panel("Attached to two nodes now", {"volumes": 'sum(rds_csi_attachment_records{phase=~"Migrating|Overdue"})'}),
    ],
    "Box": [
        stat("SSH link", "max by (address) (rds_csi_rds_connection_state)", "bool_on_off"),
        stat("Last answer, ago", "time() - max(rds_csi_box_last_success_timestamp_seconds)", "s"),
        stat("Pool used", "rds_csi:disk_pool_used:ratio", "percentunit"),
        stat("Volumes missing", "max(rds_csi_volumes_unavailable)"),
        stat("Orphans", "sum(rds_csi_orphans)"),
        stat("Orphans, size", "sum(rds_csi_orphan_bytes)", "bytes"),
        Panel(
            "Pool",
            {
                "size": "max(rds_hardware_disk_pool_size_bytes)",
                "used": "max(rds_hardware_disk_pool_used_bytes)",
                "promised to volumes": "max(rds_csi_pool_provisioned_bytes)",
            },
            "bytes",
        ),
        Panel(
            "Pool, bytes per second",
            {
                "read {{slot}}": "topk(5, rds_disk_read_bytes_per_second)",
                "written {{slot}}": "topk(5, rds_disk_write_bytes_per_second)",
            },
            "Bps",
        ),
        Panel(
            "Latency",
            {
                "read {{slot}}": "topk(5, rds_disk_read_latency_milliseconds)",
                "write {{slot}}": "topk(5, rds_disk_write_latency_milliseconds)",
            },
            "ms",
            text="Averages since the round before; nothing where nothing was done.",
        ),
        Panel(
            "Temperatures",
            {"CPU": "max(rds_hardware_cpu_temperature_celsius)", "board": "max(rds_hardware_board_temperature_celsius)"},
            "celsius",
        ),
        Panel(
            "Power",
            {"PSU 1": "max(rds_hardware_psu1_power_watts)", "PSU 2": "max(rds_hardware_psu2_power_watts)"},
            "watt",
            width=4,
        ),
        Panel("Fans", {"1": "max(rds_hardware_fan1_speed_rpm)", "2": "max(rds_hardware_fan2_speed_rpm)"}, "rotrpm", width=4),
        Panel(
            "Age of what is known",
            {"{{source}}": "time() - max by (source) (rds_csi_inventory_last_success_timestamp_seconds)"},
            "s",
        ),
    ],
    "RPCs": [
        Panel("Calls per second", {"{{method_name}}": f"sum by (method_name) (rate({RPCS}}}[$__rate_interval]))"}, "reqps"),
        Panel(
            "What did not end with OK, per second",
            {
                "{{method_name}} {{grpc_status_code}}": "sum by (method_name, grpc_status_code) "
                f'(rate({RPCS},grpc_status_code!="OK"}}[$__rate_interval]))'
            },
            "reqps",
        ),
        Panel("Duration, 99 of 100", {"{{method_name}}": "method_name:csi_plugin_operations_seconds:p99_5m"}, "s"),
        Panel(
            "Changes on the box and on nodes, per hour",
            {"{{operation}} {{status}}": "sum by (operation, status) (increase(rds_csi_volume_operations_total[1h]))"},
        ),
        Panel(
            "Connections to the box",
            {
                "{{instance}}": "sum by (instance) (rds_csi_nvme_connections_active)",
                "of the Go driver": "sum(rds_csi_nvme_foreign_sessions)",
            },
        ),
        Panel(
            "Volumes that are not well",
            {"{{problem}}": "sum by (problem) (rds_csi_volumes_unhealthy)", "held off": "sum(rds_csi_volumes_held_off)"},
        ),
    ],
}


def panels() -> list[Panel]:
    """Return all panels."""
    return [panel for row in ROWS.values() for panel in row]


def dashboard() -> Object:
    """Return what Grafana imports."""
    return {
        "uid": "rds-csi",
        "title": "rds-csi",
        "tags": ["rds-csi", "storage"],
        "schemaVersion": 39,
        "editable": True,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_datasource(), _volume()]},
        "panels": list(_placed()),
    }


def config_map() -> Object:
    """Return what Grafana's sidecar looks for."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "rds-csi-dashboard",
            "namespace": "rds-csi",
            "labels": {"app.kubernetes.io/part-of": "rds-csi", "grafana_dashboard": "1"},
        },
        "data": {"rds-csi.json": text()},
    }


def text() -> str:
    """Return the dashboard as its file has it."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _placed() -> Iterator[Object]:
    number, y = 0, 0
    for title, row in ROWS.items():
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1), "panels": []}
        x, y, tall = 0, y + 1, 0
        for panel in row:
            height = 4 if panel.kind == "stat" else HEIGHT
            if x + panel.width > WIDTH:
                x, y, tall = 0, y + tall, 0
            number += 1
            yield _panel(number, panel, _place(x, y, panel.width, height))
            x, tall = x + panel.width, max(tall, height)
        y += tall


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(number: int, panel: Panel, place: dict[str, int]) -> Object:
    source = {"type": "prometheus", "uid": "${datasource}"}
    now = panel.kind == "stat"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}} if now else {"legend": {"displayMode": "list"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "instant": now,
                "range": not now,
            }
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def _datasource() -> Object:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _volume() -> Object:
    query = "label_values(rds_disk_in_flight_operations, slot)"
    return {
        "name": "volume",
        "label": "Volume",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "definition": query,
        "query": {"query": query, "refId": "volumes"},
        "refresh": 2,
        "sort": 1,
    }
