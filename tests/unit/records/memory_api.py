"""An API server in memory for one kind: versions, uids, generations, the status subresource, finalizers; and mishaps on order."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from typing import Any

from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound, WriteConflict
from rds_records.record import Record
from tests.unit.records.crd import objections

Body = dict[str, Any]


class Mishap(Enum):
    """What happens to a request on its way."""

    NONE = auto()
    DROPPED = auto()
    """The connection breaks before the API server has seen the request."""
    ANSWER_LOST = auto()
    """The API server does as asked, and the connection breaks before its answer."""
    SENT_TWICE = auto()
    """The client sends the request again after a broken connection: the caller sees the answer to the second."""
    FAILED = auto()
    """The API server answers 503."""


Gate = Callable[[str, str], Awaitable[Mishap]]


async def _open(_method: str, _path: str) -> Mishap:
    return Mishap.NONE


class MemoryApi:
    """Has what ``RecordStore`` needs. Each request asks ``gate`` for its fate; ``applied`` sees every write (before, after)."""

    def __init__(self, gate: Gate = _open) -> None:
        self.gate = gate
        self.applied: Callable[[Body | None, Body | None], None] = lambda _before, _after: None
        self.requests: list[str] = []
        self._objects: dict[str, Body] = {}
        self._version = 0
        self._uids = 0

    def put(self, record: Record) -> Record:
        """Place a record as it is, status and all."""
        body = record.to_json()
        self._version += 1
        self._uids += 1
        body["metadata"] |= {"resourceVersion": str(self._version), "uid": f"uid-{self._uids}"}
        self._objects[record.metadata.name] = body
        return Record.from_json(body)

    def peek(self, name: str) -> Record | None:
        """Return the object as it is now, without a request."""
        body = self._objects.get(name)
        return None if body is None else Record.from_json(copy.deepcopy(body))

    def vanish(self, name: str) -> None:
        """Remove an object at once."""
        del self._objects[name]

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Body:
        return await self._fated("GET", path, lambda: copy.deepcopy(self._existing(_name(path))))

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[Body], str]:
        found = await self._fated("LIST", path, lambda: {"items": copy.deepcopy(list(self._objects.values()))})
        return found["items"], str(self._version)

    async def create(self, path: str, body: Mapping[str, Any]) -> Body:
        return await self._fated("POST", path, lambda: self._create(copy.deepcopy(dict(body))))

    async def replace(self, path: str, body: Mapping[str, Any]) -> Body:
        return await self._fated("PUT", path, lambda: self._replace(path, copy.deepcopy(dict(body))))

    async def delete(self, path: str, *, resource_version: str | None = None, uid: str | None = None) -> Body:
        return await self._fated("DELETE", path, lambda: self._delete(_name(path), resource_version, uid))

    async def _fated(self, method: str, path: str, act: Callable[[], Body]) -> Body:
        self.requests.append(method)
        fate = await self.gate(method, path)
        if fate is Mishap.DROPPED:
            raise ApiUnavailable("the connection was cut before the request")
        if fate is Mishap.FAILED:
            raise ApiUnavailable("503 service unavailable", 503)
        answer = act()
        if fate is Mishap.ANSWER_LOST:
            raise ApiUnavailable("the connection was cut before the answer")
        return act() if fate is Mishap.SENT_TWICE else answer

    def _existing(self, name: str) -> Body:
        if name not in self._objects:
            raise ObjectNotFound(f"{name} not found", 404)
        return self._objects[name]

    def _create(self, body: Body) -> Body:
        name = body["metadata"]["name"]
        if name in self._objects:
            raise WriteConflict(f"{name} already exists", 409)
        self._uids += 1
        body["metadata"] |= {"uid": f"uid-{self._uids}", "generation": 1, "creationTimestamp": "2026-11-21T12:00:00Z"}
        body.pop("status", None)
        return self._store(name, None, body)

    def _replace(self, path: str, body: Body) -> Body:
        name = _name(path)
        before = self._existing(name)
        known, given = before["metadata"], body["metadata"]
        if given.get("resourceVersion") != known["resourceVersion"] or given.get("uid", known["uid"]) != known["uid"]:
            raise WriteConflict(f"{name}: the object has been modified", 409)
        after = copy.deepcopy(before)
        if path.endswith("/status"):
            after["status"] = body["status"]
        else:
            after["metadata"]["finalizers"] = body["metadata"].get("finalizers", [])
            after["spec"] = body["spec"]
            if after["spec"] != before["spec"]:
                after["metadata"]["generation"] += 1
        return copy.deepcopy(before) if after == before else self._store(name, before, after)

    def _store(self, name: str, before: Body | None, after: Body) -> Body:
        wrong = objections(Record.from_json(after))
        assert not wrong, wrong
        self._version += 1
        after["metadata"]["resourceVersion"] = str(self._version)
        if "deletionTimestamp" in after["metadata"] and not after["metadata"].get("finalizers"):
            del self._objects[name]
            self.applied(before, None)
        else:
            self._objects[name] = after
            self.applied(before, after)
        return copy.deepcopy(after)

    def _delete(self, name: str, resource_version: str | None, uid: str | None) -> Body:
        before = self._existing(name)
        known = before["metadata"]
        if uid not in {None, known["uid"]} or resource_version not in {None, known["resourceVersion"]}:
            raise WriteConflict(f"{name}: the precondition does not hold", 409)
        after = copy.deepcopy(before)
        after["metadata"]["deletionTimestamp"] = "2026-11-21T13:00:00Z"
        return self._store(name, before, after)


def _name(path: str) -> str:
    return path.removesuffix("/status").rpartition("/")[2]
