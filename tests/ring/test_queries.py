"""The queries of the documentation, evaluated by Prometheus' own engine: over real scrapes, and up to their limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.documents import blocks
from tests.monitoring.rules import RULES, groups
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator, Shim
from tests.ring.kubelet import Kubelet
from tests.ring.prometheus import BadQuery, Prometheus, Series, series_of
from tests.ring.rpc import Csi, Refused
from tests.ring.waiting import eventually

pytestmark = pytest.mark.requirement("R36")

PAGES = ("metrics.md", "kubevirt-migration.md")
MINUTE = 60.0
HOUR = 60 * MINUTE
BUCKETS = ("15.0", "30.0", "60.0", "+Inf")


def expressions() -> dict[str, str]:
    """Return every query of the documentation, named by its page and what it asks."""
    return {f"{page}: {' '.join(text.split())}": text for page, text in blocks("promql") if page in PAGES}


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


# The rules that are shipped; what fires when is asked of promtool, in test_alerts.py


def test_the_rules_load(prometheus: Prometheus) -> None:
    prometheus.load(RULES.read_text())


@pytest.mark.parametrize("wrong", [{"expr": "sum("}, {"annotations": {"summary": "{{ $valu }}"}}, {"foor": "5m"}])
def test_a_rule_that_is_none_is_told_apart(wrong: dict[str, Any], prometheus: Prometheus) -> None:
    whole = {"groups": groups()}
    whole["groups"][0]["rules"][0].update(wrong)
    with pytest.raises(BadQuery):
        prometheus.load(yaml.safe_dump(whole))
