"""KubeVirt, played: virtual machines and their live migrations, write by write as virt-controller and virt-handler write them.

The objects and the order of the writes are those measured with KubeVirt's virt-controller (v1.9). Pods, claims and attachments
are real: the attach/detach controller and csi-attacher of the ring attach and detach; what a kubelet says of volumes in use is
said here.

A run is played in steps. ``run.until("Running")`` goes on until that step is done; ``run.cancel()``, ``run.fail(reason)`` and the
like turn the run away from its success, and what then follows is played by further ``until``.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Self

from tests.ring.api import Api, Object, path_of
from tests.ring.cluster import Cluster
from tests.ring.definitions import install_definitions, let_go, remove_definitions
from tests.ring.kubelet import HANDS_OFF
from tests.ring.waiting import eventually

VMI = "VirtualMachineInstance"
VMIM = "VirtualMachineInstanceMigration"
KINDS = Path(__file__).with_name("kubevirt_crds.yaml")

VMI_FINALIZER = "foregroundDeleteVirtualMachine"
VMIM_FINALIZER = "kubevirt.io/migrationJobFinalize"
JOB_LABEL = "kubevirt.io/migrationJobUID"

DEFAULTS: Mapping[str, Any] = {
    "allowAutoConverge": False,
    "allowPostCopy": False,
    "allowWorkloadDisruption": False,
    "bandwidthPerMigration": "0",
    "completionTimeoutPerGiB": 150,
    "parallelMigrationsPerCluster": 5,
    "parallelOutboundMigrationsPerNode": 2,
    "progressTimeout": 150,
    "unsafeMigrationOverride": False,
}
"""KubeVirt's migration configuration where nobody set anything."""


class Step(StrEnum):
    """What has just been done in a run; phases of the VirtualMachineInstanceMigration have its names."""

    CREATED = "created"
    PENDING = "Pending"
    TARGET_POD = "target pod"
    SCHEDULING = "Scheduling"
    BOUND = "bound"
    ATTACHED = "attached"
    POD_RUNNING = "pod running"
    SCHEDULED = "Scheduled"
    HAND_OFF = "hand-off"
    PREPARING_TARGET = "PreparingTarget"
    TARGET_READY = "TargetReady"
    STARTED = "started"
    RUNNING = "Running"
    MOVED = "moved"
    """The end's time is written and the VM's node is the target; nothing says completed yet."""
    COMPLETED = "completed"
    SUCCEEDED = "Succeeded"
    ABORT_REQUESTED = "abort requested"
    ABORTED = "aborted"
    MIGRATION_GONE = "migration gone"
    FAILED = "Failed"
    REPORTED = "reported"
    """The migration carries the full copy of the state, in a write of its own after the one that says Succeeded or Failed."""
    POD_ENDED = "pod ended"
    """The launcher pod of the side that leaves has ended; its node still says that the volumes are in use."""
    UNMOUNTED = "unmounted"
    LEFT = "left"
    """Detached from the side that leaves."""


Played = tuple[Step, Callable[[], bool]]


@dataclass(frozen=True)
class Disk:
    """A claim of a VM and the volume behind it."""

    claim: str
    handle: str
    hotplugged: bool = False


@dataclass(frozen=True)
class Launcher:
    """A launcher pod and the pod that holds hotplugged disks for it, if there are such."""

    name: str
    uid: str
    node: str
    attachment_pods: tuple[tuple[str, str], ...] = ()
    """Names and uids."""


@dataclass(eq=False)
class Vm:
    """A running VirtualMachineInstance; its ``launcher`` and ``node`` move with it."""

    name: str
    uid: str
    launcher: Launcher
    disks: list[Disk]
    pods: list[Launcher] = field(default_factory=list)
    """Launcher pods that may still have its disks mounted."""

    @property
    def node(self) -> str:
        return self.launcher.node

    @property
    def handles(self) -> list[str]:
        return [disk.handle for disk in self.disks]


def install_kinds(api: Api) -> None:
    """Install the two kinds and wait until they are served."""
    install_definitions(api, KINDS)


