"""The audit log: who asked for what and what became of it, one JSON object per line, on a logger of its own.

What stands in an entry may come from whoever can make a claim, a StorageClass or a request, so no value can end a line, hide a
part of it, turn its direction or fill the log.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from rds_process.logs import AUDIT, strip

MAX_VALUE: Final = 256
"""Characters of one value as it is logged; the rest is cut."""

MAX_COMMAND: Final = 1536
"""Characters of a command line: it is made of checked values, and a cut one would not tell what was done."""

MAX_LIST: Final = 16
"""Entries of a list that are logged."""

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what cannot be seen, or changes how the rest is seen; bidi marks are in Cf."""

_log = logging.getLogger(AUDIT)
# What is logged here does not depend on how much else is.
_log.setLevel(logging.INFO)


class Kind(StrEnum):
    """What an entry tells; ``docs/audit.md`` explains each."""

    CALL_ADMITTED = "call.admitted"
    CALL_REFUSED = "call.refused"
    CALL_FAILED = "call.failed"
    NAME_REFUSED = "name.refused"
    BOX_CHANGED = "box.changed"
    BOX_REFUSED = "box.refused"
    BOX_UNKNOWN = "box.unknown"
    HOST_KEY_REFUSED = "host_key.refused"
    LOGIN_REFUSED = "login.refused"


LOUD: Final = frozenset({Kind.NAME_REFUSED, Kind.HOST_KEY_REFUSED, Kind.LOGIN_REFUSED})
"""What nobody sees in peace: logged as warnings."""


def entry(kind: Kind, fields: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of an entry as they are logged; what is empty or None is left out."""
    shown = {name: clean(value, name) for name, value in fields.items() if value not in ("", None, (), [])}
    return {"audit": str(kind), **shown}


def clean(value: object, name: str = "") -> Any:
    """Return a value without secrets, with all that is invisible written out, and cut; numbers and truth values as they are."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)
        shown = [clean(one, name) for one in ordered[:MAX_LIST]]
        return [*shown, f"… {len(ordered)} entries"] if len(ordered) > MAX_LIST else shown
    text, most = str(value), MAX_COMMAND if name == "command" else MAX_VALUE
    # A secret is found in the whole of it, but no more is looked at than could be shown.
    visible = "".join(map(_written_out, str(strip(text, name))[: most + 1]))
    return visible if len(visible) <= most else f"{visible[:most]}… ({len(text)} characters)"


def _written_out(character: str) -> str:
    return f"\\u{{{ord(character):x}}}" if unicodedata.category(character) in _INVISIBLE else character


def record(kind: Kind, **fields: object) -> None:
    """Write one entry."""
    _log.log(logging.WARNING if kind in LOUD else logging.INFO, "audit", extra=entry(kind, fields))
