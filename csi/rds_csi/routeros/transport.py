"""The one SSH connection to the box: asynchronous outside, fabric in worker threads inside.

RouterOS facts that shape it (seen by other drivers): only exec channels, one command each; opening several sessions at once blocks
or fails, so opening is serialised while commands run in parallel; ``keepalive@openssh.com`` is rejected, so liveness is opening and
closing a session. A peer that falls silent sends no reset: every step has a timeout of its own.

Keys are files of a mounted Secret and change in place. A link rests on the keys that it was made with: where the files say another
thing it is given up for one that is made with the new ones, be they good or not. A key that was withdrawn is of no use any more,
and a wrong one is noticed when it comes, not at the next outage.
"""

import asyncio
import contextlib
import logging
import math
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import paramiko
from fabric import Config, Connection
from fabric.runners import Remote
from invoke.exceptions import CommandTimedOut

from rds_csi.routeros.credentials import Credentials, read_host_key
from rds_csi.routeros.errors import (
    BoxUnreachable,
    HostKeyRefused,
    KeyUnusable,
    LoginRefused,
    OutcomeUnknown,
    SessionRefused,
)
from rds_csi.routeros.hostkey import HostKey, fingerprint
from rds_csi.routeros.parser import Output
from rds_process import audit

log = logging.getLogger(__name__)
PARAMIKO_LOG = f"{__name__}.paramiko"
# What fails is reported here, once; paramiko would add a traceback for each attempt on a box that is down.
logging.getLogger(PARAMIKO_LOG).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Settings:
    """Where the box is, who we are there, and how long things may take (seconds).

    With the defaults a peer that falls silent is noticed after 15 s (25 s while commands are running), and one that is back is
    found after at most 13 s and the time to connect.
    """

    address: str
    user: str
    key_file: Path
    """Private key, read again at each connect and looked at with each probe, so that a renewed secret is taken up."""
    port: int = 22
    host_key: HostKey | None = None
    host_key_file: Path | None = None
    """Where the host key is read anew, as the private key is; without it ``host_key`` holds for good."""
    insecure_skip_verify: bool = False
    connect_timeout: float = 5.0
    """For each of TCP connect with key exchange, banner, and login."""
    session_timeout: float = 10.0
    """For opening a session; twice that while commands are running, as the box may open none meanwhile."""
    probe_interval: float = 5.0
    renewal_patience: float = 5.0
    """What commands under way get to end when the keys have changed."""
    parallel: int = 4
    """Commands that run at a time."""
    backoff_first: float = 0.5
    backoff_longest: float = 8.0

    def __post_init__(self) -> None:
        """No host key and no explicit wish to go without: KeyUnusable."""
        if self.host_key is None and self.host_key_file is None and not self.insecure_skip_verify:
            raise KeyUnusable("no host key of the box is given; only the insecure flag connects without checking it")


class Observer(Protocol):
    """Is told how the link is doing; called in the event loop, must not block or raise."""

    def link_state(self, connected: bool) -> None:
        """Hear that the link came up or went down; also called once at start (down)."""

    def connect_attempt(self, succeeded: bool, outage: float) -> None:
        """Hear that an attempt ended; ``outage`` is the time in seconds since the link was lost, or since start."""


class _NoObserver:
    def link_state(self, connected: bool) -> None:
        pass

    def connect_attempt(self, succeeded: bool, outage: float) -> None:
        pass


