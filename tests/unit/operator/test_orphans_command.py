"""The list of orphans as people and programs see it, and what is typed before one is removed."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

from rds_operator.orphans import WHY, Kind, Suspect, Thing
from rds_operator.orphans_command import show

SINCE = datetime(2026, 11, 25, 21, 14, tzinfo=UTC)
DISK = Suspect(Thing("pvc-1", Kind.DISK, "/pool/base/pvc-1", "pvc-1", "/pool/base/pvc-1/disk.img", 50 << 30), SINCE, 90_000.0)
FILE = Suspect(Thing("old.img", Kind.FILE, "/pool/base/old.img", printed_size="10.0GiB"), SINCE, 3600.0)


def shown(*suspects: Suspect, output: str = "table") -> str:
    out = io.StringIO()
    show({one.thing.name: one for one in suspects}, 86_400.0, output, out)
    return out.getvalue()


def test_the_table_has_size_first_seen_and_why_and_orphans_come_first() -> None:
    lines = shown(FILE, DISK).splitlines()
    assert lines[0].split() == ["NAME", "KIND", "SIZE", "FIRST", "SEEN", "SEEN", "FOR", "STATE", "WHY"]
    assert lines[1].split("   ")[0] == "pvc-1"
    assert "50 GiB" in lines[1]
    assert "2026-11-25 21:14" in lines[1]
    assert "orphan" in lines[1]
    assert lines[1].endswith(WHY[Kind.DISK])
    assert "wait 23:00:00" in lines[2]


def test_programs_get_the_same() -> None:
    first, second = json.loads(shown(FILE, DISK, output="json"))
    assert (first["name"], first["slot"], first["sizeBytes"], first["orphan"]) == ("pvc-1", "pvc-1", 50 << 30, True)
    assert (second["printedSize"], second["sizeBytes"], second["orphan"]) == ("10.0GiB", None, False)
    assert second["observedSeconds"] == 3600


def test_an_empty_list_says_so() -> None:
    assert "Nothing lies on the box" in shown()
    assert json.loads(shown(output="json")) == []


def test_every_kind_says_why() -> None:
    assert set(WHY) == set(Kind)
