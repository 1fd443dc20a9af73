"""The simulator in a target guest: what its console says is what kernels find."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator

import pytest

from rds_csi.routeros import Box, DiskSpec, FilePath, Nqn, Slot, Subvolumes
from tests.ring.waiting import eventually
from tests.simulator.conftest import Client, client_of, within
from tests.vm.box import BoxInGuest
from tests.vm.guests import Guest, ScriptFailed
from tests.vm.nvmet import NQN_PREFIX, Export
from tests.vm.test_guests import read, write

SIZE = 1 << 30
BASE = FilePath("/storage-pool/metal-csi")
NAMES = ("pvc-in-guest", "pvc-other")
HOST_A, HOST_B = (f"nqn.2014-08.org.nvmexpress:uuid:6b1a1d5e-0000-4000-8000-00000000000{number}" for number in (1, 2))
SLOW = {"connect_timeout": 30.0, "session_timeout": 30.0}
"""An emulated processor takes its time for an SSH handshake."""


def spec(name: str, directory: FilePath = BASE) -> DiskSpec:
    """A volume as the shim makes it."""
    return DiskSpec(Slot(name), directory.child(f"{name}.img"), SIZE, Nqn(NQN_PREFIX + name))


@pytest.fixture
async def client(box: BoxInGuest) -> AsyncIterator[Client]:
    """The driver's own client, connected to the box."""
    async with client_of(box, **SLOW) as made:
        await made[1].wait_connected(30)
        yield made


@pytest.fixture
async def ros(client: Client) -> Box:
    """What the driver does with disks."""
    return client[0]


@pytest.fixture
def disks(box: BoxInGuest, target: Guest, node_a: Guest, node_b: Guest) -> Iterator[tuple[Export, Export]]:
    """Two names under which initiators look for disks, as yet without disks; no session is left afterwards."""
    first, second = (Export(target, name, port=4420) for name in NAMES)
    yield first, second
    for node in (node_a, node_b):
        for disk in (first, second):
            disk.disconnect(node)


def allow(box: BoxInGuest, *hosts: str) -> None:
    """Change who may connect."""
    assert box.run(f'/disk set [find slot={NAMES[0]}] nvme-tcp-server-allow-host-name="{",".join(hosts)}"') == ""


def cycle(box: BoxInGuest) -> None:
    """End every session of the disk."""
    disk = f"/disk set [find slot={NAMES[0]}]"
    assert box.run(f"{disk} nvme-tcp-export=no; {disk} nvme-tcp-export=yes") == ""


def is_live(disk: Export, node: Guest) -> bool:
    return disk.state(node) == "live"


async def test_a_disk_made_over_ssh_is_one_disk_for_all_kernels(
    ros: Box, disks: tuple[Export, Export], node_a: Guest, node_b: Guest
) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    here, there = (disks[0].connect(node) for node in (node_a, node_b))
    write(node_a, here, "from-a", block=7)
    assert read(node_b, there, block=7) == "from-a"
    assert node_a.run("blockdev", "--getsize64", here) == f"{SIZE}\n"


async def test_a_grown_disk_is_seen_while_it_is_used(ros: Box, disks: tuple[Export, Export], node_a: Guest) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    device = disks[0].connect(node_a)
    node_a.sh(f"mkfs.ext4 -q {device} && mount {device} /mnt && echo kept > /mnt/file")
    try:
        await ros.resize_disk(Slot(NAMES[0]), 2 * SIZE, deadline=within(30))
        eventually("the new size", lambda: node_a.run("blockdev", "--getsize64", device) == f"{2 * SIZE}\n")
        node_a.run("resize2fs", device)
        assert node_a.sh("cat /mnt/file") == "kept\n"
        assert int(node_a.sh("stat -f -c %b*%S /mnt | sed 's/^/echo $((/; s/$/))/' | sh")) > SIZE
    finally:
        node_a.run("umount", "/mnt")


