"""``./justw demo``: live migrations of three virtual machines, and a pod that must not have a disk of theirs.

One migration completes, one is cancelled, one runs past its deadline. Everything but machines and KubeVirt's own programs is
real: etcd, kube-apiserver, kube-controller-manager, csi-provisioner, csi-attacher, our shim and operator under their own accounts,
and a RouterOS box at the other end of an SSH connection. KubeVirt is played write by write, as it was seen to write. Exit status 0
only if every fact that was observed is the expected one.

With ``--vm`` nodes and disks are real as well: see ``tests/demo/machines.py``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.demo.machines import DemoOnMachines
from tests.demo.picture import SHOWN_METRICS, Moment, Picture
from tests.demo.stage import Facts, Migration, Stage, is_over, outbox_of, phase_of, reasons_of, status_of, summary, window_of
from tests.ring.binaries import CONTROL_PLANE, NODES, SIDECARS, ensure
from tests.ring.driver import Operator, Shim
from tests.ring.kubevirt import KubeVirt, Step, install_kinds
from tests.ring.stack import Stack, reach
from tests.simulator.box import SimulatedBox
from tests.vm.kernel import NotMade, bootable
from tests.vm.packages import PackagesMissing
from tests.vm.stack import VmStack

TIMEOUT_SECONDS = 30
"""The shortest migration timeout that a StorageClass may ask for."""

STEP_SECONDS = 3.0
"""How long the VMs are copied in the demo, so that one can watch it."""


class Demo(Stage):
    """Plays the four acts on a running stack."""

    def __init__(self, stack: Stack, shim: Shim, operator: Operator, box: SimulatedBox, picture: Picture) -> None:
        self.stack = stack
        self.kubevirt = KubeVirt(stack.cluster)
        self.shim = shim
        self.box = box
        completed, failed = ("MigrationStarted", "MigrationCompleted", "MigrationEnded"), ("MigrationStarted", "MigrationFailed")
        self.completes = Migration("vm-completes", "Succeeded", "MigrationState", completed)
        self.cancelled = Migration("vm-cancelled", "Failed", "MigrationState", (*failed, "MigrationEnded"))
        self.overdue = Migration("vm-overdue", "TimedOut", "Timeout", failed)
        super().__init__(stack.cluster, operator, picture, (self.completes, self.cancelled, self.overdue))
        self.stranger = ""
        self.elsewhere = ""
        self.attach_error = ""

    def play(self) -> None:
        """Bring up three VMs, migrate each, let each migration end in its own way, and let a stranger ask for a disk."""
        self._bring_up()
        self._migrate()
        self._complete()
        self._cancel()
        self._ask_for_a_disk()
        self._run_out_of_time()

    def _bring_up(self) -> None:
        self.picture.say("a StorageClass without dualAttachPolicy, so KubeVirt's; three claims, bound through SSH to the box")
        plain = self.cluster.make_storage_class(stem="rds-vm")
        short = self.cluster.make_storage_class({"migrationTimeoutSeconds": str(TIMEOUT_SECONDS)}, stem="rds-vm-short")
        source, target, self.elsewhere = (self.cluster.make_node(name=f"node-{letter}") for letter in "abc")
        for one in self.all:
            self.cluster.make_claim(short if one is self.overdue else plain, name=one.name)
            one.source, one.target = source, target
        for one in self.all:
            one.handle = self.cluster.wait_bound(one.name)
        self.picture.say(f"KubeVirt starts three VMs on {source}")
        for one in self.all:
            one.vm = self.kubevirt.run(one.name, claims=[one.name], node=source)
            self.watch_until("it runs", lambda seen, one=one: phase_of(seen, one) == "Attached")  # type: ignore[misc]

    def _migrate(self) -> None:
        self.picture.say(
            f"three live migrations to {self.completes.target} begin: a second launcher pod of each VM asks for its disk there"
        )
        for one in self.all:
            assert one.vm is not None
            one.run = self.kubevirt.migrate(one.vm, to=one.target, stem="moves")
        self.go_on(Step.ATTACHED, *self.all)
        self.watch_until("three windows are open", lambda seen: all(phase_of(seen, one) == "Migrating" for one in self.all))
        self.picture.say("all three are admitted: the driver found the migration that made each pod; KubeVirt copies the VMs")
        self.go_on(Step.RUNNING, *self.all)
        self.watch_for(STEP_SECONDS)

    def _complete(self) -> None:
        one = self.completes
        self.picture.say(f"{one.name}: KubeVirt says that it completed; then its source pod ends")
        self.go_on(Step.REPORTED, one)
        self.watch_until(
            "the verdict is known while both nodes are attached", lambda seen: window_of(seen, one).get("result") == one.result
        )
        self.go_on(Step.LEFT, one)
        self.watch_until("it is over and told", lambda seen: is_over(seen, one))

    def _cancel(self) -> None:
        one = self.cancelled
        assert one.run is not None
        self.picture.say(f"{one.name}: somebody deletes the migration, KubeVirt aborts it; then its target pod ends")
        one.run.cancel()
        self.go_on(Step.MIGRATION_GONE, one)
        self.go_on(Step.LEFT, one)
        self.watch_until("it is over and told", lambda seen: is_over(seen, one))

    def _ask_for_a_disk(self) -> None:
        disk = self.cancelled
        self.picture.say(
            f"a pod with a launcher's label, but of no VM, asks for the disk of {disk.name} on {self.elsewhere}; "
            f"the VM runs on {disk.source}"
        )
        self.stranger = self.cluster.launcher_pod(disk.name, self.elsewhere, stem="backup")
        self.attach_error = self.cluster.wait_attach_error(disk.handle, self.elsewhere, "NoTargetPod")
        self.picture.say("refused: the reason is on the VolumeAttachment and the pod, in the record, on the claim and on the VM")
        self.watch_until("the refusal is told", lambda seen: all(self._reasons_of_the_refusal(seen).values()))

    def _reasons_of_the_refusal(self, seen: Moment) -> dict[str, str]:
        """Return what is said of the refused pod, by where it is said."""
        told = {
            event["involvedObject"]["kind"]: event["message"] for event in seen.events if event["reason"] == "AttachmentConflict"
        }
        pod = iter(self.cluster.events(self.stranger, reason="FailedAttachVolume", kind="Pod"))
        refused = status_of(seen, self.cancelled).get("refusals") or []
        return {
            "on the VolumeAttachment": self.attach_error,
            "in the record": refused[-1]["message"] if refused else "",
            "on the claim": told.get("PersistentVolumeClaim", ""),
            "on the VM": told.get("VirtualMachineInstance", ""),
            "on the pod": next(pod, {}).get("message", ""),
        }

    def _run_out_of_time(self) -> None:
        one = self.overdue
        self.picture.say(
            f"{one.name}: KubeVirt goes on copying; migrationTimeoutSeconds {TIMEOUT_SECONDS} wins over KubeVirt's own limit"
        )
        self.watch_until("it is overdue", lambda seen: phase_of(seen, one) == "Overdue", TIMEOUT_SECONDS + 15)
        self.watch_until("it was reported", lambda seen: set(one.events) <= set(reasons_of(seen, one)) and not outbox_of(seen, one))
        self.picture.say(f"both nodes stay attached, the VM runs on {one.source}: nobody pulls a disk from under it")
        self.watch_for(1.0)

    def ways_to_look(self) -> list[str]:
        """Return commands that look around while everything runs."""
        return [
            "kubectl get var -o wide",
            f"kubectl describe var {self.overdue.handle}",
            f"kubectl get vmi,vmim,pods -n {self.cluster.namespace} -o wide",
            f"kubectl get var --field-selector status.vmi.name={self.overdue.name} -o wide",
            f"kubectl get events -n {self.cluster.namespace} --field-selector involvedObject.name={self.cancelled.name}",
            f"curl -s http://{self.operator.address}/metrics | grep rds_csi_migration",
            f"curl -s http://{self.shim.address}/metrics | grep csi_plugin_operations",
        ]

    def facts(self) -> Facts:
        """Compare what is to be seen with what is expected."""
        facts = Facts()
        moment = self.moment()
        staying = {
            "vm-completes": (self.completes.target, "Attached"),
            "vm-cancelled": (self.cancelled.source, "Attached"),
            "vm-overdue": (f"{self.overdue.source},{self.overdue.target}", "Overdue"),
        }
        for one in self.all:
            assert one.vm is not None
            assert one.run is not None
            window, (nodes, phase) = window_of(moment, one), staying[one.name]
            facts.expect(f"{one.name}: result", f"{one.result} ({one.ground})", f"{window.get('result')} ({window.get('reason')})")
            facts.expect(
                f"{one.name}: roles", f"{one.source} → {one.target}", f"{window.get('sourceNode')} → {window.get('targetNode')}"
            )
            facts.expect(
                f"{one.name}: VM and migration",
                f"{one.name}, {one.run.name}",
                f"{window.get('vmi', {}).get('name')}, {window.get('migrationName')}",
            )
            facts.expect(f"{one.name}: the VM runs on", one.vm.node, window.get("liveNode"))
            facts.expect(
                f"{one.name}: attached nodes, phase",
                f"{nodes}: {phase}",
                f"{status_of(moment, one).get('nodes')}: {phase_of(moment, one)}",
            )
            told = [reason for reason in reasons_of(moment, one) if reason.startswith("Migration")]
            facts.expect(f"{one.name}: Events of the migration", ", ".join(one.events), ", ".join(told))
            facts.expect(f"{one.name}: nothing left to report", 0, len(outbox_of(moment, one)))
        for one in (self.cancelled, self.overdue):
            told = [reason for reason in reasons_of(moment, one, "VirtualMachineInstance") if reason.startswith("Migration")]
            facts.expect(f"{one.name}: Events on the VM", "MigrationFailed", ", ".join(told))
        facts.expect(
            "vm-cancelled: why, in KubeVirt's words",
            "Live migration has been aborted",
            window_of(moment, self.cancelled).get("failureReason"),
        )
        words = ("NoTargetPod", self.stranger)
        for place, text in self._reasons_of_the_refusal(moment).items():
            facts.expect(f"the reason {place}", ", ".join(words), ", ".join(word for word in words if word in text))
        conflicts = reasons_of(moment, self.cancelled).count("AttachmentConflict")
        facts.expect(f"{self.elsewhere} is refused: Events on the claim", 1, conflicts)
        for name, expected in zip(SHOWN_METRICS, (1, 1, 1, 0, 1, 2), strict=True):
            facts.expect(name.removeprefix("rds_csi_migration_"), f"{expected:g}", f"{moment.metrics[name]:g}")
        facts.expect("disks on the box", 3, len(self.box.disks()))
        facts.expect("sizes of the disks on the box", {2**30}, {disk["size"] for disk in self.box.disks().values()})
        return facts


def _keep(stack: Stack, ways_to_look: Sequence[str], console: Console) -> None:
    """Say how to look around, and wait for Ctrl-C."""
    plane = stack.plane
    console.print("\nEverything keeps running until Ctrl-C. To look around:", highlight=False)
    for line in (f"export KUBECONFIG={plane.kubeconfig} PATH={plane.binaries['kubectl'].parent}:$PATH", *ways_to_look):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _played(picture: Picture, *, keep: bool) -> Facts:
    """Play the four acts with played nodes."""
    with tempfile.TemporaryDirectory(prefix="rds-demo-") as folder:
        picture.say(
            "starting etcd, kube-apiserver, kube-controller-manager, the box, shim, operator, csi-provisioner, csi-attacher"
        )
        with Stack(Path(folder)) as stack:
            install_kinds(stack.plane.api)
            box = stack.box()
            operator = stack.operator()
            shim = stack.shim(reach(box))
            stack.sidecars(shim)
            demo = Demo(stack, shim, operator, box, picture)
            with picture.live():
                demo.play()
            facts = demo.facts()
            picture.console.print(summary(facts))
            if keep:
                _keep(stack, demo.ways_to_look(), picture.console)
    return facts


def _on_machines(picture: Picture, *, keep: bool) -> Facts:
    """Play the migration that completes on machines."""
    # What is missing, the kernel or a binary, is made with its own progress, before the picture begins.
    ensure((*CONTROL_PLANE, *SIDECARS, *NODES))
    try:
        bootable()
    except (PackagesMissing, NotMade) as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory(prefix="rds-demo-") as folder, picture.live(), VmStack(Path(folder), picture.say) as stack:
        stack.boot()
        install_kinds(stack.plane.api)
        stack.start_driver()
        demo = DemoOnMachines(stack, picture)
        demo.play()
        facts = demo.facts()
        picture.console.print(summary(facts))
        if keep:
            _keep(stack, demo.ways_to_look(), picture.console)
    return facts


def main() -> None:
    """Play, sum up, exit."""
    parser = argparse.ArgumentParser(prog="./justw demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running and print how to look around with kubectl")
    parser.add_argument("--vm", action="store_true", help="play the migration that completes, on machines with kubelets and disks")
    arguments = parser.parse_args()
    # Without a terminal the lines are as long as they are: a log is read, not watched.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    picture = Picture(console)
    facts = _on_machines(picture, keep=arguments.keep) if arguments.vm else _played(picture, keep=arguments.keep)
    console.print(f"{len(facts.rows) - facts.wrong} of {len(facts.rows)} facts are as expected", highlight=False)
    sys.exit(1 if facts.wrong else 0)


if __name__ == "__main__":
    main()
