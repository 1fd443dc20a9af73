"""The outbox under lost requests, lost answers and crashes; refusals, attachments, the claim and the finalizer."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rds_operator.claims import Claims
from rds_operator.events import COMPONENT, EventReason
from rds_operator.memory import RecordMemory
from rds_operator.metrics import OperatorMetrics
from rds_operator.reporting import REASONS, Reporter, claim_entries, drop_entries, may_vanish
from rds_records.clock import ServerClock
from rds_records.decisions import Code, Decided, Reason, Refused
from rds_records.events import EventRecorder, event_name
from rds_records.record import MAX_OUTBOX, Announcement, ObjectReference, OutboxEntry, Record
from rds_records.store import RecordStore
from rds_records.transitions import note_refusal
from rds_records.windows import expire
from tests.unit.operator.api_server import ApiServer, Client, Fault
from tests.unit.operator.volumes import HANDLE, NOW, attached, bind, decided, detached, migrating, read_record, record, store_record

pytestmark = pytest.mark.requirement("R8")


class CountingMetrics(OperatorMetrics):
    """Remembers which entries were counted."""

    def __init__(self, memory: RecordMemory) -> None:
        super().__init__(memory)
        self.counted: list[str] = []

    def count(self, entry: OutboxEntry) -> None:
        self.counted.append(entry.id)
        super().count(entry)

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def results(self) -> dict[str, float]:
        return {
            result: self.value("rds_csi_migration_migrations_total", result=result) for result in ("success", "failed", "timeout")
        }

    def posted(self, reason: str) -> float:
        return self.value("rds_csi_events_posted_total", reason=reason)

    def failed(self, reason: str) -> float:
        return self.value("rds_csi_events_failed_total", reason=reason)


class Life:
    """One life of the operator's reporting: lists the records, watches them, ends by a crash or when nothing is left to do."""

    def __init__(self, server: ApiServer, name: str = "life", *, events: bool = True, now: float = NOW.timestamp() + 60) -> None:
        self.server = server
        self.name = name
        self.client: Client = server.client()
        self.memory = RecordMemory()
        self.metrics = CountingMetrics(self.memory)
        self.reporter = Reporter(
            RecordStore(self.client),
            Claims(self.client),
            EventRecorder(self.client, COMPONENT, name) if events else None,
            self.metrics,
            ServerClock(wall=lambda: now),
            life=name,
            sleep=lambda _: asyncio.sleep(0),
        )
        server.watchers.append(self.watched)
        for body in server.under("/apis/rds.csi.srvlab.io/v1alpha1/volumeattachmentrecords"):
            self.watched("ADDED", body)

    def watched(self, kind: str, body: dict[str, Any]) -> None:
        if not self.client.crashed.is_set() and (change := self.memory.see(body, deleted=kind == "DELETED")):
            self.reporter.see(change)

    async def end(self) -> None:
        """Let it run until it has nothing to do, or crashes."""
        crashed = asyncio.create_task(self.client.crashed.wait())
        while True:
            idle = asyncio.create_task(self.reporter.drain(60))
            await asyncio.wait([crashed, idle], return_when=asyncio.FIRST_COMPLETED)
            for _ in range(5):
                await asyncio.sleep(0)
            if crashed.done() or not self.reporter.busy:
                break
        self.server.watchers.remove(self.watched)
        for task in (*self.reporter._tasks.values(), *self.reporter._notes, crashed, idle):
            task.cancel()
        await asyncio.sleep(0)


async def reported(server: ApiServer, **options: Any) -> Life:
    life = Life(server, **options)
    await life.end()
    return life


def refused(to: Record, node: str, *, after: float = 0.0) -> Record:
    no = Refused(Code.FAILED_PRECONDITION, Reason.NO_SLOT, "two nodes hold it")
    noted = note_refusal(to, node, no, now=NOW + timedelta(seconds=after))
    assert noted
    return noted


def events_of(server: ApiServer, *reasons: str) -> list[dict[str, Any]]:
    return [event for event in server.events() if event["reason"] in reasons or not reasons]


def timed_out(running: Record) -> Record:
    ended = expire(running, now=NOW + timedelta(seconds=301), elapsed=timedelta(seconds=301))
    assert ended
    return ended


@pytest.mark.requirement("R40")
async def test_an_event_whose_answer_was_lost_is_counted_once_when_it_is_found() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, migrating().with_status(attachments=()))
    server.faults = [Fault.LOST_ANSWER]
    life = await reported(server)
    assert len(events_of(server, "MigrationStarted")) == 1
    assert life.metrics.posted("MigrationStarted") == 1


