"""External commands end in time, whole, and say what went wrong."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
import uvloop

from rds_csi.node import commands
from rds_csi.node.commands import Command, CommandFailed, CommandMissing, CommandTooLoud, CommandTooSlow, last_words, run
from tests.ring.waiting import eventually

# A parent and a child in its process group, both asleep; the pids are written down once both run.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""
SECONDS = 60.0


def python(code: str, *arguments: str, seconds: float = SECONDS) -> Command:
    return Command((sys.executable, "-c", code, *arguments), seconds)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


async def until_written(file: Path) -> list[int]:
    text = await asyncio.to_thread(eventually, "the pids are written", lambda: file.exists() and file.read_text(), timeout=SECONDS)
    return [int(pid) for pid in str(text).split()]


async def until_gone(pids: list[int]) -> None:
    await asyncio.to_thread(eventually, "all are gone", lambda: not any(alive(pid) for pid in pids), timeout=SECONDS)


async def test_the_answer_is_what_the_program_wrote() -> None:
    answer = await run(python("import sys; print('out'); print('err', file=sys.stderr)"))
    assert (answer.code, answer.stdout, answer.stderr) == (0, "out\n", "err\n")


async def test_arguments_reach_the_program_as_they_are_and_no_shell_reads_them() -> None:
    words = ("$(id)", "a b", "'", ";true", "*", "")
    answer = await run(python("import sys; print(sys.argv[1:])", *words))
    assert answer.stdout == f"{list(words)}\n"


async def test_a_program_reads_nothing_from_us_and_speaks_one_language() -> None:
    answer = await run(python("import os, sys; print(repr(sys.stdin.read()), os.environ['LC_ALL'])"))
    assert answer.stdout == "'' C\n"


async def test_an_exit_code_that_is_an_answer_is_no_failure() -> None:
    words = (sys.executable, "-c", "raise SystemExit(2)")
    assert (await run(Command(words, SECONDS, frozenset({0, 2})))).code == 2
    with pytest.raises(CommandFailed, match="exit code 2"):
        await run(Command(words, SECONDS))


async def test_a_failure_names_the_command_and_its_last_words() -> None:
    with pytest.raises(CommandFailed, match=r"exit code 3: first; boom") as caught:
        await run(python("import sys; print('first\\n\\nboom', file=sys.stderr); sys.exit(3)"))
    assert (caught.value.name, caught.value.code, caught.value.last_words) == (sys.executable, 3, "first; boom")


async def test_a_failure_that_is_explained_on_stdout_only_is_told_too() -> None:
    with pytest.raises(CommandFailed, match="explained"):
        await run(python("print('explained'); raise SystemExit(1)"))


async def test_death_by_a_signal_is_a_failure_that_names_it() -> None:
    with pytest.raises(CommandFailed, match="ended by signal 9"):
        await run(python("import os; os.kill(os.getpid(), 9)"))


async def test_a_program_that_is_not_there_is_told_by_name() -> None:
    with pytest.raises(CommandMissing, match=r"no-such-program: cannot be started \(No such file"):
        await run(Command(("no-such-program",), SECONDS))


async def test_at_the_deadline_the_whole_process_group_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    late = asyncio.create_task(run(python(FAMILY, str(pids), seconds=3)))
    family = await until_written(pids)
    assert all(alive(pid) for pid in family)
    with pytest.raises(CommandTooSlow, match=r"not done in 3 s$"):
        await late
    await until_gone(family)


async def test_a_cancelled_caller_takes_the_whole_process_group_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    call = asyncio.create_task(run(python(FAMILY, str(pids))))
    family = await until_written(pids)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until_gone(family)


async def test_a_child_that_keeps_the_output_open_is_ended_with_its_parent_at_the_deadline() -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    with pytest.raises(CommandTooSlow):
        await run(python(code, seconds=1))


async def test_a_program_that_talks_for_ever_is_ended(tmp_path: Path) -> None:
    with pytest.raises(CommandTooLoud, match=str(commands.MAX_STDOUT)):
        await run(Command(("yes",), SECONDS))


async def test_of_errors_the_end_is_kept() -> None:
    answer = await run(python("import sys; sys.stderr.write('x' * 300_000 + 'end')"))
    assert len(answer.stderr) == commands.MAX_STDERR
    assert answer.stderr.endswith("xend")


@pytest.mark.parametrize(
    ("words", "seconds", "match"),
    [((), 1.0, "name"), (("",), 1.0, "name"), (("true", "a\0b"), 1.0, "zero byte"), (("true",), 0.0, "deadline")],
)
def test_what_cannot_be_started_is_refused_before(words: tuple[str, ...], seconds: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Command(words, seconds)


def test_last_words_are_one_short_printable_line() -> None:
    assert last_words(b"a\n\n  b\x1b[31m\n\xff") == "a; b?[31m; \N{REPLACEMENT CHARACTER}"
    assert len(last_words(b"x" * 10_000)) == commands.MAX_LAST_WORDS


def test_the_loop_that_the_plugin_runs_on_ends_commands_too(tmp_path: Path) -> None:
    async def late() -> list[int]:
        pids = tmp_path / "pids"
        call = asyncio.create_task(run(python(FAMILY, str(pids))))
        family = await until_written(pids)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_gone(family)
        return family

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        family = runner.run(late())
    assert os.getpid() not in family
    assert len(family) == 2


# A process as ``rds-csi node`` is one: its commands run while it answers calls.
SERVING = """
import asyncio, sys
from rds_csi.cli import run as run_process
from rds_csi.node.commands import Command, run
import grpc
from grpc import aio

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.answer)
    async def answer(self, request, context):
        return request

async def work():
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers((Echo(),))
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/echo/Echo")
        async def talk():
            while not done.is_set():
                await call(b"word")
        done = asyncio.Event()
        talkers = [asyncio.create_task(talk()) for _ in range(4)]
        for _ in range(60):
            await run(Command(("true",), 60.0))
        done.set()
        await asyncio.gather(*talkers)
    await server.stop(None)
    print("all ended well")

run_process(work)
"""


async def test_no_command_crashes_while_calls_are_served() -> None:
    answer = await run(python(SERVING, seconds=5 * SECONDS))
    assert answer.stdout == "all ended well\n"
