"""The SSH side of the simulated box: exec channels only, public key only, and every way a link can fail.

Clients reach it through a small relay on the public port, which can stop forwarding in both directions without closing
anything: that is the black hole.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from tests.simulator.console import Answer, Console
from tests.simulator.disk_menu import COUNTERS
from tests.simulator.exports import Backend, Nothing, exports_of
from tests.simulator.frame import EOL
from tests.simulator.images import Images
from tests.simulator.language import ConsoleError
from tests.simulator.store import Store
from tests.simulator.switches import Switches


@dataclass
class Drop:
    """Cut the connection ``before`` or ``after`` applying the ``nth`` command that fits the pattern; once."""

    when: str
    pattern: str
    nth: int = 1

    def fires(self, command: str) -> bool:
        """Whether this command is the one."""
        if re.search(self.pattern, command):
            self.nth -= 1
        return self.nth == 0


@dataclass
class Failure:
    """Answer the ``nth`` command that fits the pattern with this text, without applying it; once."""

    pattern: str
    text: str
    nth: int = 1

    def fires(self, command: str) -> bool:
        """Whether this command is the one."""
        if re.search(self.pattern, command):
            self.nth -= 1
        return self.nth == 0


class Box:
    """The running box: store, switches, and the log of what was received.

    Args:
        state: the file that keeps the store.
        received: the log; beside the state by default.
        backend: makes what offers the disks, of the box's images. With one, the state survives a power cut too.
    """

    def __init__(self, state: Path, received: Path | None = None, backend: Callable[[Images], Backend] | None = None) -> None:
        self.switches = Switches()
        self.drops: list[Drop] = []
        self.failures: list[Failure] = []
        self.store = Store.load(state)
        self._state = state
        self._log = received or state.with_name(state.name + ".received")
        self._started = time.monotonic()
        self._images = Images.beside(state)
        self._is_real = backend is not None
        self._backend = backend(self._images) if backend else Nothing()
        self._backend.offer(exports_of(self.store))
        self._kept = self.store.text()
        # What a kill left behind: images whose row was not kept yet, or not any more.
        self._images.sweep(self.store.images())
        self.console = Console(self.store, self.switches, self._images, now=_now, uptime=self._uptime, applied=self.keep)

    def apply(self, command: str) -> Answer:
        """Run a command and keep the state it leaves."""
        return self.console.run(command)

    def keep(self) -> None:
        """Write the state down and make it true; bytes that were added are there before, bytes that were removed go afterwards.

        Raises:
            ConsoleError: it could not be made true; everything is as before.
        """
        fresh = self.store.text()
        if fresh == self._kept:
            return
        try:
            # A kill from here on is safe: the next start makes true what was written down.
            exports = exports_of(self.store)
            self.store.save(self._state, durably=self._is_real)
            self._backend.offer(exports)
        except ConsoleError:
            self.store.__dict__.update(Store.read(self._kept).__dict__)
            self.store.save(self._state, durably=self._is_real)
            self._backend.offer(exports_of(self.store))
            raise
        self._kept = fresh
        self._images.sweep(self.store.images())

    def reset(self, switches: dict[str, Any]) -> None:
        """Forget everything, but no number that was given: a path from before leads nowhere."""
        self.store.__dict__.update(Store(next_id=self.store.next_id).__dict__)
        self.keep()
        self.drops.clear()
        self.failures.clear()
        self.switches.change({**Switches().as_dict(), **switches})
        self._log.unlink(missing_ok=True)

    def note(self, command: str) -> None:
        """Write down that this command arrived."""
        with self._log.open("a") as log:
            log.write(json.dumps({"time": time.time(), "command": command}) + "\n")

    def drop_for(self, command: str) -> Drop | None:
        """The drop that this command sets off, if any."""
        return _first_that_fires(self.drops, command)

    def failure_for(self, command: str) -> Failure | None:
        """The failure that this command meets, if any."""
        return _first_that_fires(self.failures, command)

    def _uptime(self) -> float:
        return time.monotonic() - self._started


Fuse = TypeVar("Fuse", Drop, Failure)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _first_that_fires(waiting: list[Fuse], command: str) -> Fuse | None:
    for each in waiting:
        if each.fires(command):
            waiting.remove(each)
            return each
    return None


class Connection(asyncssh.SSHServer):
    """One client's connection: who may log in, and how many sessions it may hold."""

    def __init__(self, box: Box, user: str, user_key: asyncssh.SSHKey) -> None:
        self.box = box
        self.sessions = 0
        self._user = user
        self._user_key = user_key
        self.ssh: asyncssh.SSHServerConnection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Keep the connection, to cut it when a drop says so."""
        self.ssh = conn

    def begin_auth(self, username: str) -> bool:
        """Nobody comes in without a key."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Public keys are the only way in."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """The one user with the one key."""
        return username == self._user and key.public_data == self._user_key.public_data

    def session_requested(self) -> "Session":
        """Open a session, or refuse it where the connection holds as many as it may."""
        limit = self.box.switches.max_sessions
        if limit is not None and self.sessions >= limit:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "open failed")
        self.sessions += 1
        return Session(self)


