"""Writes down how the box was found, for people who may not reach it: on change, and now and then so that it does not grow old."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any, Final

from rds_csi.routeros import (
    Box,
    BoxError,
    BoxUnreachable,
    FilePath,
    HostKeyRefused,
    LoginRefused,
    OutcomeUnknown,
    Runner,
    SessionRefused,
    Settings,
    Subvolumes,
    SubvolumesMissing,
)
from rds_operator.config_maps import OwnConfigMap
from rds_operator.inventory import Sighting
from rds_records.box_report import REPEAT, BoxReport, Link
from rds_records.kubernetes_api import ApiError

logger = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 30.0
"""How long one command may take."""

MOST_CHARACTERS: Final = 500
"""Of what is told of one failure."""

SYSTEM: Final = "system"
SUBVOLUMES: Final = "subvolumes"
"""What is asked for beside a round, as it is named where it fails."""

KEPT: Final = {"answered_time", "router_os", "board", "subvolumes", "no_subvolumes", "exported_disks"}
"""What stays as it was told last, through outages and another operator's taking over."""

_NOT_ANSWERED = (BoxUnreachable, OutcomeUnknown)


def link_of(seen: Sighting) -> tuple[Link, str]:
    """Return how the link did in a round, and why where it did not; a box that says no has answered."""
    if seen.answered() or any(not isinstance(error, _NOT_ANSWERED) for error in seen.failed.values()):
        return Link.CONNECTED, ""
    error = next(iter(seen.failed.values()), None)
    why = str(error or "nothing was asked")[:MOST_CHARACTERS]
    match error:
        case HostKeyRefused():
            return Link.HOST_KEY_REFUSED, why
        case LoginRefused():
            return Link.LOGIN_REFUSED, why
        case SessionRefused() | OutcomeUnknown():
            return Link.SILENT, why
    return Link.UNREACHABLE, why


class BoxReporter:
    """Hears of every round; the report is in the ConfigMap."""

    def __init__(
        self,
        runner: Runner,
        settings: Settings,
        base_path: FilePath,
        kept: OwnConfigMap,
        *,
        operator: str,
        interval: float,
        disagreement: Callable[[], timedelta],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``operator`` is the identity in the Lease; ``interval`` is in seconds, between two rounds.

        ``disagreement`` tells how far the clock of this machine is from the API server's.
        """
        self._runner = runner
        self._settings = settings
        self._base_path = base_path
        self._kept = kept
        self._operator = operator
        self._interval = interval
        self._disagreement = disagreement
        self._monotonic = monotonic
        self._last: BoxReport | None = None
        self._written: BoxReport | None = None
        self._ask_again = 0.0

    async def see(self, seen: Sighting, *, now: datetime, elapsed: float) -> None:  # noqa: ARG002 the report has the times themselves
        """Take in a round; what cannot be written now is written after the next one."""
        try:
            await self._see(seen, now)
        except ApiError as error:
            logger.warning("how the box was found is written down later: %s", error)

    async def _see(self, seen: Sighting, now: datetime) -> None:
        before = self._last or await self._of_an_earlier_life()
        report = self._link(seen, before, now)
        if report.link is Link.CONNECTED:
            report = await self._features(report, seen)
        self._last = report
        if report.says_the_same(self._written) and self._written and now - self._written.observed_time < REPEAT:
            return
        await self._kept.write(report.data())
        self._written = report

    async def _of_an_earlier_life(self) -> BoxReport | None:
        """Return what was written last of this box, by whichever operator: when it answered, and what it is."""
        body = await self._kept.read()
        try:
            report = BoxReport.of(body) if body else None
        except ValueError as error:
            logger.info("%s; it is written anew", error)
            return None
        return report if report and report.address == self._address else None

    @property
    def _address(self) -> str:
        return f"{self._settings.address}:{self._settings.port}"

    def _link(self, seen: Sighting, before: BoxReport | None, now: datetime) -> BoxReport:
        link, trouble = link_of(seen)
        connected = link is Link.CONNECTED
        known: Mapping[str, Any] = before.model_dump(include=KEPT) if before else {}
        report = BoxReport(
            operator=self._operator,
            version=version("rds-csi"),
            address=self._address,
            user=self._settings.user,
            host_key_pinned=self._settings.host_key is not None or self._settings.host_key_file is not None,
            base_path=self._base_path,
            interval_seconds=self._interval,
            observed_time=now,
            link=link,
            since=self._last.since if self._last and self._last.link is link else now,
            trouble=trouble,
            operator_clock_seconds=round(self._disagreement().total_seconds(), 1),
            unanswered={what: str(error)[:MOST_CHARACTERS] for what, error in seen.failed.items()} if connected else {},
            **known,
        )
        return report.replace(answered_time=now) if connected else report

    async def _features(self, report: BoxReport, seen: Sighting) -> BoxReport:
        """Add what the box is and is able to do; asked for rarely, as it changes with a restart of the box at most."""
        changes: dict[str, Any] = {}
        if seen.disks is not None:
            changes["exported_disks"] = sum(disk.exported for disk in seen.disks)
        unanswered = dict(report.unanswered)
        if self._last and self._last.link is Link.CONNECTED and self._monotonic() < self._ask_again:
            # What could not be told then has not been asked for since.
            unanswered |= {what: why for what, why in self._last.unanswered.items() if what in {SYSTEM, SUBVOLUMES}}
            return report.replace(**changes, unanswered=unanswered)
        self._ask_again = self._monotonic() + REPEAT.total_seconds()

        async def ask(what: str, question: Awaitable[dict[str, Any]]) -> None:
            try:
                changes.update(await question)
            except BoxError as error:
                unanswered[what] = str(error)[:MOST_CHARACTERS]

        await ask(SYSTEM, self._system())
        if seen.pool is not None:
            await ask(SUBVOLUMES, self._subvolumes())
        return report.replace(**changes, unanswered=unanswered)

    async def _system(self) -> dict[str, Any]:
        found = await Box(self._runner).resource(deadline=self._monotonic() + ANSWER_SECONDS)
        return {"router_os": found.version, "board": found.board or None}

    async def _subvolumes(self) -> dict[str, Any]:
        try:
            # A fresh one each time: it remembers what it has found.
            await Subvolumes(self._runner).label(self._base_path.mount_point, deadline=self._monotonic() + ANSWER_SECONDS)
        except SubvolumesMissing as error:
            return {"subvolumes": False, "no_subvolumes": str(error)[:MOST_CHARACTERS]}
        return {"subvolumes": True, "no_subvolumes": ""}
