"""What ``doctor`` makes of what the operator tells of the box: old news is no news, and each trouble has its way out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from rds_kubectl.box_examination import ANSWERS, FEATURES, HOST_KEY, OPERATOR_CLOCK, SSH, VERSION, box, news
from rds_kubectl.examination import Check, State
from rds_records.box_report import CONFIG_MAP, REPEAT, BoxReport, Link
from tests.unit.kubectl.cluster_objects import NOW, Object, lease
from tests.unit.test_advice import forbidden

GOOD = BoxReport(
    operator="operator-1",
    version="0.1.0",
    address="192.0.2.1:22",
    user="metal-csi",
    host_key_pinned=True,
    base_path="/storage-pool/metal-csi",
    interval_seconds=60,
    observed_time=NOW - timedelta(seconds=30),
    link=Link.CONNECTED,
    since=NOW - timedelta(hours=3),
    answered_time=NOW - timedelta(seconds=30),
    router_os="7.24 (stable)",
    board="RDS2216",
    subvolumes=True,
    exported_disks=7,
    operator_clock_seconds=0.1,
)
SILENT_FOR_LONG = NOW - REPEAT - timedelta(minutes=3, seconds=1)


def told(report: BoxReport) -> Object:
    return {"metadata": {"name": CONFIG_MAP}, "data": report.data()}


def found(
    report: BoxReport | None, *, held: Any = "usual", mode: str | None = None, watched: bool | None = None
) -> dict[str, Check]:
    body = told(report) if report else None
    checks = box(body, lease() if held == "usual" else held, NOW, mode=mode, watched=watched)
    return {check.name: check for check in checks}


def states(checks: dict[str, Check]) -> set[State]:
    return {check.state for check in checks.values()}


def broken(link: Link, why: str = "no route") -> BoxReport:
    return GOOD.replace(link=link, trouble=why, since=NOW - timedelta(minutes=10), answered_time=NOW - timedelta(minutes=11))


def test_a_box_that_is_reached_with_all_it_needs_is_fine() -> None:
    checks = found(GOOD)
    assert list(checks) == [SSH, HOST_KEY, ANSWERS, VERSION, FEATURES, OPERATOR_CLOCK]
    assert states(checks) == {State.OK}
    assert checks[SSH].found == "192.0.2.1:22 answers user metal-csi, seen so for 3h, told 30s ago"
    assert "7.24 (stable) on RDS2216" in checks[VERSION].found


@pytest.mark.parametrize(
    ("report", "held", "why"),
    [
        (GOOD, None, "no operator is known to be active"),
        (GOOD, lease(renewed=60), "no operator is known to be active"),
        (GOOD, lease(holder=""), "no operator is known to be active"),
        (GOOD, lease(holder="operator-2"), "operator-2 is active and has not told of the box yet"),
        (GOOD.replace(observed_time=SILENT_FOR_LONG), lease(), "operator-1 is active and does not look at the box any more"),
    ],
)
def test_old_news_is_shown_with_its_age_and_nothing_known(report: BoxReport, held: Any, why: str) -> None:
    checks = found(report, held=held)
    assert states(checks) == {State.UNKNOWN}
    assert checks[SSH].found.startswith(f"{why}; ")
    assert all(" ago: " in check.found for check in checks.values())


def test_only_what_the_active_operator_tells_now_is_news() -> None:
    assert news(told(GOOD), lease(), NOW) == GOOD
    assert news(told(GOOD), None, NOW) is None
    assert news(told(GOOD.replace(observed_time=SILENT_FOR_LONG)), lease(), NOW) is None
    assert news(None, lease(), NOW) is None
    assert news({"data": {"box.json": "{"}}, lease(), NOW) is None


def test_old_trouble_is_not_sold_as_todays() -> None:
    assert found(broken(Link.HOST_KEY_REFUSED), held=None)[HOST_KEY].state is State.UNKNOWN


@pytest.mark.parametrize("link", [link for link in Link if link is not Link.CONNECTED])
def test_a_link_that_is_down_says_since_when_and_why_and_what_to_do(link: Link) -> None:
    check = found(broken(link))[SSH]
    assert (check.state, bool(check.fix)) == (State.WRONG, True)
    assert check.found == f"{link} for 10m: no route; it last answered 11m ago"


@pytest.mark.parametrize("link", [link for link in Link if link is not Link.CONNECTED])
def test_what_a_box_was_able_to_do_is_nothing_known_while_it_is_not_reached(link: Link) -> None:
    checks = found(broken(link))
    assert {checks[name].state for name in (VERSION, FEATURES)} == {State.UNKNOWN}
    assert checks[VERSION].found == "when it last answered: RouterOS 7.24 (stable) on RDS2216"


def test_another_host_key_is_wrong_and_nobody_is_told_just_to_pin_it() -> None:
    check = found(broken(Link.HOST_KEY_REFUSED, "presents SHA256:x, expected SHA256:y"))[HOST_KEY]
    assert (check.state, check.found) == (State.WRONG, "presents SHA256:x, expected SHA256:y")
    assert check.fix.startswith("find out why the key changed before you pin another")


@pytest.mark.parametrize("link", [Link.UNREACHABLE, Link.LOGIN_REFUSED, Link.SILENT])
def test_a_host_key_that_was_not_presented_is_not_called_right(link: Link) -> None:
    assert found(broken(link))[HOST_KEY].state is State.UNKNOWN


@pytest.mark.parametrize("link", list(Link))
def test_a_host_key_that_nobody_checks_is_wrong(link: Link) -> None:
    assert found(GOOD.replace(host_key_pinned=False, link=link))[HOST_KEY].state is State.WRONG


def test_a_question_that_the_box_did_not_answer_is_told_in_its_words() -> None:
    checks = found(GOOD.replace(unanswered={"files": "not enough permissions (9)"}))
    assert (checks[SSH].state, checks[ANSWERS].state) == (State.OK, State.WRONG)
    assert checks[ANSWERS].found == "it does not tell its files: not enough permissions (9)"


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("7.16 (stable)", State.OK),
        ("7.15.3 (stable)", State.NOTE),
        ("8.1beta2 (testing)", State.OK),
        (None, State.UNKNOWN),
        ("odd", State.OK),
    ],
)
def test_a_version_older_than_any_that_was_seen_is_noted(version: str | None, state: State) -> None:
    assert found(GOOD.replace(router_os=version))[VERSION].state is state


@pytest.mark.parametrize(
    ("subvolumes", "mode", "state"),
    [
        (True, "btrfs", State.OK),
        (None, "btrfs", State.UNKNOWN),
        (False, "auto", State.NOTE),
        (False, None, State.NOTE),
        (False, "btrfs", State.WRONG),
    ],
)
def test_subvolumes_that_the_box_has_not_are_wrong_only_where_they_are_asked_for(
    subvolumes: bool | None, mode: str | None, state: State
) -> None:
    report = GOOD.replace(subvolumes=subvolumes, no_subvolumes="the file system is xfs")
    assert found(report, mode=mode)[FEATURES].state is state


def test_the_clock_of_the_operator_counts() -> None:
    assert found(GOOD.replace(operator_clock_seconds=6))[OPERATOR_CLOCK].state is State.WRONG
    assert OPERATOR_CLOCK not in found(GOOD.replace(operator_clock_seconds=None))


@pytest.mark.parametrize(("watched", "state"), [(None, State.UNKNOWN), (True, State.UNKNOWN), (False, State.NOTE)])
def test_that_nobody_told_of_the_box_is_fine_only_where_nobody_is_to(watched: bool | None, state: State) -> None:
    assert states(found(None, watched=watched)) == {state}


@pytest.mark.parametrize("data", [None, {}, {"box.json": "{"}, {"box.json": '{"link": "Odd"}'}])
def test_what_is_not_understood_is_nothing_known(data: Any) -> None:
    (check,) = box({"data": data}, lease(), NOW, mode=None, watched=None)
    assert (check.state, "does not hold what this version understands" in check.found) == (State.UNKNOWN, True)


def test_what_a_newer_operator_writes_beside_it_is_left_alone() -> None:
    body = told(GOOD)
    body["data"]["box.json"] = body["data"]["box.json"].replace("{", '{"more": 1,', 1)
    assert BoxReport.of(body) == GOOD


def test_every_trouble_says_what_to_do_and_nothing_that_costs_data() -> None:
    bad = [*map(broken, Link), GOOD.replace(unanswered={"pool": "not mounted"}), GOOD.replace(host_key_pinned=False)]
    checks = [check for report in bad for check in found(report).values()]
    assert [check for check in checks if check.state is not State.OK and not check.fix] == []
    assert [check for check in checks if forbidden(check.fix)] == []
