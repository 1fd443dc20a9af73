"""Reads and writes records; every change is a compare-and-swap against the version that was read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rds_records.decisions import Decided, Refused
from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound, WriteConflict
from rds_records.names import API_GROUP, API_VERSION, FINALIZER, PLURAL, record_name
from rds_records.record import Record, Spec

COLLECTION: Final = f"/apis/{API_GROUP}/{API_VERSION}/{PLURAL}"
ATTEMPTS: Final = 8
"""Reads and decisions before a change gives up; each lost round means that another writer won one."""


class Contended(Exception):
    """A record changed under every attempt to write it; nothing was written."""


class Api(Protocol):
    """What the store needs of the API server (``KubernetesApi`` has it)."""

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an object."""
        ...

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return all items of a collection and its version."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object at the version that was read."""
        ...

    async def delete(self, path: str, *, resource_version: str | None = None, uid: str | None = None) -> dict[str, Any]:
        """Delete an object if the preconditions hold."""
        ...


Decision = Callable[[Record], Decided | Refused]
"""A transition with everything but the record filled in; called again on a fresh read after a lost write."""


@dataclass(frozen=True, slots=True)
class RecordStore:
    """The records of one API server."""

    api: Api

    async def read(self, handle: str) -> Record | None:
        """Return the volume's record; None only where the API server says that there is none."""
        try:
            return Record.from_json(await self.api.get(_path(record_name(handle))))
        except ObjectNotFound:
            return None

    async def list(self) -> list[Record]:
        """Return all records, at one consistent version."""
        items, _ = await self.api.list(COLLECTION)
        return [Record.from_json(item) for item in items]

    async def create(self, spec: Spec) -> Record:
        """Create the record of a volume, protected by our finalizer; raises WriteConflict where it exists.

        Its status is empty: the API server drops what is sent along (it is a subresource).
        """
        body = Record.new(spec, finalizers=(FINALIZER,)).to_json()
        body["status"] = {}
        return Record.from_json(await self.api.create(COLLECTION, body))

    async def write_status(self, record: Record) -> Record:
        """Write the status over the version that the record was read at; raises WriteConflict where that is not the newest."""
        body = record.to_json()
        # Long, and of no use here; what is left out of an update stays as it is.
        body["metadata"].pop("managedFields", None)
        return Record.from_json(await self.api.replace(f"{_path(record.metadata.name)}/status", body))

    async def write(self, record: Record) -> Record:
        """Write metadata and spec over the version that was read; raises WriteConflict where that is not the newest."""
        return Record.from_json(await self.api.replace(_path(record.metadata.name), record.to_json()))

    async def change(self, record: Record, decide: Decision) -> Decided | Refused:
        """Decide on the record and write the status; after a lost or doubtful write read again and decide again.

        Raises ObjectNotFound where the record vanished, ApiUnavailable where the API server cannot be reached, Contended where
        other writers won every round.
        """
        return await self._swap(record, decide, self.write_status)

    async def change_spec(self, record: Record, decide: Callable[[Record], Record]) -> Record:
        """Write the spec that ``decide`` makes of the record, if it is another one; again, and raises, as ``change``."""

        def decision(newest: Record) -> Decided:
            changed = decide(newest)
            return Decided(changed, changed=changed.spec != newest.spec)

        decided = await self._swap(record, decision, self.write)
        return record if isinstance(decided, Refused) else decided.record

    async def _swap(self, record: Record, decide: Decision, write: Callable[[Record], Awaitable[Record]]) -> Decided | Refused:
        doubt: ApiUnavailable | None = None
        for _ in range(ATTEMPTS):
            decision = decide(record)
            if isinstance(decision, Refused) or not decision.changed:
                return decision
            try:
                return Decided(await write(decision.record), changed=True)
            except WriteConflict:
                pass
            except ApiUnavailable as error:
                if doubt or error.status is not None:
                    raise
                doubt = error
            # The write may have been applied all the same: an answer can be lost, and HTTP clients send a PUT again after a dropped
            # connection, so that a conflict may be with our own first copy. The fresh read tells: a decision finds there what it
            # wanted (its own attachment, or none) and changes nothing, or it starts from whatever another writer made of it.
            record = await self.reread(record)
        raise Contended(f"record {record.metadata.name} changed under {ATTEMPTS} attempts to write it; try again")

    async def reread(self, record: Record) -> Record:
        """Return the newest version; raises ObjectNotFound where the object is gone or another took its name."""
        newest = Record.from_json(await self.api.get(_path(record.metadata.name)))
        if record.metadata.uid and newest.metadata.uid != record.metadata.uid:
            raise ObjectNotFound(f"record {record.metadata.name} was deleted and made anew", 404)
        return newest

    async def remove(self, record: Record) -> None:
        """Delete a record that nobody needs: first our finalizer, by compare-and-swap, then the object.

        Raises WriteConflict where it changed since it was read, for example because a node was attached. A crash between the two
        writes leaves a record without finalizer that still says ``deleting``: the next DeleteVolume finds it and goes on from here.
        """
        finalizers = tuple(name for name in record.metadata.finalizers if name != FINALIZER)
        if len(finalizers) != len(record.metadata.finalizers):
            record = await self.release(record)
        await self.delete(record)

    async def delete(self, record: Record) -> None:
        """Ask for the deletion of the object, if it is the one that was read; finalizers hold it. One that is gone is fine."""
        if record.terminating:
            return
        try:
            await self.api.delete(_path(record.metadata.name), uid=record.metadata.uid)
        except ObjectNotFound:
            return

    async def release(self, record: Record) -> Record:
        """Take our finalizer off, by compare-and-swap; a terminating record vanishes with it."""
        finalizers = tuple(name for name in record.metadata.finalizers if name != FINALIZER)
        return await self.write(record.replace(metadata=record.metadata.replace(finalizers=finalizers)))


def _path(name: str) -> str:
    return f"{COLLECTION}/{name}"
