"""Who uses a device is found in the whole host, and what cannot be looked at is not taken for free."""

from __future__ import annotations

from pathlib import Path

import pytest

from rds_csi.node import usage
from rds_csi.node.sysfs import DeviceNumber
from rds_csi.node.usage import User, UsersUnknown, describe, users_of
from tests.unit.node.fake_sysfs import FakeSysfs, link, write

DISK = DeviceNumber(259, 1)
PARTITION = DeviceNumber(259, 2)
MOUNT = "36 22 259:1 / {place} rw - ext4 /dev/nvme0n1 rw\n"
ROOT = "22 1 0:21 / / rw - overlay overlay rw\n"


class Host:
    """A ``/proc`` and a ``/dev`` in which a device node is a file that holds its number."""

    def __init__(self, directory: Path, sysfs: FakeSysfs) -> None:
        self.sysfs = sysfs
        self.proc = directory / "proc"
        self.dev = directory / "dev"
        self.dev.mkdir()
        for name, number in (("nvme0n1", DISK), ("nvme0n1p1", PARTITION), ("nvme9n1", DeviceNumber(259, 9))):
            (self.dev / name).write_text(str(number))
        (self.dev / "null").write_text("no block device")
        self.process(1, "init")
        (self.proc / "1" / "root").symlink_to("/")
        (self.proc / "self").symlink_to("1")
        (self.proc / "mounts").write_text("")

    def process(self, pid: int, comm: str, *opened: str, namespace: int = 1, mounts: str = ROOT) -> Path:
        directory = self.proc / str(pid)
        write(directory, comm=comm)
        (directory / "mountinfo").write_text(mounts)
        (directory / "ns").mkdir()
        (directory / "ns" / "mnt").symlink_to(f"mnt:[{namespace}]")
        (directory / "fd").mkdir()
        for number, name in enumerate(opened):
            (directory / "fd" / str(number)).symlink_to(self.dev / name)
        return directory

    def device_of(self, path: Path) -> DeviceNumber | None:
        text = path.read_text()
        return DeviceNumber.parse(text) if ":" in text else None

    def users(self, own_pid: int | None = None) -> tuple[User, ...]:
        return users_of(DISK, sysfs=self.sysfs.root, proc=self.proc, device_of=self.device_of, own_pid=own_pid)


@pytest.fixture
def host(tmp_path: Path, sysfs: FakeSysfs) -> Host:
    sysfs.connect()
    sysfs.disk()
    return Host(tmp_path, sysfs)


def test_a_device_that_nobody_uses_has_no_user(host: Host) -> None:
    host.process(7, "other", "null", "nvme9n1")
    assert host.users() == ()


def test_a_process_that_has_the_device_open_is_named(host: Host) -> None:
    host.process(7, "qemu-kvm", "null", "nvme0n1", "nvme0n1", namespace=2)
    assert host.users() == (User("has the device open", "qemu-kvm", 7),)
    assert describe(host.users()) == "qemu-kvm (pid 7) has the device open"


def test_a_mount_in_any_namespace_of_the_host_is_a_use(host: Host) -> None:
    host.process(7, "forgotten", namespace=2, mounts=ROOT + MOUNT.format(place="/data"))
    assert host.users() == (User("sees it mounted at /data", "forgotten", 7),)


def test_each_mount_namespace_is_looked_at_once(host: Host) -> None:
    host.process(7, "one", namespace=2, mounts=ROOT + MOUNT.format(place="/data"))
    host.process(8, "two", namespace=2, mounts=ROOT + MOUNT.format(place="/data"))
    assert [user.pid for user in host.users()] == [7]


def test_what_is_built_on_the_device_or_on_a_partition_is_a_use(host: Host) -> None:
    disk = host.sysfs.root / "class/block/nvme0n1"
    (disk.resolve() / "holders" / "dm-0").mkdir()
    partition = disk.resolve() / "nvme0n1p1"
    write(partition, dev="259:2", partition="1")
    (partition / "holders").mkdir()
    (partition / "holders" / "dm-1").mkdir()
    link(host.sysfs.root / "dev/block/259:2", partition)
    host.process(7, "fdisk", "nvme0n1p1")
    assert [str(user) for user in host.users()] == [
        "device dm-0 is built on it",
        "device dm-1 is built on it",
        "fdisk (pid 7) has the device open",
    ]


def test_the_loop_device_of_a_kubelet_is_a_use(host: Host) -> None:
    backing = f"{host.dev}/nvme0n1"
    write(host.sysfs.root / "class/block/loop0/loop", backing_file=backing)
    write(host.sysfs.root / "class/block/loop1/loop", backing_file=f"{host.dev}/nvme9n1")
    write(host.sysfs.root / "class/block/loop2/loop", backing_file=f"{host.dev}/gone")
    assert host.users() == (User(f"loop device loop0 is set up on {backing}"),)


def test_our_own_process_is_no_user_of_what_it_has_open(host: Host) -> None:
    host.process(7, "rds-csi", "nvme0n1")
    assert host.users(own_pid=7) == ()


@pytest.mark.parametrize("missing", ["fd", "ns/mnt", "mountinfo"])
def test_a_process_that_ends_while_it_is_looked_at_uses_nothing(host: Host, missing: str) -> None:
    directory = host.process(7, "ending", namespace=2)
    path = directory / missing
    path.rmdir() if path.is_dir() else path.unlink()
    assert host.users() == ()


def test_a_process_that_ends_half_way_does_not_hide_its_namespace(host: Host) -> None:
    (host.process(7, "ending", namespace=2) / "mountinfo").unlink()
    host.process(8, "stays", namespace=2, mounts=ROOT + MOUNT.format(place="/data"))
    assert [user.pid for user in host.users()] == [8]


def test_a_file_that_is_closed_meanwhile_is_no_use(host: Host) -> None:
    (host.process(7, "busy", "nvme0n1") / "fd" / "5").symlink_to("/nowhere/at/all")
    assert [user.pid for user in host.users()] == [7]


def test_a_process_that_cannot_be_looked_at_may_be_a_user(host: Host) -> None:
    def refusing(path: Path) -> DeviceNumber | None:
        raise PermissionError(13, "Permission denied")

    host.process(7, "secret", "null")
    with pytest.raises(UsersUnknown, match="process 7 cannot be looked at: Permission denied"):
        users_of(DISK, sysfs=host.sysfs.root, proc=host.proc, device_of=refusing)


def test_a_proc_that_is_none_proves_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for proc in ("empty", "nowhere"):
        with pytest.raises(UsersUnknown):
            users_of(DISK, sysfs=host.sysfs.root, proc=tmp_path / proc, device_of=host.device_of)


def test_a_message_names_a_few_users_and_counts_the_rest() -> None:
    users = tuple(User("has the device open", "qemu", pid) for pid in range(1, 9))
    assert describe(users).count("qemu") == usage.MAX_NAMED
    assert describe(users).endswith(" and 3 more")


def test_a_file_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert usage.device_of(tmp_path / "file") is None
    with pytest.raises(FileNotFoundError):
        usage.device_of(tmp_path / "nothing")
