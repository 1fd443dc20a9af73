"""The typed VolumeAttachmentRecord (frozen); unknown fields, written by another version, are kept as they are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

from rds_records.names import API_GROUP, API_VERSION, KIND, record_name

MAX_HISTORY = 10
"""Closed windows kept on a record; entries that still wait for their result are kept beyond it."""

MAX_PENDING = 20
"""Ended windows that may wait for KubeVirt's verdict; beyond it who left decides for the oldest."""

MAX_OUTBOX = 32
MAX_REFUSALS = 4
MAX_ATTACHMENTS = 16
MAX_FORCED = 10
"""Forced detaches kept on a record; older ones go."""


def format_time(moment: datetime) -> str:
    """Return the moment as RFC 3339 in UTC with milliseconds, the form of every time on a record."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[datetime, PlainSerializer(format_time, return_type=str, when_used="json")]


class _Part(BaseModel):
    """A piece of a record: frozen, camelCase on the wire, and tolerant of fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed."""
        return self.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """Return the wire form; what is unset is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class VolumeMode(StrEnum):
    """How the volume is presented to a pod."""

    BLOCK = "Block"
    FILESYSTEM = "Filesystem"


class AccessMode(StrEnum):
    """Kubernetes' access modes."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"
    READ_ONLY_MANY = "ReadOnlyMany"
    READ_WRITE_MANY = "ReadWriteMany"

    @property
    def multi_node(self) -> bool:
        """Whether more than one node may hold the volume."""
        return self in {AccessMode.READ_ONLY_MANY, AccessMode.READ_WRITE_MANY}


class DualAttachPolicy(StrEnum):
    """Who may be the second node of a multi-node volume."""

    KUBEVIRT = "KubeVirt"
    """Only a node that a KubeVirt live migration of the very VM explains."""

    ANY_TWO_NODES = "AnyTwoNodes"
    """Any second node; every dual attachment counts as a migration."""


class Result(StrEnum):
    """How a migration window ended; each window gets exactly one."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    TIMED_OUT = "TimedOut"


class Phase(StrEnum):
    """One word for people, derived from the rest of the status."""

    DETACHED = "Detached"
    ATTACHED = "Attached"
    MIGRATING = "Migrating"
    OVERDUE = "Overdue"


class Origin(StrEnum):
    """What opened a migration window."""

    PUBLISH = "Publish"
    IMPORTED = "Imported"
    OBSERVED = "Observed"
    """KubeVirt began another run between two nodes that were both attached; no CSI call tells."""


class Announcement(StrEnum):
    """What an outbox entry tells."""

    STARTED = "Started"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    TIMED_OUT = "TimedOut"
    ENDED = "Ended"
    """A window closed whose result had been announced before."""
    VERDICT = "Verdict"
    """KubeVirt told its result of a window that had got one without it, as by its deadline."""
    SLOW_START = "SlowStart"
    LEAVING_OVERDUE = "LeavingOverdue"
    LONG_RUN = "LongRun"
    LEAVING_BLOCKED = "LeavingBlocked"
    FOREIGN_POD = "ForeignPod"
    FORCED_DETACH = "ForcedDetach"
    """Kubernetes took the volume from a node that did not prove that it had let go."""
    STALE_CLEARED = "StaleCleared"
    """An attachment without VolumeAttachment was released, because its node was proven out."""
    NODE_NOT_READY = "NodeNotReady"
    """A node that holds the volume is not Ready, or gone."""
    COLLAPSED = "Collapsed"
    """Totals of entries for which the outbox had no room."""


class Target(_Part):
    """Where the box serves the volume."""

    nqn: str
    slot: str
    file_path: str
    address: str | None = None
    """Only where the StorageClass names one; else the driver's ``--nvme-address``."""
    port: int | None = None


class ContentSource(_Part):
    """What a volume was made from; one of the two."""

    snapshot_id: str | None = None
    volume_handle: str | None = None


