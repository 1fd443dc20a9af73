"""I1 to I7 under random sequences of everything that can happen, by two writers, with lost writes and crashes at every request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from rds_records import expansion, stale
from rds_records.decisions import Code, Decided, Refused
from rds_records.imports import Holder, add_missing, import_attachments
from rds_records.kubernetes_api import ApiError
from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable, NotExplained, Rule
from rds_records.kubevirt_runs import Verdict
from rds_records.record import (
    AccessMode,
    Announcement,
    Attachment,
    DualAttachPolicy,
    Expansion,
    Origin,
    Phase,
    Record,
    Result,
    VolumeMode,
)
from rds_records.store import Contended, RecordStore
from rds_records.transitions import Access, attach, begin_deletion, detach, detach_all, note_refusal
from rds_records.window_warnings import warn
from rds_records.windows import conclude, conclude_pending, expire, observe_run, supersede
from tests.unit.records.kubevirt import live_migration
from tests.unit.records.memory_api import Body, MemoryApi, Mishap
from tests.unit.records.model import Held, Model, Run, same
from tests.unit.records.volumes import ALONE, HANDLE, MOUNTED, READING, SHARED, START, empty

NODES = ("node-a", "node-b", "node-c", "node-d")
MOSTLY = st.sampled_from([True] * 7 + [False])
EXISTS = st.sampled_from([True] * 8 + [False, None])
FITTING = None
NO = NotExplained(Rule.NO_LIVE_MIGRATION, "no migration")
UNKNOWN = EvidenceUnavailable("nobody answers")
ACCESSES = [FITTING] * 12 + [SHARED, ALONE, READING, MOUNTED, Access(AccessMode.READ_WRITE_MANY, VolumeMode.FILESYSTEM)]

nodes = st.sampled_from(NODES)
mishaps = st.sampled_from([Mishap.NONE] * 4 + [fate for fate in Mishap if fate is not Mishap.NONE])
holder_sets = st.lists(st.tuples(nodes, st.integers(1, 900)), max_size=3, unique_by=lambda pair: pair[0])

proofs = st.sampled_from(["migration"] * 6 + ["the same again", "elsewhere", "no", "unknown", "none"])
results = st.sampled_from([Result.SUCCEEDED, Result.FAILED])

Request = tuple[str, str]


class Pause:
    """A request that waits for its fate."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __await__(self) -> Generator[Request, Mishap, Mishap]:
        return (yield self.request)


class Writer:
    """A process that does one thing at a time, and stands still at each of its requests."""

    def __init__(self) -> None:
        self.work: Coroutine[Request, Mishap | None, None] | None = None
        self.intends: Model | None = None

    def begin(self, work: Coroutine[Request, Mishap | None, None]) -> None:
        self.work = work
        self.step(None)

    def step(self, fate: Mishap | None) -> None:
        assert self.work is not None
        try:
            self.work.send(fate)
        except StopIteration:
            self.work = None

    def crash(self) -> None:
        assert self.work is not None
        self.work.close()
        self.work = None


