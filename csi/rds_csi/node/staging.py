"""NodeStageVolume and NodeUnstageVolume as loops: look, decide, do one step, look again.

Each call may end anywhere (a kill, a deadline, a caller that left): whatever it did shows in the next look of its repetition.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from rds_csi.errors import AlreadyExists, FailedPrecondition, Unavailable
from rds_csi.node import decisions, filesystems, nvme
from rds_csi.node.connecting import Connecting
from rds_csi.node.deadlines import Deadline
from rds_csi.node.decisions import StageFound, UnstageFound
from rds_csi.node.device_content import content
from rds_csi.node.filesystem_errors import has_stopped
from rds_csi.node.filesystems import Content
from rds_csi.node.host import Host, Seen
from rds_csi.node.mountinfo import mounts_below, mounts_of
from rds_csi.node.mounting import Mounting
from rds_csi.node.reports import MountOperation, NodeReports
from rds_csi.node.requests import Stage
from rds_csi.node.sysfs import DeviceNumber, Namespace
from rds_csi.node.usage import User
from rds_records.names import nqn_for

_log = logging.getLogger(__name__)

POLL: Final = 0.1
"""Seconds between two looks while something is awaited."""

DISK_SECONDS: Final = 10.0
"""How long a live controller gets to show its disk."""

AWAIT_SECONDS: Final = 60.0
"""How long anything else is awaited in one call."""

MAX_STEPS: Final = 40
"""A volume that does not settle in so many steps is changed by somebody else at the same time."""


@dataclass(slots=True)
class _Looked:
    """What this call has found out and done so far, beyond what each look shows."""

    content: Content | None = None
    users: tuple[User, ...] | None = None
    reconnected: bool = False
    grown: bool = False
    awaited_since: float | None = None
    steps: int = 0
    held: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Keeps the device open that was looked at, so that what is formatted is what was found blank."""

    device: str = ""
    """Leads to it."""

    number: DeviceNumber | None = None
    stale: str = ""
    """The path at which something stale was found."""

    def step(self, volume_id: str) -> None:
        self.steps += 1
        self.awaited_since = None
        if self.steps > MAX_STEPS:
            raise Unavailable(f"volume {volume_id} is changed by somebody else at the same time; no end after {MAX_STEPS} steps")

    async def forget_device(self) -> None:
        await self.held.aclose()
        self.held = AsyncExitStack()
        self.device, self.number = "", None
        self.content = self.users = None


