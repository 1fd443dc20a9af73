"""What the commands do to the store and what they answer (no I/O but the line it is given and the text it returns).

Wordings: ``failure: …``, ``bad command name``, ``expected end of command``, ``syntax error``, ``input does not match any value
of``, ``invalid value for argument`` and ``no such item`` are RouterOS's generic ones (MikroTik's manual, pages "Scripting" and
"REST API"). ``failure: not enough space`` is the only one that is not confirmed by either.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.simulator import frame
from tests.simulator.language import Command, ConsoleError, Pair, Word, read_line
from tests.simulator.store import Disk, File, Store
from tests.simulator.switches import Switches

SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
IGNORED_IN_TYPE_FILE = {"file-offset"}


@dataclass(frozen=True)
class Answer:
    """What was printed, and what went wrong then (empty: nothing did)."""

    text: str
    error: str = ""


@dataclass(frozen=True)
class Menu:
    """One menu as tables of its rows: what ``where`` compares, and what is printed."""

    rows: Callable[[], list["Row"]]
    layout: Callable[[list[frame.Item], int], str]


@dataclass(frozen=True)
class Row:
    """One item of a menu: ``key`` is the store's own key, ``values`` are raw (for ``where`` and ``get``)."""

    key: int | str
    number: int
    flags: frozenset[str]
    values: Mapping[str, str]
    printed: list[str]


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


