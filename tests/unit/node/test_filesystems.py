"""Nothing is formatted that is not proven blank; options are single words of a list."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.errors import InvalidArgument, Rejected
from rds_csi.node.filesystems import (
    ALLOWED_OPTIONS,
    BLANK_TRIES,
    Blank,
    Content,
    Filesystem,
    Occupied,
    Probe,
    Unfinished,
    Unknown,
    bind,
    check_options,
    conclude,
    fs_type_for,
    grow,
    lacks,
    make,
    mount,
    probe,
    publish_options,
    stage_options,
    unmount,
)
from rds_csi.node.sysfs import DeviceNumber

DEVICE = "/dev/nvme0n1"
EMPTY = Probe(2, "", DeviceNumber(259, 1), 1 << 30, bytes(512))
EXT4 = (
    "DEVNAME=/dev/nvme0n1\nUUID=b239dbde-dd05-4100-b7e9-8eaddddc90e5\nVERSION=1.0\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n"
)


def xfs_sector(in_progress: int) -> bytes:
    sector = bytearray(b"XFSB".ljust(512, b"\0"))
    sector[126] = in_progress
    return bytes(sector)


def test_a_device_is_blank_once_enough_looks_agree() -> None:
    for looks in range(BLANK_TRIES):
        assert isinstance(conclude([EMPTY] * looks), Unknown)
    assert conclude([EMPTY] * BLANK_TRIES) == Blank()


def test_a_file_system_that_is_found_late_counts() -> None:
    assert conclude([EMPTY, EMPTY, replace(EMPTY, code=0, stdout=EXT4)]) == Filesystem(
        "ext4", "b239dbde-dd05-4100-b7e9-8eaddddc90e5"
    )


def test_three_looks_that_agree_after_one_that_did_not_are_proof() -> None:
    assert conclude([replace(EMPTY, first_sector=None), *[EMPTY] * BLANK_TRIES]) == Blank()


@pytest.mark.parametrize("position", range(BLANK_TRIES))
@pytest.mark.parametrize(
    "doubt",
    [
        replace(EMPTY, first_sector=None),
        replace(EMPTY, first_sector=b""),
        replace(EMPTY, first_sector=bytes(511)),
        replace(EMPTY, first_sector=b"\1" * 512),
        replace(EMPTY, size_bytes=0),
        replace(EMPTY, size_bytes=2 << 30),
        replace(EMPTY, number=DeviceNumber(259, 2)),
        replace(EMPTY, code=1),
        replace(EMPTY, code=4),
    ],
)
def test_one_doubt_and_the_device_is_not_blank(doubt: Probe, position: int) -> None:
    looks = [EMPTY] * BLANK_TRIES
    looks[position] = doubt
    assert isinstance(conclude(looks), Unknown)


def test_a_size_that_is_always_nothing_is_no_proof() -> None:
    assert isinstance(conclude([replace(EMPTY, size_bytes=0)] * BLANK_TRIES), Unknown)


@pytest.mark.parametrize(
    ("code", "stdout", "content"),
    [
        (0, "PTUUID=1234\nPTTYPE=gpt\n", Occupied("a partition table (gpt)")),
        (0, "TYPE=LVM2_member\nUSAGE=raid\n", Occupied("LVM2_member")),
        (0, "TYPE=crypto_LUKS\nUSAGE=crypto\n", Occupied("crypto_LUKS")),
        (0, "", Occupied("something that blkid does not name")),
        (8, "", Occupied("signatures of more than one file system")),
        (0, "TYPE=btrfs\nUSAGE=filesystem\n", Filesystem("btrfs")),
    ],
)
def test_whatever_else_is_found_is_told_by_name_and_is_never_blank(code: int, stdout: str, content: Content) -> None:
    assert conclude([EMPTY] * BLANK_TRIES + [replace(EMPTY, code=code, stdout=stdout)]) == content


def test_an_xfs_whose_making_was_cut_short_is_told_from_a_whole_one() -> None:
    look = replace(EMPTY, code=0, stdout="TYPE=xfs\nUSAGE=filesystem\n")
    assert conclude([replace(look, first_sector=xfs_sector(1))]) == Unfinished()
    assert conclude([replace(look, first_sector=xfs_sector(0))]) == Filesystem("xfs")
    assert conclude([replace(look, first_sector=None)]) == Filesystem("xfs")


def test_a_device_is_not_blank_where_blkid_names_something_and_says_that_it_found_nothing() -> None:
    assert isinstance(conclude([EMPTY, EMPTY, replace(EMPTY, stdout=EXT4)]), Unknown)


@given(
    st.lists(
        st.builds(
            Probe,
            st.sampled_from([0, 1, 2, 4, 8]),
            st.sampled_from(["", EXT4, "PTTYPE=dos\n"]),
            st.builds(DeviceNumber, st.just(259), st.integers(1, 2)),
            st.sampled_from([0, 512, 1 << 30]),
            st.sampled_from([None, bytes(512), b"\1" * 512]),
        ),
        max_size=6,
    )
)
def test_blank_means_that_the_last_looks_are_all_the_same_readable_nothing(probes: list[Probe]) -> None:
    if isinstance(conclude(probes), Blank):
        last = probes[-BLANK_TRIES:]
        assert len(last) == BLANK_TRIES
        assert len(set(last)) == 1
        assert (last[0].code, last[0].stdout) == (2, "")
        assert last[0].size_bytes > 0
        assert last[0].first_sector is not None


def test_each_option_that_is_allowed_is_taken_alone() -> None:
    for option in ALLOWED_OPTIONS:
        assert check_options([option]) == (option,)


@pytest.mark.parametrize(
    "option",
    [
        "suid",
        "dev",
        "user=x,suid,dev,exec",
        "noatime,suid",
        "bind",
        "remount",
        "rbind",
        "discard",
        "data=journal",
        "",
        " ro",
        "ro=1",
    ],
)
def test_an_option_that_is_not_on_the_list_or_more_than_one_is_refused(option: str) -> None:
    with pytest.raises(InvalidArgument, match="mount option"):
        check_options([option])


@pytest.mark.parametrize("options", [("ro", "rw"), ("noexec", "exec"), ("sync", "async")])
def test_options_that_contradict_each_other_are_refused(options: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="exclude each other"):
        check_options(options)


@given(st.lists(st.one_of(st.sampled_from(sorted(ALLOWED_OPTIONS)), st.text(max_size=12)), max_size=6), st.booleans())
def test_no_mount_lets_a_volume_bring_devices_or_privileges(options: list[str], read_only: bool) -> None:
    try:
        mounts = [stage_options("ext4", options, read_only=read_only), publish_options(options, read_only=read_only)]
    except Rejected:
        return
    for wanted in mounts:
        assert {"nosuid", "nodev"} <= set(wanted)
        assert not {"suid", "dev", "bind", "remount"} & set(wanted)
        assert not any("," in option for option in wanted)
        assert not read_only or ("ro" in wanted and "rw" not in wanted)


def test_programs_on_a_volume_run_unless_the_user_says_no() -> None:
    assert stage_options("ext4", [], read_only=False) == publish_options([], read_only=False) == ("nodev", "nosuid")
    assert publish_options(["noexec"], read_only=False) == ("nodev", "noexec", "nosuid")


def test_a_copy_of_an_xfs_can_be_mounted_beside_its_source() -> None:
    assert "nouuid" in stage_options("xfs", [], read_only=False)
    assert "nouuid" not in stage_options("ext4", [], read_only=False)
    assert "nouuid" not in publish_options([], read_only=False)


def test_words_for_fstab_and_for_the_file_system_do_not_reach_a_bind_mount() -> None:
    assert publish_options(["defaults", "_netdev", "sync", "noatime"], read_only=True) == ("noatime", "nodev", "nosuid", "ro")
    assert stage_options("ext4", ["defaults", "user", "noatime", "sync"], read_only=False) == ("noatime", "nodev", "nosuid", "sync")


@pytest.mark.parametrize(
    ("options", "wanted", "missing"),
    [
        ({"rw", "nosuid", "nodev", "relatime"}, ("nodev", "nosuid"), ()),
        ({"rw", "nosuid", "nodev"}, ("nodev", "nosuid", "ro"), ("ro",)),
        ({"ro", "nosuid", "nodev"}, ("nodev", "nosuid"), ("rw",)),
        ({"rw", "nodev"}, ("nodev", "noexec", "nosuid"), ("nosuid", "noexec")),
        ({"rw", "nosuid", "nodev", "noexec"}, ("nodev", "nosuid"), ()),
    ],
)
def test_what_a_mount_lacks_is_seen(options: set[str], wanted: tuple[str, ...], missing: tuple[str, ...]) -> None:
    assert lacks(frozenset(options), wanted) == missing


def test_the_commands_are_lists_that_end_with_what_they_work_on() -> None:
    assert probe(DEVICE).words == ("blkid", "-p", "-o", "export", DEVICE)
    assert make("ext4", DEVICE).words == ("mkfs.ext4", "-q", "-E", "nodiscard", DEVICE)
    assert make("ext3", DEVICE).words == ("mkfs.ext3", "-q", "-E", "nodiscard", DEVICE)
    assert make("xfs", DEVICE).words == ("mkfs.xfs", "-q", "-K", DEVICE)
    assert make("xfs", DEVICE, over_unfinished=True).words == ("mkfs.xfs", "-q", "-K", "-f", DEVICE)
    assert mount("xfs", DEVICE, "/s", ("nodev", "nouuid")).words == ("mount", "-t", "xfs", "-o", "nodev,nouuid", "--", DEVICE, "/s")
    assert bind("/s", "/t", ("nodev", "ro")).words == ("mount", "-o", "bind,nodev,ro", "--", "/s", "/t")
    assert unmount("/s").words == ("umount", "--", "/s")
    assert grow("ext4", DEVICE, "/s").words == ("resize2fs", DEVICE)
    assert grow("xfs", DEVICE, "/s").words == ("xfs_growfs", "/s")


def test_a_file_system_that_nobody_chose_is_ext4_and_an_unknown_one_is_refused() -> None:
    assert (fs_type_for(""), fs_type_for("xfs")) == ("ext4", "xfs")
    for refused in (fs_type_for, lambda fs_type: make(fs_type, DEVICE)):
        with pytest.raises(InvalidArgument, match="not offered"):
            refused("btrfs")
