"""How the simulated box behaves; every switch may be changed while it runs."""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Switches:
    """Defaults are the behaviour that was seen or is documented; see each switch for what is not known."""

    latency: dict[str, float] = field(default_factory=dict)
    """Seconds before a command takes effect, by the beginning of its text; the longest beginning that fits counts."""
    error_stream: str = "stdout"
    """``stdout`` or ``stderr``; public tools report stdout."""
    error_status: int = 0
    """Exit status of a command that failed; public tools report 0."""
    width: int = 80
    """Columns of a line."""
    slot_limit: int | None = None
    """Slots are cut off above this many characters (a public driver reports 32; 40 were seen on 7.16)."""
    max_sessions: int | None = None
    """Sessions that one connection may hold at a time; 1 refuses parallel ones."""
    black_hole: bool = False
    """TCP connections are accepted, nothing is answered any more; those that exist freeze. Ends them when switched off."""
    full_pool: bool = False
    """No byte is left in the pool."""
    thick: bool = True
    """Images take their whole size from the pool at once. Not known for real boxes."""
    existing_file: str = "attach"
    """What ``/disk add`` does with a file that exists, with and without ``file-size``: ``attach`` it with its old size and data,
    or ``refuse``. Not known."""
    version: str = "7.16"
    """RouterOS's version. From 7.18 on there is ``/disk/btrfs``; 7.24 prints ``/file`` and empty answers in another layout."""
    rose_storage: bool = True
    """Whether the package rose-storage is installed: without it there is neither Btrfs nor NVMe/TCP."""
    allow_host_name: str = "many"
    """What ``nvme-tcp-server-allow-host-name`` takes: ``many`` names with commas between them, ``one`` (what comes after the
    first comma is cut off), or ``refuse``: the box is too old and has no such property, neither to set nor to print. Which of
    these a version of RouterOS does is not known: the property was seen in captures of 7.16 and 7.24, always empty."""
    missing_parent: str = "refuse"
    """What ``/disk/btrfs/subvolume/add`` does where the directory above is missing: ``refuse`` or ``create`` it. Not known."""
    missing_item: str = "silent"
    """``set`` and ``remove`` of ``[find …]`` without a match: ``silent`` or ``no such item``. Not known for ``/disk``."""

    def change(self, values: dict[str, Any]) -> None:
        """Set some of the switches; an unknown name is a ValueError and changes nothing."""
        unknown = values.keys() - {switch.name for switch in fields(self)}
        if unknown:
            raise ValueError(f"no such switch: {', '.join(sorted(unknown))}")
        if not re.fullmatch(r"7(\.\d+)+", values.get("version", self.version)):
            raise ValueError(f"no such version: {values['version']}")
        for name, value in values.items():
            setattr(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers that can be compared."""
        return tuple(int(part) for part in self.version.split("."))

    def latency_of(self, command: str) -> float:
        """Seconds that this command waits."""
        fitting = [beginning for beginning in self.latency if command.startswith(beginning)]
        return self.latency[max(fitting, key=len)] if fitting else 0.0
