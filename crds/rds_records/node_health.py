"""What a Node says of itself, as far as it matters to who waits for it; typed views of raw objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Whether a Node is ready; ``reason`` is a word for machines, ``since`` what the Node says (RFC 3339), or empty."""

    name: str
    ready: bool
    reason: str = "NodeReady"
    since: str = ""
    message: str = ""

    def describe(self) -> str:
        """Return a phrase for people that names the node."""
        if self.ready:
            return f"node {self.name} is ready"
        if self.reason == "NodeGone":
            return f"there is no Node {self.name} any more"
        since = f" since {self.since}" if self.since else ""
        return f"node {self.name} is not ready{since} ({self.message})"


def gone(name: str) -> NodeHealth:
    """Return the health of a node whose object does not exist."""
    return NodeHealth(name, False, "NodeGone")


def node_health(raw: Mapping[str, Any]) -> NodeHealth:
    """Return the health of a Node by its condition Ready; without one it is not ready."""
    name = raw["metadata"]["name"]
    conditions = (raw.get("status") or {}).get("conditions") or ()
    found = next((one for one in conditions if one.get("type") == "Ready"), None)
    if found is None:
        return NodeHealth(name, False, "NodeNotReady", message="it has no condition Ready")
    if found.get("status") == "True":
        return NodeHealth(name, True)
    return NodeHealth(name, False, "NodeNotReady", found.get("lastTransitionTime") or "", found.get("reason") or "unknown")
