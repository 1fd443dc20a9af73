"""Every alert that is shipped fires when it should and not before, and says what it should: asked of promtool."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.monitoring.rules import RULES, alerts

pytestmark = pytest.mark.requirement("R36", "R47")

OVERDUE = "rds_csi_migration_overdue"
OLDEST = "rds_csi_migration_oldest_active_start_timestamp_seconds"
ACTIVE = "rds_csi_migration_active_migrations"
ENDED = "rds_csi_migration_migrations_total"
CONFLICTS = "rds_csi_attachment_conflicts_total"
FORCED = "rds_csi_attachment_last_forced_detach_timestamp_seconds"
FENCE = "rds_csi_fence_enabled"
OUTBOX = "rds_csi_outbox_oldest_timestamp_seconds"
CONNECTED = "rds_csi_rds_connection_state"
LOOKED = "rds_csi_inventory_last_success_timestamp_seconds"
MISSING = "rds_csi_volumes_unavailable"
USED, SIZE = "rds_hardware_disk_pool_used_bytes", "rds_hardware_disk_pool_size_bytes"
ORPHANS = "rds_csi_orphans"
UNHEALTHY = "rds_csi_volumes_unhealthy"
ATTACH = "/csi.v1.Controller/ControllerPublishVolume"


def calls(code: str) -> str:
    return (
        f'csi_plugin_operations_seconds_count{{driver_name="rds.csi.srvlab.io",method_name="{ATTACH}",grpc_status_code="{code}"}}'
    )


@dataclass(frozen=True)
class Case:
    """Samples, one a minute in promtool's notation, and what an alert says of them at a moment."""

    alert: str
    what: str
    at: str
    series: dict[str, str]
    says: str = ""
    """Its description; empty: it does not fire."""
    labels: dict[str, str] = field(default_factory=dict)


def ended(kind: str, good: int, bad: int) -> dict[str, str]:
    return {f'{ENDED}{{result="success"}}': f"0x60 {good}x150", f'{ENDED}{{result="{kind}"}}': f"0x120 {bad}x90"}


TIMES_OUT = "25% of them: kubectl rds migrations"
FAILS = "25% of them: kubectl get events -A --field-selector reason=MigrationFailed"
STUCK = "It began 3h 1m 0s ago: kubectl get var --field-selector status.phase=Migrating"
REFUSED = "kubectl get events -A --field-selector reason=AttachmentConflict"
FORCED_AGO = "1m 0s ago: kubectl get events -A --field-selector reason=VolumeForceDetached"
NO_OPERATOR = "kubectl get lease,pods -n rds-csi"
NO_CONTROLLER = "kubectl get pods -n rds-csi -o wide"
OLD_NEWS = "The oldest happened 16m 0s ago: kubectl -n rds-csi logs deployment/rds-operator"
CONTROLLER_LOG = "kubectl -n rds-csi logs deployment/rds-csi-controller --all-containers"
OPERATOR_LOG = "kubectl -n rds-csi logs deployment/rds-operator"
POOL = "of it are used: kubectl get var --sort-by=.spec.capacityBytes"
TRIES = "0x59 " + " ".join(f"{count}x4" for count in range(1, 13))

