"""Reads what a command needs of the API server, at once; what cannot be read is noted and not guessed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError

from rds_kubectl.volume_page import Around, event_time
from rds_kubectl.world import ATTACHMENTS, LEASE, NODES, RECORDS, VOLUMES, Trouble, Volume, World
from rds_records.clock import ServerClock
from rds_records.kubernetes_api import ApiError, ObjectNotFound, RequestRefused
from rds_records.kubevirt_objects import GROUP_VERSION, VMI_KIND, pod_view
from rds_records.names import DRIVER_NAME
from rds_records.node_proof import vm_of
from rds_records.record import ObjectReference, Record
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

    async def items(
        self, what: str, path: str, params: Mapping[str, str] | None = None, *, optional: bool = False
    ) -> tuple[dict[str, Any], ...] | None:
        """Return all objects of a collection; None, with a Trouble, where it cannot be had.

        A collection that is not served is an answer, no objects, only where it is ``optional``: a cluster without KubeVirt. One of
        Kubernetes' own is always there; who says otherwise is no API server.
        """
        try:
            return tuple((await self.api.list(path, params))[0])
        except ApiError as error:
            if optional and isinstance(error, ObjectNotFound):
                return ()
            self.troubles.append(Trouble(what, str(error)))
            return None

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

    async def around(self, volume: Volume) -> Around:
        """Return what stands around one volume: claim, pods, VM, its migrations, Events."""
        before = len(self.troubles)
        claim, vmi = volume.claim, vm_of(volume.record)
        pods, body, instance, migrations, events = await asyncio.gather(
            self._pods_of(claim),
            self._object("persistentvolumeclaim", "/api/v1", "persistentvolumeclaims", claim),
            self._object("virtualmachineinstance", GROUP_VERSION, "virtualmachineinstances", vmi),
            self._migrations_of(vmi),
            self._events_of(("PersistentVolumeClaim", claim), (VMI_KIND, vmi)),
        )
        return Around(body, pods, instance, migrations, events, tuple(self.troubles[before:]))

    async def _object(self, what: str, group: str, plural: str, one: ObjectReference | None) -> dict[str, Any] | None:
        if one is None:
            return None
        return await self.attempt(what, self.api.get(f"{group}/namespaces/{one.namespace}/{plural}/{one.name}"))

    async def _pods_of(self, claim: ObjectReference | None) -> tuple[dict[str, Any], ...]:
        if claim is None:
            return ()
        found = await self.items("pods", f"/api/v1/namespaces/{claim.namespace}/pods") or ()
        return tuple(body for body in found if claim.name in pod_view(body).claims)

    async def _migrations_of(self, vmi: ObjectReference | None) -> tuple[dict[str, Any], ...]:
        if vmi is None:
            return ()
        path = f"{GROUP_VERSION}/namespaces/{vmi.namespace}/virtualmachineinstancemigrations"
        found = await self.items("virtualmachineinstancemigrations", path, optional=True) or ()
        ours = [body for body in found if (body.get("spec") or {}).get("vmiName") == vmi.name]
        return tuple(sorted(ours, key=lambda body: str(body["metadata"]["creationTimestamp"])))

    async def _events_of(self, *about: tuple[str, ObjectReference | None]) -> tuple[dict[str, Any], ...]:
        found: list[dict[str, Any]] = []
        for kind, one in about:
            if one is None:
                continue
            selector = {"fieldSelector": f"involvedObject.kind={kind},involvedObject.name={one.name}"}
            found += await self.items("events", f"/api/v1/namespaces/{one.namespace}/events", selector) or ()
        return tuple(sorted(found, key=lambda event: event_time(event) or datetime.min.replace(tzinfo=UTC)))


def lease_path(namespace: str, name: str = "rds-operator") -> str:
    """Return the path of the operator's Lease."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"


def no_records(error: ApiError) -> NoRecords:
    """Return what to say where records cannot be listed."""
    if isinstance(error, ObjectNotFound):
        return NoRecords(
            f"the cluster does not know {RECORDS}: rds-csi is not installed here, or this is another cluster (see --context); "
            "docs/install.md says how to install it"
        )
    if isinstance(error, RequestRefused) and error.status in {401, 403}:
        return NoRecords(f"{error}; the ClusterRole rds-csi-viewer has what this command needs")
    return NoRecords(str(error))
