"""Reads what a command needs of the API server, at once; what cannot be read is noted and not guessed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError

from rds_kubectl.world import ATTACHMENTS, LEASE, NODES, RECORDS, VOLUMES, Trouble, World
from rds_records.clock import ServerClock
from rds_records.kubernetes_api import ApiError, ObjectNotFound, RequestRefused
from rds_records.names import DRIVER_NAME
from rds_records.record import Record
from rds_records.store import COLLECTION

VOLUMES_PATH: Final = "/api/v1/persistentvolumes"
ATTACHMENTS_PATH: Final = "/apis/storage.k8s.io/v1/volumeattachments"
NODES_PATH: Final = "/api/v1/nodes"

T = TypeVar("T")


class ReadApi(Protocol):
    """What is needed of the API server (``KubernetesApi`` has it)."""

    clock: ServerClock

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an object."""
        ...

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return all items of a collection and its version."""
        ...


class NoRecords(Exception):
    """The records cannot be read, so there is nothing to show; the message says what to do."""


class Reader:
    """Reads for one command; ``troubles`` has what could not be read."""

    def __init__(self, api: ReadApi, *, driver: str = DRIVER_NAME, installation: str = "rds-csi") -> None:
        self.api = api
        self.driver = driver
        self.installation = installation
        self.troubles: list[Trouble] = []

    async def attempt(self, what: str, reading: Awaitable[T]) -> T | None:
        """Return what was read; None, with a Trouble, where the API server does not give it. 404 is an answer: None without one."""
        try:
            return await reading
        except ObjectNotFound:
            return None
        except ApiError as error:
            self.troubles.append(Trouble(what, str(error)))
            return None

    async def items(self, what: str, path: str, params: Mapping[str, str] | None = None) -> tuple[dict[str, Any], ...] | None:
        """Return all objects of a collection; None as of ``attempt``."""
        read = await self.attempt(what, self.api.list(path, params))
        return None if read is None else tuple(read[0])

    async def records(self) -> tuple[Record, ...]:
        """Return all records that can be understood; raises NoRecords where they cannot be listed."""
        try:
            items, _ = await self.api.list(COLLECTION)
        except ApiError as error:
            raise no_records(error) from error
        return tuple(record for item in items if (record := self.understood(item)))

    def understood(self, body: Mapping[str, Any]) -> Record | None:
        """Return the record; None, with a Trouble, where another version wrote what this one cannot read."""
        try:
            return Record.from_json(body)
        except ValidationError as error:
            name, first = body["metadata"]["name"], error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            self.troubles.append(Trouble(f"record {name}", f"this plugin does not understand {place}: {first['msg']}"))
            return None

    async def world(self) -> World:
        """Return the cluster as it is now; raises NoRecords.

        VolumeAttachments come first: whoever one says holds a volume, the record has known it before.
        """
        attachments = await self.items(ATTACHMENTS, ATTACHMENTS_PATH)
        records, volumes, nodes, lease = await asyncio.gather(
            self.records(),
            self.items(VOLUMES, VOLUMES_PATH),
            self.items(NODES, NODES_PATH),
            self.attempt(LEASE, self.api.get(lease_path(self.installation))),
        )
        return World(
            now=self.api.clock.now(),
            records=records,
            volumes=volumes,
            attachments=attachments,
            nodes=None if nodes is None else {node["metadata"]["name"]: node for node in nodes},
            lease=lease,
            troubles=tuple(self.troubles),
            driver=self.driver,
            installation=self.installation,
        )


def lease_path(namespace: str, name: str = "rds-operator") -> str:
    """Return the path of the operator's Lease."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"


def no_records(error: ApiError) -> NoRecords:
    """Return what to say where records cannot be listed."""
    if isinstance(error, ObjectNotFound):
        return NoRecords(
            f"the cluster does not know {RECORDS}: rds-csi is not installed here, or this is another cluster (see --context); "
            "`kubectl apply -k manifests/base` installs it"
        )
    if isinstance(error, RequestRefused) and error.status in {401, 403}:
        return NoRecords(f"{error}; the ClusterRole rds-csi-viewer has what this command needs")
    return NoRecords(str(error))
