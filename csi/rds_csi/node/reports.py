"""What the Node service tells while it works; metrics, Events and the hold-off are made from it by whoever listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Protocol, TypeVar

from rds_csi.node.nvme import Target
from rds_csi.node.sysfs import DeviceNumber

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Operation(StrEnum):
    """A call of the Node service that changes something."""

    STAGE = "stage"
    UNSTAGE = "unstage"
    PUBLISH = "publish"
    UNPUBLISH = "unpublish"
    EXPAND = "expand"


class MountOperation(StrEnum):
    """What is done with a mount or a file system."""

    FORMAT = "format"
    MOUNT = "mount"
    BIND = "bind"
    UNMOUNT = "unmount"
    GROW = "grow"


class NodeReports(Protocol):
    """Who listens; nothing here blocks or raises. ``failure`` is empty for success, else one sentence for people."""

    def operation_ended(self, volume_id: str, operation: Operation, seconds: float, failure: str) -> None:
        """Hear that a call ended; one that was cancelled is no failure of the volume and is not reported."""

    def connect_ended(self, volume_id: str, target: Target, seconds: float, failure: str) -> None:
        """Hear that one attempt to connect ended."""

    def mount_ended(self, volume_id: str, operation: MountOperation, failure: str) -> None:
        """Hear that a file system was made, mounted, shown elsewhere, unmounted or grown, or was not."""

    def stale_mount_found(self, volume_id: str, path: str, old: DeviceNumber, now: DeviceNumber | None) -> None:
        """Hear of a mount or device node of the volume that leads to a device that is not its disk (any more)."""

    def stale_mount_recovered(self, volume_id: str, path: str, failure: str) -> None:
        """Hear that what was stale leads to the disk again, or could not be mended."""


class NoReports:
    """Listens to nothing."""

    def operation_ended(self, volume_id: str, operation: Operation, seconds: float, failure: str) -> None:
        """Ignore it."""

    def connect_ended(self, volume_id: str, target: Target, seconds: float, failure: str) -> None:
        """Ignore it."""

    def mount_ended(self, volume_id: str, operation: MountOperation, failure: str) -> None:
        """Ignore it."""

    def stale_mount_found(self, volume_id: str, path: str, old: DeviceNumber, now: DeviceNumber | None) -> None:
        """Ignore it."""

    def stale_mount_recovered(self, volume_id: str, path: str, failure: str) -> None:
        """Ignore it."""


class EachOf:
    """Tells several listeners; what goes wrong in one of them is logged, and neither the others nor the caller hear of it."""

    def __init__(self, *listeners: NodeReports) -> None:
        self._listeners = listeners

    def operation_ended(self, volume_id: str, operation: Operation, seconds: float, failure: str) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.operation_ended(volume_id, operation, seconds, failure))

    def connect_ended(self, volume_id: str, target: Target, seconds: float, failure: str) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.connect_ended(volume_id, target, seconds, failure))

    def mount_ended(self, volume_id: str, operation: MountOperation, failure: str) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.mount_ended(volume_id, operation, failure))

    def stale_mount_found(self, volume_id: str, path: str, old: DeviceNumber, now: DeviceNumber | None) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.stale_mount_found(volume_id, path, old, now))

    def stale_mount_recovered(self, volume_id: str, path: str, failure: str) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.stale_mount_recovered(volume_id, path, failure))


def tell_each(listeners: Iterable[T], report: Callable[[T], None]) -> None:
    """Report to every listener; one that raises is logged."""
    for listener in listeners:
        try:
            report(listener)
        except Exception:  # noqa: BLE001 whatever it is, the work goes on
            _log.exception("a report is lost")
