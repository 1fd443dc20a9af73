"""``kubectl rds volume``: everything about one volume on one page, as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rds_kubectl import migration_rows
from rds_kubectl.findings import Finding, of_installation, of_volume
from rds_kubectl.migration_rows import rows_of
from rds_kubectl.world import Object, Trouble, Volume, World
from rds_process.tables import age, one_line, size, table
from rds_records.kubevirt_objects import pod_view
from rds_records.names import nqn_for
from rds_records.node_health import node_health
from rds_records.record import Record

MAX_EVENTS: Final = 20
"""Of the newest Events that people are shown; programs get all."""

Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around a volume: raw objects, as the API server has them; None where there is none, or it cannot be read."""

    claim: Object | None = None
    pods: tuple[Object, ...] = ()
    """The pods of the claim, on any node, ended ones included."""

    vmi: Object | None = None
    migrations: tuple[Object, ...] = ()
    """The VirtualMachineInstanceMigrations of that VM."""

    events: tuple[Object, ...] = ()
    """Of the claim and of the VM, oldest first."""

    troubles: tuple[Trouble, ...] = ()


class Page:
    """One volume."""

    def __init__(self, volume: Volume, around: Around, world: World) -> None:
        self.volume = volume
        self.around = around
        self.world = world
        self.findings = [
            *of_installation(world),
            *(Finding(volume.handle, volume.title, *said) for said in of_volume(volume, world)),
        ]

    def lines(self) -> Iterator[str]:
        """Yield the page for people."""
        yield from _pairs(
            (
                ("Volume", self.volume.handle),
                *_record_pairs(self.volume.record),
                *_volume_pairs(self.volume.volume, self.world),
                *_claim_pairs(self.volume, self.around.claim, self.world),
                *_vm_pairs(self.volume, self.around.vmi),
                *_box_pairs(self.volume.record),
            )
        )
        yield from self._section("Nodes", ("NODE", "IN THE RECORD", "VOLUMEATTACHMENT", "NODE STATE"), self._nodes())
        yield from self._section("Pods", ("POD", "NODE", "PHASE", "RUNS"), self._pods())
        now = self.world.now
        rows = rows_of(self.volume.record) if self.volume.record else []
        yield from self._section("Migrations", migration_rows.HEADINGS, (row.cells(now) for row in reversed(rows)))
        yield from self._section("KubeVirt's migrations", ("NAME", "PHASE", "AGE"), self._vmims())
        yield from self._section("Conditions", ("TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"), self._conditions())
        yield from self._section("Events", ("AGE", "TYPE", "REASON", "COUNT", "OF", "MESSAGE"), self._events())
        troubles = (*self.world.troubles, *self.around.troubles)
        fine = "Nothing is wrong in what could be read." if troubles else "Nothing is wrong."
        yield from ("", "What is wrong, and what to do" if self.findings else fine)
        yield from (f"- {finding.line()}" for finding in self.findings)
        if troubles:
            yield from ("", "What could not be read, so nothing is said of it")
            yield from (one_line(f"- {trouble.what}: {trouble.why}") for trouble in troubles)

    def to_json(self) -> dict[str, Any]:
        """Return the page for programs: whole objects."""
        record = self.volume.record
        return {
            "volume": self.volume.handle,
            "record": record.to_json() if record else None,
            "persistentVolume": self.volume.volume,
            "persistentVolumeClaim": self.around.claim,
            "virtualMachineInstance": self.around.vmi,
            "virtualMachineInstanceMigrations": list(self.around.migrations),
            "pods": list(self.around.pods),
            "volumeAttachments": list(self.volume.attachments),
            "events": list(self.around.events),
            "findings": [finding.to_json() for finding in self.findings],
            "unread": [{"what": one.what, "why": one.why} for one in (*self.world.troubles, *self.around.troubles)],
        }

    def _section(self, title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
        shown = list(rows)
        if shown:
            yield from ("", title)
            yield from (f"  {line}" for line in table(headings, shown))

    def _nodes(self) -> Iterator[Sequence[str]]:
        now, held = self.world.now, {one.node_name: one for one in self.volume.held}
        for node in sorted({*held, *(one["spec"]["nodeName"] for one in self.volume.attachments)}):
            known = self.volume.record is not None and self.volume.record.initialized
            since = (
                f"attached for {age(now - held[node].attach_time)}" if node in held else "not attached" if known else "says nothing"
            )
            attachment = self.volume.attachment_on(node)
            unread = self.world.attachments is None or (attachment is None and not self.volume.all_names)
            health = node_health(node, (self.world.nodes or {}).get(node))
            state = "not read" if self.world.nodes is None else "Ready" if health.ready else health.describe()
            yield node, since, "not read" if unread else _attachment(attachment, now), state

    def _pods(self) -> Iterator[Sequence[str]]:
        for body in self.around.pods:
            pod = pod_view(body)
            phase = f"{pod.phase}, terminating" if pod.deleting else pod.phase
            yield f"{pod.namespace}/{pod.name}", pod.node, phase, f"VM {pod.vmi.name}" if pod.vmi else ""

    def _vmims(self) -> Iterator[Sequence[str]]:
        for body in self.around.migrations:
            metadata = body["metadata"]
            made = datetime.fromisoformat(metadata["creationTimestamp"])
            yield metadata["name"], (body.get("status") or {}).get("phase") or "", age(self.world.now - made)

    def _conditions(self) -> Iterator[Sequence[str]]:
        for one in self.volume.record.status.conditions if self.volume.record else ():
            yield one.type, one.status, age(self.world.now - one.last_transition_time), one.reason, one.message

    def _events(self) -> Iterator[Sequence[str]]:
        for event in self.around.events[-MAX_EVENTS:]:
            told, about = event_time(event), event["involvedObject"]
            since = age(self.world.now - told) if told else ""
            count = str(event.get("count") or 1)
            yield since, event.get("type", ""), event.get("reason", ""), count, about.get("kind", ""), event.get("message", "")


def event_time(event: Object) -> datetime | None:
    """Return when an Event was last told."""
    series = event.get("series") or {}
    for text in (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp")):
        if text:
            return datetime.fromisoformat(text)
    return None


def _pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    shown = [(name, one_line(value)) for name, value in pairs if value]
    width = max(len(name) for name, _ in shown) + 1
    for name, value in shown:
        yield f"{f'{name}:'.ljust(width)}   {value}"


def _record_pairs(record: Record | None) -> Pairs:
    if record is None:
        yield "Record", "none yet: it is made at the first attach"
        return
    spec, status = record.spec, record.status
    known = "" if record.initialized else " (says nothing yet: the next attach imports who holds it)"
    going = ", being deleted" if status.deleting else ""
    yield "Record", f"{record.metadata.name}{known}"
    yield "Phase", f"{status.phase or 'unknown'}{going}"
    yield "Mode", f"{spec.access_mode}, {spec.volume_mode}, {size(spec.capacity_bytes)}"
    if spec.access_mode.multi_node:
        limit = f", migrationTimeoutSeconds {spec.migration_timeout_seconds}" if spec.migration_timeout_seconds else ""
        yield "Second node", f"dualAttachPolicy {spec.dual_attach_policy}{limit}"
    if status.expansion:
        yield "Expanding to", f"{size(status.expansion.capacity_bytes)}, no second node meanwhile"


def _volume_pairs(volume: Object | None, world: World) -> Pairs:
    if volume is None:
        yield "PersistentVolume", "not read" if world.volumes is None else "none"
        return
    spec, phase = volume["spec"], (volume.get("status") or {}).get("phase") or "unknown"
    policy = spec.get("persistentVolumeReclaimPolicy", "")
    yield "PersistentVolume", f"{volume['metadata']['name']}, {phase}, {policy}, class {spec.get('storageClassName') or 'none'}"


def _claim_pairs(volume: Volume, claim: Object | None, world: World) -> Pairs:
    if volume.claim is None:
        yield "Claim", "not read" if world.volumes is None else "none"
        return
    phase = ((claim or {}).get("status") or {}).get("phase") or "not there, or not read"
    yield "Claim", f"{volume.title}, {phase}"


def _vm_pairs(volume: Volume, vmi: Object | None) -> Pairs:
    known = volume.record.status.vmi if volume.record else None
    if vmi is not None:
        status = vmi.get("status") or {}
        where = f"runs on {status['nodeName']}" if status.get("nodeName") else "runs nowhere"
        yield "VM", f"{vmi['metadata']['namespace']}/{vmi['metadata']['name']}, {status.get('phase') or 'unknown'}, {where}"
    elif known is not None:
        yield "VM", f"{known.namespace}/{known.name}, not there, or not read"


def _box_pairs(record: Record | None) -> Pairs:
    if record is None:
        return
    target, seen = record.spec.target, record.status.condition("Available")
    if target is not None:
        at = f" at {target.address}:{target.port or ''}".rstrip(":") if target.address else ""
        yield "On the box", f"slot {target.slot}, file {target.file_path}{at}"
        if target.nqn != nqn_for(record.handle):
            yield "NQN", target.nqn
    if seen is not None:
        yield "Seen on the box", f"{seen.status}, {seen.reason}: {seen.message}"


def _attachment(attachment: Object | None, now: datetime) -> str:
    if attachment is None:
        return "none"
    status: Mapping[str, Any] = attachment.get("status") or {}
    deleted = attachment["metadata"].get("deletionTimestamp")
    if deleted:
        error = (status.get("detachError") or {}).get("message")
        return f"detaching for {age(now - datetime.fromisoformat(deleted))}{f': {error}' if error else ''}"
    error = (status.get("attachError") or {}).get("message")
    return "attached" if status.get("attached") else f"not attached{f': {error}' if error else ''}"
