"""What the simulated box holds: disks, files, one pool; kept in one JSON file that is replaced atomically."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.simulator.images import keep

DEFAULT_POOL_SIZE = 7_681_574_174_720
DEFAULT_HEALTH = (
    ("power-consumption", "50.8", "W"),
    ("cpu-temperature", "43", "C"),
    ("fan1-speed", "5654", "RPM"),
    ("fan2-speed", "5610", "RPM"),
    ("fan3-speed", "5625", "RPM"),
    ("fan4-speed", "5640", "RPM"),
    ("board-temperature1", "29", "C"),
    ("board-temperature2", "31", "C"),
    ("psu1-voltage", "0", "V"),
    ("psu2-voltage", "12.1", "V"),
    ("psu1-current", "0", "A"),
    ("psu2-current", "4.2", "A"),
    ("psu1-state", "no-input", ""),
    ("psu2-state", "ok", ""),
)
"""Names, types and layout are those of MikroTik's manual, page "Health"; RouterOS leaves out the type of a state."""


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
    image: int = 0
    """The number of its bytes (see ``Images``)."""
    origin: int = 0
    """The image that it was first copied from: images of one origin share their bytes."""


@dataclass
class Subvolume:
    """One Btrfs subvolume; ``name`` is its path from the file system's root, without a leading slash."""

    id: int
    name: str
    uuid: str
    created: str
    read_only: bool = False

    @property
    def last_name(self) -> str:
        """What ``/disk/btrfs/subvolume`` knows it by."""
        return self.name.rsplit("/", 1)[-1]


@dataclass
class Pool:
    """The mounted file system that the images lie on; ``used_elsewhere`` is what other data takes, in bytes."""

    slot: str = "storage-pool"
    mount_point: str = "storage-pool"
    fs: str = "btrfs"
    size: int = DEFAULT_POOL_SIZE
    used_elsewhere: int = 0
    fs_label: str = ""
    """The file system's label; empty: RouterOS's default."""

    @property
    def label(self) -> str:
        """What ``fs=`` of the Btrfs menus names it by (default ``<slot>-fs``: MikroTik's manual, page "Disks")."""
        return self.fs_label or f"{self.slot}-fs"


@dataclass
class Store:
    """The whole state of the box."""

    pool: Pool = field(default_factory=Pool)
    disks: list[Disk] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    subvolumes: list[Subvolume] = field(default_factory=list)
    health: list[tuple[str, str, str]] = field(default_factory=lambda: list(DEFAULT_HEALTH))
    """Readings of ``/system health``: name, value, type (a unit, or empty for a state)."""
    traffic: dict[str, dict[str, str]] = field(default_factory=dict)
    """What ``/disk monitor-traffic`` prints, by slot; a counter that is not here is zero."""
    next_id: int = 1

    @classmethod
    def load(cls, path: Path) -> "Store":
        """The state kept at ``path``, or a fresh one where there is none."""
        if not path.exists():
            return cls()
        return cls.read(path.read_text())

    @classmethod
    def read(cls, text: str) -> "Store":
        """The state that ``text`` wrote down."""
        kept = json.loads(text)
        return cls(
            pool=Pool(**kept["pool"]),
            disks=[Disk(**disk) for disk in kept["disks"]],
            files={file["name"]: File(**file) for file in kept["files"]},
            subvolumes=[Subvolume(**subvolume) for subvolume in kept["subvolumes"]],
            health=[(name, value, kind) for name, value, kind in kept["health"]],
            traffic=kept["traffic"],
            next_id=kept["next_id"],
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are kept and as tests see them."""
        return {
            "pool": asdict(self.pool),
            "disks": [asdict(disk) for disk in self.disks],
            "files": [asdict(file) for file in self.files.values()],
            "subvolumes": [asdict(subvolume) for subvolume in self.subvolumes],
            "health": self.health,
            "traffic": self.traffic,
            "next_id": self.next_id,
        }

    def text(self) -> str:
        """Everything, to be read again."""
        return json.dumps(self.as_dict())

    def save(self, path: Path, *, durably: bool = False) -> None:
        """Replace the file at ``path`` in one step: a kill leaves the old state or the new one; ``durably``: a power cut too."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(self.text())
        if durably:
            keep(fresh)
        os.replace(fresh, path)  # noqa: PTH105
        if durably:
            keep(path)

    def new_id(self) -> int:
        """A number that nothing had before."""
        self.next_id += 1
        return self.next_id - 1

    def free(self, *, thick: bool) -> int:
        """Bytes left in the pool; thin images take none of it (whether real ones are sparse is not known).

        Images that share their bytes are counted once, by the longest of them, also after one of them was written to.
        """
        images: dict[int, int] = {}
        for file in self.files.values() if thick else ():
            if file.kind == "file":
                images[file.origin] = max(file.size, images.get(file.origin, 0))
        return max(0, self.pool.size - self.pool.used_elsewhere - sum(images.values()))

    def images(self) -> set[int]:
        """The numbers of all images."""
        return {file.image for file in self.files.values() if file.kind == "file"}

    # Files and directories

    def make_image(self, name: str, size: int) -> None:
        """Add an image that was never written to, with the directories above it."""
        self.make_directories(name.rpartition("/")[0])
        number = self.new_id()
        self.files[name] = File(name, size=size, image=number, origin=number)

    def make_directories(self, name: str) -> None:
        """Add a directory and those above it, as far as they are missing; a mount point is none of them."""
        parts = name.split("/")
        for depth in range(2, len(parts) + 1):
            above = "/".join(parts[:depth])
            self.files.setdefault(above, File(above, kind="directory"))

    def below(self, directory: str) -> list[File]:
        """Everything in a directory, at any depth."""
        return [file for file in self.files.values() if file.name.startswith(directory + "/")]

    # Subvolumes

    def directory_of(self, subvolume: Subvolume) -> str:
        """A subvolume's name in ``/file``."""
        return f"{self.pool.mount_point}/{subvolume.name}"

    def subvolume_around(self, name: str) -> Subvolume | None:
        """The innermost subvolume that a file lies in; a subvolume's own directory lies in the one above."""
        around = [each for each in self.subvolumes if name.startswith(self.directory_of(each) + "/")]
        return max(around, key=lambda each: len(each.name), default=None)

    def is_read_only(self, name: str) -> bool:
        """Whether a file or directory cannot be made, changed or removed because of where it is."""
        around = self.subvolume_around(name)
        return around is not None and around.read_only
