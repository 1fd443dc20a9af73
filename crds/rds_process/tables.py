"""Tables and sizes for people, on a terminal or in a pipe: plain text in columns, as kubectl prints it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Final

GAP: Final = "   "


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; every column is as wide as its widest cell, an empty cell is ``-``."""
    shown = [tuple(headings), *(tuple(one_line(cell) or "-" for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(headings))]
    for row in shown:
        yield GAP.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def one_line(text: str) -> str:
    """Return the text with nothing in it that moves a terminal's cursor: what others wrote stays on its line."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


def size(count: float) -> str:
    """Return bytes in the largest binary unit that fits (``50 GiB``)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def age(elapsed: timedelta) -> str:
    """Return a time as kubectl prints ages: its two largest units (``12s``, ``3m10s``, ``5h12m``, ``3d4h``); never below 0."""
    seconds = max(0, int(elapsed.total_seconds()))
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next((index for index, (count, _) in enumerate(units) if count), 3)
    shown = [f"{count}{unit}" for count, unit in units[first : first + 2] if count]
    return "".join(shown) or "0s"