class Session(asyncssh.SSHServerSession[str]):
    """One exec channel: one command line, one answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._box = connection.box
        self._command = ""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[str]) -> None:
        """Keep the channel."""
        self._chan = chan

    def connection_lost(self, exc: Exception | None) -> None:
        """The session's place is free; what it was asked to do goes on, as on any box."""
        self._connection.sessions -= 1

    def eof_received(self) -> bool:
        """The client has nothing more to say; the answer is still to come."""
        return True

    def exec_requested(self, command: str) -> bool:
        """Take the command line."""
        self._command = command
        return True

    def session_started(self) -> None:
        """Run it."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        box, command = self._box, self._command
        box.note(command)
        drop = box.drop_for(command)
        if drop is not None and drop.when == "before":
            self._connection.ssh.abort()
            return
        await asyncio.sleep(box.switches.latency_of(command))
        failure = box.failure_for(command)
        answer = Answer("", failure.text + EOL) if failure else box.apply(command)
        if drop is not None:
            self._connection.ssh.abort()
            return
        with contextlib.suppress(OSError):  # the client may have left
            self._reply(answer)

    def _reply(self, answer: Answer) -> None:
        self._chan.write(answer.text)
        if answer.error and self._box.switches.error_stream == "stderr":
            self._chan.write_stderr(answer.error)
        else:
            self._chan.write(answer.error)
        self._chan.exit(self._box.switches.error_status if answer.error else 0)


class Relay:
    """Forwards the public port to the SSH server; can freeze all of it."""

    def __init__(self, inner_port: int) -> None:
        self._inner_port = inner_port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._held: set[asyncio.StreamWriter] = set()
        self._frozen: set[asyncio.StreamWriter] = set()

    def freeze(self) -> None:
        """Forward nothing any more, in no direction; accept connections and leave them without an answer."""
        self._flowing.clear()
        self._frozen |= self._held

    def thaw(self) -> None:
        """The box is back, after a power cut: it knows none of the old connections and resets them."""
        for writer in self._frozen:
            writer.transport.abort()
        self._frozen.clear()
        self._flowing.set()

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._held:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection, from accept to the end."""
        writers = {writer}
        self._held.add(writer)
        if not self._flowing.is_set():
            self._frozen.add(writer)
        try:
            await self._flowing.wait()
            if writer.transport.is_closing():
                return
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner_port)
            writers.add(inner_writer)
            self._held.add(inner_writer)
            both = [
                asyncio.ensure_future(self._pump(reader, inner_writer)),
                asyncio.ensure_future(self._pump(inner_reader, writer)),
            ]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for pump in both:
                pump.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            pass
        finally:
            self._held -= writers
            self._frozen -= writers
            for each in writers:
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            await self._flowing.wait()


