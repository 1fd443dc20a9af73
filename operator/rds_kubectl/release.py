"""Whether a volume may be released from a node: by deleting its VolumeAttachment, once the node is proven out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from rds_kubectl.world import Object, Trouble
from rds_records import fencing
from rds_records.kubevirt_objects import FINAL_PHASES, Pod, Vmi
from rds_records.names import DRIVER_NAME
from rds_records.node_proof import Standing, prove, users_on
from rds_records.record import ObjectReference, Record


class Outcome(StrEnum):
    """What is to be done."""

    RELEASE = "Release"
    NOTHING = "NothingToDo"
    """It is released already, or is being released."""

    REFUSED = "Refused"
    UNKNOWN = "Unknown"
    """Something could not be read: nothing is proven."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome, on what ground (one word for programs), why in words, and what to do instead."""

    outcome: Outcome
    ground: str
    why: str
    do: str = ""
    attachment: Object | None = None
    """The VolumeAttachment that is to be deleted."""

    def line(self) -> str:
        """Return it for people."""
        return f"{self.why}. Do: {self.do}." if self.do else f"{self.why}."

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        name = self.attachment["metadata"]["name"] if self.attachment else None
        return {"outcome": self.outcome, "ground": self.ground, "why": self.why, "do": self.do or None, "volumeAttachment": name}


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read of one volume and one node."""

    handle: str
    node: str
    attachments: Sequence[Object]
    """The VolumeAttachments of the volume, of all nodes."""

    record: Record | None
    node_body: Object | None
    """None: the API server says that there is no such Node."""

    claims: Sequence[ObjectReference] = ()
    """Every claim behind which the volume may be."""

    pods: Sequence[Pod] = ()
    """The pods on the node, in the namespaces of the claims."""

    vmi: Vmi | None = None
    """The virtual machine that uses the volume; None where there is none."""

    vmi_phase: str = ""
    troubles: Sequence[Trouble] = ()
    """What could not be read of all this."""

    driver: str = DRIVER_NAME

    @property
    def attachment(self) -> Object | None:
        """The VolumeAttachment of the node."""
        return next((one for one in self.attachments if one["spec"]["nodeName"] == self.node), None)

    @property
    def users(self) -> list[Pod]:
        """The pods on the node that use the volume and have not ended."""
        return users_on(self.node, self.pods, self.claims)

    @property
    def live_node(self) -> str | None:
        """Where the VM runs: as KubeVirt says, else as the open window does; None where nobody knows."""
        if self.vmi is not None and self.vmi.node and self.vmi_phase not in FINAL_PHASES:
            return self.vmi.node
        window = self.record.status.migration if self.record else None
        return window.live_node if window else None

    @property
    def fenced(self) -> bool:
        """Whether the box was seen to keep out every node that is not attached."""
        return self.record is not None and fencing.is_confirmed(self.record)

    @property
    def standing(self) -> Standing:
        """What counts of all this for a proof."""
        return Standing(
            self.handle,
            self.node,
            self.node_body,
            self.users,
            self.live_node,
            self.vmi.name if self.vmi else "",
            self.record.status.migration if self.record else None,
            self.fenced,
            self.driver,
        )


def judge(facts: Facts) -> Answer:
    """Return whether the node's VolumeAttachment may be deleted."""
    attachment = facts.attachment
    if facts.troubles:
        unread = "; ".join(f"{trouble.what}: {trouble.why}" for trouble in facts.troubles)
        do = "see to that; the ClusterRoles rds-csi-viewer and rds-csi-releaser have the rights"
        return Answer(Outcome.UNKNOWN, "Unread", f"nothing is proven of node {facts.node}: {unread}", do)
    if attachment is None:
        return _without_attachment(facts)
    if deleted := attachment["metadata"].get("deletionTimestamp"):
        error = ((attachment.get("status") or {}).get("detachError") or {}).get("message")
        said = f": {error}" if error else ""
        return Answer(Outcome.NOTHING, "Detaching", f"node {facts.node} is being detached since {deleted}{said}", "", attachment)
    proof = prove(facts.standing)
    return Answer(Outcome.RELEASE if proof.out else Outcome.REFUSED, proof.ground, proof.why, proof.do, attachment)


def _without_attachment(facts: Facts) -> Answer:
    if facts.record is None or facts.record.status.attachment_of(facts.node) is None:
        return Answer(Outcome.NOTHING, "NotAttached", f"node {facts.node} does not hold volume {facts.handle}")
    # The driver judges likewise, but not by the fence: its confirmation speaks of nodes that are not attached.
    proof = prove(replace(facts.standing, fenced=False))
    gone = f"node {facts.node} holds volume {facts.handle} in its record and there is no VolumeAttachment: it was removed by hand"
    if proof.out:
        return Answer(Outcome.NOTHING, "NoVolumeAttachment", f"{gone}; {proof.why}, so the driver releases it in minutes")
    return Answer(Outcome.REFUSED, "NoVolumeAttachment", f"{gone}; {proof.why}", f"{proof.do}; the driver releases it then")
