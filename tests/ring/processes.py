"""Child processes that never outlive the tests: start, wait until ready, stop, kill, restart."""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Self
from weakref import WeakSet

LAUNCHER = Path(__file__).with_name("launch.py")
LOOPBACK = "127.0.0.1"
LOOPBACK_FROM_GUESTS = "10.0.2.2"
"""This machine's loopback interface as a guest sees it (QEMU's user network)."""

# The parent-death signal fires when the *thread* that forked ends, so every child is forked by this one thread, which lives as long
# as the interpreter.
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forker")


def spawn(
    argv: Sequence[str | Path],
    *,
    output: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; the kernel kills it when this process dies, however it dies."""
    command = [sys.executable, "-I", "-S", LAUNCHER, str(os.getpid()), *argv]

    def fork() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output if output is not None else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
        )

    return _forker.submit(fork).result()


class ProcessDied(AssertionError):
    """A child ended before it was ready; the message carries the end of its log."""


class Process:
    """One child process with its log file, which is appended to over restarts.

    Args:
        name: what messages call it.
        argv: the program and its arguments; may be replaced between two starts.
        log: file that receives stdout and stderr.
        env: variables added to this process's own environment.
        ready: asked until it is true; ``None`` means ready at once.
        ready_timeout: seconds that a start may take.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: Callable[[], bool] | None = None,
        ready_timeout: float = 60.0,
    ) -> None:
        self.name = name
        self.argv = [str(word) for word in argv]
        self.log = log
        self.env = dict(env or {})
        self.cwd = cwd
        self.ready = ready
        self.ready_timeout = ready_timeout
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the running child, or of the last one."""
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """Exit status of the last child (negative: the signal that ended it); ``None`` while it runs."""
        return None if self._child is None else self._child.poll()

    def output(self) -> str:
        """Everything that all lives of this process have written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.output().splitlines()[-lines:])

    def launch(self) -> Self:
        """Start without waiting for readiness."""
        assert not self.running, f"{self.name} is already running"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._child = spawn(self.argv, output=output, env={**os.environ, **self.env}, cwd=self.cwd)
        _alive.add(self)
        return self

    def start(self) -> Self:
        """Start and wait until ready.

        Raises:
            ProcessDied: it ended instead of becoming ready.
            AssertionError: it was not ready in time (it is killed then).
        """
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Poll ``ready`` until it is true; see ``start`` for errors."""
        deadline = time.monotonic() + self.ready_timeout
        while True:
            if not self.running:
                raise ProcessDied(f"{self.name} ended with {self.returncode}; its log ends with:\n{self.tail()}")
            if self.ready is None or self.ready():
                return
            if time.monotonic() >= deadline:
                self.kill()
                raise AssertionError(
                    f"{self.name} was not ready within {self.ready_timeout:g} s; its log ends with:\n{self.tail()}"
                )
            time.sleep(0.02)

    def wait_ended(self, timeout: float = 30.0) -> int:
        """Wait until the child ended of itself; return its exit status."""
        assert self._child is not None, f"{self.name} was never started"
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s; its log ends with:\n{self.tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        assert self._child is not None, f"{self.name} was never started"
        self._child.send_signal(number)

    def stop(self, timeout: float = 10.0) -> None:
        """SIGTERM, and SIGKILL for what is still there after ``timeout`` seconds."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would have it; returns when the process is gone."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def restart(self) -> Self:
        """SIGKILL and start again with the same arguments, so on the same ports and files."""
        self.kill()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Supervisor:
    """Starts each of some processes, and again whenever one has ended, as a kubelet does with containers. A context manager."""

    def __init__(self, *processes: Process) -> None:
        self._processes = processes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for process in self._processes:
            process.stop()

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            for process in self._processes:
                if not process.running:
                    process.launch()


_alive: WeakSet[Process] = WeakSet()


def known_processes() -> list[Process]:
    """Return every process that was launched and is still referred to, running or not."""
    return sorted(_alive, key=lambda process: process.name)


@atexit.register
def kill_all() -> None:
    """Kill every child that is still there."""
    for process in known_processes():
        process.kill()


class Ports:
    """Ports of the loopback interface that nobody else of this user's rings takes.

    They lie outside the range from which the kernel takes the ports of outgoing connections: a server that is killed finds its port
    free when it is started again. Each is reserved by an abstract unix socket of the same name, which the kernel gives back when
    this process dies.
    """

    def __init__(self) -> None:
        self._reserved: dict[int, socket.socket] = {}
        self._lock = threading.Lock()

    def free(self) -> int:
        """Return a port that is free now and reserved for the rest of this process's life."""
        with self._lock:
            for port in random.sample(self._candidates(), k=200):
                if self._reserve(port):
                    return port
        raise RuntimeError("no free port on the loopback interface")

    @staticmethod
    def _candidates() -> range:
        first, last = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        return range(10_000, first) if first >= 12_000 else range(last + 1 if last < 64_000 else 20_000, 65_536)

    def _reserve(self, port: int) -> bool:
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            reservation.bind(f"\0rds-csi-ring-port-{port}")
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((LOOPBACK, port))
        except OSError:
            reservation.close()
            return False
        self._reserved[port] = reservation
        return True


_ports = Ports()


def free_port() -> int:
    """Return a free loopback port, reserved for this process among all rings of this machine."""
    return _ports.free()
