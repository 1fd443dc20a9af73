"""The queries and alerts of the documentation, evaluated by Prometheus' own engine: over real scrapes, and up to their limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.documents import blocks, objects
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator, Shim
from tests.ring.kubelet import Kubelet
from tests.ring.prometheus import BadQuery, Prometheus, Series, series_of
from tests.ring.rpc import Csi, Refused
from tests.ring.waiting import eventually

pytestmark = pytest.mark.requirement("R36")

MINUTE = 60.0
HOUR = 60 * MINUTE
BUCKETS = ("15.0", "30.0", "60.0", "+Inf")


@dataclass(frozen=True)
class Alert:
    """An alert as a PrometheusRule has it."""

    name: str
    expression: str
    wait: float
    """Seconds for which the expression must hold."""
    annotations: dict[str, str]


def alerts() -> dict[str, Alert]:
    """Return every alert of the documentation by its name."""
    found = [body["spec"]["groups"] for _, body in objects() if body["kind"] == "PrometheusRule"]
    rules: list[dict[str, Any]] = [rule for groups in found for group in groups for rule in group["rules"]]
    return {
        rule["alert"]: Alert(rule["alert"], rule["expr"], seconds(rule.get("for", "0s")), rule["annotations"]) for rule in rules
    }


def seconds(duration: str) -> float:
    return float(duration[:-1]) * {"s": 1.0, "m": MINUTE, "h": HOUR}[duration[-1]]


def expressions() -> dict[str, str]:
    """Return every query and alert of the documentation, named by its page or alert and what it asks."""
    queries = {f"{page}: {' '.join(text.split())}": text for page, text in blocks("promql")}
    return {**queries, **{f"alert {alert.name}": alert.expression for alert in alerts().values()}}


@pytest.fixture(scope="module")
def scraped(installed: ControlPlane, kubelet: Kubelet, operator: Operator, shim: Shim, csi: Csi) -> Iterator[list[Series]]:
    """What Prometheus would have of operator and shim while one migration succeeds and another is to be joined by a third node."""
    cluster = Cluster(installed.api, kubelet)
    a, b, c = (cluster.make_node() for _ in range(3))
    done, running = (csi.create(cluster.name(stem)).volume_id for stem in ("done", "running"))
    eventually("the operator is the active one", lambda: "rds_csi_migration_active_migrations " in operator.scrape().text)
    texts = {"operator": [operator.scrape().text], "shim": [shim.scrape().text]}
    for handle in (done, running):
        for node in (a, b):
            csi.publish(handle, node)
    csi.unpublish(done, a)
    with pytest.raises(Refused, match="FAILED_PRECONDITION"):
        csi.publish(running, c)
    eventually(
        "the operator has counted", lambda: operator.scrape().value("rds_csi_migration_migrations_total", result="success") >= 1
    )
    texts["operator"].append(operator.scrape().text)
    texts["shim"].append(shim.scrape().text)
    series = []
    for job, (first, second) in texts.items():
        scrapes = [*((minute * MINUTE, first) for minute in range(6)), *((minute * MINUTE, second) for minute in range(6, 11))]
        series += series_of(scrapes, job=job, instance="127.0.0.1")
    yield series
    for handle in (done, running):
        csi.unpublish(handle)
        csi.delete(handle)
        cluster.forget(handle)
    cluster.clean_up()


@pytest.mark.parametrize("name", sorted(expressions()))
def test_every_metric_of_a_documented_query_is_in_a_scrape(name: str, prometheus: Prometheus, scraped: list[Series]) -> None:
    answer = prometheus.query(expressions()[name], scraped, at=10 * MINUTE)
    assert answer.metrics
    assert answer.metrics - {series.name for series in scraped} == set()
    assert list(answer.warnings) == []


def documented(*words: str) -> str:
    """Return the documented query that has these words in it."""
    (found,) = (text for _, text in blocks("promql") if all(word in text for word in words))
    return found


def test_results_are_counted_from_real_scrapes(prometheus: Prometheus, scraped: list[Series]) -> None:
    found = prometheus.query(documented("sum by (result)"), scraped, at=10 * MINUTE).elements
    assert {labels["result"]: round(value) for labels, value in found} == {"success": 1, "failed": 0, "timeout": 0}


def test_refusals_are_counted_from_real_scrapes(prometheus: Prometheus, scraped: list[Series]) -> None:
    assert prometheus.query(documented("rds_csi_attachment_conflicts_total"), scraped, at=10 * MINUTE).value > 0


def test_attaches_are_timed_from_real_scrapes(prometheus: Prometheus, scraped: list[Series]) -> None:
    assert 0 < prometheus.query(documented("ControllerPublishVolume"), scraped, at=10 * MINUTE).value < 30


def test_a_query_that_is_none_is_told_apart(prometheus: Prometheus) -> None:
    with pytest.raises(BadQuery, match="parse error"):
        prometheus.query("time() - ", [], at=0.0)


# By hand, up to the limit and past it


def counter(name: str, *steps: tuple[float, float], until: float = 4 * HOUR, **labels: str) -> Series:
    """Return a counter that is scraped every minute and has these values from these moments on, 0 before."""
    samples = []
    for minute in range(int(until // MINUTE) + 1):
        moment = minute * MINUTE
        samples.append((moment, max((value for since, value in steps if since <= moment), default=0.0)))
    return Series(name, labels, samples)


def gauge(name: str, *spans: tuple[float, float, float], **labels: str) -> Series:
    """Return a gauge that is scraped every minute and exists from one moment to another with a value, for each span."""
    samples = [(m * MINUTE, value) for start, end, value in spans for m in range(int(start // MINUTE), int(end // MINUTE) + 1)]
    return Series(name, labels, samples)


def migrations(**steps: list[tuple[float, float]]) -> list[Series]:
    """Return the counter of migrations by result."""
    name = "rds_csi_migration_migrations_total"
    return [counter(name, *steps.get(result, []), until=30 * HOUR, result=result) for result in ("success", "failed", "timeout")]


def test_the_share_of_timeouts_is_a_share(prometheus: Prometheus) -> None:
    series = migrations(success=[(HOUR, 3.0)], timeout=[(2 * HOUR, 1.0)])
    assert prometheus.query(documented('result="timeout"', "[1d]"), series, at=20 * HOUR).value == pytest.approx(0.25)


def test_a_day_without_migrations_has_no_share_of_timeouts(prometheus: Prometheus) -> None:
    assert list(prometheus.query(documented('result="timeout"', "[1d]"), migrations(), at=20 * HOUR).elements) == []


def test_the_age_of_the_oldest_migration_is_in_seconds(prometheus: Prometheus) -> None:
    start = gauge("rds_csi_migration_oldest_active_start_timestamp_seconds", (10 * MINUTE, 60 * MINUTE, 600.0))
    assert prometheus.query(documented("oldest_active"), [start], at=25 * MINUTE).value == 15 * MINUTE


def test_no_migration_has_no_age(prometheus: Prometheus) -> None:
    assert list(prometheus.query(documented("oldest_active"), [], at=25 * MINUTE).elements) == []


def test_the_duration_is_where_nineteen_of_twenty_lie(prometheus: Prometheus) -> None:
    name = "rds_csi_migration_duration_seconds_bucket"
    series = [counter(name, (HOUR, count), le=le) for le, count in zip(BUCKETS, (10.0, 19.0, 20.0, 20.0), strict=True)]
    assert prometheus.query(documented("rds_csi_migration_duration_seconds_bucket"), series, at=3 * HOUR).value == pytest.approx(30)


# Alerts, minute by minute

OLDEST = "rds_csi_migration_oldest_active_start_timestamp_seconds"
ACTIVE = "rds_csi_migration_active_migrations"
CONFLICTS = "rds_csi_attachment_conflicts_total"


def fires_at(prometheus: Prometheus, name: str, series: list[Series], *, until: float) -> float | None:
    """Return when an alert that is evaluated every minute fires first, up to a moment; None where it does not."""
    alert, pending = alerts()[name], None
    for minute in range(int(until // MINUTE) + 1):
        moment = minute * MINUTE
        if not prometheus.query(alert.expression, series, at=moment).elements:
            pending = None
            continue
        pending = moment if pending is None else pending
        if moment - pending >= alert.wait:
            return moment
    return None


def test_every_alert_has_a_test() -> None:
    tested = {name.removeprefix("test_alert_").split("_fires")[0] for name in globals() if name.startswith("test_alert_")}
    assert {name.removeprefix("RdsCsi").lower() for name in alerts()} == {name.replace("_", "") for name in tested}


def test_alert_migration_stuck_fires_past_three_hours_and_not_before(prometheus: Prometheus) -> None:
    series = [gauge(OLDEST, (HOUR, 5 * HOUR, HOUR))]
    assert fires_at(prometheus, "RdsCsiMigrationStuck", series, until=5 * HOUR) == 4 * HOUR + MINUTE


def test_many_short_migrations_are_no_stuck_one(prometheus: Prometheus) -> None:
    spans = [(number * HOUR, (number + 1) * HOUR - MINUTE, number * HOUR) for number in range(1, 5)]
    assert (
        fires_at(prometheus, "RdsCsiMigrationStuck", [gauge(OLDEST, *spans), gauge(ACTIVE, (0, 5 * HOUR, 9))], until=5 * HOUR)
        is None
    )


def test_alert_migration_overdue_fires_with_the_first_overdue_volume(prometheus: Prometheus) -> None:
    series = [gauge("rds_csi_migration_overdue", (0, 9 * MINUTE, 0), (10 * MINUTE, 30 * MINUTE, 1))]
    assert fires_at(prometheus, "RdsCsiMigrationOverdue", series, until=30 * MINUTE) == 11 * MINUTE


def test_no_overdue_volume_is_no_alert(prometheus: Prometheus) -> None:
    series = [gauge("rds_csi_migration_overdue", (0, 30 * MINUTE, 0))]
    assert fires_at(prometheus, "RdsCsiMigrationOverdue", series, until=30 * MINUTE) is None


@pytest.mark.parametrize(
    ("succeeded", "timed_out", "fires"),
    [(16.0, 4.0, False), (15.0, 5.0, True), (2.0, 2.0, False), (3.0, 2.0, True), (0.0, 0.0, False)],
)
def test_alert_migrations_time_out_fires_over_a_fifth_of_at_least_five(
    prometheus: Prometheus, succeeded: float, timed_out: float, fires: bool
) -> None:
    series = migrations(success=[(HOUR, succeeded)], timeout=[(2 * HOUR, timed_out)])
    alert = alerts()["RdsCsiMigrationsTimeOut"]
    assert bool(prometheus.query(alert.expression, series, at=24 * HOUR).elements) is fires


def test_alert_attach_refused_fires_where_it_goes_on_for_half_an_hour(prometheus: Prometheus) -> None:
    tries = [(HOUR + number * 5 * MINUTE, number + 1.0) for number in range(12)]
    fired = fires_at(prometheus, "RdsCsiAttachRefused", [counter(CONFLICTS, *tries)], until=3 * HOUR)
    assert fired == HOUR + 30 * MINUTE


def test_a_chained_migration_that_waits_for_a_minute_is_no_alert(prometheus: Prometheus) -> None:
    series = [counter(CONFLICTS, (HOUR, 6.0), (HOUR + MINUTE, 8.0))]
    assert fires_at(prometheus, "RdsCsiAttachRefused", series, until=3 * HOUR) is None


def test_alert_operator_missing_fires_five_minutes_after_the_last_one(prometheus: Prometheus) -> None:
    series = [gauge(ACTIVE, (0, HOUR, 0), (HOUR + 8 * MINUTE, 2 * HOUR, 0), instance="a")]
    # Prometheus itself looks five minutes back for a sample where the target just stopped to answer.
    assert fires_at(prometheus, "RdsCsiOperatorMissing", series, until=2 * HOUR) is None
    assert fires_at(prometheus, "RdsCsiOperatorMissing", series, until=3 * HOUR) == 2 * HOUR + 10 * MINUTE


def rule_files() -> dict[str, dict[str, Any]]:
    """Return what the Prometheus operator would make of each PrometheusRule, by its name."""
    return {
        body["metadata"]["name"]: {"groups": body["spec"]["groups"]} for _, body in objects() if body["kind"] == "PrometheusRule"
    }


@pytest.mark.parametrize("name", sorted(rule_files()))
def test_the_rules_load(name: str, prometheus: Prometheus) -> None:
    prometheus.load(yaml.safe_dump(rule_files()[name]))


@pytest.mark.parametrize("wrong", [{"expr": "sum("}, {"annotations": {"summary": "{{ $valu }}"}}, {"foor": "5m"}])
def test_a_rule_that_is_none_is_told_apart(wrong: dict[str, Any], prometheus: Prometheus) -> None:
    (groups,) = rule_files().values()
    groups["groups"][0]["rules"][0].update(wrong)
    with pytest.raises(BadQuery):
        prometheus.load(yaml.safe_dump(groups))


def test_alerts_name_the_command_that_shows_more() -> None:
    assert [alert.name for alert in alerts().values() if not {"summary", "description"} <= set(alert.annotations)] == []
