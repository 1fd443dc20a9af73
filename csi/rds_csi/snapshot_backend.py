"""How the box keeps snapshots: one Btrfs subvolume per volume, snapshot and copy, where it can; found out by trying it.

A copy of a live disk's bytes would be torn, and ``copy-from`` of ``/disk add`` copies no data at all, so there is no other way
(MikroTik's manual: page "Scripting" on ``copy-from``, pages "Btrfs" and "Btrfs subvolumes and snapshots").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

from rds_csi.errors import FailedPrecondition
from rds_csi.routeros import (
    BoxBusy,
    BoxError,
    BoxUnreachable,
    FilePath,
    MalformedAnswer,
    NoSuchItem,
    OutcomeUnknown,
    PoolFull,
    Slot,
    Subvolumes,
)
from rds_csi.routeros.box import Box
from rds_csi.snapshot_mode import SnapshotMode
from rds_records.volume_layout import SUBVOLUME_FILE, SnapshotName, volume_file_path

_log = logging.getLogger(__name__)

PROBE_PREFIX: Final = "rds-csi-probe-"
PROBE_SECONDS: Final = 60.0
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds: the longest try, and the pauses between tries while the box cannot be asked."""

KNOWN_WITHIN: Final = 5.0
"""Seconds that a question for our capabilities waits for the first answer of the box."""

_PASSING = (BoxUnreachable, OutcomeUnknown, MalformedAnswer, NoSuchItem, PoolFull, BoxBusy)
"""What says nothing about what the box is able to do. NoSuchItem: the pool is not mounted, which may be a matter of time."""


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """A snapshot on the box."""

    path: FilePath
    name: SnapshotName


class SnapshotBackend(Protocol):
    """What volumes and snapshots need of a way to keep snapshots. Deadlines are readings of ``time.monotonic``; box errors pass."""

    async def advertised(self) -> bool:
        """Tell whether snapshots and clones are offered; also while nobody could ask the box yet."""
        ...

    async def check(self, *, deadline: float) -> None:
        """Find out whether the box can; FailedPrecondition with the reason where it cannot."""
        ...

    async def new_file_path(self, directory: FilePath, slot: Slot, *, deadline: float) -> FilePath:
        """Return where the backing file of a new volume is to lie."""
        ...

    async def make(self, path: FilePath, *, source: FilePath | None = None, read_only: bool = False, deadline: float) -> bool:
        """Make an empty volume's place, or a copy or snapshot of one, in whole or not at all; whether it was made now."""
        ...

    async def exists(self, path: FilePath, *, deadline: float) -> bool:
        """Tell whether a volume's or snapshot's place is there."""
        ...

    async def remove(self, path: FilePath, *, deadline: float) -> None:
        """Remove the place with the backing file in it, or find it gone."""
        ...

    async def snapshots(self, snapshot_id: str = "", *, deadline: float) -> tuple[FoundSnapshot, ...]:
        """Return the snapshots of this id, or all, under the base path."""
        ...


