"""What the simulated box holds: disks, files, one pool; kept in one JSON file that is replaced atomically."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_POOL_SIZE = 7_681_574_174_720


@dataclass
class Disk:
    """One ``type=file`` item of ``/disk``. Booleans are kept as booleans, sizes in bytes."""

    id: int
    slot: str
    file_path: str
    size: int
    nvme_tcp_export: bool = False
    nvme_tcp_server_port: int = 4420
    nvme_tcp_server_nqn: str = ""
    nvme_tcp_server_allow_host_name: str = ""
    mount_filesystem: bool = True
    mount_read_only: bool = False
    compress: bool = False


@dataclass
class File:
    """One row of ``/file``: ``kind`` is ``file``, ``directory`` or ``disk`` (a mount point); names have no leading slash."""

    name: str
    kind: str = "file"
    size: int = 0
    modified: str = "2025-11-11 12:00:00"


@dataclass
class Pool:
    """The mounted file system that the images lie on; ``used_elsewhere`` is what other data takes, in bytes."""

    slot: str = "storage-pool"
    mount_point: str = "storage-pool"
    fs: str = "btrfs"
    size: int = DEFAULT_POOL_SIZE
    used_elsewhere: int = 0


@dataclass
class Store:
    """The whole state of the box."""

    pool: Pool = field(default_factory=Pool)
    disks: list[Disk] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    next_id: int = 1

    @classmethod
    def load(cls, path: Path) -> "Store":
        """The state kept at ``path``, or a fresh one where there is none."""
        if not path.exists():
            return cls()
        kept = json.loads(path.read_text())
        return cls(
            pool=Pool(**kept["pool"]),
            disks=[Disk(**disk) for disk in kept["disks"]],
            files={file["name"]: File(**file) for file in kept["files"]},
            next_id=kept["next_id"],
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are kept and as tests see them."""
        return {
            "pool": asdict(self.pool),
            "disks": [asdict(disk) for disk in self.disks],
            "files": [asdict(file) for file in self.files.values()],
            "next_id": self.next_id,
        }

    def save(self, path: Path) -> None:
        """Replace the file at ``path`` in one step: a kill leaves the old state or the new one."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps(self.as_dict()))
        os.replace(fresh, path)  # noqa: PTH105

    def free(self, *, thick: bool) -> int:
        """Bytes left in the pool; thin images take none of it (whether real ones are sparse is not known)."""
        images = sum(file.size for file in self.files.values() if file.kind == "file") if thick else 0
        return max(0, self.pool.size - self.pool.used_elsewhere - images)
