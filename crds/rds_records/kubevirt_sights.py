"""What was seen of KubeVirt, and what a record makes of it: verdicts, the next run, deadlines, warnings. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rds_records.conditions import VERDICT_READABLE, settled, with_condition
from rds_records.decisions import Decided
from rds_records.kubevirt_evidence import LiveMigration
from rds_records.kubevirt_objects import Migration, MigrationState, Vmi
from rds_records.kubevirt_runs import Verdict, VerdictGround, limit, missed_run, run_state, verdict
from rds_records.node_health import NodeHealth
from rds_records.record import ClosedWindow, ObjectReference, Record, Result, Window
from rds_records.window_warnings import note_foreign_pods, note_leaving_node, warn
from rds_records.windows import (
    PENDING_LIMIT,
    Ground,
    add_missed,
    conclude,
    conclude_pending,
    observe_run,
    runs_of,
    supersede,
    to_follow,
)


@dataclass(frozen=True, slots=True)
class RunSight:
    """What was seen of one run; ``migration_gone`` wants a positive 404."""

    vmi: Vmi | None
    migration: Migration | None
    migration_gone: bool
    names: Mapping[str, str] = field(default_factory=dict)
    """Of all migrations of this virtual machine that are known, by uid."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why KubeVirt cannot be asked: a word for machines and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen for one record at one moment; whatever is None or missing was not looked at."""

    runs: Mapping[str, RunSight] = field(default_factory=dict)
    """By the migration's uid."""

    next_run: LiveMigration | None = None
    leaving: NodeHealth | None = None
    foreign_pods: Sequence[str] | None = None
    hangs: str = ""
    """Where a migration hangs that does not start."""

    trouble: Trouble | None = None
    readable: bool = False
    """Whether everything that was wanted could be read."""


def follow(record: Record, sight: Sight, *, now: datetime, new_id: str) -> Decided:
    """Return the record after everything that follows from what was seen; ``new_id`` names another window where one opens.

    Safe on a record that changed since: what was seen is of runs, by uid, and each transition finds out for itself what is left
    to do.
    """
    begun = record
    verdicts = {}
    for window in to_follow(record, now=now):
        said, missed = _verdict(window, sight), _missed(record, window, sight)
        if missed and (said is None or said.ground == VerdictGround.MIGRATION_GONE):
            # Who left says nothing of this run, but the next one began where the VM was.
            moved = missed.source_node == window.target_node
            result = Result.SUCCEEDED if moved else Result.FAILED
            said = Verdict(window.migration_uid or "", result, Ground.SUPERSEDED.value, live_node=missed.source_node)
        if said:
            verdicts[said.migration_uid] = said
            record = conclude(record, said, now=now).record
        if missed:
            record = add_missed(record, window.id, missed, migration_name=_name_of(missed, window, sight), now=now).record
    running = record.status.migration
    if sight.next_run:
        old = verdicts.get(running.migration_uid or "") if running else None
        record = supersede(record, sight.next_run, old, now=now, new_id=new_id).record
    record = _observe(record, sight, now)
    record = warn(record, now=now, detail=_detail(record, sight)) or record
    if sight.leaving:
        record = note_leaving_node(record, sight.leaving, now=now).record
    if sight.foreign_pods is not None:
        record = note_foreign_pods(record, sight.foreign_pods, now=now).record
    for pending in record.status.pending:
        if now - pending.end_time >= PENDING_LIMIT:
            record = conclude_pending(record, pending.id, now=now).record
    record = _readable(record, sight, now)
    return Decided(record, changed=record is not begun)


def _verdict(window: Window, sight: Sight) -> Verdict | None:
    seen = sight.runs.get(window.migration_uid or "")
    return verdict(window, seen.vmi, seen.migration, migration_gone=seen.migration_gone, left=None) if seen else None


def _missed(record: Record, window: Window, sight: Sight) -> MigrationState | None:
    seen = sight.runs.get(window.migration_uid or "")
    if seen is None or not isinstance(window, ClosedWindow):
        return None
    return missed_run(window, seen.vmi, runs_of(record))


def _name_of(missed: MigrationState, window: Window, sight: Sight) -> str | None:
    names = sight.runs[window.migration_uid or ""].names
    return names.get(missed.migration_uid)


def _observe(record: Record, sight: Sight, now: datetime) -> Record:
    window = record.status.migration
    seen = sight.runs.get(window.migration_uid or "") if window else None
    if window is None or seen is None or seen.vmi is None:
        return record
    state, allowed = run_state(seen.vmi, window), limit(seen.vmi, window)
    return observe_run(
        record,
        start=state.start if state else None,
        timeout_seconds=int(allowed.total_seconds()) if allowed else None,
        live_node=seen.vmi.node or None,
        now=now,
        migration_uid=window.migration_uid,
    ).record


def _detail(record: Record, sight: Sight) -> str:
    window = record.status.migration
    if window is None or window.result is None:
        return sight.hangs
    return sight.leaving.describe() if sight.leaving else ""


def _readable(record: Record, sight: Sight, now: datetime) -> Record:
    """Keep the condition that says whether KubeVirt can be asked; a record that never missed an answer has none."""
    before = record.status.condition(VERDICT_READABLE)
    if sight.trouble:
        status = with_condition(record.status, VERDICT_READABLE, False, sight.trouble.reason, sight.trouble.message, now)
    elif sight.readable and before and before.status == "False":
        status = with_condition(record.status, VERDICT_READABLE, True, "Readable", "KubeVirt's objects can be read", now)
    else:
        return record
    return record if status is record.status else settled(record, status, now)


def used_by(record: Record, vmi: Vmi | None) -> Decided:
    """Show on the record which virtual machine uses the volume now; None: nobody."""
    user = ObjectReference(namespace=vmi.namespace, name=vmi.name, uid=vmi.uid or None) if vmi else None
    if record.status.vmi == user:
        return Decided(record, changed=False)
    return Decided(record.with_status(vmi=user), changed=True)
