"""What a pod does with a disk: it writes numbered, checksummed blocks, says so after each, and reads them back when asked.

The program runs in containers, in guests and on the host with nothing but Python's standard library::

    ledger.py keep DISK FOLDER NAME [--create]   obey the orders in FOLDER/NAME.order, tell in FOLDER/NAME.log
    ledger.py show FILE                          print what a disk holds

Block ``n`` lies at slot ``n % SLOTS`` from the start of the disk, so a slot is written again and again and its number only grows: a
write that is lost, or one that comes late over a newer one, leaves a smaller number behind than the log has.

An order is a JSON object ``{"id": …, "write": true | false}``; a file with one is replaced, never changed. Whoever gets an order
reads the whole disk first and then goes on after its last number, if it is to write. The log has one JSON object per line, written
when what it tells of is done: ``{"id": …, "last": number}`` for each order, ``last`` being the largest number on the disk,
``{"wrote": number, "at": seconds, "took": seconds}`` for each block (``at`` by the wall clock, ``took`` by the monotonic one), and
``{"failed": what, "error": …}`` before the program ends where the disk says no.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

BLOCK = 4096
SLOTS = 1024
SIZE = BLOCK * SLOTS
"""Bytes of a disk that are used."""

HEADER = struct.Struct(">8sQ40s")
MAGIC = b"ledger 1"
DIGEST = 32
PACE = 0.02
"""Seconds between two writes: enough of them to be in the middle of one when something breaks, and time for others."""


@dataclass(frozen=True)
class Entry:
    """A block that is whole: its number, and who wrote it."""

    number: int
    writer: str


@dataclass(frozen=True)
class Damage:
    """A block that is neither empty nor what anybody wrote there."""

    slot: int
    why: str


Found = Entry | Damage | None
"""What a slot holds; ``None`` where nothing was ever written."""


def encode(entry: Entry) -> bytes:
    """Return the block of an entry."""
    header = HEADER.pack(MAGIC, entry.number, entry.writer.encode())
    seed = hashlib.sha256(header).digest()
    body = (seed * (BLOCK // len(seed)))[: BLOCK - len(header) - DIGEST]
    return header + body + hashlib.sha256(header + body).digest()


def decode(block: bytes, slot: int) -> Found:
    """Return what a slot's block holds."""
    if not any(block):
        return None
    magic, number, writer = HEADER.unpack_from(block)
    if magic != MAGIC:
        return Damage(slot, f"begins with {block[:16].hex()}")
    if hashlib.sha256(block[:-DIGEST]).digest() != block[-DIGEST:]:
        return Damage(slot, f"says that it is block {number} and has another checksum")
    if number % SLOTS != slot:
        return Damage(slot, f"block {number} does not belong here")
    return Entry(number, writer.rstrip(b"\0").decode(errors="replace"))


class Disk:
    """A disk, or a file in its place, read and written past the caches of this machine and of the target.

    Args:
        path: a block device or file; it is never made by opening it.
        cached: through this machine's cache, for files on filesystems that cannot do without.
    """

    def __init__(self, path: Path, *, cached: bool = False, read_only: bool = False) -> None:
        flags = (os.O_RDONLY if read_only else os.O_RDWR | os.O_DSYNC) | (0 if cached else os.O_DIRECT)
        self._descriptor = os.open(path, flags)
        # Direct input and output want memory that is aligned, which a mapping is.
        self._memory = mmap.mmap(-1, SIZE)

    def write(self, entry: Entry) -> None:
        """Write an entry to where it belongs; on return the target has it where a power cut does not reach it."""
        self._memory[:BLOCK] = encode(entry)
        with memoryview(self._memory)[:BLOCK] as block:
            written = os.pwrite(self._descriptor, block, entry.number % SLOTS * BLOCK)
        if written != BLOCK:
            raise OSError(f"{written} bytes of {BLOCK} were written")

    def read(self) -> list[Found]:
        """Return what every slot holds; a block that is written just now may be seen half and is read again."""
        found = self._read()
        return self._read() if any(isinstance(one, Damage) for one in found) else found

    def _read(self) -> list[Found]:
        os.preadv(self._descriptor, [self._memory], 0)
        return [decode(self._memory[slot * BLOCK : (slot + 1) * BLOCK], slot) for slot in range(SLOTS)]


