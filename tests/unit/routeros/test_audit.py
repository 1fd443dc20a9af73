"""Every change that was sent to the box is in the audit log, with what is known of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from rds_csi.routeros import BoxUnreachable, CommandFailed, OutcomeUnknown, exchange
from rds_csi.routeros.parser import Output
from rds_process.logs import AUDIT

COMMAND = "/disk remove [find slot=pvc-1]"


class Scripted:
    """Answers as the test says."""

    def __init__(self, answer: Output | BaseException) -> None:
        self.answer = answer

    async def run(self, command: str, *, deadline: float) -> Output:
        assert command
        assert deadline
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def entries(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    fields = ("audit", "command", "reason")
    return [{name: getattr(one, name) for name in fields if hasattr(one, name)} for one in caplog.records if one.name == AUDIT]


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (Output("", "", 0), "box.changed", None),
        (Output("failure: in use\r\n", "", 1), "box.refused", "in use"),
        (OutcomeUnknown("the box did not answer in time"), "box.unknown", "the box did not answer in time"),
        (asyncio.CancelledError(), "box.unknown", "CancelledError"),
    ],
)
async def test_a_change_that_was_sent_has_one_entry(
    caplog: pytest.LogCaptureFixture, answer: Output | BaseException, kind: str, reason: str | None
) -> None:
    caplog.set_level(logging.INFO)
    try:
        await exchange.change(Scripted(answer), COMMAND, 1.0)
    except (CommandFailed, OutcomeUnknown, asyncio.CancelledError):
        assert kind != "box.changed"
    [entry] = entries(caplog)
    assert (entry["audit"], entry["command"]) == (kind, COMMAND)
    assert (reason is None) == ("reason" not in entry)
    assert reason is None or reason in entry["reason"]


async def test_what_was_never_sent_and_what_only_reads_has_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(BoxUnreachable):
        await exchange.change(Scripted(BoxUnreachable("not connected yet")), COMMAND, 1.0)
    assert await exchange.count(Scripted(Output("3\r\n", "", 0)), ":put 3", 1, 1.0) == (3,)
    assert entries(caplog) == []
