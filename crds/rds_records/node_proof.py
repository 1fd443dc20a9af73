"""Whether a node is proven out of a volume: it cannot write any more, or does not want to. Pure.

Kubernetes takes a volume for free whose VolumeAttachment is gone, and so does the driver for one that no record names. So before
either goes: there is no such Node; somebody who has powered it off said so with the out-of-service taint; it is Ready and neither
kubelet nor attach/detach controller nor any pod has the volume there; or the fence keeps it out on the box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rds_records import messages
from rds_records.forced_detach import OUT_OF_SERVICE
from rds_records.kubevirt_objects import Pod
from rds_records.names import DRIVER_NAME, unique_volume_name
from rds_records.node_health import NodeHealth, node_health
from rds_records.record import ObjectReference, Record, Window


@dataclass(frozen=True, slots=True)
class Standing:
    """What was read of one node and one volume; what could not be read has no place here, because it proves nothing."""

    handle: str
    node: str
    node_body: Mapping[str, Any] | None
    """None: the API server says that there is no such Node."""

    users: Sequence[Pod] = ()
    """The pods there that use the volume (``users_on``)."""

    live_node: str | None = None
    """Where the VM runs that uses the volume; None where there is none, or nobody knows."""

    vm: str = ""
    """Its name, where that is known."""

    window: Window | None = None
    """The open migration of the volume."""

    fenced: bool = False
    """Whether the box was seen to keep out every node that is not attached, and that may count."""

    driver: str = DRIVER_NAME


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether the node is out, on what ground (one word for programs), why in words, and what to do where it is not."""

    out: bool
    ground: str
    why: str
    do: str = ""


def users_on(node: str, pods: Iterable[Pod], claims: Iterable[ObjectReference]) -> list[Pod]:
    """Return the pods on the node that use one of these claims and have not ended."""
    wanted = {(claim.namespace, claim.name) for claim in claims}
    return [
        pod for pod in pods if pod.node == node and not pod.ended and any((pod.namespace, name) in wanted for name in pod.claims)
    ]


def vm_of(record: Record | None) -> ObjectReference | None:
    """Return the VM that uses the volume, else that of the open or the last window: the operator may not have said it yet."""
    if record is None:
        return None
    windows = (*record.status.history[-1:], *([record.status.migration] if record.status.migration else []))
    return record.status.vmi or next((window.vmi for window in reversed(windows) if window.vmi), None)


def prove(standing: Standing) -> Proof:
    """Return whether the node is out."""
    health = node_health(standing.node, standing.node_body)
    if health.gone:
        return _of_gone_node(standing, health)
    if health.ready:
        return _of_ready_node(standing, health)
    if _out_of_service(standing.node_body):
        return _out("OutOfService", f"{health.describe()} and is marked out of service: whoever did so has powered it off")
    if standing.fenced:
        return _out("Fenced", f"{health.describe()}; the box lets it write no more once it is detached")
    return Proof(
        False,
        "NodeNotReady",
        f"{health.describe()} and may still write: a node that is only cut off goes on writing to the box, and nothing fences it",
        f"bring it back; {messages.power_off(standing.node, standing.live_node)}; "
        "whatever else still runs on that node ends with it",
    )


def _of_gone_node(standing: Standing, health: NodeHealth) -> Proof:
    if standing.live_node == standing.node:
        return Proof(
            False,
            "VmRunsThere",
            f"{health.describe()}, and KubeVirt still says that the VM runs there",
            "be certain that the machine is off; KubeVirt says so itself within minutes, then try again",
        )
    if standing.users:
        return Proof(
            False,
            "PodsThere",
            f"{health.describe()}, and {_named(standing.users)} still counts as running there",
            "be certain that the machine is off; Kubernetes removes pods of Nodes that are gone within minutes, then try again",
        )
    return _out("NodeGone", health.describe())


def _of_ready_node(standing: Standing, health: NodeHealth) -> Proof:
    if _out_of_service(standing.node_body):
        return Proof(
            False,
            "OutOfServiceButReady",
            f"node {standing.node} is marked out of service and says that it is Ready: it has power and may write",
            "power it off for certain, or take the taint off again",
        )
    busy = []
    if standing.live_node == standing.node:
        busy.append(f"the VM{f' {standing.vm}' if standing.vm else ''} runs there")
    if standing.users:
        busy.append(f"{_named(standing.users)} uses it there")
    if busy:
        return Proof(False, "InUse", f"{health.describe()} and {' and '.join(busy)}", _end_use(standing))
    name = unique_volume_name(standing.handle, standing.driver)
    status = (standing.node_body or {}).get("status") or {}
    mounted = name in (status.get("volumesInUse") or ())
    kept = name in {one.get("name") for one in status.get("volumesAttached") or ()}
    if not mounted and not kept:
        return _out("NotUsed", f"{health.describe()}, no pod there uses the volume, and neither kubelet nor controller has it")
    if standing.fenced:
        return _out("Fenced", f"{health.describe()}, no pod there uses the volume, and the box lets it write no more")
    if mounted:
        return Proof(
            False,
            "Mounted",
            f"{health.describe()} and its kubelet says that the volume is still mounted (volumesInUse)",
            f"see why the kubelet of {standing.node} does not unmount it; once it has, the volume is detached by itself",
        )
    return Proof(
        False,
        "Detaching",
        f"{health.describe()}, its kubelet has unmounted the volume, and Kubernetes still counts it as attached (volumesAttached)",
        "wait: the attach/detach controller detaches it by itself",
    )


def _end_use(standing: Standing) -> str:
    window = standing.window
    runs_here = standing.live_node == standing.node
    if runs_here and window and window.result is None and window.source_node == standing.node:
        return "wait: a live migration is moving the VM away, and `kubectl rds migrations -w` shows how it goes"
    if not runs_here and window and window.migration_uid and standing.node in {window.source_node, window.target_node}:
        return messages.way_out(window)
    if runs_here or any(pod.vmi for pod in standing.users):
        return "move the VM away with a live migration; its disk is detached by itself then"
    return "stop what made that pod, its Deployment or Job; the disk is detached by itself then"


def _out(ground: str, why: str) -> Proof:
    return Proof(True, ground, why)


def _named(pods: Sequence[Pod]) -> str:
    return " and ".join(f"pod {pod.namespace}/{pod.name}" for pod in pods)


def _out_of_service(node: Mapping[str, Any] | None) -> bool:
    taints = ((node or {}).get("spec") or {}).get("taints") or ()
    return any(taint.get("key") == OUT_OF_SERVICE for taint in taints)
