"""What the node tells as Kubernetes Events: on the claim of the volume, or on the Node where there is none.

Best effort: nothing waits for it. The same thing happening again raises one Event's count, at most twice a minute; what the API
server does not take within an hour, and what is too much at once, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from rds_csi.node.health import Change, Problem
from rds_csi.node.nvme import Target
from rds_csi.node.reports import MountOperation, Operation
from rds_csi.node.sysfs import DeviceNumber, Session
from rds_records.events import EventRecorder, Notice, Posted, Reason, Subject, event_name
from rds_records.kubernetes_api import ApiError
from rds_records.messages import go_duration

_log = logging.getLogger(__name__)

COMPONENT: Final = "rds-csi-node"
"""The reporter's name, as the Go driver's."""

MAX_ENTRIES: Final = 512
"""Different things that are remembered at once, told or not."""

REPEAT_SECONDS: Final = 30.0
"""At least so long between two writes of one Event."""

FORGET_SECONDS: Final = 3600.0
"""After so long without a repetition it is another Event; an Event itself is kept for an hour by default."""

FIRST_BACKOFF: Final = 1.0
MAX_BACKOFF: Final = 60.0
"""Seconds between tries while the API server is in trouble."""

MAX_COUNTED: Final = 1024
"""Volumes whose failed attempts to connect are counted."""


class NodeReason(Reason):
    """Why an Event is posted; the Go driver's words where it has any."""

    CONNECTION_FAILURE = "ConnectionFailure"
    CONNECTION_RECOVERY = "ConnectionRecovery"
    CONNECTION_LOST = "ConnectionLost"
    MOUNT_FAILURE = "MountFailure"
    STALE_MOUNT_DETECTED = "StaleMountDetected"
    RECOVERY_FAILED = "RecoveryFailed"
    DEVICE_VANISHED = "DeviceVanished"
    DEVICE_RETURNED = "DeviceReturned"
    FILESYSTEM_READ_ONLY = "FilesystemReadOnly"
    FILESYSTEM_WRITABLE = "FilesystemWritable"
    FILESYSTEM_ERRORS = "FilesystemErrors"
    FILESYSTEM_REPAIRED = "FilesystemRepaired"
    VOLUME_HELD_OFF = "VolumeHeldOff"
    VOLUME_RELEASED = "VolumeReleased"
    ORPHAN_DETECTED = "OrphanDetected"
    ORPHAN_CLEANED = "OrphanCleaned"

    @property
    def warns(self) -> bool:
        """Whether somebody should look."""
        return self not in _NORMAL


_NORMAL: Final = frozenset(
    {
        NodeReason.CONNECTION_RECOVERY,
        NodeReason.STALE_MOUNT_DETECTED,
        NodeReason.DEVICE_RETURNED,
        NodeReason.FILESYSTEM_WRITABLE,
        NodeReason.FILESYSTEM_REPAIRED,
        NodeReason.VOLUME_RELEASED,
        NodeReason.ORPHAN_DETECTED,
        NodeReason.ORPHAN_CLEANED,
    }
)

_BEGAN: Final = {
    Problem.CONNECTION_LOST: (
        NodeReason.CONNECTION_LOST,
        "no live connection to the volume for {lasted}: reads and writes wait until the box can be reached again",
    ),
    Problem.DEVICE_VANISHED: (
        NodeReason.DEVICE_VANISHED,
        "the volume is staged here and its disk has not been there for {lasted}: pods that use it get errors until they start anew",
    ),
    Problem.FILESYSTEM_READ_ONLY: (
        NodeReason.FILESYSTEM_READ_ONLY,
        "the file system has stopped after an error: it takes no writes (XFS: answers nothing): see the kernel's log of the node",
    ),
    Problem.FILESYSTEM_ERRORS: (
        NodeReason.FILESYSTEM_ERRORS,
        "ext4 has recorded errors, now or earlier, and goes on: what is stored may be damaged until e2fsck has repaired it",
    ),
}
_ENDED: Final = {
    Problem.CONNECTION_LOST: (NodeReason.CONNECTION_RECOVERY, "the connection to the volume is live again after {lasted}"),
    Problem.DEVICE_VANISHED: (NodeReason.DEVICE_RETURNED, "the volume's disk is there again after {lasted}"),
    Problem.FILESYSTEM_READ_ONLY: (NodeReason.FILESYSTEM_WRITABLE, "the file system can be written to again after {lasted}"),
    Problem.FILESYSTEM_ERRORS: (NodeReason.FILESYSTEM_REPAIRED, "ext4 has no record of errors any more after {lasted}"),
}


