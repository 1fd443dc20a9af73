"""What is shipped to watch with, asked of a real Prometheus that scraped all our processes while migrations were played."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest

from tests.documents import blocks
from tests.monitoring.dashboard import panels
from tests.monitoring.play import Played, filled_in, played
from tests.monitoring.rules import alerts, recorded
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.kubelet import Kubelet
from tests.ring.prometheus import Prometheus
from tests.ring.waiting import eventually
from tests.unit.test_repository import code, tables

pytestmark = pytest.mark.requirement("R36", "R47")

NOTHING_IS_WRONG = "no alert fires"
NO_KERNEL = "the node of the ring stages nothing: there is no connection to show"
RIGHTLY_EMPTY = {
    "sum by (instance, state) (rds_csi_nvme_session_info": NO_KERNEL,
    "rds_csi_nvme_session_info": NO_KERNEL,
    "sum by (alertname, severity) (ALERTS": NOTHING_IS_WRONG,
    "max(rds_csi_migration_overdue) > 0": "no migration is overdue",
}
"""How a query begins that shows nothing of a migration that goes well, and why."""

NEVER_SEEN = {
    "rds_csi_attachment_last_forced_detach_timestamp_seconds": "no detach was forced",
    "rds_csi_outbox_oldest_timestamp_seconds": "there while something waits to be told, which may be shorter than a scrape",
    "rds_csi_nvme_session_info": NO_KERNEL,
    "rds_csi_orphans": "judged after the first complete round with a volume",
    "rds_csi_orphan_bytes": "as rds_csi_orphans",
}
"""Metrics that a ring need not show."""

JOBS = {
    "operator": ("Operator", "The box, as the operator sees it"),
    "controller": ("Shim",),
    "node": ("Node", "The node now"),
}
PROMETHEUS_OWN = {
    "up",
    "scrape_duration_seconds",
    "scrape_samples_post_metric_relabeling",
    "scrape_samples_scraped",
    "scrape_series_added",
}
PARTS = ("_bucket", "_sum", "_count", "_created")


def queries() -> dict[str, str]:
    """Return every query of the dashboard and of the documentation, and every recording rule, by where it is and what it asks."""
    found = {f"{page}: {' '.join(text.split())}": text for page, text in blocks("promql")}
    found |= {f"{panel.title}: {query}": query for panel in panels() for query in panel.queries.values()}
    return {**found, **{f"{name}: {query}": query for name, query in recorded().items()}}


def reason_to_be_empty(query: str) -> str:
    return next((why for beginning, why in RIGHTLY_EMPTY.items() if query.strip().startswith(beginning)), "")


@pytest.fixture(scope="module")
def watched(
    kubevirt_kinds: ControlPlane, kubelet: Kubelet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Played, float]]:
    """What was played, and when it began."""
    cluster = Cluster(kubevirt_kinds.api, kubelet)
    began = time.time()
    with played(kubevirt_kinds, cluster, tmp_path_factory.mktemp("watched")) as play:
        eventually("both durations are recorded", lambda: play.server.query("rds_csi:migration_duration_seconds:p95_7d"))
        yield play, began


def values(watched: tuple[Played, float], query: str) -> list[float]:
    """Return every number that a panel with this query would show of the whole play."""
    play, began = watched
    lines = play.server.over_time(filled_in(query, play.volume), start=began, end=time.time())
    return [value for line in lines for _, value in line.points if not math.isnan(value)]


@pytest.mark.parametrize("name", sorted(queries()))
def test_every_query_shows_something_of_a_migration(name: str, watched: tuple[Played, float]) -> None:
    query = queries()[name]
    if reason_to_be_empty(query):
        assert values(watched, query) == []
    else:
        eventually(f"{name} is not empty", lambda: values(watched, query), timeout=10)


def test_every_reason_to_be_empty_is_that_of_some_query() -> None:
    asked = [query.strip() for query in queries().values()]
    assert [beginning for beginning in RIGHTLY_EMPTY if not any(query.startswith(beginning) for query in asked)] == []


def test_what_was_played_is_what_the_panels_say(watched: tuple[Played, float]) -> None:
    server = watched[0].server
    assert server.query("sum(rds_csi_migration_migrations_total)") == [({}, 1.0)]
    assert server.query("sum(rds_csi_migration_active_migrations)") == [({}, 1.0)]
    assert server.query("max(rds_csi_rds_connection_state)") == [({}, 1.0)]
    assert server.query("max(rds_csi_fence_enabled)") == [({}, 0.0)]
    ((_, refused),) = server.query("sum(rds_csi_attachment_conflicts_total)")
    assert refused > 0


@pytest.mark.parametrize("name", sorted(alerts()))
def test_every_metric_of_an_alert_was_scraped(name: str, watched: tuple[Played, float], prometheus: Prometheus) -> None:
    server = watched[0].server
    metrics = prometheus.query(alerts()[name].expression, [], at=0.0).metrics
    assert metrics
    scraped = {one for job in JOBS for one in server.names(job)}
    assert metrics - scraped - NEVER_SEEN.keys() == set()


def test_no_alert_fires_while_all_goes_well(watched: tuple[Played, float]) -> None:
    assert values(watched, 'ALERTS{alertstate="firing"}') == []


def test_every_rule_is_evaluated_without_an_error(watched: tuple[Played, float]) -> None:
    health = watched[0].server.health_of_rules()
    assert health == dict.fromkeys([*alerts(), *recorded()], "ok")


@pytest.mark.parametrize("job", sorted(JOBS))
def test_the_reference_lists_what_is_scraped_and_what_is_scraped_is_in_it(job: str, watched: tuple[Played, float]) -> None:
    scraped = {family(name) for name in watched[0].server.names(job) - PROMETHEUS_OWN if not name.endswith("_created")}
    listed = {name for heading in JOBS[job] for row in tables("metrics.md")[heading] for name in code(row[0])}
    assert scraped - listed == set()
    assert listed - scraped - NEVER_SEEN.keys() == set()


def family(series: str) -> str:
    """Return what the reference calls a series: a histogram has one line."""
    stem = next((series.removesuffix(part) for part in PARTS if series.endswith(part)), series)
    return stem if stem.endswith("_seconds") else series
