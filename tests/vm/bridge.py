"""Lead a TCP port to a unix socket, so that the host can call what a guest serves to its kubelet: ``bridge.py PORT SOCKET``."""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def main(port: int, path: str) -> None:
    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            there, back = await asyncio.open_unix_connection(path)
            with contextlib.closing(back):
                # Both ends close where one does: nobody waits for a process that was killed.
                ways = [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(there, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()

    async with await asyncio.start_server(lead, "0.0.0.0", port) as server:
        await server.serve_forever()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
