"""What the node finds out by itself, between calls; metrics and Events are made from it by whoever listens."""

from __future__ import annotations

from typing import Protocol

from rds_csi.node.health import Change
from rds_csi.node.reports import tell_each
from rds_csi.node.sysfs import Session


class Incidents(Protocol):
    """Who listens; nothing here blocks or raises."""

    def health_changed(self, change: Change) -> None:
        """Hear that a volume became unhealthy, or well again."""

    def orphan_found(self, session: Session) -> None:
        """Hear of a session that nothing seems to need."""

    def orphan_cleaned(self, session: Session) -> None:
        """Hear that it was ended."""

    def held_off(self, volume_id: str, failures: int, seconds: float, failure: str) -> None:
        """Hear that a volume that failed so many times in a row is not tried for so many seconds."""

    def released(self, volume_id: str, why: str) -> None:
        """Hear that a volume that was held off is treated as others are."""


class EachIncident:
    """Tells several listeners; what goes wrong in one of them is logged, and neither the others nor the caller hear of it."""

    def __init__(self, *listeners: Incidents) -> None:
        self._listeners = listeners

    def health_changed(self, change: Change) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.health_changed(change))

    def orphan_found(self, session: Session) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.orphan_found(session))

    def orphan_cleaned(self, session: Session) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.orphan_cleaned(session))

    def held_off(self, volume_id: str, failures: int, seconds: float, failure: str) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.held_off(volume_id, failures, seconds, failure))

    def released(self, volume_id: str, why: str) -> None:
        """Tell them."""
        tell_each(self._listeners, lambda listener: listener.released(volume_id, why))
