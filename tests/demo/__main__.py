"""``./justw demo``: live migrations of three virtual machines, and a pod that must not have a disk of theirs.

One migration completes, one is cancelled, one runs past its deadline. Everything but machines and KubeVirt's own programs is
real: etcd, kube-apiserver, kube-controller-manager, csi-provisioner, csi-attacher, our shim and operator under their own accounts,
and a RouterOS box at the other end of an SSH connection. KubeVirt is played write by write, as it was seen to write. Exit status 0
only if every fact that was observed is the expected one.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.demo.picture import SHOWN_METRICS, Moment, Object, Picture
from tests.ring.driver import Operator, Shim
from tests.ring.kubevirt import KubeVirt, Run, Step, Vm, install_kinds
from tests.ring.stack import Stack, reach
from tests.simulator.box import SimulatedBox

TIMEOUT_SECONDS = 30
"""The shortest migration timeout that a StorageClass may ask for."""

STEP_SECONDS = 3.0
"""How long the VMs are copied in the demo, so that one can watch it."""


@dataclass
class Migration:
    """One VM of the demo, its only disk, and what is to become of its migration; claim and VM have one name."""

    name: str
    result: str
    ground: str
    events: tuple[str, ...]
    handle: str = ""
    source: str = ""
    target: str = ""
    vm: Vm | None = None
    run: Run | None = None


@dataclass
class Facts:
    """What was expected and what was seen."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def expect(self, what: str, expected: object, seen: object) -> None:
        """Note one fact."""
        self.rows.append((what, str(expected), str(seen)))

    @property
    def wrong(self) -> int:
        """How many differ."""
        return sum(expected != seen for _, expected, seen in self.rows)


class Demo:
    """Plays the four acts on a running stack."""

    def __init__(self, stack: Stack, shim: Shim, operator: Operator, box: SimulatedBox, picture: Picture) -> None:
        self.stack = stack
        self.cluster = stack.cluster
        self.kubevirt = KubeVirt(stack.cluster)
        self.shim = shim
        self.operator = operator
        self.box = box
        self.picture = picture
        completed, failed = ("MigrationStarted", "MigrationCompleted", "MigrationEnded"), ("MigrationStarted", "MigrationFailed")
        self.completes = Migration("vm-completes", "Succeeded", "MigrationState", completed)
        self.cancelled = Migration("vm-cancelled", "Failed", "MigrationState", (*failed, "MigrationEnded"))
        self.overdue = Migration("vm-overdue", "TimedOut", "Timeout", failed)
        self.all = (self.completes, self.cancelled, self.overdue)
        self.stranger = ""
        self.elsewhere = ""
        self.attach_error = ""

    def moment(self) -> Moment:
        """Look at everything once."""
        records = {one.name: self.cluster.record(one.handle) or {} for one in self.all if one.handle}
        events = [
            event
            for event in self.stack.plane.api.list("Event", self.cluster.namespace)
            if event["involvedObject"]["name"] in records and event.get("source", {}).get("component") == "rds-csi-controller"
        ]
        events.sort(key=lambda event: int(event["metadata"]["resourceVersion"]))
        scrape = self.operator.scrape()
        metrics = {}
        for name in SHOWN_METRICS:
            base, _, label = name.partition("{")
            labels = {"result": label.split('"')[1]} if label else {}
            metrics[name] = scrape.value(base, **labels)
        return Moment(records, events, metrics)

    def watch_until(self, what: str, done: Callable[[Moment], bool], timeout: float = 60.0) -> Moment:
        """Show moments until the condition holds; raises AssertionError if it does not in time."""
        deadline = time.monotonic() + timeout
        while True:
            moment = self.moment()
            self.picture.show(moment)
            if done(moment):
                return moment
            if time.monotonic() >= deadline:
                raise AssertionError(f"not within {timeout:g} s: {what}")
            time.sleep(0.1)

    def watch_for(self, seconds: float) -> None:
        """Show what goes on for a while."""
        deadline = time.monotonic() + seconds
        self.watch_until("time passes", lambda _: time.monotonic() >= deadline, seconds + 10)

    def go_on(self, step: Step, *migrations: Migration) -> None:
        """Let KubeVirt go on with these migrations, side by side, until each has done a step."""

        def done(_: Moment) -> bool:
            runs = [one.run for one in migrations if one.run]
            for run in runs:
                while step not in run.done and run.advance():
                    pass
            return all(step in run.done for run in runs)

        self.watch_until(f"{', '.join(one.name for one in migrations)}: {step}", done)

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
            self.watch_until("it runs", lambda seen, one=one: _phase(seen, one) == "Attached")  # type: ignore[misc]

    def _migrate(self) -> None:
        self.picture.say(
            f"three live migrations to {self.completes.target} begin: a second launcher pod of each VM asks for its disk there"
        )
        for one in self.all:
            assert one.vm is not None
            one.run = self.kubevirt.migrate(one.vm, to=one.target, stem="moves")
        self.go_on(Step.ATTACHED, *self.all)
        self.watch_until("three windows are open", lambda seen: all(_phase(seen, one) == "Migrating" for one in self.all))
        self.picture.say("all three are admitted: the driver found the migration that made each pod; KubeVirt copies the VMs")
        self.go_on(Step.RUNNING, *self.all)
        self.watch_for(STEP_SECONDS)

    def _complete(self) -> None:
        one = self.completes
        self.picture.say(f"{one.name}: KubeVirt says that it completed; then its source pod ends")
        self.go_on(Step.REPORTED, one)
        self.watch_until(
            "the verdict is known while both nodes are attached", lambda seen: _window(seen, one).get("result") == one.result
        )
        self.go_on(Step.LEFT, one)
        self.watch_until("it is over and told", lambda seen: _is_over(seen, one))

    def _cancel(self) -> None:
        one = self.cancelled
        assert one.run is not None
        self.picture.say(f"{one.name}: somebody deletes the migration, KubeVirt aborts it; then its target pod ends")
        one.run.cancel()
        self.go_on(Step.MIGRATION_GONE, one)
        self.go_on(Step.LEFT, one)
        self.watch_until("it is over and told", lambda seen: _is_over(seen, one))

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
        refused = _status(seen, self.cancelled).get("refusals") or []
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
        self.watch_until("it is overdue", lambda seen: _phase(seen, one) == "Overdue", TIMEOUT_SECONDS + 15)
        self.watch_until("it was reported", lambda seen: set(one.events) <= set(_reasons(seen, one)) and not _outbox(seen, one))
        self.picture.say(f"both nodes stay attached, the VM runs on {one.source}: nobody pulls a disk from under it")
        self.watch_for(1.0)

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
            window, (nodes, phase) = _window(moment, one), staying[one.name]
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
                f"{_status(moment, one).get('nodes')}: {_phase(moment, one)}",
            )
            told = [reason for reason in _reasons(moment, one) if reason.startswith("Migration")]
            facts.expect(f"{one.name}: Events of the migration", ", ".join(one.events), ", ".join(told))
            facts.expect(f"{one.name}: nothing left to report", 0, len(_outbox(moment, one)))
        for one in (self.cancelled, self.overdue):
            told = [reason for reason in _reasons(moment, one, "VirtualMachineInstance") if reason.startswith("Migration")]
            facts.expect(f"{one.name}: Events on the VM", "MigrationFailed", ", ".join(told))
        facts.expect(
            "vm-cancelled: why, in KubeVirt's words",
            "Live migration has been aborted",
            _window(moment, self.cancelled).get("failureReason"),
        )
        words = ("NoTargetPod", self.stranger)
        for place, text in self._reasons_of_the_refusal(moment).items():
            facts.expect(f"the reason {place}", ", ".join(words), ", ".join(word for word in words if word in text))
        conflicts = _reasons(moment, self.cancelled).count("AttachmentConflict")
        facts.expect(f"{self.elsewhere} is refused: Events on the claim", 1, conflicts)
        for name, expected in zip(SHOWN_METRICS, (1, 1, 1, 0, 1, 2), strict=True):
            facts.expect(name.removeprefix("rds_csi_migration_"), f"{expected:g}", f"{moment.metrics[name]:g}")
        facts.expect("disks on the box", 3, len(self.box.disks()))
        facts.expect("sizes of the disks on the box", {2**30}, {disk["size"] for disk in self.box.disks().values()})
        return facts


