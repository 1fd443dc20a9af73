"""What is wrong with volumes, and what to do about each: from records and what stands beside them in Kubernetes. Pure.

Whatever is advised here stays safe however late it is read: commands are those of ``rds_records.messages``, or they only look, or
they are ``kubectl rds release``, which asks for its proof again. Nobody is ever told to end the side on which a VM runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from rds_kubectl.examination import APPLY
from rds_kubectl.world import ATTACHMENTS, NODES, Object, Volume, World, lease_age
from rds_process.tables import age, one_line
from rds_records import messages
from rds_records.conditions import LEAVING_NODE_READY
from rds_records.evidence_condition import EVIDENCE_READABLE
from rds_records.fencing import FenceReason
from rds_records.node_health import node_health
from rds_records.record import Announcement, Condition, Phase, Record, Result, Window
from rds_records.windows import PENDING_LIMIT

RECENT_REFUSAL: Final = timedelta(minutes=10)
"""csi-attacher asks again at least every five minutes while the node still waits."""

SETTLING: Final = timedelta(minutes=1)
"""What is out of step for less is under way, or was read at two moments."""

SLOW_DETACH: Final = timedelta(minutes=5)
SLOW_REPORT: Final = timedelta(minutes=2)
DEADLINE_LAG: Final = timedelta(seconds=30)

DOCTOR: Final = "`kubectl rds doctor`"
RIGHTS: Final = f"give back the right that it names: {APPLY}; {DOCTOR} lists all that are missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and what to do about it."""

    volume: str
    """The volume handle; empty where it is about the installation."""

    title: str
    """``namespace/claim``, else the handle; ``installation`` where it is about that."""

    kind: str
    """One word for programs."""

    what: str
    do: str

    def line(self) -> str:
        """Return it on one line for people."""
        return one_line(f"{self.title}: {self.what}. Do: {self.do}.")

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)


Said = tuple[str, str, str]
"""Kind, what is wrong, what to do."""


def findings(world: World, volumes: Iterable[Volume]) -> list[Finding]:
    """Return all that is wrong: with the installation first, then volume by volume in the order given."""
    found = of_installation(world)
    for volume in volumes:
        found += [Finding(volume.handle, volume.title, *said) for said in of_volume(volume, world)]
    return found


def of_volume(volume: Volume, world: World) -> Iterator[Said]:
    """Yield what is wrong with one volume."""
    if volume.record is not None:
        yield from of_record(volume.record, world)
        if world.nodes is not None and world.read(NODES):
            yield from _of_nodes(volume, volume.record, world.nodes)
    if world.attachments is not None and world.read(ATTACHMENTS):
        yield from _of_attachments(volume, world.now)


def of_record(record: Record, world: World) -> Iterator[Said]:
    """Yield what a record alone says is wrong."""
    status, now = record.status, world.now
    if status.migration:
        old = _where_the_vm_runs(record, status.migration) if world.active is not True else ""
        for kind, what, do in _of_window(record, status.migration, now):
            yield kind, what, f"{old}{do}"
    if status.over_attached:
        vm = f"; the VM {status.vmi.namespace}/{status.vmi.name} is to run on" if status.vmi else ""
        yield (
            "OverAttached",
            f"{len(status.attachments)} nodes hold it, more than allowed ({_nodes(record)}); no further one is admitted",
            f"{_see_users(record)}, then stop, through what made it, whatever should not use it{vm}",
        )
    yield from _of_conditions(record, now)
    for refusal in status.refusals:
        if now - refusal.last_time < RECENT_REFUSAL and not status.attachment_of(refusal.node_name):
            waits = f"node {refusal.node_name} waits for it, refused {refusal.count} times in {age(now - refusal.first_time)}"
            yield (
                "Refused",
                f"{waits} ({refusal.reason}): {refusal.message}",
                f"nothing by hand, it is tried again by itself; who holds it: `kubectl rds volume {record.handle}`",
            )
    for window in status.pending:
        if now - window.end_time > PENDING_LIMIT + SLOW_REPORT:
            roles = f"from {window.source_node} to {window.target_node}"
            yield (
                "NoResult",
                f"the migration {roles} ended {age(now - window.end_time)} ago and nobody has said how",
                f"see that an operator is active: {DOCTOR}",
            )
    oldest = min((entry.time for entry in status.outbox), default=now)
    if now - oldest > SLOW_REPORT:
        yield (
            "NotReported",
            f"{len(status.outbox)} transitions wait to be reported, the oldest for {age(now - oldest)}",
            f"see that an operator is active and may post Events: {DOCTOR}",
        )
    if record.terminating and status.attachments:
        yield (
            "RecordDeleted",
            f"its record was deleted by hand while {_nodes(record)} holds it; it goes on working until nobody does",
            "nothing; a new one is made at the next attach",
        )