def remove_kinds(api: Api) -> None:
    """Remove the two kinds, and every object of them, as if KubeVirt had never been installed."""
    remove_definitions(api, KINDS)


class KubeVirt:
    """virt-controller and the virt-handlers of one test's namespace; the kinds must be installed."""

    pod: Mapping[str, Any] = {}
    """What the spec of its pods has beyond a virt-launcher's, or instead of it."""

    container: Mapping[str, Any] = {}
    """The same for their containers."""

    patience = 30.0
    """Seconds that a step of a VM's start may take."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.namespace = cluster.namespace
        self.lost: set[str] = set()

    # Virtual machines

    def run(
        self,
        name: str,
        *,
        claims: Sequence[str],
        node: str,
        memory: str = "2Gi",
        labels: Mapping[str, str] | None = None,
    ) -> Vm:
        """Start a VM with these claims as disks on a node; on return it runs and its disks are attached."""
        disks = [Disk(claim, self.cluster.handle_of(claim)) for claim in claims]
        made = self.api.create(
            {
                "apiVersion": "kubevirt.io/v1",
                "kind": VMI,
                "metadata": {
                    "name": name,
                    "namespace": self.namespace,
                    "labels": {"kubevirt.io/vm": name, **(labels or {})},
                    "finalizers": [VMI_FINALIZER],
                },
                "spec": {
                    "domain": {"memory": {"guest": memory}, "devices": {}},
                    "evictionStrategy": "LiveMigrate",
                    "volumes": [_volume(disk) for disk in disks],
                },
                "status": {"phase": "Pending"},
            }
        )
        vm = Vm(name, made["metadata"]["uid"], Launcher("", "", ""), disks)
        vm.launcher = self._make_launcher(vm)
        self.write_vmi(vm, {"phase": "Scheduling", "activePods": {vm.launcher.uid: ""}})
        vm.launcher = self._bind_launcher(vm, vm.launcher, node)
        vm.pods.append(vm.launcher)
        eventually(f"the disks of {name} are attached to {node}", lambda: self.attached(vm.handles, node), timeout=self.patience)
        eventually(f"{vm.launcher.name} runs", lambda: self._set_phase(vm.launcher, "Running"), timeout=self.patience)
        self.write_vmi(vm, {"phase": "Scheduled", "nodeName": node, "activePods": {vm.launcher.uid: node}})
        self._move_label(vm, node)
        migratable = {"type": "LiveMigratable", "status": "True", "reason": "", "message": ""}
        self.write_vmi(vm, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}, migratable]})
        return vm

    def hotplug(self, vm: Vm, claim: str) -> None:
        """Plug a claim into a running VM: a pod of its own, owned by the launcher pod, holds it."""
        disk = Disk(claim, self.cluster.handle_of(claim), hotplugged=True)
        vm.disks.append(disk)
        volumes = [*self.vmi(vm)["spec"]["volumes"], _volume(disk)]
        self.api.patch(VMI, vm.name, {"spec": {"volumes": volumes}}, self.namespace)
        vm.pods.remove(vm.launcher)
        vm.launcher = self._attach_hotplugged(vm, vm.launcher, [disk])
        vm.pods.append(vm.launcher)
        eventually(f"{claim} is attached to {vm.node}", lambda: self.attached([disk.handle], vm.node), timeout=self.patience)
        eventually(
            f"the pods with the hotplugged disks of {vm.name} run",
            lambda: self._set_attachment_pods(vm.launcher, "Running"),
            timeout=self.patience,
        )

    def stop(self, vm: Vm, *, unmount: bool = True) -> None:
        """Stop a VM: its pods end and go, then the instance; without ``unmount`` the node still says that the disks are in use."""
        self.api.delete(VMI, vm.name, self.namespace)
        eventually(f"{vm.launcher.name} ends", lambda: self._set_phase(vm.launcher, "Succeeded"), timeout=self.patience)
        self.write_vmi(vm, {"phase": "Succeeded"})
        for launcher in vm.pods:
            self._delete_pods(launcher)
        if unmount:
            for launcher in list(vm.pods):
                eventually(f"{launcher.node} has let go of the disks", partial(self.release, vm, launcher), timeout=self.patience)
        self._drop_finalizers(VMI, vm.name)

    def vmi(self, vm: Vm) -> Object:
        """Return the VirtualMachineInstance."""
        return self.api.get(VMI, vm.name, self.namespace)

    # Migrations

    def migrate(
        self,
        vm: Vm,
        *,
        to: str,
        stem: str = "kubevirt-migrate-vm",
        configuration: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
        policy: str = "",
    ) -> Run:
        """Make a migration; no step is done but its creation. ``configuration`` differs from KubeVirt's defaults."""
        name = f"{stem}-{secrets.token_hex(3)}"
        made = self.api.create(
            {
                "apiVersion": "kubevirt.io/v1",
                "kind": VMIM,
                "metadata": {
                    "name": name,
                    "namespace": self.namespace,
                    "labels": {"kubevirt.io/vmi-name": vm.name},
                    "finalizers": [VMIM_FINALIZER],
                },
                "spec": {"vmiName": vm.name, **(spec or {})},
            }
        )
        return Run(self, vm, name, made["metadata"]["uid"], to, {**DEFAULTS, **(configuration or {})}, policy)

    def evacuate(self, moves: Mapping[Vm, str], *, parallel: int = 5, outbound: int = 2) -> Evacuation:
        """Move VMs to these nodes as the evacuation controller does, so many at a time, so many of one source node."""
        return Evacuation(self, moves, parallel, outbound)

    # Nodes

    def lose(self, node: str) -> None:
        """Let a node be gone, as after a power cut: not ready, and nothing there ends, unmounts or answers any more."""
        self.lost.add(node)
        self.cluster.kubelet.silent.add(node)
        condition = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        self.api.patch("Node", node, {"status": {"conditions": [condition]}}, None, "status")

    def take_out(self, node: str) -> None:
        """Taint a lost node as out of service: its pods are removed, the attach/detach controller detaches without asking it."""
        taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
        self.api.patch("Node", node, {"spec": {"taints": [taint]}})
        for pod in self.api.list("Pod", self.namespace, fieldSelector=f"spec.nodeName={node}"):
            self.api.delete("Pod", pod["metadata"]["name"], self.namespace, grace=0)

    # What the parts of a run share

    def attached(self, handles: Iterable[str], node: str) -> bool:
        """Return whether all these volumes are attached to a node."""
        found = [self.cluster.attachment(handle, node) or {} for handle in handles]
        return all(body.get("status", {}).get("attached") for body in found)

    def detached(self, handles: Iterable[str], node: str) -> bool:
        """Return whether none of these volumes has a VolumeAttachment for a node."""
        return all(self.cluster.attachment(handle, node) is None for handle in handles)

    def release(self, vm: Vm, launcher: Launcher) -> bool:
        """Unmount a VM's disks for a launcher pod that has ended; return whether its node says that they are not in use.

        What another pod of the VM uses on that node stays in use.
        """
        vm.pods[:] = [other for other in vm.pods if other.uid != launcher.uid]
        if launcher.node and not any(other.node == launcher.node for other in vm.pods):
            return self._unmounted(vm.handles, launcher.node)
        return True

    def hand_over(self, source: Launcher, target: Launcher) -> bool:
        """Let the machine itself go over from one pod to the other; return whether it has. Here there is no machine."""
        return True

    def write_vmi(self, vm: Vm, status: Mapping[str, Any]) -> None:
        """Write into the instance's status; VirtualMachineInstance has no status subresource."""
        self.api.patch(VMI, vm.name, {"status": status}, self.namespace)

    def write_migration_state(self, vm: Vm, state: Mapping[str, Any]) -> None:
        """Write the whole of ``status.migrationState``."""
        known = self.vmi(vm)["status"].get("migrationState", {})
        self.write_vmi(vm, {"migrationState": {**dict.fromkeys(known), **state}})

    def clean_up(self) -> None:
        """Let go of everything here, so that the namespace can go."""
        for kind in (VMIM, VMI):
            for body in self.api.list(kind, self.namespace):
                let_go(self.api, body)

    def _move_label(self, vm: Vm, node: str) -> None:
        self.api.patch(VMI, vm.name, {"metadata": {"labels": {"kubevirt.io/nodeName": node}}}, self.namespace)

    def _drop_finalizers(self, kind: str, name: str) -> None:
        self.api.patch(kind, name, {"metadata": {"finalizers": None}}, self.namespace)

    # Pods

    def _make_launcher(self, vm: Vm, run: Run | None = None) -> Launcher:
        labels = {
            **self.vmi(vm)["metadata"]["labels"],
            "kubevirt.io": "virt-launcher",
            "kubevirt.io/created-by": vm.uid,
            "vm.kubevirt.io/name": vm.name,
            "vmi.kubevirt.io/id": vm.name,
        }
        annotations = {"kubevirt.io/domain": vm.name}
        if run is not None:
            labels[JOB_LABEL] = run.uid
            annotations["kubevirt.io/migrationJobName"] = run.name
        owner = {"apiVersion": "kubevirt.io/v1", "kind": VMI, "name": vm.name, "uid": vm.uid}
        disks = [disk for disk in vm.disks if not disk.hotplugged]
        pod = self._make_pod(f"virt-launcher-{vm.name}", "compute", disks, labels, annotations, owner)
        return Launcher(pod["metadata"]["name"], pod["metadata"]["uid"], "")

    def _bind_launcher(self, vm: Vm, launcher: Launcher, node: str) -> Launcher:
        """Bind a launcher pod; from then on its node says that its disks are in use."""
        self._bind(launcher.name, node)
        self._mounted([disk.handle for disk in vm.disks if not disk.hotplugged], node)
        return Launcher(launcher.name, launcher.uid, node, launcher.attachment_pods)

    def _attach_hotplugged(self, vm: Vm, launcher: Launcher, disks: Sequence[Disk], run: Run | None = None) -> Launcher:
        """Make and bind the pod that holds hotplugged disks for a launcher pod."""
        labels = {"kubevirt.io": "hotplug-disk", **({JOB_LABEL: run.uid} if run else {})}
        owner = {"apiVersion": "v1", "kind": "Pod", "name": launcher.name, "uid": launcher.uid}
        pod = self._make_pod("hp-volume", "hotplug-disk", disks, labels, {}, owner)
        self._bind(pod["metadata"]["name"], launcher.node)
        self._mounted([disk.handle for disk in disks], launcher.node)
        made = (pod["metadata"]["name"], pod["metadata"]["uid"])
        return Launcher(launcher.name, launcher.uid, launcher.node, (*launcher.attachment_pods, made))

    def _make_pod(
        self,
        stem: str,
        container: str,
        disks: Sequence[Disk],
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
        owner: Mapping[str, str],
    ) -> Object:
        names = [f"disk-{number}" for number in range(len(disks))]
        devices = [{"name": name, "devicePath": f"/dev/{name}"} for name in names]
        volumes = [
            {"name": name, "persistentVolumeClaim": {"claimName": disk.claim}} for name, disk in zip(names, disks, strict=True)
        ]
        return self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{stem}-{secrets.token_hex(3)}",
                    "namespace": self.namespace,
                    "labels": dict(labels),
                    "annotations": {HANDS_OFF: "kubevirt", **annotations},
                    "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
                },
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 60,
                    "containers": [{"name": container, "image": "virt-launcher", "volumeDevices": devices, **self.container}],
                    **self.pod,
                    "volumes": [*volumes, *self.pod.get("volumes", [])],
                },
            }
        )

    def _bind(self, pod: str, node: str) -> None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        self.api.request("POST", path_of("Pod", pod, self.namespace, "binding"), binding)

    def _set_phase(self, launcher: Launcher, phase: str, *, ready: bool = True) -> bool:
        """Let a launcher pod and its attachment pods come to a phase; return whether they have."""
        return self._set_pod(launcher, phase, ready=ready) and self._set_attachment_pods(launcher, phase)

    def _set_attachment_pods(self, launcher: Launcher, phase: str) -> bool:
        if phase == "Running":
            return all(self._set_pod(Launcher(name, uid, launcher.node), phase) for name, uid in launcher.attachment_pods)
        for name, _ in launcher.attachment_pods:
            self._delete_pod(name)
        return True

    # What kubelets do, played

    def _mounted(self, handles: Iterable[str], node: str) -> None:
        """Let a node say that volumes are in use there, as its kubelet says once a pod is bound."""
        for handle in handles:
            self.cluster.hold_detach(node, handle)

    def _unmounted(self, handles: Iterable[str], node: str) -> bool:
        """Let a node say that volumes are in use no more; return whether it does."""
        for handle in handles:
            self.cluster.release_detach(node, handle)
        return True

    def _set_pod(self, launcher: Launcher, phase: str, *, ready: bool = True) -> bool:
        """Let one pod come to a phase; return whether it has."""
        self._write_pod(launcher.name, phase, ready=ready)
        return True

    def _delete_pod(self, name: str) -> None:
        self.api.delete("Pod", name, self.namespace, grace=0)

    def _write_pod(self, name: str, phase: str, *, ready: bool = True) -> None:
        value = "True" if phase == "Running" and ready else "False"
        conditions = [{"type": "PodScheduled", "status": "True"}]
        conditions += [{"type": kind, "status": value} for kind in ("ContainersReady", "Ready")]
        self.api.patch("Pod", name, {"status": {"phase": phase, "conditions": conditions}}, self.namespace, "status")

    def _delete_pods(self, launcher: Launcher) -> None:
        for name in (launcher.name, *(name for name, _ in launcher.attachment_pods)):
            self._delete_pod(name)