class Console:
    """Runs command lines against a store."""

    def __init__(self, store: Store, switches: Switches) -> None:
        self.store = store
        self.switches = switches
        self._menus = {
            "/disk": Menu(self._disk_rows, frame.disk_answer),
            "/file": Menu(self._file_rows, frame.file_answer),
        }

    def run(self, line: str) -> Answer:
        """The answer to one line; commands before a failing one have taken effect and have printed."""
        printed = ""
        try:
            for command in read_line(line):
                printed += self._run(command)
        except ConsoleError as error:
            return Answer(printed, f"{error}{frame.EOL}")
        return Answer(printed)

    # Commands

    def _run(self, command: Command) -> str:
        head = command.items[0]
        if isinstance(head, Word) and head.text == ":put":
            return self._value(self._one_operand(command)) + frame.EOL
        menu, verb, rest = self._resolve(command)
        run = {
            ("/disk", "add"): self._disk_add,
            ("/disk", "set"): self._disk_set,
            ("/disk", "remove"): self._disk_remove,
            ("/file", "remove"): self._file_remove,
        }.get((menu, verb))
        if run is not None:
            run(rest)
            return ""
        if verb == "print":
            return self._print(self._menus[menu], rest)
        if verb in ("find", "get"):
            return ""  # a value that nothing prints
        raise _bad_command(verb, command)

    def _resolve(self, command: Command, menu: str = "") -> tuple[str, str, list[Word | Pair | Command]]:
        """Menu, verb and the rest; ``/disk add`` and ``/disk/add`` are the same."""
        items = list(command.items)
        words: list[str] = []
        while items and isinstance(items[0], Word) and not items[0].is_quoted:
            text = items[0].text
            parts = [part for part in text.split("/") if part]
            if words and not text.startswith("/") and (menu in self._menus and words[-1:] != [menu[1:]]):
                break
            items.pop(0)
            if text.startswith("/"):
                words, menu = [], ""
            words += parts
            if not menu and words:
                menu = "/" + words[0]
                words = words[1:]
            if words:
                break
        if menu not in self._menus:
            raise _bad_command(menu.strip("/") or "?", command)
        if len(words) != 1:
            raise _bad_command(" ".join(words) or menu.strip("/"), command)
        return menu, words[0], items

    def _one_operand(self, command: Command) -> Word | Pair | Command:
        if len(command.items) != 2:
            raise ConsoleError(f"expected end of command (line 1 column {_column(command.items[-1])})")
        return command.items[1]

    def _value(self, operand: Word | Pair | Command) -> str:
        if isinstance(operand, Word):
            return operand.text
        if isinstance(operand, Pair):
            raise ConsoleError(f"expected end of command (line 1 column {operand.column})")
        head = operand.items[0] if operand.items else None
        if isinstance(head, Word) and head.text == ":len":
            inner = self._one_operand(operand)
            return str(len(self._found(inner))) if isinstance(inner, Command) else str(len(self._value(inner)))
        menu, verb, rest = self._resolve(operand)
        if verb == "get":
            return self._get(menu, rest)
        if verb == "find":
            return ";".join(f"*{row.key}" for row in self._matching(menu, rest))
        raise _bad_command(verb, operand)

    def _found(self, command: Command, menu: str = "") -> list[Row]:
        menu, verb, rest = self._resolve(command, menu)
        if verb != "find":
            raise _bad_command(verb, command)
        return self._matching(menu, rest)

    def _get(self, menu: str, rest: list[Word | Pair | Command]) -> str:
        if len(rest) != 2 or not isinstance(rest[1], Word):
            raise ConsoleError("expected end of command (line 1 column 1)")
        rows = self._targets(menu, rest[:1])
        if len(rows) != 1:
            raise ConsoleError("no such item")
        name = rest[1].text
        if name not in rows[0].values:
            raise ConsoleError(f"input does not match any value of value-name (line 1 column {rest[1].column})")
        return rows[0].values[name]

    def _print(self, menu: Menu, rest: list[Word | Pair | Command]) -> str:
        name = next(name for name, known in self._menus.items() if known is menu)
        words = [item.text for item in rest if isinstance(item, Word) and item.text in ("detail", "count-only")]
        conditions = [item for item in rest if not (isinstance(item, Word) and item.text in ("detail", "count-only"))]
        rows = self._matching(name, conditions)
        if "count-only" in words:
            return f"{len(rows)}{frame.EOL}"
        items = [frame.Item(row.number, row.flags, row.printed) for row in rows]
        return menu.layout(items, self.switches.width)

    # Finding

    def _matching(self, menu: str, rest: Iterable[Word | Pair | Command]) -> list[Row]:
        """The rows that every condition fits; ``where`` may stand before them, ``and`` between them."""
        rows = self._menus[menu].rows()
        for item in rest:
            if isinstance(item, Word) and item.text in ("where", "and"):
                continue
            if not isinstance(item, Pair):
                raise ConsoleError(f"expected end of command (line 1 column {_column(item)})")
            wanted = item.value if isinstance(item.value, str) else self._value(item.value)
            rows = [row for row in rows if _fits(menu, row, item.key, item.sign, wanted)]
        return rows

    def _targets(self, menu: str, rest: list[Word | Pair | Command]) -> list[Row]:
        """The rows that ``set``, ``remove`` or ``get`` name: ``[find …]`` or the slot (or file) name itself."""
        if len(rest) != 1:
            raise ConsoleError("expected end of command (line 1 column 1)")
        target = rest[0]
        if isinstance(target, Command):
            rows = self._found(target, menu)
            if not rows and self.switches.missing_item != "silent":
                raise ConsoleError("no such item")
            return rows
        if isinstance(target, Word):
            rows = [row for row in self._menus[menu].rows() if target.text in (row.values.get("slot"), row.values.get("name"))]
            if not rows:
                raise ConsoleError("no such item")
            return rows
        raise ConsoleError(f"expected end of command (line 1 column {target.column})")

    # /disk

    def _disk_add(self, rest: list[Word | Pair | Command]) -> None:
        values = self._arguments(rest)
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
        disk = Disk(id=self.store.next_id, slot=slot, file_path=path, size=0)
        wanted = values.pop("file-size", None)
        _set_properties(disk, values)
        disk.size = self._backing_file(path.lstrip("/"), wanted)
        self.store.next_id += 1
        self.store.disks.append(disk)

    def _backing_file(self, name: str, wanted: str | None) -> int:
        """Make the image, with the directories above it (seen on 7.16), or take the one that is there; its size."""
        if (old := self.store.files.get(name)) is not None:
            if self.switches.existing_file == "refuse":
                raise ConsoleError("failure: file already exists")
            return old.size
        if wanted is None:
            raise ConsoleError("missing =file-size=")
        size = _size(wanted)
        self._take_space(size)
        parents = name.split("/")[:-1]
        for depth in range(2, len(parents) + 1):
            parent = "/".join(parents[:depth])
            self.store.files.setdefault(parent, File(parent, kind="directory"))
        self.store.files[name] = File(name, size=size)
        return size

    def _take_space(self, size: int) -> None:
        if self.switches.full_pool or size > self.store.free(thick=self.switches.thick):
            raise ConsoleError("failure: not enough space")

    def _disk_set(self, rest: list[Word | Pair | Command]) -> None:
        rows = self._targets("/disk", rest[:1])
        values = self._arguments(rest[1:])
        wanted = values.pop("file-size", None)
        for disk in self._disks(rows):
            _set_properties(disk, dict(values))
            if wanted is not None:
                size = _size(wanted)
                if size > disk.size:
                    self._take_space(size - disk.size)
                disk.size = size
                if (file := self.store.files.get(disk.file_path.lstrip("/"))) is not None:
                    file.size = size

    def _disk_remove(self, rest: list[Word | Pair | Command]) -> None:
        # The image stays (seen on 7.16, and MikroTik's reference of /disk says so).
        for disk in self._disks(self._targets("/disk", rest)):
            self.store.disks.remove(disk)

    def _disks(self, rows: list[Row]) -> list[Disk]:
        keys = {row.key for row in rows}
        return [disk for disk in self.store.disks if disk.id in keys]

    def _arguments(self, rest: Iterable[Word | Pair | Command]) -> dict[str, str]:
        values = {}
        for item in rest:
            if not isinstance(item, Pair) or item.sign != "=":
                raise ConsoleError(f"expected end of command (line 1 column {_column(item)})")
            if item.key not in _SETTABLE:
                raise ConsoleError(f"expected end of command (line 1 column {item.column})")
            values[item.key] = item.value if isinstance(item.value, str) else self._value(item.value)
        return values

    def _disk_rows(self) -> list[Row]:
        return [self._pool_row(), *(_disk_row(number, disk) for number, disk in enumerate(self.store.disks, start=1))]

    def _pool_row(self) -> Row:
        pool = self.store.pool
        free = 0 if self.switches.full_pool else self.store.free(thick=self.switches.thick)
        use = 100 - free * 100 // pool.size
        values = {
            "type": "raid", "slot": pool.slot, "fs": pool.fs, "size": str(pool.size), "free": str(free),
            "mount-point": pool.mount_point, "nvme-tcp-export": "no",
        }  # fmt: skip
        printed = [
            "type=raid", f"slot={frame.quoted(pool.slot)}", 'slot-default=""', 'parent=""', f'fs-label="{pool.slot}-fs"',
            'fs-uuid="40437dbc-2318-45dc-817b-b3bb95cf48ab"', f"fs={pool.fs}", 'model="RAID0 striped"',
            f"size={frame.thousands(pool.size)}", f"free={frame.thousands(free)}", f"use={use}%",
            f"mount-point={frame.quoted(pool.mount_point)}", "mount-filesystem=yes", 'state="clean"',
            'raid-uuid="eadca0af-ecff031c-239758ad-951a47de"', "nvme-tcp-export=no", "iscsi-export=no",
        ]  # fmt: skip
        return Row(0, 0, frozenset("BM"), values, printed)

    # /file

    def _file_remove(self, rest: list[Word | Pair | Command]) -> None:
        # What RouterOS does with the image of a live disk is not known; here it is gone, so that a wrong order is seen.
        for row in self._targets("/file", rest):
            if isinstance(row.key, str):
                self.store.files.pop(row.key, None)

    def _file_rows(self) -> list[Row]:
        mount = File(self.store.pool.mount_point, kind="disk")
        files = [mount, *sorted(self.store.files.values(), key=lambda file: file.name)]
        return [_file_row(number, file) for number, file in enumerate(files)]