class BtrfsBackend:
    """SnapshotBackend over Btrfs subvolumes of one box."""

    def __init__(
        self,
        subvolumes: Subvolumes,
        box: Box,
        base_path: FilePath,
        mode: SnapshotMode,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """``base_path`` is the directory under which all volumes and snapshots lie."""
        self._subvolumes = subvolumes
        self._box = box
        self._base = base_path
        self._mode = mode
        self._sleep = sleep
        self._probing = asyncio.Lock()
        self._known = asyncio.Event()
        self._why_not = ""
        if mode is SnapshotMode.NONE:
            self._conclude("--snapshot-backend=none")

    async def advertised(self) -> bool:
        """Tell whether snapshots and clones are offered, as the flag and the box say; waits a moment for the first answer.

        While nobody could ask the box they are: a sidecar asks once in its life, and a call that the box then cannot serve is
        answered with the reason.
        """
        if self._mode is SnapshotMode.AUTO:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KNOWN_WITHIN):
                    await self._known.wait()
        return self._mode is SnapshotMode.BTRFS or not self._why_not

    async def find_out(self) -> None:
        """Try the box out until it is known what it can do."""
        pause = FIRST_PAUSE
        while not self._known.is_set():
            try:
                await self.check(deadline=monotonic() + PROBE_SECONDS)
            except FailedPrecondition:
                return
            except BoxError as error:
                _log.info("not known yet whether the box keeps snapshots", extra={"error": str(error)})
                await self._sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)

    async def check(self, *, deadline: float) -> None:
        """Find out once whether the box can keep snapshots; FailedPrecondition with the reason where it cannot."""
        async with self._probing:
            if not self._known.is_set():
                self._conclude(await self._why_it_cannot(deadline))
        if self._why_not:
            raise FailedPrecondition(f"the box keeps no snapshots, and volumes cannot be copied: {self._why_not}")

    async def new_file_path(self, directory: FilePath, slot: Slot, *, deadline: float) -> FilePath:
        """Return where the backing file of a new volume is to lie: in a subvolume of its own where the box has them."""
        subvolume = True
        try:
            await self.check(deadline=deadline)
        except FailedPrecondition:
            if self._mode is SnapshotMode.BTRFS:
                raise
            subvolume = False
        return FilePath(volume_file_path(directory, slot, subvolume=subvolume))

    async def make(self, path: FilePath, *, source: FilePath | None = None, read_only: bool = False, deadline: float) -> bool:
        """Make the subvolume; see ``Subvolumes.create``."""
        return await self._subvolumes.create(path, parent=source, read_only=read_only, deadline=deadline)

    async def exists(self, path: FilePath, *, deadline: float) -> bool:
        """Tell whether the subvolume is there; see ``Subvolumes.exists``."""
        return await self._subvolumes.exists(path, deadline=deadline)

    async def remove(self, path: FilePath, *, deadline: float) -> None:
        """Remove the subvolume with the backing file in it; see ``Subvolumes.remove``."""
        await self._subvolumes.remove(path, holding=SUBVOLUME_FILE, deadline=deadline)

    async def snapshots(self, snapshot_id: str = "", *, deadline: float) -> tuple[FoundSnapshot, ...]:
        """Return the snapshots of this id, or all, under the base path, sorted by id and time."""
        found = []
        for file in await self._box.files_named(snapshot_id or "snap-", base=self._base, deadline=deadline):
            name = SnapshotName.parse(file.path.rsplit("/", 1)[1])
            if file.kind == "directory" and name is not None and snapshot_id in {"", name.id}:
                found.append(FoundSnapshot(FilePath(file.path), name))
        return tuple(sorted(found, key=lambda one: (one.name.id, one.name.time, one.path)))

    def _conclude(self, why_not: str) -> None:
        self._why_not = why_not
        self._known.set()
        if why_not and self._mode is not SnapshotMode.NONE:
            _log.warning("snapshots and clones are not offered", extra={"reason": why_not})

    async def _why_it_cannot(self, deadline: float) -> str:
        """Return why the box keeps no snapshots, empty where it does; raises what says nothing about that.

        It is tried: whether a subvolume that may be written can be made of one that may not is documented nowhere. A crash leaves
        empty subvolumes, which the operator reports as orphans after their grace period; names are new each time.
        """
        first = self._base.child(f"{PROBE_PREFIX}{uuid.uuid4().hex[:12]}")
        snapshot, copy = FilePath(f"{first}-snapshot"), FilePath(f"{first}-copy")
        made: list[FilePath] = []
        try:
            await self._subvolumes.label(self._base.mount_point, deadline=deadline)
            for path, source, read_only in ((first, None, False), (snapshot, first, True), (copy, snapshot, False)):
                made.append(path)
                await self.make(path, source=source, read_only=read_only, deadline=deadline)
            while made:
                await self.remove(made[-1], deadline=deadline)
                made.pop()
        except _PASSING:
            raise
        except BoxError as error:
            return str(error)
        finally:
            for path in reversed(made):
                with contextlib.suppress(BoxError):
                    await self.remove(path, deadline=deadline)
        return ""
