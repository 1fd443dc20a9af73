"""Fixtures of the Node service in a guest, called as a kubelet would call it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.guests import Guest
from tests.vm.node.client import BLOCK, SIZE, Make, Node, Volume
from tests.vm.nvmet import Export


@pytest.fixture(scope="session")
def node(guests: dict[str, Guest]) -> Iterator[Node]:
    """The Node service of an initiator, with native multipath."""
    yield from serving(guests["node-a"])


def serving(guest: Guest) -> Iterator[Node]:
    """Start the Node service in a guest, and stop it at the end."""
    node = Node.started(guest if guest.running else guest.start())
    yield node
    node.process.stop()


@pytest.fixture
def make(node: Node, target: Guest, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make volumes that are gone after the test."""
    made: list[Volume] = []

    def make(fs: str = BLOCK, *, size: int = SIZE, name: str = "", **wish: object) -> Volume:
        handle = f"pvc-{abs(hash(request.node.nodeid)) % 10**8:08d}-{len(made)}{name}"
        volume = Volume(Export(target, handle, size=size), fs, **wish)  # type: ignore[arg-type]
        made.append(volume)
        volume.export.make()
        return volume

    yield make
    for volume in made:
        node.tidy(volume)
        volume.export.remove()
