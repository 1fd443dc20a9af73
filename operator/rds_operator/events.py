"""What the operator posts Events about."""

from __future__ import annotations

from typing import Final

from rds_records.events import Reason

COMPONENT: Final = "rds-csi-controller"
"""The reporter's name, as users of the Go driver know it from its documentation."""


class EventReason(Reason):
    """Why an Event is posted, in the Go driver's words."""

    MIGRATION_STARTED = "MigrationStarted"
    MIGRATION_COMPLETED = "MigrationCompleted"
    MIGRATION_FAILED = "MigrationFailed"
    MIGRATION_ENDED = "MigrationEnded"
    MIGRATION_VERDICT = "MigrationVerdict"
    MIGRATION_SLOW_START = "MigrationSlowStart"
    MIGRATION_LEAVING_OVERDUE = "MigrationLeavingOverdue"
    MIGRATION_LONG_RUN = "MigrationLongRun"
    MIGRATION_LEAVING_BLOCKED = "MigrationLeavingBlocked"
    FOREIGN_POD = "ForeignPod"
    ATTACHMENT_CONFLICT = "AttachmentConflict"
    VOLUME_ATTACHED = "VolumeAttached"
    VOLUME_DETACHED = "VolumeDetached"
    VOLUME_FORCE_DETACHED = "VolumeForceDetached"
    NODE_NOT_READY = "NodeNotReady"
    STALE_ATTACHMENT_CLEARED = "StaleAttachmentCleared"
    ORPHAN_DETECTED = "OrphanDetected"

    @property
    def warns(self) -> bool:
        """Whether somebody should look."""
        return self in _WARNINGS


_WARNINGS: Final = frozenset(
    {
        EventReason.MIGRATION_FAILED,
        EventReason.MIGRATION_SLOW_START,
        EventReason.MIGRATION_LEAVING_OVERDUE,
        EventReason.MIGRATION_LONG_RUN,
        EventReason.MIGRATION_LEAVING_BLOCKED,
        EventReason.FOREIGN_POD,
        EventReason.ATTACHMENT_CONFLICT,
        EventReason.VOLUME_FORCE_DETACHED,
        EventReason.NODE_NOT_READY,
        EventReason.ORPHAN_DETECTED,
    }
)
