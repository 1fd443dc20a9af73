"""The kernel's mount table, with everything that a path may hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.node.mountinfo import (
    Mount,
    MountTableUnreadable,
    mounts_at,
    mounts_below,
    mounts_of,
    parse_mountinfo,
    read_mountinfo,
)
from rds_csi.node.sysfs import DeviceNumber

TABLE = r"""22 1 0:21 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a,upperdir=/b
36 22 259:1 / /staging rw,nosuid,nodev shared:2 master:1 propagate_from:3 - ext4 /dev/nvme0n1 rw,stripe=4
37 22 259:1 / /pods/a rw,nosuid,nodev,noexec - ext4 /dev/nvme0n1 ro
38 22 259:1 /sub\040dir /pods/a\011b\134c\012d ro - ext4 /dev/nvme0n1 rw
39 22 0:6 /nvme0n1 /pods/block rw - devtmpfs none rw
40 36 0:40 / /staging/inner rw - tmpfs tmpfs rw
41 36 259:1 / /staging rw - ext4 /dev/nvme0n1 rw
42 22 259:2 //deleted /stagingother rw - xfs /dev/my\040disk rw
"""
DISK = DeviceNumber(259, 1)


def ids(mounts: tuple[Mount, ...]) -> list[int]:
    return [mount.mount_id for mount in mounts]


def test_a_line_is_read_with_any_number_of_optional_fields() -> None:
    mounts = {mount.mount_id: mount for mount in parse_mountinfo(TABLE)}
    assert mounts[36] == Mount(
        36, 22, DISK, "/", "/staging", frozenset({"rw", "nosuid", "nodev"}), "ext4", "/dev/nvme0n1", frozenset({"rw", "stripe=4"})
    )
    assert mounts[39].root == "/nvme0n1"


def test_escapes_are_undone() -> None:
    mounts = {mount.mount_id: mount for mount in parse_mountinfo(TABLE)}
    assert (mounts[38].root, mounts[38].mount_point) == ("/sub dir", "/pods/a\tb\\c\nd")
    assert mounts[42].source == "/dev/my disk"


def test_a_mount_is_read_only_by_itself_or_by_its_file_system() -> None:
    assert [mount.mount_id for mount in parse_mountinfo(TABLE) if mount.read_only] == [37, 38]


def test_mounts_are_found_by_place_and_by_device() -> None:
    table = parse_mountinfo(TABLE)
    assert ids(mounts_at(table, "/staging")) == [36, 41]
    assert ids(mounts_below(table, "/staging")) == [40]
    assert ids(mounts_below(table, "/staging/")) == [40]
    assert ids(mounts_of(table, {DISK})) == [36, 37, 38, 41]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "36 22 259:1 / /staging rw",
        "36 22 259 / /s rw - ext4 d rw",
        "x 22 259:1 / /s rw - ext4 d rw",
        "36 22 259:1 / - rw - a b",
    ],
)
def test_a_table_that_is_not_understood_is_no_empty_table(line: str) -> None:
    with pytest.raises(MountTableUnreadable, match="no line of a mount table"):
        parse_mountinfo(TABLE + line + "\n")


@given(st.text(st.characters(exclude_characters="\0", max_codepoint=0x2FF), min_size=1))
def test_every_path_comes_back_as_it_was(path: str) -> None:
    # As the kernel writes it (linux, fs/proc_namespace.c, ``mangle``), with other line ends that text files know left as they are.
    written = "".join(f"\\{ord(sign):03o}" if sign in " \t\n\\#" else sign for sign in path)
    (mount,) = parse_mountinfo(f"36 22 259:1 / /{written} rw - ext4 /dev/nvme0n1 rw\n")
    assert mount.mount_point == f"/{path}"


def test_a_path_that_is_no_utf_8_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_bytes(b"36 22 259:1 / /\xff\xfe rw - ext4 d rw\n")
    (mount,) = read_mountinfo(tmp_path)
    assert mount.mount_point.encode(errors="surrogateescape") == b"/\xff\xfe"


def test_the_table_of_this_very_process_is_understood() -> None:
    assert mounts_at(read_mountinfo(Path("/proc/self")), "/proc")[-1].fs_type == "proc"