class EventCounts(Protocol):
    """Who counts what became of Events."""

    def event_ended(self, reason: NodeReason, *, posted: bool) -> None:
        """Count an Event that the API server took, or that was given up."""


class _Key(NamedTuple):
    reason: NodeReason
    volume_id: str
    about: str


@dataclass(slots=True)
class _Entry:
    """One thing that happens on this node, and how often so far."""

    notice: Notice
    due: float
    """When it may be written, on the monotonic clock."""

    touched: float
    dirty: bool = True
    subject: Subject | None = None
    """Found out once; the Event's name goes with it."""


class NodeEvents:
    """A ``NodeReports`` that posts Events while ``run`` runs; ``now`` is the API server's time."""

    def __init__(
        self,
        node: str,
        recorder: EventRecorder,
        subject_of: Callable[[str], Awaitable[Subject]],
        counts: EventCounts,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``subject_of`` finds the object for a volume's id, or for this node itself where that is empty; it raises ApiError."""
        self._node = node
        self._recorder = recorder
        self._subject_of = subject_of
        self._counts = counts
        self._now = now
        self._monotonic = monotonic
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._failed_connects: OrderedDict[str, int] = OrderedDict()
        self._wake = asyncio.Event()

    # What happens

    def operation_ended(self, volume_id: str, operation: Operation, seconds: float, failure: str) -> None:
        """Ignore it: what went wrong was told with its cause, and the kubelet tells that the call failed."""

    def connect_ended(self, volume_id: str, target: Target, seconds: float, failure: str) -> None:
        """Tell of an attempt that failed, and of the first that succeeded after that."""
        where = f"{target.address}:{target.port}"
        if failure:
            failed = self._failed_connects.pop(volume_id, 0) + 1
            self._failed_connects[volume_id] = failed
            if len(self._failed_connects) > MAX_COUNTED:
                self._failed_connects.popitem(last=False)
            self.tell(NodeReason.CONNECTION_FAILURE, volume_id, f"NVMe/TCP connection to {where} failed: {failure}")
        elif failed := self._failed_connects.pop(volume_id, 0):
            self.tell(NodeReason.CONNECTION_RECOVERY, volume_id, f"connected to {where} after {failed + 1} attempts")

    def mount_ended(self, volume_id: str, operation: MountOperation, failure: str) -> None:
        """Tell of one that failed."""
        if failure:
            self.tell(NodeReason.MOUNT_FAILURE, volume_id, f"{operation} failed: {failure}")

    def stale_mount_found(self, volume_id: str, path: str, old: DeviceNumber, now: DeviceNumber | None) -> None:
        """Tell it."""
        today = f"the volume's disk is {now}" if now else "the volume has no disk now"
        self.tell(NodeReason.STALE_MOUNT_DETECTED, volume_id, f"{path} leads to device {old}, and {today}")

    def stale_mount_recovered(self, volume_id: str, path: str, failure: str) -> None:
        """Tell where it could not be mended."""
        if failure:
            self.tell(NodeReason.RECOVERY_FAILED, volume_id, f"{path} leads to a device that is not the volume's disk: {failure}")

    def health_changed(self, change: Change) -> None:
        """Tell that a volume became unhealthy, or well again."""
        reason, text = (_BEGAN if change.began else _ENDED)[change.problem]
        self.tell(reason, change.volume_id, text.format(lasted=go_duration(round(change.seconds))))

    def orphan_found(self, session: Session) -> None:
        """Tell of a session that nothing seems to need."""
        self.tell(NodeReason.ORPHAN_DETECTED, "", f"session {session.nqn} is for no volume that the kubelet has", session.nqn)

    def orphan_cleaned(self, session: Session) -> None:
        """Tell that it was ended."""
        self.tell(NodeReason.ORPHAN_CLEANED, "", f"session {session.nqn}, which nothing used, was ended", session.nqn)

    def held_off(self, volume_id: str, failures: int, seconds: float, failure: str) -> None:
        """Tell that a volume is not staged for a while."""
        text = f"staging failed {failures} times in a row and is not tried for {go_duration(round(seconds))}: {failure}"
        self.tell(NodeReason.VOLUME_HELD_OFF, volume_id, text)

    def released(self, volume_id: str, why: str) -> None:
        """Tell that a volume is staged again as others are."""
        self.tell(NodeReason.VOLUME_RELEASED, volume_id, f"no longer held off: {why}")

    def tell(self, reason: NodeReason, volume_id: str, text: str, about: str = "") -> None:
        """Note an Event to be posted, on this node itself where ``volume_id`` is empty; ``about`` tells such Events apart."""
        key = _Key(reason, volume_id, about)
        at, now = self._monotonic(), self._now()
        message = f"[{volume_id}] on [{self._node}]: {text}" if volume_id else f"on [{self._node}]: {text}"
        known = self._entries.pop(key, None)
        if known is None or at - known.touched >= FORGET_SECONDS:
            known = _Entry(Notice("", reason, message, now, now), due=at, touched=at)
        else:
            known.notice = replace(known.notice, message=message, last=now, count=known.notice.count + 1)
            known.touched, known.dirty = at, True
        self._entries[key] = known
        if len(self._entries) > MAX_ENTRIES:
            self._drop(next((one for one, entry in self._entries.items() if not entry.dirty), next(iter(self._entries))))
        self._wake.set()

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None and entry.dirty:
            self._counts.event_ended(key.reason, posted=False)

    # What is told

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Post until cancelled."""
        backoff = FIRST_BACKOFF
        while True:
            if await self.post_due():
                backoff = FIRST_BACKOFF
                await self._wait(sleep)
            else:
                await sleep(backoff)
                backoff = min(MAX_BACKOFF, backoff * 2)

    async def post_due(self) -> bool:
        """Post what may be posted now; returns False where the API server did not take it."""
        for key, entry in list(self._entries.items()):
            at = self._monotonic()
            if at - entry.touched >= FORGET_SECONDS and self._entries.get(key) is entry:
                self._drop(key)
            elif entry.dirty and entry.due <= at:
                try:
                    await self._post(key, entry)
                except ApiError as error:
                    _log.info(
                        "an Event is not posted yet", extra={"reason": key.reason, "volume": key.volume_id, "error": str(error)}
                    )
                    return False
                except Exception:  # noqa: BLE001 the others must be told
                    _log.exception("an Event is given up", extra={"reason": key.reason, "volume": key.volume_id})
                    self._drop(key)
        return True

    async def _post(self, key: _Key, entry: _Entry) -> None:
        reason, volume_id, about = key
        if entry.subject is None:
            entry.subject = await self._subject_of(volume_id)
        told = entry.notice
        name = event_name(entry.subject.reference.name, self._recorder.instance, reason, volume_id, about, told.first.isoformat())
        notice = replace(told, name=name)
        posted = await (self._recorder.repeat if notice.count > 1 else self._recorder.post)(notice, entry.subject)
        entry.due = self._monotonic() + REPEAT_SECONDS
        # What happened again meanwhile is told next time.
        entry.dirty = entry.notice is not told
        if posted is not Posted.EXISTED:
            self._counts.event_ended(reason, posted=posted is Posted.CREATED)

    async def _wait(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Wait until something happens, or something that happened again may be told."""
        self._wake.clear()
        dues = [entry.due for entry in self._entries.values() if entry.dirty]
        if not dues:
            await self._wake.wait()
            return
        woken = asyncio.ensure_future(self._wake.wait())
        slept = asyncio.ensure_future(sleep(max(0.0, min(dues) - self._monotonic())))
        try:
            await asyncio.wait({woken, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            slept.cancel()