@dataclass(frozen=True, slots=True)
class Staging:
    """Brings volumes to this node and takes them away."""

    host: Host
    connecting: Connecting
    mounting: Mounting
    reports: NodeReports
    prefix: str

    async def stage(self, asked: Stage, deadline: Deadline) -> None:
        """Connect the volume, and mount it unless it is a block device; raises Rejected, and what ``errors.STATUS_TABLE`` has.

        A refusal that the caller takes for final leaves no session behind: it would call no NodeUnstageVolume for it, and another
        node would get the volume. Where somebody uses the session it stays, and the refusal is Unavailable.
        """
        looked = _Looked()
        try:
            await self._stage(asked, deadline, looked)
        except (FailedPrecondition, AlreadyExists) as error:
            self._recovered(asked.wanted.volume_id, looked, str(error))
            await looked.forget_device()
            if left := await self._withdraw(asked, deadline):
                raise Unavailable(f"{error}. Its session is left here: {left}") from error
            raise
        except Exception as error:
            self._recovered(asked.wanted.volume_id, looked, str(error))
            raise
        finally:
            await looked.forget_device()
        self._recovered(asked.wanted.volume_id, looked, "")

    async def _stage(self, asked: Stage, deadline: Deadline, looked: _Looked) -> None:
        wanted = asked.wanted
        while True:
            seen = await self.host.see(wanted.target.nqn, asked.path)
            # Whoever waits for its data is served; the health watch tells of it.
            errors = await self.host.errors(seen)
            keeps_size = bool(seen.mounts) and (errors.recorded > 0 or has_stopped(seen.mounts[-1], errors))
            step = decisions.stage(wanted, self._stage_found(seen, looked, deadline, keeps_size=keeps_size))
            match step:
                case decisions.Done():
                    return
                case decisions.Await(what):
                    await _wait(looked, deadline, what)
                    continue
            looked.step(wanted.volume_id)
            await self._stage_step(step, asked, seen, looked, deadline)

    def _stage_found(self, seen: Seen, looked: _Looked, deadline: Deadline, *, keeps_size: bool) -> StageFound:
        since = looked.awaited_since
        return StageFound(
            session=seen.session,
            place=seen.place,
            mounts=seen.mounts,
            present=seen.present,
            content=looked.content,
            users=looked.users,
            waited=since is not None and deadline.clock.monotonic() - since >= DISK_SECONDS,
            reconnected=looked.reconnected,
            grown=looked.grown,
            keeps_size=keeps_size,
        )

    async def _stage_step(self, step: decisions.StageStep, asked: Stage, seen: Seen, looked: _Looked, deadline: Deadline) -> None:
        wanted = asked.wanted
        match step:
            case decisions.Connect():
                await looked.forget_device()
                await self.connecting.connect(wanted.volume_id, wanted.target, deadline)
            case decisions.Disconnect():
                # A call that ends here leaves no session, or one on its way out: the next one waits for its end and connects.
                await looked.forget_device()
                await self._disconnect(wanted.target.nqn, deadline)
                looked.reconnected = True
            case decisions.LookAtContent():
                disk = _disk(seen)
                if looked.number != disk.number:
                    await looked.forget_device()
                    looked.device, looked.number = await looked.held.enter_async_context(self.host.hold(disk)), disk.number
                looked.content = await content(self.host, wanted.target.nqn, disk, looked.device, deadline)
            case decisions.LookForUsers():
                looked.users = await self.host.users(seen.session)
            case decisions.Format(fs_type, over_unfinished):
                # Killed in it: mkfs.ext4 leaves a blank device, mkfs.xfs an unfinished one; both are formatted again.
                command = filesystems.make(fs_type, looked.device, over_unfinished=over_unfinished)
                looked.content = None
                await self.mounting.run(wanted.volume_id, MountOperation.FORMAT, command, deadline)
            case decisions.MakeDirectory():
                await self.host.make_directory(seen.path)
            case decisions.MountDevice():
                command = filesystems.mount(wanted.fs_type, self.host.device(_disk(seen)), seen.path, asked.options)
                await self.mounting.run(wanted.volume_id, MountOperation.MOUNT, command, deadline)
            case decisions.Unmount():
                self._found_stale(wanted.volume_id, seen, looked)
                await self.mounting.unmount(wanted.volume_id, seen.mounts[-1], deadline)
            case decisions.Grow():
                command = filesystems.grow(wanted.fs_type, self.host.device(_disk(seen)), seen.path)
                await self.mounting.run(wanted.volume_id, MountOperation.GROW, command, deadline)
                looked.grown = True
            case decisions.SetReadOnly(disk):
                await self.host.run(filesystems.set_read_only(self.host.device(disk)), within=deadline.left)

    async def unstage(self, volume_id: str, path: str, deadline: Deadline) -> None:
        """Unmount the volume and end its session; raises Rejected, and what ``errors.STATUS_TABLE`` has."""
        looked = _Looked()
        nqn = nqn_for(volume_id)
        while True:
            seen = await self.host.see(nqn, path)
            step = decisions.unstage(volume_id, _unstage_found(seen, looked))
            match step:
                case decisions.Done():
                    return
                case decisions.Await(what):
                    await _wait(looked, deadline, what)
                    continue
            looked.step(volume_id)
            match step:
                case decisions.Unmount():
                    await self.mounting.unmount(volume_id, seen.mounts[-1], deadline)
                    looked.users = None
                case decisions.LookForUsers():
                    looked.users = await self.host.users(seen.session)
                case decisions.Disconnect():
                    # A call that ends here left a session on its way out, or none: both are what the next one looks for.
                    await self._disconnect(nqn, deadline)

    async def _disconnect(self, nqn: str, deadline: Deadline) -> None:
        await self.host.run(nvme.disconnect(nqn, prefix=self.prefix), within=deadline.left)

    async def _withdraw(self, asked: Stage, deadline: Deadline) -> str:
        """End the session of a volume that was refused and is not staged here; returns why it is left, or may be, or nothing."""
        volume_id = asked.wanted.volume_id
        try:
            if not (await self.host.see(asked.wanted.target.nqn, asked.path)).mounts:
                await self.unstage(volume_id, asked.path, deadline)
        except Exception as error:  # noqa: BLE001 the refusal is what the caller must hear of
            _log.warning("a session is left after a refusal", extra={"volume": volume_id, "error": str(error)})
            return str(error) or type(error).__name__
        return ""

    def _found_stale(self, volume_id: str, seen: Seen, looked: _Looked) -> None:
        old = seen.mounts[-1].number
        if old not in seen.numbers:
            looked.stale = seen.path
            self.reports.stale_mount_found(volume_id, seen.path, old, next(iter(seen.numbers), None))

    def _recovered(self, volume_id: str, looked: _Looked, failure: str) -> None:
        if looked.stale:
            self.reports.stale_mount_recovered(volume_id, looked.stale, failure)
            looked.stale = ""


def _unstage_found(seen: Seen, looked: _Looked) -> UnstageFound:
    numbers = seen.numbers | {mount.number for mount in seen.mounts}
    return UnstageFound(
        session=seen.session,
        mounts=seen.mounts,
        elsewhere=tuple(mount for mount in mounts_of(seen.table, numbers) if mount.mount_point != seen.path),
        below=mounts_below(seen.table, seen.path),
        present=seen.present,
        users=looked.users,
    )


def _disk(seen: Seen) -> Namespace:
    if seen.session is None or len(seen.session.namespaces) != 1:
        raise Unavailable(f"the disk went away while {seen.path} was looked at")
    return seen.session.namespaces[0]


async def _wait(looked: _Looked, deadline: Deadline, what: str) -> None:
    now = deadline.clock.monotonic()
    if looked.awaited_since is None:
        looked.awaited_since = now
    looked.users = None
    if now - looked.awaited_since >= AWAIT_SECONDS:
        raise Unavailable(f"{what}, after {AWAIT_SECONDS:g} s")
    await deadline.pause(POLL, what)
