"""The operator's copy of all records, fed by watch events and corrected by lists; nothing in it outlives the process."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rds_records.record import Record

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """What a record was and what it is; None where it did not exist before, or does not any more."""

    before: Record | None
    after: Record | None


class RecordMemory:
    """All records by uid, as the watch last told.

    ``complete`` says whether all records are in it; before that, numbers taken from it would be lies.
    """

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._touched: set[str] | None = None
        self.complete = False

    def records(self) -> list[Record]:
        """Return all records; safe to call from another thread, and never waits."""
        return list(self._records.values())

    def get(self, uid: str) -> Record | None:
        """Return the record with that uid, or None."""
        return self._records.get(uid)

    def see(self, body: Object, *, deleted: bool = False) -> Change | None:
        """Take in one watch event; None where it brings nothing new, or no record that can be read."""
        metadata = body["metadata"]
        uid = metadata["uid"]
        if self._touched is not None:
            self._touched.add(uid)
        before = self._records.get(uid)
        if deleted:
            self._records.pop(uid, None)
            return Change(before, None) if before else None
        if before and before.metadata.resource_version == metadata["resourceVersion"]:
            return None
        try:
            after = Record.from_json(body)
        except ValidationError as error:
            logger.warning("record %s cannot be read and is left alone: %s", metadata.get("name"), error)
            return None
        self._records[uid] = after
        return Change(before, after)

    def begin_list(self) -> None:
        """Remember from now on which records the watch speaks of: a list that is under way is older news about them."""
        self._touched = set()

    def end_list(self, items: Iterable[Object]) -> list[Change]:
        """Take in a whole list that was asked for after ``begin_list``: what a watch missed, deletions above all."""
        touched = self._touched or set()
        self._touched = None
        changes: list[Change] = []
        listed: set[str] = set()
        for item in items:
            uid = item["metadata"]["uid"]
            listed.add(uid)
            if uid not in touched and (change := self.see(item)):
                changes.append(change)
        gone = self._records.keys() - listed - touched
        changes.extend(Change(self._records.pop(uid), None) for uid in gone)
        self.complete = True
        return changes
