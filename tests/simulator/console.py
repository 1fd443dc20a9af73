"""What the commands do to the box and what they answer; the menus are in the ``*_menu`` modules.

Wordings: ``failure: …``, ``bad command name``, ``expected end of command``, ``syntax error``, ``input does not match any value
of``, ``invalid value for argument`` and ``no such item`` are RouterOS's generic ones (MikroTik's manual, pages "Scripting" and
"REST API"). What follows ``failure:`` is confirmed by neither, but for ``already have such entry``.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.simulator.disk_menu import DiskMenu
from tests.simulator.file_menu import FileMenu
from tests.simulator.frame import EOL
from tests.simulator.images import Images
from tests.simulator.language import Argument, Command, ConsoleError, Pair, Word, read_line
from tests.simulator.menu import Call, Machine, Menu, Row, end_expected
from tests.simulator.store import Store
from tests.simulator.subvolume_menu import SubvolumeMenu
from tests.simulator.switches import Switches
from tests.simulator.system_menu import HealthMenu, IdentityMenu, ResourceMenu

MENUS: tuple[Callable[[Machine], Menu], ...] = (DiskMenu, FileMenu, SubvolumeMenu, HealthMenu, ResourceMenu, IdentityMenu)


@dataclass(frozen=True)
class Answer:
    """What was printed, and what went wrong then (empty: nothing did)."""

    text: str
    error: str = ""


class Console:
    """Runs command lines against what a box holds."""

    def __init__(
        self,
        store: Store,
        switches: Switches,
        images: Images | None = None,
        *,
        now: Callable[[], str] = lambda: "2025-11-11 12:00:00",
        uptime: Callable[[], float] = lambda: 0.0,
        applied: Callable[[], None] = lambda: None,
    ) -> None:
        """Without ``images`` files have no bytes; ``now`` is the clock's text, ``uptime`` seconds.

        ``applied`` is called after each command; it fails the command by a ConsoleError, having undone it.
        """
        self.store = store
        self.switches = switches
        self._applied = applied
        machine = Machine(store, switches, images, now, uptime)
        self._all_menus = [make(machine) for make in MENUS]
        self._disk_rows = self._all_menus[0].rows
        self._file_rows = self._all_menus[1].rows

    def run(self, line: str) -> Answer:
        """The answer to one line; commands before a failing one have taken effect and have printed."""
        printed = ""
        try:
            for command in read_line(line):
                try:
                    printed += self._run(command)
                finally:
                    self._applied()
        except ConsoleError as error:
            return Answer(printed, f"{error}{EOL}")
        return Answer(printed)

    # Commands

    def _run(self, command: Command) -> str:
        head = command.items[0]
        if isinstance(head, Word) and head.text == ":put":
            return self._value(_one_operand(command)) + EOL
        menu, verb, rest = self._resolve(command)
        run = menu.commands.get(verb)
        if run is not None:
            return run(Call(rest, lambda targets: self._targets(menu, targets), self._value))
        if verb == "print" and menu.can_print:
            return self._print(menu, rest)
        if verb in ("find", "get") and menu.can_find:
            return ""  # a value that nothing prints
        raise _bad_command(verb, command)

    def _resolve(self, command: Command, at: str = "") -> tuple[Menu, str, list[Argument]]:
        """Menu, verb and the rest, from the menu ``at`` on; ``/disk add`` and ``/disk/add`` are the same."""
        menus = {menu.path: menu for menu in self._all_menus if menu.is_there}
        path = at
        for position, item in enumerate(command.items):
            if not isinstance(item, Word) or item.is_quoted:
                break
            if item.text.startswith("/"):
                path = ""
            parts = [part for part in item.text.split("/") if part]
            for last, part in zip([*[False] * (len(parts) - 1), True], parts, strict=False):
                if any(f"{menu}/".startswith(f"{path}/{part}/") for menu in menus):
                    path += f"/{part}"
                elif last and path in menus:
                    return menus[path], part, list(command.items[position + 1 :])
                else:
                    raise _bad_command(part, command)
        raise _bad_command(path.strip("/").replace("/", " ") or "?", command)

    def _value(self, operand: Argument) -> str:
        if isinstance(operand, Word):
            return operand.text
        if isinstance(operand, Pair):
            raise end_expected(operand.column)
        head = operand.items[0] if operand.items else None
        if isinstance(head, Word) and head.text == ":len":
            inner = _one_operand(operand)
            return str(len(self._found(inner))) if isinstance(inner, Command) else str(len(self._value(inner)))
        menu, verb, rest = self._resolve(operand)
        if verb == "get" and menu.can_find:
            return self._get(menu, rest)
        if verb == "find" and menu.can_find:
            return ";".join(f"*{row.key}" for row in self._matching(menu, rest))
        raise _bad_command(verb, operand)

    def _found(self, command: Command, at: str = "") -> list[Row]:
        menu, verb, rest = self._resolve(command, at)
        if verb != "find" or not menu.can_find:
            raise _bad_command(verb, command)
        return self._matching(menu, rest)

    def _get(self, menu: Menu, rest: list[Argument]) -> str:
        if len(rest) != 2 or not isinstance(rest[1], Word):
            raise end_expected(1)
        rows = self._targets(menu, rest[:1])
        if len(rows) != 1:
            raise ConsoleError("no such item")
        name = rest[1].text
        if name not in rows[0].values:
            raise ConsoleError(f"input does not match any value of value-name (line 1 column {rest[1].column})")
        return rows[0].values[name]

    def _print(self, menu: Menu, rest: list[Argument]) -> str:
        words = [item.text for item in rest if isinstance(item, Word) and item.text in ("detail", "count-only")]
        conditions = [item for item in rest if not (isinstance(item, Word) and item.text in ("detail", "count-only"))]
        rows = self._matching(menu, conditions)
        return f"{len(rows)}{EOL}" if "count-only" in words else menu.layout(rows)

    # Finding

    def _matching(self, menu: Menu, rest: Iterable[Argument]) -> list[Row]:
        """The rows that every condition fits; ``where`` may stand before them, ``and`` between them."""
        rows = menu.rows()
        for item in rest:
            if isinstance(item, Word) and item.text in ("where", "and"):
                continue
            if not isinstance(item, Pair):
                raise end_expected(item.column)
            wanted = item.value if isinstance(item.value, str) else self._value(item.value)
            rows = [row for row in rows if _fits(menu, row, item.key, item.sign, wanted)]
        return rows

    def _targets(self, menu: Menu, rest: list[Argument]) -> list[Row]:
        """The rows that ``set``, ``remove`` or ``get`` name: ``[find …]`` or the slot (or name) itself."""
        if len(rest) != 1:
            raise end_expected(1)
        target = rest[0]
        if isinstance(target, Command):
            rows = self._found(target, menu.path)
            if not rows and self.switches.missing_item != "silent":
                raise ConsoleError("no such item")
            return rows
        if isinstance(target, Word):
            rows = [row for row in menu.rows() if target.text == row.values.get(menu.key)]
            if not rows:
                raise ConsoleError("no such item")
            return rows
        raise end_expected(target.column)


def _one_operand(command: Command) -> Argument:
    if len(command.items) != 2:
        raise end_expected(command.items[-1].column)
    return command.items[1]


def _fits(menu: Menu, row: Row, key: str, sign: str, wanted: str) -> bool:
    if sign == "=":
        return row.values.get(key) == wanted
    if menu.path == "/file" and wanted.startswith("^"):
        return False  # seen on 7.16: a name pattern that begins with ^ matches nothing
    return re.search(wanted, row.values.get(key, "")) is not None


def _bad_command(name: str, command: Command) -> ConsoleError:
    return ConsoleError(f"bad command name {name} (line 1 column {command.column})")