def _disk_row(number: int, disk: Disk) -> Row:
    values = {
        "type": "file", "slot": disk.slot, "model": disk.file_path, "size": str(disk.size), "file-path": disk.file_path,
        "nvme-tcp-export": yes_no(disk.nvme_tcp_export), "nvme-tcp-server-port": str(disk.nvme_tcp_server_port),
        "nvme-tcp-server-nqn": disk.nvme_tcp_server_nqn, "mount-point": "",
    }  # fmt: skip
    export = [f"nvme-tcp-export={yes_no(disk.nvme_tcp_export)}"]
    if disk.nvme_tcp_export:
        export += [
            f"nvme-tcp-server-port={disk.nvme_tcp_server_port}",
            f"nvme-tcp-server-nqn={frame.quoted(disk.nvme_tcp_server_nqn)}",
            f"nvme-tcp-server-allow-host-name={frame.quoted(disk.nvme_tcp_server_allow_host_name)}",
        ]
    printed = [
        "type=file", f"slot={frame.quoted(disk.slot)}", 'slot-default=""', 'parent=""', "fs=-",
        f"model={frame.quoted(disk.file_path)}", f"size={frame.thousands(disk.size)}",
        f"mount-filesystem={yes_no(disk.mount_filesystem)}", f"mount-read-only={yes_no(disk.mount_read_only)}",
        f"compress={yes_no(disk.compress)}", "sector-size=512", "raid-master=none", *export,
        "iscsi-export=no", "nfs-sharing=no", "smb-sharing=no", "media-sharing=no", "media-interface=none", "swap=no",
        f"file-path={disk.file_path}", f"file-size={frame.rounded(disk.size)}", "file-offset=0",
    ]  # fmt: skip
    return Row(disk.id, number, frozenset("Bt" if disk.nvme_tcp_export else "B"), values, printed)


