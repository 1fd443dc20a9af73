"""``./justw bench publish``: a publish through gRPC against the bare ``PUT …/status`` that it cannot do without.

Both go to the same real API server in the same run, in turns, one after another and with 64 in flight. A publish is the first node
of a volume: it reads the record and the Node, and writes the record.

Then the second node: under ``AnyTwoNodes``, and under ``KubeVirt`` with a virtual machine, its pods and its migration there,
one of five of its namespace on each node, so that the difference is what the driver takes to find the migration.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import uvloop
import yaml
from rich.console import Console
from rich.table import Table

from rds_csi.spec import csi_pb2, csi_pb2_grpc
from rds_records.decisions import Decided
from rds_records.names import FINALIZER, record_name
from rds_records.record import AccessMode, DualAttachPolicy, ObjectReference, Record, Spec, Status, VolumeMode
from rds_records.store import COLLECTION
from rds_records.transitions import Access, attach, initialize
from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.driver import Shim
from tests.ring.installation import CONTROLLER, NAMESPACE
from tests.ring.kubevirt import VMI, KubeVirt, install_kinds
from tests.ring.stack import Stack, reach

ROUNDS = 4
SERIAL = 100
PARALLEL = 400
IN_FLIGHT = 64
P50_LIMIT = 2.5
RATE_LIMIT = 0.5
GATE_LIMIT_MS = 10.0
NAMESPACES = 8
VMS = 5
"""Virtual machines in each namespace, all on the same node, all migrating to the same other node."""

PAUSE = 0.15
"""Seconds before each second node: an API server asks etcd at most every 100 ms how far its caches are behind, so lists that want
the newest state and follow each other faster wait for that, whoever asks for them."""

PADDING = "x" * 8192
"""Pods and VirtualMachineInstances of KubeVirt are about so much longer than those of the ring."""

Call = Callable[[str], Awaitable[None]]


@dataclass
class Figures:
    """What one kind of call took over all rounds: seconds one after another, and calls per second with many in flight."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    async def time(self, call: Call, name: str) -> None:
        """Call it once."""
        begin = time.perf_counter()
        await call(name)
        self.seconds.append(time.perf_counter() - begin)

    async def measure(self, call: Call, names: list[str]) -> None:
        """Call it for the first names one after another, for the others with ``IN_FLIGHT`` at a time."""
        for name in names[:SERIAL]:
            await self.time(call, name)
        waiting = iter(names[SERIAL:])

        async def worker() -> None:
            for name in waiting:
                await call(name)

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as workers:
            for _ in range(IN_FLIGHT):
                workers.create_task(worker())
        self.rates.append((len(names) - SERIAL) / (time.perf_counter() - begin))


