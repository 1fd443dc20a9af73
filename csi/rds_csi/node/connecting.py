"""Connecting to a target, again and again for a while where that fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rds_csi.errors import Unavailable
from rds_csi.node import nvme
from rds_csi.node.commands import CommandError, last_words
from rds_csi.node.deadlines import Deadline
from rds_csi.node.host import Host
from rds_csi.node.nvme import ConnectOutcome, Target
from rds_csi.node.reports import NodeReports
from rds_records.names import host_nqn_for

TRIES: Final = 5
FIRST_DELAY: Final = 1.0
DELAY_FACTOR: Final = 2.0
JITTER: Final = 0.2
"""Share of a delay by which it is longer or shorter: many volumes of one node, and many nodes, try at the same time."""


@dataclass(frozen=True, slots=True)
class Connecting:
    """Connects this node to targets."""

    host: Host
    node_id: str
    reports: NodeReports
    chance: Callable[[], float] = random.random
    """A number from 0 to 1."""

    async def connect(self, volume_id: str, target: Target, deadline: Deadline) -> None:
        """Connect, or find that the kernel has begun to; raises Unavailable.

        A call that ends half-way leaves a session or none: the next one looks first.
        """
        for tried in range(1, TRIES + 1):
            failure = await self._try(volume_id, target, deadline)
            if not failure:
                return
            delay = FIRST_DELAY * DELAY_FACTOR ** (tried - 1) * (1 + JITTER * (2 * self.chance() - 1))
            if tried == TRIES or deadline.left <= delay:
                raise Unavailable(f"volume {volume_id}: {failure}")
            await deadline.pause(delay, failure)

    async def _try(self, volume_id: str, target: Target, deadline: Deadline) -> str:
        """Return why it failed, or nothing."""
        started = deadline.clock.monotonic()
        try:
            output = await self.host.run(nvme.connect(target, self.node_id), within=deadline.left)
        except CommandError as error:
            failure = f"{target.address}:{target.port} cannot be connected to: {error}"
        else:
            failure = self._judge(target, nvme.connect_outcome(output), last_words(output.stderr.encode()))
        self.reports.connect_ended(volume_id, target, deadline.clock.monotonic() - started, failure)
        return failure

    def _judge(self, target: Target, outcome: ConnectOutcome, said: str) -> str:
        match outcome:
            case ConnectOutcome.CONNECTED | ConnectOutcome.ALREADY_CONNECTED:
                return ""
            case ConnectOutcome.REFUSED:
                return (
                    f"{target.address}:{target.port} answers, and either does not know {target.nqn} or does not admit "
                    f"this node's host NQN {host_nqn_for(self.node_id)} (a box with the storage fence on admits only the nodes in "
                    f"the volume's VolumeAttachmentRecord): {said}"
                )
            case ConnectOutcome.UNREACHABLE:
                return f"{target.address}:{target.port} cannot be connected to: {said}"
