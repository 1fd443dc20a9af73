"""What the box offers over NVMe/TCP, as far as its ``/disk`` menu says so (pure), and who makes that true."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from tests.simulator.language import ConsoleError
from tests.simulator.store import Disk, Store


@dataclass(frozen=True)
class Export:
    """A disk that hosts may connect to.

    Attributes:
        image: the number of the bytes (see ``Images``).
        size: bytes.
        hosts: the NQNs of those who may connect; ``None`` is everybody.
        uuid: the same as long as the disk is there, another one for whatever takes its name later.
    """

    nqn: str
    port: int
    image: int
    size: int
    uuid: str
    hosts: frozenset[str] | None = None


class Backend(Protocol):
    """Offers disks to kernels, or only says that it does."""

    def offer(self, exports: Collection[Export]) -> None:
        """Offer exactly these, whatever was offered before, also in an earlier life of the box.

        Raises:
            ConsoleError: it cannot be done; what is offered then is between before and after.
        """


class Nothing:
    """No kernel is involved: the console shows exports that nobody can connect to."""

    def offer(self, exports: Collection[Export]) -> None:
        """Do nothing."""


def exports_of(store: Store) -> list[Export]:
    """What a box with this state offers; a disk whose image was removed is none of it.

    Raises:
        ConsoleError: two disks claim one NQN, or a name is none. Whether RouterOS refuses that, and how, is not known.
    """
    found: dict[str, Export] = {}
    for disk in store.disks:
        file = store.files.get(disk.file_path.lstrip("/"))
        if not disk.nvme_tcp_export or file is None:
            continue
        # Without a name of its own it is found under its slot (MikroTik's manual, page "NVMe over TCP").
        nqn = _name("nvme-tcp-server-nqn", disk.nvme_tcp_server_nqn or disk.slot)
        if nqn in found:
            raise ConsoleError(f"failure: another disk is exported as {nqn}")
        port = disk.nvme_tcp_server_port
        found[nqn] = Export(nqn, port, file.image, disk.size, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{nqn}#{disk.id}")), _hosts(disk))
    return list(found.values())


def _hosts(disk: Disk) -> frozenset[str] | None:
    names = disk.nvme_tcp_server_allow_host_name
    if not names:
        return None
    return frozenset(_name("nvme-tcp-server-allow-host-name", name) for name in names.split(",") if name)


def _name(argument: str, text: str) -> str:
    if "/" in text or text in (".", "..") or len(text) > 223:  # NVMe base specification: an NQN has at most 223 bytes
        raise ConsoleError(f"invalid value for argument {argument}")
    return text