CASES = [
    Case(
        "MigrationOverdue",
        "a minute after the first",
        "11m",
        {OVERDUE: "0x9 1x20"},
        "1 of them: kubectl get var --field-selector status.phase=Overdue",
    ),
    Case("MigrationOverdue", "not at once", "10m", {OVERDUE: "0x9 1x20"}),
    Case("MigrationOverdue", "not without one", "20m", {OVERDUE: "0x30"}),
    Case("MigrationStuck", "past three hours", "241m", {OLDEST: "_x60 3600x300"}, STUCK),
    Case("MigrationStuck", "not at three hours", "240m", {OLDEST: "_x60 3600x300"}),
    Case("MigrationStuck", "not for many short ones", "300m", {OLDEST: "_x60 3600x59 7200x59 10800x59 14400x60", ACTIVE: "9x310"}),
    Case("MigrationsTimeOut", "a quarter of twenty", "180m", ended("timeout", 15, 5), TIMES_OUT),
    Case("MigrationsTimeOut", "not a fifth", "180m", ended("timeout", 16, 4)),
    Case("MigrationsTimeOut", "not half of four", "180m", ended("timeout", 2, 2)),
    Case("MigrationsTimeOut", "not of what failed otherwise", "180m", ended("failed", 15, 5)),
    Case("MigrationsFail", "a quarter of twenty", "180m", ended("failed", 15, 5), FAILS),
    Case("MigrationsFail", "not a fifth", "180m", ended("failed", 16, 4)),
    Case("MigrationsFail", "not of what timed out", "180m", ended("timeout", 15, 5)),
    Case("AttachRefused", "goes on for half an hour", "90m", {CONFLICTS: TRIES}, REFUSED),
    Case("AttachRefused", "not before", "89m", {CONFLICTS: TRIES}),
    Case("AttachRefused", "not a chain that waits for a minute", "90m", {CONFLICTS: "0x59 6 8x200"}),
    Case("ForcedDetach", "within the hour", "11m", {f'{FORCED}{{fenced="true"}}': "_x9 600x100"}, FORCED_AGO),
    Case("ForcedDetach", "not an hour later", "70m", {f'{FORCED}{{fenced="true"}}': "_x9 600x100"}),
    Case(
        "UnfencedDetach",
        "with the fence on",
        "11m",
        {f'{FORCED}{{fenced="false"}}': "_x9 600x100", f'{FENCE}{{instance="a"}}': "1x100", f'{FENCE}{{instance="b"}}': "0x100"},
        FORCED_AGO,
    ),
    Case(
        "UnfencedDetach",
        "not with the fence off",
        "11m",
        {f'{FORCED}{{fenced="false"}}': "_x9 600x100", f'{FENCE}{{instance="a"}}': "0x100"},
    ),
    Case("UnfencedDetach", "not where the box refuses it", "11m", {f'{FORCED}{{fenced="true"}}': "_x9 600x100", FENCE: "1x100"}),
    Case("OperatorMissing", "after five minutes", "130m", {ACTIVE: "0x60 _x8 0x51"}, NO_OPERATOR),
    Case("OperatorMissing", "not while the next one starts", "70m", {ACTIVE: "0x60 _x8 0x51"}),
    Case("ControllerMissing", "after five minutes", "130m", {CONNECTED: "1x60 _x8 0x51"}, NO_CONTROLLER),
    Case("ControllerMissing", "not for a link that is down", "70m", {CONNECTED: "0x130"}),
    Case("OutboxStuck", "the same one for ten minutes", "76m", {OUTBOX: "_x59 3600x60"}, OLD_NEWS),
    Case("OutboxStuck", "not at once", "75m", {OUTBOX: "_x59 3600x60"}),
    Case("OutboxStuck", "not where there is always a new one", "76m", {OUTBOX: "0+60x100"}),
    Case(
        "RpcErrors",
        "four of ten",
        "30m",
        {calls("OK"): "0+6x60", calls("Unavailable"): "0+4x60"},
        f"40% of them in ten minutes: {CONTROLLER_LOG}",
        {"method_name": ATTACH},
    ),
    Case("RpcErrors", "not what is refused", "30m", {calls("OK"): "0+6x60", calls("FailedPrecondition"): "0+4x60"}),
    Case("RpcErrors", "not a single one", "30m", {calls("OK"): "0+0x60", calls("Unavailable"): "0x9 1x60"}),
    Case("RpcErrors", "not one of a hundred", "30m", {calls("OK"): "0+99x60", calls("Internal"): "0+1x60"}),
    Case(
        "VolumeUnhealthy",
        "for two minutes",
        "12m",
        {f'{UNHEALTHY}{{instance="w1",problem="connection_lost"}}': "0x9 1x20"},
        "1 of them on w1: kubectl get events -A --field-selector source=rds-csi-node",
        {"instance": "w1", "problem": "connection_lost"},
    ),
    Case("VolumeUnhealthy", "not at once", "11m", {f'{UNHEALTHY}{{instance="w1",problem="connection_lost"}}': "0x9 1x20"}),
    Case(
        "BoxUnreachable",
        "by nobody",
        "15m",
        {f'{CONNECTED}{{address="10.0.0.5",instance="{one}"}}': "1x9 0x20" for one in "ab"},
        CONTROLLER_LOG,
        {"address": "10.0.0.5"},
    ),
    Case(
        "BoxUnreachable",
        "not for a short outage",
        "14m",
        {f'{CONNECTED}{{address="10.0.0.5",instance="{one}"}}': "1x9 0x20" for one in "ab"},
    ),
    Case(
        "BoxUnreachable",
        "not while one replica reaches it",
        "15m",
        {f'{CONNECTED}{{address="10.0.0.5",instance="a"}}': "1x30", f'{CONNECTED}{{address="10.0.0.5",instance="b"}}': "0x30"},
    ),
    Case(
        "BoxNotLookedAt",
        "for a quarter of an hour",
        "22m",
        {f'{LOOKED}{{source="disks"}}': "60x60"},
        OPERATOR_LOG,
        {"source": "disks"},
    ),
    Case("BoxNotLookedAt", "not before", "21m", {f'{LOOKED}{{source="disks"}}': "60x60"}),
    Case(
        "BoxNotLookedAt",
        "not for sensors alone",
        "60m",
        {f'{LOOKED}{{source="health"}}': "60x60", f'{LOOKED}{{source="disks"}}': "0+60x60"},
    ),
    Case("VolumeMissing", "for five minutes", "15m", {MISSING: "0x9 2x20"}, "2 of them: kubectl rds status"),
    Case("VolumeMissing", "not before", "14m", {MISSING: "0x9 2x20"}),
    Case("PoolFillingUp", "over four fifths", "30m", {USED: "81x60", SIZE: "100x60"}, f"81% {POOL}"),
    Case("PoolFillingUp", "full in four days", "400m", {USED: "55+0.05x400", SIZE: "100x400"}, f"75% {POOL}"),
    Case("PoolFillingUp", "not at four fifths", "60m", {USED: "80x60", SIZE: "100x60"}),
    Case("PoolFillingUp", "not full in four days", "400m", {USED: "55+0.001x400", SIZE: "100x400"}),
    Case("PoolFillingUp", "not a pool that is half empty", "400m", {USED: "10+0.05x400", SIZE: "100x400"}),
    Case("PoolAlmostFull", "over nineteen twentieths", "5m", {USED: "96x20", SIZE: "100x20"}, f"96% {POOL}"),
    Case("PoolAlmostFull", "not at that", "20m", {USED: "95x20", SIZE: "100x20"}),
    Case(
        "Orphans",
        "for an hour",
        "60m",
        {f'{ORPHANS}{{kind="disk"}}': "1x70", f'{ORPHANS}{{kind="file"}}': "2x70"},
        "3 of them: kubectl -n rds-csi exec deployment/rds-operator -- rds-operator orphans",
    ),
    Case("Orphans", "not without", "60m", {f'{ORPHANS}{{kind="disk"}}': "0x70", f'{ORPHANS}{{kind="file"}}': "0x70"}),
]


