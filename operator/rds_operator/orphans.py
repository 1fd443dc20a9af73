"""What lies under our directory on the box and is named by nobody in the cluster; pure. Nothing here deletes anything.

A restored etcd makes live data look like this, and so does an operator that looks at the wrong cluster. So a thing is an orphan
only if it was seen so in every complete round for the whole grace period, while the cluster named other volumes of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from rds_csi.routeros import Disk, File
from rds_records.names import SlotNames, slot_for
from rds_records.record import Record
from rds_records.volume_layout import SUBVOLUME_FILE, SnapshotName, snapshot_id_for, subvolume_of

Object = Mapping[str, Any]

SNAPSHOT_PREFIX: Final = "snapshot-"
"""How csi-snapshotter names the snapshot that it asks for: this and the uid of the VolumeSnapshot (``--snapshot-name-prefix``)."""

_OUR_DIRECTORY = re.compile(r"pvc-[0-9a-f]{8}-?[0-9a-f-]{8,}|rds-csi-probe-[0-9a-f]{12}(?:-snapshot|-copy)?")


class Kind(StrEnum):
    """What lies there."""

    DISK = "disk"
    """A disk with its file, or with its subvolume."""

    FILE = "file"
    """A file of which no disk is made."""

    SUBVOLUME = "subvolume"
    """A volume's subvolume of which no disk is made."""

    SNAPSHOT = "snapshot"


