"""Whether a node that holds a volume still answers, for people who wait for it to leave. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rds_records import messages
from rds_records.conditions import LEAVING_NODE_READY, NODES_READY, with_condition
from rds_records.decisions import Decided, Refused
from rds_records.outbox import announce
from rds_records.record import Announcement, OutboxEntry, Record


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Whether a Node is Ready; ``reason`` is a word for machines, ``since`` what the Node says (RFC 3339), or empty."""

    name: str
    ready: bool
    reason: str = "NodeReady"
    since: str = ""
    message: str = ""

    @property
    def gone(self) -> bool:
        """Whether the Node object does not exist."""
        return self.reason == "NodeGone"

    def describe(self) -> str:
        """Return a phrase for people that names the node."""
        if self.ready:
            return f"node {self.name} is Ready"
        if self.gone:
            return f"there is no Node {self.name} any more"
        since = f" since {self.since}" if self.since else ""
        return f"node {self.name} is not Ready{since} ({self.message})"


def node_health(name: str, raw: Mapping[str, Any] | None) -> NodeHealth:
    """Return the health of a Node by its condition Ready; without one it is not Ready. ``raw`` is None where it does not exist."""
    if raw is None:
        return NodeHealth(name, False, "NodeGone")
    conditions = (raw.get("status") or {}).get("conditions") or ()
    found: Mapping[str, str] = next((one for one in conditions if one.get("type") == "Ready"), {})
    if found.get("status") == "True":
        return NodeHealth(name, True)
    why = found.get("reason") or "it says nothing of itself"
    return NodeHealth(name, False, "NodeNotReady", found.get("lastTransitionTime") or "", why)


def name_unready(record: Record, refused: Refused, found: Mapping[str, NodeHealth]) -> Refused:
    """Return the refusal with the holders named that do not answer, so that nobody waits for a node that cannot leave.

    ``found`` lacks the holders that could not be read: of the one that should leave, what the record says counts then.
    """
    window = record.status.migration
    leaving = messages.leaving_node(window) if window else None
    known = record.status.condition(LEAVING_NODE_READY)
    texts = []
    for holder in (held.node_name for held in record.status.attachments):
        health = found.get(holder)
        if health and not health.ready:
            out = f"; {messages.out_of_service(window)}" if window and holder == leaving and not health.gone else ""
            texts.append(f"{health.describe()}{out}")
        elif health is None and holder == leaving and known and known.status == "False":
            texts.append(known.message)
    return dataclasses.replace(refused, message="; ".join([refused.message, *texts]))


def note_holders(record: Record, found: Mapping[str, NodeHealth], *, now: datetime) -> Decided:
    """Say on the record which of the nodes that hold the volume are not Ready, and announce it once per change.

    ``found`` lacks the nodes that could not be read; where one of the holders is among them nothing changes. A record whose nodes
    were always Ready has no such condition.
    """
    holders = [held.node_name for held in record.status.attachments]
    before = record.status.condition(NODES_READY)
    if any(holder not in found for holder in holders):
        return Decided(record, changed=False)
    unready = [found[holder] for holder in holders if not found[holder].ready]
    if not unready:
        if before is None:
            return Decided(record, changed=False)
        status = with_condition(record.status, NODES_READY, True, NODES_READY, "every node that holds the volume is Ready", now)
        return Decided(record.replace(status=status), changed=status is not record.status)
    state = "; ".join(health.describe() for health in unready)
    status = with_condition(record.status, NODES_READY, False, unready[0].reason, state, now)
    if status is record.status:
        return Decided(record, changed=False)
    first = next(held for held in record.status.attachments if held.node_name == unready[0].name)
    entry = OutboxEntry(
        id=f"{first.id}-unready-{int(now.timestamp() * 1000)}",
        kind=Announcement.NODE_NOT_READY,
        time=now,
        source_node=first.node_name,
        message=messages.node_not_ready(record.handle, state),
    )
    return Decided(record.replace(status=announce(status, entry)), changed=True)
