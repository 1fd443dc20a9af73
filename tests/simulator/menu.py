"""What a menu is to the console: rows that are found and printed, and commands."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tests.simulator import frame
from tests.simulator.images import Images
from tests.simulator.language import Argument, Command, ConsoleError, Pair
from tests.simulator.store import Store
from tests.simulator.switches import Switches


@dataclass(frozen=True)
class Machine:
    """The box that the menus look at and change; ``now`` is its clock's text, ``uptime`` in seconds."""

    store: Store
    switches: Switches
    images: Images | None
    now: Callable[[], str]
    uptime: Callable[[], float]

    def take_space(self, size: int) -> None:
        """Refuse what the pool has no room for."""
        if self.switches.full_pool or size > self.store.free(thick=self.switches.thick):
            raise ConsoleError("failure: not enough space")

    def copy_image(self, source: int, target: int) -> None:
        """Give an image the bytes of another."""
        if self.images is not None:
            self.images.copy(source, target)

    def grow_image(self, image: int, size: int) -> None:
        """Make an image longer."""
        if self.images is not None:
            self.images.grow(image, size)


@dataclass(frozen=True)
class Row:
    """One item of a menu: ``key`` is the store's own key, ``values`` are raw (for ``where`` and ``get``)."""

    key: int | str
    number: int
    values: Mapping[str, str]
    printed: list[str] = field(default_factory=list)
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Call:
    """One command on one menu: what stands behind its verb, and how items and ``[…]`` in it are looked up."""

    rest: list[Argument]
    targets: Callable[[list[Argument]], list[Row]]
    """The rows that ``[find …]`` or a name stands for."""
    value: Callable[[Command], str]

    def arguments(self, known: Collection[str], *, after: int = 0) -> dict[str, str]:
        """The ``key=value`` arguments behind the first ``after`` ones; only ``known`` keys are taken."""
        values = {}
        for item in self.rest[after:]:
            if not isinstance(item, Pair) or item.sign != "=" or item.key not in known:
                raise end_expected(item.column)
            values[item.key] = item.value if isinstance(item.value, str) else self.value(item.value)
        return values


class Menu:
    """One menu of the console."""

    path: str
    key: str = "name"
    """The property by which an item can be named without ``find``."""
    can_print: bool = True
    can_find: bool = True

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.store = machine.store
        self.switches = machine.switches

    @property
    def is_there(self) -> bool:
        """Whether this version, with these packages, has the menu."""
        return True

    @property
    def commands(self) -> Mapping[str, Callable[[Call], str]]:
        """What the menu can do besides ``print``, ``find`` and ``get``; each returns what it prints."""
        return {}

    def rows(self) -> list[Row]:
        """Every item, in the order in which it is printed."""
        return []

    def layout(self, rows: Iterable[Row]) -> str:
        """What ``print`` makes of these rows."""
        return ""


def items(rows: Iterable[Row]) -> list[frame.Item]:
    """Rows as entries of ``print detail``."""
    return [frame.Item(row.number, row.flags, row.printed) for row in rows]


def end_expected(column: int) -> ConsoleError:
    """The answer to an argument that a command does not have."""
    return ConsoleError(f"expected end of command (line 1 column {column})")


def yes_no(value: bool) -> str:
    """A boolean as it is printed."""
    return "yes" if value else "no"


def read_yes_no(key: str, value: str) -> bool:
    """A boolean as it is given."""
    if value not in ("yes", "no"):
        raise ConsoleError(f"invalid value for argument {key}")
    return value == "yes"