@pytest.mark.requirement("R42")
async def test_a_failure_and_a_refusal_are_events_on_the_virtual_machine_too() -> None:
    server = ApiServer()
    bind(server)
    vmi = ObjectReference(namespace="vms", name="database", uid="vm-uid")
    failed = detached(migrating(), "node-b").status
    noted = refused(record().with_status(outbox=failed.outbox), "node-c").status
    store_record(
        server,
        record().with_status(
            outbox=tuple(entry.replace(vmi=vmi) for entry in noted.outbox),
            refusals=tuple(refusal.replace(vmi=vmi) for refusal in noted.refusals),
        ),
    )
    await reported(server)
    told = server.events("vms")
    assert sorted(event["reason"] for event in told) == ["AttachmentConflict", "MigrationFailed"]
    for event in told:
        assert event["involvedObject"] == {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "namespace": "vms",
            "name": "database",
            "uid": "vm-uid",
        }
    assert len(events_of(server, "MigrationStarted", "MigrationFailed", "AttachmentConflict")) == 3


# The outbox ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R2", "R3")
@pytest.mark.parametrize(
    ("end", "reason", "kind", "result"),
    [
        (lambda running: detached(running, "node-a"), "MigrationCompleted", "Normal", "success"),
        (lambda running: detached(running, "node-b"), "MigrationFailed", "Warning", "failed"),
        (timed_out, "MigrationFailed", "Warning", "timeout"),
    ],
)
async def test_each_end_of_a_migration_is_one_event_and_one_count(end: Any, reason: str, kind: str, result: str) -> None:
    server = ApiServer()
    bind(server)
    ended = end(migrating())
    store_record(server, ended)
    life = await reported(server)
    assert Counter(event["reason"] for event in events_of(server, "MigrationStarted", reason)) == {"MigrationStarted": 1, reason: 1}
    event = events_of(server, reason)[0]
    assert (event["type"], event["message"]) == (kind, ended.status.outbox[-1].message)
    assert life.metrics.results() == {"success": 0, "failed": 0, "timeout": 0, result: 1}
    assert read_record(server).status.outbox == ()


async def test_a_window_that_closes_after_its_timeout_is_told_and_not_counted_again() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, detached(timed_out(migrating()), "node-b", at=NOW + timedelta(seconds=400)))
    life = await reported(server)
    assert [event["type"] for event in events_of(server, "MigrationEnded")] == ["Normal"]
    assert life.metrics.results() == {"success": 0, "failed": 0, "timeout": 1}
    assert life.metrics.value("rds_csi_migration_duration_seconds_sum") == 400


@pytest.mark.requirement("R45")
async def test_a_duration_that_the_clocks_made_negative_counts_as_zero_and_as_a_clamp() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, detached(migrating(), "node-a", at=NOW - timedelta(hours=1)))
    life = await reported(server)
    assert life.metrics.value("rds_csi_migration_duration_seconds_sum") == 0
    assert life.metrics.value("rds_csi_migration_duration_seconds_count") == 1
    assert life.metrics.value("rds_csi_migration_clock_clamps_total") == 1


@pytest.mark.requirement("R42")
async def test_an_event_names_reporter_instance_and_the_claim_with_its_uid() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, migrating())
    await reported(server, name="operator-0_abcd")
    event = events_of(server, "MigrationStarted")[0]
    assert event["source"]["component"] == event["reportingComponent"] == "rds-csi-controller"
    assert event["reportingInstance"] == "operator-0_abcd"
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": "default",
        "name": "data",
        "uid": "uid-of-data",
    }


async def test_without_events_counts_and_outbox_go_on() -> None:
    server = ApiServer()
    store_record(server, detached(migrating(), "node-a"))
    life = await reported(server, events=False)
    assert server.events() == []
    assert life.metrics.results()["success"] == 1
    assert read_record(server).status.outbox == ()


@pytest.mark.requirement("R40")
async def test_a_refused_event_is_counted_as_failed_and_dropped() -> None:
    server = ApiServer()
    bind(server, namespace="going")
    server.refuse_events_in.add("going")
    store_record(server, detached(migrating(), "node-a"))
    life = await reported(server)
    assert life.metrics.failed("MigrationStarted") == life.metrics.failed("MigrationCompleted") == 1
    assert life.metrics.posted("MigrationCompleted") == 0
    assert life.metrics.results()["success"] == 1
    assert read_record(server).status.outbox == ()