class Volume(RuleBasedStateMachine):
    """One volume, two writers, an operator who reports, an administrator who edits, and a reference model of every version."""

    @initialize(
        block=MOSTLY,
        many=MOSTLY,
        any_two=MOSTLY,
        holders=st.none() | holder_sets,
    )
    def make(self, block: bool, many: bool, any_two: bool, holders: list[tuple[str, int]] | None) -> None:
        self.now = START
        self.ids = 0
        self.runs = ["run-0"]
        self.started: dict[tuple[datetime, str], datetime] = {}
        self.old_ids: list[str] = []
        self.marks: list[Expansion] = []
        self.sights: list[tuple[Attachment, Model]] = []
        self.api = MemoryApi(lambda method, path: Pause((method, path)))
        self.api.applied = self.applied
        self.store = RecordStore(self.api)
        self.writers = [Writer(), Writer()]
        self.current = self.writers[0]
        self.drained: list[Any] = []
        self.draining = False
        self.results: dict[str, str] = {}
        self.announced: list[str] = []
        self.collapsed = False
        record = self.api.put(
            empty(
                volume_mode=VolumeMode.BLOCK if block else VolumeMode.FILESYSTEM,
                access_mode=AccessMode.READ_WRITE_MANY if many else AccessMode.READ_WRITE_ONCE,
                dual_attach_policy=DualAttachPolicy.ANY_TWO_NODES if any_two else DualAttachPolicy.KUBEVIRT,
            )
        )
        self.models = {str(record.metadata.resource_version): Model(block=block, any_two=any_two)}
        self.uninterrupted(self.found(self.writers[0], holders or []))

    # Running things ------------------------------------------------------------------------------

    def newest(self) -> Record:
        record = self.api.peek(HANDLE)
        assert record is not None
        return record

    def run(self, writer: Writer, fates: list[Mishap]) -> None:
        self.current = writer
        while writer.work:
            writer.step(fates.pop(0) if fates else Mishap.NONE)

    def uninterrupted(self, work: Coroutine[Any, Any, None]) -> None:
        self.current = self.writers[0]
        if self.current.work:
            self.current.crash()
        self.current.begin(work)
        self.run(self.current, [])

    def start(self, work: Callable[[Writer], Coroutine[Any, Any, None]], number: int, fates: list[Mishap] | None) -> None:
        """Let a writer begin, if possible an idle one; without ``fates`` it reads, decides, and stands still before its write."""
        writer = self.writers[number]
        if writer.work:
            writer = self.writers[1 - number]
        if writer.work:
            writer.crash()
        self.current = writer
        writer.begin(work(writer))
        if fates is None:
            writer.step(Mishap.NONE)
        else:
            self.run(writer, list(fates))

    async def change(
        self, writer: Writer, real: Callable[[Record], Decided | Refused], wanted: Callable[[Model], Model | Code]
    ) -> Decided | Refused | None:
        """Do as the processes do: read, decide, write; and compare each decision with the model of the version that was read."""

        def decide(record: Record) -> Decided | Refused:
            before = self.models[str(record.metadata.resource_version)]
            assert same(before, record)
            decision, expected = real(record), wanted(before)
            if isinstance(decision, Refused):
                assert decision.code == expected, (decision, expected)
                return decision
            assert isinstance(expected, Model), (decision, expected)
            assert same(expected, decision.record), (decision.record.status, expected)
            writer.intends = expected
            return decision

        try:
            record = await self.store.read(HANDLE)
            assert record is not None
            decision = await self.store.change(record, decide)
        except (ApiError, Contended):
            return None
        if isinstance(decision, Decided):
            # Nothing comes between the API server's last answer and ours, so what is answered is what it holds now.
            assert decision.record.status == self.newest().status
        return decision

    # What writers do -----------------------------------------------------------------------------

    def new_run(self) -> str:
        self.runs.append(f"run-{len(self.runs)}")
        return self.runs[-1]

    def proof(self, node: str, kind: str) -> tuple[Evidence | None, Run | Code | None]:
        """Return what the driver found out of a second node, and what the model makes of it."""
        holders = [held.node_name for held in self.newest().status.attachments if held.node_name != node]
        if kind == "no":
            return NO, Code.FAILED_PRECONDITION
        if kind == "unknown":
            return UNKNOWN, Code.UNAVAILABLE
        if kind == "none" or not holders:
            return None, None
        source = holders[0] if kind != "elsewhere" else "node-z"
        uid = self.runs[-1] if kind == "the same again" else self.new_run()
        return live_migration(source, node, uid), Run(source, node, uid)

    async def attach(self, writer: Writer, node: str, access: Access, exists: bool | None, kind: str = "migration") -> None:
        self.ids += 1
        new_id = f"attachment-{self.ids}"
        evidence, expected = self.proof(node, kind)
        seen: list[Record] = []

        def real(record: Record) -> Decided | Refused:
            seen.append(record)
            return attach(record, node, access, now=self.now, new_id=new_id, node_exists=exists, evidence=evidence)

        decision = await self.change(
            writer,
            real,
            lambda model: model.attach(
                node,
                new_id,
                self.now,
                many=access.mode.multi_node,
                block=access.volume_mode is VolumeMode.BLOCK,
                read_only=access.read_only,
                exists=exists,
                evidence=expected,
            ),
        )
        if isinstance(decision, Refused):
            noted = note_refusal(seen[-1], node, decision, now=self.now)
            if noted:
                writer.intends = self.models[str(noted.metadata.resource_version)]
                try:
                    await self.store.write_status(noted)
                except ApiError:
                    return

    async def detach(self, writer: Writer, node: str, wanted: bool, older: str | None) -> None:
        held = self.newest().status.attachment_of(node)
        seen = older or (held.id if held else None)
        if held:
            self.old_ids.append(held.id)
        await self.change(
            writer,
            lambda record: detach(record, node, attachment_id=seen, wanted=wanted, now=self.now),
            lambda model: model.detach(node, seen, self.now, wanted=wanted),
        )

    async def release(self, writer: Writer, step: str, older: bool) -> None:
        """Mark an attachment as stale, take the mark back, or end its release; ``older``: as it was seen some time ago."""
        held = self.newest().status.attachments
        sights = [(one, self.models[str(self.newest().metadata.resource_version)]) for one in held]
        self.sights += sights
        if not self.sights:
            return
        seen, model = self.sights[-7 if older and len(self.sights) > 6 else -1]
        known = next((one for one in model.held if one.id == seen.id), None)
        marking = {
            "mark": (lambda record: stale.mark(record, seen, None, now=self.now), lambda model: model.marks(known, self.now)),
            "unmark": (lambda record: stale.unmark(record, seen), lambda model: model.unmarks(known)),
            "clear": (
                lambda record: stale.clear(record, seen, "it is out", now=self.now, fenced=False),
                lambda model: model.clears(known, self.now),
            ),
        }
        await self.change(writer, *marking[step])

    async def detach_all(self, writer: Writer) -> None:
        ids = [held.id for held in self.newest().status.attachments]
        await self.change(
            writer,
            lambda record: detach_all(record, attachment_ids=ids, now=self.now),
            lambda model: model.detach_all(set(ids), self.now),
        )

    async def expire(self, writer: Writer) -> None:
        def real(record: Record) -> Decided:
            window = record.status.migration
            elapsed = max(self.now - window.start_time, timedelta()) if window else timedelta()
            result = expire(record, now=self.now, elapsed=elapsed)
            return Decided(result or record, changed=result is not None)

        await self.change(writer, real, lambda model: model.expire(self.now))

    async def conclude(self, writer: Writer, uid: str, result: Result) -> None:
        verdict = Verdict(uid, result, "MigrationPhase", live_node="node-a")
        await self.change(
            writer, lambda record: conclude(record, verdict, now=self.now), lambda model: model.hears(uid, result.value)
        )

    async def conclude_pending(self, writer: Writer) -> None:
        """Let who left decide for the window that waits longest."""
        waiting = self.newest().status.pending
        if not waiting:
            return
        chosen = waiting[0]
        await self.change(
            writer,
            lambda record: conclude_pending(record, chosen.id, now=self.now),
            # Several windows can be of one run; windows of one run at different times are told apart by their start.
            lambda model: next(
                (
                    model.decided(number)
                    for number in model.waiting
                    if (model.closed[number].run, model.closed[number].start, model.closed[number].target)
                    == (chosen.migration_uid, chosen.start_time, chosen.target_node)
                ),
                model,
            ),
        )

    async def observe(self, writer: Writer, uid: str, seconds: int | None) -> None:
        """See that the run has started, or how long it may take."""
        start = self.now

        def wanted(model: Model) -> Model:
            window = model.window
            if window is None or window.run != uid or window.result:
                return model
            return model.sees(
                uid, None if seconds is None else self.started[window.start, uid] - window.start + timedelta(seconds=seconds)
            )

        def real(record: Record) -> Decided:
            window = record.status.migration
            if window and window.migration_uid == uid:
                self.started[window.start_time, uid] = window.run_start_time or max(start, window.start_time)
            return observe_run(record, start=start, timeout_seconds=seconds, live_node="node-a", now=self.now, migration_uid=uid)

        await self.change(writer, real, wanted)

    async def follow(self, writer: Writer, back: bool, uid: str, live: str, old: Result | None) -> None:
        """KubeVirt begins another run between the two attached nodes."""
        window = self.newest().status.migration
        if window is None:
            return
        source, target = (window.target_node, window.source_node) if back else (window.source_node, window.target_node)
        run = live_migration(source, target, uid)
        run = replace(run, vmi=replace(run.vmi, node=live))
        self.ids += 1
        new_id = f"window-{self.ids}"
        said = old and window.migration_uid and Verdict(window.migration_uid, old, "MigrationPhase")
        uid_before = window.migration_uid

        def wanted(model: Model) -> Model:
            known = old.value if said and old and model.window and model.window.run == uid_before else None
            return model.follows(Run(source, target, uid), known, self.now)

        await self.change(writer, lambda record: supersede(record, run, said or None, now=self.now, new_id=new_id), wanted)

    async def warn(self, writer: Writer) -> None:
        seen: list[Record] = []

        def real(record: Record) -> Decided:
            seen.append(record)
            warned = warn(record, now=self.now)
            return Decided(warned or record, changed=warned is not None)

        def wanted(model: Model) -> Model:
            window = seen[-1].status.migration
            return model.warns(window.result_time if window else None, self.now)

        await self.change(writer, real, wanted)

    async def found(self, writer: Writer, holders: list[tuple[str, int]]) -> None:
        """Import, or repair: these nodes hold the volume, says the API server."""
        proof = [Holder(node=node, since=self.now - timedelta(seconds=age), attached=True) for node, age in holders]
        proof.sort(key=lambda holder: (holder.since, holder.node))

        def real(record: Record) -> Decided:
            if not record.initialized:
                return Decided(import_attachments(record, proof, now=self.now), changed=True)
            repaired = add_missing(record, proof, now=self.now)
            return Decided(repaired, changed=repaired is not record)

        def wanted(model: Model) -> Model:
            many = self.newest().spec.access_mode.multi_node
            origin = "found" if model.initialized else "imported"
            return model.found(
                [Held(holder.node, self.found_id(origin, holder.node), many, False, holder.since) for holder in proof]
            )

        await self.change(writer, real, wanted)

    def found_id(self, origin: str, node: str) -> str:
        """The package makes these ids up; the model only wants them to be new."""
        held = add_missing(
            empty().with_status(initialized=True), [Holder(node=node, since=self.now, attached=True)], now=self.now
        ).status.attachments[0]
        return held.id.replace("found", origin, 1)

    async def delete(self, writer: Writer) -> None:
        await self.change(writer, lambda record: begin_deletion(record, now=self.now), lambda model: model.delete())

    async def expand(self, writer: Writer, size: int, seconds: int) -> None:
        until = self.now + timedelta(seconds=seconds)
        decision = await self.change(
            writer,
            lambda record: expansion.begin(record, size, until=until, now=self.now),
            lambda model: model.expands(size, until, self.now),
        )
        if isinstance(decision, Decided) and decision.record.status.expansion:
            self.marks.append(decision.record.status.expansion)

    async def end_expansion(self, writer: Writer, mine: Expansion | None) -> None:
        seen = (mine.capacity_bytes, mine.until_time) if mine else None
        await self.change(
            writer,
            lambda record: expansion.end(record, mine, now=self.now),
            lambda model: model.expanded(seen, self.now),
        )

    async def report(self, writer: Writer, many: int) -> None:
        """Take entries off the outbox, as the operator does once they are announced and counted."""
        ids = {entry.id for entry in self.newest().status.outbox[:many]}

        def real(record: Record) -> Decided:
            kept = tuple(entry for entry in record.status.outbox if entry.id not in ids)
            return Decided(record.with_status(outbox=kept), changed=kept != record.status.outbox)

        self.draining = True
        try:
            await self.change(writer, real, lambda model: model)
        finally:
            self.draining = False

    # Rules ---------------------------------------------------------------------------------------

    anyone = st.integers(0, 1)
    fates: st.SearchStrategy[list[Mishap] | None] = (
        st.builds(list) | st.builds(list) | st.none() | st.lists(mishaps, min_size=1, max_size=6)
    )

    @rule(number=anyone, fates=fates, node=nodes, access=st.sampled_from(ACCESSES), exists=EXISTS, kind=proofs)
    def someone_attaches(
        self, number: int, fates: list[Mishap] | None, node: str, access: Access | None, exists: bool | None, kind: str
    ) -> None:
        spec = self.newest().spec
        asked = access or Access(spec.access_mode, spec.volume_mode)
        self.start(lambda writer: self.attach(writer, node, asked, exists, kind), number, fates)

    @rule(number=anyone, fates=fates, node=nodes, wanted=st.sampled_from([False] * 5 + [True]), older=st.booleans(), data=st.data())
    def someone_detaches(
        self, number: int, fates: list[Mishap] | None, node: str, wanted: bool, older: bool, data: st.DataObject
    ) -> None:
        old = data.draw(st.sampled_from(self.old_ids)) if older and self.old_ids else None
        self.start(lambda writer: self.detach(writer, node, wanted, old), number, fates)

    @precondition(lambda self: self.newest().status.attachments)
    @rule(number=anyone, fates=fates, data=st.data())
    def a_holder_detaches(self, number: int, fates: list[Mishap] | None, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from([held.node_name for held in self.newest().status.attachments]))
        self.start(lambda writer: self.detach(writer, node, False, None), number, fates)

    @precondition(lambda self: len(self.newest().status.attachments) > 1)
    @rule(number=anyone, fates=fates)
    def everyone_is_detached(self, number: int, fates: list[Mishap] | None) -> None:
        self.start(self.detach_all, number, fates)

    @precondition(lambda self: self.newest().status.attachments)
    @rule(number=anyone, fates=fates, step=st.sampled_from(["mark", "clear", "clear", "unmark"]), older=st.booleans())
    def a_volume_attachment_is_gone(self, number: int, fates: list[Mishap] | None, step: str, older: bool) -> None:
        self.start(lambda writer: self.release(writer, step, older), number, fates)

    @precondition(lambda self: self.newest().status.migration)
    @rule(number=anyone, fates=fates, seconds=st.sampled_from([0, 31, 301, 4000]))
    def the_operator_looks_at_the_deadline(self, number: int, fates: list[Mishap] | None, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.start(self.expire, number, fates)

    @rule(number=anyone, fates=fates, result=results, data=st.data())
    def kubevirt_says_how_a_run_ended(self, number: int, fates: list[Mishap] | None, result: Result, data: st.DataObject) -> None:
        status = self.newest().status
        known = [window.migration_uid for window in [*status.history, *([status.migration] if status.migration else [])]]
        uid = data.draw(st.sampled_from([one for one in known if one] or self.runs))
        self.start(lambda writer: self.conclude(writer, uid, result), number, fates)

    @precondition(lambda self: self.newest().status.pending)
    @rule(number=anyone, fates=fates)
    def nobody_can_read_how_a_run_ended(self, number: int, fates: list[Mishap] | None) -> None:
        self.start(self.conclude_pending, number, fates)

    @precondition(lambda self: self.newest().status.migration)
    @rule(number=anyone, fates=fates, seconds=st.sampled_from([None, 270, 570]))
    def a_run_is_seen_to_start(self, number: int, fates: list[Mishap] | None, seconds: int | None) -> None:
        window = self.newest().status.migration
        uid = (window and window.migration_uid) or self.runs[-1]
        self.start(lambda writer: self.observe(writer, uid, seconds), number, fates)

    @precondition(lambda self: self.newest().status.migration)
    @rule(number=anyone, fates=fates, back=st.booleans(), live=st.sampled_from(NODES), old=st.none() | results)
    def kubevirt_begins_another_run(
        self, number: int, fates: list[Mishap] | None, back: bool, live: str, old: Result | None
    ) -> None:
        uid = self.new_run()
        self.start(lambda writer: self.follow(writer, back, uid, live, old), number, fates)

    @precondition(lambda self: self.newest().status.migration)
    @rule(number=anyone, fates=fates, seconds=st.sampled_from([0, 600, 1200, 7200]))
    def the_operator_warns(self, number: int, fates: list[Mishap] | None, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.start(self.warn, number, fates)

    @rule(number=anyone, fates=fates, holders=holder_sets)
    def holders_are_found(self, number: int, fates: list[Mishap] | None, holders: list[tuple[str, int]]) -> None:
        self.now += timedelta(seconds=1)
        self.start(lambda writer: self.found(writer, holders), number, fates)

    @rule(number=anyone, fates=fates, data=st.data())
    def a_deletion_begins(self, number: int, fates: list[Mishap] | None, data: st.DataObject) -> None:
        # Seldom one that works: it is the end of the story.
        if self.newest().status.attachments or data.draw(st.integers(0, 15)) == 7:
            self.start(self.delete, number, fates)

    @rule(number=anyone, fates=fates, size=st.sampled_from([2, 3]), seconds=st.sampled_from([1, 60, 120]))
    def an_expansion_begins(self, number: int, fates: list[Mishap] | None, size: int, seconds: int) -> None:
        self.start(lambda writer: self.expand(writer, size << 30, seconds), number, fates)

    @rule(number=anyone, fates=fates, data=st.data())
    def an_expansion_ends(self, number: int, fates: list[Mishap] | None, data: st.DataObject) -> None:
        mine = data.draw(st.sampled_from([*self.marks[-3:], None]))
        self.start(lambda writer: self.end_expansion(writer, mine), number, fates)

    @rule(number=anyone, fates=st.lists(mishaps, max_size=6), many=st.integers(1, 32))
    def the_operator_reports(self, number: int, fates: list[Mishap], many: int) -> None:
        self.start(lambda writer: self.report(writer, many), number, fates)

    @rule(seconds=st.sampled_from([30, 31, 300, 3600, 86_400, None]))
    def the_administrator_edits_the_timeout(self, seconds: int | None) -> None:
        record = self.newest()
        model = self.models[str(record.metadata.resource_version)]
        self.current = Writer()
        self.current.intends = Model(**{**vars(model), "timeout": seconds})
        edit = self.store.write(record.replace(spec=record.spec.replace(migration_timeout_seconds=seconds)))
        edit.send(None)
        with pytest.raises(StopIteration):
            edit.send(Mishap.NONE)

    @rule(any_two=st.booleans())
    def the_administrator_edits_the_policy(self, any_two: bool) -> None:
        record = self.newest()
        self.current = Writer()
        self.current.intends = Model(**{**vars(self.models[str(record.metadata.resource_version)]), "any_two": any_two})
        policy = DualAttachPolicy.ANY_TWO_NODES if any_two else DualAttachPolicy.KUBEVIRT
        edit = self.store.write(record.replace(spec=record.spec.replace(dual_attach_policy=policy)))
        edit.send(None)
        with pytest.raises(StopIteration):
            edit.send(Mishap.NONE)

    @rule(seconds=st.sampled_from([1, 20, 100, 299, 300, 4000, -3]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: len(self.newest().status.attachments) == 1)
    @rule(times=st.integers(5, 9))
    def a_volume_migrates_to_and_fro_while_nobody_reports(self, times: int) -> None:
        for _ in range(times):
            record = self.newest()
            held = record.status.attachments
            if len(held) != 1 or not held[0].access_mode.multi_node:
                return
            node = next(name for name in NODES if name != held[0].node_name)
            self.uninterrupted(self.attach(self.writers[0], node, Access(held[0].access_mode, record.spec.volume_mode), True))
            self.now += timedelta(seconds=10)
            self.uninterrupted(self.detach(self.writers[0], held[0].node_name, False, None))

    @precondition(lambda self: any(writer.work for writer in self.writers))
    @rule(number=anyone, fate=mishaps)
    def a_writer_goes_on(self, number: int, fate: Mishap) -> None:
        writer = self.writers[number] if self.writers[number].work else self.writers[1 - number]
        self.current = writer
        writer.step(fate)

    @precondition(lambda self: any(writer.work for writer in self.writers))
    @rule(number=anyone)
    def a_writer_crashes(self, number: int) -> None:
        writer = self.writers[number] if self.writers[number].work else self.writers[1 - number]
        writer.crash()

    def teardown(self) -> None:
        for writer in getattr(self, "writers", []):
            if writer.work:
                writer.crash()

    # What must hold after every write --------------------------------------------------------------

    def applied(self, before: Body | None, after: Body | None) -> None:
        assert before is not None
        assert after is not None
        old, new = Record.from_json(before), Record.from_json(after)
        model = self.current.intends
        assert model is not None
        assert same(model, new)
        self.models[str(new.metadata.resource_version)] = model
        self.check_nodes(old, new)
        self.check_expansion(old, new)
        self.check_results(old, new)
        self.check_announcements(old, new, model)
        self.check_what_people_see(new, model)

    def check_nodes(self, old: Record, new: Record) -> None:
        held = new.status.attachments
        added = {one.id for one in held} - {one.id for one in old.status.attachments}
        if added and not new.status.over_attached:
            alone = not all(one.access_mode.multi_node for one in held) or new.spec.volume_mode is VolumeMode.FILESYSTEM
            assert len(held) <= (1 if alone else 2), "I1, I2"
            if len(held) == 2:
                window = new.status.migration
                assert window, "I3"
                assert {one.node_name for one in held} == {window.source_node, window.target_node}, "I3"

    def check_expansion(self, old: Record, new: Record) -> None:
        mark, opened = old.status.expansion, new.status.migration
        if new.status.expansion and new.status.expansion != mark:
            assert len(new.status.attachments) < 2, "no volume grows while two nodes hold it"
        if opened and opened.origin is Origin.PUBLISH and old.status.migration is None:
            assert mark is None or opened.start_time >= mark.until_time, "no second node while it grows"

    def check_results(self, old: Record, new: Record) -> None:
        opened, was = new.status.migration, old.status.migration
        if opened and (was is None or was.id != opened.id):
            assert opened.id not in self.results, "a window has a name of its own"
            self.results[opened.id] = ""
        for window in [*new.status.history, *([opened] if opened else [])]:
            known, told = self.results[window.id], str(window.result or "")
            assert known in {"", told}, "I4: a result never changes"
            self.results[window.id] = told
        assert all(window.result or window.migration_uid for window in new.status.history), "I4: only KubeVirt's runs wait"
        kept = {window.id for window in new.status.history}
        assert all(window.id in kept for window in old.status.pending), "I4: what waits for its result is not dropped"
        assert len(new.status.history) <= 32

    def check_announcements(self, old: Record, new: Record, model: Model) -> None:
        ids = [entry.id for entry in new.status.outbox]
        fresh = [entry for entry in new.status.outbox if entry.id not in {known.id for known in old.status.outbox}]
        for entry in fresh:
            assert entry.id not in self.announced, "I7: a transition is announced once"
            self.announced.append(entry.id)
            self.collapsed |= entry.kind is Announcement.COLLAPSED
        if self.draining:
            self.drained += [entry for entry in old.status.outbox if entry.id not in ids]
        counted: Counter[str] = Counter()
        for entry in [*self.drained, *new.status.outbox]:
            if entry.counts:
                counted.update(
                    Started=entry.counts.started,
                    Succeeded=entry.counts.succeeded,
                    Failed=entry.counts.failed,
                    TimedOut=entry.counts.timed_out,
                    StaleCleared=entry.counts.stale_cleared,
                )
            else:
                counted[entry.kind] += 1
        for kind in ("Started", "Succeeded", "Failed", "TimedOut", "StaleCleared"):
            assert counted[kind] == model.totals[kind], "I5: each result is told exactly once"
        assert self.collapsed or all(counted[kind] == model.totals[kind] for kind in ("Ended", "Verdict"))

    def check_what_people_see(self, new: Record, model: Model) -> None:
        totals, window = model.totals, new.status.migration
        running = totals["Started"] - totals["Succeeded"] - totals["Failed"] - totals["TimedOut"]
        open_windows = int(window is not None and window.result is None)
        assert running == open_windows + len(new.status.pending), "I6: open windows without a result"
        wanted = Phase.ATTACHED if new.status.attachments else Phase.DETACHED
        if window:
            late = window.result is Result.TIMED_OUT or (model.window and model.window.overdue)
            wanted = Phase.OVERDUE if late else Phase.MIGRATING
        assert new.status.phase in {wanted, None}
        assert (new.status.nodes or "") == ",".join(held.node_name for held in new.status.attachments)


USUAL = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@pytest.mark.requirement("R13", "R14", "R21", "R28")
def test_the_invariants_hold_whatever_happens() -> None:
    run_state_machine_as_test(Volume, settings=settings(USUAL, max_examples=120, stateful_step_count=50))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_invariants_hold_whatever_happens_for_long() -> None:
    run_state_machine_as_test(Volume, settings=settings(USUAL, max_examples=2000, stateful_step_count=60))
