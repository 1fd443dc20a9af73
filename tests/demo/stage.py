"""What the demos share: migrations that are watched, and the facts at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from tests.demo.picture import SHOWN_METRICS, Moment, Object, Picture
from tests.ring.cluster import Cluster
from tests.ring.driver import Operator
from tests.ring.kubevirt import Run, Step, Vm


@dataclass
class Migration:
    """One VM of the demo, its only disk, and what is to become of its migration; claim and VM have one name."""

    name: str
    result: str
    ground: str
    events: tuple[str, ...]
    handle: str = ""
    source: str = ""
    target: str = ""
    vm: Vm | None = None
    run: Run | None = None


@dataclass
class Facts:
    """What was expected and what was seen."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def expect(self, what: str, expected: object, seen: object) -> None:
        """Note one fact."""
        self.rows.append((what, _short(expected), _short(seen)))

    @property
    def wrong(self) -> int:
        """How many differ."""
        return sum(expected != seen for _, expected, seen in self.rows)


def _short(value: object) -> str:
    """Return a value as one line; numbers that follow each other as their first and last."""
    if (
        isinstance(value, list)
        and len(value) > 2
        and isinstance(value[0], int)
        and value == list(range(value[0], value[0] + len(value)))
    ):
        return f"{value[0]} to {value[-1]}"
    return str(value)


class Stage:
    """Migrations that are shown while KubeVirt goes on with them."""

    def __init__(self, cluster: Cluster, operator: Operator, picture: Picture, migrations: Sequence[Migration]) -> None:
        self.cluster = cluster
        self.operator = operator
        self.picture = picture
        self.all = tuple(migrations)
        self._awaited = ""

    def moment(self) -> Moment:
        """Look at everything once."""
        records = {one.name: self.cluster.record(one.handle) or {} for one in self.all if one.handle}
        events = [
            event
            for event in self.cluster.api.list("Event", self.cluster.namespace)
            if event["involvedObject"]["name"] in records and event.get("source", {}).get("component") == "rds-csi-controller"
        ]
        events.sort(key=lambda event: int(event["metadata"]["resourceVersion"]))
        scrape = self.operator.scrape()
        metrics = {}
        for name in SHOWN_METRICS:
            base, _, label = name.partition("{")
            labels = {"result": label.split('"')[1]} if label else {}
            metrics[name] = scrape.value(base, **labels)
        return Moment(records, events, metrics)

    def watch_until(self, what: str, done: Callable[[Moment], bool], timeout: float = 60.0) -> Moment:
        """Show moments until the condition holds; raises AssertionError if it does not in time."""
        deadline = time.monotonic() + timeout
        while True:
            moment = self.moment()
            self.picture.show(moment)
            if done(moment):
                return moment
            if time.monotonic() >= deadline:
                raise AssertionError(f"not within {timeout:g} s: {what} {self._awaited}")
            time.sleep(0.1)

    def watch_for(self, seconds: float) -> None:
        """Show what goes on for a while."""
        deadline = time.monotonic() + seconds
        self.watch_until("time passes", lambda _: time.monotonic() >= deadline, seconds + 10)

    def go_on(self, step: Step, *migrations: Migration, timeout: float = 60.0) -> None:
        """Let KubeVirt go on with these migrations, side by side, until each has done a step."""

        def done(_: Moment) -> bool:
            runs = [one.run for one in migrations if one.run]
            for run in runs:
                self._advance(run, step)
            return all(step in run.done for run in runs)

        self.watch_until(f"{', '.join(one.name for one in migrations)}: {step}", done, timeout)

    def _advance(self, run: Run, step: Step) -> None:
        # What a step waits for it says with an AssertionError; it is tried again at the next look.
        try:
            while step not in run.done and run.advance():
                pass
        except AssertionError as still_wrong:
            self._awaited = str(still_wrong)


def status_of(seen: Moment, one: Migration) -> Object:
    status: Object = seen.records[one.name].get("status", {})
    return status


def phase_of(seen: Moment, one: Migration) -> str:
    return str(status_of(seen, one).get("phase"))


def outbox_of(seen: Moment, one: Migration) -> list[Object]:
    return status_of(seen, one).get("outbox") or []


def window_of(seen: Moment, one: Migration) -> Object:
    """Return the open window, else the last one."""
    status = status_of(seen, one)
    window: Object = status.get("migration") or (status.get("history") or [{}])[-1]
    return window


def reasons_of(seen: Moment, one: Migration, kind: str = "PersistentVolumeClaim") -> list[str]:
    """Return the reasons of the Events about the VM's claim, or about the VM, oldest first."""
    about = [
        event for event in seen.events if (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == (kind, one.name)
    ]
    return [event["reason"] for event in about]


def is_over(seen: Moment, one: Migration) -> bool:
    """Tell whether the window is in the history and everything about it is told."""
    return phase_of(seen, one) == "Attached" and set(one.events) <= set(reasons_of(seen, one)) and not outbox_of(seen, one)


def summary(facts: Facts) -> Table:
    table = Table(title="what was expected, and what was seen")
    for heading in ("fact", "expected", "seen", ""):
        table.add_column(heading)
    for what, expected, seen in facts.rows:
        table.add_row(what, expected, seen, "[green]✓[/]" if expected == seen else "[bold red]✗[/]")
    return table