async def test_a_volume_without_claim_is_counted_all_the_same() -> None:
    server = ApiServer()
    store_record(server, detached(migrating(), "node-b"))
    life = await reported(server)
    assert life.metrics.failed("MigrationFailed") == 1
    assert life.metrics.results()["failed"] == 1
    assert read_record(server).status.outbox == ()


async def test_collapsed_totals_are_counted_without_an_event() -> None:
    running = record()
    for turn in range(MAX_OUTBOX):
        running = attached(attached(running, "node-a", new_id=f"a{turn}"), "node-b", new_id=f"b{turn}")
        running = detached(detached(running, "node-a" if turn % 2 else "node-b"), "node-b" if turn % 2 else "node-a")
    assert any(entry.kind is Announcement.COLLAPSED for entry in running.status.outbox)
    server = ApiServer()
    bind(server)
    store_record(server, running)
    life = await reported(server)
    assert life.metrics.results() == {"success": MAX_OUTBOX / 2, "failed": MAX_OUTBOX / 2, "timeout": 0}
    assert read_record(server).status.outbox == ()


async def test_an_entry_of_another_life_is_told_and_not_counted() -> None:
    server = ApiServer()
    bind(server)
    ended = detached(migrating(), "node-a")
    store_record(server, claim_entries(ended, [entry.id for entry in ended.status.outbox], "another").record)
    life = await reported(server)
    assert life.metrics.counted == []
    assert len(events_of(server, "MigrationStarted", "MigrationCompleted")) == 2
    assert read_record(server).status.outbox == ()


async def test_trouble_with_one_volume_holds_up_no_other() -> None:
    server = ApiServer()
    other = "pvc-99999999-2222-3333-4444-555555555555"
    for handle, claim in ((HANDLE, "stuck"), (other, "fine")):
        bind(server, handle, claim=claim)
        store_record(server, detached(migrating(handle), "node-a"))

    class Stuck(Client):
        async def create(self, path: str, body: Any) -> dict[str, Any]:
            if body.get("involvedObject", {}).get("name") == "stuck":
                await asyncio.Event().wait()
            return await super().create(path, body)

    server.client = lambda: Stuck(server)  # type: ignore[method-assign]
    life = Life(server)
    await asyncio.sleep(0)
    await life.reporter._tasks[read_record(server, other).metadata.uid or ""]
    assert read_record(server, other).status.outbox == ()
    assert life.metrics.results()["success"] == 1
    assert read_record(server).status.outbox
    life.client.crashed.set()
    await life.end()


def test_only_claimed_entries_are_dropped() -> None:
    running = migrating()
    ids = [entry.id for entry in running.status.outbox]
    assert not drop_entries(running, ids).changed
    assert drop_entries(claim_entries(running, ids, "me").record, ids).record.status.outbox == ()


def test_a_claim_of_another_life_is_never_overwritten() -> None:
    running = migrating()
    ids = [entry.id for entry in running.status.outbox]
    claimed = claim_entries(running, ids, "first").record
    assert not claim_entries(claimed, ids, "second").changed


SHIM_STEPS = st.lists(st.sampled_from(["attach-a", "attach-b", "detach-a", "detach-b", "expire"]), max_size=8)
FAULTS = st.lists(st.sampled_from(Fault), max_size=24)


def shim_step(body: Record, step: str, number: int) -> Record | None:
    """Return what the step makes of the record; None where it changes nothing."""
    verb, _, letter = step.partition("-")
    node = f"node-{letter}"
    holds = body.status.attachment_of(node) is not None
    if verb == "expire":
        return expire(body, now=NOW + timedelta(seconds=number), elapsed=timedelta(days=1))
    if verb == "attach":
        return None if holds else attached(body, node, new_id=f"{letter}{number}", at=NOW + timedelta(seconds=number))
    return detached(body, node, at=NOW + timedelta(seconds=number)) if holds else None


async def play(faults: list[Fault], before: list[str], during: list[str]) -> tuple[ApiServer, list[Life], list[OutboxEntry]]:
    """Let a shim write transitions while lives of the operator report, crash and follow each other."""
    server = ApiServer()
    bind(server)
    body = store_record(server, migrating())
    announced = list(body.status.outbox)
    for number, step in enumerate(before):
        if changed := shim_step(body, step, number):
            announced.append(changed.status.outbox[-1]) if len(changed.status.outbox) > len(body.status.outbox) else None
            body = store_record(server, changed)
    server.faults = list(faults)
    lives: list[Life] = []
    steps = list(enumerate(during, start=100))
    while True:
        life = Life(server, f"life-{len(lives)}")
        lives.append(life)
        while steps and not life.client.crashed.is_set():
            number, step = steps.pop(0)
            body = read_record(server)
            if changed := shim_step(body, step, number):
                known = {entry.id for entry in body.status.outbox}
                announced.extend(entry for entry in changed.status.outbox if entry.id not in known)
                store_record(server, changed)
            for _ in range(3):
                await asyncio.sleep(0)
        crashed = life.client.crashed
        await life.end()
        if not crashed.is_set():
            return server, lives, announced


