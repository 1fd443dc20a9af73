"""Looks at this node's sessions again and again: shows them, tells what is wrong, and ends those that nothing uses.

A session is ended only where all of this is so, and what cannot be told leaves it alone: its NQN is ours (the managed prefix), it
was made under this node's host NQN, the kubelet has had no volume that it could be for at every look since ``grace`` seconds, no
call for that volume is under way, and nobody uses its disk: no process, mount, swap or device on it in any namespace of the host.
The cluster is not asked: a volume that is attached and not staged needs no session, and one that is in use is safe by the above.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rds_csi.errors import Aborted, Rejected
from rds_csi.node import nvme
from rds_csi.node.commands import CommandError
from rds_csi.node.filesystem_errors import Errors, errors_of
from rds_csi.node.health import HealthWatch, Problem, problems_of
from rds_csi.node.host import Host
from rds_csi.node.incidents import Incidents
from rds_csi.node.kubelet_volumes import KubeletUnreadable, kubelet_volumes
from rds_csi.node.looks import LookTooSlow
from rds_csi.node.mountinfo import Mount, MountTableUnreadable, mounts_of, read_mountinfo
from rds_csi.node.orphan_sessions import OrphanSessions, may_be_orphan, volume_of
from rds_csi.node.sysfs import DeviceNumber, Session, SysfsUnreadable, find_session, sessions
from rds_csi.node.usage import UsersUnknown, describe
from rds_csi.volume_locks import VolumeLocks

_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
SCRAPE_SECONDS: Final = 1.0
"""How long a scrape waits for a look at sysfs; what it shows then is that of the last look."""

GONE_SECONDS: Final = 10.0
GONE_POLL: Final = 0.1
"""For how long, and how often, a session that was ended is looked for."""


@dataclass(frozen=True, slots=True)
class Look:
    """A node at one moment."""

    ours: tuple[Session, ...]
    """Sessions whose NQN has the managed prefix."""

    mounts: tuple[Mount, ...]
    volumes: frozenset[str] | None
    """What the kubelet has; None where that cannot be told."""

    trouble: str
    """Why not."""

    errors: Mapping[DeviceNumber, Errors]
    """What the file systems on our disks say of themselves."""


class SessionWatch:
    """Keeps the last look for whoever shows it, and acts on it; ``kubelet_root`` is the kubelet's root directory."""

    def __init__(
        self,
        host: Host,
        node: str,
        listener: Incidents,
        locks: VolumeLocks,
        orphans: OrphanSessions,
        health: HealthWatch,
        *,
        driver: str,
        kubelet_root: Path,
        clean: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._host = host
        self._node = node
        self._listener = listener
        self._locks = locks
        self._orphans = orphans
        self._health = health
        self._driver = driver
        self._root = kubelet_root
        self._clean = clean
        self._monotonic = monotonic
        self._sleep = sleep
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self._foreign: frozenset[str] = frozenset()
        self.sessions: tuple[Session, ...] | None = None
        """Ours, as last seen; None where they cannot be looked at."""

        self.trouble = "not looked yet"
        """Why something cannot be looked at; empty where all can."""

    @property
    def problems(self) -> dict[str, frozenset[Problem]] | None:
        """The volumes that are not well; None where nobody can tell."""
        return None if self.sessions is None else self._health.current

    async def refresh(self) -> None:
        """Look at the sessions alone, for a scrape, and for no longer than ``SCRAPE_SECONDS``."""
        try:
            self.sessions = await self._host.looks("sessions for a scrape", self._ours, SCRAPE_SECONDS)
        except LookTooSlow:
            return
        except SysfsUnreadable as error:
            self._unreadable(str(error))

    async def run(self, interval: float) -> None:
        """Look every ``interval`` seconds, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 the next look may be well
                _log.exception("a look at the sessions failed")
            await self._sleep(interval)

    async def look(self) -> None:
        """Look once at everything, tell what changed, and end what is an orphan."""
        try:
            look = await self._host.looks("look at the sessions", self._look, LOOK_SECONDS)
        except (SysfsUnreadable, MountTableUnreadable, LookTooSlow) as error:
            self._unreadable(str(error))
            return
        self.sessions = look.ours
        now = self._monotonic()
        self._show_foreign(look)
        for change in self._health.look(now, self._found(look)):
            self._listener.health_changed(change)
        if look.volumes is None:
            self._say(look.trouble)
            self._orphans.forget()
            return
        if self.trouble:
            _log.info("sessions are looked at", extra={"sessions": len(look.ours), "volumes": len(look.volumes)})
            self.trouble = ""
        ripe = self._orphans.look(now, look.ours, look.volumes)
        self._told &= {session.nqn for session in look.ours}
        for session in ripe:
            await self._end(session)

    def _unreadable(self, why: str) -> None:
        self.sessions = None
        self._orphans.forget()
        self._say(why)

    def _say(self, why: str) -> None:
        if why != self.trouble:
            _log.warning("not everything of this node can be looked at", extra={"reason": why})
        self.trouble = why

    # In a thread

    def _ours(self) -> tuple[Session, ...]:
        found = sessions(self._host.paths.sysfs)
        return tuple(session for session in found if nvme.is_managed(session.nqn, self._orphans.prefix))

    def _look(self) -> Look:
        # Sessions first: one that is made after this look is not in it, however late the kubelet's files are read.
        ours = self._ours()
        try:
            mounts = read_mountinfo(self._host.paths.proc / "1")
        except OSError as error:
            raise MountTableUnreadable(f"the mount table cannot be read: {error.strerror}") from error
        errors = self._errors(ours, mounts)
        try:
            return Look(ours, mounts, kubelet_volumes(self._root, self._driver), "", errors)
        except KubeletUnreadable as error:
            return Look(ours, mounts, None, str(error), errors)

    def _errors(self, ours: Sequence[Session], mounts: Sequence[Mount]) -> dict[DeviceNumber, Errors]:
        paths = self._host.paths
        names = {disk.number: disk.name for session in ours for disk in session.namespaces}
        first = {mount.number: mount for mount in reversed(mounts_of(mounts, names))}
        # The places are those of the node's first process.
        return {
            number: errors_of(
                mount,
                names[number],
                paths.proc / "1" / "root" / mount.mount_point.lstrip("/"),
                sysfs=paths.sysfs,
                proc=paths.proc,
            )
            for number, mount in first.items()
        }

    # What is found

    def _found(self, look: Look) -> dict[str, frozenset[Problem]]:
        by_volume = {volume_of(session): session for session in look.ours}
        staged = {handle.lower() for handle in look.volumes or ()}
        # Gone is only what was there: after a reboot the kubelet has files of volumes whose pods run elsewhere.
        self._seen = {volume for volume in self._seen if volume in staged or volume in by_volume}
        self._seen |= {volume for volume, session in by_volume.items() if session.namespaces}
        watched = {volume for volume, session in by_volume.items() if not session.going} | (self._seen & staged)
        return {volume: problems_of(by_volume.get(volume), look.mounts, look.errors) for volume in watched}

    def _show_foreign(self, look: Look) -> None:
        foreign = frozenset(
            f"{session.nqn} as {name}" for session in look.ours for name in nvme.foreign_host_names(session, self._node)
        )
        for one in sorted(foreign - self._foreign):
            _log.warning("a session was made under another host NQN than this node's", extra={"session": one})
        self._foreign = foreign

    # Orphans

    async def _end(self, session: Session) -> None:
        """End a session that has been an orphan for long enough, where that is so now."""
        if session.nqn not in self._told:
            self._told.add(session.nqn)
            self._listener.orphan_found(session)
        if not self._clean:
            return
        try:
            async with self._locks.try_hold(volume_of(session)):
                left = await self._end_held(session)
        except Aborted:
            left = "a call for its volume is under way"
        except (SysfsUnreadable, KubeletUnreadable, UsersUnknown, LookTooSlow, CommandError, Rejected) as error:
            left = str(error)
        if left:
            _log.warning("a session that nothing seems to need is left", extra={"nqn": session.nqn, "reason": left})
        else:
            _log.warning("a session that nothing needed was ended", extra={"nqn": session.nqn})
            self._listener.orphan_cleaned(session)

    async def _end_held(self, session: Session) -> str:
        """End it; returns why it was left, or nothing."""
        now = await self._host.looks("look again at a session", lambda: self._again(session.nqn), LOOK_SECONDS)
        if now is None:
            return "it needs no end, or is needed, by now"
        if users := await self._host.users(now):
            return f"its disk is in use: {describe(users)}"
        # Killed after this: the next life finds no session, or one on its way out, which it leaves alone.
        command = nvme.disconnect(session.nqn, prefix=self._orphans.prefix)
        await self._host.run(command, within=command.seconds)
        until = self._monotonic() + GONE_SECONDS
        while await self._host.looks("look for the end of a session", lambda: self._session(session.nqn), LOOK_SECONDS):
            if self._monotonic() >= until:
                return f"it is not gone {GONE_SECONDS:g} s after its end"
            await self._sleep(GONE_POLL)
        return ""

    def _session(self, nqn: str) -> Session | None:
        return find_session(self._host.paths.sysfs, nqn)

    def _again(self, nqn: str) -> Session | None:
        session = self._session(nqn)
        if session is None:
            return None
        volumes = kubelet_volumes(self._root, self._driver)
        return session if may_be_orphan(session, volumes, self._node, self._orphans.prefix) else None
