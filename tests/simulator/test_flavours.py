"""What the simulated box is with another version or without the storage package."""

from __future__ import annotations

import re

import pytest

from tests.simulator import SimulatedBox
from tests.simulator.conftest import HANDLE

PATH = f"storage-pool/metal-csi/{HANDLE}.img"
ADD = f"/disk add type=file file-path=/{PATH} file-size=10G slot={HANDLE}"
EXPORT = "nvme-tcp-export=yes nvme-tcp-server-port=4420 nvme-tcp-server-nqn=nqn.2000-02.com.mikrotik:x"
COUNT = ":put [:len [/disk/btrfs/subvolume find]]"
SUBVOLUME = "/disk/btrfs/subvolume/add fs=storage-pool-fs name=x"
NO_BTRFS = r"bad command name btrfs \(line 1 column \d+\)\r\n"
NOT_THERE = [{}, {"version": "7.17.2"}, {"version": "7.24", "rose_storage": False}]

FILES_7_24 = f"""\
0  name=storage-pool type=disk last-modified=2025-11-11 12:00:00
 
1  name=storage-pool/metal-csi type=directory last-modified=2025-11-11 12:00:00
 
2  name={PATH}
   type=.img file size=10.0GiB last-modified=2025-11-11 12:00:00
"""  # noqa: W293
FILES_7_16 = f"""\
 0   name=storage-pool type=disk last-modified=2025-11-11 12:00:00
 
 1   name=storage-pool/metal-csi type=directory
     last-modified=2025-11-11 12:00:00
 
 2   name={PATH}
     type=.img file size=10.0GiB last-modified=2025-11-11 12:00:00
"""  # noqa: W293


@pytest.mark.parametrize("flavour", NOT_THERE)
@pytest.mark.parametrize("line", [COUNT, SUBVOLUME, SUBVOLUME.replace("/btrfs/", " btrfs ").replace("/add", " add")])
def test_there_is_no_btrfs_before_7_18_or_without_rose_storage(ros: SimulatedBox, flavour: dict[str, object], line: str) -> None:
    ros.switch(**flavour)
    assert re.fullmatch(NO_BTRFS, ros.run(line))


@pytest.mark.parametrize("version", ["7.18", "7.18.1", "7.24", "7.24.1"])
def test_there_is_btrfs_from_7_18_on(ros: SimulatedBox, version: str) -> None:
    ros.switch(version=version)
    assert ros.run(COUNT) == "0\r\n"


def test_the_file_system_and_its_label_are_printed_and_found(ros: SimulatedBox) -> None:
    printed = ros.run("/disk print detail where slot=storage-pool")
    assert 'fs-label="storage-pool-fs"' in printed
    assert " fs=btrfs " in " ".join(printed.split())
    assert ros.run(':put [:len [/disk find where fs-label="storage-pool-fs"]]') == "1\r\n"


@pytest.mark.parametrize("line", [f"{ADD} {EXPORT}", f"/disk set {HANDLE} nvme-tcp-export=no"])
def test_without_rose_storage_there_is_no_nvme_over_tcp(ros: SimulatedBox, line: str) -> None:
    ros.switch(rose_storage=False)
    if "set" in line:
        ros.run(ADD)
    assert re.fullmatch(rf"expected end of command \(line 1 column {line.index('nvme') + 1}\)\r\n", ros.run(line))


def test_without_rose_storage_nothing_of_an_export_is_printed(ros: SimulatedBox) -> None:
    ros.run(f"{ADD} {EXPORT}")
    assert "nvme-tcp-server-nqn" in ros.run("/disk print detail")
    ros.switch(rose_storage=False)
    printed = ros.run("/disk print detail")
    assert f'slot="{HANDLE}"' in printed
    assert "nvme" not in printed.lower()


@pytest.mark.parametrize(("version", "frame"), [("7.16", FILES_7_16), ("7.18", FILES_7_16), ("7.24", FILES_7_24)])
def test_files_are_laid_out_as_the_version_does(ros: SimulatedBox, version: str, frame: str) -> None:
    ros.switch(version=version)
    ros.run(ADD)
    assert ros.run("/file print detail") == frame.replace("\n", "\r\n")


def test_a_disk_is_laid_out_as_in_a_capture_of_7_24(ros: SimulatedBox) -> None:
    ros.switch(version="7.24", width=200)
    ros.run(f"{ADD} {EXPORT}")
    lines = ros.run(f"/disk print detail where slot={HANDLE}").split("\r\n")
    assert lines[0] == "Flags: B - BLOCK-DEVICE; t - NVME-TCP-EXPORT"
    assert lines[1].startswith(f' 1 Bt type=file slot="{HANDLE}"')
    assert lines[2].startswith("      ")
    assert lines[2][6] != " "


@pytest.mark.parametrize(("version", "answer"), [("7.16", "Flags: "), ("7.24", "")])
def test_where_no_disk_fits_7_16_prints_the_legend_and_7_24_nothing(ros: SimulatedBox, version: str, answer: str) -> None:
    ros.switch(version=version)
    assert ros.run("/disk print detail where slot=nobody")[:7] == answer


HOSTS = ",".join(f"nqn.2014-08.org.nvmexpress:uuid:6b1a1d5e-0000-4000-8000-00000000000{number}" for number in (1, 2))
ALLOW = f"/disk set [find slot={HANDLE}] nvme-tcp-server-allow-host-name="
ALLOWED = f":put [/disk get [find slot={HANDLE}] nvme-tcp-server-allow-host-name]"


def printed(ros: SimulatedBox) -> str:
    """What a disk prints, as it would on a very wide terminal."""
    return ros.run(f"/disk print detail where slot={HANDLE}")


@pytest.mark.parametrize("names", [HOSTS, HOSTS.partition(",")[0], ""])
def test_the_hosts_that_may_connect_are_kept_and_shown(ros: SimulatedBox, names: str) -> None:
    ros.switch(width=2000)
    ros.run(f"{ADD} {EXPORT}")
    assert ros.run(f'{ALLOW}"{names}"') == ""
    assert f' nvme-tcp-server-nqn="nqn.2000-02.com.mikrotik:x" nvme-tcp-server-allow-host-name="{names}" iscsi' in printed(ros)
    ros.restart()
    assert ros.run(ALLOWED) == f"{names}\r\n"


def test_a_box_may_take_one_host_only(ros: SimulatedBox) -> None:
    ros.switch(allow_host_name="one")
    ros.run(f"{ADD} {EXPORT}")
    assert ros.run(f"{ALLOW}{HOSTS}") == ""
    assert ros.run(ALLOWED) == HOSTS.partition(",")[0] + "\r\n"


def test_a_box_may_be_too_old_to_know_of_hosts(ros: SimulatedBox) -> None:
    ros.switch(allow_host_name="refuse")
    ros.run(f"{ADD} {EXPORT}")
    assert ros.run(ALLOW + HOSTS) == f"expected end of command (line 1 column {ALLOW.index('nvme') + 1})\r\n"
    assert ros.disks()[HANDLE]["nvme_tcp_server_allow_host_name"] == ""
    assert "allow-host-name" not in printed(ros)
    assert ros.run(ALLOWED).startswith("input does not match any value of value-name")


@pytest.mark.parametrize("version", ["8", "seven", "7.x", "7."])
def test_a_version_that_is_none_is_refused(ros: SimulatedBox, version: str) -> None:
    with pytest.raises(ValueError, match="no such version"):
        ros.switch(version=version)
