"""What is written down of the box: on change, by whom, since when; and what an outage leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rds_csi.routeros import (
    BoxError,
    BoxUnreachable,
    Capacity,
    Disk,
    FilePath,
    HostKeyRefused,
    LoginRefused,
    NotPermitted,
    OutcomeUnknown,
    Output,
    SessionRefused,
    Settings,
)
from rds_operator.box_reporting import BoxReporter, link_of
from rds_operator.config_maps import OwnConfigMap
from rds_operator.inventory import Sighting
from rds_records.box_report import CONFIG_MAP, REPEAT, BoxReport, Link
from tests.simulator.console import Console
from tests.simulator.store import Store
from tests.simulator.switches import Switches
from tests.unit.operator.api_server import ApiServer, Fault

NAMESPACE = "rds-csi"
PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{CONFIG_MAP}"
NOW = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)
DISK = Disk("pvc-1", "/storage-pool/metal-csi/pvc-1.img", 2**30, exported=True, nqn=None, port=None)
WHOLE = Sighting(disks=(DISK,), files=(), pool=Capacity(2**40, 2**39, "storage-pool"))
BOX = Settings("192.0.2.1", "metal-csi", Path("/nonexistent"), host_key_file=Path("/nonexistent"))


def failing(error: BoxError) -> Sighting:
    return Sighting(failed={"disks": error, "files": error})


class SimulatedLink:
    """A link to a simulated box."""

    def __init__(self, **switches: Any) -> None:
        self.console = Console(Store(), Switches(**switches))
        self.sent: list[str] = []

    async def run(self, command: str, *, deadline: float) -> Output:
        self.sent.append(command)
        answer = self.console.run(command)
        return Output(answer.text + answer.error)


class Writing:
    """An operator that writes down what it is told of rounds, and its two clocks."""

    def __init__(self, server: ApiServer, *, settings: Settings = BOX, operator: str = "one", **switches: Any) -> None:
        self.server = server
        self.box = SimulatedLink(**switches)
        self.seconds = 0.0
        self.reporter = BoxReporter(
            self.box,
            settings,
            FilePath("/storage-pool/metal-csi"),
            OwnConfigMap(server.client(), NAMESPACE, CONFIG_MAP),
            operator=operator,
            interval=60.0,
            disagreement=lambda: timedelta(seconds=1.25),
            monotonic=lambda: self.seconds,
        )

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    async def see(self, *rounds: Sighting) -> BoxReport:
        """Take in rounds that are a minute apart; return what is written then."""
        for seen in rounds:
            self.seconds += 60
            await self.reporter.see(seen, now=self.now, elapsed=60.0)
        return BoxReport.of(self.server.get(PATH))


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


def writes(server: ApiServer) -> int:
    return sum(path == PATH for _, path in server.writes)


async def test_a_box_that_answers_is_told_with_what_it_is_and_can_do(server: ApiServer) -> None:
    writing = Writing(server, version="7.24")
    report = await writing.see(WHOLE)
    assert (report.operator, report.address, report.user, report.host_key_pinned) == ("one", "192.0.2.1:22", "metal-csi", True)
    assert (report.link, report.since, report.answered_time) == (Link.CONNECTED, writing.now, writing.now)
    assert (report.router_os, report.board, report.subvolumes, report.exported_disks) == ("7.24 (stable)", "RDS2216", True, 1)
    assert report.unanswered == {}


async def test_how_far_the_clock_of_the_operator_is_off_is_told_and_no_news_by_itself(server: ApiServer) -> None:
    report = await Writing(server, version="7.24").see(WHOLE)
    assert report.operator_clock_seconds == 1.2
    assert report.says_the_same(report.replace(operator_clock_seconds=0.0))
    assert not report.says_the_same(report.replace(router_os="7.25"))


async def test_a_box_without_subvolumes_is_told_with_the_reason(server: ApiServer) -> None:
    report = await Writing(server, version="7.16").see(WHOLE)
    assert report.subvolumes is False
    assert "7.18" in report.no_subvolumes


async def test_what_stays_as_it_was_is_written_now_and_then_only(server: ApiServer) -> None:
    writing = Writing(server)
    first = await writing.see(WHOLE)
    again = await writing.see(*[WHOLE] * 4)
    assert (writes(server), again.observed_time) == (1, first.observed_time)
    later = await writing.see(WHOLE)
    assert (writes(server), later.observed_time - first.observed_time, later.since) == (2, REPEAT, first.since)


async def test_what_the_box_is_is_asked_for_as_rarely(server: ApiServer) -> None:
    writing = Writing(server)
    await writing.see(*[WHOLE] * 5)
    assert sum(command == "/system resource print" for command in writing.box.sent) == 1


async def test_an_outage_is_written_at_once_and_says_when_the_box_last_answered(server: ApiServer) -> None:
    writing = Writing(server, version="7.24")
    await writing.see(WHOLE, WHOLE)
    answered = writing.now
    report = await writing.see(failing(BoxUnreachable("no route")))
    assert (report.link, report.since, report.trouble, report.answered_time) == (
        Link.UNREACHABLE,
        writing.now,
        "no route",
        answered,
    )
    assert report.router_os == "7.24 (stable)"
    back = await writing.see(WHOLE)
    assert (back.link, back.since, back.trouble) == (Link.CONNECTED, writing.now, "")


@pytest.mark.parametrize(
    ("error", "link"),
    [
        (BoxUnreachable("no route"), Link.UNREACHABLE),
        (HostKeyRefused("presents another"), Link.HOST_KEY_REFUSED),
        (LoginRefused("refuses user"), Link.LOGIN_REFUSED),
        (SessionRefused("opens no session"), Link.SILENT),
        (OutcomeUnknown("did not answer in time"), Link.SILENT),
        (NotPermitted("not enough permissions (9)"), Link.CONNECTED),
    ],
)
def test_why_nothing_was_answered_says_how_the_link_is(error: BoxError, link: Link) -> None:
    assert link_of(failing(error))[0] is link


async def test_a_question_that_the_box_refuses_is_told_and_the_link_is_fine(server: ApiServer) -> None:
    seen = replace(WHOLE, files=None, failed={"files": NotPermitted("not enough permissions (9)")})
    report = await Writing(server).see(seen)
    assert (report.link, report.unanswered) == (Link.CONNECTED, {"files": "not enough permissions (9)"})


async def test_a_question_about_the_box_that_failed_stays_told_until_it_is_asked_again(server: ApiServer) -> None:
    writing = Writing(server)
    answer: Callable[..., Any] = writing.box.run

    async def refuse(command: str, *, deadline: float) -> Output:
        return Output("not enough permissions (9)") if "resource" in command else await answer(command, deadline=deadline)

    writing.box.run = refuse  # type: ignore[method-assign]
    assert set((await writing.see(WHOLE)).unanswered) == {"system"}
    writing.box.run = answer  # type: ignore[method-assign]
    assert set((await writing.see(*[WHOLE] * 4)).unanswered) == {"system"}
    assert (await writing.see(WHOLE)).unanswered == {}


async def test_another_operator_takes_over_what_was_known_and_not_since_when(server: ApiServer) -> None:
    before = Writing(server, version="7.24")
    await before.see(WHOLE)
    other = Writing(server, operator="two", version="7.24")
    other.seconds = 600.0
    report = await other.see(failing(BoxUnreachable("no route")))
    assert (report.operator, report.since) == ("two", other.now)
    assert (report.answered_time, report.router_os) == (before.now, "7.24 (stable)")


async def test_nothing_is_taken_over_from_another_box(server: ApiServer) -> None:
    await Writing(server).see(WHOLE)
    report = await Writing(server, settings=replace(BOX, address="192.0.2.2")).see(failing(BoxUnreachable("no route")))
    assert (report.answered_time, report.router_os) == (None, None)


async def test_what_somebody_else_wrote_there_is_written_over(server: ApiServer) -> None:
    server.put(PATH, {"metadata": {"name": CONFIG_MAP}, "data": {"box.json": "{"}})
    assert (await Writing(server).see(WHOLE)).link is Link.CONNECTED


async def test_what_cannot_be_written_is_written_after_the_next_round(server: ApiServer) -> None:
    writing = Writing(server)
    server.faults = [Fault.LOST_REQUEST]
    await writing.reporter.see(WHOLE, now=NOW, elapsed=60.0)
    assert writes(server) == 0
    await writing.see(WHOLE)
    assert writes(server) == 1


async def test_a_host_key_that_nobody_checks_is_told(server: ApiServer) -> None:
    careless = replace(BOX, host_key_file=None, insecure_skip_verify=True)
    assert not (await Writing(server, settings=careless).see(WHOLE)).host_key_pinned
