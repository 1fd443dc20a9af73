from __future__ import annotations

import json
from datetime import timedelta

from rds_kubectl.migration_rows import Row, changes, recent, rows_of
from rds_records.record import Record, Result
from tests.unit.kubectl.cluster_objects import NOW, ended, migrating, named
from tests.unit.records.volumes import at, attached, fresh, left

DAY = timedelta(days=1)


def only(record: Record) -> Row:
    (row,) = rows_of(record)
    return row


def states(*records: Record) -> list[str]:
    return [row.state for row in recent(records, now=NOW, within=DAY)]


def test_the_state_of_an_open_window_says_whether_it_runs_leaves_or_is_overdue() -> None:
    assert only(migrating()).state == "Running"
    assert only(ended()).state == "Leaving"
    assert only(ended(leaving_overdue_time=NOW)).state == "Overdue"
    assert only(migrating(result=Result.TIMED_OUT)).state == "Overdue"


def test_the_state_of_a_closed_window_is_its_result_or_pending() -> None:
    assert only(left(ended(), "node-a", now=at(90))).state == "Succeeded"
    assert only(left(migrating(), "node-a", now=at(90))).state == "Pending"


def test_open_windows_come_first_and_then_the_newest() -> None:
    closed = left(ended(), "node-a", now=at(90))
    later = named(left(ended(Result.FAILED), "node-b", now=at(200)), "pvc-later")
    assert states(closed, later, named(migrating(), "pvc-open")) == ["Running", "Failed", "Succeeded"]


def test_what_ended_long_ago_is_left_out_and_what_is_open_never() -> None:
    closed = left(ended(), "node-a", now=at(90))
    assert recent([closed, migrating()], now=NOW, within=timedelta(minutes=1)) == rows_of(migrating())


def test_a_row_counts_down_to_the_deadline_and_from_it() -> None:
    before, after = only(migrating(deadline_time=at(3900))), only(migrating(deadline_time=at(3000)))
    assert before.cells(NOW)[7] == "in 5m"
    assert after.cells(NOW)[7] == "10m ago"


def test_a_row_for_programs_has_the_window_as_the_record_has_it() -> None:
    row = json.loads(json.dumps(only(migrating()).to_json()))
    assert (row["claim"], row["open"], row["state"]) == ("vms/root", True, "Running")
    assert (row["sourceNode"], row["targetNode"], row["vmi"]["name"]) == ("node-a", "node-b", "web")


def test_a_watch_tells_a_window_when_it_opens_gets_its_result_and_closes() -> None:
    before, after = attached(fresh(), "node-a"), migrating()
    assert [row.state for row in changes(before, after)] == ["Running"]
    assert [row.state for row in changes(after, ended())] == ["Leaving"]
    assert [row.state for row in changes(ended(), left(ended(), "node-a", now=at(90)))] == ["Succeeded"]


def test_a_watch_tells_nothing_of_a_record_whose_migrations_did_not_change() -> None:
    record = migrating()
    assert changes(record, record.with_status(phase=None)) == []


def test_a_watch_tells_a_deadline_that_moved() -> None:
    assert len(changes(migrating(), migrating(deadline_time=at(9000)))) == 1
