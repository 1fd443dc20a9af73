"""The simulated box, and the real client on it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rds_csi.routeros import Box, DiskSpec, FilePath, HostKey, Nqn, Settings, Slot, Transport
from tests.simulator import SimulatedBox

HANDLE = "pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f"
BASE = FilePath("/storage-pool/metal-csi")


def within(seconds: float) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def spec(handle: str = HANDLE, size: int = 50 << 30) -> DiskSpec:
    """A volume as the Go driver names it."""
    return DiskSpec(Slot(handle), BASE.child(f"{handle}.img"), size, Nqn(f"nqn.2000-02.com.mikrotik:{handle}"))


def write(path: Path, data: bytes, at: int) -> None:
    """Overwrite a part of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def read(path: Path, at: int, length: int) -> bytes:
    """A part of a file."""
    with path.open("rb") as file:
        file.seek(at)
        return file.read(length)


def settings_for(ros: SimulatedBox, **changes: Any) -> Settings:
    """How to reach the box, with timeouts for tests."""
    quick = Settings(
        address=ros.address,
        port=ros.port,
        user=ros.user,
        key_file=ros.private_key,
        host_key=HostKey.parse(ros.host_key),
        connect_timeout=1.0,
        session_timeout=0.8,
        probe_interval=0.2,
        backoff_first=0.05,
        backoff_longest=0.3,
    )
    return dataclasses.replace(quick, **changes)


class Watched:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.states: list[bool] = []
        self.attempts: list[bool] = []

    def link_state(self, connected: bool) -> None:
        self.states.append(connected)

    def connect_attempt(self, succeeded: bool, outage: float) -> None:
        assert outage >= 0
        self.attempts.append(succeeded)


Client = tuple[Box, Transport, Watched]
Connect = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


@contextlib.asynccontextmanager
async def client_of(ros: SimulatedBox, **changes: Any) -> AsyncIterator[Client]:
    """A client that has been started; whether it is connected is another matter."""
    watched = Watched()
    async with Transport(settings_for(ros, **changes), watched) as transport:
        yield Box(transport), transport, watched


@pytest.fixture(scope="session")
def one_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """The process that all tests here share."""
    with SimulatedBox(tmp_path_factory.mktemp("box")) as box:
        yield box


@pytest.fixture
def ros(one_box: SimulatedBox) -> SimulatedBox:
    """A box that is as good as new."""
    one_box.reset()
    return one_box


@pytest.fixture
async def client(ros: SimulatedBox) -> AsyncIterator[Client]:
    """A connected client."""
    async with client_of(ros) as made:
        await made[1].wait_connected(5)
        yield made
