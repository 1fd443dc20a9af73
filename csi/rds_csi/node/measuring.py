"""NodeGetVolumeStats: how large a volume is, and how full where it has a file system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rds_csi.errors import NotFound, Unavailable
from rds_csi.node.decisions import PlaceKind
from rds_csi.node.host import Host
from rds_csi.node.requests import Measure
from rds_csi.spec import csi_pb2
from rds_records.names import nqn_for

_Unit = csi_pb2.VolumeUsage.Unit
BYTES: Final = _Unit.BYTES
INODES: Final = _Unit.INODES


@dataclass(frozen=True, slots=True)
class Measuring:
    """Measures volumes where they are published or staged."""

    host: Host

    async def measure(self, asked: Measure) -> list[csi_pb2.VolumeUsage]:
        """Return bytes, and inodes of a file system; of a block device the bytes it has, for nobody knows which are used.

        A file system that cannot be written to any more is measured all the same. Raises NotFound where nothing of the volume is
        at the path, and Unavailable where its disk is lost, or its file system answers nothing any more.
        """
        seen = await self.host.see(nqn_for(asked.volume_id), asked.path)
        here = f"volume {asked.volume_id} at {asked.path[:120]}"
        if seen.place.kind is PlaceKind.NOTHING or not asked.path.startswith("/"):
            raise NotFound(f"{here}: nothing is there")
        if seen.place.kind is PlaceKind.BLOCK_DEVICE:
            disk = next((one for one in (seen.session.namespaces if seen.session else ()) if one.number == seen.place.number), None)
            if disk is None:
                raise Unavailable(f"{here}: its device {seen.place.number} is not the disk of the volume (any more)")
            return [csi_pb2.VolumeUsage(unit=BYTES, total=disk.size_bytes)]
        if not seen.mounts:
            raise NotFound(f"{here}: nothing is mounted there")
        if seen.mounts[-1].number not in seen.numbers:
            raise Unavailable(f"{here}: what is mounted there is not the disk of the volume (any more)")
        if (await self.host.errors(seen)).dead:
            raise Unavailable(f"{here}: its file system has shut itself down after an error; see the kernel's log of the node")
        space = await self.host.space(seen.path)
        unit = space.f_frsize
        return [
            csi_pb2.VolumeUsage(
                unit=BYTES,
                total=space.f_blocks * unit,
                available=space.f_bavail * unit,
                used=(space.f_blocks - space.f_bfree) * unit,
            ),
            csi_pb2.VolumeUsage(unit=INODES, total=space.f_files, available=space.f_favail, used=space.f_files - space.f_ffree),
        ]
