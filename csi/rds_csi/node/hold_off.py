"""What keeps a volume from being staged for a while: it failed again and again. Pure but for the clock that it is given."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from rds_csi.errors import Unavailable
from rds_csi.node.incidents import Incidents
from rds_csi.node.nvme import Target
from rds_csi.node.reports import MountOperation, NoReports, Operation
from rds_records.names import API_GROUP

RESET_ANNOTATION: Final = f"{API_GROUP}/reset-circuit-breaker"
"""Of the PersistentVolume; the Go driver's name."""

AFTER: Final = 3
"""Failures in a row before a volume is held off."""

FIRST_SECONDS: Final = 10.0
LONGEST_SECONDS: Final = 300.0
"""For how long: doubled with each further failure."""

FORGET_SECONDS: Final = 900.0
"""Failures that are farther apart are not in a row; the kubelet's own pauses are two minutes at most."""

MAX_VOLUMES: Final = 1024
MAX_FAILURE: Final = 300
"""Characters of the last failure in a message."""


class HoldOff(Protocol):
    """Who says whether a volume that failed again and again may be tried now."""

    def check(self, volume_id: str) -> None:
        """Raise ``rds_csi.errors.Unavailable`` where the volume is held off, with words that name the way out."""


class NoHoldOff:
    """Holds nothing off."""

    def check(self, volume_id: str) -> None:
        """Let every volume pass."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The reset annotation as it was read; ``value`` is None where there is none."""

    volume_name: str
    """Of the PersistentVolume."""

    value: str | None

    @property
    def way_out(self) -> str:
        """The command that changes it."""
        change = f"{RESET_ANNOTATION}=true" if self.value is None else f"{RESET_ANNOTATION}-"
        return f"kubectl annotate pv {self.volume_name} {change}"


@dataclass(slots=True)
class _Volume:
    failures: int
    last: float
    until: float = 0.0
    failure: str = ""
    held: bool = False
    """Since it was first held off, and until it is released; also in between, while it is tried."""

    annotation: Annotation | None = None
    """As it was when the volume was held off; None while that is not known."""


class VolumeHoldOff(NoReports):
    """Holds a volume off whose connection or mount fails again and again (a ``HoldOff`` and a ``NodeReports``).

    Released by success, and by any change of the annotation since the volume was held off: setting it, another value, removing it.
    So the node needs no right to write PersistentVolumes, and the annotation works each time. A restart forgets everything.
    """

    def __init__(
        self, node: str, listener: Incidents, *, monotonic: Callable[[], float] = time.monotonic, most: int = MAX_VOLUMES
    ) -> None:
        """Hold off at most ``most`` volumes; beyond that the one that failed longest ago is forgotten."""
        self._node = node
        self._listener = listener
        self._monotonic = monotonic
        self._most = most
        self._volumes: OrderedDict[str, _Volume] = OrderedDict()
        self._trouble: OrderedDict[str, str] = OrderedDict()

    def check(self, volume_id: str) -> None:
        """Raise Unavailable where the volume is held off now."""
        volume = self._volumes.get(volume_id)
        if volume is None or volume.until <= self._monotonic():
            return
        left = max(1, round(volume.until - self._monotonic()))
        known = volume.annotation
        way_out = known.way_out if known else f"set {RESET_ANNOTATION} on its PersistentVolume, or change it"
        raise Unavailable(
            f"volume {volume_id} failed {volume.failures} times in a row on node {self._node} and is held off: it is tried again "
            f"in {left} s. To have it tried at once: {way_out}. The last failure: {volume.failure}"
        )

    def held(self) -> list[str]:
        """Return the volumes that are held off now."""
        now = self._monotonic()
        return [volume_id for volume_id, volume in self._volumes.items() if volume.until > now]

    def connect_ended(self, volume_id: str, target: Target, seconds: float, failure: str) -> None:
        """Note how the connection of the call that is under way stands."""
        self._note(volume_id, failure)

    def mount_ended(self, volume_id: str, operation: MountOperation, failure: str) -> None:
        """Note how the mounts of the call that is under way stand."""
        self._note(volume_id, failure)

    def _note(self, volume_id: str, failure: str) -> None:
        self._trouble.pop(volume_id, None)
        if failure:
            self._trouble[volume_id] = failure
        # A call whose caller left ends untold.
        if len(self._trouble) > self._most:
            self._trouble.popitem(last=False)

    def operation_ended(self, volume_id: str, operation: Operation, seconds: float, failure: str) -> None:
        """Count a stage that failed because of connection or mount; one that succeeded releases the volume.

        A stage that was refused for another reason counts for nothing: the kubelet's own pauses are enough, and what is to be done
        is in its message.
        """
        trouble = self._trouble.pop(volume_id, "")
        if operation is not Operation.STAGE:
            return
        if not failure:
            self.release(volume_id, "it was staged")
        elif trouble:
            self._failed(volume_id, failure)

    def _failed(self, volume_id: str, failure: str) -> None:
        now = self._monotonic()
        volume = self._volumes.pop(volume_id, None)
        if volume is None or now - max(volume.last, volume.until) >= FORGET_SECONDS:
            volume = _Volume(failures=0, last=now)
        volume.failures += 1
        volume.last = now
        volume.failure = failure[:MAX_FAILURE]
        self._volumes[volume_id] = volume
        if len(self._volumes) > self._most:
            self._volumes.popitem(last=False)
        if volume.failures < AFTER:
            return
        # The exponent is bounded: a power of two of many failures is no float any more.
        seconds = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(volume.failures - AFTER, 16))
        volume.until = now + seconds
        volume.held = True
        self._listener.held_off(volume_id, volume.failures, seconds, volume.failure)

    def annotation_seen(self, volume_id: str, annotation: Annotation) -> None:
        """Hear what the annotation of a volume that is held off says now; one that changed releases the volume."""
        volume = self._volumes.get(volume_id)
        if volume is None or not volume.held:
            return
        if volume.annotation is not None and volume.annotation.value != annotation.value:
            self.release(volume_id, f"{RESET_ANNOTATION} of its PersistentVolume was changed")
        else:
            volume.annotation = annotation

    def release(self, volume_id: str, why: str) -> None:
        """Forget all failures of a volume."""
        volume = self._volumes.pop(volume_id, None)
        if volume is not None and volume.held:
            self._listener.released(volume_id, why)