@pytest.mark.requirement("R4", "R16")
@settings(max_examples=300, deadline=None)
@given(faults=FAULTS, before=SHIM_STEPS, during=SHIM_STEPS)
@example(faults=[Fault.LOST_ANSWER] * 12, before=["detach-a"], during=[])
def test_whatever_is_lost_or_crashes_each_transition_has_one_event_and_at_most_one_count(
    faults: list[Fault], before: list[str], during: list[str]
) -> None:
    check_play(faults, before, during)


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOST_REQUEST, Fault.LOST_ANSWER])
@pytest.mark.parametrize("write", range(12))
def test_a_fault_at_any_one_write_of_a_whole_migration_doubles_nothing(write: int, fault: Fault) -> None:
    check_play([Fault.NONE] * write + [fault], ["detach-a"], ["attach-a", "expire", "detach-a"])


def check_play(faults: list[Fault], before: list[str], during: list[str]) -> None:
    server, lives, announced = asyncio.run(play(faults, before, during))
    final = read_record(server)
    assert final.status.outbox == ()
    uid = final.metadata.uid or ""
    expected = {event_name(HANDLE, uid, entry.id): REASONS[entry.kind] for entry in announced}
    told = {event["metadata"]["name"]: event["reason"] for event in server.events() if event["reason"].startswith("Migration")}
    assert told == expected
    counts = Counter(entry for life in lives for entry in life.metrics.counted)
    assert max(counts.values(), default=0) <= 1
    assert set(counts) <= {entry.id for entry in announced}
    if not {Fault.CRASH_AFTER, Fault.CRASH_BEFORE} & set(faults):
        assert set(counts) == {entry.id for entry in announced}
        results = Counter(entry.kind for entry in announced if entry.kind not in {Announcement.STARTED, Announcement.ENDED})
        assert sum(lives[0].metrics.results().values()) == results.total()


async def test_old_watch_events_of_its_own_writes_cost_no_further_write() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, migrating().with_status(claim_ref=ObjectReference(namespace="default", name="data", uid="uid-of-data")))
    await reported(server)
    assert [verb for verb, path in server.writes if path.endswith("/status")] == ["PUT", "PUT"]


# Refusals ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R41")
async def test_repeated_refusals_raise_the_count_of_one_event() -> None:
    server = ApiServer()
    bind(server)
    body = store_record(server, refused(attached(record(), "node-a"), "node-c"))
    life = Life(server, now=NOW.timestamp() + 130)
    for _ in range(20):
        await asyncio.sleep(0)
    again = refused(refused(read_record(server), "node-c", after=60), "node-c", after=120)
    store_record(server, again)
    await life.end()
    conflicts = events_of(server, "AttachmentConflict")
    assert [(event["count"], event["type"], event["lastTimestamp"]) for event in conflicts] == [
        (3, "Warning", "2026-11-20T12:02:00Z")
    ]
    assert f"[{HANDLE}]: node node-c was refused" in conflicts[0]["message"]
    assert life.metrics.posted("AttachmentConflict") == 1
    assert body.status.refusals[0].count == 1


async def test_another_life_finds_the_event_of_a_refusal_and_adds_none() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, refused(attached(record(), "node-a"), "node-c"))
    await reported(server, name="first")
    await reported(server, name="second")
    assert len(events_of(server, "AttachmentConflict")) == 1


async def test_a_refusal_of_long_ago_is_no_news() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, refused(attached(record(), "node-a"), "node-c"))
    await reported(server, now=NOW.timestamp() + 3600)
    assert events_of(server, "AttachmentConflict") == []


# Attachments ---------------------------------------------------------------------------------------------------------------------


async def test_an_attach_and_a_detach_are_told() -> None:
    server = ApiServer()
    bind(server)
    life = Life(server)
    store_record(server, attached(record(), "node-a"))
    await asyncio.sleep(0)
    store_record(server, detached(read_record(server), "node-a"))
    await life.end()
    assert Counter(event["reason"] for event in server.events()) == {"VolumeAttached": 1, "VolumeDetached": 1}


async def test_an_attachment_older_than_five_minutes_is_no_news() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, attached(record(), "node-a"))
    await reported(server, now=NOW.timestamp() + 301)
    assert events_of(server, "VolumeAttached") == []


