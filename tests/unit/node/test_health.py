"""What is wrong with a volume, and that each incident is told once, with its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rds_csi.node.filesystem_errors import Errors
from rds_csi.node.health import Change, HealthWatch, Problem, problems_of
from rds_csi.node.sysfs import ControllerState
from tests.unit.node.node_world import STAGING, disk, mounted, session

LOST, VANISHED, READ_ONLY = Problem.CONNECTION_LOST, Problem.DEVICE_VANISHED, Problem.FILESYSTEM_READ_ONLY
VOLUME = "pvc-one"


def test_a_live_session_with_a_disk_is_well() -> None:
    assert problems_of(session(disk()), [mounted(STAGING)]) == frozenset()


@pytest.mark.parametrize("state", [ControllerState.CONNECTING, ControllerState.RESETTING, ControllerState.UNKNOWN])
def test_a_session_without_a_live_controller_is_lost(state: ControllerState) -> None:
    assert problems_of(session(disk(), state=state), []) == {LOST}


def test_a_live_session_without_a_disk_has_lost_it() -> None:
    assert problems_of(session(), []) == {VANISHED}


def test_no_session_at_all_is_a_vanished_disk() -> None:
    assert problems_of(None, []) == {VANISHED}


def test_a_file_system_that_the_kernel_made_read_only_is_told() -> None:
    gone = replace(mounted(STAGING), super_options=frozenset({"ro"}))
    assert problems_of(session(disk()), [gone]) == {READ_ONLY}


def test_a_file_system_that_answers_nothing_is_told() -> None:
    assert problems_of(session(disk()), [mounted(STAGING)], {disk().number: Errors(dead=True)}) == {READ_ONLY}


def test_recorded_errors_are_told_where_the_file_system_goes_on_and_once_it_has_stopped_only_that() -> None:
    earlier, now = Errors(recorded=2, stops=True), Errors(recorded=2, since_mount=True, stops=True)
    assert problems_of(session(disk()), [mounted(STAGING)], {disk().number: earlier}) == {Problem.FILESYSTEM_ERRORS}
    assert problems_of(session(disk()), [mounted(STAGING)], {disk().number: now}) == {READ_ONLY}
    assert problems_of(session(disk()), [mounted(STAGING)], {disk(2).number: now}) == frozenset()


def test_a_file_system_that_was_mounted_read_only_is_well() -> None:
    wanted = replace(mounted(STAGING), options=frozenset({"ro"}), super_options=frozenset({"ro"}))
    assert problems_of(session(disk()), [wanted]) == frozenset()


def test_another_volumes_read_only_file_system_is_none_of_this_ones() -> None:
    other = replace(mounted(STAGING, minor=9), super_options=frozenset({"ro"}))
    assert problems_of(session(disk()), [other]) == frozenset()


def looks(*found: tuple[float, frozenset[Problem] | None], grace: float = 30.0) -> list[Change]:
    """Return what is told after these looks; None: the volume is staged no more."""
    watch = HealthWatch(grace)
    return [
        change
        for now, problems in found
        for change in watch.look(now, {} if problems is None else {VOLUME: problems, "pvc-two": frozenset()})
    ]


NOTHING: frozenset[Problem] = frozenset()


def test_a_short_reconnect_is_not_told() -> None:
    assert looks((0, frozenset({LOST})), (29, frozenset({LOST})), (30, NOTHING)) == []


@pytest.mark.parametrize("problem", [LOST, VANISHED])
def test_what_lasts_is_told_once_and_its_end_once(problem: Problem) -> None:
    bad = frozenset({problem})
    assert looks((0, bad), (30, bad), (40, bad), (50, NOTHING), (60, NOTHING)) == [
        Change(VOLUME, problem, began=True, seconds=30),
        Change(VOLUME, problem, began=False, seconds=50),
    ]


def test_a_read_only_file_system_is_told_at_once() -> None:
    assert looks((5, frozenset({READ_ONLY}))) == [Change(VOLUME, READ_ONLY, began=True, seconds=0)]


def test_trouble_in_between_starts_its_time_anew() -> None:
    bad = frozenset({LOST})
    assert looks((0, bad), (20, NOTHING), (25, bad), (54, bad)) == []


def test_the_incident_of_a_volume_that_is_staged_no_more_ends_untold() -> None:
    bad = frozenset({VANISHED})
    assert [change.began for change in looks((0, bad), (30, bad), (40, None), (50, NOTHING))] == [True]


def test_the_same_trouble_later_is_another_incident() -> None:
    bad = frozenset({READ_ONLY})
    assert [change.began for change in looks((0, bad), (1, NOTHING), (2, bad))] == [True, False, True]


def test_what_was_told_and_lasts_is_current() -> None:
    watch = HealthWatch(30.0)
    watch.look(0, {VOLUME: frozenset({LOST, READ_ONLY})})
    assert watch.current == {VOLUME: {READ_ONLY}}
    watch.look(30, {VOLUME: frozenset({LOST, READ_ONLY})})
    assert watch.current == {VOLUME: {LOST, READ_ONLY}}
