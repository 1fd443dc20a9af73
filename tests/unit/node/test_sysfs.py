"""Finding a volume's disk from its NQN, in both multipath modes."""

from __future__ import annotations

import shutil

import pytest

from rds_csi.node.sysfs import (
    ControllerState,
    DeviceNumber,
    Session,
    SysfsUnreadable,
    find_session,
    holders,
    partition_numbers,
    present,
    renumbered,
    sessions,
)
from tests.unit.node.fake_sysfs import NQN, OTHER, UUID, FakeSysfs, write


def found(sysfs: FakeSysfs, nqn: str = NQN) -> Session:
    session = find_session(sysfs.root, nqn)
    assert session is not None
    return session


def test_a_kernel_that_never_loaded_nvme_has_no_session(sysfs: FakeSysfs) -> None:
    assert sessions(sysfs.root) == ()
    assert find_session(sysfs.root, NQN) is None


def test_a_place_that_is_no_sysfs_proves_nothing(sysfs: FakeSysfs) -> None:
    with pytest.raises(SysfsUnreadable, match="not mounted"):
        sessions(sysfs.root / "elsewhere")
    with pytest.raises(SysfsUnreadable, match="not mounted"):
        present(sysfs.root / "elsewhere", DeviceNumber(259, 1))


def test_the_disk_is_found_by_nqn_and_path_devices_are_not_disks(sysfs: FakeSysfs) -> None:
    sysfs.connect()
    sysfs.disk(size=5 << 30)
    session = found(sysfs)
    assert session.live
    (disk,) = session.namespaces
    assert (disk.name, disk.number, disk.size_bytes, disk.uuid) == ("nvme0n1", DeviceNumber(259, 1), 5 << 30, UUID)
    assert not disk.read_only
    (controller,) = session.controllers
    assert (controller.name, controller.state, controller.transport) == ("nvme0", ControllerState.LIVE, "tcp")
    assert (controller.address, controller.port) == ("10.77.0.1", 4420)
    assert controller.host_nqn.endswith("000000000001")
    assert controller.host_id == "7fad80e8-b49c-4d8e-8d54-6b6b8571940c"


def test_two_volumes_are_told_apart_also_where_the_numbers_cross(sysfs: FakeSysfs) -> None:
    sysfs.connect(NQN, controller=1, subsystem=0)
    sysfs.disk(NQN, controller=1, subsystem=0, minor=4)
    sysfs.connect(OTHER, controller=0, subsystem=1)
    sysfs.disk(OTHER, controller=0, subsystem=1, minor=2)
    assert [(session.nqn, session.namespaces[0].number.minor) for session in sessions(sysfs.root)] == [(NQN, 4), (OTHER, 2)]
    assert found(sysfs).namespaces[0].name == ("nvme0n1" if sysfs.multipath else "nvme1n1")


def test_a_name_that_is_the_beginning_of_another_is_not_that_other(sysfs: FakeSysfs) -> None:
    sysfs.connect(NQN + "-longer")
    assert find_session(sysfs.root, NQN) is None


def test_a_namespace_that_is_not_the_first_is_found(sysfs: FakeSysfs) -> None:
    # After a disconnect under a mount the old name is still taken: the disk comes back as nvme0n2.
    sysfs.connect(controller=1)
    sysfs.disk(controller=1, namespace=2, minor=3)
    assert [disk.name for disk in found(sysfs).namespaces] == ["nvme0n2" if sysfs.multipath else "nvme1n2"]


@pytest.mark.parametrize(
    ("word", "state", "live", "going"),
    [
        ("live", ControllerState.LIVE, True, False),
        ("connecting", ControllerState.CONNECTING, False, False),
        ("resetting", ControllerState.RESETTING, False, False),
        ("deleting", ControllerState.DELETING, False, True),
        ("deleting (no IO)", ControllerState.DELETING_NO_IO, False, True),
        ("dead", ControllerState.DEAD, False, True),
        ("something new", ControllerState.UNKNOWN, False, False),
    ],
)
def test_only_live_is_live(sysfs: FakeSysfs, word: str, state: ControllerState, live: bool, going: bool) -> None:
    sysfs.connect(state=word)
    session = found(sysfs)
    assert (session.controllers[0].state, session.live, session.going) == (state, live, going)
    assert session.namespaces == ()


