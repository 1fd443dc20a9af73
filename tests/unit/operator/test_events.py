"""Events: their names, what they carry, and what the API server may answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_operator.events import COMPONENT, EventReason
from rds_records.events import MAX_MESSAGE, EventRecorder, Notice, Posted, claim_subject, event_body, event_name, node_subject
from rds_records.kubernetes_api import RequestRefused
from rds_records.names import is_dns_name
from rds_records.record import ObjectReference
from tests.unit.operator.api_server import ApiServer, Client
from tests.unit.operator.volumes import NOW

CLAIM = claim_subject(ObjectReference(namespace="default", name="data", uid="uid-of-data"))


def notice(count: int = 1, message: str = "m") -> Notice:
    return Notice("volume.0123", EventReason.ATTACHMENT_CONFLICT, message, NOW, NOW, count)


@given(
    prefix=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", fullmatch=True).filter(is_dns_name),
    identity=st.lists(st.text(), min_size=1),
)
def test_an_events_name_is_a_dns_name(prefix: str, identity: list[str]) -> None:
    assert is_dns_name(event_name(prefix, *identity))


@given(first=st.lists(st.text(alphabet="ab"), max_size=4), second=st.lists(st.text(alphabet="ab"), max_size=4))
def test_different_transitions_have_different_names(first: list[str], second: list[str]) -> None:
    assert (event_name("v", *first) == event_name("v", *second)) == ("\0".join(first) == "\0".join(second))


def test_a_long_message_is_cut() -> None:
    message = event_body(notice(message="x" * 5000), CLAIM, COMPONENT, "me")["message"]
    assert len(message) == MAX_MESSAGE
    assert message.endswith("…")


async def test_what_is_there_already_is_not_posted_twice() -> None:
    server = ApiServer()
    recorder = EventRecorder(server.client(), COMPONENT, "me")
    assert await recorder.post(notice(), CLAIM) is Posted.CREATED
    assert await recorder.post(notice(), CLAIM) is Posted.EXISTED
    assert len(server.events()) == 1


async def test_a_repeat_raises_the_count() -> None:
    server = ApiServer()
    recorder = EventRecorder(server.client(), COMPONENT, "me")
    await recorder.repeat(notice(1), CLAIM)
    assert await recorder.repeat(notice(7), CLAIM) is Posted.EXISTED
    assert [event["count"] for event in server.events()] == [7]


async def test_a_terminating_namespace_refuses_for_good() -> None:
    server = ApiServer()
    server.refuse_events_in.add("default")
    assert await EventRecorder(server.client(), COMPONENT, "me").post(notice(), CLAIM) is Posted.REFUSED


async def test_a_role_that_is_not_known_yet_is_trouble_and_no_refusal() -> None:
    class Starting(Client):
        async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            raise RequestRefused(f"POST {path}: 403 events is forbidden: User cannot create resource", 403, "Forbidden")

    with pytest.raises(RequestRefused):
        await EventRecorder(Starting(ApiServer()), COMPONENT, "me").post(notice(), CLAIM)


async def test_a_token_that_just_expired_is_trouble_and_no_refusal() -> None:
    class Expired(Client):
        async def create(self, path: str, body: object) -> dict[str, object]:
            raise RequestRefused("POST: 401", 401, "Unauthorized")

    with pytest.raises(RequestRefused):
        await EventRecorder(Expired(ApiServer()), COMPONENT, "me").post(notice(), CLAIM)


async def test_an_event_on_an_object_without_namespace_lives_in_default() -> None:
    server = ApiServer()
    await EventRecorder(server.client(), COMPONENT, "me").post(notice(), node_subject("worker-1", "uid-1"))
    (event,) = server.events()
    assert event["metadata"]["namespace"] == "default"
    assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "worker-1", "uid": "uid-1"}