async def test_a_host_that_is_not_on_the_list_cannot_connect(
    box: BoxInGuest, ros: Box, disks: tuple[Export, Export], node_a: Guest, node_b: Guest
) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    allow(box, HOST_A)
    with pytest.raises(ScriptFailed, match="could not add new controller"):
        disks[0].connect(node_b, HOST_B)
    disks[0].connect(node_a, HOST_A)
    allow(box)
    disks[0].connect(node_b, HOST_B)


async def test_a_host_taken_off_the_list_keeps_its_session_until_the_export_is_cycled(
    box: BoxInGuest, ros: Box, disks: tuple[Export, Export], node_a: Guest, node_b: Guest
) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    allow(box, HOST_A, HOST_B)
    here, there = disks[0].connect(node_a, HOST_A), disks[0].connect(node_b, HOST_B)
    allow(box, HOST_B)
    write(node_a, here, "still", block=1)
    assert read(node_b, there, block=1) == "still"
    cycle(box)
    eventually("the one that may is back", lambda: is_live(disks[0], node_b), timeout=60)
    eventually("the other was refused", lambda: "is not allowed" in node_a.sh("dmesg"), timeout=60)
    assert disks[0].state(node_a) == "connecting"
    write(node_b, there, "goes-on", block=1)
    allow(box, HOST_A, HOST_B)
    eventually("the other is back too", lambda: is_live(disks[0], node_a), timeout=60)
    assert read(node_a, here, block=1) == "goes-on"


async def test_the_cycle_of_one_export_leaves_the_others_alone(
    box: BoxInGuest, ros: Box, disks: tuple[Export, Export], node_a: Guest
) -> None:
    for name in NAMES:
        await ros.create_disk(spec(name), deadline=within(30))
    for disk in disks:
        disk.connect(node_a)
    node_a.run("dmesg", "--clear")
    cycle(box)
    eventually("it was lost", lambda: "starting error recovery" in node_a.sh("dmesg"), timeout=60)
    eventually("it is back", lambda: is_live(disks[0], node_a), timeout=60)
    lost = {line.partition(":")[0] for line in node_a.sh("dmesg").splitlines() if "starting error recovery" in line}
    assert len(lost) == 1
    assert is_live(disks[1], node_a)


async def test_a_removed_disk_is_gone_for_all_kernels(
    box: BoxInGuest, ros: Box, disks: tuple[Export, Export], target: Guest, node_a: Guest
) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    disks[0].connect(node_a)
    image = box.backing_file(str(spec(NAMES[0]).path)[1:])
    await ros.delete_disk(Slot(NAMES[0]), deadline=within(30))
    await ros.delete_file(spec(NAMES[0]).path, deadline=within(30))
    eventually("the session is lost", lambda: disks[0].state(node_a) == "connecting", timeout=60)
    assert target.ask(f"ls /sys/kernel/config/nvmet/subsystems | grep {NAMES[0]}; ls {image}").status != 0


async def test_a_disk_made_anew_under_an_old_name_is_another_disk(ros: Box, disks: tuple[Export, Export], node_a: Guest) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    device = disks[0].connect(node_a)
    write(node_a, device, "old")
    before = node_a.sh(f"cat /sys/block/{device.rpartition('/')[2]}/wwid")
    disks[0].disconnect(node_a)
    await ros.delete_disk(Slot(NAMES[0]), deadline=within(30))
    await ros.delete_file(spec(NAMES[0]).path, deadline=within(30))
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    device = disks[0].connect(node_a)
    assert read(node_a, device) == ""
    assert node_a.sh(f"cat /sys/block/{device.rpartition('/')[2]}/wwid") != before


async def test_the_death_of_the_simulator_is_not_noticed_by_those_who_write(
    box: BoxInGuest, ros: Box, disks: tuple[Export, Export], node_a: Guest
) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    device = disks[0].connect(node_a)
    node_a.run("dmesg", "--clear")
    box.kill()
    write(node_a, device, "while dead".replace(" ", "-"))
    box.start()
    assert read(node_a, device) == "while-dead"
    assert "error recovery" not in node_a.sh("dmesg")
    assert is_live(disks[0], node_a)