def _of_window(record: Record, window: Window, now: datetime) -> Iterator[Said]:
    status = record.status
    both = f"{window.source_node} and {window.target_node} are both attached"
    way_out = _way_out(record, window)
    if status.phase is Phase.OVERDUE and window.result is Result.TIMED_OUT:
        late = age(now - window.deadline_time) if window.deadline_time else "long"
        yield "Overdue", f"{both}, {late} past the deadline", way_out
    elif window.result is None and window.deadline_time and now - window.deadline_time > DEADLINE_LAG:
        yield (
            "DeadlineNotEnforced",
            f"{both}, {age(now - window.deadline_time)} past the deadline, and nobody has called it TimedOut",
            f"see that an operator is active: {DOCTOR}; meanwhile {way_out}",
        )
    holds = {kind for kind in Announcement if _holds(status.condition(kind), "True")}
    leaving, blocked = messages.leaving_node(window), status.condition(LEAVING_NODE_READY)
    if leaving and blocked and _holds(blocked, "False"):
        yield (
            "LeavingNodeNotReady",
            f"node {leaving} should leave and cannot: {blocked.message}",
            f"{messages.out_of_service(window)}; {ALL_ENDS}",
        )
    elif Announcement.LEAVING_OVERDUE in holds and leaving:
        since = window.result_time or window.start_time
        yield (
            "LeavingOverdue",
            f"the migration is over for {age(now - since)} ({window.result}) and node {leaving} has not left",
            messages.release(window),
        )
    if Announcement.SLOW_START in holds:
        yield "SlowStart", f"{both} for {age(now - window.start_time)} and KubeVirt has not begun to move the VM", way_out
    if Announcement.LONG_RUN in holds:
        since = window.run_start_time or window.start_time
        yield (
            "LongRun",
            f"KubeVirt moves the VM for {age(now - since)} and has set no limit",
            f"wait where it is in post-copy, there is no way back; else {way_out}",
        )
    if Announcement.FOREIGN_POD in holds:
        said = status.condition(Announcement.FOREIGN_POD)
        yield (
            "ForeignPod",
            f"{said.message if said else 'a pod uses it too'}: two writers on one disk corrupt it",
            f"stop what made the pod that is no part of {_vm(window)}: a Deployment, Job or another VM; leave {_vm(window)} alone",
        )


def _way_out(record: Record, window: Window) -> str:
    """Return where the VM runs and what is safe; of a window that is none of KubeVirt's, what there is to do."""
    if window.migration_uid is None or window.vmi is None:
        nodes = f"{window.source_node} or {window.target_node}"
        return (
            f"{_see_users(record)}, then stop, through what made it, the workload on the node that should not have it, {nodes}; "
            "the record follows"
        )
    return messages.way_out(window)


def _see_users(record: Record) -> str:
    return f"see what uses it where: `kubectl rds volume {record.handle}`"


def _vm(window: Window) -> str:
    return f"the VM {window.vmi.namespace}/{window.vmi.name}" if window.vmi else "the VM"


def _where_the_vm_runs(record: Record, window: Window) -> str:
    """Return how to see where the VM runs now: a record says where it ran when an operator last looked."""
    vmi = window.vmi or record.status.vmi
    if vmi is None:
        return ""
    look = f"`kubectl -n {vmi.namespace} get vmi {vmi.name} -o jsonpath={{.status.nodeName}}`"
    return f"no operator is known to be active, so see first where the VM runs, {look}, and trust that; "


CONDITIONS: Final[Mapping[str, Mapping[str, str]]] = {
    EVIDENCE_READABLE: {
        "Forbidden": RIGHTS,
        "": "see to the API server; the attach is tried again by itself",
    },
    "VerdictReadable": {
        "Forbidden": RIGHTS,
        "": "see to the API server; results follow by themselves",
    },
    "Available": {
        "NotExported": "export the disk again on the box, under the slot and NQN of the record; running VMs are cut off meanwhile",
        "": "look on the box whether disk and file are there under the record's slot and path; make nothing anew there before that",
    },
    "Consistent": {"": f"nothing by hand: the driver repairs it at its next look; {DOCTOR} says whether it runs"},
    "Fenced": {"": "before its node is given up, be certain that the node is off: it may still write"},
}
"""Conditions that are bad where they are False: what to do, by reason (empty: any other)."""


