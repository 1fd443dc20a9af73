"""``./justw demo --vm``: the migration that completes, on machines.

A box and two nodes are QEMU guests with kernels of their own: one kernel exports the disk over NVMe/TCP, the other two connect to
it, and real kubelets run the launcher pods. What stands for the virtual machine writes numbered, checksummed blocks all the time;
in the end each block that it was told is written is looked for on the disk, on the node and in the box.
"""

from __future__ import annotations

from tests.demo.picture import Picture
from tests.demo.stage import Facts, Migration, Stage, is_over, outbox_of, phase_of, reasons_of, status_of, window_of
from tests.ring.cluster import NQN_PREFIX
from tests.ring.kubevirt import Step
from tests.ring.waiting import eventually
from tests.vm.guests import CONTROL_PORT
from tests.vm.kubevirt import KubeVirtOnKubelets, blocks
from tests.vm.ledger import SIZE, Entry, Found, judge, last_of
from tests.vm.node_plugin import METRICS_PORT
from tests.vm.site import Session
from tests.vm.stack import VmStack

EVENTS = ("MigrationStarted", "MigrationCompleted", "MigrationEnded")
BLOCKS = 20
"""How many more blocks are to be written before the demo goes on, so that something happens in each step."""


def states(sessions: dict[str, Session]) -> dict[str, str]:
    """Return the state of each session by its NQN."""
    return {nqn: session.state for nqn, session in sessions.items()}


