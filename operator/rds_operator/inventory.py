"""What the box has and how it is, as the last rounds of looking found it. Pure: rounds come in, judgements go out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rds_csi.routeros import BoxError, Capacity, Disk, File, Sensor, Traffic
from rds_records.record import Record, Target

AVAILABLE: Final = "Available"
"""Type of the condition on a record."""

ROUNDS: Final = 2
"""So many complete rounds in a row must miss something before it is said to be missing."""


class Source(StrEnum):
    """What a round asks the box for; each by one command, and each may fail by itself."""

    DISKS = "disks"
    FILES = "files"
    POOL = "pool"
    HEALTH = "health"
    TRAFFIC = "traffic"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one round found; None where the box did not answer that question."""

    disks: tuple[Disk, ...] | None = None
    files: tuple[File, ...] | None = None
    pool: Capacity | None = None
    health: Mapping[str, Sensor] | None = None
    traffic: Mapping[str, Traffic] | None = None
    failed: Mapping[str, BoxError] = field(default_factory=dict, compare=False)
    """Why there is no answer, by what was asked for."""

    @property
    def complete(self) -> bool:
        """Whether something that is not in it is not on the box: of a pool that is not mounted no file is listed."""
        return None not in (self.disks, self.files, self.pool)

    def answered(self) -> frozenset[Source]:
        """Return the sources that answered."""
        return frozenset(source for source in Source if getattr(self, source) is not None)


class Reason(StrEnum):
    """Why a volume is available on the box, or not."""

    DISK_PRESENT = "DiskPresent"
    DISK_MISSING = "DiskMissing"
    NOT_EXPORTED = "NotExported"
    FILE_MISSING = "BackingFileMissing"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether nodes find a volume on the box."""

    reason: Reason
    message: str

    @property
    def available(self) -> bool:
        """Whether all is there."""
        return self.reason is Reason.DISK_PRESENT


def plain_path(path: str) -> str:
    """Return a path as the box prints a disk's, however a PersistentVolume spells it: ``//a/b/`` and ``a/b`` are ``/a/b``."""
    return "/" + "/".join(part for part in path.split("/") if part)


def find(target: Target, disks: Mapping[str, Disk], paths: frozenset[str], base: str) -> Finding:
    """Look for one volume among the disks (by slot) and the paths below ``base`` of a complete round.

    A volume may lie elsewhere, as one that was made before the base path was changed: of its file nothing is known then.
    """
    slot, path = target.slot, plain_path(target.file_path)
    disk = disks.get(slot)
    if disk is None or disk.path != path:
        other = f", where a disk of {disk.path} is" if disk else ""
        left = "its file is still there" if path in paths else "look for its file"
        return Finding(
            Reason.DISK_MISSING,
            f"the box has no disk of {path} in slot {slot}{other}, {left}: nodes cannot connect. If it was removed by hand, add it "
            "again with the same slot, file and NQN; data is in the file",
        )
    if not disk.exported:
        return Finding(
            Reason.NOT_EXPORTED,
            f"disk {slot} is there and not exported: nodes cannot connect. Way out, on the box: "
            f"/disk set [find slot={slot}] nvme-tcp-export=yes",
        )
    if path not in paths and path.startswith(f"{base}/"):
        return Finding(
            Reason.FILE_MISSING, f"disk {slot} is there, and its file {path} is not listed: look at the box before using it"
        )
    return Finding(Reason.DISK_PRESENT, f"disk {slot} is there and exported")


@dataclass(slots=True)
class Availability:
    """Says of each record whether its volume is on the box; that it is not, only after two complete rounds in a row.

    ``base`` is the directory of which the files are listed.
    """

    base: str
    _misses: dict[str, tuple[Reason, int]] = field(default_factory=dict)

    def judge(self, records: Iterable[Record], seen: Sighting) -> list[tuple[Record, Finding]]:
        """Return what is to be said of which record; an incomplete round says nothing and forgets nothing.

        A volume that is being made or deleted is nobody's loss yet.
        """
        if not seen.complete or seen.disks is None or seen.files is None:
            return []
        disks = {disk.slot: disk for disk in seen.disks}
        paths = frozenset(file.path for file in seen.files)
        said: list[tuple[Record, Finding]] = []
        misses: dict[str, tuple[Reason, int]] = {}
        for record in records:
            target = record.spec.target
            if target is None or not record.initialized or record.status.deleting:
                continue
            finding = find(target, disks, paths, self.base)
            uid = record.metadata.uid or record.handle
            if not finding.available:
                before, count = self._misses.get(uid, (finding.reason, 0))
                misses[uid] = (finding.reason, count + 1 if before is finding.reason else 1)
                if misses[uid][1] < ROUNDS:
                    continue
            said.append((record, finding))
        self._misses = misses
        return said


@dataclass(frozen=True, slots=True)
class Latencies:
    """Averages of one disk between two rounds, in seconds per operation; None where there was no operation."""

    read: float | None
    write: float | None
    wait: float | None


def latencies(before: Traffic | None, now: Traffic) -> Latencies:
    """Return what an operation took between the two: the box keeps totals. None of them where its counters were reset."""
    if before is None:
        return Latencies(None, None, None)

    def each(time: str, *operations: str) -> float | None:
        if time not in now.times or time not in before.times:
            return None
        took = now.times[time] - before.times[time]
        count = sum(now.numbers.get(key, 0) - before.numbers.get(key, 0) for key in operations)
        return took / count if count > 0 and took >= 0 else None

    return Latencies(each("read-time", "read-ops"), each("write-time", "write-ops"), each("wait-time", "read-ops", "write-ops"))


class Inventory:
    """The last round, and when each source last answered; safe to read from another thread. ``taken`` is 0 before the first."""

    def __init__(self) -> None:
        self.taken = 0
        self.seen = Sighting()
        self.latencies: Mapping[str, Latencies] = {}
        self.last_success: dict[Source, float] = dict.fromkeys(Source, 0.0)
        self._traffic: Mapping[str, Traffic] = {}

    def take(self, seen: Sighting, *, now: float) -> None:
        """Take in a round that ended at ``now`` (Unix seconds)."""
        for source in seen.answered():
            self.last_success[source] = now
        traffic = seen.traffic or {}
        self.latencies = {slot: latencies(self._traffic.get(slot), one) for slot, one in traffic.items()}
        if seen.traffic is not None:
            self._traffic = seen.traffic
        self.seen = seen
        self.taken += 1


def provisioned(disks: Iterable[Disk], mount_point: str) -> int:
    """Return how many bytes the disks made of files in this pool were promised, whatever of it is written yet."""
    return sum(disk.size for disk in disks if disk.path.startswith(f"/{mount_point}/"))