class Control:
    """The channel on which tests turn switches and look inside: one JSON object a line, one JSON line back."""

    def __init__(self, box: Box, relay: Relay) -> None:
        self._box = box
        self._relay = relay

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One caller."""
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                try:
                    answer = {"ok": self._answer(json.loads(line))}
                except (ValueError, KeyError, TypeError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def _answer(self, request: dict[str, Any]) -> Any:
        match request.pop("verb"):
            case "switch":
                self._switch(request)
                return self._box.switches.as_dict()
            case "drop":
                self._box.drops.append(Drop(**request))
                return None
            case "reset":
                self._box.reset(request)
                self._relay.cut()
                return self._relay.thaw()
            case "cut":
                return self._relay.cut()
            case "state":
                return self._box.store.as_dict()
            case "pool" | "grow" | "health" | "traffic" as verb:
                return self._change(verb, request)
            case "fail":
                self._box.failures.append(Failure(**request))
                return None
            case "run":
                answer = self._box.apply(request["command"])
                return answer.text + answer.error
            case verb:
                raise ValueError(f"no such verb: {verb}")

    def _change(self, verb: str, request: dict[str, Any]) -> None:
        """Change what the box holds, behind its own back."""
        store = self._box.store
        match verb:
            case "pool":
                for name, value in request.items():
                    setattr(store.pool, name, value)
            case "grow":
                store.files[request["name"]].size = request["size"]
            case "health":
                store.health = [(name, value, kind) for name, value, kind in request["readings"]]
            case "traffic":
                self._traffic(request["slot"], request["counters"])
        self._box.keep()

    def _traffic(self, slot: str, counters: dict[str, str]) -> None:
        unknown = counters.keys() - COUNTERS.keys()
        if unknown:
            raise ValueError(f"no such counter: {', '.join(sorted(unknown))}")
        self._box.store.traffic.setdefault(slot, {}).update(counters)

    def _switch(self, values: dict[str, Any]) -> None:
        was = self._box.switches.black_hole
        self._box.switches.change(values)
        if self._box.switches.black_hole and not was:
            self._relay.freeze()
        elif was and not self._box.switches.black_hole:
            self._relay.thaw()


def host_key(path: Path, algorithm: str) -> asyncssh.SSHKey:
    """The key kept at ``path``, made at the first start."""
    if not path.exists():
        fresh = asyncssh.generate_private_key(algorithm)
        path.touch(mode=0o600)
        fresh.write_private_key(path)
    return asyncssh.read_private_key(path)


@dataclass
class Listening:
    """Where a started box can be reached."""

    box: Box
    port: int
    host_key: str


@contextlib.asynccontextmanager
async def serve(
    *,
    state: Path,
    user: str,
    user_key: asyncssh.SSHKey,
    port: int = 0,
    control: Path | None = None,
    control_port: int | None = None,
    listen: str = "127.0.0.1",
    host_key_algorithm: str = "ssh-ed25519",
    switches: dict[str, Any] | None = None,
    received: Path | None = None,
    backend: Callable[[Images], Backend] | None = None,
) -> Any:
    """Serve the box on ``listen`` until the block is left; yields Listening."""
    box = Box(state, received, backend)
    box.switches.change(switches or {})
    key = host_key(state.with_name(state.name + ".hostkey"), host_key_algorithm)
    inner = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: Connection(box, user, user_key),
        server_host_keys=[key],
        allow_pty=False,
        agent_forwarding=False,
        server_version="ROSSSH",
    )
    relay = Relay(inner.get_port())
    if box.switches.black_hole:
        relay.freeze()
    outer = await asyncio.start_server(relay.serve, listen, port)
    talk: list[asyncio.Server] = []
    if control:
        talk.append(await asyncio.start_unix_server(Control(box, relay).serve, control))
    if control_port is not None:
        talk.append(await asyncio.start_server(Control(box, relay).serve, listen, control_port))
    try:
        yield Listening(box, outer.sockets[0].getsockname()[1], key.export_public_key().decode().strip())
    finally:
        outer.close()
        relay.cut()
        inner.close()
        for each in talk:
            each.close()
