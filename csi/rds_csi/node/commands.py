"""External commands of the node: lists of words, each with a deadline, ended with the RPC that wanted them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

MAX_STDOUT: Final = 1 << 20
"""Bytes; a command that says more is ended: half an answer must not be taken for a whole one."""

MAX_STDERR: Final = 4096
"""Bytes; the last ones are kept, for they say what went wrong."""

MAX_LAST_WORDS: Final = 400
END_GRACE: Final = 2.0
"""Seconds that an ended command gets to go; one that waits in the kernel for a lost disk does not go (state D)."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its arguments; ``seconds`` is its deadline, ``answers`` the exit codes that are answers and no failures."""

    words: tuple[str, ...]
    seconds: float
    answers: frozenset[int] = frozenset({0})

    def __post_init__(self) -> None:
        """Refuse what no program can be started with; raises ValueError."""
        if not self.words or not self.words[0]:
            raise ValueError("a command needs a name")
        if any("\0" in word for word in self.words):
            raise ValueError(f"command {self.words[0]}: an argument holds a zero byte")
        if self.seconds <= 0:
            raise ValueError(f"command {self.words[0]}: its deadline must be after its start")

    @property
    def name(self) -> str:
        """The program."""
        return self.words[0]


@dataclass(frozen=True, slots=True)
class Output:
    """What a command answered; the end of ``stderr`` only."""

    code: int
    stdout: str
    stderr: str
    raw: bytes = b""
    """``stdout`` as it came, for what is no text."""


class CommandError(Exception):
    """A command gave no answer that can be used."""

    def __init__(self, name: str, what: str, last_words: str = "") -> None:
        self.name = name
        self.last_words = last_words
        super().__init__(f"{name}: {what}" + (f": {last_words}" if last_words else ""))


class CommandMissing(CommandError):
    """The program is not there or cannot be started."""


class CommandFailed(CommandError):
    """The program ended with an exit code that is no answer, or by a signal (a negative code)."""

    def __init__(self, name: str, code: int, last_words: str) -> None:
        self.code = code
        super().__init__(name, f"ended by signal {-code}" if code < 0 else f"exit code {code}", last_words)


class CommandTooSlow(CommandError):
    """The program was ended at its deadline; what it had done by then is not known."""


class CommandTooLoud(CommandError):
    """The program wrote more than ``MAX_STDOUT`` and was ended."""


Run = Callable[[Command], Awaitable[Output]]
"""How the node runs a command; tests give another one."""


async def run(command: Command) -> Output:
    """Run a command to its end; raises CommandError.

    At the deadline, and where the caller is cancelled, its whole process group is killed. A process that the kernel holds
    in an I/O without end survives that; it is left behind after ``END_GRACE`` seconds, and the error says so.
    """
    process = await _start(command)
    errors = asyncio.create_task(_read_tail(process.stderr))
    try:
        async with asyncio.timeout(command.seconds):
            stdout = await _read(process.stdout, command.name)
            stderr = await asyncio.shield(errors)
            code = await process.wait()
    except TimeoutError:
        gone = await _end(process, errors)
        left = "" if gone else f"; process {process.pid} does not end, it waits in the kernel"
        raise CommandTooSlow(command.name, f"not done in {command.seconds:g} s{left}") from None
    except BaseException:
        await _end(process, errors)
        raise
    if code not in command.answers:
        raise CommandFailed(command.name, code, last_words(stderr or stdout))
    return Output(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"), stdout)


def last_words(output: bytes) -> str:
    """Return the end of a command's output as one printable line of at most ``MAX_LAST_WORDS`` characters."""
    text = "; ".join(line.strip() for line in output.decode(errors="replace").splitlines() if line.strip())
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable[-MAX_LAST_WORDS:]


async def _start(command: Command) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command.words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise CommandMissing(command.name, f"cannot be started ({error.strerror})") from error


async def _read(stream: asyncio.StreamReader | None, name: str) -> bytes:
    if stream is None:
        return b""
    kept = bytearray()
    while part := await stream.read(1 << 16):
        kept += part
        if len(kept) > MAX_STDOUT:
            raise CommandTooLoud(name, f"wrote more than {MAX_STDOUT} bytes")
    return bytes(kept)


async def _read_tail(stream: asyncio.StreamReader | None) -> bytes:
    if stream is None:
        return b""
    kept = b""
    while part := await stream.read(1 << 16):
        kept = (kept + part)[-MAX_STDERR:]
    return kept


async def _end(process: asyncio.subprocess.Process, errors: asyncio.Task[bytes]) -> bool:
    """Kill the process group; return whether the process is gone."""
    # The group keeps its number as long as one member lives, also after its leader was reaped.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(END_GRACE):
            # Its pipes must be read to their end, or the loop never lets go of them.
            while process.stdout is not None and await process.stdout.read(1 << 16):
                pass
            await errors
            await process.wait()
    return process.returncode is not None
