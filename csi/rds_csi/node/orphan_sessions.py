"""Which sessions of ours nothing on the node needs any more. Pure; who uses a device is looked at before one is ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from rds_csi.node.nvme import foreign_host_names, is_managed
from rds_csi.node.sysfs import Session
from rds_records.names import NQN_PREFIX, nqn_for

GRACE_SECONDS: Final = 120.0
"""For how long the kubelet must not have the volume: it stages a volume whose stage failed again within that."""

_Identity = tuple[str, tuple[str, ...]]


def volume_of(session: Session) -> str:
    """Return the handle of the volume that is served under the session's NQN."""
    return session.nqn.removeprefix(NQN_PREFIX)


def may_be_orphan(session: Session, volumes: Iterable[str], node: str, prefix: str) -> bool:
    """Tell whether a session was made by us, and the kubelet has no volume that it could be for.

    A session under another host NQN than ours was made by somebody else, be it the firmware that booted the machine from it.
    """
    return (
        is_managed(session.nqn, prefix)
        and bool(session.controllers)
        and not foreign_host_names(session, node)
        and not session.going
        and session.nqn not in {nqn_for(handle) for handle in volumes}
    )


@dataclass(slots=True)
class OrphanSessions:
    """Remembers since when each session has been without a use; at least two looks, ``grace`` seconds apart."""

    node: str
    prefix: str
    grace: float = GRACE_SECONDS
    _since: dict[_Identity, float] = field(default_factory=dict)

    def look(self, now: float, sessions: Collection[Session], volumes: Collection[str]) -> tuple[Session, ...]:
        """Return the sessions that have been orphans for long enough; ``now`` is a monotonic clock in seconds."""
        found = {_identity(one): one for one in sessions if may_be_orphan(one, volumes, self.node, self.prefix)}
        known = self._since
        self._since = {identity: known.get(identity, now) for identity in found}
        return tuple(found[identity] for identity in found if identity in known and now - known[identity] >= self.grace)

    def forget(self) -> None:
        """Start anew: for a while nobody could say which volumes the kubelet has."""
        self._since.clear()


def _identity(session: Session) -> _Identity:
    # A session that was made anew has other controllers: its time starts anew, too.
    return session.nqn, tuple(sorted(controller.name for controller in session.controllers))