class Spec(_Part):
    """Identity and policy of the volume."""

    volume_handle: str
    volume_mode: VolumeMode
    access_mode: AccessMode
    capacity_bytes: int
    persistent_volume_name: str | None = None
    target: Target | None = None
    content_source: ContentSource | None = None
    dual_attach_policy: DualAttachPolicy = DualAttachPolicy.KUBEVIRT
    migration_timeout_seconds: int | None = None


class ForceReason(StrEnum):
    """Why a detach counts as forced: what the Node said when it was detached."""

    NODE_NOT_READY = "NodeNotReady"
    NODE_GONE = "NodeGone"
    OUT_OF_SERVICE = "OutOfService"
    VOLUME_IN_USE = "VolumeInUse"


class Force(_Part):
    """Why a detach is forced, for machines and for people."""

    reason: ForceReason
    message: str


class Leaving(_Part):
    """A detach that has begun and waits for the box; the node is no longer admitted there."""

    start_time: Time
    forced: Force | None = None
    stale: bool | None = None
    """True where no detach was asked for: the VolumeAttachment is gone and the node was proven out. A new attach revokes it."""


class Attachment(_Part):
    """One node that was told that it may use the volume."""

    node_name: str
    id: str
    access_mode: AccessMode
    read_only: bool = False
    attach_time: Time
    leaving: Leaving | None = None
    """With the fence on, while the box is told; and while an attachment without VolumeAttachment is being released."""


class ForcedDetach(_Part):
    """A node from which Kubernetes took the volume by force; named after the attachment."""

    id: str
    node_name: str
    time: Time
    reason: ForceReason
    message: str
    fenced: bool
    """Whether the box had refused the node and dropped its sessions before the detach was answered."""


class ObjectReference(_Part):
    """A namespaced object and its uid."""

    namespace: str
    name: str
    uid: str | None = None


class Window(_Part):
    """A time during which two nodes hold the volume; roles are fixed when it opens."""

    id: str
    origin: Origin
    source_node: str
    target_node: str
    start_time: Time
    timeout_seconds: int | None = None
    deadline_time: Time | None = None
    result: Result | None = None
    result_time: Time | None = None
    kubevirt_result: Result | None = None
    reason: str | None = None
    """On what ground there is a result."""
    failure_reason: str | None = None
    """Why, in KubeVirt's words."""
    live_node: str | None = None
    vmi: ObjectReference | None = None
    migration_name: str | None = None
    migration_uid: str | None = Field(default=None, alias="migrationUID")
    source_pod: str | None = None
    target_pod: str | None = None
    """Launcher pods of the VM, in the namespace of ``vmi``."""
    kubevirt_start_time: Time | None = None
    kubevirt_end_time: Time | None = None
    """As KubeVirt says, by the clocks of its nodes."""
    kubevirt_timeout_seconds: int | None = None
    """How long KubeVirt's run may take, from ``run_start_time``; absent where it has no limit, or not yet."""
    run_start_time: Time | None = None
    """When the operator first saw that the run had started."""
    slow_start_time: Time | None = None
    leaving_overdue_time: Time | None = None
    long_run_time: Time | None = None
    leaving_blocked_time: Time | None = None
    foreign_pod_time: Time | None = None
    """When somebody was warned, once per window each."""


class ClosedWindow(Window):
    """A window that ended; without a result it waits for KubeVirt's verdict."""

    end_time: Time
    left_node: str | None = None
    forced: bool | None = None
    """True where a node left by force; ``forced_detaches`` says why."""
    duration_seconds: float
    """From start to end, never below 0."""


