"""``kubectl rds status`` as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

from rds_kubectl import migration_rows
from rds_kubectl.findings import Finding, findings
from rds_kubectl.migration_rows import Row, rows_of
from rds_kubectl.world import Volume, World, volumes_of_driver
from rds_process.tables import one_line, size, table
from rds_records.imports import quantity_bytes
from rds_records.record import Record

HEADINGS: Final = ("CLAIM", "VOLUME", "PHASE", "NODES", "VM", "SIZE", "LAST RESULT")
NO_RECORD: Final = "no record yet"


class Status:
    """All volumes, the open migrations, and what is wrong."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.volumes: Sequence[Volume] = volumes_of_driver(world)
        self.open: Sequence[Row] = migration_rows.recent(world.records, now=world.now, within=timedelta(0))
        self.open = [row for row in self.open if row.open]
        self.findings: Sequence[Finding] = findings(world, self.volumes)

    @property
    def wrong(self) -> bool:
        """Whether something is wrong, or could not be looked at."""
        return bool(self.findings or self.world.troubles)

    def lines(self) -> Iterator[str]:
        """Yield the page for people."""
        if self.volumes:
            yield from table(HEADINGS, map(_cells, self.volumes))
        else:
            yield "No volumes." if self.world.volumes is not None else "No volumes that could be read."
        if self.open:
            yield from ("", "Open migrations")
            yield from table(migration_rows.HEADINGS, (row.cells(self.world.now) for row in self.open))
        if self.findings:
            yield from ("", "What is wrong, and what to do")
            yield from (f"- {finding.line()}" for finding in self.findings)
        if self.world.troubles:
            yield from ("", "What could not be read, so nothing is said of it")
            yield from (one_line(f"- {trouble.what}: {trouble.why}") for trouble in self.world.troubles)
        yield from ("", self.summary())

    def summary(self) -> str:
        """Return the last line."""
        wrong = len(self.findings)
        fine = "nothing is wrong in what could be read" if self.world.troubles else "nothing is wrong"
        counts = (
            _count(len(self.volumes), "volume"),
            _count(len(self.open), "open migration"),
            f"{wrong} things are wrong" if wrong > 1 else "1 thing is wrong" if wrong else fine,
        )
        unread = f", {_count(len(self.world.troubles), 'thing')} could not be read" if self.world.troubles else ""
        return f"{', '.join(counts)}{unread}."

    def to_json(self) -> dict[str, Any]:
        """Return the page for programs."""
        return {
            "volumes": [_volume_json(volume) for volume in self.volumes],
            "migrations": [row.to_json() for row in self.open],
            "findings": [finding.to_json() for finding in self.findings],
            "unread": [{"what": trouble.what, "why": trouble.why} for trouble in self.world.troubles],
        }


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _cells(volume: Volume) -> Sequence[str]:
    record = volume.record
    return (
        volume.title if volume.claim else "",
        volume.handle,
        (record.status.phase or "unknown") if record else NO_RECORD,
        ",".join(held.node_name for held in volume.held),
        record.status.vmi.name if record and record.status.vmi else "",
        size(_capacity(volume)),
        _last_result(record),
    )


def _capacity(volume: Volume) -> int:
    if volume.record:
        return volume.record.spec.capacity_bytes
    return quantity_bytes(((volume.volume or {}).get("spec", {}).get("capacity") or {}).get("storage", "0"))


def _last_result(record: Record | None) -> str:
    closed = [row for row in rows_of(record) if not row.open] if record else []
    return closed[-1].state if closed else ""


def _volume_json(volume: Volume) -> dict[str, Any]:
    record, claim = volume.record, volume.claim
    return {
        "volume": volume.handle,
        "claim": {"namespace": claim.namespace, "name": claim.name} if claim else None,
        "persistentVolume": volume.volume["metadata"]["name"] if volume.volume else None,
        "phase": record.status.phase if record else None,
        "nodes": [held.node_name for held in volume.held],
        "vm": record.status.vmi.to_json() if record and record.status.vmi else None,
        "capacityBytes": _capacity(volume),
        "lastResult": _last_result(record) or None,
    }
