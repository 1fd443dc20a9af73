"""What was read of the cluster, as values: every judgement of this package is made of these. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rds_records.imports import claim_of
from rds_records.names import DRIVER_NAME
from rds_records.record import Attachment, ObjectReference, Record

Object = Mapping[str, Any]

RECORDS: Final = "volumeattachmentrecords"
VOLUMES: Final = "persistentvolumes"
ATTACHMENTS: Final = "volumeattachments"
NODES: Final = "nodes"
LEASE: Final = "lease"

RELEASED_LEASE_SECONDS: Final = 15
"""What a Lease that names no duration counts for (client-go's default)."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that could not be read: so nothing is said of it, least of all that it is not there."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class World:
    """The cluster at one moment of the API server's time; a kind that could not be read is None and has its Trouble."""

    now: datetime
    records: tuple[Record, ...] = ()
    volumes: tuple[Object, ...] | None = ()
    attachments: tuple[Object, ...] | None = ()
    nodes: Mapping[str, Object] | None = None
    lease: Object | None = None
    """The operator's Lease; None where there is none, or where it could not be read."""

    troubles: tuple[Trouble, ...] = ()
    driver: str = DRIVER_NAME
    installation: str = "rds-csi"
    """The namespace in which driver and operator run."""

    def read(self, what: str) -> bool:
        """Tell whether that kind could be read."""
        return all(trouble.what != what for trouble in self.troubles)

    @property
    def active(self) -> bool | None:
        """Whether an operator is active, by its Lease; None where that could not be read."""
        if not self.read(LEASE):
            return None
        known = lease_age(self.lease, self.now) if self.lease else None
        return known is not None and known[0] <= known[1]


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of the driver: its record, its PersistentVolume, and the VolumeAttachments that name it."""

    handle: str
    record: Record | None = None
    volume: Object | None = None
    attachments: tuple[Object, ...] = ()
    all_names: bool = True
    """Whether every PersistentVolume is known under which a VolumeAttachment may name it."""

    @property
    def claim(self) -> ObjectReference | None:
        """The claim: what the PersistentVolume says now, else what the record last knew."""
        named = claim_of(self.volume) if self.volume is not None else None
        return named or (self.record.status.claim_ref if self.record else None)

    @property
    def title(self) -> str:
        """What people know it by: ``namespace/claim``, else the handle."""
        return f"{self.claim.namespace}/{self.claim.name}" if self.claim else self.handle

    @property
    def held(self) -> tuple[Attachment, ...]:
        """The nodes that the record says hold it."""
        return self.record.status.attachments if self.record else ()

    def attachment_on(self, node: str) -> Object | None:
        """Return the VolumeAttachment of that node, or None."""
        return next((one for one in self.attachments if one["spec"]["nodeName"] == node), None)


def handle_of(volume: Object, driver: str) -> str | None:
    """Return the handle of a PersistentVolume of that driver; None for any other."""
    csi = volume.get("spec", {}).get("csi") or {}
    return csi.get("volumeHandle") if csi.get("driver") == driver else None


def volumes_of_driver(world: World) -> list[Volume]:
    """Return every volume that a record or a PersistentVolume names, by namespace, claim and handle."""
    records = {record.handle: record for record in world.records}
    named: dict[str, Object] = {}
    names: dict[str, set[str]] = {}
    for body in world.volumes or ():
        handle = handle_of(body, world.driver)
        if handle:
            names.setdefault(handle, set()).add(body["metadata"]["name"])
        if handle and (handle not in named or body["metadata"]["name"] == _expected(records.get(handle))):
            named[handle] = body
    by_volume: dict[str, list[Object]] = {}
    for attachment in attachments_of_driver(world.attachments or (), world.driver):
        name = attachment["spec"]["source"].get("persistentVolumeName") or ""
        by_volume.setdefault(name, []).append(attachment)
    found = []
    for handle in {*records, *named}:
        record = records.get(handle)
        expected = _expected(record)
        known = names.get(handle) or {expected or handle}
        attachments = tuple(one for name in sorted(known) for one in by_volume.get(name, ()))
        found.append(Volume(handle, record, named.get(handle), attachments, world.volumes is not None or expected is not None))
    return sorted(found, key=lambda one: (one.claim is None, one.title, one.handle))


def _expected(record: Record | None) -> str | None:
    return record.spec.persistent_volume_name if record else None


def attachments_of_driver(attachments: Iterable[Object], driver: str) -> Iterator[Object]:
    """Yield the VolumeAttachments of that driver."""
    return (one for one in attachments if one["spec"].get("attacher") == driver)


def lease_age(lease: Object, now: datetime) -> tuple[float, float] | None:
    """Return for how many seconds the Lease was not renewed, and for how many it holds; None where nobody has it."""
    spec = lease.get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return None
    renewed = datetime.fromisoformat(spec["renewTime"])
    return (now - renewed).total_seconds(), float(spec.get("leaseDurationSeconds") or RELEASED_LEASE_SECONDS)
