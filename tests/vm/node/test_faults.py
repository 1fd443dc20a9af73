"""The Node service when something breaks: sessions that go, a box that moves or is silent, a plugin that is killed at each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.ring.waiting import eventually
from tests.vm.guests import Guest
from tests.vm.node.client import BLOCK, IN_USE, Make, Node, Volume, refused, retried

pytestmark = pytest.mark.long

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
VOLUMES = 16
MAX_STEPS = 20


@pytest.mark.requirement("R55")
@pytest.mark.parametrize("fs", [BLOCK, "ext4", "xfs"])
@pytest.mark.parametrize("when", ["during", "after"])
def test_a_call_that_is_killed_at_each_of_its_steps_is_continued_by_its_repetition(
    node: Node, make: Make, fs: str, when: str
) -> None:
    for step in range(1, MAX_STEPS):
        # Only a blank volume is formatted: each stage has one of its own.
        volume = make(fs)
        killed = _killed(node, node.stage, volume, step, when)
        retried(node.stage, volume)
        assert len(node.mounts(volume.staging)) == (fs != BLOCK)
        if not killed:
            break
        retried(node.unstage, volume)
    assert step > 1
    for call, back in ((node.publish, node.unpublish), (node.unpublish, node.publish), (node.unstage, node.stage)):
        for step in range(1, MAX_STEPS):
            killed = _killed(node, call, volume, step, when)
            # What a killed life started may still run, and have the volume in use.
            retried(call, volume)
            assert len(node.mounts(volume.target())) == (call == node.publish and fs != BLOCK)
            if not killed:
                break
            retried(back, volume)
        assert step > 1
    assert not node.connected(volume)
    assert node.mounts(volume.staging) == []


def _killed(node: Node, call: Callable[[Volume], object], volume: Volume, step: int, when: str) -> bool:
    """Make a call in a life that ends with its step of that number; return whether it came to that step."""
    node.to_die(step, when)
    try:
        call(volume)
    except grpc.RpcError as error:
        if error.code() is not UNAVAILABLE:
            raise
        node.wait()
        return True
    # The life that did not die must not do so in the next call.
    node.kill()
    return False


@pytest.mark.requirement("R58")
def test_a_box_that_has_moved_is_connected_where_it_is_now(node: Node, make: Make, target: Guest) -> None:
    volume = make()
    node.stage(volume)
    node.unstage(volume)
    target.sh("ifconfig eth1:1 10.77.0.200 netmask 255.255.255.0 up")
    try:
        moved = Volume(volume.export)
        _move(volume, "10.77.0.200", 4431)
        node.stage(moved, address="10.77.0.200", port=4431)
        assert "traddr=10.77.0.200,trsvcid=4431" in node.guest.sh("cat /sys/class/nvme/*/address")
        # It moves back while the session of before looks for it at its old address for ever.
        _move_back(volume, 4431)
        eventually("the session is lost", lambda: volume.export.state(node.guest) == "connecting", timeout=60)
        node.stage(volume)
        assert "traddr=10.77.0.200" not in node.guest.sh("cat /sys/class/nvme/*/address")
        assert volume.export.state(node.guest) == "live"
    finally:
        target.sh("ifconfig eth1:1 down || true")


def _move(volume: Volume, address: str, port: int) -> None:
    ports = "/sys/kernel/config/nvmet/ports"
    volume.export.target.sh(f"""
        set -e
        rm {ports}/{volume.export.port}/subsystems/{volume.export.nqn}
        mkdir {ports}/{port}; cd {ports}/{port}
        echo ipv4 > addr_adrfam; echo tcp > addr_trtype; echo {address} > addr_traddr; echo {port} > addr_trsvcid
        ln -s /sys/kernel/config/nvmet/subsystems/{volume.export.nqn} subsystems/
    """)


def _move_back(volume: Volume, port: int) -> None:
    ports = "/sys/kernel/config/nvmet/ports"
    volume.export.target.sh(f"""
        set -e
        rm {ports}/{port}/subsystems/{volume.export.nqn}; rmdir {ports}/{port}
        ln -s /sys/kernel/config/nvmet/subsystems/{volume.export.nqn} {ports}/{volume.export.port}/subsystems/
    """)


def test_a_session_that_went_away_under_a_mount_is_made_anew_and_reported(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    path = node.publish(volume)
    node.guest.sh(f"echo precious > {path}/file; sync {path}/file; nvme disconnect -n {volume.export.nqn}")
    refused(UNAVAILABLE, node.stats, volume)
    node.stage(volume)
    # The pod's mount is dead with the disk that it was of; a new one leads to the new disk.
    node.publish(volume)
    assert node.guest.sh(f"cat {path}/file") == "precious\n"
    said = node.process.output()
    assert f"report stale_mount_found {volume.handle} {volume.staging}" in said
    assert f"report stale_mount_recovered {volume.handle} {volume.staging} \n" in said
    node.unpublish(volume)
    node.unstage(volume)


def test_an_unknown_volume_is_refused_with_both_reasons_and_tried_again_with_growing_delays(node: Node, make: Make) -> None:
    # The kernel listens on a port as long as it offers anything there.
    make()
    volume = make()
    export = volume.export
    export.target.sh(f"rm /sys/kernel/config/nvmet/ports/{export.port}/subsystems/{export.nqn}")
    try:
        words = refused(UNAVAILABLE, node.stage, volume, timeout=12)
        assert "either does not know" in words
        assert "does not admit this node's host NQN" in words
        assert 2 <= node.process.output().count(f"report connect_ended {volume.handle}") <= 5
    finally:
        export.target.sh(
            f"ln -s /sys/kernel/config/nvmet/subsystems/{export.nqn} /sys/kernel/config/nvmet/ports/{export.port}/subsystems/"
        )
    node.stage(volume)


def test_a_box_that_cannot_be_reached_is_unavailable_within_the_call_s_time(node: Node, make: Make) -> None:
    volume = make()
    started = time.monotonic()
    assert "cannot be connected to" in refused(UNAVAILABLE, node.stage, volume, port=4999, timeout=8)
    assert time.monotonic() - started < 9
    assert not node.connected(volume)


def test_a_silent_box_holds_up_no_call_for_longer_than_its_time_and_no_other_volume(node: Node, make: Make) -> None:
    volume, gone = make("ext4"), make("ext4")
    node.stage(gone)
    node.publish(gone)
    block = Volume(volume.export)
    node.stage(block)
    with node.guest.cut():
        # The kernel does not know yet that nobody answers: what reads the device waits in the kernel, and cannot be ended.
        started = time.monotonic()
        refused(UNAVAILABLE, node.stage, volume, timeout=15)
        assert time.monotonic() - started < 16
        eventually("the loss is noticed", lambda: volume.export.state(node.guest) == "connecting", timeout=60)
        assert "no controller is live" in refused(UNAVAILABLE, node.stage, volume, timeout=4)
        assert node.stats(gone)["BYTES"].total
        node.unpublish(gone)
        node.wait(10)
    retried(node.stage, volume)
    assert len(node.mounts(volume.staging)) == 1


def test_a_call_whose_caller_left_gives_the_volume_free_and_ends_what_it_ran(node: Node, make: Make) -> None:
    volume = make()
    with pytest.raises(grpc.RpcError) as error:
        node.stage(volume, port=4999, timeout=1)
    assert error.value.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, UNAVAILABLE}
    node.stage(volume)
    assert node.guest.ask("pgrep -x nvme").status != 0


def test_a_second_call_for_a_volume_is_aborted_while_the_first_runs(node: Node, make: Make) -> None:
    volume = make()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(refused, UNAVAILABLE, node.stage, volume, port=4999, timeout=8)
        eventually("the first runs", lambda: volume.handle in node.process.output(), timeout=20)
        assert "is in flight" in refused(grpc.StatusCode.ABORTED, node.stage, volume)
        first.result()


def test_sixteen_volumes_at_once(node: Node, make: Make) -> None:
    volumes = [make("ext4" if number % 4 == 0 else BLOCK) for number in range(VOLUMES)]
    with ThreadPoolExecutor(VOLUMES) as pool:
        first: tuple[Callable[[Volume], object], ...] = (node.stage, node.publish)
        last: tuple[Callable[[Volume], object], ...] = (node.unpublish, node.unstage)
        for call in first:
            list(pool.map(lambda volume: retried(call, volume, timeout=240), volumes))  # noqa: B023
        for volume in volumes:
            if volume.fs == BLOCK:
                assert node.number(volume.target()) == node.number(node.disk(volume))
        assert len({node.number(node.disk(volume)) for volume in volumes}) == VOLUMES
        for call in last:
            list(pool.map(lambda volume: retried(call, volume, timeout=240), volumes))  # noqa: B023
    assert not any(node.connected(volume) for volume in volumes)


def test_a_device_in_use_is_not_taken_away_while_its_box_is_silent(node: Node, make: Make) -> None:
    volume = make()
    node.stage(volume)
    holder = node.guest.process("holder", ["/bin/sh", "-c", f"exec 3< {node.disk(volume)}; exec sleep 600"]).start()
    try:
        with node.guest.cut():
            eventually("the loss is noticed", lambda: volume.export.state(node.guest) == "connecting", timeout=60)
            assert "has the device open" in refused(IN_USE, node.unstage, volume)
            holder.kill()
            node.unstage(volume)
            assert not node.connected(volume)
    finally:
        holder.stop()
