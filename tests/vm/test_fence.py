"""The fence, on kernels: whether what a detached node writes reaches the disk.

The shim runs on the host and talks to the simulated box in the target guest; the sessions are those of two kernels, connected
under the host NQNs of two Nodes, for good (``ctrl_loss_tmo=-1``), as the node service connects them. That a Node is not ready is
written into it: no kubelet runs here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rds_records.names import host_nqn_for
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Shim
from tests.ring.rpc import Csi
from tests.ring.stack import reach
from tests.ring.waiting import eventually
from tests.vm.box import BoxInGuest
from tests.vm.guests import Guest, GuestProcess, Link, ScriptFailed
from tests.vm.nvmet import Export
from tests.vm.test_guests import BLOCK, read, write

FENCE = ["allow-host-name", pytest.param("none", marks=pytest.mark.long)]
RECONNECT_SECONDS = 10
"""The delay with which the node that stays comes back where that is measured: longer than the cycle of an export takes."""

BUSY_SECONDS = 30
"""What an emulated machine may take for a reconnect or a write."""

HANDSHAKE_SECONDS = 4
"""What an emulated machine takes to tear a session down and to set it up again, beside the delay between the two."""


class Scene:
    """One volume, and two nodes that may connect to it: A, which is lost, and B, which takes over."""

    def __init__(self, plane: ControlPlane, csi: Csi, target: Guest, node_a: Guest, node_b: Guest) -> None:
        self.cluster = Cluster(plane.api)
        self.csi, self.a, self.b = csi, node_a, node_b
        self.lost, self.other = self.cluster.make_node("lost"), self.cluster.make_node("other")
        self.handle = str(csi.create(f"pvc-{uuid.uuid4()}").volume_id)
        self.disk = Export(target, self.handle, port=4420)

    def attach(self, node: str, guest: Guest, *, reconnect_delay: int = 1) -> str:
        """Publish to the node, and connect its kernel; returns the device. The node service tries again too."""
        self.csi.publish(self.handle, node)

        def connected() -> str:
            try:
                return self.disk.connect(guest, host_nqn_for(node), reconnect_delay=reconnect_delay)
            except ScriptFailed as error:
                raise AssertionError(str(error)) from error

        return eventually(f"{guest.name} is connected", connected, timeout=90, interval=1)

    def force_detach(self) -> None:
        """Have Kubernetes give up the lost node."""
        body = self.cluster.api.get("Node", self.lost)
        body["status"]["conditions"] = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
        self.cluster.api.replace(body, "status")
        self.csi.unpublish(self.handle, self.lost)

    def write_later(self, device: str, text: str) -> GuestProcess:
        """Write block 0 from the lost node in the background: what waits for a lost disk cannot be ended."""
        script = (
            f"printf %s {text} > /run/late; truncate -s {BLOCK} /run/late;"
            f" exec dd if=/run/late of={device} bs={BLOCK} oflag=direct conv=nocreat status=none"
        )
        return self.a.process(f"writer-{text}", ["bash", "-c", script]).start()

    def is_refused(self) -> bool:
        """Tell whether the kernel of the lost node tried to connect and was refused."""
        return self.disk.state(self.a) == "connecting" and "is not allowed" in self.a.sh("dmesg")

    def is_live(self, guest: Guest) -> bool:
        return self.disk.state(guest) == "live"

    @property
    def fenced(self) -> tuple[str, bool]:
        """What the record says: the condition, and of the forced detach."""
        record = self.cluster.record(self.handle)
        assert record is not None
        condition = next(one for one in record["status"]["conditions"] if one["type"] == "Fenced")
        return condition["status"], record["status"]["forcedDetaches"][-1]["fenced"]

    def close(self) -> None:
        """Let go of the disk, everywhere; writes that wait for it fail then."""
        for guest in (self.a, self.b):
            for link in Link:
                guest.set_link(link, up=True)
            self.disk.disconnect(guest)
        self.csi.unpublish(self.handle)
        self.csi.delete(self.handle)
        self.cluster.clean_up()


@pytest.fixture
def scene(
    plane: ControlPlane, box: BoxInGuest, target: Guest, node_a: Guest, node_b: Guest, tmp_path: Path
) -> Iterator[Callable[[str], Scene]]:
    """Return a function that starts a shim with the fence on or off, and makes the scene."""
    with ExitStack() as ends:

        def make(fence: str) -> Scene:
            extra = [f"--fence={fence}", f"--nvme-address={box.nvme_address}"]
            shim = ends.enter_context(Shim(plane, tmp_path / "shim", reach(box), extra=extra))
            csi = ends.enter_context(Csi(shim.endpoint))
            for guest in (node_a, node_b):
                guest.run("dmesg", "--clear")
            scene = Scene(plane, csi, target, node_a, node_b)
            ends.callback(scene.close)
            return scene

        yield make


@pytest.mark.requirement("R31b")
@pytest.mark.parametrize("fence", FENCE)
def test_a_node_whose_session_lives_while_it_is_detached_by_force_writes_only_without_the_fence(
    scene: Callable[[str], Scene], fence: str
) -> None:
    its = scene(fence)
    here = its.attach(its.lost, its.a)
    there = its.attach(its.other, its.b)
    write(its.a, here, "before")
    its.force_detach()
    late = its.write_later(here, "late")
    write(its.b, there, "goes-on", block=1)
    assert its.is_live(its.b)
    if fence == "none":
        eventually("the late write is done", lambda: not late.running, timeout=BUSY_SECONDS)
        assert read(its.b, there) == "late"
        assert its.fenced == ("False", False)
        return
    assert its.fenced == ("True", True)
    eventually("the lost node was refused", its.is_refused, timeout=60)
    assert late.running
    assert read(its.b, there) == "before"
    assert read(its.b, there, block=1) == "goes-on"


@pytest.mark.requirement("R31b")
@pytest.mark.parametrize("fence", FENCE)
def test_a_node_that_was_cut_off_and_comes_back_writes_only_without_the_fence(scene: Callable[[str], Scene], fence: str) -> None:
    its = scene(fence)
    here = its.attach(its.lost, its.a)
    write(its.a, here, "before")
    its.a.set_link(Link.STORAGE, up=False)
    late = its.write_later(here, "late")
    its.force_detach()
    there = its.attach(its.other, its.b)
    write(its.b, there, "taken-over")
    its.a.set_link(Link.STORAGE, up=True)
    if fence == "none":
        eventually("the late write is done", lambda: not late.running, timeout=90)
        assert read(its.b, there) == "late"
        return
    assert its.fenced == ("True", True)
    eventually("the lost node was refused", its.is_refused, timeout=90)
    assert late.running
    assert read(its.b, there) == "taken-over"


def test_the_node_that_stays_goes_on_after_its_reconnect_delay_when_the_other_is_fenced(
    scene: Callable[[str], Scene], record_property: Callable[[str, object], None]
) -> None:
    its = scene("allow-host-name")
    its.attach(its.lost, its.a)
    there = its.attach(its.other, its.b, reconnect_delay=RECONNECT_SECONDS)
    its.force_detach()
    write(its.b, there, "soon", block=2)
    lost = lost_seconds(its.b)
    record_property(
        "summary", f"fence: the node that stays was without its disk for {lost:.1f} s, reconnect delay {RECONNECT_SECONDS} s"
    )
    assert "Failed reconnect attempt" not in its.b.sh("dmesg")
    assert lost <= RECONNECT_SECONDS + HANDSHAKE_SECONDS
    assert read(its.b, there, block=2) == "soon"


def lost_seconds(guest: Guest) -> float:
    """Return how long the kernel of a guest was without its disk, by its own log."""
    lines = [line for line in guest.sh("dmesg").splitlines() if "nvme nvme" in line]
    lost, back = (
        next(float(line[1:].partition("]")[0]) for line in lines if words in line)
        for words in ("starting error recovery", "Successfully reconnected")
    )
    return back - lost


@pytest.mark.long
def test_an_orderly_detach_lets_the_other_node_write_without_a_break(scene: Callable[[str], Scene]) -> None:
    its = scene("allow-host-name")
    its.attach(its.lost, its.a)
    there = its.attach(its.other, its.b)
    its.disk.disconnect(its.a)
    its.csi.unpublish(its.handle, its.lost)
    write(its.b, there, "whole")
    assert "error recovery" not in its.b.sh("dmesg")
    with pytest.raises(ScriptFailed, match="could not add new controller"):
        its.disk.connect(its.a, host_nqn_for(its.lost))