async def test_a_second_life_does_not_tell_of_an_attach_again() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, attached(record(), "node-a"))
    await reported(server, name="first")
    await reported(server, name="second")
    assert len(events_of(server, "VolumeAttached")) == 1


# The claim -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R8", "R44")
async def test_the_claim_is_shown_on_the_record_and_written_once() -> None:
    server = ApiServer()
    bind(server)
    store_record(server, attached(record(), "node-a"))
    await reported(server)
    claim = read_record(server).status.claim_ref
    assert claim == ObjectReference(namespace="default", name="data", uid="uid-of-data")
    version = read_record(server).metadata.resource_version
    await reported(server, name="second")
    assert read_record(server).metadata.resource_version == version


@pytest.mark.requirement("R8")
async def test_a_rebound_volume_reports_to_its_new_claim() -> None:
    server = ApiServer()
    bind(server)
    life = Life(server)
    store_record(server, attached(record(), "node-a"))
    for _ in range(30):
        await asyncio.sleep(0)
    bind(server, claim="restored")
    store_record(server, attached(read_record(server), "node-b", at=NOW + timedelta(seconds=5)))
    await life.end()
    assert [event["involvedObject"]["name"] for event in events_of(server, "MigrationStarted")] == ["restored"]
    claim = read_record(server).status.claim_ref
    assert claim
    assert claim.name == "restored"


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("known_as", [HANDLE, None, "gone"])
async def test_a_volume_under_another_name_than_its_handle_reports_to_its_claim(known_as: str | None) -> None:
    server = ApiServer()
    bind(server, volume="restored-db")
    store_record(server, migrating(persistent_volume_name=known_as))
    await reported(server)
    assert len(events_of(server, "MigrationStarted")) == 1


async def test_a_persistent_volume_of_that_name_and_another_handle_is_not_the_volumes() -> None:
    server = ApiServer()
    bind(server, "pvc-somebody-else", volume=HANDLE)
    store_record(server, migrating())
    life = await reported(server)
    assert server.events() == []
    assert life.metrics.failed("MigrationStarted") == 1


# The finalizer -------------------------------------------------------------------------------------------------------------------


def terminating(body: Record) -> Record:
    return body.replace(metadata=body.metadata.replace(deletion_timestamp=NOW))


async def test_a_record_deleted_by_an_administrator_goes_when_nobody_is_attached() -> None:
    server = ApiServer()
    store_record(server, terminating(record()))
    await reported(server)
    assert server.under("/apis/rds.csi.srvlab.io/v1alpha1/volumeattachmentrecords") == []


async def test_a_record_whose_volume_is_gone_from_the_box_goes_when_it_is_reported() -> None:
    server = ApiServer()
    bind(server)
    gone = detached(detached(migrating(), "node-a"), "node-b").with_status(deleting=True, removed_from_box=True)
    store_record(server, terminating(gone))
    life = await reported(server)
    assert life.metrics.results()["success"] == 1
    assert server.under("/apis/rds.csi.srvlab.io/v1alpha1/volumeattachmentrecords") == []


async def test_its_last_transitions_are_reported_first() -> None:
    server = ApiServer()
    bind(server)
    body = detached(detached(migrating(), "node-a"), "node-b")
    store_record(server, terminating(body))
    life = await reported(server)
    assert life.metrics.results()["success"] == 1
    assert len(events_of(server, "MigrationCompleted")) == 1
    assert server.under("/apis/rds.csi.srvlab.io/v1alpha1/volumeattachmentrecords") == []


@pytest.mark.parametrize(
    "body",
    [
        terminating(attached(record(), "node-a")),
        terminating(record().with_status(initialized=None)),
        terminating(record().with_status(deleting=True)),
        record(),
    ],
    ids=["attached", "uninitialized", "DeleteVolume is at it", "not deleted"],
)
def test_the_finalizer_stays_while_it_protects_something(body: Record) -> None:
    assert not may_vanish(body)


async def test_a_node_that_is_attached_in_the_last_moment_keeps_the_record() -> None:
    server = ApiServer()
    bind(server)
    life = Life(server)
    store_record(server, terminating(record()))
    store_record(server, attached(read_record(server), "node-a"))
    await life.end()
    assert read_record(server).status.nodes == "node-a"


def test_every_announcement_with_a_reason_is_typed() -> None:
    assert {reason.type for reason in EventReason} == {"Normal", "Warning"}
    assert set(Announcement) - set(REASONS) == {Announcement.COLLAPSED}
    assert decided(Decided(record(), changed=False)) == record()
