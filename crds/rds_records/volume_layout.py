"""How volumes and snapshots lie on the box, in names from which a cluster that lost everything can list them again. Pure.

A volume that can be snapshotted has a Btrfs subvolume of its own: ``<directory>/<slot>``, with ``disk.img`` in it. A snapshot is a
read-only subvolume beside it. The box keeps neither source nor time of a file, so the snapshot's name carries both, and the exact
size (``/file`` prints sizes rounded).
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from rds_records.names import file_path_for

SUBVOLUME_FILE: Final = "disk.img"
"""The backing file in the subvolume of a volume or a snapshot; the same in all, as a snapshot's file keeps its name."""

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SNAPSHOT_ID = re.compile(rf"snap-{_UUID}")
_SNAPSHOT = re.compile(rf"(snap-{_UUID})_([A-Za-z0-9-]{{1,128}})_(\d{{8}}T\d{{6}}Z)_([1-9]\d{{0,14}})")
_TIME: Final = "%Y%m%dT%H%M%SZ"


def volume_file_path(directory: str, slot: str, *, subvolume: bool) -> str:
    """Return the path of a new volume's backing file, in a subvolume of its own or as the Go driver lays it out."""
    return f"{directory}/{slot}/{SUBVOLUME_FILE}" if subvolume else file_path_for(directory, slot)


def subvolume_of(file_path: str, slot: str) -> str | None:
    """Return the path of the subvolume that a volume has for itself; None where its file lies among others, as the Go driver's."""
    ending = f"/{slot}/{SUBVOLUME_FILE}"
    return file_path.removesuffix(f"/{SUBVOLUME_FILE}") if file_path.endswith(ending) else None


def snapshot_id_for(csi_name: str) -> str:
    """Return the CSI snapshot id that belongs to the name which the CO suggests: the same for every try."""
    return f"snap-{uuid.uuid5(uuid.NAMESPACE_DNS, csi_name)}"


def is_snapshot_id(text: str) -> bool:
    """Tell whether this driver can have given out this snapshot id."""
    return _SNAPSHOT_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class SnapshotName:
    """What the name of a snapshot's subvolume says; ``size`` in bytes, ``time`` in UTC to the second."""

    id: str
    source_handle: str
    time: datetime
    size: int

    def __str__(self) -> str:
        """Return the name, one component of a path."""
        return f"{self.id}_{self.source_handle}_{self.time.astimezone(UTC).strftime(_TIME)}_{self.size}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Read a name; None where it is no snapshot's."""
        found = _SNAPSHOT.fullmatch(name)
        if found is None:
            return None
        try:
            time = datetime.strptime(found[3], _TIME).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(id=found[1], source_handle=found[2], time=time, size=int(found[4]))