def backoff(failures: int, first: float, longest: float, jitter: float) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, less up to a half by ``jitter`` (0 to 1)."""
    return min(longest, first * 2.0 ** min(failures - 1, 30)) * (1 - jitter / 2)


class _NotSentError(Exception):
    """The command was not sent: the link is dead or silent."""


class _KeysChanged(BoxUnreachable):
    """The link was made with other keys than the files hold now."""


class _RefusedError(_NotSentError):
    """The command was not sent: the box is there, but opened no session."""


class _Call:
    """One command on its way: what the worker thread and the caller both need to know."""

    def __init__(self, command: str, deadline: float) -> None:
        self.command = command
        self.deadline = deadline
        self.sent = False
        self._channel: paramiko.Channel | None = None
        self._given_up = threading.Event()

    def attach(self, channel: paramiko.Channel) -> None:
        """Go ahead with this channel, unless nobody waits any more."""
        self._channel = channel
        if self._given_up.is_set() or time.monotonic() >= self.deadline:
            channel.close()
            raise _NotSentError("time ran out before the command was sent")
        self.sent = True

    def give_up(self) -> None:
        """Free the worker thread; may block for a moment."""
        self._given_up.set()
        if self._channel is not None:
            self._channel.close()


class _Exec(Remote):  # type: ignore[misc]
    """fabric's runner, with a deadline that covers the exec request too: fabric's own begins once the box has answered that."""

    input_sleep = 0.005

    def __init__(self, link: "_Link", call: _Call) -> None:
        super().__init__(context=link.connection, inline_env=True)
        self._link = link
        self._call = call

    def start(self, command: str, _shell: str, _env: dict[str, str], _timeout: float | None = None) -> None:
        self.channel = self._link.open_session(wait=self._call.deadline - time.monotonic())
        self._call.attach(self.channel)
        super().start_timer(max(0.001, self._call.deadline - time.monotonic()))
        self.channel.exec_command(command)

    def start_timer(self, timeout: float) -> None:
        """Do nothing: it is running already."""


class _Link:
    """One established connection. All methods block and belong in worker threads."""

    def __init__(self, settings: Settings) -> None:
        """Connect; BoxUnreachable or a subclass."""
        self._settings = settings
        self._opening = threading.Lock()
        # Before the keys are read for use: a change in between is found at the next probe, and none is missed.
        self._made_with = self._keys_now()
        config = Config(lazy=True, overrides={"load_ssh_configs": False})
        self.connection = Connection(
            settings.address,
            user=settings.user,
            port=settings.port,
            config=config,
            forward_agent=False,
            gateway=False,
            connect_timeout=None,
            connect_kwargs={
                "pkey": self._private_key(),
                "timeout": settings.connect_timeout,
                "banner_timeout": settings.connect_timeout,
                "auth_timeout": settings.connect_timeout,
                "channel_timeout": settings.session_timeout,
                "look_for_keys": False,
                "allow_agent": False,
            },
        )
        self._pin()
        where = f"{settings.address}:{settings.port}"
        try:
            self.connection.open()
        except paramiko.BadHostKeyException as error:
            self.close()
            raise HostKeyRefused(
                f"{where} presents host key {error.key.get_name()} {fingerprint(error.key.asbytes())}, expected"
                f" {error.expected_key.get_name()} {fingerprint(error.expected_key.asbytes())}"
            ) from None
        except paramiko.AuthenticationException as error:
            self.close()
            raise LoginRefused(f"{where} refuses user {settings.user}: {error}") from None
        except Exception as error:  # noqa: BLE001 paramiko and the sockets below raise many kinds
            self.close()
            raise BoxUnreachable(f"cannot connect to {where}: {type(error).__name__}: {error}") from None
        self._transport = self.connection.client.get_transport()
        # paramiko leaves Nagle's algorithm on: 40 ms for each session, as its close and the next open wait for an acknowledgement.
        self._transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _private_key(self) -> paramiko.PKey:
        try:
            return paramiko.PKey.from_path(self._settings.key_file)
        except Exception as error:  # noqa: BLE001 missing, unreadable, encrypted, no key: each its own kind
            # The text of these errors may hold parts of the file.
            raise LoginRefused(f"the private key cannot be read: {type(error).__name__}") from None

    def _pin(self) -> None:
        settings = self._settings
        client: paramiko.SSHClient = self.connection.client
        client.set_log_channel(PARAMIKO_LOG)
        expected = read_host_key(settings.host_key_file) if settings.host_key_file else settings.host_key
        if expected is None:
            client.set_missing_host_key_policy(_AcceptAnyPolicy())
            return
        name = settings.address if settings.port == 22 else f"[{settings.address}]:{settings.port}"
        client.get_host_keys().add(name, expected.kind, expected.key)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())

    def _keys_now(self) -> Credentials:
        return Credentials.seen(self._settings.key_file, self._settings.host_key_file)

    def changed_keys(self) -> str:
        """Return which of the keys that this link was made with are others now; empty where none is."""
        return self._made_with.change(self._keys_now())

    @property
    def alive(self) -> bool:
        """False once the connection is known to be gone; a silent peer is alive."""
        return bool(self._transport.is_active())

    def open_session(self, wait: float, end: float = math.inf) -> paramiko.Channel:
        """Open a session, one at a time; ``wait`` bounds the time in the queue, ``end`` (``time.monotonic``) all of it.

        Raises _NotSentError, _RefusedError.
        """
        if not self._opening.acquire(timeout=max(0.0, wait)):
            raise _NotSentError("time ran out in the queue for a session")
        try:
            return self._transport.open_session(timeout=min(self._settings.session_timeout, max(1.0, end - time.monotonic())))
        except paramiko.ChannelException as error:
            raise _RefusedError(f"the box opens no session: {error.text}") from None
        except Exception as error:  # noqa: BLE001 paramiko and the socket below raise many kinds
            raise _NotSentError(f"no session: {type(error).__name__}: {error}") from None
        finally:
            self._opening.release()

    def probe(self, timeout: float) -> bool:
        """Whether the peer answers, be it with a refusal."""
        end = time.monotonic() + timeout
        while self.alive:
            try:
                # Behind a command that waited for a session in vain, a whole session_timeout would end too late.
                self.open_session(wait=end - time.monotonic(), end=end).close()
            except _RefusedError:
                return True
            except _NotSentError:
                if time.monotonic() >= end:
                    return False
            else:
                return True
        return False

    def run(self, call: _Call) -> Output:
        """Run the command to its end. Raises _NotSentError, _RefusedError, OutcomeUnknown."""
        try:
            result = _Exec(self, call).run(
                call.command, hide=True, in_stream=False, warn=True, encoding="utf-8", timeout=call.deadline - time.monotonic()
            )
        except _NotSentError:
            raise
        except CommandTimedOut:
            raise OutcomeUnknown("the box did not answer in time") from None
        except Exception as error:  # noqa: BLE001 paramiko, invoke and the sockets below raise many kinds
            if not call.sent:
                raise _NotSentError(f"{type(error).__name__}: {error}") from None
            raise OutcomeUnknown(f"the link was lost: {type(error).__name__}: {error}") from None
        if result.exited < 0:
            raise OutcomeUnknown("the link was lost before the box had answered")
        return Output(result.stdout, result.stderr, result.exited)

    def close(self) -> None:
        """Close the connection; every thread that waits on it is freed."""
        self.connection.client.close()


class _AcceptAnyPolicy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    def missing_host_key(self, _client: paramiko.SSHClient, _hostname: str, key: paramiko.PKey) -> None:
        log.warning("unverified host key", extra={"kind": key.get_name(), "fingerprint": fingerprint(key.asbytes())})


class Transport:
    """Runs commands on the box over one SSH connection that is kept up in the background.

    ``async with Transport(settings) as transport`` starts it; that never waits for the box and never fails because of it.
    """

    def __init__(self, settings: Settings, observer: Observer | None = None) -> None:
        """Nothing happens before ``start``."""
        self._settings = settings
        self._observer: Observer = observer or _NoObserver()
        self._link: _Link | None = None
        self._why: BoxUnreachable = BoxUnreachable("not connected yet")
        self._failures = 0
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._supervisor: asyncio.Task[None] | None = None
        # Places for the commands, one for the probe or connect, and some for closing what hangs.
        self._threads = ThreadPoolExecutor(settings.parallel + 4, thread_name_prefix="ssh")
        self._places = asyncio.Semaphore(settings.parallel)
        self._suspect = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a link that answered not long ago."""
        return self._link is not None

    @property
    def trouble(self) -> BoxUnreachable | None:
        """Why there is no link; None while there is one."""
        return None if self.connected else self._why

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to connect, in the background."""
        if self._settings.host_key is None and self._settings.host_key_file is None:
            log.warning("the host key of the box is NOT verified (insecure flag): anyone in between can read and change everything")
        self._observer.link_state(connected=False)
        self._supervisor = asyncio.create_task(self._supervise(), name="box link")

    async def close(self) -> None:
        """Close the connection; calls in flight end with OutcomeUnknown or BoxUnreachable."""
        self._closed = True
        self._why = BoxUnreachable("the connection to the box is closed")
        self._tell()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    async def wait_connected(self, timeout: float) -> None:
        """Wait until the link is up; BoxUnreachable says why it was not in time."""
        end = time.monotonic() + timeout
        while self._link is None:
            if self._closed or not await self._hear(end):
                raise type(self._why)(str(self._why))

    async def run(self, command: str, *, deadline: float) -> Output:
        """Run one command line; ``deadline`` is a reading of ``time.monotonic``, and the call returns or raises by then.

        Raises:
            BoxUnreachable: nothing was sent (or HostKeyRefused, LoginRefused, SessionRefused).
            OutcomeUnknown: it was sent; whether it took effect is not known.
        """
        pause = 0.02
        while True:
            link = await self._link_by(deadline)
            try:
                return await self._run_on(link, command, deadline)
            except _NotSentError as error:
                # Safe to try again: the box has not seen the command.
                refused = isinstance(error, _RefusedError)
                if not refused:
                    self._suspect.set()
                if time.monotonic() + pause >= deadline:
                    raise (SessionRefused if refused else BoxUnreachable)(str(error)) from None
            await asyncio.sleep(pause)
            pause = min(0.1, pause * 2)

    async def _link_by(self, deadline: float) -> _Link:
        """Return the link; where there is none, wait for what the next attempt brings."""
        failures = self._failures
        while self._link is None or self._closed:
            if self._closed or self._failures > failures or not await self._hear(deadline):
                raise type(self._why)(str(self._why))
        return self._link

    async def _hear(self, deadline: float) -> bool:
        """Wait for news of the link; False when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._news.wait()
                return True
        return False

    def _tell(self) -> None:
        self._news.set()  # wakes everybody who waits now
        self._news = asyncio.Event()

    async def _run_on(self, link: _Link, command: str, deadline: float) -> Output:
        call = _Call(command, deadline)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._places.acquire()
        except TimeoutError:
            raise BoxUnreachable("time ran out while other commands were running") from None
        if self._closed:
            self._places.release()
            raise _NotSentError("the connection to the box is closed")
        work = asyncio.get_running_loop().run_in_executor(self._threads, link.run, call)
        self._running += 1
        self._idle.clear()
        work.add_done_callback(self._worker_done)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.shield(work)
        except TimeoutError:
            if call.sent:
                raise OutcomeUnknown("the box did not answer in time") from None
            raise BoxUnreachable("the box opened no session in time") from None
        except OutcomeUnknown:
            self._suspect.set()
            raise
        finally:
            if not work.done() and not self._closed:  # closing frees the threads by itself
                self._suspect.set()
                self._threads.submit(call.give_up)

    def _worker_done(self, work: "asyncio.Future[Output]") -> None:
        # The place is free when the thread is, not when the caller left: threads cannot pile up.
        self._running -= 1
        if not self._running:
            self._idle.set()
        self._places.release()
        if not work.cancelled():
            work.exception()  # the caller may have left; nobody else asks

    async def _supervise(self) -> None:
        lost = time.monotonic()
        while True:
            try:
                link = await self._connect()
            except Exception as error:  # noqa: BLE001 whatever it is, the next attempt may do better
                why = error if isinstance(error, BoxUnreachable) else BoxUnreachable(f"{type(error).__name__}: {error}")
                self._failures += 1
                if str(why) != str(self._why):
                    # These do not pass by themselves, and the first may mean that somebody else answers there.
                    level = logging.ERROR if isinstance(why, HostKeyRefused | LoginRefused) else logging.WARNING
                    log.log(level, "no link to the box", extra={"reason": str(why)})
                    _audit_refusal(self._settings, why)
                self._why = why
                self._observer.connect_attempt(succeeded=False, outage=time.monotonic() - lost)
                self._tell()
                settings = self._settings
                await asyncio.sleep(
                    backoff(self._failures, settings.backoff_first, settings.backoff_longest, random.random())  # noqa: S311
                )
                continue
            try:
                self._link, self._failures = link, 0
                self._suspect.clear()
                self._observer.connect_attempt(succeeded=True, outage=time.monotonic() - lost)
                self._observer.link_state(connected=True)
                log.info("link to the box is up")
                self._tell()
                self._why = await self._until_lost(link)
                if isinstance(self._why, _KeysChanged):
                    await self._let_end()
            finally:
                self._link = None
                self._observer.link_state(connected=False)
                self._threads.submit(link.close)
            lost = time.monotonic()
            log.warning("link to the box is lost", extra={"reason": str(self._why)})

    async def _let_end(self) -> None:
        """Give nobody the link any more, and what runs on it a moment to end; what is cut off is OutcomeUnknown to its caller."""
        self._link = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.renewal_patience):
                await self._idle.wait()

    async def _connect(self) -> _Link:
        """Connect in a thread; a link that comes up after a cancellation is closed."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, _Link, self._settings)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_close_late_link)
            raise

    async def _until_lost(self, link: _Link) -> BoxUnreachable:
        """Probe the link, every few seconds and when a call failed; why it is taken for lost."""
        settings = self._settings
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.probe_interval):
                    await self._suspect.wait()
            self._suspect.clear()
            if not link.alive:
                return BoxUnreachable("the connection was closed")
            if changed := await asyncio.get_running_loop().run_in_executor(self._threads, link.changed_keys):
                return _KeysChanged(changed)
            patience = settings.session_timeout * (2 if self._running else 1)
            if not await asyncio.get_running_loop().run_in_executor(self._threads, link.probe, patience):
                return BoxUnreachable("the box does not answer any more")


def _audit_refusal(settings: Settings, why: BoxUnreachable) -> None:
    if isinstance(why, HostKeyRefused | LoginRefused):
        kind = audit.Kind.HOST_KEY_REFUSED if isinstance(why, HostKeyRefused) else audit.Kind.LOGIN_REFUSED
        audit.record(kind, box=f"{settings.address}:{settings.port}", user=settings.user, reason=str(why))


def _close_late_link(work: "asyncio.Future[_Link]") -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()
