"""Sensors, version, name and traffic of the simulated box."""

from __future__ import annotations

import re

import pytest

from rds_csi.routeros import OutcomeUnknown
from tests.simulator import SimulatedBox
from tests.simulator.conftest import HANDLE, Client, within
from tests.simulator.system_menu import duration

HEALTH = """\
Columns: NAME, VALUE, TYPE
 #  NAME                VALUE     TYPE
 0  power-consumption   50.8      W
 1  cpu-temperature     43        C
 2  fan1-speed          5654      RPM
 3  fan2-speed          5610      RPM
 4  fan3-speed          5625      RPM
 5  fan4-speed          5640      RPM
 6  board-temperature1  29        C
 7  board-temperature2  31        C
 8  psu1-voltage        0         V
 9  psu2-voltage        12.1      V
10  psu1-current        0         A
11  psu2-current        4.2       A
12  psu1-state          no-input
13  psu2-state          ok
"""
TRAFFIC = """\
                  slot:    storage-pool
              read-ops:         243 401
   read-ops-per-second:               0
            read-bytes:  33 131 503 616
             read-rate:            0bps
           read-merges:               0
             read-time:        48s149ms
             write-ops:      17 667 231
  write-ops-per-second:              76
           write-bytes: 515 659 673 600
            write-rate:        12.8Mbps
          write-merges:               0
            write-time:             0ms
         in-flight-ops:               0
           active-time:             0ms
             wait-time:             0ms
           discard-ops:               0
         discard-bytes:               0
        discard-merges:               0
          discard-time:             0ms
             flush-ops:               0
            flush-time:             0ms
"""
ADD = f"/disk add type=file file-path=/storage-pool/{HANDLE}.img file-size=1G slot={HANDLE}"


def crlf(text: str) -> str:
    return text.replace("\n", "\r\n")


@pytest.mark.parametrize("spelling", ["/system health print", "/system/health/print", "/system/health print"])
def test_readings_are_a_table_with_its_count(ros: SimulatedBox, spelling: str) -> None:
    assert ros.run(f"{spelling}; :put [:len [/system health find]]") == crlf(HEALTH + "14\n")


def test_readings_change_while_it_runs_and_are_kept(ros: SimulatedBox) -> None:
    ros.health(("cpu-temperature", "91", "C"), ("psu1-state", "fail", ""))
    table = crlf(
        "Columns: NAME, VALUE, TYPE\n#  NAME             VALUE  TYPE\n0  cpu-temperature  91     C\n1  psu1-state       fail\n"
    )
    assert ros.run("/system health print") == table
    ros.restart()
    assert ros.run("/system health print") == table


def test_one_reading_can_be_asked_for(ros: SimulatedBox) -> None:
    assert ros.run(':put [/system/health/get [find name="cpu-temperature"] value]') == "43\r\n"
    assert "\r\n6  board-temperature1  29     C\r\n" in ros.run('/system health print where name~"board-temperature1"')


def test_a_device_without_sensors_prints_nothing(ros: SimulatedBox) -> None:
    ros.health()
    assert ros.run("/system health print; :put [:len [/system health find]]") == "0\r\n"


@pytest.mark.parametrize("version", ["7.16", "7.24.1"])
def test_it_tells_its_version_board_and_uptime(ros: SimulatedBox, version: str) -> None:
    ros.switch(version=version)
    lines = [line.strip() for line in ros.run("/system resource print").splitlines()]
    assert f"version: {version} (stable)" in lines
    assert "board-name: RDS2216" in lines
    assert any(re.fullmatch(r"uptime: (\d+m)?(\d+s)?", line) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0s"), (59, "59s"), (3600, "1h"), (788645, "1w2d3h4m5s"), (604801.9, "1w1s"), (90000, "1d1h")]
)
def test_a_time_is_printed_in_weeks_to_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_it_has_a_name(ros: SimulatedBox) -> None:
    assert ros.run("/system identity print") == "  name: rds\r\n"


def test_other_menus_of_system_are_not_there(ros: SimulatedBox) -> None:
    assert ros.run("/system reboot") == "bad command name reboot (line 1 column 1)\r\n"
    assert ros.run("/system") == "bad command name system (line 1 column 1)\r\n"


def test_traffic_is_printed_as_in_the_capture(ros: SimulatedBox) -> None:
    ros.traffic("storage-pool", read_ops=243401, read_bytes=33131503616, read_time="48s149ms")
    ros.traffic("storage-pool", write_ops=17667231, write_ops_per_second=76, write_bytes=515659673600, write_rate="12.8Mbps")
    assert ros.run("/disk monitor-traffic storage-pool once") == crlf(TRAFFIC)


def test_the_traffic_of_several_slots_comes_in_one_line(ros: SimulatedBox) -> None:
    ros.run(ADD)
    ros.traffic(HANDLE, write_ops=1234)
    printed = ros.run(f"/disk monitor-traffic storage-pool once; /disk monitor-traffic {HANDLE} once")
    assert re.findall(r" slot: +(\S+)\r\n", printed) == ["storage-pool", HANDLE]
    assert re.findall(r" write-ops: +(\S.*)\r\n", printed) == ["0", "1 234"]


def test_traffic_of_an_unknown_slot_fails_after_what_came_before(ros: SimulatedBox) -> None:
    printed = ros.run("/disk monitor-traffic storage-pool once; /disk monitor-traffic nobody once; /disk print count-only")
    assert printed.count("flush-time") == 1
    assert printed.endswith("0ms\r\nno such item\r\n")


def test_traffic_for_ever_is_refused(ros: SimulatedBox) -> None:
    assert ros.run("/disk monitor-traffic storage-pool").startswith("expected end of command")


def test_a_new_disk_in_an_old_slot_begins_at_zero(ros: SimulatedBox) -> None:
    ros.run(ADD)
    ros.traffic(HANDLE, read_ops=5)
    ros.run(f"/disk remove {HANDLE}; {ADD}")
    assert re.search(r" read-ops: +0\r\n", ros.run(f"/disk monitor-traffic {HANDLE} once"))


def test_unknown_counters_are_refused(ros: SimulatedBox) -> None:
    with pytest.raises(ValueError, match="no such counter: reads"):
        ros.traffic("storage-pool", reads=1)


async def test_all_of_it_arrives_over_ssh(ros: SimulatedBox, client: Client) -> None:
    _, transport, _ = client
    line = "/system health print; :put [:len [/system health find]]; /disk monitor-traffic storage-pool once"
    assert (await transport.run(line, deadline=within(5))).stdout == ros.run(line)


@pytest.mark.parametrize("line", ["/system health print", "/system resource print", "/disk monitor-traffic storage-pool once"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_link_can_be_cut_around_any_of_it(ros: SimulatedBox, client: Client, line: str, when: str) -> None:
    _, transport, _ = client
    ros.drop_link(when, f"^{line}$", nth=2)
    assert (await transport.run(line, deadline=within(5))).stdout
    with pytest.raises(OutcomeUnknown):
        await transport.run(line, deadline=within(5))
    assert ros.received() == [line, line]
