"""One command line and its answer, in the three ways there are: read items, count them, change something."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rds_csi.routeros import parser
from rds_csi.routeros.errors import BoxUnreachable, CommandFailed, MalformedAnswer, NoSuchItem, OutcomeUnknown
from rds_csi.routeros.parser import Entry, Output
from rds_process import audit

READ_ATTEMPTS = 3


class Runner(Protocol):
    """What runs command lines; see ``Transport.run``."""

    async def run(self, command: str, *, deadline: float) -> Output:
        """Run one command line by the deadline (``time.monotonic``)."""


async def read(runner: Runner, command: str, deadline: float) -> tuple[Entry, ...]:
    """Read items, again where the answer does not add up: something may have come or gone between the print and the count."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        output = await runner.run(command, deadline=deadline)
        try:
            return parser.entries(output)
        except MalformedAnswer:
            if attempt == READ_ATTEMPTS:
                raise
    raise AssertionError


async def count(runner: Runner, command: str, numbers: int, deadline: float) -> tuple[int, ...]:
    """Read so many counts."""
    return parser.numbers(await runner.run(command, deadline=deadline), numbers)


async def change(runner: Runner, command: str, deadline: float) -> None:
    """Change something; what counts is what is read afterwards. Each is in the audit log, unless it never left."""
    try:
        parser.expect_silence(await runner.run(command, deadline=deadline))
    except BoxUnreachable:
        raise
    except CommandFailed as error:
        audit.record(audit.Kind.BOX_REFUSED, command=command, reason=str(error))
        raise
    except BaseException as error:
        # The caller's leaving is no sign that the box did not do it.
        audit.record(audit.Kind.BOX_UNKNOWN, command=command, reason=str(error) or type(error).__name__)
        raise
    audit.record(audit.Kind.BOX_CHANGED, command=command)


async def remove(runner: Runner, command: str, deadline: float) -> OutcomeUnknown | NoSuchItem | None:
    """Send a removal. What counts is read afterwards, so a lost answer and "no such item" are returned, not raised."""
    try:
        await change(runner, command, deadline)
    except (OutcomeUnknown, NoSuchItem) as error:
        return error
    return None


@contextlib.contextmanager
def after_a_change() -> Iterator[None]:
    """Say of a read that cannot be sent after a change what that means for the whole: not that nothing was sent."""
    try:
        yield
    except BoxUnreachable as error:
        raise OutcomeUnknown(f"a change was sent and cannot be read back: {error}") from error
