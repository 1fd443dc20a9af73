"""A copy of a kind's objects that survives whatever the API server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from rds_operator.reflector import Access, Reflector
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound, RequestRefused

Object = dict[str, Any]


def thing(name: str, version: int, value: str = "") -> Object:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}, "value": value}


class Script:
    """An API server that answers lists and watches as it is told, then falls silent."""

    def __init__(self, *answers: list[Object] | ApiError | Callable[[], AsyncIterator[Object]]) -> None:
        self.answers = list(answers)
        self.watched_from: list[str] = []
        self.silent = asyncio.Event()

    def _next(self, *, watch: bool) -> Any:
        if not self.answers or callable(self.answers[0]) is not watch:
            return None
        return self.answers.pop(0)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[Object], str]:
        answer = self._next(watch=False)
        if answer is None:
            self.silent.set()
            await asyncio.Event().wait()
        if isinstance(answer, ApiError):
            raise answer
        return answer, str(max((int(item["metadata"]["resourceVersion"]) for item in answer), default=1))

    async def watch(
        self, path: str, resource_version: str, params: Mapping[str, str] | None = None, *, seconds: int = 300
    ) -> AsyncIterator[Object]:
        self.watched_from.append(resource_version)
        answer = self._next(watch=True)
        if answer is None:
            if self.answers and isinstance(self.answers[0], ApiError):
                raise self.answers.pop(0)  # type: ignore[misc]
            self.silent.set()
            await asyncio.Event().wait()
            return
        async for event in answer():
            yield event


def watch(*events: tuple[str, Object]) -> Callable[[], AsyncIterator[Object]]:
    async def tell() -> AsyncIterator[Object]:
        for kind, body in events:
            yield {"type": kind, "object": body}

    return tell


class Seen:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.changes: list[tuple[str | None, str | None]] = []
        self.accesses: list[Access] = []

        async def no_wait(_: float) -> None:
            await asyncio.sleep(0)

        self.reflector: Reflector[str] = Reflector(
            script,
            "/things",
            lambda body: f"{body['metadata']['name']}{body['value']}",
            lambda before, after: self.changes.append((before, after)),
            lambda: self.accesses.append(self.reflector.access),
            sleep=no_wait,
        )

    async def run(self) -> Seen:
        task = asyncio.create_task(self.reflector.run())
        await asyncio.wait_for(self.script.silent.wait(), 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return self


async def test_what_is_listed_and_then_watched_is_told_once_each() -> None:
    script = Script([thing("a", 5)], watch(("ADDED", thing("b", 6)), ("MODIFIED", thing("a", 7, "!")), ("DELETED", thing("b", 8))))
    seen = await Seen(script).run()
    assert seen.changes == [(None, "a"), (None, "b"), ("a", "a!"), ("b", None)]
    assert seen.accesses == [Access.READABLE]


async def test_a_watch_that_ends_goes_on_where_it_was_without_a_list() -> None:
    script = Script([thing("a", 5)], watch(("MODIFIED", thing("a", 7, "!")), ("BOOKMARK", thing("", 9))))
    seen = await Seen(script).run()
    assert seen.script.watched_from == ["5", "9"]


async def test_what_changed_without_a_difference_in_the_view_is_not_told() -> None:
    script = Script([thing("a", 5)], watch(("MODIFIED", thing("a", 7))))
    assert (await Seen(script).run()).changes == [(None, "a")]


async def test_a_version_that_is_too_old_means_a_new_list_and_what_vanished_meanwhile_is_told() -> None:
    script = Script([thing("a", 5), thing("b", 6)], ApiError("too old", 410), [thing("b", 6)])
    seen = await Seen(script).run()
    assert seen.changes == [(None, "a"), (None, "b"), ("a", None)]
    assert seen.accesses == [Access.READABLE]


async def test_an_object_that_took_anothers_name_is_told_after_the_others_end() -> None:
    old, new = thing("a", 5), thing("a", 9, "!")
    new["metadata"]["uid"] = "another"
    script = Script([old], ApiError("too old", 410), [new])
    assert (await Seen(script).run()).changes == [(None, "a"), ("a", None), (None, "a!")]


async def test_a_kind_that_is_not_installed_is_looked_for_until_it_is() -> None:
    script = Script(ObjectNotFound("no", 404), ObjectNotFound("no", 404), [thing("a", 5)])
    seen = await Seen(script).run()
    assert seen.accesses == [Access.NOT_INSTALLED, Access.READABLE]
    assert seen.changes == [(None, "a")]


async def test_a_kind_that_is_removed_takes_its_objects_with_it() -> None:
    script = Script([thing("a", 5)], ApiUnavailable("away"), ObjectNotFound("no", 404))
    seen = await Seen(script).run()
    assert seen.accesses == [Access.READABLE, Access.UNAVAILABLE, Access.NOT_INSTALLED]
    assert seen.changes == [(None, "a"), ("a", None)]


async def test_what_was_seen_stays_while_the_api_server_is_away() -> None:
    script = Script([thing("a", 5)], ApiUnavailable("away"))
    seen = await Seen(script).run()
    assert seen.accesses[-1] is Access.UNAVAILABLE
    assert seen.changes == [(None, "a")]


async def test_a_missing_right_is_told_as_such_and_its_grant_noticed() -> None:
    script = Script(RequestRefused("forbidden: may not list", 403), [thing("a", 5)])
    seen = await Seen(script).run()
    assert seen.accesses == [Access.FORBIDDEN, Access.READABLE]
