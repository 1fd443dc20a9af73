"""Whether a detach is forced: whether Kubernetes takes a volume from a node that has not proven that it let go of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rds_records import messages
from rds_records.names import unique_volume_name
from rds_records.node_health import node_health
from rds_records.outbox import announce
from rds_records.record import (
    MAX_FORCED,
    Announcement,
    Attachment,
    Force,
    ForcedDetach,
    ForceReason,
    OutboxEntry,
    Record,
    Status,
)

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
"""Taint by which an administrator says that a node is shut down; volumes are detached at once then (KEP-2268)."""

MAX_MESSAGE: Final = 1024


def force_of(node: str, raw: Mapping[str, Any] | None, handle: str, driver: str) -> Force | None:
    """Return why a detach of the volume from the node is forced, by its Node object; None where the node let go of it.

    ``raw`` is None where there is no such Node. A kubelet names a volume in ``volumesInUse`` before it mounts it and until it has
    unmounted it.
    """
    health = node_health(node, raw)
    taints = ((raw or {}).get("spec") or {}).get("taints") or ()
    in_use = ((raw or {}).get("status") or {}).get("volumesInUse") or ()
    if any(taint.get("key") == OUT_OF_SERVICE for taint in taints):
        return Force(reason=ForceReason.OUT_OF_SERVICE, message=f"node {node} has the taint {OUT_OF_SERVICE}")
    if not health.ready:
        reason = ForceReason.NODE_GONE if health.gone else ForceReason.NODE_NOT_READY
        return Force(reason=reason, message=health.describe()[:MAX_MESSAGE])
    if unique_volume_name(handle, driver) in in_use:
        return Force(reason=ForceReason.VOLUME_IN_USE, message=f"the kubelet of node {node} says that it uses the volume")
    return None


def mark_forced(record: Record, status: Status, left: Sequence[Attachment], *, fenced: bool, now: datetime) -> Status:
    """Return the status after these attachments ended, with those that were forced on it and announced.

    ``left`` carry their force in ``leaving``; ``fenced``: the box refuses them and has dropped their sessions.
    """
    for held in left:
        force = held.leaving.forced if held.leaving else None
        if force is None:
            continue
        mark = ForcedDetach(
            id=held.id, node_name=held.node_name, time=now, reason=force.reason, message=force.message, fenced=fenced
        )
        entry = OutboxEntry(
            id=f"{held.id}-forced",
            kind=Announcement.FORCED_DETACH,
            time=now,
            source_node=held.node_name,
            message=messages.forced_detach(record.handle, mark),
        )
        window = record.status.migration
        history = tuple(closed.replace(forced=True) if window and closed.id == window.id else closed for closed in status.history)
        marks = (*status.forced_detaches, mark)[-MAX_FORCED:]
        status = announce(status.replace(forced_detaches=marks, history=history), entry)
    return status
