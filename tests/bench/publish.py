"""``./justw bench publish``: a publish through gRPC against the bare ``PUT …/status`` that it cannot do without.

Both go to the same real API server in the same run, in turns, one after another and with 64 in flight. A publish is the first node
of a volume: it reads the record and the Node, and writes the record.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
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
from rds_records.record import AccessMode, Record, Spec, Status, VolumeMode
from rds_records.store import COLLECTION
from rds_records.transitions import Access, attach, initialize
from tests.ring.driver import Shim
from tests.ring.installation import CONTROLLER, NAMESPACE
from tests.ring.stack import Stack, reach

ROUNDS = 4
SERIAL = 100
PARALLEL = 400
IN_FLIGHT = 64
P50_LIMIT = 2.5
RATE_LIMIT = 0.5

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

    async def measure(self, call: Call, names: list[str]) -> None:
        """Call it for the first names one after another, for the others with ``IN_FLIGHT`` at a time."""
        for name in names[:SERIAL]:
            begin = time.perf_counter()
            await call(name)
            self.seconds.append(time.perf_counter() - begin)
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

    async def make(self, handle: str) -> None:
        """Create an initialized record, and keep the body of the PUT that attaches a node to it."""
        spec = Spec(
            volume_handle=handle,
            volume_mode=VolumeMode.BLOCK,
            access_mode=AccessMode.READ_WRITE_MANY,
            capacity_bytes=1 << 30,
            target={"nqn": f"nqn.2000-02.com.mikrotik:{handle}", "slot": handle, "filePath": f"/pool/{handle}.img"},
        )
        created = Record.from_json(
            await self.send(
                "POST", COLLECTION, json.dumps(Record.new(spec, (FINALIZER,)).replace(status=Status()).to_json()).encode()
            )
        )
        now = created.metadata.creation_timestamp
        assert now is not None
        empty = initialize(created, now=now).record
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


def names(kind: str, round_number: int) -> list[str]:
    return [f"bench-{kind}-{round_number}-{number}" for number in range(SERIAL + PARALLEL)]


async def measure(kubeconfig: Path, shim: Shim, node: str, console: Console) -> tuple[Figures, Figures]:
    bare, publish = Figures(), Figures()
    server = Server(kubeconfig, node)
    capability = csi_pb2.VolumeCapability(
        block=csi_pb2.VolumeCapability.BlockVolume(),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode="MULTI_NODE_MULTI_WRITER"),
    )
    async with grpc.aio.insecure_channel(shim.endpoint) as channel:
        controller = csi_pb2_grpc.ControllerStub(channel)

        async def call(handle: str) -> None:
            await controller.ControllerPublishVolume(
                csi_pb2.ControllerPublishVolumeRequest(volume_id=handle, node_id=node, volume_capability=capability), timeout=60
            )

        for number in range(ROUNDS + 1):
            volumes = {"put": names("put", number), "publish": names("publish", number)}
            makers = asyncio.Semaphore(32)

            async def make(handle: str, makers: asyncio.Semaphore = makers) -> None:
                async with makers:
                    await server.make(handle)

            console.print(
                f"[dim]round {number} of {ROUNDS}{' (warm-up)' if not number else ''}: {2 * (SERIAL + PARALLEL)} records[/]"
            )
            await asyncio.gather(*(make(handle) for handles in volumes.values() for handle in handles))
            scratch = Figures(), Figures()
            await (bare if number else scratch[0]).measure(server.put, volumes["put"])
            await (publish if number else scratch[1]).measure(call, volumes["publish"])
    await server.session.close()
    return bare, publish


def report(bare: Figures, publish: Figures, console: Console) -> bool:
    """Print the table; tell whether both ratios are reached."""
    latency, throughput = publish.p50 / bare.p50, publish.rate / bare.rate
    table = Table(title=f"publish against the bare PUT, {ROUNDS} rounds of {SERIAL} one after another and {PARALLEL} in parallel")
    for heading in ("", "bare PUT …/status", "publish (GET ‖ GET, PUT)", "ratio", "to reach"):
        table.add_column(heading, justify="right")
    table.add_row("p50", f"{bare.p50 * 1e3:.2f} ms", f"{publish.p50 * 1e3:.2f} ms", f"{latency:.2f}", f"≤ {P50_LIMIT}")
    table.add_row("p99", f"{bare.p99 * 1e3:.2f} ms", f"{publish.p99 * 1e3:.2f} ms", f"{publish.p99 / bare.p99:.2f}", "")
    table.add_row(f"{IN_FLIGHT} in flight", f"{bare.rate:.0f} /s", f"{publish.rate:.0f} /s", f"{throughput:.2f}", f"≥ {RATE_LIMIT}")
    console.print(table)
    return latency <= P50_LIMIT and throughput >= RATE_LIMIT


def main() -> None:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="rds-bench-") as folder, Stack(Path(folder)) as stack:
        # A publish needs no box, so none is there: its address leads nowhere.
        keys = stack.box()
        box = reach(keys)
        keys.stop()
        shim = stack.shim(box)
        kubeconfig = stack.plane.kubeconfig_for(NAMESPACE, CONTROLLER)
        bare, publish = uvloop.run(measure(kubeconfig, shim, stack.cluster.make_node(), console))
    sys.exit(0 if report(bare, publish, console) else 1)


if __name__ == "__main__":
    main()
