"""Machines with a kernel of their own: QEMU guests in which a real NVMe/TCP target and real initiators run.

A guest's userland is the host's ``/``, read-only, under a layer in memory that ends with the guest: the checkout, its environment
and the host's programs are there at the same paths, and nothing that a guest does reaches the host but its writes to ``/share``.
Guests have two networks: ``mgmt`` (a private one to the host, through which ports are forwarded and ``10.0.2.2`` is the host's
loopback interface) and ``storage``, a segment that the guests of one ring share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

from tests.ring.binaries import cache_folder
from tests.ring.processes import LOOPBACK, Process, free_port
from tests.ring.sidecars import socket_path
from tests.vm.clock import counter_khz
from tests.vm.kernel import bootable

ROOT = Path(__file__).parents[2]
SHARE = Path("/share")
"""Where guests see ``Guests.share``; both sides see the other's writes at once."""

POOL = Path("/pool")
"""Where the target's disk is mounted."""

CONTROL_PORT = 7000
BOOT_TIMEOUT = 180.0
"""Seconds. A guest alone takes about five, three at once on two busy cores up to twenty."""

POOL_SIZE = 64 << 30
MIB = 1 << 20
KERNEL_WORDS = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off tsc=reliable no_timer_check"


class Role(StrEnum):
    """What a guest is for, which decides its kernel modules: exporting disks, or connecting to them."""

    TARGET = "target"
    INITIATOR = "initiator"


