"""Whether a second node is a live migration of the very VM that uses the volume. Pure.

Asked when a node wants a volume that one other node holds, under ``dualAttachPolicy: KubeVirt``. Yes needs all of it: a launcher
pod of the VM with the claim on the holding node, another on the asking node, both owned by the same VirtualMachineInstance, the
second made by a migration of it that is under way, and nobody else with the claim on either node.

Two steps, because the first says what to read for the second: ``candidates`` (from pods) and ``explain`` (with the
VirtualMachineInstance and its migrations). What a label says counts only where an owner reference agrees with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rds_records.kubevirt_objects import Migration, Owner, Pod, Vmi


class Rule(StrEnum):
    """The rule that said no."""

    NO_CLAIM = "NoClaim"
    NO_TARGET_POD = "NoTargetPod"
    NO_SOURCE_POD = "NoSourcePod"
    NOT_SAME_VM = "NotSameVM"
    NO_LIVE_MIGRATION = "NoLiveMigration"
    FOREIGN_POD = "ForeignPod"
    NO_KUBEVIRT = "NoKubeVirt"
    DECENTRALIZED = "DecentralizedMigration"


@dataclass(frozen=True, slots=True)
class LiveMigration:
    """Yes: this migration of this VM, between these two pods."""

    vmi: Vmi
    migration: Migration
    source_pod: Pod
    target_pod: Pod
    source_node: str
    target_node: str


@dataclass(frozen=True, slots=True)
class NotExplained:
    """No, by this rule; the text names what was looked at."""

    rule: Rule
    text: str
    vmi: Owner | None = None
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class EvidenceUnavailable:
    """Nobody could tell: the API server did not answer, or did not allow the question (``forbidden``)."""

    text: str
    forbidden: bool = False
    vmi: Owner | None = None
    namespace: str = ""


Evidence = LiveMigration | NotExplained | EvidenceUnavailable


@dataclass(frozen=True, slots=True)
class Candidates:
    """What stands on the two nodes, from pods alone; it says which VirtualMachineInstance to read next.

    There may be several pods on either side: KubeVirt leaves the target of a failed run where it is.
    """

    namespace: str
    vmi: Owner
    sources: tuple[Pod, ...]
    targets: tuple[Pod, ...]
    source_node: str
    target_node: str


@dataclass(frozen=True, slots=True)
class _User:
    """A pod that mounts the claim, and the launcher pod that it is or stands for."""

    pod: Pod
    launcher: Pod | None

    @property
    def vmi(self) -> Owner | None:
        return self.launcher.vmi if self.launcher else None

    @property
    def name(self) -> str:
        if self.launcher and self.launcher is not self.pod:
            return f"pod {self.pod.name} (of pod {self.launcher.name})"
        return f"pod {self.pod.name}"


def no_kubevirt(source: str, target: str) -> NotExplained:
    """Return the no of a cluster where KubeVirt's kinds are not installed."""
    return NotExplained(
        Rule.NO_KUBEVIRT, f"there is no KubeVirt in this cluster, so nothing migrates from node {source} to node {target}"
    )


def candidates(pods: Iterable[Pod], claim: str, source: str, target: str) -> Candidates | NotExplained:
    """Return the launcher pods of one VM on the two nodes; ``pods`` are those of the claim's namespace on these nodes."""
    known = tuple(pods)
    leaving = [user for user in _users(known, claim, target) if user.pod.deleting or (user.launcher and user.launcher.deleting)]
    on_target = [user for user in _users(known, claim, target) if user not in leaving]
    on_source = _users(known, claim, source)
    wanted = [user for user in on_target if user.vmi and user.launcher and not user.launcher.ended]
    vmi = wanted[0].vmi if wanted else None
    namespace = known[0].namespace if known else ""
    if not wanted:
        return NotExplained(Rule.NO_TARGET_POD, _no_target(claim, target, on_target, leaving), namespace=namespace)
    holding = [user for user in on_source if user.vmi and user.launcher and not user.launcher.ended]
    if not holding:
        return NotExplained(Rule.NO_SOURCE_POD, _no_source(claim, source, on_source), vmi, namespace)
    vmi = next((user.vmi for user in wanted if _uid(user) in {_uid(other) for other in holding}), None)
    if vmi is None:
        text = (
            f"{_names(holding)} on node {source} and {_names(wanted)} on node {target} belong to different VirtualMachineInstances"
        )
        return NotExplained(Rule.NOT_SAME_VM, text, wanted[0].vmi, namespace)
    foreign = [user for user in (*on_source, *on_target) if _uid(user) != vmi.uid]
    if foreign:
        where = " and ".join(dict.fromkeys(user.pod.node for user in foreign))
        text = (
            f"{_names(foreign)} on node {where} uses the claim {claim} too and is no part of the VirtualMachineInstance {vmi.name}"
        )
        return NotExplained(Rule.FOREIGN_POD, text, vmi, namespace)
    return Candidates(namespace, vmi, _launchers(holding, vmi), _launchers(wanted, vmi), source, target)


