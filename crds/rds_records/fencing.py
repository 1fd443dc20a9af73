"""The fence on the box: which hosts it may accept for a volume, and what the record says of it. Pure.

A record's attachments say who is admitted; the box's list of host NQNs is a function of them. Each change of the list is announced
on the record before the box is told (a new attachment, or ``leaving`` on an old one), and confirmed on it afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

from rds_records.conditions import with_condition
from rds_records.decisions import Decided
from rds_records.names import host_nqn_for
from rds_records.record import Force, Leaving, Record

FENCED: Final = "Fenced"
"""Type of the condition."""

NOBODY: Final = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000000"
"""A host NQN that no node has: for the box an empty list means everybody."""

MAX_MESSAGE: Final = 1024


class FenceReason(StrEnum):
    """Why ``Fenced`` is as it is."""

    NOT_ENABLED = "NotEnabled"
    SWITCHED_OFF = "SwitchedOff"
    """The fence is off, and the box still has a list from when it was on."""
    CHANGING = "Changing"
    CONFIRMED = "HostsConfirmed"
    NO_DISK = "NoDisk"
    BOX_UNREACHABLE = "BoxUnreachable"
    BOX_REFUSED = "BoxRefused"


def admitted(record: Record) -> frozenset[str]:
    """Return the nodes that the box may accept: those attached and not leaving."""
    return frozenset(held.node_name for held in record.status.attachments if held.leaving is None)


def host_nqns(nodes: Collection[str]) -> frozenset[str]:
    """Return the box's list for these nodes; never an empty one."""
    return frozenset(map(host_nqn_for, nodes)) or frozenset({NOBODY})


def is_confirmed(record: Record) -> bool:
    """Tell whether the box was seen to accept the admitted nodes and no others.

    The message names whom the condition speaks of, so it counts for these nodes alone, whoever changed the attachments since.
    """
    condition = record.status.condition(FENCED)
    return condition is not None and condition.status == "True" and condition.message == _confirmed(admitted(record))


def list_may_exist(record: Record) -> bool:
    """Tell whether the box may have a list of hosts for the volume."""
    condition = record.status.condition(FENCED)
    return condition is not None and condition.reason != FenceReason.NOT_ENABLED


def noted(before: Record, after: Record, *, enabled: bool, now: datetime) -> Record:
    """Return the record after an attach or a detach was decided, with what it means for the box; part of the same write."""
    if not enabled:
        old_list = list_may_exist(before)
        return _with(after, FenceReason.SWITCHED_OFF if old_list else FenceReason.NOT_ENABLED, _OLD_LIST if old_list else _OFF, now)
    if is_confirmed(after):
        return after
    return _with(after, FenceReason.CHANGING, f"the box has yet to be told to accept {_hosts(admitted(after))}", now)


def confirmed(record: Record, *, enabled: bool, disk: bool, now: datetime) -> Record:
    """Return the record after the box was seen as it should be for it; ``disk`` is False where it has no such disk at all.

    While a node is leaving nothing is confirmed: its sessions may live.
    """
    if not enabled:
        return _with(record, FenceReason.NOT_ENABLED, _OFF, now)
    if any(held.leaving for held in record.status.attachments):
        return record
    reason = FenceReason.CONFIRMED if disk else FenceReason.NO_DISK
    return _with(record, reason, _confirmed(admitted(record)), now, holds=True)


def failed(record: Record, reason: FenceReason, text: str, *, now: datetime) -> Decided:
    """Say on the record why the box is not as it should be."""
    message = f"the box does not confirm that it accepts {_hosts(admitted(record))}: {text}"
    after = _with(record, reason, message, now)
    return Decided(after, changed=after.status is not record.status)


def begin_leaving(record: Record, ids: Collection[str], force: Mapping[str, Force], *, now: datetime) -> Decided:
    """Mark these attachments as leaving; ``force`` says by node why that is forced.

    A force that was seen once stays, so that whoever goes on with the detach drops the sessions, whatever the Node says by then.
    """

    def mark(leaving: Leaving | None, node: str) -> Leaving:
        before = leaving or Leaving(start_time=now)
        return before.replace(forced=before.forced or force.get(node), stale=None)

    attachments = tuple(
        held.replace(leaving=mark(held.leaving, held.node_name)) if held.id in ids else held for held in record.status.attachments
    )
    changed = attachments != record.status.attachments
    after = record.with_status(attachments=attachments)
    return Decided(noted(record, after, enabled=True, now=now) if changed else record, changed=changed)


_OFF: Final = "the fence is off (--fence=none): the box accepts any host, also one that was detached"
_OLD_LIST: Final = "the fence is off, and the box keeps its list of hosts until the driver clears it, soon or at the next attach"


def _confirmed(nodes: frozenset[str]) -> str:
    return f"the box accepts {_hosts(nodes)}"


def _hosts(nodes: frozenset[str]) -> str:
    return f"the host of {' and '.join(sorted(nodes))} and no other" if nodes else "no host"


def _with(record: Record, reason: FenceReason, message: str, now: datetime, *, holds: bool = False) -> Record:
    status = with_condition(record.status, FENCED, holds, reason, message[:MAX_MESSAGE], now)
    return record if status is record.status else record.replace(status=status)
