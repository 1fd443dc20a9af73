"""The guests are what the other tests take them for: real kernels, one disk, a network that can be cut, a target that can die."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ring.processes import LOOPBACK_FROM_GUESTS
from tests.ring.waiting import eventually
from tests.vm.guests import ROOT, Guest, NoAnswer, ScriptFailed
from tests.vm.nvmet import Export

BLOCK = 4096


@pytest.fixture
def export(target: Guest, node_a: Guest, node_b: Guest) -> Iterator[Export]:
    """A disk that both initiators are connected to."""
    export = Export(target, "by-hand")
    export.make()
    yield export
    for node in (node_a, node_b):
        export.disconnect(node)
    export.remove()


def write(guest: Guest, device: str, text: str, block: int = 0) -> None:
    """Write one block past all caches of both machines; the device is never made where it is missing.

    A target may forget what it has acknowledged and was not told to flush, as any disk may.
    """
    guest.sh(
        f"set -e; printf %s {text} > /run/block; truncate -s {BLOCK} /run/block;"
        f"dd if=/run/block of={device} bs={BLOCK} seek={block} oflag=direct,dsync conv=nocreat status=none"
    )


def read(guest: Guest, device: str, block: int = 0) -> str:
    """Read what ``write`` wrote, past all caches."""
    return guest.sh(f"dd if={device} bs={BLOCK} skip={block} count=1 iflag=direct status=none | tr -d '\\0'")


def test_what_one_initiator_writes_the_other_reads(export: Export, node_a: Guest, node_b: Guest) -> None:
    here, there = export.connect(node_a), export.connect(node_b)
    write(node_a, here, "from-a", block=7)
    assert read(node_b, there, block=7) == "from-a"


def test_data_survive_the_death_of_the_target(export: Export, target: Guest, node_a: Guest) -> None:
    device = export.connect(node_a)
    write(node_a, device, "acknowledged")
    target.kill()
    target.start()
    export.make()
    eventually("the session is back", lambda: export.state(node_a) == "live", timeout=60)
    assert read(node_a, device) == "acknowledged"


def test_a_cut_storage_network_loses_the_session_and_nothing_else(export: Export, node_a: Guest) -> None:
    export.connect(node_a)
    with node_a.cut():
        # The kernel notices by its keep-alive, 5 s.
        eventually("the session is lost", lambda: export.state(node_a) == "connecting", timeout=60)
    eventually("the session is back", lambda: export.state(node_a) == "live", timeout=60)


def test_orders_reach_the_machine_that_they_are_meant_for(target: Guest, node_a: Guest, node_b: Guest) -> None:
    for guest in (target, node_a, node_b):
        assert guest.qmp("query-name") == {"name": guest.name}


def test_a_frozen_guest_goes_on_where_it_was(node_a: Guest) -> None:
    node_a.sh("echo here > /run/before")
    node_a.freeze()
    try:
        with pytest.raises(NoAnswer):
            node_a.ask("true", timeout=1)
    finally:
        node_a.thaw()
    assert node_a.sh("cat /run/before") == "here\n"


def test_a_restarted_guest_has_its_name_and_nothing_of_its_past(node_b: Guest) -> None:
    node_b.sh("touch /var/lib/kubelet/left-over /etc/left-over")
    node_b.restart()
    assert node_b.sh("hostname; ls /var/lib/kubelet; ls /etc/left-over 2> /dev/null || true") == "node-b\n"


def test_a_guest_sees_a_checkout_wherever_it_lies(node_b: Guest, tmp_path: Path) -> None:
    # The guest has a /tmp of its own, where this folder would be hidden.
    (tmp_path / "file").write_text("seen")
    with (node_b.share / f"{node_b.name}.paths").open("a") as paths:
        paths.write(f"{tmp_path}\n")
    node_b.restart()
    assert node_b.run("cat", tmp_path / "file") == "seen"


def test_the_clock_of_a_guest_is_the_host_s(node_a: Guest) -> None:
    started = psutil.Process(node_a.pid).create_time()
    before = time.time()
    there, uptime = (float(word) for word in node_a.sh("echo $(date +%s.%N) $(cut -d' ' -f1 /proc/uptime)").split())
    assert before - 2 < there < time.time() + 2
    assert uptime < time.time() - started


def test_the_checkout_runs_in_a_guest(target: Guest, node_a: Guest) -> None:
    for guest in (target, node_a):
        where = guest.run(sys.executable, "-c", "import rds_csi; print(rds_csi.__file__)").strip()
        assert where == str(ROOT / "csi" / "rds_csi" / "__init__.py")


def test_everyone_in_a_guest_sees_one_root(node_a: Guest) -> None:
    assert node_a.sh("stat -L -c %d:%i / /proc/1/root").split()[0] == node_a.sh("stat -L -c %d:%i /proc/1/root").strip()
    assert "shared:" in node_a.sh("grep ' / / ' /proc/self/mountinfo")


def test_a_guest_cannot_change_the_host(node_a: Guest) -> None:
    mark = ROOT / "written-by-a-guest"
    node_a.run("touch", mark)
    assert not mark.exists()


def test_the_shared_folder_shows_both_sides_the_other_s_writes(node_a: Guest, node_b: Guest) -> None:
    for text in ("first", "second"):
        (node_a.share / "from-host").write_text(text)
        assert node_a.sh("cat /share/from-host") == text
        node_b.sh(f"printf {text} > /share/from-guest")
        assert (node_b.share / "from-guest").read_text() == text


def test_a_guest_reaches_a_server_on_the_host_s_loopback_interface(node_a: Guest) -> None:
    port = node_a.ports[7000]
    node_a.sh(f"exec 3<> /dev/tcp/{LOOPBACK_FROM_GUESTS}/{port}")


def test_a_script_that_fails_says_what_it_said(node_a: Guest) -> None:
    with pytest.raises(ScriptFailed, match="exit status 3") as failure:
        node_a.sh("echo out; echo err >&2; exit 3")
    assert failure.value.answer.output == "out\nerr\n"


def test_a_process_of_a_guest_can_be_killed_and_started_again(node_a: Guest) -> None:
    process = node_a.process("teller", ["/bin/sh", "-c", 'echo "$WORD"; exec sleep 600'], env={"WORD": "two words"})
    for life in (1, 2):
        process.start()
        eventually("it spoke", lambda: process.output() == "two words\n" * life)  # noqa: B023
        assert process.returncode is None
        process.kill()
        assert process.returncode == 128 + signal.SIGKILL


def test_a_program_that_cannot_be_started_says_so(node_a: Guest) -> None:
    process = node_a.process("none", ["/nowhere/at-all"]).start()
    assert process.wait_ended() == 127
    assert "/nowhere/at-all" in process.output()


def test_a_guest_dies_with_the_process_that_started_it(node_a: Guest) -> None:
    parents = [process.pid for process in psutil.Process(node_a.pid).parents()]
    assert psutil.Process().pid in parents
    assert Path(f"/proc/{node_a.pid}/exe").resolve().name == "qemu-system-x86_64"
