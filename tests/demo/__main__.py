"""``./justw demo``: one migration that completes, one that is rolled back, one that runs past its deadline.

Everything but the machines is real: etcd, kube-apiserver, kube-controller-manager, csi-provisioner and csi-attacher, our shim and
operator under their own accounts, and a RouterOS box at the other end of an SSH connection. Exit status 0 only if every fact that
was observed is the expected one.
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

from tests.demo.picture import SHOWN_METRICS, Moment, Picture
from tests.ring.driver import Operator, Shim
from tests.ring.stack import Stack, reach
from tests.simulator.box import SimulatedBox

TIMEOUT_SECONDS = 30
"""The shortest migration timeout that a StorageClass may ask for."""

STEP_SECONDS = 3.0
"""How long a migration of the demo lasts, so that one can watch it."""


@dataclass
class Migration:
    """One claim of the demo, its two nodes, and what became of it."""

    claim: str
    expected: str
    handle: str = ""
    source: str = ""
    target: str = ""
    source_pod: str = ""
    target_pod: str = ""


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
    """Plays the three migrations on a running stack."""

    def __init__(self, stack: Stack, shim: Shim, operator: Operator, box: SimulatedBox, picture: Picture) -> None:
        self.stack = stack
        self.cluster = stack.cluster
        self.shim = shim
        self.operator = operator
        self.box = box
        self.picture = picture
        self.completes = Migration("vm-completes", "Succeeded")
        self.rolls_back = Migration("vm-rolls-back", "Failed")
        self.overdue = Migration("vm-overdue", "TimedOut")
        self.all = (self.completes, self.rolls_back, self.overdue)

    def moment(self) -> Moment:
        """Look at everything once."""
        records = {one.claim: self.cluster.record(one.handle) or {} for one in self.all if one.handle}
        claims = {one.claim for one in self.all}
        events = [
            event
            for event in self.stack.plane.api.list(
                "Event", self.cluster.namespace, fieldSelector="involvedObject.kind=PersistentVolumeClaim"
            )
            if event["involvedObject"]["name"] in claims and event.get("source", {}).get("component") == "rds-csi-controller"
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

    def play(self) -> None:
        """Bring up three VMs, migrate each, and let each migration end in its own way."""
        self.picture.say(
            "StorageClass with dualAttachPolicy: AnyTwoNodes; three claims, bound by csi-provisioner through SSH to the box"
        )
        plain = self.cluster.make_storage_class({"dualAttachPolicy": "AnyTwoNodes"}, stem="rds-live")
        short = self.cluster.make_storage_class(
            {"dualAttachPolicy": "AnyTwoNodes", "migrationTimeoutSeconds": str(TIMEOUT_SECONDS)}, stem="rds-short"
        )
        source, target = self.cluster.make_node(name="node-a"), self.cluster.make_node(name="node-b")
        for one in self.all:
            self.cluster.make_claim(short if one is self.overdue else plain, name=one.claim)
            one.source, one.target = source, target
        for one in self.all:
            one.handle = self.cluster.wait_bound(one.claim)
        self.picture.say(f"a launcher pod of each VM on {source}")
        for one in self.all:
            one.source_pod = self.cluster.launcher_pod(one.claim, source)
        self.watch_until("the VMs run", lambda seen: _phases(seen) == ["Attached"] * 3)
        self.picture.say(f"three live migrations begin: a second launcher pod of each VM on {target}")
        for one in self.all:
            one.target_pod = self.cluster.launcher_pod(one.claim, target)
        self.watch_until("three migrations run", lambda seen: _phases(seen) == ["Migrating"] * 3)
        self.watch_for(STEP_SECONDS)
        self.picture.say(f"{self.completes.claim}: the VM runs on {target} now, its source pod ends")
        self.cluster.delete_pod(self.completes.source_pod)
        self.watch_until("it completed", lambda seen: self._result(seen, self.completes) == "Succeeded")
        self.picture.say(f"{self.rolls_back.claim}: the migration is cancelled, its target pod ends")
        self.cluster.delete_pod(self.rolls_back.target_pod)
        self.watch_until("it was rolled back", lambda seen: self._result(seen, self.rolls_back) == "Failed")
        self.picture.say(f"{self.overdue.claim}: nothing ends it; its deadline is {TIMEOUT_SECONDS} s after its start")
        self.watch_until("it is overdue", lambda seen: self._phase(seen, self.overdue) == "Overdue", TIMEOUT_SECONDS + 15)
        self.watch_until("it was reported", lambda seen: seen.metrics[SHOWN_METRICS[2]] == 1)
        self.picture.say("both nodes stay attached: nobody pulls a disk from under a running VM")
        self.watch_for(1.0)

    def facts(self) -> Facts:
        """Compare what is to be seen with what is expected."""
        facts = Facts()
        moment = self.moment()
        for one in self.all:
            status = moment.records[one.claim]["status"]
            window = (status.get("history") or [status.get("migration") or {}])[-1]
            reasons = [event["reason"] for event in moment.events if event["involvedObject"]["name"] == one.claim]
            ended = "MigrationCompleted" if one is self.completes else "MigrationFailed"
            staying = {
                "vm-completes": [one.target],
                "vm-rolls-back": [one.source],
                "vm-overdue": [one.source, one.target],
            }[one.claim]
            facts.expect(f"{one.claim}: result", one.expected, window.get("result"))
            facts.expect(
                f"{one.claim}: roles", f"{one.source} → {one.target}", f"{window.get('sourceNode')} → {window.get('targetNode')}"
            )
            facts.expect(f"{one.claim}: attached nodes", ",".join(staying), status.get("nodes"))
            facts.expect(f"{one.claim}: phase", "Overdue" if one is self.overdue else "Attached", status.get("phase"))
            facts.expect(
                f"{one.claim}: Events of the migration",
                f"MigrationStarted, {ended}",
                ", ".join(reason for reason in reasons if reason.startswith("Migration")),
            )
            facts.expect(f"{one.claim}: nothing left to report", 0, len(status.get("outbox") or []))
        for name, expected in zip(SHOWN_METRICS, (1, 1, 1, 0, 1), strict=True):
            facts.expect(name, f"{expected:g}", f"{moment.metrics[name]:g}")
        facts.expect("disks on the box", 3, len(self.box.disks()))
        facts.expect("sizes of the disks on the box", {2**30}, {disk["size"] for disk in self.box.disks().values()})
        return facts

    def _phase(self, seen: Moment, one: Migration) -> str:
        return str(seen.records[one.claim].get("status", {}).get("phase"))

    def _result(self, seen: Moment, one: Migration) -> str:
        status = seen.records[one.claim].get("status", {})
        told = any(
            event["reason"] in {"MigrationCompleted", "MigrationFailed"} and event["involvedObject"]["name"] == one.claim
            for event in seen.events
        )
        history = status.get("history") or []
        return str(history[-1]["result"]) if history and told and not status.get("outbox") else ""


def _phases(seen: Moment) -> list[str]:
    return [record.get("status", {}).get("phase", "-") for record in seen.records.values()]


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
        f"kubectl describe pvc -n {demo.cluster.namespace} {demo.overdue.claim}",
        f"kubectl get events -n {demo.cluster.namespace} --field-selector involvedObject.name={demo.completes.claim}",
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
