"""KubeVirt played on real kubelets: its pods run, its machines write to their disks, and only what KubeVirt itself does is played.

In the place of a virtual machine a ledger is kept on ``/dev/disk-0`` (``tests/vm/ledger.py``). The machine's live side writes; at
the hand-over it stops, and the other side goes on after what it reads on the disk, as a machine that was copied would.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.ring.kubevirt import KubeVirt, Launcher, Vm
from tests.ring.waiting import eventually
from tests.vm.cluster import RealCluster
from tests.vm.guests import ROOT, SHARE
from tests.vm.images import IMAGE
from tests.vm.ledger import BLOCK, SIZE, Found, decode

LEDGER = Path(__file__).with_name("ledger.py")
NOTES = "/notes"
"""Where a pod has the folder of its machine's orders and log."""

ENDINGS = {"Succeeded": "USR1", "Failed": "USR2"}
"""The signal upon which a pod ends in a phase."""

PROGRAM = f"""
trap 'exit 0' USR1
trap 'exit 1' USR2
trap 'exit 143' TERM
{sys.base_prefix}/bin/python3 -I -S -B {LEDGER} keep /dev/disk-0 {NOTES} $POD &
wait $!
"""


class KubeVirtOnKubelets(KubeVirt):
    """virt-controller and the virt-handlers of one namespace whose nodes are real.

    Args:
        share: a folder of the host that nodes have as ``/share``.
    """

    patience = 180.0

    def __init__(self, cluster: RealCluster, share: Path) -> None:
        super().__init__(cluster)
        self.kubelets = cluster.kubelets
        self._notes = share / "machines" / cluster.namespace
        self._notes.mkdir(parents=True)
        self._ending: set[str] = set()
        self._orders = 0
        self.handed_over: dict[str, tuple[int, int]] = {}
        """By the pod that took over: the last block that the other side says it wrote, and the last that this one found."""
        shown: dict[str, tuple[Path, bool]] = {"notes": (SHARE / self._notes.relative_to(share), False)}
        # Python and the ledger at the paths that they have on the host and so in the guests.
        for number, path in enumerate((Path("/usr"), Path(sys.base_prefix).resolve(), ROOT)):
            if not number or not path.is_relative_to("/usr"):
                shown[f"host-{number}"] = (path, True)
        self.pod: Mapping[str, Any] = {
            "hostNetwork": True,
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "volumes": [{"name": name, "hostPath": {"path": str(path), "type": "Directory"}} for name, (path, _) in shown.items()],
        }
        self.container: Mapping[str, Any] = {
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", PROGRAM],
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "volumeMounts": [
                {"name": name, "mountPath": NOTES if name == "notes" else str(path), "readOnly": read_only}
                for name, (path, read_only) in shown.items()
            ],
        }

    def run(self, name: str, *, claims: Sequence[str], node: str, **fields: Any) -> Vm:
        """Start a VM; on return it writes."""
        vm = super().run(name, claims=claims, node=node, **fields)
        self.order(vm.launcher.name, write=True)
        return vm

    def hand_over(self, source: Launcher, target: Launcher) -> bool:
        """Let the source stop, and the target go on after what it reads; an order given again after a failure changes nothing."""
        stopped = self.order(source.name, write=False)
        self.handed_over[target.name] = (stopped, self.order(target.name, write=True))
        return True

    # Machines

    def order(self, pod: str, *, write: bool, timeout: float = 60.0) -> int:
        """Let a machine write, or stop; return the last number that it read on its disk before it obeyed."""
        self._orders += 1
        number = self._orders
        new = self._notes / f"{pod}.new"
        new.write_text(json.dumps({"id": number, "write": write}))
        new.replace(self._notes / f"{pod}.order")

        def answered() -> tuple[int] | None:
            told = self.told(pod)
            lasts = [line["last"] for line in told if line.get("id") == number]
            assert lasts, f"it said last: {told[-1:]}"
            return (int(lasts[-1]),)

        return eventually(f"the machine in {pod} obeys", answered, timeout=timeout)[0]

    def told(self, pod: str) -> list[dict[str, Any]]:
        """Return everything that a machine has told so far."""
        log = self._notes / f"{pod}.log"
        text = log.read_text() if log.exists() else ""
        # What stands behind the last end of a line is being written.
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def acknowledged(self, pod: str) -> list[int]:
        """Return the numbers of the blocks that a machine was told are written, in order."""
        return [line["wrote"] for line in self.told(pod) if "wrote" in line]

    def failures(self, pod: str) -> list[dict[str, Any]]:
        """Return what a machine's disk refused."""
        return [line for line in self.told(pod) if "failed" in line]

    # What kubelets do

    def _mounted(self, handles: Iterable[str], node: str) -> None:
        """Nothing: the node's own kubelet says what is in use there."""

    def _unmounted(self, handles: Iterable[str], node: str) -> bool:
        in_use = self.api.get("Node", node)["status"].get("volumesInUse") or []
        return not any(name.endswith(f"^{handle}") for handle in handles for name in in_use)

    def _set_pod(self, launcher: Launcher, phase: str, *, ready: bool = True) -> bool:
        assert ready, "no pod here runs without being ready"
        status = self.api.get("Pod", launcher.name, self.namespace)["status"]
        now = status.get("phase")
        if phase in ENDINGS and now == "Running" and launcher.uid not in self._ending:
            # The shell that sends the signal must not end with the container, or its exit status would be lost.
            kill = f"(sleep 0.3; kill -{ENDINGS[phase]} 1) > /dev/null 2>&1 &"
            self.kubelets[launcher.node].exec(self.namespace, launcher.name, kill, "compute")
            self._ending.add(launcher.uid)
        if now != phase:
            told = [f"{event['reason']}: {event['message']}" for event in self.cluster.events(launcher.name, kind="Pod")]
            raise AssertionError(f"{launcher.name} is {now}: {status.get('containerStatuses')} {told}")
        return phase != "Running" or all(container["ready"] for container in status.get("containerStatuses") or [{"ready": False}])

    def _delete_pod(self, name: str) -> None:
        self.api.delete("Pod", name, self.namespace)


def blocks(data: bytes) -> list[Found]:
    """Return what the first bytes of a disk hold, which a machine has written."""
    return [decode(data[at : at + BLOCK], at // BLOCK) for at in range(0, SIZE, BLOCK)]