async def test_a_power_cut_leaves_every_export_as_it_was(
    box: BoxInGuest, ros: Box, disks: tuple[Export, Export], target: Guest, node_a: Guest, node_b: Guest
) -> None:
    await ros.create_disk(spec(NAMES[0]), deadline=within(30))
    allow(box, HOST_A)
    await ros.resize_disk(Slot(NAMES[0]), 2 * SIZE, deadline=within(30))
    device = disks[0].connect(node_a, HOST_A)
    write(node_a, device, "acknowledged", block=3)
    before = box.disks()
    target.kill()
    target.start()
    box.start()
    assert box.disks() == before
    eventually("the session is back", lambda: is_live(disks[0], node_a), timeout=90)
    # With another identity the kernel would have taken the device away.
    assert node_a.run("blockdev", "--getsize64", device) == f"{2 * SIZE}\n"
    assert read(node_a, device, block=3) == "acknowledged"
    with pytest.raises(ScriptFailed, match="could not add new controller"):
        disks[0].connect(node_b, HOST_B)


def test_names_that_the_box_cuts_off_are_whole_for_kernels(
    box: BoxInGuest, target: Guest, node_a: Guest, request: pytest.FixtureRequest
) -> None:
    box.switch(slot_limit=32)
    beginning = "pvc-ccdecfad-a8bf-572e-9120-464c4d"
    devices = {}
    for end in ("1", "2"):
        disk = Export(target, f"{beginning}99f12{end}", port=4420)
        request.addfinalizer(functools.partial(disk.disconnect, node_a))
        add = f"/disk add type=file file-path={BASE}/{disk.name}.img file-size=1G slot={end}-{disk.name} nvme-tcp-export=yes"
        assert box.run(f"{add} nvme-tcp-server-nqn={disk.nqn}") == ""
        devices[end] = disk.connect(node_a)
        write(node_a, devices[end], end)
    assert sorted(box.disks()) == [f"{end}-{beginning}"[:32] for end in ("1", "2")]
    assert {end: read(node_a, device) for end, device in devices.items()} == {"1": "1", "2": "2"}


async def test_a_restored_snapshot_has_the_bytes_of_then(
    client: Client, disks: tuple[Export, Export], node_a: Guest, node_b: Guest
) -> None:
    ros, transport, _ = client
    subvolumes = Subvolumes(transport)
    source, snapshot, restored = (BASE.child(name) for name in (NAMES[0], "snap-1", NAMES[1]))
    await subvolumes.create(source, deadline=within(30))
    image = DiskSpec(Slot(NAMES[0]), source.child("disk.img"), SIZE, Nqn(NQN_PREFIX + NAMES[0]))
    await ros.create_disk(image, deadline=within(30))
    device = disks[0].connect(node_a)
    write(node_a, device, "then", block=100)
    await subvolumes.create(snapshot, parent=source, read_only=True, deadline=within(30))
    write(node_a, device, "now", block=100)
    await subvolumes.create(restored, parent=snapshot, deadline=within(30))
    copy = DiskSpec(Slot(NAMES[1]), restored.child("disk.img"), 2 * SIZE, Nqn(NQN_PREFIX + NAMES[1]))
    await ros.create_disk_of_file(copy, deadline=within(30))
    again = disks[1].connect(node_b)
    assert read(node_b, again, block=100) == "then"
    assert read(node_a, device, block=100) == "now"
    assert node_b.run("blockdev", "--getsize64", again) == f"{2 * SIZE}\n"


def test_what_the_kernel_refuses_the_box_refuses(box: BoxInGuest, target: Guest) -> None:
    add = f"/disk add type=file file-path={BASE}/x.img file-size=1G slot=x nvme-tcp-export=yes nvme-tcp-server-nqn={NQN_PREFIX}x"
    # The port of the guest's control channel.
    assert box.run(f"{add} nvme-tcp-server-port=7000").startswith("failure: nvmet refused link ports/7000")
    assert (box.disks(), box.files()) == ({}, {})
    assert target.sh("ls /sys/kernel/config/nvmet/subsystems") == ""
    assert box.run(add) == ""
