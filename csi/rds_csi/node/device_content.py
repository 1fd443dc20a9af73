"""Looking at what is on a device: several times, past every cache, in processes that can be left behind."""

from __future__ import annotations

from typing import Final

from rds_csi.node import filesystems
from rds_csi.node.commands import CommandError, CommandFailed
from rds_csi.node.deadlines import Deadline
from rds_csi.node.filesystems import BLANK_TRIES, Content, Probe, Unknown, conclude
from rds_csi.node.host import Host
from rds_csi.node.sysfs import Namespace, find_session

PAUSE: Final = 0.2
"""Seconds between two looks."""


async def content(host: Host, nqn: str, disk: Namespace, device: str, deadline: Deadline) -> Content:
    """Return what is on the disk, whose device a process can open at ``device``; raises Unavailable where no time is left.

    A command that cannot answer makes the content unknown, never blank.
    """
    probes: list[Probe] = []
    for look in range(BLANK_TRIES):
        if look:
            await deadline.pause(PAUSE, f"no time is left to look at {disk.name}; nothing was written")
        try:
            probes.append(await _probe(host, nqn, disk, device, deadline))
        except CommandError as error:
            return Unknown(str(error))
        found = conclude(probes)
        if not isinstance(found, Unknown):
            break
    return found


async def _probe(host: Host, nqn: str, disk: Namespace, device: str, deadline: Deadline) -> Probe:
    before = _size(host, nqn, disk)
    try:
        sector: bytes | None = (await host.run(filesystems.first_sector(device), within=deadline.left)).raw
    except CommandFailed:
        sector = None
    output = await host.run(filesystems.probe(device), within=deadline.left)
    after = _size(host, nqn, disk)
    return Probe(output.code, output.stdout, disk.number, after if before == after else 0, sector)


def _size(host: Host, nqn: str, disk: Namespace) -> int:
    """Return the size in bytes that the kernel names now; 0 where the disk is another one or gone."""
    session = find_session(host.paths.sysfs, nqn)
    namespaces = session.namespaces if session else ()
    return next((one.size_bytes for one in namespaces if one.number == disk.number), 0)
