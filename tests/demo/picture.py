"""What the demo shows: records, Events and metrics side by side, or one line per change where nobody watches a terminal."""

from __future__ import annotations

import re
import textwrap
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

LONGEST = 150
"""Characters of an Event's message that a drawn picture has room for; printed lines have the whole."""

SHOWN_METRICS = (
    'rds_csi_migration_migrations_total{result="success"}',
    'rds_csi_migration_migrations_total{result="failed"}',
    'rds_csi_migration_migrations_total{result="timeout"}',
    "rds_csi_migration_active_migrations",
    "rds_csi_migration_overdue",
    "rds_csi_migration_kubevirt_duration_seconds_count",
)


@dataclass(frozen=True)
class Moment:
    """Everything that is shown, at one moment: records by the name of their VM, Events in their order, metrics by sample."""

    records: Mapping[str, Object] = field(default_factory=dict)
    events: Sequence[Object] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


COLUMNS = ("VM", "phase", "nodes", "migration", "VM runs on", "last result")


def row(name: str, record: Object) -> tuple[str, str, str, str, str, str]:
    """Return one record as the demo prints it, in ``COLUMNS``."""
    status = record.get("status", {})
    window, history = status.get("migration"), status.get("history") or []
    running = last = ""
    if window:
        running = f"{window.get('migrationName', '')} {window['sourceNode']} → {window['targetNode']}".strip()
        deadline = f", until {window['deadlineTime'][11:19]}" if window.get("deadlineTime") else ""
        running += f", {window['result']}" if window.get("result") else deadline
    if history:
        last = f"{history[-1].get('result', 'awaited')} ({history[-1].get('reason', '-')})"
    refused = "".join(f", {refusal['nodeName']} refused" for refusal in status.get("refusals") or [])
    live = (window or (history[-1] if history else {})).get("liveNode", "")
    return name, status.get("phase", "-"), (status.get("nodes", "") or "-") + refused, running or "-", live or "-", last or "-"


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
        for name, record in moment.records.items():
            shown = row(name, record)
            if name not in before.records or row(name, before.records[name]) != shown:
                self._print("record", f"{shown[0]:<13} {shown[1]:<10} {shown[2]:<22} {shown[3]:<46} {shown[4]:<7} {shown[5]}")
        for event in moment.events:
            key = event["metadata"]["uid"]
            if key not in self._told:
                self._told.add(key)
                self._print("event ", f"{_about(event):<18} {event['reason']:<18} {_short(event)}")
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
        for heading in COLUMNS:
            records.add_column(heading)
        for name, record in self._moment.records.items():
            cells = row(name, record)
            records.add_row(cells[0], Text(cells[1], PHASE_STYLES.get(cells[1], "")), *cells[2:])
        events = Table(title="Events on claims and VMs", expand=True)
        for heading in ("about", "reason", "message"):
            events.add_column(heading)
        for event in self._moment.events[-8:]:
            style = "red" if event["type"] == "Warning" else ""
            events.add_row(_about(event), Text(event["reason"], style), textwrap.shorten(_short(event), LONGEST, placeholder=" …"))
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


def _about(event: Object) -> str:
    """Return the VM, or its claim, that an Event is about."""
    about = event["involvedObject"]
    return f"{about['name']} (VM)" if about["kind"] == "VirtualMachineInstance" else str(about["name"])


def _short(event: Object) -> str:
    """Return an Event's message without volume, VM and migration, which stand elsewhere on the line or in the table."""
    text = re.sub(r", migration: \S+, VM: [^;]+", "", str(event["message"]))
    return text.split("]: ", 1)[-1].removeprefix("KubeVirt live migration ")
