"""Run the simulated box alone: ``python -m tests.simulator``."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import tempfile
from pathlib import Path

import asyncssh

from tests.simulator.nvmet import Nvmet
from tests.simulator.server import serve


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port; 0 takes a free one (default)")
    parser.add_argument("--nvmet", action="store_true", help="export disks for real, through this machine's NVMe target (root)")
    parser.add_argument("--pool", type=Path, help="folder for the state and the images' bytes, instead of --state")
    parser.add_argument("--received", type=Path, help="file that gets every command line; beside the state by default")
    parser.add_argument("--state", type=Path, help="file that keeps disks, files and keys; without it nothing is kept")
    parser.add_argument("--user", default="metal-csi", help="the one user who may log in (default: %(default)s)")
    parser.add_argument("--user-key", type=Path, help="that user's public key; without it a key pair is made beside the state")
    parser.add_argument("--control", type=Path, help="unix socket on which switches are turned (JSON lines)")
    parser.add_argument("--control-port", type=int, help="the same on a TCP port")
    parser.add_argument("--host-key-type", default="ssh-ed25519", choices=["ssh-ed25519", "ssh-rsa"])
    parser.add_argument("--switches", type=json.loads, default={}, help='switches at start, JSON: {"slot_limit": 32}')
    parser.add_argument("--announce", type=Path, help="file that gets port and host key (JSON) once the box listens")
    return parser.parse_args()


def user_key(options: argparse.Namespace) -> tuple[asyncssh.SSHKey, Path | None]:
    """The user's public key, and the private one's file where it was made here."""
    if options.user_key is not None:
        return asyncssh.read_public_key(options.user_key), None
    private = options.state.with_name(options.state.name + ".userkey")
    if not private.exists():
        private.touch(mode=0o600)
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(private)
    return asyncssh.read_private_key(private).convert_to_public(), private


async def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    key, private = user_key(options)
    async with serve(
        state=options.state,
        user=options.user,
        user_key=key,
        port=options.port,
        control=options.control,
        control_port=options.control_port,
        listen=options.listen,
        received=options.received,
        backend=Nvmet if options.nvmet else None,
        host_key_algorithm=options.host_key_type,
        switches=options.switches,
    ) as listening:
        if options.announce:
            fresh = options.announce.with_suffix(".new")
            fresh.write_text(json.dumps({"port": listening.port, "host_key": listening.host_key}))
            os.replace(fresh, options.announce)  # noqa: PTH105
        else:
            identity = f" -i {private}" if private else ""
            print(f"RouterOS simulator on {options.listen}:{listening.port}, host key {listening.host_key}")
            print("Try it (Ctrl-C here stops it):")
            options_text = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes"
            target = f"-p {listening.port} {options.user}@127.0.0.1"
            print(f"  ssh {options_text}{identity} {target} '/disk print detail'", flush=True)
        await stop.wait()


if __name__ == "__main__":
    options = arguments()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("tests.simulator").setLevel(logging.INFO)
    if options.pool is not None:
        options.state = options.pool / "box.json"
    with contextlib.ExitStack() as stack:
        if options.state is None:
            options.state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rds-box-"))) / "box.json"
        asyncio.run(run(options))
