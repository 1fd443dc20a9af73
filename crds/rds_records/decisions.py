"""What a rule answers: yes with the changed record, or no with the reason. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rds_records.record import (
    ObjectReference,
    Record,
)


class Code(StrEnum):
    """The answer class of a refusal, by its gRPC name."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    UNAVAILABLE = "UNAVAILABLE"


class Reason(StrEnum):
    """The rule that refused, for machines; the message is for people."""

    NOT_INITIALIZED = "NotInitialized"
    DELETING = "VolumeDeleting"
    NODE_NOT_FOUND = "NodeNotFound"
    NODE_UNKNOWN = "NodeUnknown"
    OTHER_CLASS = "AttachedDifferently"
    WRONG_VOLUME_MODE = "WrongVolumeMode"
    MULTI_NODE_FILESYSTEM = "MultiNodeFilesystem"
    SINGLE_NODE = "AttachedElsewhere"
    NO_MIGRATION = "NoLiveMigration"
    NO_EVIDENCE = "EvidenceUnavailable"
    NO_SLOT = "TwoNodesAttached"
    INCONSISTENT = "Inconsistent"
    LATE_DETACH = "LateDetach"
    STILL_ATTACHED = "StillAttached"
    MIGRATING = "Migrating"
    EXPANDING = "Expanding"


@dataclass(frozen=True, slots=True)
class Refused:
    """No, with the rule and what to do about it."""

    code: Code
    reason: Reason
    message: str
    vmi: ObjectReference | None = None
    """The VM whose pod waits, where that is known."""


@dataclass(frozen=True, slots=True)
class Decided:
    """Yes; ``changed`` tells whether there is anything to write."""

    record: Record
    changed: bool
