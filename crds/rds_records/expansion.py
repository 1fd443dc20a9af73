"""When a volume may grow, and how a second node is kept away meanwhile. Pure.

The two QEMUs of a live migration must see one size. So no volume grows while two nodes hold it, and none gets a second node while
it grows; each side writes to the record before it acts, so whoever comes second finds the other. Of two calls that want two sizes
one waits too: a size is set, so the command that arrives last could make the disk smaller. A driver that dies in between, or a box
that does not answer, holds a migration up no longer than one call may take: the mark says when it is void.
"""

from __future__ import annotations

from datetime import datetime

from rds_records import messages
from rds_records.decisions import Code, Decided, Reason, Refused
from rds_records.record import Expansion, Record, VolumeMode


def begin(record: Record, capacity_bytes: int, *, until: datetime, now: datetime) -> Decided | Refused:
    """Mark that the volume grows to this size (bytes), by a call that ends at ``until``; no while two nodes hold it.

    A mark for the same size is taken over, as a retry does; one for another size has to end first.

    Never FAILED_PRECONDITION: csi-resizer takes that for "not while in use" and waits until no pod uses the claim.
    """
    handle = record.handle
    if not record.initialized:
        text = f"volume {handle}: its record does not say yet who holds it; try again"
        return Refused(Code.UNAVAILABLE, Reason.NOT_INITIALIZED, text)
    if record.status.deleting:
        return Refused(Code.ABORTED, Reason.DELETING, f"volume {handle} is being deleted and is not expanded any more")
    holders = " and ".join(held.node_name for held in record.status.attachments)
    window = record.status.migration
    if window is not None:
        deadline = f", its deadline is {messages.clock(window.deadline_time)}" if window.deadline_time else ""
        text = (
            f"volume {handle} is not expanded while it migrates from {window.source_node} to {window.target_node} (since "
            f"{messages.clock(window.start_time)}{deadline}): both would see different sizes; it is tried again, and "
            "works once one of the two has left"
        )
        return Refused(Code.ABORTED, Reason.MIGRATING, text)
    if len(record.status.attachments) > 1:
        text = f"volume {handle} is not expanded while several nodes hold it ({holders}); it is tried again once one is left"
        return Refused(Code.ABORTED, Reason.MIGRATING, text)
    other = record.status.expansion
    if other and now < other.until_time and other.capacity_bytes != capacity_bytes:
        text = (
            f"volume {handle} is being expanded to {other.capacity_bytes} bytes, until {messages.clock(other.until_time)} at the "
            f"latest, and not to {capacity_bytes} bytes before; it is tried again"
        )
        return Refused(Code.ABORTED, Reason.EXPANDING, text)
    mark = Expansion(capacity_bytes=capacity_bytes, until_time=until)
    return Decided(record.with_status(expansion=mark), changed=record.status.expansion != mark)


def end(record: Record, mine: Expansion | None, *, now: datetime) -> Decided:
    """Take the mark off that the caller set, or one that is void; one that another call has taken over stays."""
    mark = record.status.expansion
    if mark is None or (mark != mine and now < mark.until_time):
        return Decided(record, changed=False)
    return Decided(record.with_status(expansion=None), changed=True)


def refuse_second_node(record: Record, node: str, now: datetime) -> Refused | None:
    """Refuse a further node while the volume grows; a mark that is void counts for nothing."""
    mark = record.status.expansion
    if mark is None or now >= mark.until_time or not record.status.attachments:
        return None
    holders = " and ".join(held.node_name for held in record.status.attachments)
    text = (
        f"volume {record.handle} is attached to node {holders} and cannot be attached to node {node} too now: it is being "
        f"expanded to {mark.capacity_bytes} bytes, until {messages.clock(mark.until_time)} at the latest; try again"
    )
    return Refused(Code.UNAVAILABLE, Reason.EXPANDING, text)


def node_must_follow(record: Record) -> bool:
    """Tell whether a node has its part to do when the disk has grown: for a filesystem always, for a device while one has it."""
    return record.spec.volume_mode is VolumeMode.FILESYSTEM or bool(record.status.attachments)