class Counts(_Part):
    """Totals of announcements that the outbox had no room for."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    forced_detaches: int = 0
    stale_cleared: int = 0


class OutboxEntry(_Part):
    """A transition that was decided and is not yet reported."""

    id: str
    kind: Announcement
    time: Time
    source_node: str = ""
    target_node: str = ""
    message: str = ""
    duration_seconds: float | None = None
    """Present where a window closed with this transition: the time that both nodes were attached."""
    kubevirt_duration_seconds: float | None = None
    """Present where KubeVirt's verdict says when its run began and ended."""
    vmi: ObjectReference | None = None
    """The VM of the migration, for Events of its own."""
    clock_clamped: bool | None = None
    """True where the clocks said that the window ended before it began; its duration is then 0."""
    counts: Counts | None = None
    reported_by: str | None = None
    """The operator life that counted it."""


class Refusal(_Part):
    """A node that was told no."""

    node_name: str
    reason: str
    message: str
    first_time: Time
    last_time: Time
    count: int
    vmi: ObjectReference | None = None
    """The VM whose pod waits for the volume, where that is known."""


class Expansion(_Part):
    """A growth that is under way, void after ``until_time``."""

    capacity_bytes: int
    until_time: Time


class Condition(_Part):
    """A metav1.Condition."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: Time
    observed_generation: int | None = None


class Status(_Part):
    """What was decided and observed."""

    initialized: bool | None = None
    """Absent: nothing is known yet, which never means that nobody is attached."""
    deleting: bool | None = None
    removed_from_box: bool | None = None
    """Disk and file are gone; the record stays only for what is left to report."""
    expansion: Expansion | None = None
    attachments: tuple[Attachment, ...] = ()
    forced_detaches: tuple[ForcedDetach, ...] = ()
    """Oldest first."""
    migration: Window | None = None
    history: tuple[ClosedWindow, ...] = ()
    """Oldest first."""
    outbox: tuple[OutboxEntry, ...] = ()
    over_attached: bool | None = None
    refusals: tuple[Refusal, ...] = ()
    claim_ref: ObjectReference | None = None
    vmi: ObjectReference | None = None
    phase: Phase | None = None
    nodes: str | None = None
    conditions: tuple[Condition, ...] = ()
    observed_generation: int | None = None

    def attachment_of(self, node: str) -> Attachment | None:
        """Return the node's attachment, or None."""
        return next((held for held in self.attachments if held.node_name == node), None)

    @property
    def pending(self) -> tuple[ClosedWindow, ...]:
        """The ended windows that wait for KubeVirt's verdict, oldest first."""
        return tuple(window for window in self.history if window.result is None)

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of that type, or None."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


def _labels(value: object) -> Mapping[str, str]:
    return dict(value) if isinstance(value, Mapping) else {}


class Metadata(_Part):
    """What this project uses of an object's metadata."""

    name: str
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: tuple[str, ...] = ()
    annotations: Annotated[Mapping[str, str], BeforeValidator(_labels)] = Field(default_factory=dict)


class Record(_Part):
    """One volume: who may use it, who uses it, and how its migrations went."""

    metadata: Metadata
    spec: Spec
    status: Status = Status()

    @property
    def handle(self) -> str:
        """The volume handle."""
        return self.spec.volume_handle

    @property
    def initialized(self) -> bool:
        """Whether the status says anything at all."""
        return bool(self.status.initialized)

    @property
    def terminating(self) -> bool:
        """Whether the object is being deleted."""
        return self.metadata.deletion_timestamp is not None

    def with_status(self, **changes: Any) -> Record:
        """Return a copy with these status fields changed."""
        return self.replace(status=self.status.replace(**changes))

    @classmethod
    def new(cls, spec: Spec, finalizers: tuple[str, ...] = ()) -> Record:
        """Return a record that is not in the API server yet."""
        return cls(metadata=Metadata(name=record_name(spec.volume_handle), finalizers=finalizers), spec=spec)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Record:
        """Read the wire form; raises pydantic.ValidationError where the object is no record."""
        return cls.model_validate(body)

    def to_json(self) -> dict[str, Any]:
        """Return the whole object as the API server takes it."""
        return {"apiVersion": f"{API_GROUP}/{API_VERSION}", "kind": KIND, **super().to_json()}
