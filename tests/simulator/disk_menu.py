"""``/disk``: the pool and the ``type=file`` disks on it."""

import re
from collections.abc import Callable, Iterable, Mapping

from tests.simulator import frame
from tests.simulator.language import ConsoleError, Word
from tests.simulator.menu import Call, Menu, Row, end_expected, items, read_yes_no, yes_no
from tests.simulator.store import Disk

SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
NO_BARE_LEGEND_FROM = (7, 24)

_YES_NO = {"nvme-tcp-export", "mount-filesystem", "mount-read-only", "compress"}
ALLOW = "nvme-tcp-server-allow-host-name"
_TEXT = {"nvme-tcp-server-nqn", ALLOW}
_SETTABLE = {"type", "slot", "file-path", "file-size", "nvme-tcp-server-port"} | _YES_NO | _TEXT

COUNTERS = {
    "read-ops": "0", "read-ops-per-second": "0", "read-bytes": "0", "read-rate": "0bps", "read-merges": "0", "read-time": "0ms",
    "write-ops": "0", "write-ops-per-second": "0", "write-bytes": "0", "write-rate": "0bps", "write-merges": "0",
    "write-time": "0ms", "in-flight-ops": "0", "active-time": "0ms", "wait-time": "0ms", "discard-ops": "0",
    "discard-bytes": "0", "discard-merges": "0", "discard-time": "0ms", "flush-ops": "0", "flush-time": "0ms",
}  # fmt: skip
"""What ``monitor-traffic`` prints, in its order, at zero (a capture of 7.16)."""


class DiskMenu(Menu):
    """The pool first, then the disks in the order in which they were added."""

    path = "/disk"
    key = "slot"

    @property
    def commands(self) -> Mapping[str, Callable[[Call], str]]:
        """What changes disks, and their traffic."""
        return {"add": self._add, "set": self._set, "remove": self._remove, "monitor-traffic": self._traffic}

    def rows(self) -> list[Row]:
        """Pool and disks."""
        known = self._settable
        return [self._pool_row(), *(_disk_row(number, disk, known) for number, disk in enumerate(self.store.disks, start=1))]

    def layout(self, rows: Iterable[Row]) -> str:
        """The frame of the version."""
        bare_legend = self.switches.release < NO_BARE_LEGEND_FROM
        return frame.disk_answer(items(rows), self.switches.width, bare_legend=bare_legend)

    # Commands

    @property
    def _settable(self) -> set[str]:
        if not self.switches.rose_storage:
            return {key for key in _SETTABLE if not key.startswith("nvme-tcp-")}
        return _SETTABLE - {ALLOW} if self.switches.allow_host_name == "refuse" else _SETTABLE

    def _properties(self, call: Call, after: int = 0) -> dict[str, str]:
        values = call.arguments(self._settable, after=after)
        if ALLOW in values and self.switches.allow_host_name == "one":
            values[ALLOW] = values[ALLOW].partition(",")[0]
        return values

    def _add(self, call: Call) -> str:
        values = self._properties(call)
        if values.pop("type", None) != "file":
            raise ConsoleError("input does not match any value of type")
        if "file-path" not in values:
            raise ConsoleError("missing =file-path=")
        path = "/" + values.pop("file-path").lstrip("/")
        slot = values.pop("slot", "file" + path.replace("/", "-"))
        if self.switches.slot_limit is not None:
            slot = slot[: self.switches.slot_limit]
        if any(disk.slot == slot for disk in self.store.disks):
            raise ConsoleError("failure: already have such entry")
        disk = Disk(id=0, slot=slot, file_path=path, size=0)
        wanted = values.pop("file-size", None)
        _set_properties(disk, values)
        disk.size = self._backing_file(path.lstrip("/"), wanted)
        disk.id = self.store.new_id()
        self.store.disks.append(disk)
        return ""

    def _backing_file(self, name: str, wanted: str | None) -> int:
        """Make the image, with the directories above it (seen on 7.16), or take the one that is there; its size."""
        if self.store.is_read_only(name):
            raise ConsoleError("failure: read-only file system")
        if (old := self.store.files.get(name)) is not None:
            if self.switches.existing_file == "refuse" or old.kind != "file":
                raise ConsoleError("failure: file already exists")
            return old.size
        if wanted is None:
            raise ConsoleError("missing =file-size=")
        size = _size(wanted)
        self.machine.take_space(size)
        self.store.make_image(name, size)
        return size

    def _set(self, call: Call) -> str:
        rows = call.targets(call.rest[:1])
        values = self._properties(call, after=1)
        wanted = values.pop("file-size", None)
        for disk in self._disks(rows):
            _set_properties(disk, dict(values))
            if wanted is not None:
                self._resize(disk, _size(wanted))
        return ""

    def _resize(self, disk: Disk, size: int) -> None:
        if size > disk.size:
            self.machine.take_space(size - disk.size)
        disk.size = size
        if (file := self.store.files.get(disk.file_path.lstrip("/"))) is not None:
            file.size = size
            self.machine.grow_image(file.image, size)

    def _remove(self, call: Call) -> str:
        # The image stays (seen on 7.16, and MikroTik's reference of /disk says so).
        for disk in self._disks(call.targets(call.rest)):
            self.store.disks.remove(disk)
            self.store.traffic.pop(disk.slot, None)
        return ""

    def _disks(self, rows: list[Row]) -> list[Disk]:
        keys = {row.key for row in rows}
        return [disk for disk in self.store.disks if disk.id in keys]

    def _traffic(self, call: Call) -> str:
        # Without "once" RouterOS goes on for ever; nothing of ours may send that.
        if len(call.rest) != 2 or not (isinstance(call.rest[1], Word) and call.rest[1].text == "once"):
            raise end_expected(call.rest[-1].column if call.rest else 1)
        printed = ""
        for row in call.targets(call.rest[:1]):
            slot = row.values["slot"]
            printed += frame.readings({"slot": slot, **COUNTERS, **self.store.traffic.get(slot, {})}, right=True)
        return printed

    # Rows

    def _pool_row(self) -> Row:
        pool = self.store.pool
        free = 0 if self.switches.full_pool else self.store.free(thick=self.switches.thick)
        use = 100 - free * 100 // pool.size
        values = {
            "type": "raid", "slot": pool.slot, "fs": pool.fs, "fs-label": pool.label, "size": str(pool.size), "free": str(free),
            "mount-point": pool.mount_point, "nvme-tcp-export": "no",
        }  # fmt: skip
        export = ["nvme-tcp-export=no"] if self.switches.rose_storage else []
        printed = [
            "type=raid", f"slot={frame.quoted(pool.slot)}", 'slot-default=""', 'parent=""', f"fs-label={frame.quoted(pool.label)}",
            'fs-uuid="40437dbc-2318-45dc-817b-b3bb95cf48ab"', f"fs={pool.fs}", 'model="RAID0 striped"',
            f"size={frame.thousands(pool.size)}", f"free={frame.thousands(free)}", f"use={use}%",
            f"mount-point={frame.quoted(pool.mount_point)}", "mount-filesystem=yes", 'state="clean"',
            'raid-uuid="eadca0af-ecff031c-239758ad-951a47de"', *export, "iscsi-export=no",
        ]  # fmt: skip
        return Row(0, 0, values, printed, frozenset("BM"))


