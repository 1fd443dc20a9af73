"""The memory of records: watch events, lists that overlap with them, and what cannot be read."""

from __future__ import annotations

from typing import Any

from rds_operator.memory import Change, RecordMemory
from tests.unit.operator.api_server import ApiServer
from tests.unit.operator.volumes import HANDLE, attached, record, store_record

OTHER = "pvc-99999999-2222-3333-4444-555555555555"


def body(server: ApiServer, handle: str = HANDLE) -> dict[str, Any]:
    return store_record(server, record(handle)).to_json()


def changed(server: ApiServer, handle: str = HANDLE) -> dict[str, Any]:
    return store_record(server, attached(record(handle), "node-a")).to_json()


def test_a_record_is_new_once() -> None:
    memory = RecordMemory()
    first = body(ApiServer())
    change = memory.see(first)
    assert change
    assert (change.before, change.after) == (None, memory.get(first["metadata"]["uid"]))
    assert memory.see(first) is None


def test_a_change_knows_what_was_before() -> None:
    server, memory = ApiServer(), RecordMemory()
    memory.see(body(server))
    change = memory.see(changed(server))
    assert change
    assert change.before
    assert change.after
    assert (change.before.status.nodes, change.after.status.nodes) == ("", "node-a")


def test_a_deleted_record_is_forgotten() -> None:
    memory = RecordMemory()
    first = body(ApiServer())
    memory.see(first)
    change = memory.see(first, deleted=True)
    assert change
    assert change.after is None
    assert memory.records() == []


def test_an_object_that_is_no_record_is_left_alone() -> None:
    memory = RecordMemory()
    assert memory.see({"metadata": {"name": "x", "uid": "u", "resourceVersion": "1"}, "spec": {}}) is None
    assert memory.records() == []


def test_memory_is_complete_after_the_first_list() -> None:
    memory = RecordMemory()
    memory.see(body(ApiServer()))
    assert not memory.complete
    memory.begin_list()
    memory.end_list([])
    assert memory.complete


def test_a_list_finds_what_the_watch_missed() -> None:
    server, memory = ApiServer(), RecordMemory()
    memory.see(body(server))
    memory.begin_list()
    changes = memory.end_list([body(server, OTHER)])
    assert [(change.before is None, change.after is None) for change in changes] == [(True, False), (False, True)]
    assert [known.handle for known in memory.records()] == [OTHER]


def test_a_list_is_older_news_about_what_the_watch_tells_meanwhile() -> None:
    server, memory = ApiServer(), RecordMemory()
    old, gone, new = body(server), body(server, OTHER), changed(server)
    memory.see(old)
    memory.see(gone)
    memory.begin_list()
    memory.see(new)
    memory.see(gone, deleted=True)
    assert memory.end_list([old, gone]) == []
    assert [known.status.nodes for known in memory.records()] == ["node-a"]


def test_a_record_made_while_a_list_runs_is_not_taken_for_deleted() -> None:
    server, memory = ApiServer(), RecordMemory()
    memory.begin_list()
    memory.see(body(server))
    assert memory.end_list([]) == []
    assert len(memory.records()) == 1


def test_deleting_what_was_never_seen_is_no_change() -> None:
    assert RecordMemory().see(body(ApiServer()), deleted=True) is None
    assert Change(None, None).after is None
