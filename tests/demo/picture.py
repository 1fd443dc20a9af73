"""What the demo shows: records, Events and metrics side by side, or one line per change where nobody watches a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Object = Mapping[str, Any]

PHASE_STYLES = {"Migrating": "yellow", "Overdue": "bold red", "Attached": "green", "Detached": "dim"}
WIDE = 130
"""Columns of a terminal that has room for the metrics beside the rest."""

SHOWN_METRICS = (
    'rds_csi_migration_migrations_total{result="success"}',
    'rds_csi_migration_migrations_total{result="failed"}',
    'rds_csi_migration_migrations_total{result="timeout"}',
    "rds_csi_migration_active_migrations",
    "rds_csi_migration_overdue",
)


@dataclass(frozen=True)
class Moment:
    """Everything that is shown, at one moment: records by claim name, Events by object name, metrics by sample."""

    records: Mapping[str, Object] = field(default_factory=dict)
    events: Sequence[Object] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def row(claim: str, record: Object) -> tuple[str, str, str, str, str]:
    """Return one record as the demo prints it: claim, phase, nodes, window, last result."""
    status = record.get("status", {})
    window = status.get("migration")
    running = ""
    if window:
        running = f"{window['sourceNode']} → {window['targetNode']}"
        running += f", {window['result']}" if window.get("result") else f", until {window.get('deadlineTime', '-')[11:19]}"
    history = status.get("history") or []
    last = f"{history[-1]['result']} ({history[-1]['reason']})" if history else ""
    return claim, status.get("phase", "-"), status.get("nodes", "") or "-", running or "-", last or "-"


class Picture:
    """Shows moments on a console; on a terminal it redraws, elsewhere it prints what changed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begin = monotonic()
        self._moment = Moment()
        self._told: set[str] = set()
        self._live: Live | None = None
        self._headline = ""

    @contextmanager
    def live(self) -> Iterator[None]:
        """Redraw in place while inside."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self._draw(), console=self.console, refresh_per_second=8) as self._live:
            yield
        self._live = None

    def say(self, text: str) -> None:
        """Tell what happens now."""
        self._headline = text
        if self._live:
            self._live.update(self._draw())
        else:
            self.console.print(f"[bold]{self._clock()} {text}[/]", highlight=False, soft_wrap=True)

    def show(self, moment: Moment) -> None:
        """Show a moment."""
        before, self._moment = self._moment, moment
        if self._live:
            self._live.update(self._draw())
            return
        for claim, record in moment.records.items():
            shown = row(claim, record)
            if claim not in before.records or row(claim, before.records[claim]) != shown:
                self._print("record", f"{shown[0]:<14} {shown[1]:<10} {shown[2]:<14} {shown[3]:<33} {shown[4]}")
        for event in moment.events:
            key = event["metadata"]["uid"]
            if key not in self._told:
                self._told.add(key)
                self._print("event ", f"{event['involvedObject']['name']:<14} {event['reason']:<18} {_short(event)}")
        for name in SHOWN_METRICS:
            value = moment.metrics.get(name)
            if value is not None and value != before.metrics.get(name, 0.0):
                self._print("metric", f"{name} {value:g}")

    def _print(self, kind: str, text: str) -> None:
        self.console.print(Text(f"{self._clock()}   {kind} {text}"), soft_wrap=True)

    def _clock(self) -> str:
        return f"{monotonic() - self._begin:6.1f}s"

    def _draw(self) -> Group:
        records = Table(title="kubectl get var", expand=True)
        for heading in ("claim", "phase", "nodes", "window", "last result"):
            records.add_column(heading)
        for claim, record in self._moment.records.items():
            cells = row(claim, record)
            records.add_row(cells[0], Text(cells[1], PHASE_STYLES.get(cells[1], "")), *cells[2:])
        events = Table(title="Events on the claims", expand=True)
        for heading in ("claim", "reason", "message"):
            events.add_column(heading)
        for event in self._moment.events[-8:]:
            style = "red" if event["type"] == "Warning" else ""
            events.add_row(event["involvedObject"]["name"], Text(event["reason"], style), _short(event))
        metrics = Table(title="/metrics of the operator")
        metrics.add_column("sample")
        metrics.add_column("value", justify="right")
        for name in SHOWN_METRICS:
            value = self._moment.metrics.get(name)
            metrics.add_row(name.removeprefix("rds_csi_migration_"), "-" if value is None else f"{value:g}")
        headline = Panel(f"{self._clock()}  {self._headline}")
        if self.console.width < WIDE:
            return Group(headline, records, events, metrics)
        side_by_side = Table.grid(padding=(0, 1), expand=True)
        side_by_side.add_column(ratio=1)
        side_by_side.add_column(width=48)
        side_by_side.add_row(Group(records, events), metrics)
        return Group(headline, side_by_side)


def _short(event: Object) -> str:
    """Return an Event's message without the volume, which the claim stands for."""
    return str(event["message"]).split("]: ", 1)[-1].removeprefix("KubeVirt live migration ")