def foreign_pods(pods: Iterable[Pod], claim: str, vmi_uid: str, nodes: Iterable[str]) -> tuple[str, ...]:
    """Return the pods on these nodes that use the claim and are no part of the VirtualMachineInstance; sorted by name.

    A pod that lands on a node which holds the volume already asks nobody, so it is only ever noticed.
    """
    known = tuple(pods)
    users = [user for node in nodes for user in _users(known, claim, node) if not user.pod.deleting]
    return tuple(sorted(user.pod.name for user in users if _uid(user) != vmi_uid))


def _users(pods: Sequence[Pod], claim: str, node: str) -> list[_User]:
    """Return who mounts the claim on the node, without pods that ended: KubeVirt keeps those of earlier runs around."""
    return [_User(pod, _launcher(pod, pods)) for pod in pods if claim in pod.claims and pod.node == node and not pod.ended]


def _launcher(pod: Pod, pods: Sequence[Pod]) -> Pod | None:
    """Return the pod that runs the VM: this one, or the one that owns it (a hotplugged disk is held by a pod of its own)."""
    if pod.vmi:
        return pod
    owner = pod.owner
    if owner is None or (owner.kind, owner.group) != ("Pod", ""):
        return None
    place = (pod.namespace, pod.node)
    return next((other for other in pods if other.uid == owner.uid and (other.namespace, other.node) == place and other.vmi), None)


def _launchers(users: Sequence[_User], vmi: Owner) -> tuple[Pod, ...]:
    pods = {user.launcher.uid: user.launcher for user in users if user.launcher and _uid(user) == vmi.uid}
    return tuple(pods.values())


def _uid(user: _User) -> str | None:
    return user.vmi.uid if user.vmi else None


def _names(users: Sequence[_User]) -> str:
    return " and ".join(user.name for user in users)


def _no_target(claim: str, node: str, users: Sequence[_User], leaving: Sequence[_User]) -> str:
    if users:
        return f"on node {node} the claim {claim} is used by {_names(users)}, which runs no virtual machine that could be migrating"
    if leaving:
        return f"{_names(leaving)} on node {node} is being deleted: that migration is over"
    return f"no running pod on node {node} uses the claim {claim}"


def _no_source(claim: str, node: str, users: Sequence[_User]) -> str:
    if users:
        who = f"is used by {_names(users)}, which runs no virtual machine that could be migrating"
    else:
        who = "is used by no running pod any more, and the volume is not detached yet"
    return f"on node {node} the claim {claim} {who}; node {node} has to be detached first"


def explain(found: Candidates, vmi: Vmi | None, migrations: Iterable[Migration]) -> LiveMigration | NotExplained:
    """Return the live migration that made one of the target pods, or why there is none.

    ``vmi`` is what was read under the name in ``found`` (None: it is not there), ``migrations`` are those labelled with that name.
    Migrations carry neither owner nor uid of the VM, and two of one VM can be under way: only the uid on the target's pod,
    equal to that of an existing migration, tells which.
    """
    owner, namespace = found.vmi, found.namespace

    def no(rule: Rule, text: str) -> NotExplained:
        return NotExplained(rule, text, owner, namespace)

    name = f"VirtualMachineInstance {namespace}/{owner.name}"
    if vmi is None:
        return no(Rule.NO_LIVE_MIGRATION, f"{name}, to which {_pods(found.targets)} belongs, does not exist any more")
    if vmi.uid != owner.uid:
        return no(Rule.NOT_SAME_VM, f"{_pods(found.targets)} belongs to an earlier {name}, which was stopped and started again")
    mine = {one.uid: one for one in migrations if (one.namespace, one.vmi_name) == (vmi.namespace, vmi.name)}
    made = [(pod, mine[pod.job]) for pod in found.targets if pod.job in mine]
    live = [(pod, migration) for pod, migration in made if migration.live]
    if not live:
        return no(Rule.NO_LIVE_MIGRATION, f"{name}: {_no_migration(found.targets, made)}")
    pod, migration = live[0]
    if migration.decentralized:
        text = f"{name}: migration {migration.name} goes to another cluster or namespace, where the disk is another one"
        return no(Rule.DECENTRALIZED, text)
    # The source's pod may be going already, which changes nothing; one that stays is the better name for it.
    source = min(found.sources, key=lambda one: one.deleting)
    return LiveMigration(vmi, migration, source, pod, found.source_node, found.target_node)


def _no_migration(targets: Sequence[Pod], made: Sequence[tuple[Pod, Migration]]) -> str:
    if made:
        pod, migration = made[0]
        state = "being deleted" if migration.deleting else f"over ({migration.phase})"
        return f"migration {migration.name}, which made pod {pod.name}, is {state}"
    jobs = " and ".join(f"pod {pod.name} was made by migration {pod.job}" for pod in targets if pod.job)
    if jobs:
        return f"{jobs}, which does not exist (any more)"
    return f"no migration made {_pods(targets)}"


def _pods(pods: Sequence[Pod]) -> str:
    return " and ".join(f"pod {pod.name}" for pod in pods)
