"""NodePublishVolume and NodeUnpublishVolume as loops: look, decide, do one step, look again.

Each call may end anywhere (a kill, a deadline, a caller that left): whatever it did shows in the next look of its repetition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rds_csi.errors import Unavailable
from rds_csi.node import decisions, filesystems
from rds_csi.node.deadlines import Deadline
from rds_csi.node.decisions import PlaceKind, PublishFound, UnpublishFound
from rds_csi.node.host import Host, Seen
from rds_csi.node.mountinfo import mount_over, mounts_below, mounts_of
from rds_csi.node.mounting import Mounting
from rds_csi.node.reports import MountOperation, NodeReports
from rds_csi.node.requests import Publish
from rds_csi.node.sysfs import DeviceNumber
from rds_records.names import nqn_for

MAX_STEPS: Final = 20
"""A target path that does not settle in so many steps is changed by somebody else at the same time."""


@dataclass(slots=True)
class _Stale:
    """Whether this call found something at the target path that led to another device."""

    found: bool = False


@dataclass(frozen=True, slots=True)
class Publishing:
    """Shows staged volumes to pods, and takes them away from them."""

    host: Host
    mounting: Mounting
    reports: NodeReports

    async def publish(self, asked: Publish, deadline: Deadline) -> None:
        """Show the volume at the target path; raises Rejected, and what ``errors.STATUS_TABLE`` has."""
        stale = _Stale()
        try:
            await self._publish(asked, deadline, stale)
        except Exception as error:
            if stale.found:
                self.reports.stale_mount_recovered(asked.volume_id, asked.path, str(error))
            raise
        if stale.found:
            self.reports.stale_mount_recovered(asked.volume_id, asked.path, "")

    async def _publish(self, asked: Publish, deadline: Deadline, stale: _Stale) -> None:
        nqn = nqn_for(asked.volume_id)
        for _ in range(MAX_STEPS):
            staged = await self.host.see(nqn, asked.staging_path)
            seen = await self.host.see(nqn, asked.path)
            over = mount_over(seen.table, seen.path)
            found = PublishFound(
                session=seen.session,
                staged=staged.mounts,
                place=seen.place,
                mounts=seen.mounts,
                present=seen.present,
                nodev=over is not None and "nodev" in over.options,
                others=await self._others(asked, staged, seen) if asked.single_writer else (),
            )
            if asked.block:
                step = decisions.publish_block(asked.volume_id, found)
            else:
                step = decisions.publish_filesystem(asked.volume_id, asked.options, found)
            if isinstance(step, decisions.Done):
                return
            self._look_for_stale(asked, seen, staged, stale)
            await self._step(step, asked, seen, staged, deadline)
        raise Unavailable(f"volume {asked.volume_id}: {asked.path} is changed by somebody else at the same time")

    async def _others(self, asked: Publish, staged: Seen, seen: Seen) -> tuple[str, ...]:
        """Return where else the volume is published: a kubelet has a volume's device nodes in one directory, one for each pod."""
        if asked.block:
            return await self.host.device_nodes_beside(seen.path, seen.numbers)
        if not staged.mounts:
            return ()
        return decisions.mounted_for_others(mounts_of(seen.table, {staged.mounts[-1].number}), staged.path, seen.path)

    async def _step(self, step: decisions.PublishStep, asked: Publish, seen: Seen, staged: Seen, deadline: Deadline) -> None:
        match step:
            case decisions.MakeDirectory():
                await self.host.make_directory(seen.path)
            case decisions.BindMount():
                command = filesystems.bind(staged.path, seen.path, asked.options)
                await self.mounting.run(asked.volume_id, MountOperation.BIND, command, deadline)
            case decisions.MakeDeviceNode(number):
                await self.host.make_device_node(seen.path, number, read_only=asked.read_only)
            case decisions.MakeFile():
                await self.host.make_file(seen.path)
            case decisions.BindDevice(disk):
                command = filesystems.bind_device(self.host.device(disk), seen.path)
                await self.mounting.run(asked.volume_id, MountOperation.BIND, command, deadline)
            case decisions.Remove(kind):
                # The wrong device node goes before the right one comes: a call that ends between leaves none, and no pod runs yet.
                await self.host.remove(seen.path, kind)
            case decisions.Unmount():
                await self.mounting.unmount(asked.volume_id, seen.mounts[-1], deadline)

    async def unpublish(self, volume_id: str, path: str, deadline: Deadline) -> None:
        """Take the volume from the target path; raises Rejected, and what ``errors.STATUS_TABLE`` has."""
        nqn = nqn_for(volume_id)
        for _ in range(MAX_STEPS):
            seen = await self.host.see(nqn, path)
            step = decisions.unpublish(
                volume_id, UnpublishFound(place=seen.place, mounts=seen.mounts, below=mounts_below(seen.table, seen.path))
            )
            match step:
                case decisions.Done():
                    return
                case decisions.Unmount():
                    await self.mounting.unmount(volume_id, seen.mounts[-1], deadline)
                case decisions.Remove(kind):
                    await self.host.remove(seen.path, kind)
        raise Unavailable(f"volume {volume_id}: {path} is changed by somebody else at the same time")

    def _look_for_stale(self, asked: Publish, seen: Seen, staged: Seen, stale: _Stale) -> None:
        if stale.found:
            return
        old = _leads_to(seen)
        now = next(iter(seen.numbers), None)
        if old is not None and old != now and (asked.block or (staged.mounts and old != staged.mounts[-1].number)):
            stale.found = True
            self.reports.stale_mount_found(asked.volume_id, asked.path, old, now)


def _leads_to(seen: Seen) -> DeviceNumber | None:
    """Return the device that the path leads to, where it leads to one."""
    if seen.place.kind is PlaceKind.BLOCK_DEVICE:
        return seen.place.number
    return seen.mounts[-1].number if seen.mounts else None
