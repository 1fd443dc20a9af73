"""Command lines of nvme-cli, the target that a volume's contexts name, and which sessions are ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from rds_csi.contexts import DEFAULT_NVME_PORT, parse_volume_context
from rds_csi.errors import FailedPrecondition, InvalidArgument
from rds_csi.node.commands import Command, Output
from rds_csi.node.sysfs import Session
from rds_records.names import check_ip_address, host_id_for, host_nqn_for, nqn_for

MANAGED_PREFIX_VARIABLE: Final = "CSI_MANAGED_NQN_PREFIX"
DEFAULT_MANAGED_PREFIX: Final = "nqn.2000-02.com.mikrotik:pvc-"
MAX_NQN: Final = 223
"""Bytes (NVM Express Base Specification, "NVMe Qualified Names")."""

CONNECT_SECONDS: Final = 30.0
DISCONNECT_SECONDS: Final = 30.0
MAX_PORT: Final = 65_535

_NQN = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9.-]+:[A-Za-z0-9._:-]+")
_CONNECTED: Final = "already connected"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a volume is today, and how its connection behaves; times in seconds."""

    nqn: str
    address: str
    port: int
    ctrl_loss_tmo: int
    reconnect_delay: int
    keep_alive_tmo: int


class ConnectOutcome(Enum):
    """How an ``nvme connect`` ended."""

    CONNECTED = auto()
    ALREADY_CONNECTED = auto()
    REFUSED = auto()
    """The target answered and said no: it does not know the subsystem, or does not admit this host; it says the same of both."""

    UNREACHABLE = auto()


def check_managed_prefix(prefix: str) -> str:
    """Return the prefix unchanged, or raise ValueError: an empty or shortened one would make a node's boot disk ours."""
    if not prefix.startswith("nqn.") or ":" not in prefix or len(prefix.encode()) > MAX_NQN:
        raise ValueError(
            f"{MANAGED_PREFIX_VARIABLE} {prefix[:60]!r} must start with 'nqn.', contain ':' and have at most {MAX_NQN} bytes; "
            f"the default is {DEFAULT_MANAGED_PREFIX}"
        )
    return prefix


def is_managed(nqn: str, prefix: str) -> bool:
    """Tell whether a session is ours to make and to end; one that is nothing but the prefix is not."""
    return nqn.startswith(prefix) and len(nqn) > len(prefix)


def target_for(volume_id: str, volume_context: Mapping[str, str], publish_context: Mapping[str, str], *, prefix: str) -> Target:
    """Return where to connect: the publish context is of today, the volume context of the day the volume was made.

    Raises InvalidArgument where neither names a usable target, and FailedPrecondition where the volume is not ours to connect.
    """
    known = parse_volume_context(volume_context)
    nqn = publish_context.get("nvme_nqn") or known.nqn or nqn_for(volume_id)
    if known.nqn and known.nqn != nqn:
        raise InvalidArgument(f"volume {volume_id}: publish context says NQN {nqn[:MAX_NQN]}, volume context {known.nqn[:MAX_NQN]}")
    nqn = _check_managed(_check_nqn(volume_id, nqn), prefix)
    if nqn != nqn_for(volume_id):
        # Later calls bring no context: a session under another name could never be found, and so never ended, again.
        raise FailedPrecondition(
            f"volume {volume_id} is served as {nqn[:MAX_NQN]}; a node serves a volume only as {nqn_for(volume_id)}, its handle"
        )
    address = publish_context.get("nvme_address") or known.nvme_address
    if not address:
        raise InvalidArgument(f"volume {volume_id}: neither publish context nor volume context has an NVMe address")
    return Target(
        nqn=nqn,
        address=_check_address(volume_id, address),
        port=_port(volume_id, publish_context.get("nvme_port")) or known.nvme_port or DEFAULT_NVME_PORT,
        ctrl_loss_tmo=known.ctrl_loss_tmo,
        reconnect_delay=known.reconnect_delay,
        keep_alive_tmo=known.keep_alive_tmo,
    )


def connect(target: Target, node: str) -> Command:
    """Return the command that connects this node; whoever runs it reads the outcome with ``connect_outcome``."""
    words = [
        "nvme",
        "connect",
        "--transport=tcp",
        f"--traddr={target.address}",
        f"--trsvcid={target.port}",
        f"--nqn={target.nqn}",
        f"--hostnqn={host_nqn_for(node)}",
        f"--hostid={host_id_for(node)}",
        f"--ctrl-loss-tmo={target.ctrl_loss_tmo}",
        f"--reconnect-delay={target.reconnect_delay}",
    ]
    if target.keep_alive_tmo:
        words.append(f"--keep-alive-tmo={target.keep_alive_tmo}")
    return Command(tuple(words), CONNECT_SECONDS, frozenset({0, 1}))


def connect_outcome(output: Output) -> ConnectOutcome:
    """Read how a connect ended; nvme-cli says it in words on stderr (seen with 2.3), its exit code is 1 for all failures."""
    if output.code == 0:
        return ConnectOutcome.CONNECTED
    said = output.stderr.lower()
    if _CONNECTED in said:
        return ConnectOutcome.ALREADY_CONNECTED
    if "input/output error" in said:
        return ConnectOutcome.REFUSED
    return ConnectOutcome.UNREACHABLE


def disconnect(nqn: str, *, prefix: str) -> Command:
    """Return the command that ends every session of this node with the subsystem.

    It succeeds also where there is none, and does not prove that the session is gone: look into sysfs. Raises
    FailedPrecondition for a subsystem that is not ours.
    """
    return Command(("nvme", "disconnect", f"--nqn={_check_managed(nqn, prefix)}"), DISCONNECT_SECONDS)


def foreign_host_names(session: Session, node: str) -> tuple[str, ...]:
    """Return the host NQNs of the session's controllers that are not this node's: another driver made them."""
    ours = host_nqn_for(node)
    return tuple(sorted({controller.host_nqn for controller in session.controllers} - {ours}))


def connected_elsewhere(session: Session, target: Target) -> bool:
    """Tell whether no controller of the session is at the target's address and port."""
    return all((controller.address, controller.port) != (target.address, target.port) for controller in session.controllers)


def _check_managed(nqn: str, prefix: str) -> str:
    if not is_managed(nqn, prefix):
        raise FailedPrecondition(
            f"subsystem {nqn[:MAX_NQN]} is not this driver's: it does not begin with {prefix} ({MANAGED_PREFIX_VARIABLE})"
        )
    return nqn


def _check_nqn(volume_id: str, nqn: str) -> str:
    if len(nqn.encode()) > MAX_NQN or not _NQN.fullmatch(nqn):
        raise InvalidArgument(f"volume {volume_id}: {nqn[:60]!r} is no NVMe qualified name")
    return nqn


def _check_address(volume_id: str, address: str) -> str:
    try:
        return check_ip_address(address)
    except ValueError:
        raise InvalidArgument(f"volume {volume_id}: NVMe address {address[:60]!r} is no IPv4 or IPv6 address") from None


def _port(volume_id: str, text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= MAX_PORT:
        raise InvalidArgument(f"volume {volume_id}: NVMe port {text[:20]!r} is not between 1 and {MAX_PORT}")
    return int(text)
