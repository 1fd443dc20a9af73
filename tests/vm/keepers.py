"""Pods that keep ledgers (``tests/vm/ledger.py``) on the disks of claims, what they were told, and what the disks hold."""

from __future__ import annotations

import itertools
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.ring.waiting import eventually
from tests.vm.cluster import DISK, MOUNTED, RealCluster
from tests.vm.guests import SHARE, Guest
from tests.vm.ledger import Found, judge, read_shown

T = TypeVar("T")

LEDGER = Path(__file__).with_name("ledger.py")
NOTES = Path("/notes")
"""Where a keeper has the folder of its orders and its log."""


class KeeperFailed(Exception):
    """A keeper's disk said no, or held something else than what was written; not worth waiting for any longer."""


class Keeper:
    """A pod that keeps a ledger. What it told outlives its node.

    Attributes:
        pod: the pod's name.
    """

    def __init__(self, cluster: RealCluster, notes: Path, pod: str, node: str) -> None:
        self.cluster = cluster
        self.pod = pod
        self.node = node
        self._notes = notes
        self._orders = itertools.count(1)

    def wait_running(self, *, timeout: float = 180.0) -> None:
        """Wait until its kubelet says that it runs."""
        self.cluster.wait_running(self.pod, timeout=timeout)

    def write(self, *, timeout: float = 60.0) -> int:
        """Let it write block after block; return the number after which it goes on, once it has read the disk."""
        return self.wait_answer(self.order(write=True), timeout=timeout)

    def read(self, *, timeout: float = 60.0) -> int:
        """Let it stop writing and read the whole disk; return the last number on it."""
        return self.wait_answer(self.order(write=False), timeout=timeout)

    def order(self, *, write: bool) -> int:
        """Give it an order and return the order's number, which ``wait_answer`` takes."""
        number = next(self._orders)
        new = self._notes / f"{self.pod}.new"
        new.write_text(json.dumps({"id": number, "write": write}))
        new.replace(self._notes / f"{self.pod}.order")
        return number

    def wait_answer(self, order: int, *, timeout: float = 60.0) -> int:
        """Wait until it has obeyed an order; return the last number that it found on the disk.

        Raises:
            KeeperFailed: the disk cannot be read, or is damaged.
        """

        def answered() -> tuple[int] | None:
            lasts = [line["last"] for line in self.lines() if line.get("id") == order]
            assert lasts, f"it said last: {self.lines()[-1:]}"
            return (int(lasts[-1]),)

        return self._wait(f"{self.pod} obeys", answered, timeout)[0]

    def wait_writes(self, count: int = 10, *, timeout: float = 60.0) -> None:
        """Wait until so many more blocks than now are acknowledged.

        Raises:
            KeeperFailed: a write failed.
        """
        before = len(self.acknowledged())

        def written() -> bool:
            assert (done := len(self.acknowledged()) - before) >= count, f"{done} blocks"
            return True

        self._wait(f"{self.pod} writes {count} blocks", written, timeout)

    def _wait(self, what: str, probe: Callable[[], T | None], timeout: float) -> T:
        def watched() -> T | None:
            if failures := self.failures():
                raise KeeperFailed(f"{self.pod}: {failures}")
            return probe()

        return eventually(what, watched, timeout=timeout)

    def lines(self) -> list[dict[str, Any]]:
        """Return everything that it has told so far."""
        log = self._notes / f"{self.pod}.log"
        text = log.read_text() if log.exists() else ""
        # What stands behind the last end of a line is being written.
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def acknowledged(self) -> list[int]:
        """Return the numbers that were written, in order."""
        return [line["wrote"] for line in self.lines() if "wrote" in line]

    def failures(self) -> list[dict[str, Any]]:
        """Return what its disk refused."""
        return [line for line in self.lines() if "failed" in line]


class Keepers:
    """The keepers of one test, which all use the same disk, one after another or in turn."""

    def __init__(self, cluster: RealCluster, share: Path) -> None:
        self.cluster = cluster
        self._notes = share / "ledgers" / cluster.namespace
        self._notes.mkdir(parents=True)
        self._seen = SHARE / self._notes.relative_to(share)
        self._made: list[Keeper] = []

    def make(self, node: str, claim: str, *, restart: str = "Never") -> Keeper:
        """Put a keeper on a node, on the raw disk of a Block claim, or in a file on a Filesystem claim."""
        pod = f"keeper-{node}-{secrets.token_hex(3)}"
        block = self.cluster.claim(claim)["spec"].get("volumeMode") == "Block"
        where = [DISK] if block else [f"{MOUNTED}/ledger", "--create"]
        command = ["exec", f"{sys.base_prefix}/bin/python3", "-I", "-S", "-B", LEDGER, "keep", *where, NOTES, pod]
        self.cluster.pod(
            node,
            claim,
            command=" ".join(str(word) for word in command),
            name=pod,
            restart=restart,
            python=True,
            folders={self._seen: NOTES},
        )
        self._made.append(keeper := Keeper(self.cluster, self._notes, pod, node))
        return keeper

    def acknowledged(self) -> dict[int, str]:
        """Return who was told of which number that it is written."""
        told: dict[int, str] = {}
        for keeper in self._made:
            for number in keeper.acknowledged():
                assert number not in told, f"{keeper.pod} and {told[number]} were both told that block {number} is written"
                told[number] = keeper.pod
        return told

    def wrong_with(self, found: list[Found]) -> list[str]:
        """Return what is wrong with the disk that these keepers wrote to."""
        acknowledged = self.acknowledged()
        assert acknowledged, "nothing was written"
        return judge(found, acknowledged, in_flight=len(set(acknowledged.values())))


def found_in(guest: Guest, file: str | Path) -> list[Found]:
    """Return what a ledger's disk holds, read in a guest: the file of a volume in the target, or a device in an initiator."""
    return read_shown(guest.run(sys.executable, "-I", "-S", "-B", LEDGER, "show", file))