class Server:
    """The bare client: aiohttp on keep-alive connections, as the shim's ServiceAccount."""

    def __init__(self, kubeconfig: Path, node: str) -> None:
        self.node = node
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.url = str(cluster["server"])
        tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=128),
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}", "Content-Type": "application/json"},
        )
        self.ready: dict[str, bytes] = {}

    async def send(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        async with self.session.request(method, self.url + path, data=body) as answer:
            content: dict[str, Any] = await answer.json()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {content}")
            return content

    async def make(
        self,
        handle: str,
        *,
        policy: DualAttachPolicy = DualAttachPolicy.ANY_TWO_NODES,
        claim: ObjectReference | None = None,
    ) -> None:
        """Create an initialized record, and keep the body of the PUT that attaches a node to it."""
        spec = Spec(
            volume_handle=handle,
            volume_mode=VolumeMode.BLOCK,
            access_mode=AccessMode.READ_WRITE_MANY,
            capacity_bytes=1 << 30,
            target={"nqn": f"nqn.2000-02.com.mikrotik:{handle}", "slot": handle, "filePath": f"/pool/{handle}.img"},
            dual_attach_policy=policy,
        )
        created = Record.from_json(
            await self.send(
                "POST", COLLECTION, json.dumps(Record.new(spec, (FINALIZER,)).replace(status=Status()).to_json()).encode()
            )
        )
        now = created.metadata.creation_timestamp
        assert now is not None
        empty = initialize(created, now=now, claim=claim).record
        path = f"{COLLECTION}/{record_name(handle)}/status"
        stored = Record.from_json(await self.send("PUT", path, json.dumps(empty.to_json()).encode()))
        access = Access(AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK)
        attached = attach(stored, self.node, access, now=now, new_id="bench", node_exists=True)
        assert isinstance(attached, Decided)
        body = attached.record.to_json()
        body["metadata"].pop("managedFields", None)
        self.ready[handle] = json.dumps(body, separators=(",", ":")).encode()

    async def put(self, handle: str) -> None:
        await self.send("PUT", f"{COLLECTION}/{record_name(handle)}/status", self.ready[handle])

    async def put_back(self, handle: str) -> None:
        """Let only the first node hold the volume again, whatever happened since."""
        path = f"{COLLECTION}/{record_name(handle)}"
        body = await self.send("GET", path, b"")
        body["status"] = json.loads(self.ready[handle])["status"]
        await self.send("PUT", f"{path}/status", json.dumps(body).encode())


class Detached(KubeVirt):
    """A KubeVirt whose pods need not wait for their disks: the calls that attach them are what is measured."""

    def attached(self, handles: Iterable[str], node: str) -> bool:
        return True

    def _make_pod(self, *arguments: Any) -> Object:
        pod = super()._make_pod(*arguments)
        note = {"metadata": {"annotations": {"bench/padding": PADDING}}}
        return self.api.patch("Pod", pod["metadata"]["name"], note, self.namespace)


def start_migrations(stack: Stack, source: str, target: str) -> dict[str, ObjectReference]:
    """Let virtual machines migrate from one node to the other, as far as their second node; return their volumes and claims."""
    install_kinds(stack.plane.api)
    volumes: dict[str, ObjectReference] = {}
    for _ in range(NAMESPACES):
        cluster = Cluster(stack.plane.api, stack.kubelet)
        kubevirt = Detached(cluster)
        disks = [cluster.make_static_volume(bound=False) for _ in range(VMS)]
        for number, disk in enumerate(disks):
            cluster.wait_bound(disk.claim)
            vm = kubevirt.run(f"vm-{number}", claims=[disk.claim], node=source)
            cluster.api.patch(VMI, vm.name, {"metadata": {"annotations": {"bench/padding": PADDING}}}, cluster.namespace)
            kubevirt.migrate(vm, to=target).until("attached")
            volumes[disk.handle] = ObjectReference(namespace=cluster.namespace, name=disk.claim)
    return volumes


def make_node(stack: Stack) -> str:
    """Make a node that the attach/detach controller leaves alone."""
    name = stack.cluster.name(f"bench-{secrets.token_hex(2)}")
    stack.plane.api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    return name


def names(kind: str, round_number: int) -> list[str]:
    return [f"bench-{kind}-{round_number}-{number}" for number in range(SERIAL + PARALLEL)]


@dataclass
class Measured:
    """All figures of one run."""

    bare: Figures = field(default_factory=Figures)
    first: Figures = field(default_factory=Figures)
    any_two: Figures = field(default_factory=Figures)
    gate: Figures = field(default_factory=Figures)


async def measure(server: Server, shim: Shim, target: str, disks: dict[str, ObjectReference], console: Console) -> Measured:
    measured = Measured()
    capability = csi_pb2.VolumeCapability(
        block=csi_pb2.VolumeCapability.BlockVolume(),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode="MULTI_NODE_MULTI_WRITER"),
    )
    async with grpc.aio.insecure_channel(shim.endpoint) as channel:
        controller = csi_pb2_grpc.ControllerStub(channel)

        async def publish(handle: str, node: str) -> None:
            request = csi_pb2.ControllerPublishVolumeRequest(volume_id=handle, node_id=node, volume_capability=capability)
            await controller.ControllerPublishVolume(request, timeout=60)

        twins = {handle: f"bench-second-{number}" for number, handle in enumerate(disks)}
        for handle, claim in disks.items():
            await server.make(handle, policy=DualAttachPolicy.KUBEVIRT, claim=claim)
            await server.make(twins[handle])
        for number in range(ROUNDS + 1):
            scratch = measured if number else Measured()
            volumes = {"put": names("put", number), "publish": names("publish", number)}
            makers = asyncio.Semaphore(32)

            async def make(handle: str, makers: asyncio.Semaphore = makers) -> None:
                async with makers:
                    await server.make(handle)

            console.print(
                f"[dim]round {number} of {ROUNDS}{' (warm-up)' if not number else ''}: {2 * (SERIAL + PARALLEL)} records, "
                f"{2 * len(disks)} second nodes[/]"
            )
            await asyncio.gather(*(make(handle) for handles in volumes.values() for handle in handles))
            await scratch.bare.measure(server.put, volumes["put"])
            await scratch.first.measure(lambda handle: publish(handle, server.node), volumes["publish"])
            for handle, twin in twins.items():
                await asyncio.gather(server.put_back(handle), server.put_back(twin))
                for figures, volume in ((scratch.any_two, twin), (scratch.gate, handle)):
                    await asyncio.sleep(PAUSE)
                    await figures.time(lambda volume: publish(volume, target), volume)
    await server.session.close()
    return measured


