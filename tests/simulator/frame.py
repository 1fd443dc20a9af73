"""How RouterOS lays out the answer of ``print detail`` (pure).

Seen on RDS2216, RouterOS 7.24 (disks) and on 7.16 (files): a legend, an index, a column of flag letters, properties that
continue on lines indented to where the first property began, and a line of one space between entries. A property is never
split where it fits on a line of its own; one that does not is broken in mid-value at the right margin (seen on 7.16 with a
long ``file-path``). Lines end with ``\\r\\n``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

EOL = "\r\n"

FLAG_NAMES = {
    "B": "BLOCK-DEVICE",
    "M": "MOUNTED",
    "t": "NVME-TCP-EXPORT",
}
"""The letters this simulator can set, in the order of the legend (MikroTik's reference of ``/disk`` has more)."""

LEGEND_INDENT = 7


@dataclass(frozen=True)
class Item:
    """One entry: its number in the whole list, its flag letters, and its properties as they are printed (``key=value``)."""

    number: int
    flags: frozenset[str]
    properties: Sequence[str]


def thousands(number: int) -> str:
    """A whole number with a space between groups of three digits, as in ``size=53 687 091 200``."""
    return f"{number:,}".replace(",", " ")


def rounded(size: int) -> str:
    """Bytes with one decimal; the unit steps up only above 1024 (1 TiB prints as ``1024.0GiB``: captures of 7.16 and 7.24)."""
    if size <= 1024:
        return str(size)
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value <= 1024 or unit == "TiB":
            return f"{value:.1f}{unit}"
    raise AssertionError


def quoted(text: str) -> str:
    """A string value as RouterOS prints it, in double quotes with its escapes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def wrapped(prefix: str, indent: int, properties: Iterable[str], width: int) -> list[str]:
    """Lines of at most ``width`` columns: ``prefix``, then the properties, continued after ``indent`` spaces."""
    lines: list[str] = []
    line = prefix
    empty = True
    for prop in properties:
        if not empty and len(line) + 1 + len(prop) > width:
            lines.append(line)
            line, empty = " " * indent, True
        line += prop if empty else " " + prop
        empty = False
        while len(line) > width:
            lines.append(line[:width])
            line = " " * indent + line[width:]
    lines.append(line)
    return lines


def legend(letters: Iterable[str], width: int) -> list[str]:
    """The ``Flags:`` line; it wraps onto lines indented by seven spaces (MikroTik's manual, page "Disks")."""
    present = set(letters)
    named = [f"{letter} - {name}" for letter, name in FLAG_NAMES.items() if letter in present]
    return wrapped("Flags: ", LEGEND_INDENT, [f"{text};" for text in named[:-1]] + named[-1:], width)


def disk_answer(items: Sequence[Item], width: int, *, bare_legend: bool = True) -> str:
    """The answer of ``/disk print detail``: the legend names the flags in use, the flag column is as wide as their number.

    With no entry the legend is printed all the same on 7.16 (``bare_legend``; which letters it names then is not known, here:
    all), and nothing on 7.24: both were seen.
    """
    if not items and not bare_legend:
        return ""
    used = {letter for item in items for letter in item.flags} if items else set(FLAG_NAMES)
    columns = [letter for letter in FLAG_NAMES if letter in used]
    lines = legend(columns, width) if columns else []
    for position, item in enumerate(items):
        if position:
            lines.append(" ")
        letters = "".join(letter for letter in columns if letter in item.flags)
        prefix = f"{item.number:>2} {letters:<{len(columns)}} "
        lines += wrapped(prefix, len(prefix), item.properties, width)
    return ended(lines)


def file_answer(items: Sequence[Item], width: int, *, narrow: bool = False) -> str:
    """The answer of ``/file print detail``: no legend, five columns before the first property (a capture of 7.16).

    ``narrow`` is the layout of MikroTik's manual for 7.24, page "Files": the index at the left margin, three columns. How it
    lays out more than ten entries is not known; here the index is as wide as the largest.
    """
    lines: list[str] = []
    digits = len(str(max((item.number for item in items), default=0)))
    for position, item in enumerate(items):
        if position:
            lines.append(" ")
        prefix = f"{item.number:>{digits}}  " if narrow else f"{item.number:>2}   "
        lines += wrapped(prefix, len(prefix), item.properties, width)
    return ended(lines)


def table(columns: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]) -> str:
    """A table with a ``Columns:`` line and numbered rows (MikroTik's manual, page "Health"); nothing where there is no row."""
    if not rows:
        return ""
    digits = len(str(max(number for number, _ in rows)))
    widths = [max(len(row[place]) for row in (columns, *(cells for _, cells in rows))) for place in range(len(columns))]
    lines = [f"Columns: {', '.join(columns)}"]
    for index, cells in [("#", columns), *((str(number), cells) for number, cells in rows)]:
        padded = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{index:>{digits}}  {padded}".rstrip())
    return ended(lines)


def readings(values: Mapping[str, str], *, indent: int = 2, right: bool = False) -> str:
    """``key: value`` lines, aligned at the colon; the values at the right too (``monitor-traffic``), else at the left."""
    keys = max(map(len, values)) + indent
    width = max(map(len, values.values())) if right else 0
    return ended(f"{key:>{keys}}: {value:>{width}}" for key, value in values.items())


def ended(lines: Iterable[str]) -> str:
    """The lines with RouterOS's line ends."""
    return "".join(line + EOL for line in lines)
