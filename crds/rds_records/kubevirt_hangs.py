"""Where a migration hangs that does not start, from its own phase and its target pod. Pure."""

from __future__ import annotations

from typing import Any

from rds_records.kubevirt_objects import Migration, Object
from rds_records.record import Window


def where_it_hangs(window: Window, migration: Migration | None, target: Object | None) -> str:
    """Return a phrase for people; ``target`` is the target pod as the API server has it, None where there is none (any more)."""
    if migration is None:
        run = f"migration {window.migration_name} does not exist any more, and node {window.target_node} has not left"
    elif migration.deleting:
        run = f"migration {migration.name} is being deleted in phase {migration.phase or 'unset'}"
    else:
        run = f"migration {migration.name} is in phase {migration.phase or 'unset'}"
    return f"{run}, {_target(window, target)}"


def _target(window: Window, pod: Object | None) -> str:
    if pod is None:
        return f"its target pod {window.target_pod} does not exist any more"
    status = pod.get("status") or {}
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    name = f"its target pod {window.target_pod}"
    if not (pod.get("spec") or {}).get("nodeName"):
        why = conditions.get("PodScheduled", {}).get("message") or conditions.get("PodScheduled", {}).get("reason")
        return f"{name} is bound to no node{f' ({why})' if why else ''}"
    waiting = _waiting(status)
    if status.get("phase") == "Pending":
        return f"{name} is Pending{f' ({waiting})' if waiting else ''}"
    if status.get("phase") == "Running" and conditions.get("Ready", {}).get("status") != "True":
        return f"{name} runs and is not ready{f' ({waiting})' if waiting else ''}"
    return f"{name} is {status.get('phase') or 'in no phase'}"


def _waiting(status: dict[str, Any]) -> str:
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = ((one.get("state") or {}).get("waiting") or {} for one in containers)
    return next((state["reason"] for state in states if state.get("reason")), "")