def report(measured: Measured, console: Console) -> bool:
    """Print the table; tell whether everything is reached."""
    bare, first, any_two, gate = measured.bare, measured.first, measured.any_two, measured.gate
    latency, throughput, more = first.p50 / bare.p50, first.rate / bare.rate, (gate.p50 - any_two.p50) * 1e3
    table = Table(
        title=f"a publish, {ROUNDS} rounds of {SERIAL} one after another and {PARALLEL} in parallel; "
        f"of second nodes {len(gate.seconds)}, one each {PAUSE:g} s"
    )
    for heading in ("", "p50", "p99", f"{IN_FLIGHT} in flight", "measured", "to reach"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(what: str, figures: Figures, found: str = "", wanted: str = "") -> None:
        rate = f"{figures.rate:.0f} /s" if figures.rates else ""
        table.add_row(what, f"{figures.p50 * 1e3:.2f} ms", f"{figures.p99 * 1e3:.2f} ms", rate, found, wanted)

    row("bare PUT …/status", bare)
    row("first node (GET ‖ GET, PUT)", first, f"p50 × {latency:.2f}", f"≤ {P50_LIMIT}")
    table.add_row("", "", "", "", f"rate × {throughput:.2f}", f"≥ {RATE_LIMIT}")
    row("second node, AnyTwoNodes (GET ‖ GET, PUT)", any_two)
    row("second node, KubeVirt (GET ‖ GET, 4 reads, 2 reads, PUT)", gate, f"p50 + {more:.2f} ms", f"≤ {GATE_LIMIT_MS:g} ms")
    console.print(table)
    return latency <= P50_LIMIT and throughput >= RATE_LIMIT and more <= GATE_LIMIT_MS


def main() -> None:
    console = Console(width=140 if not sys.stdout.isatty() else None)
    with tempfile.TemporaryDirectory(prefix="rds-bench-") as folder, Stack(Path(folder)) as stack:
        # A publish needs no box, so none is there: its address leads nowhere.
        keys = stack.box()
        box = reach(keys)
        keys.stop()
        shim = stack.shim(box)
        kubeconfig = stack.plane.kubeconfig_for(NAMESPACE, CONTROLLER)
        source, target = make_node(stack), make_node(stack)
        console.print(f"[dim]{NAMESPACES * VMS} virtual machines begin to migrate[/]")
        disks = start_migrations(stack, source, target)

        async def run() -> Measured:
            return await measure(Server(kubeconfig, source), shim, target, disks, console)

        measured = uvloop.run(run())
    sys.exit(0 if report(measured, console) else 1)


if __name__ == "__main__":
    main()