class DemoOnMachines(Stage):
    """Plays the migration on a stack that has booted."""

    def __init__(self, stack: VmStack, picture: Picture) -> None:
        self.stack = stack
        self.kubevirt = KubeVirtOnKubelets(stack.real_cluster, stack.guests.share)
        self.one = Migration("vm-moves", "Succeeded", "MigrationState", EVENTS, source="node-a", target="node-b")
        super().__init__(stack.cluster, stack.the_operator, picture, [self.one])
        self.pods = {"node-a": "", "node-b": ""}
        self.in_between: dict[str, dict[str, Session]] = {}
        self.device_numbers: dict[str, tuple[str, str]] = {}

    @property
    def nqn(self) -> str:
        """The name of the disk's subsystem."""
        return NQN_PREFIX + self.one.handle

    def play(self) -> None:
        """Start the VM, migrate it, and let its source go."""
        one = self.one
        self.picture.say(
            "a claim, bound by csi-provisioner through SSH to the box, whose kernel exports the new disk over NVMe/TCP"
        )
        self.cluster.make_claim(self.cluster.make_storage_class(stem="rds-vm"), name=one.name)
        one.handle = self.cluster.wait_bound(one.name, timeout=120)
        self.picture.say(f"KubeVirt starts the VM on {one.source}: attach, NVMe connect, publish; its launcher is a pod that runs")
        one.vm = self.kubevirt.run(one.name, claims=[one.name], node=one.source)
        self.pods[one.source] = one.vm.launcher.name
        self.watch_until("it is attached", lambda seen: phase_of(seen, one) == "Attached")
        self._wait_written(one.source)
        self.picture.say(f"a live migration to {one.target} begins: a second launcher pod asks for the disk there")
        one.run = self.kubevirt.migrate(one.vm, to=one.target, stem="moves")
        self.go_on(Step.ATTACHED, one, timeout=120)
        self.picture.say(f"admitted: the driver found the migration that made the pod; {one.target} connects")
        self.go_on(Step.POD_RUNNING, one, timeout=180)
        self.pods[one.target] = one.run.target.name
        self.go_on(Step.RUNNING, one)
        self._wait_written(one.source)
        self._look()
        self.picture.say(f"{one.source} stops writing, {one.target} reads the disk and goes on; KubeVirt says that it completed")
        self.go_on(Step.REPORTED, one, timeout=120)
        self._wait_written(one.target)
        self.picture.say(f"the pod on {one.source} ends; its kubelet unmounts, the session ends, the disk is detached")
        self.go_on(Step.LEFT, one, timeout=180)
        self.watch_until("it is over and told", lambda seen: is_over(seen, one))
        self._wait_written(one.target)
        self.picture.say("the VM pauses, and the disk is read on the node and in the box")
        self.kubevirt.order(self.pods[one.target], write=False)

    def _look(self) -> None:
        """Note what both nodes have while both are attached."""
        for node, pod in self.pods.items():
            self.in_between[node] = self.stack.site.sessions(node)
            of_node = self.stack.nodes[node].sh(f"stat -c %t:%T /dev/{self.in_between[node][self.nqn].device}").strip()
            of_pod = self.stack.kubelets[node].exec(self.cluster.namespace, pod, "stat -c %t:%T /dev/disk-0", "compute").strip()
            self.device_numbers[node] = (of_node, of_pod)

    def _wait_written(self, node: str) -> None:
        pod = self.pods[node]
        before = len(self.kubevirt.acknowledged(pod))
        eventually(f"the VM writes on {node}", lambda: len(self.kubevirt.acknowledged(pod)) >= before + BLOCKS, timeout=60)
        self.picture.say(f"the VM on {node} has written block {self.kubevirt.acknowledged(pod)[-1]}")

    def facts(self) -> Facts:
        """Compare what is to be seen, in the cluster, on the nodes and on the disk, with what is expected."""
        facts, one = Facts(), self.one
        self._facts_of_the_cluster(facts)
        for node in self.pods:
            facts.expect(f"while it moved: session of {node}", {self.nqn: "live"}, states(self.in_between[node]))
            of_node, of_pod = self.device_numbers[node]
            facts.expect(f"while it moved: /dev/disk-0 in the pod on {node} is the node's device", of_node, of_pod)
        facts.expect(f"sessions of {one.source} at the end", {}, states(self.stack.site.sessions(one.source)))
        facts.expect(f"session of {one.target} at the end", {self.nqn: "live"}, states(self.stack.site.sessions(one.target)))
        facts.expect("disks on the box", 1, len(self.stack.real_box.disks()))
        self._facts_of_the_disk(facts)
        return facts

    def _facts_of_the_cluster(self, facts: Facts) -> None:
        moment, one = self.moment(), self.one
        window = window_of(moment, one)
        assert one.vm is not None
        assert one.run is not None
        facts.expect("result", f"{one.result} ({one.ground})", f"{window.get('result')} ({window.get('reason')})")
        facts.expect("roles", f"{one.source} → {one.target}", f"{window.get('sourceNode')} → {window.get('targetNode')}")
        facts.expect("migration", one.run.name, window.get("migrationName"))
        facts.expect("the VM runs on", one.target, window.get("liveNode"))
        facts.expect("attached nodes", one.target, status_of(moment, one).get("nodes"))
        told = [reason for reason in reasons_of(moment, one) if reason.startswith("Migration")]
        facts.expect("Events of the migration", ", ".join(one.events), ", ".join(told))
        facts.expect("nothing left to report", 0, len(outbox_of(moment, one)))
        for result, expected in (("success", 1), ("failed", 0), ("timeout", 0)):
            name = f'rds_csi_migration_migrations_total{{result="{result}"}}'
            facts.expect(name.removeprefix("rds_csi_migration_"), expected, f"{moment.metrics[name]:g}")
        for node, phase in ((one.source, "Succeeded"), (one.target, "Running")):
            pod = self.cluster.api.get("Pod", self.pods[node], self.cluster.namespace)
            facts.expect(f"pod on {node}", phase, pod["status"]["phase"])

    def _facts_of_the_disk(self, facts: Facts) -> None:
        one, box = self.one, self.stack.real_box
        image = next(name for name in box.files() if one.handle in name)
        device = f"/dev/{self.stack.site.sessions(one.target)[self.nqn].device}"
        on_node = self.stack.read(self.stack.nodes[one.target], device, SIZE)
        in_box = self.stack.read(self.stack.machine, box.backing_file(image), SIZE)
        wrote = {node: self.kubevirt.acknowledged(pod) for node, pod in self.pods.items()}
        stopped, found = self.kubevirt.handed_over[self.pods[one.target]]
        last = {node: numbers[-1] for node, numbers in wrote.items()}
        facts.expect(f"last block of {one.source}", last[one.source], stopped)
        facts.expect(f"last block that {one.target} read before it wrote", last[one.source], found)
        facts.expect(f"first block of {one.target}", last[one.source] + 1, wrote[one.target][0])
        facts.expect(
            "blocks written, without a gap", list(range(1, last[one.target] + 1)), [*wrote[one.source], *wrote[one.target]]
        )
        told = {number: self.pods[node] for node, numbers in wrote.items() for number in numbers}
        for where, data in ((f"{device} of {one.target}", on_node), ("the file in the box", in_box)):
            self._facts_of_a_copy(facts, where, blocks(data), told)
        facts.expect("both are the same, byte by byte", True, on_node == in_box)
        facts.expect("writes that failed", [], [failure for pod in self.pods.values() for failure in self.kubevirt.failures(pod)])

    def _facts_of_a_copy(self, facts: Facts, where: str, found: list[Found], told: dict[int, str]) -> None:
        # A slot is written again once all have been: only the last number of each can be there.
        due = sorted(told)[-len(found) :]
        there = sorted(entry.number for entry in found if isinstance(entry, Entry))
        facts.expect(f"{where}: last block", max(told), last_of(found))
        facts.expect(f"{where}: blocks with the right checksum and writer", due, there)
        facts.expect(f"{where}: what is wrong", [], judge(found, told, in_flight=0))

    def ways_to_look(self) -> list[str]:
        """Return commands that look around while everything runs."""
        one, folder = self.one, self.stack.guests.share
        lines = [
            "kubectl get var -o wide",
            f"kubectl describe var {one.handle}",
            f"kubectl get pods -n {self.cluster.namespace} -o wide",
            f"tail -f {folder}/machines/{self.cluster.namespace}/{self.pods[one.target]}.log",
            f"curl -s http://127.0.0.1:{self.stack.plugins[one.target].guest.ports[METRICS_PORT]}/metrics | grep rds_csi_nvme",
        ]
        for guest in (self.stack.machine, *self.stack.nodes.values()):
            port = guest.ports[CONTROL_PORT]
            lines.append(f"printf 'x\\nnvme list; mount; ps\\nx\\n' | nc -N 127.0.0.1 {port}   # a script in {guest.name}")
        return lines
