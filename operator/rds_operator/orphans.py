"""What lies under our directory on the box and is named by nobody in the cluster; pure. Nothing here deletes anything.

A restored etcd makes live data look like this, and so does an operator that looks at the wrong cluster. So a thing is an orphan
only if it was seen so in every complete round for the whole grace period, while the cluster named other volumes of ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from rds_csi.routeros import Disk, File
from rds_operator.inventory import plain_path
from rds_records.names import SlotNames, slot_for
from rds_records.record import Record
from rds_records.volume_layout import SUBVOLUME_FILE, SnapshotName, snapshot_id_for, subvolume_of

Object = Mapping[str, Any]

SNAPSHOT_PREFIX: Final = "snapshot-"
"""How csi-snapshotter names the snapshot that it asks for: this and the uid of the VolumeSnapshot (``--snapshot-name-prefix``)."""

_SNAPSHOT_SIGN: Final = "snap-"
"""With it the id of every snapshot begins, the Go driver's too: a disk in a slot of this name, made of a file of this name."""

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
    names = _Names()
    for volume in volumes:
        names.add_persistent_volume(volume, driver)
    for record in records:
        names.add_record(record)
    for attachment in attachments:
        names.add_attachment(attachment, driver)
    for content in contents or ():
        names.add_content(content, driver)
    names.paths.discard(plain_path(""))
    snapshots = None if contents is None else frozenset(names.snapshots)
    return Named(frozenset(names.slots), frozenset(names.paths), snapshots, names.volumes)


@dataclass(slots=True)
class _Names:
    slots: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    snapshots: set[str] = field(default_factory=set)
    volumes: int = 0

    def _add_volume(self, handle: str) -> None:
        self.slots.update(slot_for(handle, names) for names in SlotNames)

    def add_persistent_volume(self, volume: Object, driver: str) -> None:
        source = volume["spec"].get("csi") or {}
        if source.get("driver") == driver:
            self.volumes += 1
            self._add_volume(source["volumeHandle"])
            self.slots.add(volume["metadata"]["name"])
            self.paths.add(plain_path((source.get("volumeAttributes") or {}).get("volumePath", "")))

    def add_record(self, record: Record) -> None:
        self._add_volume(record.handle)
        if record.spec.target:
            self.slots.add(record.spec.target.slot)
            self.paths.add(plain_path(record.spec.target.file_path))
        if (source := record.spec.content_source) and not record.initialized:
            # A volume that is being made of it.
            if source.volume_handle:
                self._add_volume(source.volume_handle)
            if source.snapshot_id:
                self.snapshots.add(source.snapshot_id)

    def add_attachment(self, attachment: Object, driver: str) -> None:
        spec = attachment["spec"]
        inline = (spec["source"].get("inlineVolumeSpec") or {}).get("csi") or {}
        for name in (spec["source"].get("persistentVolumeName"), inline.get("volumeHandle")):
            if name and spec["attacher"] == driver:
                self._add_volume(name)

    def add_content(self, content: Object, driver: str) -> None:
        spec = content["spec"]
        if spec.get("driver") != driver:
            return
        source = spec.get("source") or {}
        given = ((content.get("status") or {}).get("snapshotHandle"), source.get("snapshotHandle"))
        self.snapshots.update(handle for handle in given if handle)
        if uid := (spec.get("volumeSnapshotRef") or {}).get("uid"):
            self.snapshots.add(snapshot_id_for(f"{SNAPSHOT_PREFIX}{uid}"))
        if handle := source.get("volumeHandle"):
            self._add_volume(handle)


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
        if not disk.path.startswith(below) or _is_named(disk.slot, named) or disk.path in named.paths:
            continue
        if _in_named_place(disk.path, below, named) or _in_snapshot(disk.path):
            continue
        place = subvolume_of(disk.path, disk.slot)
        if place is None or _holds_more(place, paths):
            place = disk.path
        things.append(Thing(place[len(below) :], Kind.DISK, place, disk.slot, disk.path, disk.size))
    inside: list[str] = []
    for file in files:
        name = file.path.rsplit("/", 1)[1]
        if file.kind != "directory":
            continue
        snapshot = SnapshotName.parse(name)
        if snapshot is not None:
            inside.append(f"{file.path}/")
            if not _in_named_place(file.path, below, named):
                things.append(Thing(file.path[len(below) :], Kind.SNAPSHOT, file.path, size=snapshot.size))
        elif _OUR_DIRECTORY.fullmatch(name) and not _holds_more(file.path, paths):
            inside.append(f"{file.path}/")
            if not _in_named_place(file.path, below, named) and not any(path.startswith(f"{file.path}/") for path in taken):
                size = next((one.size for one in files if one.path == f"{file.path}/{SUBVOLUME_FILE}"), "")
                things.append(Thing(file.path[len(below) :], Kind.SUBVOLUME, file.path, printed_size=size))
    things.extend(
        Thing(file.path[len(below) :], Kind.FILE, file.path, printed_size=file.size)
        for file in files
        if file.is_regular
        and file.path not in taken
        and not file.path.startswith(tuple(inside))
        and not _in_named_place(file.path, below, named)
    )
    return tuple(sorted(things, key=lambda thing: thing.name))


def _holds_more(directory: str, paths: set[str]) -> bool:
    """Tell whether anything but a backing file lies in a directory: then it is no volume's subvolume."""
    return any(path.startswith(f"{directory}/") and path != f"{directory}/{SUBVOLUME_FILE}" for path in paths)


def _is_named(name: str, named: Named) -> bool:
    """Tell whether a slot, or a file's or directory's name without ``.img``, is a volume's or a snapshot's that is named.

    Where nobody can tell which snapshots are, all are.
    """
    snapshot = SnapshotName.parse(name)
    identity = snapshot.id if snapshot else name
    if named.snapshots is None:
        return identity.startswith(_SNAPSHOT_SIGN) or name in named.slots
    return identity in named.snapshots or name in named.slots


def _in_named_place(path: str, below: str, named: Named) -> bool:
    """Tell whether a path is the place of something that is named, or lies in it, however a disk there is called."""
    return any(_is_named(part.removesuffix(".img"), named) for part in path[len(below) :].split("/"))


def _in_snapshot(path: str) -> bool:
    """Tell whether a file lies in a snapshot: then the snapshot is what may be removed, and not its file."""
    return any(SnapshotName.parse(part) for part in path.split("/"))


@dataclass(frozen=True, slots=True)
class Suspect:
    """A thing that nobody names, since when, and for how long it was seen so."""

    thing: Thing
    first_seen: datetime
    observed: float = 0.0
    """Seconds; only time between complete rounds counts."""

    reported: bool = False


def follow(
    suspects: Mapping[str, Suspect],
    seen: Iterable[Thing],
    *,
    now: datetime,
    elapsed: float,
    longest: float,
    unjudged: Collection[str] = (),
) -> dict[str, Suspect]:
    """Return the suspects after a complete round.

    What is not among ``seen`` any more is forgotten, but for the names in ``unjudged``, of which this round says nothing: their
    suspects stay as they were. ``elapsed`` seconds since the complete round before count, but at most ``longest``: a time in which
    nobody looked proves nothing.
    """
    after = {name: suspect for name, suspect in suspects.items() if name in unjudged}
    for thing in seen:
        before = suspects.get(thing.name)
        if before is None or (before.thing.kind, before.thing.slot) != (thing.kind, thing.slot):
            after[thing.name] = Suspect(thing, now)
        else:
            after[thing.name] = replace(before, thing=thing, observed=before.observed + max(0.0, min(elapsed, longest)))
    return after
