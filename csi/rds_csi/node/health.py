"""Whether the volumes of a node are well, as sysfs, the mount table and their file systems show it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from rds_csi.node.filesystem_errors import NO_ERRORS, Errors, has_stopped
from rds_csi.node.mountinfo import Mount
from rds_csi.node.sysfs import DeviceNumber, Session

GRACE_SECONDS: Final = 30.0
"""For how long a session may be without live controller or disk: the kernel reconnects within that after a short outage."""


class Problem(StrEnum):
    """What can be wrong with a volume on this node."""

    CONNECTION_LOST = "connection_lost"
    """No controller has been live for a while; reads and writes wait."""

    DEVICE_VANISHED = "device_vanished"
    """Its disk, which was there, is there no more, though it is staged."""

    FILESYSTEM_READ_ONLY = "filesystem_read_only"
    """Its file system has stopped after an error: ext4 is not written to any more, XFS answers nothing."""

    FILESYSTEM_ERRORS = "filesystem_errors"
    """Its ext4 has recorded errors that no fsck has cleared, and goes on."""


LASTING: Final = frozenset({Problem.CONNECTION_LOST, Problem.DEVICE_VANISHED})
"""These count only after ``GRACE_SECONDS``; a reconnect passes through both."""


@dataclass(frozen=True, slots=True)
class Change:
    """A volume has a problem now, or has it no more."""

    volume_id: str
    problem: Problem
    began: bool
    seconds: float
    """Since the first look at which it was so."""


NONE_KNOWN: Final[Mapping[DeviceNumber, Errors]] = MappingProxyType({})


def problems_of(
    session: Session | None, mounts: Iterable[Mount], errors: Mapping[DeviceNumber, Errors] = NONE_KNOWN
) -> frozenset[Problem]:
    """Return what is wrong at this moment with a volume that is staged here; ``mounts`` are all of the node's.

    ``errors`` are what file systems say of themselves, by their disks.
    """
    if session is None or not session.namespaces:
        vanished = {Problem.DEVICE_VANISHED}
        return frozenset(vanished if session is None or session.live else vanished | {Problem.CONNECTION_LOST})
    found = set() if session.live else {Problem.CONNECTION_LOST}
    numbers = {namespace.number for namespace in session.namespaces}
    ours = [(mount, errors.get(mount.number, NO_ERRORS)) for mount in mounts if mount.number in numbers]
    if any(has_stopped(mount, said) for mount, said in ours):
        found.add(Problem.FILESYSTEM_READ_ONLY)
    elif any(said.recorded for _, said in ours):
        found.add(Problem.FILESYSTEM_ERRORS)
    return frozenset(found)


@dataclass(slots=True)
class HealthWatch:
    """Turns looks into incidents: each told once when it has lasted, and once when it is over."""

    grace: float = GRACE_SECONDS
    _since: dict[tuple[str, Problem], float] = field(default_factory=dict)
    _told: set[tuple[str, Problem]] = field(default_factory=set)

    def look(self, now: float, found: Mapping[str, frozenset[Problem]]) -> tuple[Change, ...]:
        """Return what changed; ``now`` is a monotonic clock in seconds, ``found`` has every volume that is staged here.

        A volume that is staged here no more is forgotten, and its incidents end untold.
        """
        here = {(volume, problem) for volume, problems in found.items() for problem in problems}
        changes = [
            Change(volume, problem, began=False, seconds=now - self._since[volume, problem])
            for volume, problem in sorted(self._told - here)
            if volume in found
        ]
        self._told &= here
        self._since = {key: self._since.get(key, now) for key in here}
        for volume, problem in sorted(here - self._told):
            lasted = now - self._since[volume, problem]
            if problem not in LASTING or lasted >= self.grace:
                self._told.add((volume, problem))
                changes.append(Change(volume, problem, began=True, seconds=lasted))
        return tuple(changes)

    @property
    def current(self) -> dict[str, frozenset[Problem]]:
        """The volumes that have problems which were told."""
        volumes = {volume for volume, _ in self._told}
        return {volume: frozenset(problem for one, problem in self._told if one == volume) for volume in volumes}
