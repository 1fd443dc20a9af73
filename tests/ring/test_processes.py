"""No child outlives the process that started it, and a start says what went wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ring.processes import LOOPBACK, Process, ProcessDied, free_port
from tests.ring.waiting import eventually

ROOT = Path(__file__).parents[2]
SLEEP = ["sleep", "600"]

PARENT = """
import sys, pathlib, threading, time
from tests.ring.processes import Process
def start(n):
    return Process(f"child-{n}", ["sleep", "600"], pathlib.Path(sys.argv[1]) / f"{n}.log").start()
first = start(1)
second = []
thread = threading.Thread(target=lambda: second.append(start(2)))
thread.start()
thread.join()
print(first.pid, second[0].pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process that has started two children, the second from a thread that has ended since."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    yield parent, children
    parent.kill()
    parent.wait()
    parent.stdout.close()


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_children_vanish_with_their_parent(
    parent: tuple[subprocess.Popen[str], list[psutil.Process]], number: signal.Signals
) -> None:
    process, children = parent
    assert not gone(children)
    process.send_signal(number)
    process.wait(10)
    eventually("no child is left", lambda: gone(children), timeout=10)


def test_a_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    process = Process("sleeper", SLEEP, tmp_path / "log")
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    ended = psutil.Process(process.pid)
    with pytest.raises(psutil.TimeoutExpired):
        ended.wait(0.2)
    process.kill()
    assert process.returncode == -signal.SIGKILL


def test_a_child_whose_parent_died_before_its_first_breath_does_not_start(tmp_path: Path) -> None:
    launcher = ROOT / "tests" / "ring" / "launch.py"
    not_the_parent = "1"
    done = subprocess.run(
        [sys.executable, "-I", "-S", launcher, not_the_parent, "touch", tmp_path / "started"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "already gone" in done.stderr
    assert not (tmp_path / "started").exists()


def test_a_process_that_dies_before_it_is_ready_fails_at_once_with_its_last_words(tmp_path: Path) -> None:
    process = Process(
        "mayfly", ["sh", "-c", "echo no such volume; exit 3"], tmp_path / "log", ready=lambda: False, ready_timeout=600
    )
    with pytest.raises(ProcessDied, match=r"mayfly ended with 3(.|\n)*no such volume"):
        process.start()


def test_a_process_that_is_never_ready_is_killed(tmp_path: Path) -> None:
    process = Process("sloth", SLEEP, tmp_path / "log", ready=lambda: False, ready_timeout=0.1)
    with pytest.raises(AssertionError, match="sloth was not ready within"):
        process.start()
    assert not process.running


def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = Process(
        "deaf", ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 600; done"], log, ready=lambda: "deaf" in log.read_text()
    )
    process.start()
    process.stop(timeout=0.2)
    assert process.returncode == -signal.SIGKILL


def test_a_restart_is_a_new_process_that_appends_to_the_log(tmp_path: Path) -> None:
    process = Process("twice", ["sh", "-c", "echo here; exec sleep 600"], tmp_path / "log")
    process.start()
    first = process.pid
    eventually("it has written", lambda: process.output().count("here") == 1)
    process.restart()
    assert process.pid != first
    eventually("it has written again", lambda: process.output().count("here") == 2)
    process.kill()


def test_ports_are_free_and_never_given_twice() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    for port in ports:
        with socket.socket() as server:
            server.bind((LOOPBACK, port))


def test_two_processes_do_not_get_the_same_port() -> None:
    script = "from tests.ring.processes import _ports; print(_ports._reserve(int(__import__('sys').argv[1])))"
    said = subprocess.run([sys.executable, "-c", script, str(free_port())], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_no_port_is_one_that_an_outgoing_connection_could_take() -> None:
    first, last = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(first <= free_port() <= last for _ in range(20))


def test_the_child_does_not_inherit_the_session_of_the_terminal(tmp_path: Path) -> None:
    process = Process("sleeper", SLEEP, tmp_path / "log")
    with process:
        assert os.getsid(process.pid) == process.pid
