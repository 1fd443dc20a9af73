"""The box's exports as real ones: Linux's NVMe target, through its configfs (the kernel's drivers/nvme/target/configfs.c).

What is there is read, what has to be changed is decided (``changes``, pure) and done. The kernel keeps exports when the simulator
dies and loses them with the machine; either way the next start makes them what the box's state says, with the same identifiers,
so that initiators find their disk again.
"""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.simulator.exports import Export
from tests.simulator.images import Images
from tests.simulator.language import ConsoleError

CONFIGFS = Path("/sys/kernel/config/nvmet")
MODEL = "RDS simulator"
"""The model of every subsystem made here: those with another one are somebody else's and are left alone."""

log = logging.getLogger(__name__)


class Verb(StrEnum):
    """What configfs understands."""

    MKDIR = "mkdir"
    WRITE = "write"
    LINK = "link"
    UNLINK = "unlink"
    RMDIR = "rmdir"


@dataclass(frozen=True)
class Change:
    """One step; ``path`` and a link's ``text`` are relative to nvmet's directory."""

    verb: Verb
    path: str
    text: str = ""


@dataclass(frozen=True)
class Subsystem:
    """A subsystem as the kernel has it. ``ports`` are those that offer it; ``hosts`` as in ``Export``."""

    model: str = ""
    ports: frozenset[str] = frozenset()
    has_namespace: bool = False
    file: str = ""
    uuid: str = ""
    enabled: bool = False
    any_host: bool = True
    hosts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Found:
    """What the kernel has; ``hosts`` are those it knows by name, ``ports`` the directories of ports."""

    subsystems: Mapping[str, Subsystem]
    hosts: frozenset[str] = frozenset()
    ports: frozenset[str] = frozenset()


def changes(found: Found, wanted: Mapping[str, tuple[Export, str]]) -> Iterator[Change]:
    """The steps that make what the kernel has what is wanted: exports by NQN, each with its file. Nothing where nothing differs.

    Whatever but its hosts differs is taken away and made anew: that ends its sessions.
    """
    hosts, ports = set(found.hosts), set(found.ports)
    for nqn, subsystem in found.subsystems.items():
        if nqn in wanted:
            if not _fits(subsystem, *wanted[nqn]):
                yield from _taken_away(nqn, subsystem)
        elif subsystem.model == MODEL:
            yield from _taken_away(nqn, subsystem)
    for nqn, (export, file) in wanted.items():
        for host in sorted((export.hosts or set()) - hosts):
            yield Change(Verb.MKDIR, f"hosts/{host}")
            hosts.add(host)
        there = found.subsystems.get(nqn)
        if there is not None and _fits(there, export, file):
            yield from _let_in(nqn, there, export)
            continue
        if (port := str(export.port)) not in ports:
            yield Change(Verb.MKDIR, f"ports/{port}")
            yield from (Change(Verb.WRITE, f"ports/{port}/addr_{name}", text) for name, text in _address(port))
            ports.add(port)
        yield from _made(export, file)


def _fits(there: Subsystem, export: Export, file: str) -> bool:
    same = (there.model, there.ports, there.file, there.uuid) == (MODEL, frozenset([str(export.port)]), file, export.uuid)
    return there.enabled and same


def _address(port: str) -> list[tuple[str, str]]:
    return [("adrfam", "ipv4"), ("trtype", "tcp"), ("traddr", "0.0.0.0"), ("trsvcid", port)]


def _made(export: Export, file: str) -> Iterator[Change]:
    at = f"subsystems/{export.nqn}"
    yield Change(Verb.MKDIR, at)
    yield Change(Verb.WRITE, f"{at}/attr_model", MODEL)
    # The kernel draws a new serial for every mkdir; a disk keeps its own.
    yield Change(Verb.WRITE, f"{at}/attr_serial", export.uuid.replace("-", "")[:20])
    yield from _let_in(export.nqn, Subsystem(any_host=False), export)
    yield Change(Verb.MKDIR, f"{at}/namespaces/1")
    yield Change(Verb.WRITE, f"{at}/namespaces/1/device_path", file)
    yield Change(Verb.WRITE, f"{at}/namespaces/1/device_uuid", export.uuid)
    yield Change(Verb.WRITE, f"{at}/namespaces/1/enable", "1")
    yield Change(Verb.LINK, f"ports/{export.port}/subsystems/{export.nqn}", at)


