"""Sensors and traffic, from the manual's and captured output."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.routeros import (
    Box,
    CommandFailed,
    MalformedAnswer,
    NoSuchItem,
    NotPermitted,
    NotUnderstood,
    Output,
    Resource,
    Sensor,
    Slot,
    Traffic,
)
from rds_csi.routeros.readings import bytes_per_second, health, resource, seconds, traffic
from tests.unit.routeros.test_box import Link

HEALTH = """\
Columns: NAME, VALUE, TYPE
 #  NAME                VALUE  TYPE
 0  power-consumption   50.8   W
 1  cpu-temperature     43     C
 2  fan1-speed          5654   RPM
 6  board-temperature1  29     C
 8  psu1-voltage        0      V
10  psu1-current        0      A
11  psu1-state          ok
7
"""
TRAFFIC = """\
                  slot:    storage-pool
              read-ops:         243 401
   read-ops-per-second:               0
            read-bytes:  33 131 503 616
             read-rate:            0bps
             read-time:        48s149ms
             write-ops:      17 667 231
  write-ops-per-second:              76
            write-rate:        12.8Mbps
            write-time:             0ms
         in-flight-ops:               0
           active-time:             0ms
             wait-time:      1d7h44m20s
"""


def test_version_and_board_are_read() -> None:
    printed = "                   uptime: 1w2d\r\n                  version: 7.16 (stable)\r\n               board-name: ROSE\r\n"
    assert resource(Output(printed)) == Resource("7.16 (stable)", "ROSE")
    assert resource(Output("  version: 7.24.1 (stable)\r\n")) == Resource("7.24.1 (stable)", "")


@pytest.mark.parametrize(
    ("output", "error"),
    [
        (Output(""), MalformedAnswer),
        (Output("  uptime: 1w2d\r\n"), MalformedAnswer),
        (Output("not enough permissions (9)\r\n"), NotPermitted),
        (Output("  version: 7.16\r\n", "failure: interrupted", 1), CommandFailed),
    ],
)
def test_an_answer_without_a_version_is_none(output: Output, error: type[Exception]) -> None:
    with pytest.raises(error):
        resource(output)


def test_sensors_are_read_with_their_units_and_states() -> None:
    found = health(Output(HEALTH.replace("\n", "\r\n")))
    assert found["power-consumption"] == Sensor("50.8", "W")
    assert found["board-temperature1"].number == 29
    assert found["psu1-state"] == Sensor("ok")
    assert found["psu1-state"].number is None
    assert len(found) == 7


def test_a_device_without_sensors_has_none() -> None:
    assert health(Output("0\r\n")) == {}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (HEALTH.replace("7\n", "8\n"), MalformedAnswer),
        (HEALTH.removesuffix("7\n"), MalformedAnswer),
        ("", MalformedAnswer),
        ("bad command name health (line 1 column 9)\n", NotUnderstood),
        ("something else\n0\n", MalformedAnswer),
    ],
)
def test_an_answer_that_is_cut_short_or_an_error_says_nothing_of_sensors(answer: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        health(Output(answer))


def test_traffic_is_read_in_bytes_and_seconds() -> None:
    assert traffic(Output(TRAFFIC.replace("\n", "\r\n"))) == {
        "storage-pool": Traffic(
            "storage-pool",
            {
                "read-ops": 243_401, "read-ops-per-second": 0, "read-bytes": 33_131_503_616, "write-ops": 17_667_231,
                "write-ops-per-second": 76, "in-flight-ops": 0,
            },
            {"read-rate": 0, "write-rate": 1_600_000},
            {"read-time": 48.149, "write-time": 0, "active-time": 0, "wait-time": 114_260},
        )
    }  # fmt: skip


def test_several_answers_are_told_apart() -> None:
    assert set(traffic(Output(TRAFFIC + TRAFFIC.replace("storage-pool", "pvc-1")))) == {"storage-pool", "pvc-1"}


@pytest.mark.parametrize(
    ("answer", "error"), [("no such item\n", NoSuchItem), ("read-ops: 1\n", MalformedAnswer), ("x\n", MalformedAnswer)]
)
def test_what_is_no_traffic_is_an_error(answer: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        traffic(Output(answer))


def test_an_error_on_the_other_stream_counts() -> None:
    with pytest.raises(CommandFailed):
        traffic(Output(TRAFFIC, stderr="interrupted"))


@pytest.mark.parametrize(
    ("text", "expected"), [("0ms", 0), ("48s149ms", 48.149), ("1m2s", 62), ("551us", 0.000551), ("1w1d", 691_200), ("2h", 7200)]
)
def test_times_are_seconds(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "expected"), [("0bps", 0), ("8kbps", 1000), ("12.8Mbps", 1_600_000), ("1Gbps", 125_000_000)])
def test_rates_are_bits_in_decimal_units(text: str, expected: float) -> None:
    assert bytes_per_second(text) == expected


@given(st.text(max_size=12))
def test_whatever_else_is_printed_is_no_time_and_no_rate_or_a_sane_one(text: str) -> None:
    for read in (seconds, bytes_per_second):
        with contextlib.suppress(MalformedAnswer):
            assert read(text) >= 0


async def test_the_box_is_asked_for_the_traffic_of_many_disks_in_few_lines() -> None:
    link = Link()
    slots = [Slot(f"pvc-{number}") for number in range(60)]
    for slot in slots:
        link.console.run(f"/disk add type=file file-path=/storage-pool/x/{slot}.img file-size=1G slot={slot}")
    found = await Box(link).traffic(slots, deadline=time.monotonic() + 5)
    assert set(found) == set(slots)
    assert len(link.sent) == 2
