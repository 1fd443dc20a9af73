"""Looks that can block in the kernel: each in a thread of its own, a few at once, and given up after a while.

Each system call of a thread gives the interpreter lock away and has to wait for it again. With a look for each of many volumes at
once all of them come too late, what they found is thrown away, and the repeated calls do the same again: so they take turns.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")

AT_ONCE: Final = 4
HANGS_AFTER: Final = 2.0
"""Seconds after which a look counts as one that waits for the kernel: it costs nothing, and the next one has its turn."""


class LookTooSlow(Exception):
    """The kernel gave no answer in time: nothing is known."""


class PathUnusable(Exception):
    """A file of the node cannot be looked at, made or removed."""


class Looks:
    """Runs blocking functions in daemon threads, which cannot be ended; one that hangs is not joined by a second of its kind."""

    def __init__(self, at_once: int = AT_ONCE, hangs_after: float = HANGS_AFTER) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._hangs_after = hangs_after
        self._hanging: dict[str, threading.Thread] = {}

    async def __call__(self, what: str, look: Callable[[], T], seconds: float, late: Callable[[T], None] | None = None) -> T:
        """Return what ``look`` returns, or raise what it raises; raises LookTooSlow ``seconds`` after its turn has come.

        ``late`` gets a result that came when nobody waited for it any more.
        """
        self._refuse_hanging(what)
        await self._turns.acquire()
        # The thread has the turn, not its caller: one whose caller has left still runs.
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        end_turn = _once(self._turns.release)

        def give(result: T) -> None:
            end_turn()
            if not answer.done():
                answer.set_result(result)
            elif late is not None:
                late(result)

        def refuse(error: BaseException) -> None:
            end_turn()
            if not answer.done():
                answer.set_exception(error)

        def work() -> None:
            # The loop may be closed by the time of the answer: then the process ends.
            with suppress(RuntimeError):
                try:
                    result = look()
                except BaseException as error:  # noqa: BLE001 it is raised again where the answer is awaited
                    loop.call_soon_threadsafe(refuse, error)
                else:
                    loop.call_soon_threadsafe(give, result)

        thread = threading.Thread(target=work, name=what, daemon=True)
        loop.call_later(self._hangs_after, end_turn)
        thread.start()
        try:
            return await _in_time(answer, seconds, late)
        except TimeoutError:
            raise LookTooSlow(f"{what}: no answer in {seconds:g} s") from None
        finally:
            if not answer.done() or answer.cancelled():
                self._hanging[what] = thread

    def _refuse_hanging(self, what: str) -> None:
        self._hanging = {name: thread for name, thread in self._hanging.items() if thread.is_alive()}
        if what in self._hanging:
            raise LookTooSlow(f"{what}: an earlier look still waits for the kernel's answer")


async def _in_time(answer: asyncio.Future[T], seconds: float, late: Callable[[T], None] | None) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except BaseException:
        # It may have come in the moment in which its caller left.
        if late is not None and answer.done() and not answer.cancelled() and answer.exception() is None:
            late(answer.result())
        raise


def _once(work: Callable[[], None]) -> Callable[[], None]:
    """Return a function that does the work when it is called first, and nothing after that."""
    left = [work]
    return lambda: left.pop()() if left else None