def last_of(found: Iterable[Found]) -> int:
    """Return the largest number on a disk; 0 on one that is empty, whose first block is 1."""
    return max((one.number for one in found if isinstance(one, Entry)), default=0)


def judge(found: list[Found], acknowledged: Mapping[int, str], *, in_flight: int = 1) -> list[str]:
    """Return what is wrong with a disk, given who wrote which number and was told that it is written.

    Up to ``in_flight`` numbers after the last one may be there or not: whoever wrote them was not told before it died.
    """
    last = max(acknowledged, default=0)
    due = {number % SLOTS: number for number in sorted(acknowledged)}
    wrong = []
    for slot, one in enumerate(found):
        if isinstance(one, Damage):
            wrong.append(f"slot {slot}: {one.why}")
        elif (held := one.number if one else 0) < due.get(slot, 0):
            wrong.append(f"slot {slot}: block {due[slot]} was acknowledged, and the disk holds {held or 'nothing'}")
        elif held > last + in_flight:
            wrong.append(f"slot {slot}: block {held} is there, and the last one acknowledged is {last}")
        elif one and one.writer != acknowledged.get(held, one.writer):
            wrong.append(f"slot {slot}: block {held} is {one.writer}'s, and {acknowledged[held]} was told that it is written")
    return wrong


class Keeper:
    """Obeys the orders that concern one disk."""

    def __init__(self, disk: Disk, folder: Path, name: str) -> None:
        self._disk = disk
        self._order_file = folder / f"{name}.order"
        self._log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._name = name
        self._seen: tuple[int, int] | None = None
        self._writing = False
        self._last = 0

    def step(self) -> None:
        """Look for an order, then write a block if that is what was ordered last."""
        if order := self._new_order():
            self._last = last_of(self._looked())
            self._writing = order["write"]
            self._tell({"id": order["id"], "last": self._last})
        if self._writing:
            self._write()

    def run(self) -> NoReturn:
        """Obey until something ends the program."""
        while True:
            self.step()
            time.sleep(PACE)

    def _new_order(self) -> Mapping[str, Any] | None:
        try:
            state = self._order_file.stat()
        except FileNotFoundError:
            return None
        # A file that replaced another one is another one.
        if (mark := (state.st_ino, state.st_mtime_ns)) == self._seen:
            return None
        self._seen = mark
        order: Mapping[str, Any] = json.loads(self._order_file.read_text())
        return order

    def _looked(self) -> list[Found]:
        try:
            found = self._disk.read()
        except OSError as error:
            self._fail("read", str(error))
        if damaged := [f"slot {one.slot}: {one.why}" for one in found if isinstance(one, Damage)]:
            self._fail("read", "; ".join(damaged))
        return found

    def _write(self) -> None:
        number, before = self._last + 1, time.monotonic()
        try:
            self._disk.write(Entry(number, self._name))
        except OSError as error:
            self._fail(f"write {number}", str(error))
        self._last = number
        self._tell({"wrote": number, "at": round(time.time(), 3), "took": round(time.monotonic() - before, 3)})

    def _fail(self, what: str, error: str) -> NoReturn:
        self._tell({"failed": what, "error": error})
        sys.exit(f"{what}: {error}")

    def _tell(self, line: Mapping[str, Any]) -> None:
        os.write(self._log, (json.dumps(line) + "\n").encode())


def shown(found: list[Found]) -> str:
    """Return what a disk holds as text; ``read_shown`` is its other half."""
    return json.dumps([None if one is None else asdict(one) for one in found])


def read_shown(text: str) -> list[Found]:
    """Return what a disk holds from its text."""
    return [None if one is None else Damage(**one) if "why" in one else Entry(**one) for one in json.loads(text)]


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("keep")
    for name in ("disk", "folder"):
        keep.add_argument(name, type=Path)
    keep.add_argument("name")
    keep.add_argument("--create", action="store_true", help="make the file where it is missing")
    show = commands.add_parser("show")
    show.add_argument("file", type=Path)
    asked = parser.parse_args()
    if asked.command == "show":
        print(shown(Disk(asked.file, cached=True, read_only=True).read()))
        return
    # The first process of a container ends by no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if asked.create and not asked.disk.exists():
        with asked.disk.open("xb") as file:
            file.write(bytes(SIZE))
    Keeper(Disk(asked.disk), asked.folder, asked.name).run()


if __name__ == "__main__":
    main()
