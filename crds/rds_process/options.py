"""Command line options of which each can be given as an environment variable, too; the command line wins."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://.*")
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}


def duration(text: str) -> float:
    """Return seconds from ``30``, ``30s``, ``1.5m``, ``2h`` or ``250ms``; raises ValueError."""
    matched = _DURATION.fullmatch(text)
    if not matched or not math.isfinite(float(matched[1])):
        raise ValueError(f"{text!r} is no duration such as 30s")
    return float(matched[1]) * _UNITS[matched[2] or "s"]


class Options:
    """Adds options to a parser; a value from the environment passes the same checks as one from the command line."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str], *, prefix: str) -> None:
        self._parser = parser
        self._environment = environment
        self._prefix = prefix

    def _variables(self, flag: str, names: Sequence[str]) -> tuple[str, ...]:
        return (self._prefix + flag.removeprefix("--").replace("-", "_").upper(), *names)

    def _given(self, variables: Sequence[str]) -> str | None:
        return next(
            (value for name in variables if (value := self._environment.get(name)) and not _is_service_link(name, value)), None
        )

    def add(
        self,
        flag: str,
        text: str,
        *,
        default: str = "",
        metavar: str | None = None,
        kind: Callable[[str], Any] = str,
        choices: Sequence[str] | None = None,
        variables: Sequence[str] = (),
    ) -> None:
        """Add an option that takes a value.

        Its variable is the prefix and the flag's name (``--node-id``: ``RDS_CSI_NODE_ID``); ``variables`` are further names, looked
        at after that one. A variable that is set and empty counts as not set, as does what a Service of that name left there.
        """
        names = self._variables(flag, variables)
        given = self._given(names)
        self._parser.add_argument(
            flag,
            default=default if given is None else given,
            type=_named(_one_of(choices) if choices else kind),
            metavar="|".join(choices) if choices else metavar,
            help=f"{text} [{'default: ' + default.replace('%', '%%') + '; ' if default else ''}env: {', '.join(names)}]",
        )

    def switch(self, flag: str, text: str, *, variables: Sequence[str] = ()) -> None:
        """Add an option that is on or off: ``--flag``, ``--flag=false``, or ``true`` or ``false`` in its variable."""
        names = self._variables(flag, variables)
        self._parser.add_argument(
            flag,
            nargs="?",
            const=True,
            default=self._given(names) or "false",
            type=_named(_truth),
            metavar="true|false",
            help=f"{text} [env: {', '.join(names)}]",
        )


def _is_service_link(name: str, value: str) -> bool:
    """Tell whether Kubernetes set this: a Service called ``rds`` puts ``RDS_PORT=tcp://…`` into every pod of its namespace.

    Source: kubernetes, pkg/kubelet/envvars/envvars.go.
    """
    return name.endswith("_PORT") and _SERVICE_LINK.fullmatch(value) is not None


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return choose


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTH:
        raise ValueError(f"{text!r} is neither true nor false")
    return _TRUTH[text.lower()]


def _named(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show what a ValueError says, instead of the name of the function that raised it."""

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
