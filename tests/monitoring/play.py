"""A migration that completes, one that goes on and a pod that is refused, while a real Prometheus looks at all our processes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rds_csi.spec import csi_pb2
from tests.monitoring.rules import RULES
from tests.ring.binaries import ensure
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Node, Operator, Served, Shim
from tests.ring.kubevirt import KubeVirt, Step
from tests.ring.prometheus_server import PrometheusServer
from tests.ring.rpc import Csi
from tests.ring.sidecars import csi_attacher, csi_provisioner
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

SENSORS = (
    ("cpu-temperature", "43", "C"),
    ("board-temperature1", "38", "C"),
    ("fan1-speed", "5654", "RPM"),
    ("fan2-speed", "5610", "RPM"),
    ("psu1-power", "70.5", "W"),
    ("psu2-power", "68.1", "W"),
    ("psu1-temperature", "41", "C"),
    ("psu2-temperature", "40", "C"),
)
FLAGS = ("--inventory-interval=0.5s", "--disk-metrics=volumes")
COUNTED = 'sum(rds_csi_migration_migrations_total{result="success"})'


@dataclass(frozen=True)
class Played:
    """What was played, and who has seen it."""

    server: PrometheusServer
    processes: dict[str, Served]
    volume: str
    """The volume whose migration goes on."""


@contextlib.contextmanager
def played(plane: ControlPlane, cluster: Cluster, folder: Path) -> Iterator[Played]:
    """Start box, processes of ours, sidecars and Prometheus, play, and keep all that running.

    ``plane`` has the manifests and KubeVirt's kinds.
    """
    with contextlib.ExitStack() as running:
        box = running.enter_context(SimulatedBox(folder / "box", version="7.24"))
        box.health(*SENSORS)
        load = running.enter_context(Load(box))
        load.slots.append("storage-pool")
        source, target, elsewhere = (cluster.make_node() for _ in range(3))
        shim = running.enter_context(Shim(plane, folder / "shim", reach(box)))
        operator = running.enter_context(Operator(plane, folder / "operator", box=reach(box), extra=FLAGS))
        node = running.enter_context(Node(plane, folder / "node", source))
        processes: dict[str, Served] = {"controller": shim, "operator": operator, "node": node}
        server = running.enter_context(
            PrometheusServer(ensure(["prometheus"])["prometheus"], folder / "prometheus", RULES, processes)
        )
        for sidecar in (csi_provisioner, csi_attacher):
            running.enter_context(sidecar(plane, shim.socket, folder / "logs"))
        # What counts from here on was seen at 0 before.
        eventually("all are scraped", lambda: server.scraped() and server.query(COUNTED))
        running.callback(cluster.clean_up)
        kubevirt = KubeVirt(cluster)
        running.callback(kubevirt.clean_up)
        storage_class = cluster.make_storage_class()
        moved, moving = (cluster.make_claim(storage_class) for _ in range(2))
        handles = [cluster.wait_bound(claim) for claim in (moved, moving)]
        load.slots.extend(handles)
        runs = [kubevirt.migrate(kubevirt.run(f"vm-{claim}", claims=[claim], node=source), to=target) for claim in (moved, moving)]
        runs[0].complete()
        runs[1].until(Step.RUNNING)
        cluster.launcher_pod(moving, elsewhere, stem="backup")
        cluster.wait_attach_error(handles[1], elsewhere)
        with Csi(node.endpoint) as csi:
            csi.call(csi.node.NodeGetInfo, csi_pb2.NodeGetInfoRequest())
        yield Played(server, processes, handles[1])


def filled_in(query: str, volume: str) -> str:
    """Return the query as Grafana sends it."""
    return query.replace("$__rate_interval", "1m").replace("$volume", volume)


class Load:
    """Lets disks of the box do something all the time: averages between two looks are there only then. A context manager."""

    def __init__(self, box: SimulatedBox) -> None:
        self.slots: list[str] = []
        self._box = box
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        turn = 0
        while not self._ended.wait(0.2):
            turn += 1
            for number, slot in enumerate(self.slots, 1):
                self._box.traffic(slot, **counters(number, turn))


def counters(share: int, turn: int) -> dict[str, int | str]:
    """Return what a disk with that share of the load has done after so many turns."""
    level = share * (2 + turn % 5)
    return {
        "read_ops_per_second": 40 * level,
        "write_ops_per_second": 76 * level,
        "read_rate": f"{6.4 * level:.1f}Mbps",
        "write_rate": f"{12.8 * level:.1f}Mbps",
        "in_flight_ops": level,
        "read_ops": 1000 * turn,
        "write_ops": 2000 * turn,
        "read_time": f"{turn}s",
        "write_time": f"{2 * turn}s",
        "wait_time": f"{turn}s",
        "active_time": f"{10 * turn}s",
    }
