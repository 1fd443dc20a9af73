"""What a volume's record must say, told a second time and as plainly as possible; compared with the package by test_invariants."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rds_records import stale
from rds_records.decisions import Code
from rds_records.record import Record
from rds_records.record import Window as WrittenWindow


@dataclass(frozen=True)
class Held:
    node: str
    id: str
    many: bool
    read_only: bool
    since: datetime
    stale: datetime | None = None
    """Since when it is being released, because its VolumeAttachment is gone."""


@dataclass(frozen=True)
class Run:
    """A migration of KubeVirt's, as somebody saw it."""

    source: str
    target: str
    uid: str


@dataclass(frozen=True)
class Window:
    source: str
    target: str
    start: datetime
    result: str | None = None
    run: str | None = None
    kubevirt: str | None = None
    """What KubeVirt said after there was a result."""
    heard: bool = False
    """KubeVirt has spoken."""
    limit: timedelta | None = None
    """KubeVirt's own, from the start of the window."""
    overdue: bool = False
    gone: frozenset[str] | None = None
    """Who left; None while both hold the volume."""

    def hears(self, uid: str, result: str) -> tuple[Window, str] | None:
        """Return the window after KubeVirt spoke and what is told of it; None where that is no news."""
        if self.run != uid or self.heard:
            return None
        if self.result:
            return replace(self, kubevirt=result, heard=True), "Verdict"
        return replace(self, result=result, heard=True), result

    @property
    def by_who_left(self) -> str:
        return "Succeeded" if self.gone == frozenset({self.source}) else "Failed"


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
    expanding: tuple[int, datetime] | None = None
    """To what size, and until when at the latest."""
    window: Window | None = None
    closed: tuple[Window, ...] = ()
    told: tuple[str, ...] = ()

    def attach(
        self,
        node: str,
        new_id: str,
        now: datetime,
        *,
        many: bool,
        block: bool,
        read_only: bool,
        exists: bool | None,
        evidence: Run | Code | None = None,
    ) -> Model | Code:
        here = [held for held in self.held if held.node == node]
        if many and not block:
            return Code.INVALID_ARGUMENT
        if not self.initialized:
            return Code.UNAVAILABLE
        if self.deleting:
            return Code.FAILED_PRECONDITION
        if here:
            same = block == self.block
            return self.again(here[0], Held(node, new_id, many, read_only, now), exists) if same else Code.ALREADY_EXISTS
        if block != self.block:
            return Code.INVALID_ARGUMENT
        if len(self.held) > 1 or (self.held and not (many and self.held[0].many)):
            return Code.FAILED_PRECONDITION
        run = None
        if self.held and self.grows(now):
            return Code.UNAVAILABLE
        if self.held and not self.any_two:
            if not isinstance(evidence, Run):
                return evidence or Code.UNAVAILABLE
            if (evidence.source, evidence.target) != (self.held[0].node, node):
                return Code.UNAVAILABLE
            run = evidence.uid
        if exists is not True:
            return Code.UNAVAILABLE if exists is None else Code.NOT_FOUND
        after = replace(self, held=(*self.held, Held(node, new_id, many, read_only, now)))
        return after.opened(self.held[0].node, node, now, run) if self.held else after

    def opened(self, source: str, target: str, start: datetime, run: str | None = None) -> Model:
        return replace(self, window=Window(source, target, start, run=run), told=(*self.told, "Started"))

    def detach(self, node: str, seen: str | None, now: datetime, *, wanted: bool) -> Model | Code:
        here = [held for held in self.held if held.node == node]
        if not here:
            return self
        if wanted or here[0].id != seen:
            return Code.ABORTED
        return self.without({node}, now)

    def again(self, held: Held, anew: Held, exists: bool | None) -> Model | Code:
        """A node that holds the volume asks for it; whoever is about to release it finds another attachment then."""
        if (held.many, held.read_only) != (anew.many, anew.read_only):
            return Code.ALREADY_EXISTS
        if not held.stale:
            return self
        if exists is not True:
            return Code.UNAVAILABLE if exists is None else Code.NOT_FOUND
        return self.instead(held, anew)

    def instead(self, old: Held, new: Held) -> Model:
        return replace(self, held=tuple(new if held == old else held for held in self.held))

    def marked(self, seen: Held | None) -> Held | None:
        """Return the attachment that was seen, if it is still the same and being released."""
        return next((held for held in self.held if held == seen and held.stale), None)

    def marks(self, seen: Held | None, now: datetime) -> Model | Code:
        """Somebody begins to release an attachment whose VolumeAttachment is gone."""
        if seen is None or seen not in self.held:
            return Code.ABORTED
        return self.instead(seen, replace(seen, stale=seen.stale or now))

    def unmarks(self, seen: Held | None) -> Model | Code:
        held = self.marked(seen)
        return self.instead(held, replace(held, stale=None)) if held else Code.ABORTED

    def clears(self, seen: Held | None, now: datetime) -> Model | Code:
        """The release ends."""
        held = self.marked(seen)
        if held is None:
            return Code.ABORTED
        after = self.without({held.node}, now)
        return replace(after, told=(*after.told, "StaleCleared"))

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
        window, told = replace(window, gone=frozenset(gone)), "Ended"
        if window.result is None and window.run is None:
            told = window.by_who_left
            window = replace(window, result=told)
        return self.filed(window, told)

    def filed(self, window: Window, told: str) -> Model:
        """Take a window to the history: the ten last with a result, and at most twenty that wait for KubeVirt."""
        after = replace(self, window=None, closed=(*self.closed, window), told=(*self.told, told))
        old = [number for number, one in enumerate(after.closed) if one.result][:-10]
        after = replace(after, closed=tuple(one for number, one in enumerate(after.closed) if number not in old))
        while len(after.waiting) > 20:
            after = after.decided(after.waiting[0])
        return after

    @property
    def waiting(self) -> list[int]:
        return [number for number, one in enumerate(self.closed) if one.result is None]

    def decided(self, number: int) -> Model:
        """Let who left decide for an ended window."""
        window = self.closed[number]
        if window.result:
            return self
        after = replace(window, result=window.by_who_left)
        return replace(self, closed=self._with(number, after), told=(*self.told, window.by_who_left))

    def _with(self, number: int, window: Window) -> tuple[Window, ...]:
        return (*self.closed[:number], window, *self.closed[number + 1 :])

    def hears(self, uid: str, result: str) -> Model:
        """KubeVirt says how a run ended."""
        after, news = self, self.window and self.window.hears(uid, result)
        if news:
            after = replace(after, window=news[0], told=(*after.told, news[1]))
        for number, window in enumerate(self.closed):
            news = window.hears(uid, result)
            if news:
                after = replace(after, closed=after._with(number, news[0]), told=(*after.told, news[1]))
        return after

    def sees(self, uid: str, limit: timedelta | None) -> Model:
        """KubeVirt says how long the run may take, counted from the start of the window."""
        if self.window is None or self.window.run != uid:
            return self
        return replace(self, window=replace(self.window, limit=limit))

    def follows(self, run: Run, old: str | None, now: datetime) -> Model:
        """KubeVirt began another run between the two nodes."""
        window = self.window
        if window is None or window.run == run.uid or {held.node for held in self.held} != {run.source, run.target}:
            return self
        if window.run is None and not window.result and window.source == run.source:
            return replace(self, window=replace(window, run=run.uid))
        after = self.hears(window.run, old) if window.run and old else self
        window = after.window or window
        if window.result is None:
            # The VM was where this run began, wherever it is now.
            result = "Succeeded" if run.source == window.target else "Failed"
            window = replace(window, result=result)
            after = replace(after, told=(*after.told, result))
        return after.filed(replace(window, gone=frozenset()), "Ended").opened(run.source, run.target, now, run.uid)

    def warns(self, resulted: datetime | None, now: datetime) -> Model:
        """Ten minutes after its result a window is overdue."""
        window = self.window
        if (
            window is None
            or window.result not in {"Succeeded", "Failed"}
            or resulted is None
            or now - resulted < timedelta(minutes=10)
        ):
            return self
        return replace(self, window=replace(window, overdue=True))

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
        if not self.window or self.window.result:
            return self
        if self.timeout:
            limit: timedelta | None = timedelta(seconds=self.timeout)
        elif self.window.run:
            limit = self.window.limit
        else:
            limit = timedelta(seconds=300) if self.any_two else None
        if limit is None or now - self.window.start < limit:
            return self
        return replace(self, window=replace(self.window, result="TimedOut"), told=(*self.told, "TimedOut"))

    def delete(self) -> Model | Code:
        if not self.initialized:
            return Code.UNAVAILABLE
        return Code.FAILED_PRECONDITION if self.held else replace(self, deleting=True)

    def grows(self, now: datetime) -> bool:
        return self.expanding is not None and now < self.expanding[1]

    def expands(self, size: int, until: datetime, now: datetime) -> Model | Code:
        if not self.initialized:
            return Code.UNAVAILABLE
        other = self.expanding is not None and self.grows(now) and self.expanding[0] != size
        if self.deleting or len(self.held) > 1 or self.window or other:
            return Code.ABORTED
        return replace(self, expanding=(size, until))

    def expanded(self, mine: tuple[int, datetime] | None, now: datetime) -> Model:
        done = self.expanding is not None and (self.expanding == mine or now >= self.expanding[1])
        return replace(self, expanding=None) if done else self

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
        model.expanding,
        tuple((held.node, held.id, held.stale is not None) for held in model.held),
        model.window and shown(model.window),
        tuple(shown(one) for one in model.closed),
    ) == (
        bool(status.initialized),
        bool(status.deleting),
        bool(status.over_attached),
        status.expansion and (status.expansion.capacity_bytes, status.expansion.until_time),
        tuple((held.node_name, held.id, stale.is_marked(held)) for held in status.attachments),
        window and written(window),
        tuple(written(closed) for closed in status.history),
    )


Shown = tuple[str, str, datetime, str | None, str | None, str | None, bool]


def shown(window: Window) -> Shown:
    return (window.source, window.target, window.start, window.result, window.run, window.kubevirt, window.overdue)


def written(window: WrittenWindow) -> Shown:
    return (
        window.source_node,
        window.target_node,
        window.start_time,
        window.result,
        window.migration_uid,
        window.kubevirt_result,
        window.leaving_overdue_time is not None,
    )
