"""The condition EvidenceReadable: whether pods and KubeVirt's objects could be read when a second node asked. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable
from rds_records.record import Condition, Record

EVIDENCE_READABLE: Final = "EvidenceReadable"


def with_evidence_read(record: Record, evidence: Evidence | None, *, now: datetime) -> Record:
    """Return the record with the condition that this evidence gives; a record whose evidence was always readable has none."""
    before = record.status.condition(EVIDENCE_READABLE)
    if isinstance(evidence, EvidenceUnavailable):
        status, reason, message = "False", "Forbidden" if evidence.forbidden else "Unavailable", evidence.text
    elif evidence is None or before is None or before.status == "True":
        return record
    else:
        status, reason, message = "True", "Readable", "pods and KubeVirt's objects could be read at the last second node"
    condition = Condition(
        type=EVIDENCE_READABLE,
        status=status,
        reason=reason,
        message=message[:1024],
        last_transition_time=before.last_transition_time if before and before.status == status else now,
        observed_generation=record.metadata.generation,
    )
    others = [other for other in record.status.conditions if other.type != EVIDENCE_READABLE]
    return record.with_status(conditions=tuple(sorted([*others, condition], key=lambda one: one.type)))
