"""Reads what the box prints (pure).

Captures of RouterOS 7.16 and 7.24 show: an optional legend that may wrap onto indented lines; per entry an index, flag letters and
``key=value`` pairs; continuation lines indented to where the first key began, or further; lines broken between pairs, and in
mid-value where one does not fit a line; thousands spaces in numbers; ``type=.img file`` with a space; entries separated by an empty
line or one of a single space.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rds_csi.routeros import errors
from rds_csi.routeros.errors import CommandFailed, MalformedAnswer


@dataclass(frozen=True)
class Output:
    """What one command left on its two streams, and its exit status."""

    stdout: str
    stderr: str = ""
    exit_status: int = 0


@dataclass(frozen=True)
class Entry:
    """One printed item: flag letters and its properties. String values are unquoted; all others are as printed."""

    flags: frozenset[str]
    values: Mapping[str, str] = field(hash=False)

    def text(self, key: str) -> str:
        """Return the value of a property that must be there; MalformedAnswer."""
        if key not in self.values:
            raise MalformedAnswer(f"the box printed no {key}")
        return self.values[key]

    def number(self, key: str) -> int:
        """Read a whole number, printed with thousands spaces; MalformedAnswer."""
        digits = self.text(key).replace(" ", "")
        if not (digits.isascii() and digits.isdecimal()):
            raise MalformedAnswer(f"the box printed {key}={self.values[key][:80]!r}, which is no number")
        return int(digits)

    def flag(self, key: str) -> bool:
        """Read a property that is ``yes`` or ``no``; MalformedAnswer."""
        value = self.text(key)
        if value not in ("yes", "no"):
            raise MalformedAnswer(f"the box printed {key}={value[:80]!r}, neither yes nor no")
        return value == "yes"


_ENTRY = re.compile(r" *\d+ +(?P<flags>[A-Za-z](?:[A-Za-z ]*[A-Za-z])? +)?(?=[a-z][a-z0-9-]*=)")
_PAIR = re.compile(r'([a-z][a-z0-9-]*)=("(?:[^"\\]|\\.)*"|(?!")(?:(?! +[a-z][a-z0-9-]*=).)*)(?: +|$)')
_LEGEND = ("Flags:", "Columns:")
_KEY = re.compile(r"[a-z][a-z0-9-]*=")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_ESCAPE = re.compile(r"\\([0-9A-F]{2}|.)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "_": " ", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

# In this order: "failure: not enough space" is out of space before it is any failure.
_WORDINGS: tuple[tuple[str, type[CommandFailed]], ...] = (
    ("not enough space", errors.PoolFull),
    ("already have", errors.AlreadyThere),
    ("already exists", errors.AlreadyThere),
    ("no such item", errors.NoSuchItem),
    ("not enough permissions", errors.NotPermitted),
    ("not allowed (9)", errors.NotPermitted),
    ("in use", errors.BoxBusy),
    ("busy", errors.BoxBusy),
    ("stop using it first", errors.BoxBusy),
    ("expected end of command", errors.NotUnderstood),
    ("expected command name", errors.NotUnderstood),
    ("bad command name", errors.NotUnderstood),
    ("syntax error", errors.NotUnderstood),
    ("input does not match any value of", errors.NotUnderstood),
    ("invalid value for argument", errors.NotUnderstood),
    ("unknown parameter", errors.NotUnderstood),
    ("no such command", errors.NotUnderstood),
    ("missing =", errors.NotUnderstood),
)
_SIGNS_OF_FAILURE = ("failure:", "error", "can not", "could not", "invalid", *(words for words, _ in _WORDINGS))


def failure(text: str) -> CommandFailed:
    """Name the error that this text says; CommandFailed itself where the wording is not known."""
    wording = " ".join(text.split())[:300]
    for words, kind in _WORDINGS:
        if words in wording.lower():
            return kind(wording)
    return CommandFailed(wording or "the box failed without a word")


def said(text: str) -> CommandFailed | MalformedAnswer:
    """Name the error of an answer that is not laid out as expected: the one that it says, or that it is unreadable."""
    if any(sign in text.lower() for sign in _SIGNS_OF_FAILURE):
        return failure(text)
    return MalformedAnswer(f"the answer is cut short or not laid out as expected: {text.strip()[:200]!r}")


def expect_silence(output: Output) -> None:
    """Check the answer to a change: RouterOS says nothing when it has done it.

    Public tools saw errors on stdout with exit status 0, others document a status and stderr: any text and any status is a failure.

    Raises:
        CommandFailed: or a subclass, by the wording.
    """
    text = f"{output.stdout}\n{output.stderr}".strip()
    if text or output.exit_status != 0:
        raise failure(text or f"exit status {output.exit_status}")


def entries(output: Output) -> tuple[Entry, ...]:
    """Read the items of a ``print detail`` that is followed by their number (see ``commands``).

    Raises:
        CommandFailed: or a subclass; the box answered with an error. Property values that read like one do not count.
        MalformedAnswer: the answer is cut short, has another number of items than it says, or another layout.
    """
    lines = [line.rstrip("\r") for line in output.stdout.split("\n")]
    if output.exit_status != 0 or output.stderr.strip():
        raise failure(f"{output.stderr}\n{_beside_entries(lines)}")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or not re.fullmatch(r"\d+", lines[-1].strip()):
        raise _not_a_frame(lines)
    found = frame(lines[:-1])
    if len(found) != int(lines[-1]):
        raise MalformedAnswer(f"the box printed {len(found)} items and counted {int(lines[-1])}")
    return found


def numbers(output: Output, count: int) -> tuple[int, ...]:
    """Read the answer of so many ``:put [:len …]``, one number a line.

    Raises:
        CommandFailed: or a subclass; the box answered with an error.
        MalformedAnswer: the answer is not so many numbers.
    """
    lines = [line.strip() for line in output.stdout.splitlines() if line.strip()]
    if output.exit_status != 0 or output.stderr.strip():
        raise failure("\n".join([output.stderr, *lines]))
    if not all(re.fullmatch(r"[0-9]+", line) for line in lines):
        raise said("\n".join(lines))
    if len(lines) != count:
        raise MalformedAnswer(f"the box printed {len(lines)} numbers instead of {count}")
    return tuple(int(line) for line in lines)


def frame(lines: list[str]) -> tuple[Entry, ...]:
    """Read the entries of a ``print detail``, without line ends. Raises as ``entries``."""
    found: list[tuple[frozenset[str], str]] = []
    column = 0  # where the first key of the current entry began
    in_legend = False
    for line in lines:
        indent = len(line) - len(line.lstrip(" "))
        start = _ENTRY.match(line)
        if indent == len(line):
            in_legend = False
        # A continuation may look like the start of an entry ("      200 use=1%"), but is never indented less than the first key.
        elif start is not None and (not found or indent < column):
            found.append((frozenset((start["flags"] or "").replace(" ", "")), line[start.end() :]))
            column = start.end()
        elif indent == 0 and column == 0 and _KEY.match(line):
            found.append((frozenset(), line))  # one capture of 7.16 has no index
        elif indent == 0 and not found and line.startswith(_LEGEND):
            in_legend = True
        elif indent > 0 and found:
            found[-1] = (found[-1][0], _joined(found[-1][1], line.lstrip(" ")))
        elif not (indent > 0 and in_legend):
            raise _not_a_frame(lines)
    return tuple(Entry(flags, _pairs(text)) for flags, text in found)


def _joined(text: str, more: str) -> str:
    """Undo a line break: between two pairs it stands for a space, in mid-value for nothing."""
    if _open_quote(text):
        return text + more
    if _KEY.match(more):
        return text.rstrip() + " " + more
    return text.rstrip() + more


def _open_quote(text: str) -> bool:
    return '"' in _QUOTED.sub("", text)


def _pairs(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None or pair[1] in values:
            raise MalformedAnswer(f"not a list of properties, at {text[at : at + 80]!r}")
        values[pair[1]] = _unquoted(pair[2]) if pair[2].startswith('"') else pair[2]
        at = pair.end()
    return values


def _unquoted(quoted: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code, 16)) if len(code) == 2 else _ESCAPED.get(code, code)

    return _ESCAPE.sub(character, quoted[1:-1])


def _beside_entries(lines: list[str]) -> str:
    """Pick what stands beside the entries: where an error would be, and no property's value."""
    return "\n".join(line for line in lines if line[:1].strip() and not line.startswith(_LEGEND) and not _ENTRY.match(line))


def _not_a_frame(lines: list[str]) -> CommandFailed | MalformedAnswer:
    return said(_beside_entries(lines))
