"""What the box says of its own state: sensors, traffic, version (pure).

Layouts are those of MikroTik's manual, pages "Health", "/disk/monitor-traffic" and "Resource", and of a capture of 7.16.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rds_csi.routeros import parser
from rds_csi.routeros.errors import MalformedAnswer
from rds_csi.routeros.parser import Output

_SENSOR = re.compile(r" *\d+ +(?P<name>[a-z][a-z0-9-]*) +(?P<value>\S+)(?: +(?P<unit>[A-Za-z%]+))?")
_READING = re.compile(r" *(?P<key>[a-z][a-z0-9-]*): *(?P<value>.*)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)(|k|M|G|T)bps")
_RATES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TIME = re.compile(r"(\d+)(us|ms|s|m|h|d|w)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Sensor:
    """One reading of ``/system/health``; ``unit`` as printed (C, RPM, W, V, A), empty for a state such as ``ok``."""

    value: str
    unit: str = ""

    @property
    def number(self) -> float | None:
        """The value where it is a number; None for a state."""
        return float(self.value) if _NUMBER.fullmatch(self.value) else None


def health(output: Output) -> Mapping[str, Sensor]:
    """Read the sensors by name; a device without sensors has none.

    Raises:
        CommandFailed: or a subclass; the box answered with an error.
        MalformedAnswer: another layout, or not as many sensors as the box counted.
    """
    lines = [line.rstrip() for line in output.stdout.splitlines() if line.strip()]
    if output.exit_status != 0 or output.stderr.strip():
        raise parser.failure(f"{output.stderr}\n{output.stdout}")
    found: dict[str, Sensor] = {}
    for line in lines[:-1]:
        if line.startswith(("Columns:", "Flags:")) or line.lstrip().startswith("#"):
            continue
        row = _SENSOR.fullmatch(line)
        if row is None:
            raise parser.said(output.stdout)
        found[row["name"]] = Sensor(row["value"], row["unit"] or "")
    if not lines or not lines[-1].strip().isdecimal():
        raise parser.said(output.stdout)
    if len(found) != int(lines[-1]):
        raise MalformedAnswer(f"the box printed {len(found)} sensors and counted {int(lines[-1])}")
    return found


@dataclass(frozen=True)
class Resource:
    """What a box is: RouterOS's version as printed (``7.16 (stable)``), and the name of its board."""

    version: str
    board: str


def resource(output: Output) -> Resource:
    """Read ``/system/resource``.

    Raises:
        CommandFailed: or a subclass; the box answered with an error.
        MalformedAnswer: another layout, or no version in it.
    """
    if output.exit_status != 0 or output.stderr.strip():
        raise parser.failure(f"{output.stderr}\n{output.stdout}")
    rows = (_READING.fullmatch(line.rstrip()) for line in output.stdout.splitlines())
    found = {row["key"]: row["value"].strip() for row in rows if row}
    if not found.get("version"):
        raise parser.said(output.stdout)
    return Resource(found["version"], found.get("board-name", ""))


@dataclass(frozen=True)
class Traffic:
    """What one disk has done: totals since the box's counters were last reset, and what it does now. Bytes and seconds."""

    slot: str
    numbers: Mapping[str, int] = field(hash=False)
    """``read-ops``, ``read-ops-per-second``, ``in-flight-ops``, …"""
    rates: Mapping[str, float] = field(hash=False)
    """``read-rate``, ``write-rate``, in bytes per second."""
    times: Mapping[str, float] = field(hash=False)
    """``read-time``, ``write-time``, ``active-time``, ``wait-time``, …: cumulative, in seconds."""


def traffic(output: Output) -> Mapping[str, Traffic]:
    """Read the answers of one or more ``monitor-traffic SLOT once`` by slot.

    Raises:
        CommandFailed: or a subclass; the box answered with an error, for one of the slots at least.
        MalformedAnswer: another layout.
    """
    if output.exit_status != 0 or output.stderr.strip():
        raise parser.failure(f"{output.stderr}\n{output.stdout}")
    blocks: list[dict[str, str]] = []
    for line in output.stdout.splitlines():
        if not line.strip():
            continue
        row = _READING.fullmatch(line.rstrip())
        if row is None or (not blocks and row["key"] != "slot"):
            raise parser.said(line)
        if row["key"] == "slot":
            blocks.append({})
        blocks[-1][row["key"]] = row["value"].strip()
    return {block["slot"]: _traffic(block) for block in blocks}


def _traffic(block: Mapping[str, str]) -> Traffic:
    numbers: dict[str, int] = {}
    rates: dict[str, float] = {}
    times: dict[str, float] = {}
    for key, value in block.items():
        if key.endswith("-rate"):
            rates[key] = bytes_per_second(value)
        elif key.endswith("-time"):
            times[key] = seconds(value)
        elif key != "slot" and re.fullmatch(r"\d[\d ]*", value):
            numbers[key] = int(value.replace(" ", ""))
    return Traffic(block["slot"], numbers, rates, times)


def bytes_per_second(rate: str) -> float:
    """Read a rate such as ``12.8Mbps``: bits, in decimal units; MalformedAnswer."""
    found = _RATE.fullmatch(rate)
    if found is None:
        raise MalformedAnswer(f"the box printed {rate[:40]!r} where a rate should be")
    return float(found[1]) * _RATES[found[2]] / 8


def seconds(time: str) -> float:
    """Read a time such as ``1d7h44m20s``, ``48s149ms`` or ``551us``; MalformedAnswer."""
    parts = _TIME.findall(time)
    if not parts or "".join(number + unit for number, unit in parts) != time:
        raise MalformedAnswer(f"the box printed {time[:40]!r} where a time should be")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)
