"""Whether a node that holds a volume still answers, for people who wait for it to leave. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rds_records import messages
from rds_records.decisions import Refused
from rds_records.record import Record

Node = Mapping[str, Any]


def unready(node: str, found: Node | None) -> str | None:
    """Return since when and why a Node is not Ready, or that it is gone (``found`` is None); None where it is Ready."""
    if found is None:
        return f"there is no Node {node} any more"
    conditions = (found.get("status") or {}).get("conditions") or ()
    ready: Mapping[str, str] = next((condition for condition in conditions if condition.get("type") == "Ready"), {})
    if ready.get("status") == "True":
        return None
    since = f" since {ready['lastTransitionTime']}" if ready.get("lastTransitionTime") else ""
    return f"node {node} is not Ready{since} ({ready.get('reason') or 'it says nothing of itself'})"


def name_unready(record: Record, refused: Refused, found: Mapping[str, Node | None]) -> Refused:
    """Return the refusal with the holders named that do not answer, so that nobody waits for a node that cannot leave.

    ``found`` has the Nodes of the holders (None: gone), without those that could not be read: there what the record says counts.
    """
    window = record.status.migration
    leaving = messages.leaving_node(window) if window else None
    known = record.status.condition("LeavingNodeReady")
    texts = []
    for holder in (held.node_name for held in record.status.attachments):
        if holder in found:
            text = unready(holder, found[holder])
            if text and found[holder] and holder == leaving:
                text += f"; {messages.out_of_service(holder)}"
            texts.append(text)
        elif holder == leaving and known and known.status == "False":
            texts.append(known.message)
    return dataclasses.replace(refused, message="; ".join([refused.message, *filter(None, texts)]))
