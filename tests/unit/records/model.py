"""What a volume's record must say, told a second time and as plainly as possible; compared with the package by test_invariants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rds_records.record import Record
from rds_records.transitions import Code


@dataclass(frozen=True)
class Held:
    node: str
    id: str
    many: bool
    read_only: bool
    since: datetime


@dataclass(frozen=True)
class Window:
    source: str
    target: str
    start: datetime
    result: str | None = None


@dataclass(frozen=True)
class Model:
    """A volume. Each method returns the volume afterwards (the same one where nothing happens), or the code of the refusal."""

    block: bool
    any_two: bool
    timeout: int | None = None
    initialized: bool = False
    deleting: bool = False
    held: tuple[Held, ...] = ()
    over: bool = False
    window: Window | None = None
    closed: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    def attach(
        self, node: str, new_id: str, now: datetime, *, many: bool, block: bool, read_only: bool, exists: bool | None
    ) -> Model | Code:
        here = [held for held in self.held if held.node == node]
        if many and not block:
            return Code.INVALID_ARGUMENT
        if not self.initialized:
            return Code.UNAVAILABLE
        if self.deleting:
            return Code.FAILED_PRECONDITION
        if here:
            same = (here[0].many, here[0].read_only, self.block) == (many, read_only, block)
            return self if same else Code.ALREADY_EXISTS
        if block != self.block:
            return Code.INVALID_ARGUMENT
        if len(self.held) > 1:
            return Code.FAILED_PRECONDITION
        if self.held and not (many and self.held[0].many and self.any_two):
            return Code.FAILED_PRECONDITION
        if exists is not True:
            return Code.UNAVAILABLE if exists is None else Code.NOT_FOUND
        after = replace(self, held=(*self.held, Held(node, new_id, many, read_only, now)))
        return after.opened(self.held[0].node, node, now) if self.held else after

    def opened(self, source: str, target: str, start: datetime) -> Model:
        return replace(self, window=Window(source, target, start), told=(*self.told, "Started"))

    def detach(self, node: str, seen: str | None, now: datetime, *, wanted: bool) -> Model | Code:
        here = [held for held in self.held if held.node == node]
        if not here:
            return self
        if wanted or here[0].id != seen:
            return Code.ABORTED
        return self.without({node}, now)

    def detach_all(self, seen: set[str], now: datetime) -> Model:
        leaving = {held.node for held in self.held if held.id in seen}
        return self.without(leaving, now) if leaving else self

    def without(self, leaving: set[str], now: datetime) -> Model:
        after = replace(self, held=tuple(held for held in self.held if held.node not in leaving))
        if self.window:
            after = after.closing(self.window, leaving & {self.window.source, self.window.target})
        if after.over and len(after.held) <= after.limit:
            after = replace(after, over=False)
            if len(after.held) == 2 and after.window is None:
                after = after.found_open(now)
        return after

    def closing(self, window: Window, gone: set[str]) -> Model:
        if not gone:
            return self
        result = "Succeeded" if gone == {window.source} else "Failed"
        told = "Ended" if window.result else result
        return replace(self, window=None, closed=(*self.closed, window.result or result), told=(*self.told, told))

    @property
    def limit(self) -> int:
        return 2 if self.block and all(held.many for held in self.held) else 1

    def found_open(self, start: datetime) -> Model:
        older, younger = sorted(self.held, key=lambda held: held.since)
        return self.opened(older.node, younger.node, start)

    def found(self, holders: list[Held]) -> Model:
        """Take in what VolumeAttachments prove, at import or later."""
        new = [held for held in holders if held.node not in {known.node for known in self.held}]
        if self.initialized and (self.deleting or not new):
            return self
        after = replace(self, initialized=True, held=(*self.held, *new))
        if len(after.held) > after.limit:
            return replace(after, over=True)
        if len(after.held) == 2 and after.window is None:
            return after.found_open(max(held.since for held in after.held))
        return after

    def expire(self, now: datetime) -> Model:
        limit = self.timeout or (300 if self.any_two else None)
        if not self.window or self.window.result or limit is None or now - self.window.start < timedelta(seconds=limit):
            return self
        return replace(self, window=replace(self.window, result="TimedOut"), told=(*self.told, "TimedOut"))

    def delete(self) -> Model | Code:
        if not self.initialized:
            return Code.UNAVAILABLE
        return Code.FAILED_PRECONDITION if self.held else replace(self, deleting=True)

    @property
    def totals(self) -> Counter[str]:
        return Counter(self.told)


def same(model: Model, record: Record) -> bool:
    """Tell whether the record says what the model says."""
    status = record.status
    window = status.migration
    return (
        model.initialized,
        model.deleting,
        model.over,
        tuple((held.node, held.id) for held in model.held),
        model.window,
        model.closed[-10:],
    ) == (
        bool(status.initialized),
        bool(status.deleting),
        bool(status.over_attached),
        tuple((held.node_name, held.id) for held in status.attachments),
        window and Window(window.source_node, window.target_node, window.start_time, window.result),
        tuple(str(closed.result) for closed in status.history),
    )
