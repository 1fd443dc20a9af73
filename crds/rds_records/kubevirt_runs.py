"""How a KubeVirt migration ended, how long it may take, and whether another one began between the same two nodes. Pure.

A window is one VirtualMachineInstanceMigration, told by its uid. ``VMI.status.migrationState`` shows the previous run, completed
and all, until the next one is handed off (measured with virt-controller v1.9), so nothing in it counts unless its uid is the
window's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from rds_records.kubevirt_evidence import LiveMigration
from rds_records.kubevirt_objects import Migration, MigrationState, Pod, Vmi
from rds_records.record import ClosedWindow, Record, Result, Window

LETTING_GO: Final = timedelta(seconds=120)
"""After KubeVirt's own limit: for it to abort, to notice, and to unmount."""

CLOCKS: Final = timedelta(minutes=1)
"""By how much the clocks of KubeVirt's nodes and of the API server may differ."""

_UNIT: Final = 10**9
"""KubeVirt counts ``completionTimeoutPerGiB`` per 10^9 bytes, rounded up, whatever the name says."""


class VerdictGround(StrEnum):
    """Where a verdict was read."""

    MIGRATION_STATE = "MigrationState"
    """``migrationState`` with the uid of the run: of the VirtualMachineInstance, or, where that speaks of a later run, the copy of
    the VirtualMachineInstanceMigration."""

    MIGRATION_PHASE = "MigrationPhase"
    """``phase`` of the VirtualMachineInstanceMigration; all there is of a run that failed before hand-off."""

    MIGRATION_GONE = "MigrationGone"
    """The VirtualMachineInstanceMigration does not exist any more, it was cancelled or cleaned up: who left the volume decides."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one run; ``start`` and ``end`` by the clocks of KubeVirt's nodes, ``live_node`` where the VM runs now."""

    migration_uid: str
    result: Result
    ground: str
    reason: str = ""
    live_node: str | None = None
    start: datetime | None = None
    end: datetime | None = None


def verdict(
    window: Window, vmi: Vmi | None, migration: Migration | None, *, migration_gone: bool, left: str | None
) -> Verdict | None:
    """Return what KubeVirt says of the window's run; None while it says nothing that counts.

    ``migration_gone`` wants a positive 404; ``left`` is the node of the window that left the volume, None while both hold it (and,
    of a window that ended, where both left at once). endTimestamp without ``completed`` or ``failed`` is no verdict yet.
    """
    uid = window.migration_uid
    if uid is None:
        return None
    vmi = vmi if vmi and _same_vm(window, vmi) else None
    own = migration if migration and migration.uid == uid else None
    copy = own.state if own and own.state and own.state.migration_uid == uid else None
    states = [found for found in (run_state(vmi, window), copy) if found]
    state = next(filter(_over, states), states[0] if states else None)
    live = (vmi.node or None) if vmi else None
    start, end = (state.start, state.end) if state else (None, None)

    def says(result: Result, ground: VerdictGround, reason: str = "") -> Verdict:
        return Verdict(uid, result, ground.value, reason, live, start, end)

    if state and _over(state):
        if state.failed or state.abort_succeeded:
            return says(Result.FAILED, VerdictGround.MIGRATION_STATE, state.failure_reason or "aborted")
        return says(Result.SUCCEEDED, VerdictGround.MIGRATION_STATE)
    if own and own.phase == "Succeeded":
        return says(Result.SUCCEEDED, VerdictGround.MIGRATION_PHASE)
    if own and own.phase == "Failed":
        return says(Result.FAILED, VerdictGround.MIGRATION_PHASE, "KubeVirt gives no reason")
    # Another migration under the same name is as good a proof as a 404.
    if not (migration_gone or (migration and not own)):
        return None
    left = left or (window.left_node if isinstance(window, ClosedWindow) else None)
    if left == window.source_node:
        return says(Result.SUCCEEDED, VerdictGround.MIGRATION_GONE)
    if left == window.target_node or isinstance(window, ClosedWindow):
        return says(Result.FAILED, VerdictGround.MIGRATION_GONE, "cancelled")
    return None


def _over(state: MigrationState) -> bool:
    return state.completed or (state.failed and state.end is not None)


def run_state(vmi: Vmi | None, window: Window) -> MigrationState | None:
    """Return what the VM says of the window's run; None while it speaks of another one, or the VM is another one."""
    state = vmi.migration if vmi and _same_vm(window, vmi) else None
    return state if state and window.migration_uid and state.migration_uid == window.migration_uid else None


def _same_vm(window: Window, vmi: Vmi) -> bool:
    return window.vmi is None or window.vmi.uid in {None, vmi.uid}


def next_run(record: Record, vmi: Vmi, migrations: Iterable[Migration], pods: Iterable[Pod]) -> LiveMigration | None:
    """Return another run of this VM that is under way between the two attached nodes, in either direction; None where none is.

    KubeVirt starts one without any CSI call, back to the node that was not yet detached, or again to a target that never left.
    ``pods`` are those of the VM's namespace on the two nodes.
    """
    window = record.status.migration
    nodes = {held.node_name for held in record.status.attachments}
    if window is None or len(nodes) != 2:
        return None
    mine = [pod for pod in pods if pod.vmi and pod.vmi.uid == vmi.uid and pod.namespace == vmi.namespace and not pod.ended]
    current = vmi.migration.migration_uid if vmi.migration else ""
    for migration in sorted(migrations, key=lambda one: one.uid != current):
        if not migration.live or migration.decentralized or migration.uid == window.migration_uid:
            continue
        if (migration.namespace, migration.vmi_name) != (vmi.namespace, vmi.name):
            continue
        target = next((pod for pod in mine if pod.job == migration.uid and pod.node in nodes and not pod.deleting), None)
        if target is None:
            continue
        (other,) = nodes - {target.node}
        sources = sorted((pod for pod in mine if pod.node == other), key=lambda pod: pod.deleting)
        if sources:
            return LiveMigration(vmi, migration, sources[0], target, other, target.node)
    return None


def missed_run(window: ClosedWindow, vmi: Vmi | None, known: Collection[str]) -> MigrationState | None:
    """Return a later run between the nodes of a window that closed while nobody looked; None where there was none.

    KubeVirt can move a VM back before its first node was unmounted, without any CSI call; then the node that left, left for the
    later run. ``known`` are the uids of all runs that the record has. Only the newest run is to be seen, and only once it is over.
    """
    state = vmi.migration if vmi and _same_vm(window, vmi) else None
    if state is None or window.left_node is None or not state.migration_uid or state.migration_uid in known:
        return None
    over = state.completed or (state.end is not None and state.failed)
    same_nodes = {state.source_node, state.target_node} == {window.source_node, window.target_node}
    within = state.start is None or state.start <= window.end_time + CLOCKS
    return state if over and same_nodes and within else None


def limit(vmi: Vmi, window: Window) -> timedelta | None:
    """Return how long the window's run may take from its start, two minutes for letting go included; None where there is no limit.

    KubeVirt's own limit, by the configuration that it resolved for this run: no limit in post-copy, nor with
    ``completionTimeoutPerGiB: 0``; None too before hand-off, when it is not known yet.
    """
    state = run_state(vmi, window)
    size = vmi.guest_memory_bytes + vmi.migrated_volume_bytes
    if state is None or state.mode == "PostCopy" or not state.completion_timeout_per_gib or size <= 0:
        return None
    units = -(-size // _UNIT)
    seconds = units * state.completion_timeout_per_gib * (2 if state.allow_workload_disruption else 1)
    return timedelta(seconds=seconds) + LETTING_GO
