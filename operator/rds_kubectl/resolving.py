"""Which volume somebody means: by its handle, its PersistentVolume, or its claim. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rds_kubectl.world import VOLUMES, Volume, World


class NotOneVolume(Exception):
    """The name is that of no volume, or of several; the message says what to give."""


def resolve(volumes: Iterable[Volume], name: str, namespace: str, world: World) -> Volume:
    """Return the volume of that handle, PersistentVolume, ``namespace/claim`` or claim of the namespace; raises NotOneVolume."""
    found = [volume for volume in volumes if name in _names(volume, namespace)]
    if len(found) == 1:
        return found[0]
    if found:
        several = " and ".join(f"{volume.title} ({volume.handle})" for volume in found)
        raise NotOneVolume(f"{name!r} is {several}: name one by namespace/claim, or by its handle")
    unread = "" if world.read(VOLUMES) else "; PersistentVolumes cannot be read, so it may be there all the same"
    what = "claim" if "/" in name else f"volume, PersistentVolume, or claim in namespace {namespace}"
    raise NotOneVolume(f"{name!r} is no {what} of the driver {world.driver}{unread}; `kubectl rds status` lists all")


def _names(volume: Volume, namespace: str) -> set[str]:
    claim, names = volume.claim, {volume.handle}
    if volume.volume is not None:
        names.add(volume.volume["metadata"]["name"])
    if volume.record is not None:
        names |= {volume.record.metadata.name, volume.record.spec.persistent_volume_name or volume.handle}
    if claim is not None:
        names |= {f"{claim.namespace}/{claim.name}", *([claim.name] if claim.namespace == namespace else [])}
    return names