class Link(StrEnum):
    """A network card of a guest."""

    MGMT = "mgmt"
    STORAGE = "storage"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a script in a guest said (stdout and stderr together), and its exit status."""

    status: int
    output: str


class NoAnswer(AssertionError):
    """A guest did not answer in time, or hung up."""


class ScriptFailed(AssertionError):
    """A script in a guest ended with another exit status than 0."""

    def __init__(self, guest: str, script: str, answer: Answer) -> None:
        super().__init__(f"in {guest}: exit status {answer.status} of:\n{script}\nwhich said:\n{answer.output}")
        self.answer = answer


class Guest(Process):
    """One machine; ready when it has started and its control channel listens. Its log is the console's, over all of its lives.

    It may be killed and started again (``restart``): it keeps its name, addresses, forwarded ports and, a target, its disk, and
    loses all else. Made by ``Guests.target`` and ``Guests.initiator``.

    Attributes:
        address: its address on the storage network.
        ports: for each forwarded port of the guest the host's loopback port that leads there.
        disk: the file on the host that is the target's disk.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        role: Role,
        *,
        number: int,
        segment: str,
        share: Path,
        memory: int,
        forwards: Iterable[int] = (),
        multipath: bool = True,
        disk: Path | None = None,
    ) -> None:
        self.role = role
        self.number = number
        self.address = f"10.77.0.{number}"
        self.share = share
        self.disk = disk
        self.ports = {port: free_port() for port in (CONTROL_PORT, *forwards)}
        self._monitor = socket_path(folder, f"{name}.qmp")
        self._seen = 0
        boot = bootable()
        (share / f"{name}.paths").write_text("".join(f"{path}\n" for path in _needed()))
        identity = f"ring.name={name} ring.role={role} ring.ip={self.address} ring.multipath={'NY'[multipath]}"
        words = f"{KERNEL_WORDS} tsc_early_khz={counter_khz()} {identity}"
        forwarded = "".join(f",hostfwd=tcp:{LOOPBACK}:{here}-:{there}" for there, here in self.ports.items())
        argv: list[str | Path] = [
            *("qemu-system-x86_64", "-name", name),
            # Emulation everywhere: a ring must not depend on what the machine's processor lends.
            *("-accel", "tcg,thread=multi", "-machine", "pc,usb=off,vmport=off", "-cpu", "max", "-smp", "1", "-m", str(memory)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-qmp", f"unix:{_escaped(self._monitor)},server=on,wait=off"),
            *("-kernel", boot.kernel, "-initrd", boot.initramfs, "-append", words),
            *("-netdev", f"user,id=net0,ipv6=off{forwarded}"),
            *("-device", f"virtio-net-pci,id={Link.MGMT},netdev=net0,mac=52:54:00:77:01:{number:02x},romfile="),
            *("-netdev", f"socket,id=net1,mcast={segment},localaddr={LOOPBACK}"),
            *("-device", f"virtio-net-pci,id={Link.STORAGE},netdev=net1,mac=52:54:00:77:00:{number:02x},romfile="),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={_escaped(share)},mount_tag=share,security_model=none"),
        ]
        if disk is not None:
            argv += ["-drive", f"file={_escaped(disk)},format=raw,if=virtio,cache=writeback,discard=unmap"]
        super().__init__(name, argv, folder / f"{name}.log", ready=self._says_ready, ready_timeout=BOOT_TIMEOUT)

    def _says_ready(self) -> bool:
        with self.log.open("rb") as log:
            log.seek(self._seen)
            return b" READY" in log.read()

    def launch(self) -> Self:
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        return super().launch()

    # Its processes

    def ask(self, script: str, *, timeout: float = 60.0) -> Answer:
        """Run a bash script as root; the answer may have any exit status.

        Raises:
            NoAnswer: there is none within ``timeout`` seconds. The script may go on: what waits for a lost disk cannot be ended.
        """
        return ask(self.name, self.ports[CONTROL_PORT], script, timeout=timeout)

    def sh(self, script: str, *, timeout: float = 60.0) -> str:
        """Run a bash script as root and return what it said.

        Raises:
            ScriptFailed: its exit status is not 0.
            NoAnswer: there is none within ``timeout`` seconds.
        """
        answer = self.ask(script, timeout=timeout)
        if answer.status:
            raise ScriptFailed(self.name, script, answer)
        return answer.output

    def run(self, *argv: str | Path, timeout: float = 60.0) -> str:
        """Run one command; see ``sh``."""
        return self.sh(shlex.join(str(word) for word in argv), timeout=timeout)

    def process(self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> GuestProcess:
        """Return a process of this guest that is yet to be started; ``name`` is this guest's only one."""
        return GuestProcess(self, name, argv, env or {})

    # Its hardware

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Give QEMU an order (QEMU Machine Protocol) and return its answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30.0)
            connection.connect(str(self._monitor))
            with connection.makefile("rw") as lines:
                json.loads(lines.readline())
                for order in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    lines.write(json.dumps(order) + "\n")
                    lines.flush()
                    answer = next(said for said in map(json.loads, lines) if "event" not in said)
                    if "error" in answer:
                        raise AssertionError(f"{self.name} refused {command} {arguments}: {answer['error']}")
        return answer["return"]

    def set_link(self, link: Link, *, up: bool) -> None:
        """Plug a network cable in or out."""
        self.qmp("set_link", name=str(link), up=up)

    @contextlib.contextmanager
    def cut(self, link: Link = Link.STORAGE) -> Iterator[None]:
        """Keep a network cut as long as the context lasts."""
        self.set_link(link, up=False)
        try:
            yield
        finally:
            self.set_link(link, up=True)

    def freeze(self) -> None:
        """Stop the machine in the middle of what it does, as if it hung; ``thaw`` lets it go on."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen machine go on."""
        self.signal(signal.SIGCONT)

    def power_off(self, timeout: float = 30.0) -> None:
        """Write out what is in memory and switch off; ``kill`` is the power cut."""
        self.sh("sync; (sleep 0.2; echo o > /proc/sysrq-trigger) > /dev/null 2>&1 &")
        self.wait_ended(timeout)

    def stop(self, timeout: float = 10.0) -> None:
        """End at once: nothing in a guest is worth an orderly end."""
        self.kill()


class GuestProcess:
    """A program in the background of a guest, in a session of its own. Its log is on the host, over all of its lives.

    It does not end with the test that started it: whoever starts it stops it, or ends the guest.
    """

    def __init__(self, guest: Guest, name: str, argv: Sequence[str | Path], env: Mapping[str, str]) -> None:
        self.guest = guest
        self.name = name
        self.argv = [str(word) for word in argv]
        self.env = dict(env)
        self.log = guest.share / "logs" / guest.name / f"{name}.log"
        _started.add(self)

    def start(self) -> Self:
        """Start it. Its program may still fail to start: see ``output``."""
        assert not self.running, f"{self.name} is already running in {self.guest.name}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        inner = f"echo $$ > {self._state}.pid; exec {shlex.join(['env', *(f'{k}={v}' for k, v in self.env.items()), *self.argv])}"
        log = shlex.quote(str(SHARE / self.log.relative_to(self.guest.share)))
        self.guest.sh(
            f"rm -f {self._state}.pid {self._state}.status\n"
            f"(setsid --wait /bin/sh -c {shlex.quote(inner)} >> {log} 2>&1; echo $? > {self._state}.status) > /dev/null 2>&1 &\n"
            f"until [ -s {self._state}.pid ]; do sleep 0.01; done"
        )
        return self

    @property
    def _state(self) -> str:
        return f"/run/processes/{self.name}"

    @property
    def pid(self) -> int:
        """The process id in the guest of its last life."""
        return int(self.guest.sh(f"cat {self._state}.pid"))

    @property
    def running(self) -> bool:
        return self.guest.ask(f"[ -s {self._state}.pid ] && [ ! -e {self._state}.status ]").status == 0

    @property
    def returncode(self) -> int | None:
        """Exit status of its last life (as a shell counts: 128 and the signal that ended it); ``None`` while it runs."""
        said = self.guest.ask(f"cat {self._state}.status").output.strip()
        return int(said) if said.isdigit() else None

    def output(self) -> str:
        """Everything that all of its lives have written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.guest.sh(f"kill -{number.name.removeprefix('SIG')} $(cat {self._state}.pid)")

    def wait_ended(self, timeout: float = 30.0) -> int:
        """Wait until it ended of itself; return its exit status."""
        wait = f"until [ -s {self._state}.status ]; do sleep 0.05; done; cat {self._state}.status"
        answer = self.guest.ask(f"timeout {timeout:g} /bin/sh -c {shlex.quote(wait)}", timeout=timeout + 30)
        assert answer.status == 0, (
            f"{self.name} in {self.guest.name} still runs after {timeout:g} s; it said:\n{self.output()[-3000:]}"
        )
        return int(answer.output)

    def stop(self, timeout: float = 15.0) -> None:
        """SIGTERM, and SIGKILL for what is still there after ``timeout`` seconds; nothing where it does not run."""
        if not self.running:
            return
        self.signal(signal.SIGTERM)
        try:
            self.wait_ended(timeout)
        except AssertionError:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would have it; returns when the process is gone, which takes long where it waits for a lost disk."""
        self.signal(signal.SIGKILL)
        self.wait_ended()


_started: WeakSet[GuestProcess] = WeakSet()


def known_guest_processes() -> list[GuestProcess]:
    """Return every process of a guest that was started and is still referred to."""
    return sorted(_started, key=lambda process: (process.guest.name, process.name))


class Guests:
    """The guests of one ring and their storage network; a context manager that ends them all.

    Args:
        folder: where logs, disks and the shared folder are kept.

    Attributes:
        share: the host's side of ``/share``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.share = self.folder / "share"
        self.share.mkdir(parents=True, exist_ok=True)
        self._all: list[Guest] = []
        # Multicast on the loopback interface: the port alone tells rings of this machine apart.
        self._segment = f"230.0.0.1:{free_port()}"

    def target(self, name: str = "box", *, forwards: Iterable[int] = (), memory: int = 384, size: int = POOL_SIZE) -> Guest:
        """Return a guest with nvmet and a disk of ``size`` bytes at ``/pool``, yet to be started; ``memory`` in MiB."""
        disk = self.folder / f"{name}.img"
        with disk.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", str(disk)], check=True)
        return self._guest(name, Role.TARGET, forwards=forwards, memory=memory, disk=disk)

    def initiator(self, name: str, *, forwards: Iterable[int] = (), memory: int = 640, multipath: bool = True) -> Guest:
        """Return a guest with nvme-tcp, yet to be started; ``memory`` in MiB, ``multipath`` is the kernel's native one."""
        return self._guest(name, Role.INITIATOR, forwards=forwards, memory=memory, multipath=multipath)

    def _guest(self, name: str, role: Role, **arguments: Any) -> Guest:
        guest = Guest(self.folder, name, role, number=len(self._all) + 1, segment=self._segment, share=self.share, **arguments)
        self._all.append(guest)
        return guest

    def start(self, *guests: Guest) -> None:
        """Start some guests at once, or all that do not run yet, and wait until they are ready."""
        started = [guest.launch() for guest in guests or self._all if not guest.running]
        for guest in started:
            guest.wait_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for guest in self._all:
            guest.kill()
            if guest.disk is not None:
                guest.disk.unlink(missing_ok=True)


def ask(guest: str, port: int, script: str, *, timeout: float = 60.0) -> Answer:
    """Run a bash script through a guest's control channel, which ``port`` leads to; see ``Guest.ask``."""
    mark = f"__{uuid.uuid4().hex}__"
    deadline = time.monotonic() + timeout
    said = b""
    try:
        with socket.create_connection((LOOPBACK, port), timeout) as connection:
            connection.sendall(f"{mark}\n{script}\n{mark}\n".encode())
            while received := _receive(connection, deadline):
                said += received
    except OSError as error:
        raise NoAnswer(f"{guest} did not answer within {timeout:g} s ({error!r}) to:\n{script}\nso far:\n{said!r}") from None
    output, found, status = said.decode(errors="replace").rpartition(f"\n{mark} ")
    if not found:
        raise NoAnswer(f"{guest} hung up on:\n{script}\nafter:\n{said!r}")
    return Answer(int(status), output)


def _needed() -> list[Path]:
    """Return what guests use of the host: the checkout, this Python and its environment, what the cache holds."""
    folders = (ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent, cache_folder())
    return list(dict.fromkeys(path for folder in folders for path in (folder.absolute(), folder.resolve())))


def _escaped(path: Path) -> str:
    """Return a path as a part of a QEMU option."""
    return str(path).replace(",", ",,")


def _receive(connection: socket.socket, deadline: float) -> bytes:
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    return connection.recv(65536)
