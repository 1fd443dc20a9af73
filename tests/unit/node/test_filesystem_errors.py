"""Whether a file system has stopped by itself, on sysfs and proc trees as Linux 6.1 and 6.18 were seen to show them."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rds_csi.node.filesystem_errors import NO_ERRORS, Errors, errors_of, has_stopped
from tests.unit.node.fake_sysfs import write
from tests.unit.node.node_world import STAGING, mounted

BOOT = 1_795_791_828
MOUNTED = BOOT + 1859
EXT4 = mounted(STAGING)
STOPS = replace(EXT4, super_options=frozenset({"rw", "errors=remount-ro"}))
XFS = mounted(STAGING, fs_type="xfs")


class Kernel:
    """What a kernel says of an ext4 on nvme0n1."""

    def __init__(self, folder: Path, *, count: int = 0, last: int = 0, function: str = "", journal: str = "23490") -> None:
        self.sysfs, self.proc = folder / "sys", folder / "proc"
        write(
            self.sysfs / "fs/ext4/nvme0n1",
            errors_count=str(count),
            last_error_time=str(last),
            last_error_func=function,
            journal_task=journal,
        )
        # A program's name may hold anything.
        start = 185_989 * os.sysconf("SC_CLK_TCK") // 100
        fields = f"S 2 0 0 0 -1 2359360 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0 18446744073709551615"
        write(self.proc / "23490", stat=f"23490 (jbd2/) S 1 (-8) {fields}")
        (self.proc / "stat").write_text(f"cpu  1 2 3\nbtime {BOOT}\nprocesses 5\n")

    def options(self, *options: str) -> None:
        write(self.proc / "fs/ext4/nvme0n1", options="\n".join(options))

    def says(self, mount: object = EXT4) -> Errors:
        return errors_of(mount, "nvme0n1", "/nowhere", sysfs=self.sysfs, proc=self.proc)  # type: ignore[arg-type]


def test_an_ext4_without_errors_is_well(tmp_path: Path) -> None:
    assert Kernel(tmp_path).says(STOPS) == NO_ERRORS
    assert not has_stopped(STOPS)


@pytest.mark.parametrize("kind", ["ext4", "ext3"])
def test_an_error_since_it_was_mounted_has_stopped_an_ext4_that_stops_at_errors(tmp_path: Path, kind: str) -> None:
    mount = replace(STOPS, fs_type=kind)
    said = Kernel(tmp_path, count=1, last=MOUNTED + 20).says(mount)
    assert said == Errors(recorded=1, since_mount=True, stops=True)
    assert has_stopped(mount, said)


def test_that_it_stops_at_errors_may_stand_in_its_superblock_alone(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, count=1, last=MOUNTED + 20)
    assert not has_stopped(EXT4, kernel.says())
    kernel.options("rw", "errors=remount-ro", "commit=5")
    assert has_stopped(EXT4, kernel.says())


def test_an_error_of_an_earlier_mount_is_told_and_stops_nothing(tmp_path: Path) -> None:
    said = Kernel(tmp_path, count=3, last=MOUNTED - 60).says(STOPS)
    assert said == Errors(recorded=3, since_mount=False, stops=True)
    assert not has_stopped(STOPS, said)


def test_an_ext4_that_goes_on_after_errors_stops_when_it_has_lost_its_journal(tmp_path: Path) -> None:
    goes_on = Kernel(tmp_path / "a", count=1, last=MOUNTED + 20, function="ext4_lookup").says()
    assert goes_on == Errors(recorded=1, since_mount=True)
    assert not has_stopped(EXT4, goes_on)
    assert has_stopped(EXT4, Kernel(tmp_path / "b", count=1, last=MOUNTED + 20, function="ext4_journal_check_start").says())


@pytest.mark.parametrize("journal", ["<none>", "0", "99"])
def test_where_the_journals_thread_cannot_be_seen_errors_are_of_any_time(tmp_path: Path, journal: str) -> None:
    said = Kernel(tmp_path, count=1, last=MOUNTED + 20, journal=journal).says(STOPS)
    assert said == Errors(recorded=1, since_mount=False, stops=True)


@pytest.mark.parametrize("word", ["ro", "emergency_ro", "shutdown"])
def test_what_the_mount_table_says_is_believed(word: str) -> None:
    assert has_stopped(replace(EXT4, super_options=frozenset({"ro" if word == "ro" else "rw", word})))


def test_a_pod_that_may_only_read_shows_that_the_file_system_has_stopped_too(tmp_path: Path) -> None:
    reads = replace(STOPS, options=frozenset({"ro"}))
    assert not has_stopped(reads)
    assert has_stopped(reads, Kernel(tmp_path, count=1, last=MOUNTED + 20).says(reads))


def test_what_was_mounted_read_only_has_not_stopped(tmp_path: Path) -> None:
    wanted = replace(EXT4, options=frozenset({"ro"}), super_options=frozenset({"ro", "errors=remount-ro"}))
    assert not has_stopped(wanted)
    assert not has_stopped(wanted, Kernel(tmp_path, count=1, last=MOUNTED + 20).says(wanted))


@pytest.mark.parametrize(("code", "dead"), [(errno.EIO, True), (errno.EACCES, False), (errno.ENOENT, False), (0, False)])
def test_an_xfs_whose_root_answers_with_an_input_output_error_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, dead: bool
) -> None:
    def lstat(path: object) -> object:
        assert path == "/staging"
        if code:
            raise OSError(code, os.strerror(code))
        return None

    monkeypatch.setattr("rds_csi.node.filesystem_errors.os.lstat", lstat)
    said = errors_of(XFS, "nvme0n1", "/staging", sysfs=tmp_path, proc=tmp_path)
    monkeypatch.undo()
    assert said == Errors(dead=dead)
    assert has_stopped(XFS, said) is dead
