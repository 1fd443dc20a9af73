"""The simulated box as tests hold it: a process of its own that can be stopped, killed, restarted and turned at run time."""

import contextlib
import json
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import asyncssh

from tests.ring.processes import Process
from tests.simulator.frame import thousands
from tests.simulator.images import Images
from tests.simulator.store import Store

START_TIMEOUT = 20.0
ROOT = Path(__file__).resolve().parents[2]


class Program(Protocol):
    """The box's process, wherever it runs."""

    argv: list[str]

    @property
    def running(self) -> bool: ...
    def start(self) -> object: ...
    def stop(self) -> object: ...
    def kill(self) -> object: ...
    def output(self) -> str: ...


class SimulatedBox:
    """A RouterOS simulator in its own process.

    It keeps its port, its host key, its user key and its state over ``stop``, ``kill`` and ``start``. Use as a context
    manager, or call ``start`` and ``stop``.
    """

    def __init__(self, directory: Path, *, user: str = "metal-csi", host_key_type: str = "ssh-ed25519", **switches: Any) -> None:
        """``directory`` holds state, keys and log; ``switches`` are those of ``Switches`` and hold again after a restart."""
        directory.mkdir(parents=True, exist_ok=True)
        self.address = "127.0.0.1"
        self.port = 0
        self.user = user
        self.host_key = ""
        """``ssh-ed25519 AAAA…``, as it would stand in ``authorized_keys``."""
        self.private_key = directory / "id_ed25519"
        self.state_file = directory / "box.json"
        self.log_file = directory / "box.log"
        self.received_file = directory / "received"
        self._public_key = directory / "id_ed25519.pub"
        self._host_key_type = host_key_type
        self._first_switches = dict(switches)
        self._switches = dict(switches)
        # A unix socket's path holds 107 bytes; test directories are often longer.
        self._control_directory = Path(tempfile.mkdtemp(prefix="rds-box-"))
        self._control = self._control_directory / "control"
        self._announced = self._control_directory / "announced"
        self._process = self._make_process()
        if not self.private_key.exists():
            self._make_user_key()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Life

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process.running

    def start(self) -> None:
        """Start the process and wait until it listens; on the port it had before, if it had one."""
        self._announced.unlink(missing_ok=True)
        self._launch()
        self.host_key = json.loads(self._announced.read_text())["host_key"]

    def stop(self) -> None:
        """End the process in good order."""
        self._process.stop()

    def kill(self) -> None:
        """End the process at once: what was being applied may or may not have been kept."""
        self._process.kill()

    def restart(self) -> None:
        """Kill and start again: same port, same keys, same state."""
        self.kill()
        self.start()

    def renew_keys(self) -> None:
        """Start again with a host key and a user's key that it never had, then in ``host_key`` and ``private_key``."""
        self.stop()
        self.state_file.with_name(self.state_file.name + ".hostkey").unlink()
        self._make_user_key()
        self.start()

    def admit(self, public_key: str) -> None:
        """Start again with another key of the user's, as after ``/user/ssh-keys/import``: a line as in ``authorized_keys``."""
        self.stop()
        self._public_key.write_text(public_key)
        self.start()

    def close(self) -> None:
        """Stop, and remove the control channel."""
        self.stop()
        shutil.rmtree(self._control_directory, ignore_errors=True)

    def _make_user_key(self) -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.private_key.touch(mode=0o600)
        key.write_private_key(self.private_key)
        key.write_public_key(self._public_key)

    def _make_process(self) -> Program:
        return Process("RouterOS simulator", [], self.log_file, cwd=ROOT, ready=self._announced.exists, ready_timeout=START_TIMEOUT)

    def _launch(self) -> None:
        self._control.unlink(missing_ok=True)
        where = ("--port", str(self.port), "--state", str(self.state_file), "--control", str(self._control))
        self._process.argv = self._command_line(*where)
        self._process.start()
        self.port = json.loads(self._announced.read_text())["port"]

    def _there(self, path: Path) -> Path:
        """A path as the box's process sees it."""
        return path

    def _command_line(self, *where: str) -> list[str]:
        return [
            sys.executable, "-m", "tests.simulator", *where, "--announce", str(self._there(self._announced)), "--received",
            str(self._there(self.received_file)), "--user", self.user, "--user-key", str(self._there(self._public_key)),
            "--host-key-type", self._host_key_type, "--switches", json.dumps(self._switches),
        ]  # fmt: skip

    def reset(self) -> None:
        """Running, empty, every switch as at the first start, nothing received: as good as new, but on the same port."""
        self._switches = dict(self._first_switches)
        if not self._process.running:
            self.start()
        self._ask("reset", **self._first_switches)

    # At run time

    def switch(self, **values: Any) -> None:
        """Turn switches (see ``Switches``); they hold again after a restart."""
        self._ask("switch", **values)
        self._switches.update(values)

    def drop_link(self, when: str, pattern: str = "", nth: int = 1) -> None:
        """Cut the connection ``before`` or ``after`` applying the nth command that fits the regular expression; once."""
        self._ask("drop", when=when, pattern=pattern, nth=nth)

    def fail_command(self, pattern: str, text: str, nth: int = 1) -> None:
        """Answer the nth command that fits the regular expression with ``text`` and without any effect; once."""
        self._ask("fail", pattern=pattern, text=text, nth=nth)

    def cut(self) -> None:
        """Close every connection now."""
        self._ask("cut")

    def pool(self, **values: Any) -> None:
        """Change the pool: ``size``, ``used_elsewhere`` (bytes), ``mount_point``, ``slot``, ``fs``, ``fs_label``."""
        self._ask("pool", **values)

    def grow_file(self, name: str, size: int) -> None:
        """Give an image another size in bytes, wherever it lies; ``name`` has no leading slash."""
        self._ask("grow", name=name, size=size)

    def health(self, *readings: tuple[str, str, str]) -> None:
        """Replace what the sensors say: name, value, type (``C``, ``RPM``, ``W``, …; empty for a state). None: no sensors."""
        self._ask("health", readings=readings)

    def traffic(self, slot: str, **counters: int | str) -> None:
        """Set counters of ``/disk monitor-traffic``, ``_`` for ``-``; texts such as ``12.8Mbps`` and ``48s149ms`` as they are."""
        texts = {name.replace("_", "-"): value if isinstance(value, str) else thousands(value) for name, value in counters.items()}
        self._ask("traffic", slot=slot, counters=texts)

    def run(self, command: str) -> str:
        """Run a command on the box's own console, without SSH; it is not among ``received``."""
        text: str = self._ask("run", command=command)
        return text

    # Looking inside

    def disks(self) -> dict[str, dict[str, Any]]:
        """The ``type=file`` disks by slot."""
        return {disk["slot"]: disk for disk in self._ask("state")["disks"]}

    def files(self) -> dict[str, dict[str, Any]]:
        """The image files by name (no leading slash), without directories."""
        return {file["name"]: file for file in self._ask("state")["files"] if file["kind"] == "file"}

    def subvolumes(self) -> dict[str, dict[str, Any]]:
        """The Btrfs subvolumes by their path from the file system's root (no leading slash)."""
        return {subvolume["name"]: subvolume for subvolume in self._ask("state")["subvolumes"]}

    def backing_file(self, name: str) -> Path:
        """The real, sparse file with an image's bytes, made if there is none yet; ``name`` as in ``/file``, no leading slash.

        Also while the box is off. KeyError where the box has no such image.
        """
        file = Store.load(self.state_file).files[name]
        if file.kind != "file":
            raise KeyError(name)
        return Images.beside(self.state_file).make(file.image, file.size)

    def received(self, beginning: str = "") -> list[str]:
        """The command lines that arrived over SSH, in order, over all restarts; those that begin so."""
        # What comes after the last line end is still being written.
        lines = self.received_file.read_text().split("\n")[:-1] if self.received_file.exists() else []
        commands = [json.loads(line)["command"] for line in lines]
        return [command for command in commands if command.startswith(beginning)]

    def _ask(self, verb: str, **values: Any) -> Any:
        with contextlib.closing(self._connected()) as link:
            link.sendall(json.dumps({"verb": verb, **values}).encode() + b"\n")
            with link.makefile() as lines:
                line = lines.readline()
        if not line:
            raise ConnectionResetError("the box's control channel was closed without an answer")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["ok"]

    def _connected(self) -> socket.socket:
        with contextlib.ExitStack() as undo:
            link = undo.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
            link.settimeout(5)
            link.connect(str(self._control))
            undo.pop_all()
        return link