def test_two_paths_are_one_session_that_lives_as_long_as_one_does(sysfs: FakeSysfs) -> None:
    sysfs.connect(state="connecting")
    sysfs.connect(controller=2, address="10.0.2.2")
    sysfs.disk()
    session = found(sysfs)
    assert [controller.name for controller in session.controllers] == ["nvme0", "nvme2"]
    assert session.live
    assert len(session.namespaces) == 1


def test_a_controller_that_goes_while_it_is_read_is_not_there(sysfs: FakeSysfs) -> None:
    (sysfs.connect() / "state").unlink()
    assert find_session(sysfs.root, NQN) is None


def test_a_subsystem_without_controller_and_disk_is_no_session(sysfs: FakeSysfs) -> None:
    sysfs.subsystem(NQN, 0)
    assert find_session(sysfs.root, NQN) is None


def test_an_address_of_ipv6_or_none_is_read(sysfs: FakeSysfs) -> None:
    sysfs.connect(address="fd00::1")
    assert found(sysfs).controllers[0].address == "fd00::1"
    (sysfs.connect(OTHER, controller=1, subsystem=1) / "address").unlink()
    assert (found(sysfs, OTHER).controllers[0].address, found(sysfs, OTHER).controllers[0].port) == ("", None)


@pytest.mark.parametrize(("attribute", "text"), [("size", "-1"), ("size", "many"), ("dev", "259"), ("dev", "a:b")])
def test_what_no_kernel_writes_is_not_guessed_at(sysfs: FakeSysfs, attribute: str, text: str) -> None:
    sysfs.connect()
    (sysfs.disk() / attribute).write_text(text)
    with pytest.raises(SysfsUnreadable, match=attribute):
        find_session(sysfs.root, NQN)


def test_an_attribute_that_cannot_be_read_is_not_absent(sysfs: FakeSysfs) -> None:
    state = sysfs.connect() / "state"
    state.unlink()
    state.mkdir()
    with pytest.raises(SysfsUnreadable, match="state"):
        find_session(sysfs.root, NQN)


def test_a_renumbered_disk_is_noticed_and_a_lost_one_is_waited_for(sysfs: FakeSysfs) -> None:
    before = DeviceNumber(259, 1)
    sysfs.connect()
    assert not renumbered(before, found(sysfs))
    assert not renumbered(before, None)
    disk = sysfs.disk()
    assert not renumbered(before, found(sysfs))
    (disk / "dev").write_text("259:7\n")
    assert renumbered(before, found(sysfs))


def test_devices_built_on_the_disk_and_its_partitions_are_found(sysfs: FakeSysfs) -> None:
    sysfs.connect()
    disk = sysfs.disk()
    number = DeviceNumber(259, 1)
    assert (holders(sysfs.root, number), partition_numbers(sysfs.root, number)) == ((), ())
    (disk / "holders" / "dm-0").mkdir()
    write(disk / "nvme0n1p1", dev="259:2", partition="1")
    write(disk / "nvme0n1p2", dev="259:3", partition="2")
    (disk / "queue").mkdir()
    assert holders(sysfs.root, number) == ("dm-0",)
    assert partition_numbers(sysfs.root, number) == (DeviceNumber(259, 2), DeviceNumber(259, 3))
    assert present(sysfs.root, number)
    (sysfs.root / "dev/block/259:1").unlink()
    shutil.rmtree(disk)
    assert not present(sysfs.root, number)
    assert (holders(sysfs.root, number), partition_numbers(sysfs.root, number)) == ((), ())