def _status(seen: Moment, one: Migration) -> Object:
    status: Object = seen.records[one.name].get("status", {})
    return status


def _phase(seen: Moment, one: Migration) -> str:
    return str(_status(seen, one).get("phase"))


def _outbox(seen: Moment, one: Migration) -> list[Object]:
    return _status(seen, one).get("outbox") or []


def _window(seen: Moment, one: Migration) -> Object:
    """Return the open window, else the last one."""
    status = _status(seen, one)
    window: Object = status.get("migration") or (status.get("history") or [{}])[-1]
    return window


def _reasons(seen: Moment, one: Migration, kind: str = "PersistentVolumeClaim") -> list[str]:
    """Return the reasons of the Events about the VM's claim, or about the VM, oldest first."""
    about = [
        event for event in seen.events if (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == (kind, one.name)
    ]
    return [event["reason"] for event in about]


def _is_over(seen: Moment, one: Migration) -> bool:
    """Tell whether the window is in the history and everything about it is told."""
    return _phase(seen, one) == "Attached" and set(one.events) <= set(_reasons(seen, one)) and not _outbox(seen, one)


def _summary(facts: Facts) -> Table:
    table = Table(title="what was expected, and what was seen")
    for heading in ("fact", "expected", "seen", ""):
        table.add_column(heading)
    for what, expected, seen in facts.rows:
        table.add_row(what, expected, seen, "[green]✓[/]" if expected == seen else "[bold red]✗[/]")
    return table


def _keep(demo: Demo, console: Console) -> None:
    """Say how to look around, and wait for Ctrl-C."""
    plane = demo.stack.plane
    console.print("\nEverything keeps running until Ctrl-C. To look around:", highlight=False)
    for line in (
        f"export KUBECONFIG={plane.kubeconfig} PATH={plane.binaries['kubectl'].parent}:$PATH",
        "kubectl get var -o wide",
        f"kubectl describe var {demo.overdue.handle}",
        f"kubectl get vmi,vmim,pods -n {demo.cluster.namespace} -o wide",
        f"kubectl get var --field-selector status.vmi.name={demo.overdue.name} -o wide",
        f"kubectl get events -n {demo.cluster.namespace} --field-selector involvedObject.name={demo.cancelled.name}",
        f"curl -s http://{demo.operator.address}/metrics | grep rds_csi_migration",
        f"curl -s http://{demo.shim.address}/metrics | grep csi_plugin_operations",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def main() -> None:
    """Play, sum up, exit."""
    parser = argparse.ArgumentParser(prog="./justw demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running and print how to look around with kubectl")
    arguments = parser.parse_args()
    # Without a terminal the lines are as long as they are: a log is read, not watched.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    picture = Picture(console)
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
            console.print(_summary(facts))
            if arguments.keep:
                _keep(demo, console)
    console.print(f"{len(facts.rows) - facts.wrong} of {len(facts.rows)} facts are as expected", highlight=False)
    sys.exit(1 if facts.wrong else 0)


if __name__ == "__main__":
    main()
