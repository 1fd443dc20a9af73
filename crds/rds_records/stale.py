"""An attachment whose VolumeAttachment is gone, so that Kubernetes will never ask to end it: released once its node is out. Pure.

Two steps, because a publish to a node that is attached already writes nothing: it is answered OK by what it has read. So the
attachment is marked first, and looked at again after that. A publish that read the record before the mark was made for a
VolumeAttachment that existed then, which the second look finds; one that reads it later finds the mark and attaches the node anew,
under another id, so that the release finds nothing to release.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rds_records import messages
from rds_records.conditions import STALE_ATTACHMENT, with_condition
from rds_records.decisions import Code, Decided, Reason, Refused
from rds_records.node_proof import Proof
from rds_records.outbox import announce
from rds_records.record import Announcement, Attachment, Force, Leaving, OutboxEntry, Record
from rds_records.transitions import take_off

MAX_MESSAGE: Final = 2048


def is_marked(held: Attachment) -> bool:
    """Tell whether the attachment is being released, rather than detached."""
    return held.leaving is not None and bool(held.leaving.stale)


def is_leaving(held: Attachment) -> bool:
    """Tell whether the attachment is being detached."""
    return held.leaving is not None and not held.leaving.stale


def mark(record: Record, seen: Attachment, force: Force | None, *, now: datetime) -> Decided | Refused:
    """Say of the attachment that it is being released; refuses where it is another one than was ``seen``, or is marked otherwise.

    ``force`` is why that counts as forced; one that was seen once stays.
    """
    held = record.status.attachment_of(seen.node_name)
    if held is None or held != seen or is_leaving(held):
        return _changed(record, seen)
    leaving = held.leaving or Leaving(start_time=now, stale=True)
    return _replaced(record, held, held.replace(leaving=leaving.replace(forced=leaving.forced or force)))


def unmark(record: Record, seen: Attachment) -> Decided | Refused:
    """Take the mark back: the VolumeAttachment is there again, or the node is not out any more."""
    held = record.status.attachment_of(seen.node_name)
    if held is None or held != seen or not is_marked(held):
        return _changed(record, seen)
    return _replaced(record, held, held.replace(leaving=None))


def clear(record: Record, seen: Attachment, why: str, *, now: datetime, fenced: bool) -> Decided | Refused:
    """Take the marked attachment off the record, and announce it; ``why`` says how its node was proven out.

    ``fenced``: the box refuses the node already. Refuses where it is another attachment than was ``seen`` with its mark.
    """
    held = record.status.attachment_of(seen.node_name)
    if held is None or held != seen or not is_marked(held):
        return _changed(record, seen)
    after = take_off(record, (held.node_name,), now, {}, fenced=fenced)
    entry = OutboxEntry(
        id=f"{held.id}-stale",
        kind=Announcement.STALE_CLEARED,
        time=now,
        source_node=held.node_name,
        message=messages.stale_cleared(record.handle, held.node_name, why),
    )
    return Decided(after.replace(status=announce(after.status, entry)), changed=True)


def tell(record: Record, kept: Sequence[tuple[Attachment, Proof]], *, now: datetime) -> Decided:
    """Say on the record who holds the volume without a VolumeAttachment and why that node counts; ``kept`` may have nobody."""
    still = [(seen, proof) for seen, proof in kept if record.status.attachment_of(seen.node_name) == seen]
    if not still and record.status.condition(STALE_ATTACHMENT) is None:
        return Decided(record, changed=False)
    if still:
        message = "; ".join(
            f"node {seen.node_name} holds the volume and its VolumeAttachment is gone: {proof.why}. Do: {proof.do}"
            for seen, proof in still
        )
        status = with_condition(record.status, STALE_ATTACHMENT, True, still[0][1].ground, message[:MAX_MESSAGE], now)
    else:
        status = with_condition(record.status, STALE_ATTACHMENT, False, f"Not{STALE_ATTACHMENT}", _NOBODY, now)
    return Decided(record.replace(status=status), changed=status is not record.status)


_NOBODY: Final = "no node holds the volume whose VolumeAttachment is gone"


def _replaced(record: Record, held: Attachment, by: Attachment) -> Decided:
    attachments = tuple(by if one is held else one for one in record.status.attachments)
    return Decided(record.with_status(attachments=attachments), changed=by != held)


def _changed(record: Record, seen: Attachment) -> Refused:
    text = f"volume {record.handle}: who holds it changed on node {seen.node_name} meanwhile"
    return Refused(Code.ABORTED, Reason.LATE_DETACH, text)
