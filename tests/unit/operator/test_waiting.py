"""Nodes that were refused and for which a slot became free."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from rds_operator.memory import Change
from rds_operator.waiting import RETRIES, SLOT_FREED_ANNOTATION, WaitingNodes, waiting_nodes
from rds_records.clock import ServerClock
from rds_records.decisions import Code, Reason, Refused
from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound, RequestRefused
from rds_records.names import volume_attachment_name
from rds_records.record import Expansion, Record
from rds_records.transitions import note_refusal
from tests.unit.operator.volumes import HANDLE, NOW, attached, detached, migrating, record

pytestmark = pytest.mark.requirement("R33")


def refused(of: Record, node: str, *, at: datetime = NOW) -> Record:
    no = Refused(Code.FAILED_PRECONDITION, Reason.NO_SLOT, "two nodes hold the volume")
    noted = note_refusal(of, node, no, now=at)
    assert noted
    return noted


def test_a_node_that_left_makes_room_for_the_node_that_was_refused() -> None:
    before = refused(migrating(), "node-c")
    assert waiting_nodes(before, detached(before, "node-a"), now=NOW) == ("node-c",)


def test_nothing_is_free_while_both_stay() -> None:
    before = migrating()
    assert waiting_nodes(before, refused(before, "node-c"), now=NOW) == ()


def test_a_record_seen_for_the_first_time_wakes_whoever_was_refused_lately() -> None:
    after = detached(refused(migrating(), "node-c"), "node-a")
    assert waiting_nodes(None, after, now=NOW + timedelta(minutes=1)) == ("node-c",)


def test_a_record_seen_for_the_first_time_with_two_nodes_wakes_nobody() -> None:
    assert waiting_nodes(None, refused(migrating(), "node-c"), now=NOW) == ()


def test_whoever_was_refused_long_ago_is_not_woken() -> None:
    before = refused(migrating(), "node-c")
    assert waiting_nodes(before, detached(before, "node-a"), now=NOW + timedelta(minutes=11)) == ()


def test_a_node_that_was_admitted_meanwhile_waits_no_more() -> None:
    before = refused(migrating(), "node-c")
    after = attached(detached(before, "node-a"), "node-c", at=NOW + timedelta(seconds=50))
    assert waiting_nodes(before, after, now=NOW) == ()


def test_a_volume_that_has_grown_makes_room_for_the_node_that_waited_for_that() -> None:
    grown = refused(attached(record(), "node-a"), "node-b")
    mark = Expansion(capacity_bytes=2 << 30, until_time=NOW)
    assert waiting_nodes(grown.with_status(expansion=mark), grown, now=NOW) == ("node-b",)
    assert waiting_nodes(grown, grown.with_status(expansion=mark), now=NOW) == ()


def test_every_node_that_waits_is_woken() -> None:
    before = refused(refused(attached(record(), "node-a"), "node-c"), "node-d")
    assert waiting_nodes(before, detached(before, "node-a"), now=NOW) == ("node-c", "node-d")


class Patches:
    """An API server that takes patches, after so many failures."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.taken: list[tuple[str, Mapping[str, Any]]] = []
        self.tried = 0

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.tried += 1
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append((path, body))
        return {}


async def wake(api: Patches) -> None:
    async def no_wait(_: float) -> None:
        await asyncio.sleep(0)

    clock = ServerClock(monotonic=lambda: 0.0, wall=NOW.timestamp)
    waiting = WaitingNodes(api, clock, sleep=no_wait)
    before = refused(migrating(), "node-c")
    waiting.see(Change(before, detached(before, "node-a")))
    await asyncio.gather(*waiting._tasks)


async def test_the_volume_attachment_of_the_waiting_node_is_touched() -> None:
    api = Patches()
    await wake(api)
    ((path, body),) = api.taken
    assert path.endswith(f"/volumeattachments/{volume_attachment_name(HANDLE, 'node-c')}")
    assert list(body["metadata"]["annotations"]) == [SLOT_FREED_ANNOTATION]


async def test_an_api_server_in_trouble_is_asked_again() -> None:
    api = Patches(ApiUnavailable("away"), ApiUnavailable("away"))
    await wake(api)
    assert len(api.taken) == 1


async def test_a_wake_up_is_given_up_in_the_end() -> None:
    api = Patches(*(ApiUnavailable("away") for _ in range(99)))
    await wake(api)
    assert (api.tried, api.taken) == (RETRIES, [])


@pytest.mark.parametrize("error", [ObjectNotFound("gone", 404), RequestRefused("no", 403)])
async def test_who_waits_no_more_or_must_not_be_touched_is_left_alone(error: Exception) -> None:
    api = Patches(error)
    await wake(api)
    assert (api.tried, api.taken) == (1, [])


async def test_a_record_that_is_gone_wakes_nobody() -> None:
    api = Patches()
    waiting = WaitingNodes(api, ServerClock(monotonic=lambda: 0.0, wall=NOW.timestamp))
    waiting.see(Change(refused(migrating(), "node-c"), None))
    assert waiting._tasks == set()
