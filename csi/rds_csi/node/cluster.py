"""What the node reads of the cluster, with ``get`` alone: its own Node, PersistentVolumes and records by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rds_csi.errors import FailedPrecondition
from rds_csi.node.hold_off import RESET_ANNOTATION, Annotation, VolumeHoldOff
from rds_records.events import Subject, claim_subject, node_subject
from rds_records.imports import volumes_of
from rds_records.kubernetes_api import ApiError, ObjectNotFound
from rds_records.names import is_dns_name
from rds_records.record import ObjectReference, Record

_log = logging.getLogger(__name__)

FIRST_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 30.0
"""Seconds between tries to read this node's Node."""

ANNOTATION_SECONDS: Final = 5.0
"""Between two looks at the PersistentVolumes of volumes that are held off."""

_VOLUMES: Final = "/api/v1/persistentvolumes"

Object = Mapping[str, Any]


class ReadApi(Protocol):
    """What is needed of the API server (``KubernetesApi`` has it)."""

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return an object."""
        ...

    async def get_metadata(self, path: str) -> dict[str, Any]:
        """Return an object's metadata."""
        ...


class ReadRecords(Protocol):
    """What is needed of the records (``RecordStore`` has it)."""

    async def read(self, handle: str) -> Record | None:
        """Return the volume's record; None only where the API server says that there is none."""
        ...


@dataclass(frozen=True, slots=True)
class PersistentVolumes:
    """Finds the PersistentVolume of a volume: under the volume's own name, as csi-provisioner calls it, or the record's."""

    api: ReadApi
    records: ReadRecords
    driver: str

    async def of(self, handle: str) -> Object | None:
        """Return it, or None where there is none under either name; raises ApiError."""
        volume = await self._read(handle, handle)
        if volume is None and (record := await self.records.read(handle)) and record.spec.persistent_volume_name:
            volume = await self._read(record.spec.persistent_volume_name, handle)
        return volume

    async def _read(self, name: str, handle: str) -> Object | None:
        if not is_dns_name(name):
            return None
        try:
            volume = await self.api.get(f"{_VOLUMES}/{name}")
        except ObjectNotFound:
            return None
        return volume if volumes_of(handle, [volume], self.driver) else None


class NodeCheck:
    """Whether the node id is the name of a Node: not known, so, or positively not so."""

    def __init__(self, api: ReadApi, node: str) -> None:
        self._api = api
        self._node = node
        self.uid: str | None = None
        """Of the Node, once it was seen."""

        self.trouble = "the Node was not looked for yet"
        """Why it is not known to exist; empty where it is."""

        self.absent = False
        """Whether the API server said that there is no such Node, the last time that it was asked."""

    def refuse_if_absent(self) -> None:
        """Raise FailedPrecondition where there is no such Node; while nobody knows, the id is taken for right."""
        if self.absent:
            raise FailedPrecondition(self.trouble)

    async def look(self) -> bool:
        """Ask once; returns whether the Node is there."""
        try:
            self.uid = str((await self._api.get_metadata(f"/api/v1/nodes/{self._node}"))["uid"])
        except ObjectNotFound:
            self.absent = True
            self._say(
                f"there is no Node {self._node}: --node-id must be the name of this machine's Node (spec.nodeName of the pod), "
                "or volumes would be attached to nobody"
            )
            return False
        except ApiError as error:
            self.absent = False
            self._say(f"the Node {self._node} cannot be read: {error}")
            return False
        self.absent, self.trouble = False, ""
        return True

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Ask again until the Node is there."""
        backoff = FIRST_BACKOFF
        while self.trouble:
            await sleep(backoff)
            backoff = min(MAX_BACKOFF, backoff * 2)
            await self.look()

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            _log.log(logging.ERROR if self.absent else logging.WARNING, "node not found yet", extra={"reason": trouble})
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class EventSubjects:
    """Finds the object that an Event is about: the claim of a volume, or this node where it has none."""

    volumes: PersistentVolumes
    node: str
    node_uid: Callable[[], str | None]

    async def of(self, volume_id: str) -> Subject:
        """Return it; raises ApiError."""
        volume = await self.volumes.of(volume_id) if volume_id else None
        claim = volume["spec"].get("claimRef") if volume else None
        if not claim:
            return node_subject(self.node, self.node_uid())
        return claim_subject(ObjectReference(namespace=claim["namespace"], name=claim["name"], uid=claim.get("uid")))


async def watch_annotations(
    hold_off: VolumeHoldOff, volumes: PersistentVolumes, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Tell the hold-off what the annotations of the volumes that it holds say, until cancelled."""
    while True:
        for volume_id in hold_off.held():
            try:
                volume = await volumes.of(volume_id)
            except ApiError as error:
                _log.info("reset annotation not read", extra={"volume": volume_id, "error": str(error)})
                break
            except Exception:  # noqa: BLE001 the others must be read
                _log.exception("reset annotation cannot be read", extra={"volume": volume_id})
                continue
            if volume:
                metadata = volume["metadata"]
                value = (metadata.get("annotations") or {}).get(RESET_ANNOTATION)
                hold_off.annotation_seen(volume_id, Annotation(metadata["name"], value))
        await sleep(ANNOTATION_SECONDS)
