"""Mount commands, reported; a mount that is busy is refused by the names of those who use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rds_csi.errors import FailedPrecondition
from rds_csi.node import filesystems
from rds_csi.node.commands import Command, CommandError, CommandFailed
from rds_csi.node.deadlines import Deadline
from rds_csi.node.host import Host
from rds_csi.node.looks import LookTooSlow
from rds_csi.node.mountinfo import Mount
from rds_csi.node.reports import MountOperation, NodeReports
from rds_csi.node.usage import UsersUnknown, describe


@dataclass(frozen=True, slots=True)
class Mounting:
    """Runs what makes, shows, grows and takes off file systems."""

    host: Host
    reports: NodeReports

    async def run(self, volume_id: str, operation: MountOperation, command: Command, deadline: Deadline) -> None:
        """Run a command; raises CommandError, and Unavailable where no time is left."""
        with self._reported(volume_id, operation):
            await self.host.run(command, within=deadline.left)

    async def unmount(self, volume_id: str, mount: Mount, deadline: Deadline) -> None:
        """Take off the uppermost mount at its place; raises FailedPrecondition that names who uses it, and CommandError."""
        with self._reported(volume_id, MountOperation.UNMOUNT):
            try:
                await self.host.run(filesystems.unmount(mount.mount_point), within=deadline.left)
            except CommandFailed as error:
                if "busy" not in error.last_words:
                    raise
                raise FailedPrecondition(
                    f"volume {volume_id} is in use: {mount.mount_point} cannot be unmounted: {await self._users(mount)}"
                ) from error

    async def _users(self, mount: Mount) -> str:
        try:
            users = await self.host.filesystem_users(mount.number)
        except (LookTooSlow, UsersUnknown) as error:
            return f"it is busy, and by whom cannot be told ({error})"
        return describe(users) or "it is busy, and no process shows why"

    @contextmanager
    def _reported(self, volume_id: str, operation: MountOperation) -> Iterator[None]:
        try:
            yield
        except (CommandError, FailedPrecondition) as error:
            self.reports.mount_ended(volume_id, operation, str(error))
            raise
        self.reports.mount_ended(volume_id, operation, "")