def _let_in(nqn: str, there: Subsystem, export: Export) -> Iterator[Change]:
    """The kernel keeps a list only while not everybody may come in; on the way from one to the other nobody may."""
    at = f"subsystems/{nqn}"
    wanted = export.hosts or frozenset()
    if there.any_host and export.hosts is not None:
        yield Change(Verb.WRITE, f"{at}/attr_allow_any_host", "0")
    for host in sorted(there.hosts - wanted):
        yield Change(Verb.UNLINK, f"{at}/allowed_hosts/{host}")
    for host in sorted(wanted - there.hosts):
        yield Change(Verb.LINK, f"{at}/allowed_hosts/{host}", f"hosts/{host}")
    if not there.any_host and export.hosts is None:
        yield Change(Verb.WRITE, f"{at}/attr_allow_any_host", "1")


def _taken_away(nqn: str, there: Subsystem) -> Iterator[Change]:
    """Sessions first, then what they still do to the file: switching a namespace off waits for it."""
    at = f"subsystems/{nqn}"
    for port in sorted(there.ports):
        yield Change(Verb.UNLINK, f"ports/{port}/subsystems/{nqn}")
    if there.enabled:
        yield Change(Verb.WRITE, f"{at}/namespaces/1/enable", "0")
    if there.has_namespace:
        yield Change(Verb.RMDIR, f"{at}/namespaces/1")
    for host in sorted(there.hosts):
        yield Change(Verb.UNLINK, f"{at}/allowed_hosts/{host}")
    yield Change(Verb.RMDIR, at)


class Nvmet:
    """The NVMe target of the machine that this runs on; the images are its namespaces' files."""

    def __init__(self, images: Images, root: Path = CONFIGFS) -> None:
        """``root`` is nvmet's directory."""
        self._images = images
        self._root = root
        self._offered: Collection[Export] | None = None
        self._sizes: dict[str, int] = {}

    def offer(self, exports: Collection[Export]) -> None:
        """Offer exactly these, and tell those who are connected of new sizes."""
        if self._offered == exports:
            return
        self._offered = None
        wanted = {export.nqn: (export, str(self._images.make(export.image, export.size))) for export in exports}
        # A retry is safe at every step: the next call, or the next start, reads what is there and goes on from it.
        for change in changes(self._found(), wanted):
            self._do(change)
        for nqn, (export, _) in wanted.items():
            if self._sizes.get(nqn) != export.size:
                self._do(Change(Verb.WRITE, f"subsystems/{nqn}/namespaces/1/revalidate_size", "1"))
        self._sizes = {export.nqn: export.size for export in exports}
        self._offered = exports

    def _do(self, change: Change) -> None:
        log.info("%s %s %s", change.verb, change.path, change.text)
        path = self._root / change.path
        try:
            match change.verb:
                case Verb.MKDIR:
                    path.mkdir()
                case Verb.WRITE:
                    path.write_text(change.text)
                case Verb.LINK:
                    path.symlink_to(self._root / change.text)
                case Verb.UNLINK:
                    path.unlink()
                case Verb.RMDIR:
                    path.rmdir()
        except OSError as error:
            log.exception("nvmet refused %s %s %s", change.verb, change.path, change.text)
            raise ConsoleError(f"failure: nvmet refused {change.verb} {change.path}: {error.strerror}") from error

    def _found(self) -> Found:
        ports = _names(self._root / "ports")
        offered = {port: _names(self._root / "ports" / port / "subsystems") for port in ports}
        subsystems = {
            nqn: self._subsystem(nqn, frozenset(port for port in ports if nqn in offered[port]))
            for nqn in sorted(_names(self._root / "subsystems"))
        }
        return Found(subsystems, _names(self._root / "hosts"), ports)

    def _subsystem(self, nqn: str, ports: frozenset[str]) -> Subsystem:
        at = self._root / "subsystems" / nqn
        namespace = at / "namespaces" / "1"
        return Subsystem(
            model=_text(at / "attr_model"),
            ports=ports,
            has_namespace=namespace.exists(),
            file=_text(namespace / "device_path"),
            uuid=_text(namespace / "device_uuid"),
            enabled=_text(namespace / "enable") == "1",
            any_host=_text(at / "attr_allow_any_host") == "1",
            hosts=_names(at / "allowed_hosts"),
        )


def _names(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder))  # noqa: PTH208


def _text(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    return ""
