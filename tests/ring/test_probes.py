"""Liveness probes as the manifests have them: what is frozen is started anew and works again, what is only alone is left."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rds_csi.spec import csi_pb2
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Node, Operator, Served, Shim
from tests.ring.installation import CONTROLLER, NODE, OPERATOR
from tests.ring.prober import Liveness, Prober, liveness
from tests.ring.proxy import Proxy
from tests.ring.rpc import Csi
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

STUCK = Path(__file__).with_name("stuck.py")
PROGRAMS = (CONTROLLER, NODE, OPERATOR)


@dataclass
class Program:
    """One of the three programs with its probe, and how to see that it works."""

    process: Served
    liveness: Liveness
    works: Callable[[], bool]


MakeProgram = Callable[..., Program]


@pytest.fixture
def make_program(installed: ControlPlane, cluster: Cluster, box: SimulatedBox, tmp_path: Path) -> Iterator[MakeProgram]:
    """Make a program, not started yet, by the name of its workload; it ends with the test."""
    with ExitStack() as ends:

        def make(name: str, *, box: SimulatedBox = box, through: Proxy | None = None) -> Program:
            program = _program(installed, cluster, tmp_path, name, box, through)
            ends.callback(program.process.kill)
            return program

        yield make


def _program(plane: ControlPlane, cluster: Cluster, folder: Path, name: str, box: SimulatedBox, through: Proxy | None) -> Program:
    if name == CONTROLLER:
        shim = Shim(plane, folder, reach(box), through=through)
        node = cluster.make_node()

        def published() -> bool:
            volume = cluster.make_static_volume(bound=False)
            with Csi(shim.endpoint) as csi:
                return bool(csi.publish(volume.handle, node))

        return Program(shim, liveness(name), published)
    if name == NODE:
        node = cluster.make_node()
        plugin = Node(plane, folder, node, through=through)

        def named() -> bool:
            with Csi(plugin.endpoint) as csi:
                return bool(csi.call(csi.node.NodeGetInfo, csi_pb2.NodeGetInfoRequest()).node_id == node)

        return Program(plugin, liveness(name), named)
    operator = Operator(plane, folder, through=through, extra=(f"--lease-name=operator-{cluster.tag}",))
    return Program(operator, liveness(name), lambda: json.loads(operator.get("/readyz")[1])["role"] == "active")


def hold_the_loop(process: Served) -> None:
    process.signal(signal.SIGUSR1)
    eventually("the event loop is held", lambda: "the event loop is held" in process.tail())
    assert psutil.Process(process.pid).status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}


def remove_its_socket(process: Served) -> None:
    assert isinstance(process, Shim | Node)
    Path(process.endpoint.removeprefix("unix://")).unlink()


# What is frozen


@pytest.mark.requirement("R20")
@pytest.mark.parametrize(
    ("name", "freeze", "wrong"),
    [
        *((name, lambda process: process.signal(signal.SIGSTOP), "ReadTimeoutError") for name in PROGRAMS),
        *((name, hold_the_loop, "ReadTimeoutError") for name in PROGRAMS),
        *((name, remove_its_socket, "503: Probe at unix:") for name in (CONTROLLER, NODE)),
    ],
    ids=[*(f"{name}-stopped" for name in PROGRAMS), *(f"{name}-loop" for name in PROGRAMS), "controller-socket", "node-socket"],
)
def test_a_frozen_process_is_started_anew_and_works_again(
    make_program: MakeProgram, name: str, freeze: Callable[[Served], None], wrong: str
) -> None:
    program = make_program(name)
    process = program.process
    process.argv = [sys.executable, str(STUCK), *process.argv]
    process.start()
    eventually("it works", program.works)
    with Prober(process, program.liveness) as prober:
        first = process.pid
        freeze(process)
        eventually("it is started anew", lambda: prober.restarts)
        eventually("it works again", program.works)
    (said,) = prober.restarts
    assert process.pid != first
    assert len(said) == program.liveness.failures
    assert [one for one in said if not one.startswith(wrong)] == []


def test_a_process_that_works_says_so_each_time(make_program: MakeProgram) -> None:
    program = make_program(NODE)
    program.process.start()
    asked = 2 * program.liveness.failures
    assert [program.liveness.answers(program.process) for _ in range(asked)] == [""] * asked


# What is only alone


@pytest.mark.requirement("R20")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_process_is_alive_while_box_and_api_server_are_away(
    make_program: MakeProgram, proxy: Proxy, tmp_path: Path, name: str
) -> None:
    with SimulatedBox(tmp_path / "box") as away:
        program = make_program(name, box=away, through=proxy)
        away.stop()
        proxy.freeze()
        program.process.launch()
        eventually("it answers", lambda: not program.liveness.answers(program.process))
        if name != NODE:
            eventually("it tells what is away", lambda: program.process.get("/readyz")[0] == 503)
        asked = program.liveness.failures
        assert [program.liveness.answers(program.process) for _ in range(asked)] == [""] * asked
        assert program.process.running