def unit_test(case: Case) -> dict[str, object]:
    """Return the case as promtool's unit test; the summary and the link are taken from the rule where nothing varies in them."""
    alert = alerts()[f"RdsCsi{case.alert}"]
    said = dict(alert.annotations)
    for name, value in case.labels.items():
        said["summary"] = said["summary"].replace(f"{{{{ $labels.{name} }}}}", value)
    expected = {"exp_labels": {**alert.labels, **case.labels}, "exp_annotations": {**said, "description": case.says}}
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    asked = {"eval_time": case.at, "alertname": alert.name, "exp_alerts": [expected] if case.says else []}
    return {"name": f"{case.alert}: {case.what}", "interval": "1m", "input_series": series, "alert_rule_test": [asked]}


def judge(promtool: Path, folder: Path, rules: Path, cases: list[Case]) -> subprocess.CompletedProcess[str]:
    tests = folder / "tests.yaml"
    tests.write_text(
        yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [unit_test(case) for case in cases]})
    )
    return subprocess.run([promtool, "test", "rules", tests], capture_output=True, text=True, check=False, timeout=120)


def test_every_alert_fires_when_it_should_and_only_then(promtool: Path, tmp_path: Path) -> None:
    done = judge(promtool, tmp_path, RULES, CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    names = {name.removeprefix("RdsCsi") for name in alerts()}
    assert {case.alert for case in CASES if case.says} == names
    assert {case.alert for case in CASES if not case.says} == names


def test_an_alert_that_fires_too_early_is_told_apart(promtool: Path, tmp_path: Path) -> None:
    hasty = tmp_path / "hasty.yaml"
    text = RULES.read_text()
    hasty.write_text(text.replace("for: 1m\n", "for: 0s\n"))
    assert hasty.read_text() != text
    done = judge(promtool, tmp_path, hasty, [case for case in CASES if case.alert == "MigrationOverdue"])
    assert done.returncode == 1
    assert "MigrationOverdue: not at once" in done.stdout + done.stderr


def test_promtool_takes_the_rule_file(promtool: Path) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
