"""What each of our accounts asked of the API server, from its audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.ring.api import Object

POLICY: Object = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # A watch is over after minutes; that it has begun is enough.
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts:rds-csi"]}, {"level": "None"}],
}
"""Only the accounts of the installation; the ring's own requests would drown them."""


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource (``volumeattachmentrecords/status``) of one API group (empty: core)."""

    group: str
    resource: str
    verb: str


def used(log: Path, account: str) -> set[Right]:
    """Return the rights that an account of the installation has used so far: requests that were allowed."""
    user = f"system:serviceaccount:rds-csi:{account}"
    with log.open() as lines:
        entries = [json.loads(line) for line in lines]
    return {
        Right(entry["objectRef"].get("apiGroup", ""), _resource(entry["objectRef"]), entry["verb"])
        for entry in entries
        if entry["user"]["username"] == user and "objectRef" in entry and entry.get("responseStatus", {}).get("code") != 403
    }


def _resource(reference: Object) -> str:
    subresource = reference.get("subresource")
    return f"{reference['resource']}/{subresource}" if subresource else str(reference["resource"])


def granted(role: Object) -> Iterator[Right]:
    """Yield every right that a Role or ClusterRole grants."""
    for rule in role["rules"]:
        for group in rule.get("apiGroups", []):
            for resource in rule.get("resources", []):
                for verb in rule["verbs"]:
                    yield Right(group, resource, verb)