WHY: Final[Mapping[Kind, str]] = {
    Kind.DISK: "no PersistentVolume or record names it",
    Kind.FILE: "no disk is made of it, no PersistentVolume or record names it",
    Kind.SUBVOLUME: "no disk is made of it, no PersistentVolume or record names it",
    Kind.SNAPSHOT: "no VolumeSnapshotContent names it",
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing on the box that can be removed as a whole; ``name`` is its path below our directory and tells it from others."""

    name: str
    kind: Kind
    path: str
    """Of the file, or of the subvolume."""

    slot: str = ""
    """Of the disk; empty where there is none."""

    file_path: str = ""
    """Of the disk's file; empty where there is no disk."""

    size: int | None = None
    """Bytes; None where the box says it only rounded."""

    printed_size: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """Everything of ours that the cluster names."""

    slots: frozenset[str]
    paths: frozenset[str]
    snapshots: frozenset[str] | None
    """Snapshot ids; None where nobody can tell, as where snapshots' kinds are not installed."""

    volumes: int
    """How many PersistentVolumes of ours there are; with none, nothing is judged."""


def named_by(
    volumes: Iterable[Object],
    records: Iterable[Record],
    attachments: Iterable[Object],
    contents: Iterable[Object] | None,
    driver: str,
) -> Named:
    """Return what PersistentVolumes, records, VolumeAttachments and VolumeSnapshotContents name; contents None: unknown."""
    slots: set[str] = set()
    paths: set[str] = set()
    count = 0

    def name_volume(handle: str) -> None:
        slots.update(slot_for(handle, names) for names in SlotNames)

    for volume in volumes:
        source = volume["spec"].get("csi") or {}
        if source.get("driver") == driver:
            count += 1
            name_volume(source["volumeHandle"])
            slots.add(volume["metadata"]["name"])
            paths.add((source.get("volumeAttributes") or {}).get("volumePath", ""))
    for record in records:
        name_volume(record.handle)
        if record.spec.target:
            slots.add(record.spec.target.slot)
            paths.add(record.spec.target.file_path)
    for attachment in attachments:
        name = attachment["spec"]["source"].get("persistentVolumeName")
        if attachment["spec"]["attacher"] == driver and name:
            name_volume(name)
    snapshots: set[str] | None = None if contents is None else set()
    for content in contents or ():
        spec = content["spec"]
        if spec.get("driver") != driver or snapshots is None:
            continue
        given = ((content.get("status") or {}).get("snapshotHandle"), (spec.get("source") or {}).get("snapshotHandle"))
        snapshots.update(handle for handle in given if handle)
        if uid := (spec.get("volumeSnapshotRef") or {}).get("uid"):
            snapshots.add(snapshot_id_for(f"{SNAPSHOT_PREFIX}{uid}"))
        if handle := (spec.get("source") or {}).get("volumeHandle"):
            name_volume(handle)
    paths.discard("")
    return Named(frozenset(slots), frozenset(paths), None if snapshots is None else frozenset(snapshots), count)


def unnamed(base: str, disks: Iterable[Disk], files: Iterable[File], named: Named) -> tuple[Thing, ...]:
    """Return what lies below ``base`` and nobody names, of a complete round; nothing where the cluster names no volume at all.

    ``disks`` are all of the box: a file of which any disk is made is that disk's. Only whole components of paths count.
    """
    if not named.volumes:
        return ()
    below = f"{base}/"
    disks = tuple(disks)
    files = [file for file in files if file.path.startswith(below)]
    paths = {file.path for file in files}
    things: list[Thing] = []
    taken = set(named.paths) | {disk.path for disk in disks}
    for disk in disks:
        if not disk.path.startswith(below) or disk.slot in named.slots or disk.path in named.paths:
            continue
        place = subvolume_of(disk.path, disk.slot) or disk.path
        things.append(Thing(place[len(below) :], Kind.DISK, place, disk.slot, disk.path, disk.size))
    inside: list[str] = []
    for file in files:
        name = file.path.rsplit("/", 1)[1]
        if file.kind != "directory":
            continue
        snapshot = SnapshotName.parse(name)
        if snapshot is not None:
            inside.append(f"{file.path}/")
            if named.snapshots is not None and snapshot.id not in named.snapshots:
                things.append(Thing(file.path[len(below) :], Kind.SNAPSHOT, file.path, size=snapshot.size))
        elif _OUR_DIRECTORY.fullmatch(name) and not _holds_more(file.path, paths):
            inside.append(f"{file.path}/")
            if name not in named.slots and not any(path.startswith(f"{file.path}/") for path in taken):
                size = next((one.size for one in files if one.path == f"{file.path}/{SUBVOLUME_FILE}"), "")
                things.append(Thing(file.path[len(below) :], Kind.SUBVOLUME, file.path, printed_size=size))
    things.extend(
        Thing(file.path[len(below) :], Kind.FILE, file.path, printed_size=file.size)
        for file in files
        if file.is_regular and file.path not in taken and not file.path.startswith(tuple(inside)) and not _named_file(file, named)
    )
    return tuple(sorted(things, key=lambda thing: thing.name))


def _holds_more(directory: str, paths: set[str]) -> bool:
    """Tell whether anything but a backing file lies in a directory: then it is no volume's subvolume."""
    return any(path.startswith(f"{directory}/") and path != f"{directory}/{SUBVOLUME_FILE}" for path in paths)


def _named_file(file: File, named: Named) -> bool:
    return file.path.rsplit("/", 1)[1].removesuffix(".img") in named.slots


@dataclass(frozen=True, slots=True)
class Suspect:
    """A thing that nobody names, since when, and for how long it was seen so."""

    thing: Thing
    first_seen: datetime
    observed: float = 0.0
    """Seconds; only time between complete rounds counts."""

    reported: bool = False


def follow(
    suspects: Mapping[str, Suspect], seen: Iterable[Thing], *, now: datetime, elapsed: float, longest: float
) -> dict[str, Suspect]:
    """Return the suspects after a complete round.

    What is not among ``seen`` any more is forgotten. ``elapsed`` seconds since the complete round before count, but at most
    ``longest``: a time in which nobody looked proves nothing.
    """
    after: dict[str, Suspect] = {}
    for thing in seen:
        before = suspects.get(thing.name)
        if before is None or (before.thing.kind, before.thing.slot) != (thing.kind, thing.slot):
            after[thing.name] = Suspect(thing, now)
        else:
            after[thing.name] = replace(before, thing=thing, observed=before.observed + max(0.0, min(elapsed, longest)))
    return after
