"""``./justw bench deadlines [COUNT]``: how late an operator is when hundreds of deadlines pass in the same moment.

Late is when a watcher sees the result, after the deadline that stands in the record; so the write is in it, and the watch.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from rds_records.record import Record, Result
from rds_records.transitions import attach
from tests.ring.api import path_of
from tests.ring.cluster import RECORD, Cluster, StaticVolume
from tests.ring.records import BLOCK, answered, change, make_record
from tests.ring.stack import Stack
from tests.ring.waiting import eventually

WINDOWS = int(sys.argv[1]) if len(sys.argv) > 1 else 500
LIMIT_SECONDS = 2.0
TIMEOUT_SECONDS = 120
MAKERS = 8

T = TypeVar("T")
Made = TypeVar("Made")


def spread(make: Callable[[T], Made], items: Iterable[T]) -> list[Made]:
    with ThreadPoolExecutor(MAKERS) as makers:
        return list(makers.map(make, items))


def open_window(cluster: Cluster, volume: StaticVolume, start: datetime) -> None:
    """Attach both nodes in one write, with the same start for all volumes."""

    def both(fresh: Record) -> Record:
        for node in ("node-a", "node-b"):
            fresh = answered(attach(fresh, node, BLOCK, now=start, new_id=f"{node}-{volume.handle}", node_exists=True))
        return fresh

    change(cluster, volume.handle, both)


def records(cluster: Cluster) -> list[Record]:
    return [Record.from_json(body) for body in cluster.api.list(RECORD)]


def watch_results(cluster: Cluster, version: str, seen: dict[str, datetime]) -> None:
    """Note when each record's result shows up, until all have one."""
    for event in cluster.api.watch(RECORD, resource_version=version):
        body = event["object"]
        window = body.get("status", {}).get("migration") or {}
        if window.get("result") == Result.TIMED_OUT:
            seen.setdefault(body["metadata"]["name"], datetime.now(UTC))
            if len(seen) == WINDOWS:
                return


def measure(stack: Stack, console: Console) -> tuple[list[float], float]:
    """Return how late each result was seen, and after how many seconds all of them were reported."""
    cluster = stack.cluster
    stack.operator()
    console.print(f"[dim]{WINDOWS} volumes, each with a window that ends in the same moment[/]")
    volumes = spread(lambda _: cluster.make_static_volume(bound=False), range(WINDOWS))
    spread(lambda volume: cluster.wait_bound(volume.claim, timeout=120), volumes)
    spread(lambda volume: make_record(cluster, volume, timeout=TIMEOUT_SECONDS), volumes)
    start = datetime.now(UTC)
    spread(lambda volume: open_window(cluster, volume, start), volumes)
    deadline = start + timedelta(seconds=TIMEOUT_SECONDS)

    def reported() -> bool:
        return all(not record.status.outbox for record in records(cluster))

    eventually("every start is reported", reported, timeout=TIMEOUT_SECONDS, interval=1.0)
    left = (deadline - datetime.now(UTC)).total_seconds()
    if left < 5:
        sys.exit("the machine is too slow: the deadline comes before all windows are open and reported")
    console.print(f"[dim]all open and reported, {left:.0f} s before the deadline[/]")
    version = cluster.api.request("GET", path_of(RECORD), query={"limit": 1})["metadata"]["resourceVersion"]
    seen: dict[str, datetime] = {}
    watching = threading.Thread(target=watch_results, args=(cluster, version, seen), daemon=True)
    watching.start()
    watching.join(left + 60)
    if len(seen) < WINDOWS:
        sys.exit(f"only {len(seen)} of {WINDOWS} windows were timed out")
    eventually("every result is reported", reported, timeout=120, interval=0.5)
    told = (datetime.now(UTC) - deadline).total_seconds()
    return [(moment - deadline).total_seconds() for moment in seen.values()], told


def main() -> None:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="rds-bench-") as folder, Stack(Path(folder)) as stack:
        late, told = measure(stack, console)
    console.print(
        f"{WINDOWS} deadlines in one moment: the first {min(late):.2f} s late, the median {statistics.median(late):.2f} s, "
        f"the last {max(late):.2f} s (to reach: {LIMIT_SECONDS:g} s); all reported after {told:.1f} s"
    )
    sys.exit(0 if min(late) >= 0 and max(late) <= LIMIT_SECONDS else 1)


if __name__ == "__main__":
    main()