BY_DESIGN: Final = frozenset({FenceReason.NOT_ENABLED})
"""What is as it was asked for."""

UNDER_WAY: Final = frozenset({FenceReason.CHANGING, FenceReason.SWITCHED_OFF})
"""What is put right by itself within ``SETTLING``."""


def _of_conditions(record: Record, now: datetime) -> Iterator[Said]:
    for kind, ways in CONDITIONS.items():
        condition = record.status.condition(kind)
        if condition is None or not _holds(condition, "False") or condition.reason in BY_DESIGN:
            continue
        if condition.reason not in UNDER_WAY or now - condition.last_transition_time > SETTLING:
            yield f"Not{kind}", f"{condition.reason}: {condition.message}", ways.get(condition.reason, ways[""])


ALL_ENDS: Final = "whatever else still runs on that node ends with it"


def _of_nodes(volume: Volume, record: Record, nodes: Mapping[str, Object]) -> Iterator[Said]:
    window = record.status.migration
    blocked = _holds(record.status.condition(LEAVING_NODE_READY), "False")
    leaving = messages.leaving_node(window) if window and blocked else None
    for held in volume.held:
        health = node_health(held.node_name, nodes.get(held.node_name))
        if not health.ready and held.node_name != leaving:
            yield (
                "NodeGone" if health.gone else "NodeNotReady",
                f"it is attached to {held.node_name}, and {health.describe()}",
                f"bring the node back, or see what `kubectl rds release {volume.handle} {held.node_name} --dry-run` says",
            )


def _of_attachments(volume: Volume, now: datetime) -> Iterator[Said]:
    record = volume.record
    refusals = record.status.refusals if record else ()
    refused = {refusal.node_name for refusal in refusals if now - refusal.last_time < RECENT_REFUSAL}
    for attachment in volume.attachments:
        node, status = attachment["spec"]["nodeName"], attachment.get("status") or {}
        deleted = attachment["metadata"].get("deletionTimestamp")
        if deleted and now - datetime.fromisoformat(deleted) > SLOW_DETACH:
            why = (status.get("detachError") or {}).get("message") or "csi-attacher has not said why"
            yield (
                "DetachHangs",
                f"the detach from {node} hangs for {age(now - datetime.fromisoformat(deleted))}: {why}",
                f"see that csi-attacher and driver run: {DOCTOR}; it is tried again by itself",
            )
        elif not deleted and not status.get("attached") and status.get("attachError") and node not in refused:
            yield (
                "AttachFails",
                f"the attach to {node} fails: {status['attachError'].get('message', '')}",
                f"as it says; it is tried again by itself, and {DOCTOR} says whether driver and rights are there",
            )
        elif record and record.initialized and not deleted and status.get("attached") and not record.status.attachment_of(node):
            yield (
                "HolderNotRecorded",
                f"its VolumeAttachment says that {node} holds it and the record does not",
                f"nothing by hand: the driver repairs it at its next look; {DOCTOR} says whether it runs",
            )
    for held in volume.held if volume.all_names else ():
        if volume.attachment_on(held.node_name) is None and now - held.attach_time > SETTLING:
            see = f"`kubectl rds release {volume.handle} {held.node_name} --dry-run` says what is missing"
            yield (
                "HolderWithoutAttachment",
                f"the record says that {held.node_name} holds it and there is no VolumeAttachment: it was removed by hand",
                f"leave it: the driver releases it once that node is proven out, and until then it counts; {see}",
            )


def of_installation(world: World) -> list[Finding]:
    """Return what is wrong with the installation: without an operator what records say may be old."""
    if world.active is not False:
        return []
    known = lease_age(world.lease, world.now) if world.lease else None
    since = f"its Lease was not renewed for {age(timedelta(seconds=known[0]))}" if known else "nobody holds its Lease"
    what = (
        f"no operator is active: {since}; deadlines, results, Events and conditions wait until one is, attaches and detaches go on"
    )
    return [Finding("", "installation", "NoOperator", what, f"`kubectl -n {world.installation} get pods,lease`, and {DOCTOR}")]


def _holds(condition: Condition | None, status: str) -> bool:
    return condition is not None and condition.status == status


def _nodes(record: Record) -> str:
    return " and ".join(held.node_name for held in record.status.attachments)
