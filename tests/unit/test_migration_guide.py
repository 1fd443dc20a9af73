"""docs/kubevirt-migration.md says of rules, timeouts and commands what the code says."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from rds_operator.events import EventReason
from rds_records import messages
from rds_records.kubevirt_evidence import Rule
from rds_records.kubevirt_objects import vmi_view
from rds_records.kubevirt_runs import LETTING_GO, limit
from rds_records.record import Announcement, ObjectReference, Origin, Phase, Result, Window
from rds_records.window_warnings import LEAVING_OVERDUE, LONG_RUN, SLOW_START
from rds_records.windows import PENDING_LIMIT
from tests.documents import ROOT
from tests.unit.records.kubevirt import RUN, state, vmi
from tests.unit.records.volumes import START

GUIDE = (ROOT / "docs" / "kubevirt-migration.md").read_text()
WINDOW = Window(
    id="w1",
    origin=Origin.PUBLISH,
    source_node="NODE",
    target_node="TARGET",
    start_time=START,
    vmi=ObjectReference(namespace="NAMESPACE", name="VM"),
    migration_name="MIGRATION",
    migration_uid=RUN,
    source_pod="POD",
    target_pod="TARGET_POD",
    live_node="TARGET",
)


def section(heading: str) -> str:
    """Return what stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", GUIDE, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def words(duration: timedelta) -> str:
    """Return a duration as the guide writes it: 1h29m30s, without parts that are 0."""
    minutes, seconds = divmod(int(duration.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if number)


def deadline(memory: str, **configuration: bool) -> timedelta:
    run = state(migrationConfiguration={"completionTimeoutPerGiB": 150, **configuration})
    allowed = limit(vmi_view(vmi(memory=memory, migrationState=run)), WINDOW)
    assert allowed
    return allowed


def test_the_table_of_timeouts_is_what_is_computed() -> None:
    table = rows(section("Choosing timeouts"))
    assert [row[0] for row in table] == ["2Gi", "4Gi", "8Gi", "16Gi", "32Gi", "64Gi"]
    for memory, units, kubevirt, here, disrupted in table:
        allowed = deadline(memory)
        own = allowed - timedelta(seconds=120)
        assert (int(units) * 150, kubevirt, here) == (own.total_seconds(), words(own), words(allowed))
        assert disrupted == words(deadline(memory, allowWorkloadDisruption=True))


def test_every_rule_of_a_refusal_is_explained() -> None:
    explained = [row[0].strip("`") for row in rows(section("A second node is refused"))]
    assert sorted(explained) == sorted(Rule)


@pytest.mark.parametrize("name", [*Phase, *Result, Announcement.SLOW_START, Announcement.LONG_RUN, Announcement.LEAVING_OVERDUE])
def test_every_state_that_a_record_can_show_is_named(name: str) -> None:
    assert name == "Detached" or f"`{name}`" in GUIDE


@pytest.mark.parametrize(
    "reason", [reason for reason in EventReason if reason.type == "Warning" and reason is not EventReason.ORPHAN_DETECTED]
)
def test_every_warning_event_is_named(reason: EventReason) -> None:
    assert f"`{reason}`" in GUIDE


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (LETTING_GO, "Here 120 seconds are added"),
        (SLOW_START, "after 20 minutes an Event `MigrationSlowStart`"),
        (LONG_RUN, "after 2 hours an Event `MigrationLongRun`"),
        (PENDING_LIMIT, "after 10 minutes without an answer it goes by who left"),
        (LEAVING_OVERDUE, "10 minutes later the node on which the VM does **not** run still has the disk"),
    ],
)
def test_the_guide_knows_the_limits(limit: timedelta, sentence: str) -> None:
    number, unit = re.findall(r"(\d+) (seconds|minutes|hours)", sentence)[0]
    assert limit == timedelta(**{unit: int(number)})
    assert sentence in " ".join(GUIDE.split())


@pytest.mark.requirement("R11")
def test_the_commands_of_the_messages_are_those_of_the_guide() -> None:
    hour = timedelta(hours=1)
    told = WINDOW.replace(result=Result.SUCCEEDED, result_time=START)
    texts = [
        messages.timed_out("v", WINDOW, hour),
        messages.slow_start("v", WINDOW, hour, ""),
        messages.long_run("v", WINDOW, hour),
        messages.leaving_overdue("v", told, hour, ""),
        messages.leaving_overdue("v", told.replace(live_node=None), hour, ""),
    ]
    commands = {command for text in texts for command in re.findall(r"`(kubectl [^`]+)`", text)}
    assert len(commands) == 4
    assert [command for command in commands if command not in GUIDE] == []


def test_the_danger_stands_before_everything_else() -> None:
    first = GUIDE.split("\n\n")[1]
    assert first.startswith("> **DANGER: DATA CORRUPTION.**")
    assert "not** shared storage" in first