class Run:
    """One live migration, played in steps."""

    def __init__(
        self, kubevirt: KubeVirt, vm: Vm, name: str, uid: str, to: str, configuration: Mapping[str, Any], policy: str
    ) -> None:
        self.kubevirt = kubevirt
        self.api = kubevirt.api
        self.vm = vm
        self.name = name
        self.uid = uid
        self.to = to
        self.configuration = dict(configuration)
        self.policy = policy
        self.source = vm.launcher
        self.target = Launcher("", "", "")
        self.done: list[Step] = [Step.CREATED]
        self.state: dict[str, Any] = {}
        """What this run has written as the VM's migration state."""
        self._phases: list[Object] = []
        self._plan = deque(self._success())

    def __repr__(self) -> str:
        return f"<{self.name} of {self.vm.name}: {', '.join(self.done)}>"

    @property
    def next(self) -> Step | None:
        """The step that is not done yet, if there is one."""
        return self._plan[0][0] if self._plan else None

    def advance(self) -> bool:
        """Try the next step; return whether it is done. One that waits for the cluster may be tried again."""
        step, play = self._plan[0]
        if not play():
            return False
        self._plan.popleft()
        self.done.append(step)
        return True

    def until(self, step: str, *, timeout: float = 60.0) -> Self:
        """Go on until a step is done; one that was done long ago is fine."""
        wanted = Step(step)
        while wanted not in self.done:
            assert any(wanted is planned for planned, _ in self._plan), f"{self} never comes to {wanted}"
            eventually(f"{self}: {self.next}", self.advance, timeout=timeout)
        return self

    def complete(self) -> Self:
        """Go on until the run is over and the side that leaves is detached."""
        return self.until(Step.LEFT)

    # Turns

    def cancel(self) -> Self:
        """Delete the migration as a user does, and do what KubeVirt does about it at that moment.

        Before the hand-off the object is gone at once; between the hand-off and Running nothing happens until Running; in Running
        the run is aborted. What follows (``aborted``, ``migration gone``, ``left``) is then to be played.
        """
        self.ask_to_cancel()
        if Step.HAND_OFF not in self.done:
            return self._turn([(Step.MIGRATION_GONE, self._drop_migration), *self._leaving(self.target_side, "Failed")]).until(
                Step.MIGRATION_GONE
            )
        rest = [
            played for played in self._plan if played[0] in {Step.PREPARING_TARGET, Step.TARGET_READY, Step.STARTED, Step.RUNNING}
        ]
        return self._turn(
            [
                *rest,
                (Step.ABORT_REQUESTED, lambda: self._write_state(abortRequested=True)),
                (Step.ABORTED, self._abort),
                (Step.MIGRATION_GONE, self._drop_migration),
                *self._leaving(self.target_side, "Failed"),
            ]
        )

    def ask_to_cancel(self) -> Self:
        """Delete the migration while virt-controller is down: it stays, with a deletion timestamp."""
        self.api.delete(VMIM, self.name, self.kubevirt.namespace)
        return self

    def abort(self) -> Self:
        """Cancel in the middle of the copying, until the migration is gone."""
        return self.until(Step.RUNNING).cancel().until(Step.MIGRATION_GONE)

    def fail(self, reason: str, *, target_stays: bool = False) -> Self:
        """Let the run fail now, until the migration says so.

        Before the hand-off only its phase tells. ``target_stays``: nothing ends on the target, as where its virt-handler is dead.
        """
        handed_off = Step.HAND_OFF in self.done
        failing: list[Played] = []
        if handed_off:
            failing.append((Step.COMPLETED, lambda: self._fail_state(reason)))
        failing.append((Step.FAILED, lambda: self._write_phase(Step.FAILED)))
        if handed_off:
            failing.append((Step.REPORTED, self._report))
        leaving = [] if target_stays else self._leaving(self.target_side, "Failed")
        return self._turn([*failing, *leaving]).until(Step.REPORTED if handed_off else Step.FAILED)

    def unschedulable(self) -> Self:
        """Let the target pod find no node until KubeVirt gives up: the migration fails, the pod is deleted."""
        assert Step.BOUND not in self.done, f"{self} is bound"
        self.until(Step.TARGET_POD)
        conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
        self.api.patch("Pod", self.target.name, {"status": {"conditions": conditions}}, self.kubevirt.namespace, "status")
        if Step.SCHEDULING not in self.done:
            self._write_phase(Step.SCHEDULING)
            self.done.append(Step.SCHEDULING)
        return self.fail("Migration is failed because the target pod is unschedulable")

    def not_ready(self) -> Self:
        """Let the target pod run with containers that are not ready; KubeVirt has no limit for that."""
        self.until(Step.ATTACHED)
        self.kubevirt._set_phase(self.target, "Running", ready=False)
        return self

    def post_copy(self) -> Self:
        """Go over to post-copy in the middle of the copying: there is no way back and no limit."""
        self.until(Step.RUNNING)
        self._write_state(mode="PostCopy")
        return self

    def lose_source(self) -> Self:
        """Lose the source's node while copying: KubeVirt calls the VM failed, and the migration with it."""
        self.kubevirt.lose(self.source.node)
        self.kubevirt.write_vmi(self.vm, {"phase": "Failed", "reason": "NodeUnresponsive"})
        return self._turn(
            [(Step.FAILED, lambda: self._write_phase(Step.FAILED)), *self._leaving(self.target_side, "Failed")]
        ).until(Step.FAILED)

    def lose_target(self) -> Self:
        """Lose the target's node: the source's virt-handler calls the run failed, and nothing on the target ends."""
        self.kubevirt.lose(self.to)
        return self.fail("Live migration failed error encountered during MigrateToURI3 libvirt api call: connection lost")

    # The steps

    def _success(self) -> list[Played]:
        hotplugged = any(disk.hotplugged for disk in self.vm.disks)
        scheduling: Played = (Step.SCHEDULING, lambda: self._write_phase(Step.SCHEDULING))
        attaching: list[Played] = [
            (Step.BOUND, self._bind_target),
            (Step.ATTACHED, lambda: self.kubevirt.attached(self.vm.handles, self.to)),
        ]
        return [
            (Step.PENDING, lambda: self._write_phase(Step.PENDING)),
            (Step.TARGET_POD, self._make_target),
            # With hotplugged disks everything is attached while the migration is still pending.
            *([*attaching, scheduling] if hotplugged else [scheduling, *attaching]),
            (Step.POD_RUNNING, self._run_target),
            (Step.SCHEDULED, lambda: self._write_phase(Step.SCHEDULED)),
            (Step.HAND_OFF, self._hand_off),
            (Step.PREPARING_TARGET, lambda: self._write_phase(Step.PREPARING_TARGET)),
            (Step.TARGET_READY, lambda: self._write_phase(Step.TARGET_READY)),
            (Step.STARTED, lambda: self._write_state(startTimestamp=_now(), mode="PreCopy")),
            (Step.RUNNING, lambda: self._write_phase(Step.RUNNING)),
            (Step.MOVED, self._move),
            (Step.COMPLETED, lambda: self._write_state(completed=True)),
            (Step.SUCCEEDED, lambda: self._write_phase(Step.SUCCEEDED)),
            (Step.REPORTED, self._report),
            *self._leaving(lambda: self.source, "Succeeded"),
        ]

    def target_side(self) -> Launcher:
        return self.target

    def _turn(self, plan: Iterable[Played]) -> Self:
        self._plan = deque(plan)
        return self

    def _leaving(self, who: Callable[[], Launcher], phase: str) -> list[Played]:
        return [
            (Step.POD_ENDED, lambda: self._end(who(), phase)),
            (Step.UNMOUNTED, lambda: self._unmount(who())),
            (Step.LEFT, lambda: not who().node or self.kubevirt.detached(self.vm.handles, who().node)),
        ]

    def _write_phase(self, phase: Step) -> bool:
        """Write the phase; the source pod is all that the migration's own state says until it is over."""
        self._phases.append({"phase": phase, "phaseTransitionTimestamp": _now()})
        status: Object = {"phase": phase, "phaseTransitionTimestamps": self._phases}
        if phase is Step.PENDING:
            status["migrationState"] = {"sourcePod": self.source.name}
        self.api.patch(VMIM, self.name, {"status": status}, self.kubevirt.namespace, "status")
        return True

    def _write_state(self, **changed: Any) -> bool:
        self.state |= changed
        self.kubevirt.write_migration_state(self.vm, self.state)
        return True

    def _make_target(self) -> bool:
        self.target = self.kubevirt._make_launcher(self.vm, self)
        return True

    def _bind_target(self) -> bool:
        self.target = self.kubevirt._bind_launcher(self.vm, self.target, self.to)
        disks = [disk for disk in self.vm.disks if disk.hotplugged]
        if disks:
            self.target = self.kubevirt._attach_hotplugged(self.vm, self.target, disks, self)
        self.vm.pods.append(self.target)
        return True

    def _run_target(self) -> bool:
        return self.kubevirt._set_phase(self.target, "Running")

    def _hand_off(self) -> bool:
        # The first write that names this run; what was there of an earlier one goes.
        self.state = {
            "migrationUid": self.uid,
            "sourceNode": self.source.node,
            "sourcePod": self.source.name,
            "targetNode": self.to,
            "targetPod": self.target.name,
            "migrationConfiguration": self.configuration,
        }
        if self.policy:
            self.state["migrationPolicyName"] = self.policy
        if self.target.attachment_pods:
            self.state["targetAttachmentPodUID"] = self.target.attachment_pods[0][1]
        self.kubevirt.write_vmi(self.vm, {"activePods": {self.target.uid: self.to}})
        return self._write_state()

    def _move(self) -> bool:
        if not self.kubevirt.hand_over(self.source, self.target):
            return False
        self.state["endTimestamp"] = _now()
        known = self.kubevirt.vmi(self.vm)["status"].get("migrationState", {})
        state = {**dict.fromkeys(known), **self.state}
        self.api.patch(
            VMI,
            self.vm.name,
            {
                "metadata": {"labels": {"kubevirt.io/nodeName": self.to}},
                "status": {"nodeName": self.to, "migrationState": state},
            },
            self.kubevirt.namespace,
        )
        self.vm.launcher = self.target
        return True

    def _report(self) -> bool:
        self.api.patch(VMIM, self.name, {"status": {"migrationState": self.state}}, self.kubevirt.namespace, "status")
        return True

    def _fail_state(self, reason: str) -> bool:
        # One that never started has its start at its end.
        end = _now()
        return self._write_state(
            **{"startTimestamp": end, **self.state, "endTimestamp": end}, completed=True, failed=True, failureReason=reason
        )

    def _abort(self) -> bool:
        return self._write_state(
            abortStatus="Succeeded",
            completed=True,
            failed=True,
            failureReason="Live migration has been aborted",
            endTimestamp=_now(),
        )

    def _drop_migration(self) -> bool:
        self.kubevirt._drop_finalizers(VMIM, self.name)
        return True

    def _end(self, launcher: Launcher, phase: str) -> bool:
        """End a launcher pod that ran: it stays, dead. One that never ran is deleted."""
        if launcher.node in self.kubevirt.lost:
            return self._forced_off(launcher)
        if not launcher.name:
            return True
        if launcher is self.target and Step.POD_RUNNING not in self.done:
            self.kubevirt._delete_pods(launcher)
            return True
        return self.kubevirt._set_phase(launcher, phase)

    def _unmount(self, launcher: Launcher) -> bool:
        if launcher.node in self.kubevirt.lost:
            return self._forced_off(launcher)
        return self.kubevirt.release(self.vm, launcher)

    def _forced_off(self, launcher: Launcher) -> bool:
        return self.kubevirt.detached(self.vm.handles, launcher.node)


