"""``rds-operator orphans``: show what nobody names, and remove one thing, by hand, after everything was looked up again."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Final, TextIO

from rds_csi.routeros import Box, BoxError, FilePath, Slot, Subvolumes, Transport
from rds_csi.routeros import Settings as BoxSettings
from rds_operator.orphan_watch import NamesInCluster
from rds_operator.orphans import WHY, Kind, Suspect, Thing, unnamed
from rds_operator.process import Settings
from rds_operator.suspects import SuspectStore
from rds_process.tables import size, table
from rds_records.kubernetes_api import ApiError, KubernetesApi, load_configuration
from rds_records.store import RecordStore
from rds_records.volume_layout import SUBVOLUME_FILE

logger = logging.getLogger(__name__)

BOX_SECONDS: Final = 120.0
_HEADINGS: Final = ("NAME", "KIND", "SIZE", "FIRST SEEN", "SEEN FOR", "STATE", "WHY")


class NotDeletable(Exception):
    """What was named is not removed; the message says why."""


async def run(settings: Settings, given: argparse.Namespace) -> int:
    """Run the command; returns the exit status: 0 done, 1 not done."""
    try:
        async with KubernetesApi(await load_configuration(settings.kubeconfig)) as api:
            suspects = SuspectStore(api, settings.namespace)
            if given.action != "delete":
                show(await suspects.load(), settings.orphan_grace, given.output, sys.stdout)
                return 0
            async with Transport(_box(settings)) as transport:
                names = NamesInCluster(api, RecordStore(api), settings.driver_name)
                removal = Removal(Box(transport), Subvolumes(transport), names, suspects, settings)
                await removal.run(given.name, sys.stdin, sys.stdout)
    except (NotDeletable, ApiError, BoxError, ValueError) as error:
        sys.stderr.write(f"rds-operator: {error}\n")
        return 1
    return 0


def _box(settings: Settings) -> BoxSettings:
    if settings.box is None:
        raise NotDeletable("--rds-address is required to delete something on the box")
    return settings.box


def show(suspects: Mapping[str, Suspect], grace: float, output: str, out: TextIO) -> None:
    """Print the suspects, those that are orphans first."""
    ordered = sorted(suspects.values(), key=lambda one: (-one.observed, one.thing.name))
    if output == "json":
        json.dump([_plain(one, grace) for one in ordered], out, indent=2)
        print(file=out)
        return
    if not ordered:
        print("Nothing lies on the box that nobody names.", file=out)
        return
    for line in table(_HEADINGS, (_row(one, grace) for one in ordered)):
        print(line, file=out)
    print("\nNothing is deleted by itself.", file=out)


def _row(suspect: Suspect, grace: float) -> Sequence[str]:
    thing = suspect.thing
    shown = size(thing.size) if thing.size is not None else thing.printed_size or "-"
    seen = str(timedelta(seconds=int(suspect.observed)))
    left = grace - suspect.observed
    state = "orphan" if left <= 0 else f"wait {timedelta(seconds=int(left))}"
    return thing.name, thing.kind, shown, f"{suspect.first_seen:%Y-%m-%d %H:%M}", seen, state, WHY[thing.kind]


def _plain(suspect: Suspect, grace: float) -> dict[str, object]:
    thing = suspect.thing
    return {
        "name": thing.name,
        "kind": thing.kind,
        "path": thing.path,
        "slot": thing.slot or None,
        "sizeBytes": thing.size,
        "printedSize": thing.printed_size or None,
        "firstSeen": suspect.first_seen.isoformat(),
        "observedSeconds": int(suspect.observed),
        "orphan": suspect.observed >= grace,
        "why": WHY[thing.kind],
    }


@dataclass(frozen=True, slots=True)
class Removal:
    """Removes one orphan; everything is read again first, and each step is read back."""

    box: Box
    subvolumes: Subvolumes
    names: NamesInCluster
    suspects: SuspectStore
    settings: Settings

    async def run(self, name: str, answers: TextIO, out: TextIO) -> None:
        """Check, ask, check once more, remove. Raises NotDeletable, BoxError, ApiError; then nothing, or not all, was removed."""
        thing = await self._check(name)
        print(f"{thing.kind} {thing.path}" + (f", slot {thing.slot}" if thing.slot else ""), file=out)
        print("Its data will be gone for good; no PersistentVolume, record or VolumeSnapshotContent names it now.", file=out)
        print("If it may belong to another cluster, or this cluster was restored from a backup, stop here.", file=out)
        print(f"Type its name to delete it ({name}): ", end="", flush=True, file=out)
        if answers.readline().strip() != name:
            raise NotDeletable("that is not its name: nothing was deleted")
        # The answer may have taken hours.
        if await self._check(name) != thing:
            raise NotDeletable(f"{name} has changed meanwhile: nothing was deleted")
        logger.warning("deleting an orphan: %s %s", thing.kind, thing.path)
        await self._remove(thing)
        print(f"deleted {thing.path}", file=out)

    async def _check(self, name: str) -> Thing:
        suspect = (await self.suspects.load()).get(name)
        if suspect is None:
            raise NotDeletable(f"{name} is not in the list: see `rds-operator orphans`")
        if suspect.observed < self.settings.orphan_grace:
            raise NotDeletable(
                f"{name} was seen without a name for {int(suspect.observed)} s only; the grace period is "
                f"{int(self.settings.orphan_grace)} s"
            )
        base = FilePath(self.settings.base_path)
        deadline = monotonic() + BOX_SECONDS
        disks = await self.box.disks(deadline=deadline)
        files = await self.box.files_below(base, deadline=deadline)
        named = await self.names.read()
        if not named.volumes:
            raise NotDeletable("the cluster has no PersistentVolume of this driver at all: is it the right one?")
        if suspect.thing.kind is Kind.SNAPSHOT and named.snapshots is None:
            raise NotDeletable("VolumeSnapshotContents cannot be listed, so nobody can say that none names this snapshot")
        thing = next((one for one in unnamed(base, disks, files, named) if one.name == name), None)
        if thing is None:
            raise NotDeletable(f"{name} is named now, or gone from the box")
        if (thing.kind, thing.slot) != (suspect.thing.kind, suspect.thing.slot):
            raise NotDeletable(f"{name} is another thing now: a {thing.kind}, not a {suspect.thing.kind}")
        return thing

    async def _remove(self, thing: Thing) -> None:
        """Remove the disk, then what it was made of. A crash in between leaves a file or subvolume, which is an orphan again."""
        deadline = monotonic() + BOX_SECONDS
        path = FilePath(thing.path)
        if thing.slot:
            await self.box.delete_disk(Slot(thing.slot), path=FilePath(thing.file_path), deadline=deadline)
        if thing.kind is Kind.FILE or thing.path == thing.file_path:
            await self.box.delete_file(path, deadline=deadline)
        else:
            await self.subvolumes.remove(path, holding=SUBVOLUME_FILE, deadline=deadline)
