"""Where suspects are kept over restarts: one ConfigMap in the operator's namespace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from rds_operator.config_maps import ObjectApi, OwnConfigMap
from rds_operator.orphans import Kind, Suspect, Thing

CONFIG_MAP: Final = "rds-operator-orphans"
KEY: Final = "suspects.json"
MOST_BYTES: Final = 900_000
"""So much of the suspects is kept, the oldest first: a ConfigMap holds 1 MiB."""


@dataclass(frozen=True, slots=True)
class SuspectStore:
    """Reads and writes the suspects; what it cannot read is an error, never an empty list."""

    api: ObjectApi
    namespace: str

    async def load(self) -> dict[str, Suspect]:
        """Return the suspects by name; none where the ConfigMap does not exist. Raises ApiError, and ValueError for garbage."""
        body = await self._kept.read()
        return {} if body is None else decode((body.get("data") or {}).get(KEY, "[]"))

    async def save(self, suspects: Mapping[str, Suspect]) -> None:
        """Write the suspects over whatever is there: only the active operator writes. Raises ApiError."""
        await self._kept.write({KEY: encode(suspects)})

    @property
    def _kept(self) -> OwnConfigMap:
        return OwnConfigMap(self.api, self.namespace, CONFIG_MAP)


def encode(suspects: Mapping[str, Suspect]) -> str:
    """Write suspects as JSON, the oldest first."""
    kept: list[str] = []
    room = MOST_BYTES
    for suspect in sorted(suspects.values(), key=lambda suspect: (suspect.first_seen, suspect.thing.name)):
        since = {"observed": round(suspect.observed, 1), "reported": suspect.reported, "firstSeen": suspect.first_seen.isoformat()}
        kept.append(json.dumps({**asdict(suspect.thing), **since}))
        room -= len(kept[-1]) + 2
        if room < 0:
            kept.pop()
            break
    return f"[{', '.join(kept)}]"


def decode(text: str) -> dict[str, Suspect]:
    """Read what ``encode`` wrote; raises ValueError where it is something else."""
    suspects: dict[str, Suspect] = {}
    try:
        for one in json.loads(text):
            first_seen, observed, reported = (one.pop(key) for key in ("firstSeen", "observed", "reported"))
            thing = Thing(**{**one, "kind": Kind(one["kind"])})
            suspects[thing.name] = Suspect(thing, datetime.fromisoformat(first_seen), float(observed), bool(reported))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"ConfigMap {CONFIG_MAP} does not hold what this operator writes there ({error}); delete it, and every grace period "
            "begins anew"
        ) from error
    return suspects