class Evacuation:
    """Migrations of several VMs at once, as many as KubeVirt's limits let go."""

    def __init__(self, kubevirt: KubeVirt, moves: Mapping[Vm, str], parallel: int, outbound: int) -> None:
        self.kubevirt = kubevirt
        self.parallel = parallel
        self.outbound = outbound
        self.runs: list[Run] = []
        self.most_at_once = 0
        self._waiting = deque(moves.items())

    @property
    def live(self) -> list[Run]:
        """Runs whose migration is not over; what only has to leave its source counts no more."""
        return [run for run in self.runs if Step.SUCCEEDED not in run.done]

    @property
    def left(self) -> int:
        """How many runs are over and have left their source."""
        return sum(Step.LEFT in run.done for run in self.runs)

    def step(self) -> bool:
        """Begin what may begin, and try one step of every run; return whether all are over."""
        for vm, to in list(self._waiting):
            outbound = sum(run.source.node == vm.node for run in self.live)
            if len(self.live) < self.parallel and outbound < self.outbound:
                self._waiting.remove((vm, to))
                self.runs.append(self.kubevirt.migrate(vm, to=to, stem="kubevirt-evacuation"))
        self.most_at_once = max(self.most_at_once, len(self.live))
        for run in self.runs:
            if run.next is not None:
                run.advance()
        return not self._waiting and all(run.next is None for run in self.runs)

    def until_left(self, count: int, *, timeout: float = 120.0) -> Self:
        """Go on until so many VMs have left their source."""

        def reached() -> bool:
            self.step()
            return self.left >= count

        eventually(f"{count} VMs have left", reached, timeout=timeout)
        return self

    def complete(self, *, timeout: float = 120.0) -> Self:
        """Go on until all are over."""
        eventually("the evacuation is over", self.step, timeout=timeout, interval=0.02)
        return self


def _volume(disk: Disk) -> Object:
    source: Object = {"claimName": disk.claim}
    if disk.hotplugged:
        source["hotpluggable"] = True
    return {"name": f"disk-{disk.claim}", "persistentVolumeClaim": source}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
