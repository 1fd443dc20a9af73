"""Whether a volume may be released from a node: by deleting its VolumeAttachment, once the node is proven out. Pure.

Kubernetes takes a volume whose VolumeAttachment is gone for free. So the node must not be able to write any more, or not want to:
there is no such Node; somebody who has powered it off said so with the out-of-service taint; it is Ready and neither kubelet nor
attach/detach controller nor any pod has the volume there; or the fence keeps it out on the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rds_kubectl.world import Object, Trouble
from rds_records import fencing, messages
from rds_records.kubevirt_objects import FINAL_PHASES, Pod, Vmi
from rds_records.names import DRIVER_NAME, unique_volume_name
from rds_records.node_health import NodeHealth, node_health
from rds_records.record import ObjectReference, Record

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
"""Kubernetes documentation, "Non-graceful node shutdown": only on a node that is powered off."""


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
        claims = {(claim.namespace, claim.name) for claim in self.claims}
        return [
            pod
            for pod in self.pods
            if pod.node == self.node and not pod.ended and any((pod.namespace, name) in claims for name in pod.claims)
        ]

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
    return _proof(facts, node_health(facts.node, facts.node_body))


def _without_attachment(facts: Facts) -> Answer:
    if facts.record is None or facts.record.status.attachment_of(facts.node) is None:
        return Answer(Outcome.NOTHING, "NotAttached", f"node {facts.node} does not hold volume {facts.handle}")
    return Answer(
        Outcome.REFUSED,
        "NoVolumeAttachment",
        f"node {facts.node} holds volume {facts.handle} in its record and there is no VolumeAttachment: it was removed by hand",
        f"leave it: it is put right once what uses the claim runs on {facts.node} again; where that node is gone for good nothing "
        "puts it right yet (docs/limitations.md)",
    )


def _proof(facts: Facts, health: NodeHealth) -> Answer:
    if health.gone:
        return _of_gone_node(facts, health)
    if health.ready:
        return _of_ready_node(facts, health)
    if _out_of_service(facts.node_body):
        return _yes(facts, "OutOfService", f"{health.describe()} and is marked out of service: whoever did so has powered it off")
    if facts.fenced:
        return _yes(facts, "Fenced", f"{health.describe()}; the box lets it write no more once it is detached")
    return _no(
        facts,
        "NodeNotReady",
        f"{health.describe()} and may still write: a node that is only cut off goes on writing to the box, and nothing fences it",
        f"bring it back; {messages.power_off(facts.node, facts.live_node)}; whatever else still runs on that node ends with it",
    )


def _of_gone_node(facts: Facts, health: NodeHealth) -> Answer:
    if facts.live_node == facts.node:
        return _no(
            facts,
            "VmRunsThere",
            f"{health.describe()}, and KubeVirt still says that the VM runs there",
            "be certain that the machine is off; KubeVirt says so itself within minutes, then try again",
        )
    if facts.users:
        return _no(
            facts,
            "PodsThere",
            f"{health.describe()}, and {_named(facts.users)} still counts as running there",
            "be certain that the machine is off; Kubernetes removes pods of Nodes that are gone within minutes, then try again",
        )
    return _yes(facts, "NodeGone", health.describe())


def _of_ready_node(facts: Facts, health: NodeHealth) -> Answer:
    if _out_of_service(facts.node_body):
        return _no(
            facts,
            "OutOfServiceButReady",
            f"node {facts.node} is marked out of service and says that it is Ready: it has power and may write",
            "power it off for certain, or take the taint off again",
        )
    busy = []
    if facts.live_node == facts.node:
        busy.append(f"the VM{f' {facts.vmi.name}' if facts.vmi else ''} runs there")
    if facts.users:
        busy.append(f"{_named(facts.users)} uses it there")
    if busy:
        return _no(facts, "InUse", f"{health.describe()} and {' and '.join(busy)}", _end_use(facts))
    name = unique_volume_name(facts.handle, facts.driver)
    status = (facts.node_body or {}).get("status") or {}
    mounted = name in (status.get("volumesInUse") or ())
    kept = name in {one.get("name") for one in status.get("volumesAttached") or ()}
    if not mounted and not kept:
        return _yes(
            facts, "NotUsed", f"{health.describe()}, no pod there uses the volume, and neither kubelet nor controller has it"
        )
    if facts.fenced:
        return _yes(facts, "Fenced", f"{health.describe()}, no pod there uses the volume, and the box lets it write no more")
    if mounted:
        return _no(
            facts,
            "Mounted",
            f"{health.describe()} and its kubelet says that the volume is still mounted (volumesInUse)",
            f"see why the kubelet of {facts.node} does not unmount it; once it has, the volume is detached by itself",
        )
    return _no(
        facts,
        "Detaching",
        f"{health.describe()}, its kubelet has unmounted the volume, and Kubernetes still counts it as attached (volumesAttached)",
        "wait: the attach/detach controller detaches it by itself",
    )


def _end_use(facts: Facts) -> str:
    window = facts.record.status.migration if facts.record else None
    runs_here = facts.live_node == facts.node
    if runs_here and window and window.result is None and window.source_node == facts.node:
        return "wait: a live migration is moving the VM away, and `kubectl rds migrations -w` shows how it goes"
    if not runs_here and window and window.migration_uid and facts.node in {window.source_node, window.target_node}:
        return messages.way_out(window)
    if runs_here or any(pod.vmi for pod in facts.users):
        return "move the VM away with a live migration; its disk is detached by itself then"
    return "stop what made that pod, its Deployment or Job; the disk is detached by itself then"


def _yes(facts: Facts, ground: str, why: str) -> Answer:
    return Answer(Outcome.RELEASE, ground, why, "", facts.attachment)


def _no(facts: Facts, ground: str, why: str, do: str) -> Answer:
    return Answer(Outcome.REFUSED, ground, why, do, facts.attachment)


def _named(pods: Sequence[Pod]) -> str:
    return " and ".join(f"pod {pod.namespace}/{pod.name}" for pod in pods)


def _out_of_service(node: Object | None) -> bool:
    taints = ((node or {}).get("spec") or {}).get("taints") or ()
    return any(taint.get("key") == OUT_OF_SERVICE for taint in taints)