def _file_row(number: int, file: File) -> Row:
    suffix = "." + file.name.rsplit(".", 1)[1] if "." in file.name.rsplit("/", 1)[-1] else ""
    kind = f"{suffix} file".lstrip() if file.kind == "file" else file.kind
    values = {"name": file.name, "type": kind, "size": str(file.size)}
    printed = [f"name={file.name}", f"type={kind}"]
    if file.kind == "file":
        printed.append(f"size={frame.rounded(file.size)}")
    printed.append(f"last-modified={file.modified}")
    return Row(file.name, number, frozenset(), values, printed)


def _fits(menu: str, row: Row, key: str, sign: str, wanted: str) -> bool:
    if sign == "=":
        return row.values.get(key) == wanted
    if menu == "/file" and wanted.startswith("^"):
        return False  # seen on 7.16: a name pattern that begins with ^ matches nothing
    return re.search(wanted, row.values.get(key, "")) is not None


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if match is None:
        raise ConsoleError("invalid value for argument file-size")
    return int(match[1]) * SUFFIXES[match[2]]


_YES_NO = {"nvme-tcp-export", "mount-filesystem", "mount-read-only", "compress"}
_TEXT = {"nvme-tcp-server-nqn", "nvme-tcp-server-allow-host-name"}
_SETTABLE = {"type", "slot", "file-path", "file-size", "nvme-tcp-server-port"} | _YES_NO | _TEXT


def _set_properties(disk: Disk, values: dict[str, str]) -> None:
    """Check every value, then set them all."""
    ready: dict[str, bool | int | str] = {}
    for key, value in values.items():
        if key in _YES_NO:
            if value not in ("yes", "no"):
                raise ConsoleError(f"invalid value for argument {key}")
            ready[key] = value == "yes"
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


def _column(item: Word | Pair | Command) -> int:
    return item.column


def _bad_command(name: str, command: Command) -> ConsoleError:
    return ConsoleError(f"bad command name {name} (line 1 column {command.column})")
