"""The flags of all programs as their command lines tell them, and ``docs/flags.md``, written from that (``./justw reference``)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import rds_csi.cli
import rds_operator.cli
from tests.documents import ROOT

PAGE = ROOT / "docs" / "flags.md"

HEAD = """\
# Flags

Written from the command lines of the programs; `--help` says the same. What settings mean together, StorageClass parameters and
what contexts hold: [configuration](configuration.md). Of several environment variables the first that is set counts, and the flag
wins.
"""

_TOLD = re.compile(r"(?P<text>.*) \[(?:default: .*; )?env: (?P<variables>[A-Z_, ]+)\]", re.DOTALL)


@dataclass(frozen=True)
class Flag:
    """One flag: what its value is called or may be, its default (empty: none), its environment variables, what it is for."""

    name: str
    value: str
    default: str
    variables: tuple[str, ...]
    text: str


def parsers() -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each program, and of each command of ``rds-csi``, without anything from the environment."""
    commands = next(action for action in rds_csi.cli.parser({})._actions if isinstance(action, argparse._SubParsersAction))
    return {
        "rds-csi controller": commands.choices["controller"],
        "rds-csi node": commands.choices["node"],
        "rds-operator": rds_operator.cli.parser({}),
    }


def flags_of(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    """Yield the flags of a parser, in its order."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest in {"help", "version"} or isinstance(action, argparse._SubParsersAction):
            continue
        (name,) = action.option_strings
        told = _TOLD.fullmatch(action.help or "")
        assert told, f"{name} has no environment variable"
        yield Flag(name, str(action.metavar), str(action.default), tuple(told["variables"].split(", ")), told["text"])


def written() -> str:
    """Return the page as it should be."""
    lines = [HEAD]
    for program, parser in parsers().items():
        lines += [f"## {program}", "", "| flag | value | default | environment | meaning |", "|---|---|---|---|---|"]
        lines += [_row(flag) for flag in flags_of(parser)]
        lines.append("")
    return "\n".join(lines)


def _row(flag: Flag) -> str:
    value = ", ".join(f"`{word}`" for word in flag.value.split("|")) if flag.value != "None" else ""
    default = f"`{flag.default}`" if flag.default else ""
    variables = ", ".join(f"`{name}`" for name in flag.variables)
    return f"| `{flag.name}` | {value} | {default} | {variables} | {' '.join(flag.text.split())} |".replace("%%", "%")
