"""NodeExpandVolume as a loop: look, decide, do one step, look again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rds_csi.errors import FailedPrecondition, Unavailable
from rds_csi.node import decisions, filesystems
from rds_csi.node.commands import CommandFailed
from rds_csi.node.deadlines import Deadline
from rds_csi.node.decisions import ExpandFound
from rds_csi.node.host import Host, Seen
from rds_csi.node.mounting import Mounting
from rds_csi.node.reports import MountOperation
from rds_csi.node.requests import Expand
from rds_records.names import nqn_for

POLL: Final = 0.2
RESCAN_SECONDS: Final = 5.0
"""The kernel is told again after so long: the target may have grown the disk only after it was asked."""

AWAIT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Expanding:
    """Makes volumes as large here as their target made them."""

    host: Host
    mounting: Mounting

    async def expand(self, asked: Expand, deadline: Deadline) -> int:
        """Return the size of the disk in bytes, once the kernel shows it and the file system fills it; raises Rejected.

        A call that ends anywhere is continued by its repetition: growing what is grown changes nothing.
        """
        clock = deadline.clock
        nqn = nqn_for(asked.wanted.volume_id)
        started, rescanned, grown = clock.monotonic(), None, False
        while True:
            seen = await self.host.see(nqn, asked.wanted.path)
            mounted = await self._mounted(nqn, asked, seen)
            found = ExpandFound(
                session=seen.session,
                place=seen.place,
                mounts=mounted.mounts,
                rescanned=rescanned is not None and clock.monotonic() - rescanned < RESCAN_SECONDS,
                grown=grown,
                stopped=await self.host.has_stopped(mounted),
            )
            match decisions.expand(asked.wanted, found):
                case decisions.Done():
                    return _size(seen)
                case decisions.Rescan():
                    rescanned = clock.monotonic()
                    if seen.session is not None:
                        await self.host.rescan(seen.session)
                case decisions.Grow():
                    await self._grow(asked, seen, mounted, deadline)
                    grown = True
                case decisions.Await(what):
                    if clock.monotonic() - started >= AWAIT_SECONDS:
                        raise Unavailable(f"{what}, after {AWAIT_SECONDS:g} s")
                    await deadline.pause(POLL, what)

    async def _mounted(self, nqn: str, asked: Expand, seen: Seen) -> Seen:
        """Return what was seen at the volume path, or at the staging path where nothing is mounted at the other."""
        if seen.mounts or not asked.staging_path:
            return seen
        return await self.host.see(nqn, asked.staging_path)

    async def _grow(self, asked: Expand, seen: Seen, mounted: Seen, deadline: Deadline) -> None:
        if seen.session is None:
            return
        top = mounted.mounts[-1]
        command = filesystems.grow(top.fs_type, self.host.device(seen.session.namespaces[0]), mounted.path)
        try:
            await self.mounting.run(asked.wanted.volume_id, MountOperation.GROW, command, deadline)
        except CommandFailed as error:
            if not (await self.host.errors(mounted)).recorded:
                raise
            raise FailedPrecondition(
                f"volume {asked.wanted.volume_id}: ext4 has recorded errors, and Linux does not grow it online before e2fsck has "
                f"repaired them: {error}"
            ) from error


def _size(seen: Seen) -> int:
    return seen.session.namespaces[0].size_bytes if seen.session and seen.session.namespaces else 0
