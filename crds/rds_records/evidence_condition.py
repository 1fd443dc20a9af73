"""The condition EvidenceReadable: whether pods and KubeVirt's objects could be read when a second node asked. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rds_records.conditions import with_condition
from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable
from rds_records.record import Record

EVIDENCE_READABLE: Final = "EvidenceReadable"


def with_evidence_read(record: Record, evidence: Evidence | None, *, now: datetime) -> Record:
    """Return the record with the condition that this evidence gives; a record whose evidence was always readable has none."""
    before = record.status.condition(EVIDENCE_READABLE)
    if isinstance(evidence, EvidenceUnavailable):
        status, reason, message = False, "Forbidden" if evidence.forbidden else "Unavailable", evidence.text
    elif evidence is None or before is None or before.status == "True":
        return record
    else:
        status, reason, message = True, "Readable", "pods and KubeVirt's objects could be read at the last second node"
    changed = with_condition(record.status, EVIDENCE_READABLE, status, reason, message[:1024], now)
    return record.replace(status=changed)
