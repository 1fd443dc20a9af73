"""What runs in a guest: the driver's Node service on a TCP port, started anew by a process that has its modules loaded already.

Usage: ``python -m tests.vm.node.plugin NODE PORT``. A new life is told how to die by ``/run/plugin-die``: ``3 during`` is a SIGKILL
while the third step that changes something runs, ``3 after`` is one right after it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from rds_csi.interceptors import RpcInterceptor
from rds_csi.metrics import rpc_histogram
from rds_csi.node import commands
from rds_csi.node.commands import Command, Output
from rds_csi.node.host import Host
from rds_csi.node.service import NodeService
from rds_csi.server import CsiServer

DIE = Path("/run/plugin-die")
PID = Path("/run/plugin-pid")
LOOKS_ONLY = ("blkid", "dd")
DURING = 0.03
"""Seconds after the start of a command at which it is under way."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """Counts what changes something, and dies of it where it is told to."""

    def __init__(self, wish: str) -> None:
        number, _, when = wish.partition(" ")
        self.at = int(number or 0)
        self.during = when == "during"
        self.done = 0

    async def step(self, work: Callable[[], Awaitable[Any]]) -> Any:
        self.done += 1
        if self.done != self.at:
            return await work()
        if self.during:
            asyncio.get_running_loop().call_later(DURING, die)
            await work()
            await asyncio.sleep(DURING)
        await work()
        die()
        return None

    async def run(self, command: Command) -> Output:
        if command.name in LOOKS_ONLY:
            return await commands.run(command)
        return await self.step(lambda: commands.run(command))  # type: ignore[no-any-return]


class Reports:
    """Writes every report down."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *said: print("report", name, *said, flush=True)


async def serve(node: str, port: str, dying: Dying) -> None:
    change = Host._change

    async def counted(self: Host, what: str, work: Callable[[], None]) -> None:
        await dying.step(lambda: change(self, what, work))

    Host._change = counted  # type: ignore[method-assign]
    interceptor = RpcInterceptor(rpc_histogram(CollectorRegistry()), driver_name="rds.csi.srvlab.io")
    service = NodeService(node, run=dying.run, reports=Reports())
    server = CsiServer(f"tcp://0.0.0.0:{port}", [service], [interceptor])
    await server.start()
    PID.write_text(str(os.getpid()))  # noqa: ASYNC240
    await asyncio.Event().wait()
    await server.stop()


def main() -> None:
    node, port = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    while True:
        child = os.fork()
        if not child:
            asyncio.run(serve(node, port, Dying(DIE.read_text() if DIE.exists() else "")))
        os.waitpid(child, 0)
        print("the plugin died", flush=True)


if __name__ == "__main__":
    main()
