"""An API server in memory: versions, the status subresource, preconditions, finalizers, and faults between request and answer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound, RequestRefused, WriteConflict
from rds_records.store import COLLECTION

Object = dict[str, Any]


class Fault(Enum):
    NONE = "none"
    LOST_REQUEST = "lost request"
    LOST_ANSWER = "lost answer"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"


class ApiServer:
    """What several clients share; ``faults`` are used up, one per write."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.faults: list[Fault] = []
        self.refuse_events_in: set[str] = set()
        self.writes: list[tuple[str, str]] = []
        self.watchers: list[Callable[[str, Object], None]] = []
        self._version = 100

    def client(self) -> Client:
        return Client(self)

    def put(self, path: str, body: Mapping[str, Any]) -> Object:
        stored = copy.deepcopy(dict(body))
        metadata = stored["metadata"]
        before = self.objects.get(path)
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        metadata["uid"] = before["metadata"]["uid"] if before else metadata.get("uid") or f"uid-{self._version}"
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            del self.objects[path]
            self._tell("DELETED", path, stored)
        else:
            self.objects[path] = stored
            self._tell("MODIFIED" if before else "ADDED", path, stored)
        return copy.deepcopy(stored)

    def _tell(self, kind: str, path: str, body: Object) -> None:
        if path.startswith(COLLECTION):
            for watcher in self.watchers:
                asyncio.get_running_loop().call_soon(watcher, kind, copy.deepcopy(body))

    def get(self, path: str) -> Object:
        if path not in self.objects:
            raise ObjectNotFound(f"GET {path}: 404", 404)
        return copy.deepcopy(self.objects[path])

    def under(self, collection: str) -> list[Object]:
        return [copy.deepcopy(body) for path, body in self.objects.items() if path.rpartition("/")[0] == collection]

    def events(self, namespace: str = "default") -> list[Object]:
        return self.under(f"/api/v1/namespaces/{namespace}/events")


class Client:
    """One process's connection: after a crash it never answers again."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.crashed = asyncio.Event()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Object:
        await self._turn()
        return self.server.get(path)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[Object], str]:
        await self._turn()
        return self.server.under(path), "1"

    async def create(self, path: str, body: Mapping[str, Any]) -> Object:
        full = f"{path}/{body['metadata']['name']}"

        def apply() -> Object:
            namespace = body["metadata"].get("namespace")
            if namespace in self.server.refuse_events_in:
                raise RequestRefused(f"POST {path}: 403 namespace {namespace} is being terminated", 403, "Forbidden")
            if full in self.server.objects:
                raise WriteConflict(f"POST {full}: 409 exists", 409, "AlreadyExists")
            return self.server.put(full, {**body, "metadata": {**body["metadata"]}})

        return await self._write("POST", full, apply)

    async def replace(self, path: str, body: Mapping[str, Any]) -> Object:
        def apply() -> Object:
            target = path.removesuffix("/status")
            known = self.server.get(target)
            if known["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
                raise WriteConflict(f"PUT {path}: 409 changed", 409, "Conflict")
            if path.endswith("/status"):
                return self.server.put(target, {**known, "status": body["status"]})
            return self.server.put(target, {**body, "status": known["status"]} if "status" in known else body)

        return await self._write("PUT", path, apply)

    async def patch(self, path: str, body: Mapping[str, Any]) -> Object:
        return await self._write("PATCH", path, lambda: self.server.put(path, {**self.server.get(path), **body}))

    async def delete(self, path: str, *, resource_version: str | None = None, uid: str | None = None) -> Object:
        raise AssertionError("the operator deletes nothing")

    async def _write(self, verb: str, path: str, apply: Callable[[], Object]) -> Object:
        await self._turn()
        fault = self.server.faults.pop(0) if self.server.faults else Fault.NONE
        if fault is Fault.CRASH_BEFORE:
            await self._crash()
        if fault is Fault.LOST_REQUEST:
            raise ApiUnavailable(f"{verb} {path}: lost")
        self.server.writes.append((verb, path))
        answer = apply()
        if fault is Fault.CRASH_AFTER:
            await self._crash()
        if fault is Fault.LOST_ANSWER:
            raise ApiUnavailable(f"{verb} {path}: no answer")
        return answer

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.crashed.is_set():
            await asyncio.Event().wait()

    async def _crash(self) -> None:
        self.crashed.set()
        await asyncio.Event().wait()


def with_faults(server: ApiServer, faults: Iterable[Fault]) -> ApiServer:
    server.faults = list(faults)
    return server