def _disk_row(number: int, disk: Disk, known: set[str]) -> Row:
    exports = "nvme-tcp-export" in known
    values = {
        "type": "file", "slot": disk.slot, "model": disk.file_path, "size": str(disk.size), "file-path": disk.file_path,
        "mount-point": "",
    }  # fmt: skip
    export = []
    if exports:
        values |= {
            "nvme-tcp-export": yes_no(disk.nvme_tcp_export), "nvme-tcp-server-port": str(disk.nvme_tcp_server_port),
            "nvme-tcp-server-nqn": disk.nvme_tcp_server_nqn,
        }  # fmt: skip
        if ALLOW in known:
            values[ALLOW] = disk.nvme_tcp_server_allow_host_name
        export = [f"nvme-tcp-export={yes_no(disk.nvme_tcp_export)}"]
    if exports and disk.nvme_tcp_export:
        export += [
            f"nvme-tcp-server-port={disk.nvme_tcp_server_port}",
            f"nvme-tcp-server-nqn={frame.quoted(disk.nvme_tcp_server_nqn)}",
        ]
        if ALLOW in known:
            export.append(f"{ALLOW}={frame.quoted(disk.nvme_tcp_server_allow_host_name)}")
    printed = [
        "type=file", f"slot={frame.quoted(disk.slot)}", 'slot-default=""', 'parent=""', "fs=-",
        f"model={frame.quoted(disk.file_path)}", f"size={frame.thousands(disk.size)}",
        f"mount-filesystem={yes_no(disk.mount_filesystem)}", f"mount-read-only={yes_no(disk.mount_read_only)}",
        f"compress={yes_no(disk.compress)}", "sector-size=512", "raid-master=none", *export,
        "iscsi-export=no", "nfs-sharing=no", "smb-sharing=no", "media-sharing=no", "media-interface=none", "swap=no",
        f"file-path={disk.file_path}", f"file-size={frame.rounded(disk.size)}", "file-offset=0",
    ]  # fmt: skip
    return Row(disk.id, number, values, printed, frozenset("Bt" if exports and disk.nvme_tcp_export else "B"))


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if match is None:
        raise ConsoleError("invalid value for argument file-size")
    return int(match[1]) * SUFFIXES[match[2]]


def _set_properties(disk: Disk, values: dict[str, str]) -> None:
    """Check every value, then set them all."""
    ready: dict[str, bool | int | str] = {}
    for key, value in values.items():
        if key in _YES_NO:
            ready[key] = read_yes_no(key, value)
        elif key == "nvme-tcp-server-port":
            if not (value.isdecimal() and 0 < int(value) < 65536):
                raise ConsoleError(f"invalid value for argument {key}")
            ready[key] = int(value)
        elif key in _TEXT or key == "slot":
            ready[key] = value
        else:
            raise ConsoleError(f"invalid value for argument {key}")
    for key, checked in ready.items():
        setattr(disk, key.replace("-", "_"), checked)
