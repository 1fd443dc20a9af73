"""Reading and writing records: every change is a compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rds_records.decisions import Decided, Reason, Refused
from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound, WriteConflict
from rds_records.names import FINALIZER
from rds_records.record import DualAttachPolicy, Record
from rds_records.store import ATTEMPTS, Contended, RecordStore
from rds_records.transitions import begin_deletion, initialize
from tests.unit.records.memory_api import MemoryApi, Mishap
from tests.unit.records.volumes import HANDLE, START, ask, at, fresh, left, no, spec, yes

Decision = Callable[[Record], Decided | Refused]


class Fates:
    """What happens to the requests of a method, in turn; and what somebody else does just before one arrives."""

    def __init__(self, method: str, *fates: Mishap | Callable[[], None]) -> None:
        self.method = method
        self.left = list(fates)

    async def __call__(self, method: str, path: str) -> Mishap:
        if method != self.method or not self.left:
            return Mishap.NONE
        fate = self.left.pop(0)
        if isinstance(fate, Mishap):
            return fate
        fate()
        return Mishap.NONE


@pytest.fixture
def api() -> MemoryApi:
    return MemoryApi()


@pytest.fixture
def store(api: MemoryApi) -> RecordStore:
    return RecordStore(api)


def attaching(node: str, calls: list[Record] | None = None) -> Decision:
    def decide(record: Record) -> Decided | Refused:
        if calls is not None:
            calls.append(record)
        return ask(record, node)

    return decide


def stored_nodes(api: MemoryApi) -> list[str]:
    record = api.peek(HANDLE)
    assert record is not None
    return [held.node_name for held in record.status.attachments]


def by_another(api: MemoryApi, change: Callable[[Record], Record]) -> Callable[[], None]:
    """Return a write by another process that comes in between."""

    def act() -> None:
        record = api.peek(HANDLE)
        assert record is not None
        uid = record.metadata.uid
        changed = api.put(change(record))
        body = api._objects[HANDLE]
        body["metadata"]["uid"] = uid
        assert changed.metadata.resource_version != record.metadata.resource_version

    return act


async def test_a_new_record_is_protected_and_says_nothing(api: MemoryApi, store: RecordStore) -> None:
    record = await store.create(spec())
    assert record.metadata.finalizers == (FINALIZER,)
    assert not record.initialized
    with pytest.raises(WriteConflict):
        await store.create(spec())


async def test_a_record_that_is_not_there_is_none_and_trouble_is_an_error(api: MemoryApi, store: RecordStore) -> None:
    assert await store.read(HANDLE) is None
    api.gate = Fates("GET", Mishap.FAILED)
    with pytest.raises(ApiUnavailable):
        await store.read(HANDLE)


async def test_all_records_are_listed(api: MemoryApi, store: RecordStore) -> None:
    api.put(fresh())
    assert [record.handle for record in await store.list()] == [HANDLE]


async def test_a_change_is_one_write(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    changed = yes(await store.change(record, attaching("node-a")))
    assert api.requests == ["PUT"]
    assert stored_nodes(api) == ["node-a"]
    assert changed.metadata.resource_version != record.metadata.resource_version


async def test_a_refusal_and_a_repetition_write_nothing(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(yes(ask(fresh(), "node-a")))
    assert yes(await store.change(record, attaching("node-a"))) is record
    no(await store.change(record, lambda newest: begin_deletion(newest, now=START)))
    assert api.requests == []


@pytest.mark.requirement("R13")
async def test_after_a_conflict_the_decision_is_taken_again_on_what_the_other_wrote(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    calls: list[Record] = []
    api.gate = Fates("PUT", by_another(api, lambda newest: yes(ask(newest, "node-z"))))
    changed = yes(await store.change(record, attaching("node-a", calls)))
    assert [len(seen.status.attachments) for seen in calls] == [0, 1]
    assert stored_nodes(api) == ["node-z", "node-a"]
    assert changed.status.migration is not None


@pytest.mark.requirement("R13")
async def test_after_a_conflict_the_answer_may_turn_into_a_no(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh(dual_attach_policy=DualAttachPolicy.KUBEVIRT))
    api.gate = Fates("PUT", by_another(api, lambda newest: yes(ask(newest, "node-z"))))
    assert no(await store.change(record, attaching("node-a"))).reason is Reason.NO_EVIDENCE
    assert stored_nodes(api) == ["node-z"]


@pytest.mark.requirement("R14")
@pytest.mark.parametrize("fate", [Mishap.ANSWER_LOST, Mishap.SENT_TWICE])
async def test_a_write_that_was_applied_is_found_and_not_made_twice(api: MemoryApi, store: RecordStore, fate: Mishap) -> None:
    record = api.put(fresh())
    api.gate = Fates("PUT", fate)
    decision = await store.change(record, attaching("node-a"))
    assert stored_nodes(api) == ["node-a"]
    assert [held.id for held in yes(decision).status.attachments] == ["node-a-0"]
    assert api.requests == ["PUT", "GET"]


async def test_a_write_that_was_dropped_is_made_again(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    api.gate = Fates("PUT", Mishap.DROPPED)
    yes(await store.change(record, attaching("node-a")))
    assert stored_nodes(api) == ["node-a"]
    assert api.requests == ["PUT", "GET", "PUT"]


@pytest.mark.requirement("R14")
async def test_an_applied_write_that_another_undid_is_not_answered_with_yes_from_memory(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    undo = by_another(api, lambda newest: left(newest, "node-a", now=at(1)))
    puts, gets = Fates("PUT", Mishap.ANSWER_LOST), Fates("GET", undo)

    async def gate(method: str, path: str) -> Mishap:
        await gets(method, path)
        return await puts(method, path)

    api.gate = gate
    yes(await store.change(record, attaching("node-a")))
    assert stored_nodes(api) == ["node-a"]
    assert api.requests == ["PUT", "GET", "PUT"]


@pytest.mark.requirement("R15")
@pytest.mark.parametrize("fates", [(Mishap.FAILED,), (Mishap.DROPPED, Mishap.DROPPED)])
async def test_when_the_api_server_is_away_nothing_is_promised(
    api: MemoryApi, store: RecordStore, fates: tuple[Mishap, ...]
) -> None:
    record = api.put(fresh())
    api.gate = Fates("PUT", *fates)
    with pytest.raises(ApiUnavailable):
        await store.change(record, attaching("node-a"))
    assert stored_nodes(api) == []


async def test_when_the_fresh_read_fails_nothing_is_promised(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    puts, gets = Fates("PUT", Mishap.ANSWER_LOST), Fates("GET", Mishap.FAILED)

    async def gate(method: str, path: str) -> Mishap:
        return await (puts if method == "PUT" else gets)(method, path)

    api.gate = gate
    with pytest.raises(ApiUnavailable):
        await store.change(record, attaching("node-a"))


async def test_a_record_that_never_stands_still_is_contended(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    api.gate = Fates("PUT", *[by_another(api, lambda newest: newest)] * ATTEMPTS)
    with pytest.raises(Contended, match=f"changed under {ATTEMPTS} attempts"):
        await store.change(record, attaching("node-a"))
    assert stored_nodes(api) == []


async def test_a_record_that_vanished_is_not_found(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    api.vanish(HANDLE)
    with pytest.raises(ObjectNotFound):
        await store.change(record, attaching("node-a"))


async def test_a_record_made_anew_under_the_same_name_is_another_one(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    api.put(fresh())
    with pytest.raises(ObjectNotFound, match="made anew"):
        await store.change(record, attaching("node-a"))
    assert stored_nodes(api) == []


@pytest.mark.requirement("R32")
async def test_a_removed_record_is_gone(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    deleting = yes(await store.change(record, lambda newest: begin_deletion(newest, now=START)))
    await store.remove(deleting)
    assert api.peek(HANDLE) is None


async def test_a_record_that_changed_is_not_removed(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    yes(await store.change(record, attaching("node-a")))
    with pytest.raises(WriteConflict):
        await store.remove(record)
    assert stored_nodes(api) == ["node-a"]


async def test_a_record_that_an_administrator_deletes_stays_until_it_is_released(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    await store.delete(record)
    terminating = await store.reread(record)
    assert terminating.terminating
    await store.release(terminating)
    assert api.peek(HANDLE) is None


@pytest.mark.parametrize("fate", [Mishap.DROPPED, Mishap.ANSWER_LOST, Mishap.FAILED])
async def test_an_interrupted_removal_can_be_taken_up_again(api: MemoryApi, store: RecordStore, fate: Mishap) -> None:
    record = api.put(fresh())
    deleting = yes(await store.change(record, lambda newest: begin_deletion(newest, now=START)))
    api.gate = Fates("DELETE", fate)
    with pytest.raises(ApiUnavailable):
        await store.remove(deleting)
    again = await store.read(HANDLE)
    if again is not None:
        assert again.status.deleting
        await store.remove(again)
    assert api.peek(HANDLE) is None


async def test_only_the_record_that_was_read_is_deleted(api: MemoryApi, store: RecordStore) -> None:
    record = api.put(fresh())
    api.put(fresh())
    with pytest.raises(WriteConflict):
        await store.delete(record)
    api.vanish(HANDLE)
    await store.delete(record)


async def test_an_initialized_record_is_not_initialized_again(api: MemoryApi, store: RecordStore) -> None:
    record = await store.create(spec())
    first = yes(await store.change(record, lambda newest: initialize(newest, now=START)))
    assert yes(await store.change(first, lambda newest: initialize(newest, now=at(9)))) is first
