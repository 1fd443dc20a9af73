"""The simulated box itself: what it shows, keeps and refuses."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from pathlib import Path

import asyncssh
import pytest

from tests.ring.processes import Process
from tests.simulator import SimulatedBox
from tests.simulator.box import ROOT
from tests.simulator.conftest import HANDLE

PATH = f"/storage-pool/metal-csi/{HANDLE}.img"
ADD = f"/disk add type=file file-path={PATH} file-size=50G slot={HANDLE}"
PRINTED = f"""\
Flags: B - BLOCK-DEVICE
 1 B type=file slot="{HANDLE}" slot-default=""
     parent="" fs=-
     model="/storage-pool/metal-csi/pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f.img
     " size=53 687 091 200 mount-filesystem=yes mount-read-only=no compress=no
     sector-size=512 raid-master=none nvme-tcp-export=no iscsi-export=no
     nfs-sharing=no smb-sharing=no media-sharing=no media-interface=none swap=no
     file-path=/storage-pool/metal-csi/pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f.
     img file-size=50.0GiB file-offset=0
"""


def logged_in(ros: SimulatedBox, **changes: object) -> contextlib.AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
    options = {"username": ros.user, "client_keys": [str(ros.private_key)], "known_hosts": None, "config": None} | changes
    return asyncssh.connect(ros.address, ros.port, **options)


def test_a_long_path_is_broken_in_mid_value(ros: SimulatedBox) -> None:
    assert ros.run(ADD) == ""
    assert ros.run(f"/disk print detail where slot={HANDLE}") == PRINTED.replace("\n", "\r\n")


@pytest.mark.parametrize(
    "where", [f'slot="{HANDLE}"', 'slot~"pvc"', f"slot={HANDLE} type=file", f'file-path~"{HANDLE}"', f"slot={HANDLE} and type=file"]
)
def test_a_disk_is_found_by_what_it_is(ros: SimulatedBox, where: str) -> None:
    ros.run(ADD)
    assert f'slot="{HANDLE}"' in ros.run(f"/disk print detail where {where}")
    assert ros.run(f":put [:len [/disk find where {where}]]") == "1\r\n"


@pytest.mark.parametrize("spelling", ["/disk add", "/disk/add", "/disk   add"])
def test_both_spellings_of_a_command_are_equal(ros: SimulatedBox, spelling: str) -> None:
    assert ros.run(ADD.replace("/disk add", spelling)) == ""
    assert list(ros.disks()) == [HANDLE]


def test_a_size_can_be_asked_for_alone(ros: SimulatedBox) -> None:
    ros.run(ADD)
    assert ros.run(f":put [/disk get [find slot={HANDLE}] size]") == "53687091200\r\n"


def test_a_line_is_read_whole_before_any_of_it_is_done(ros: SimulatedBox) -> None:
    assert ros.run(f'{ADD}; :put "open').startswith("syntax error (line 1 column ")
    assert ros.disks() == {}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("/frobnicate", "bad command name frobnicate (line 1 column 1)"),
        ("/disk frobnicate", "bad command name frobnicate (line 1 column 1)"),
        ("/disk add nonsense=1", "expected end of command (line 1 column 11)"),
        ("/disk remove nothing", "no such item"),
        ('/file remove [find name="a\\.b"]', "syntax error (line 1 column 28)"),
        (ADD.replace("50G", "17T"), "failure: not enough space"),
        (ADD.replace("50G", "5.5G"), "invalid value for argument file-size"),
        ("/disk add\n/disk add", "expected end of command (line 1 column 10)"),
    ],
)
def test_errors_are_worded_as_routeros_words_them(ros: SimulatedBox, line: str, text: str) -> None:
    assert ros.run(line) == text + "\r\n"


def test_a_second_disk_in_a_slot_is_refused(ros: SimulatedBox) -> None:
    ros.run(ADD)
    assert ros.run(ADD) == "failure: already have such entry\r\n"


@pytest.mark.parametrize("name", [PATH, "^storage-pool"])
def test_file_names_have_no_leading_slash_and_take_no_anchor(ros: SimulatedBox, name: str) -> None:
    ros.run(ADD)
    assert ros.run(f'/file print detail where name~"{name}"') == ""
    assert "size=50.0GiB" in ros.run(f'/file print detail where name~"{PATH[1:]}"')


def test_a_file_stays_when_its_disk_goes_and_is_attached_again_as_it_was(ros: SimulatedBox) -> None:
    ros.run(ADD)
    ros.run(f"/disk remove [find slot={HANDLE}]")
    assert (list(ros.disks()), list(ros.files())) == ([], [PATH[1:]])
    ros.run(ADD.replace("50G", "60G"))
    assert ros.disks()[HANDLE]["size"] == 50 << 30


def test_growing_takes_space_and_shows_in_disk_and_file(ros: SimulatedBox) -> None:
    ros.run(ADD)
    ros.run(f"/disk set [find slot={HANDLE}] file-size=51G")
    assert ros.disks()[HANDLE]["size"] == ros.files()[PATH[1:]]["size"] == 51 << 30
    ros.pool(size=60 << 30)
    assert "not enough space" in ros.run(f"/disk set [find slot={HANDLE}] file-size=61G")
    ros.switch(thick=False)
    assert ros.run(f"/disk set [find slot={HANDLE}] file-size=60G") == ""


def test_state_port_and_host_key_survive_a_kill(ros: SimulatedBox) -> None:
    ros.run(ADD)
    before = ros.disks(), ros.files(), ros.port, ros.host_key
    ros.restart()
    assert (ros.disks(), ros.files(), ros.port, ros.host_key) == before


async def test_only_exec_channels_are_opened(ros: SimulatedBox) -> None:
    async with logged_in(ros) as connection:
        with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError, asyncssh.misc.Error)):
            await connection.run(None)
        answer = await connection.run("/disk print count-only")
        assert (answer.stdout, answer.exit_status) == ("1\r\n", 0)


@pytest.mark.parametrize(
    "changes", [{"username": "admin"}, {"client_keys": None, "agent_path": None}, {"password": "x", "client_keys": None}]
)
async def test_only_the_one_user_with_the_one_key_comes_in(ros: SimulatedBox, changes: dict[str, object]) -> None:
    with pytest.raises(asyncssh.PermissionDenied):
        async with logged_in(ros, **changes):
            pass


async def test_what_arrived_is_known_also_when_it_was_not_answered(ros: SimulatedBox) -> None:
    ros.drop_link("before", "^/disk remove", nth=2)
    async with logged_in(ros) as connection:
        await connection.run("/disk remove [find slot=a]")
        with contextlib.suppress(asyncssh.misc.Error):
            await asyncio.wait_for(connection.run("/disk remove [find slot=b]"), 5)
    assert ros.received("/disk remove") == ["/disk remove [find slot=a]", "/disk remove [find slot=b]"]


def test_unknown_switches_are_refused(ros: SimulatedBox) -> None:
    with pytest.raises(ValueError, match="no such switch: colour"):
        ros.switch(colour="blue")


@pytest.mark.parametrize("kept", [True, False])
async def test_it_runs_alone_and_says_how_to_reach_it(tmp_path: Path, kept: bool) -> None:
    state = ["--state", str(tmp_path / "box.json")] if kept else []
    alone = Process("box", [sys.executable, "-m", "tests.simulator", *state], tmp_path / "log", cwd=ROOT)
    alone.ready = lambda: "/disk print" in alone.output()
    with alone:
        said = re.search(r" -i (\S+) -p (\d+) (\S+)@(\S+) '(.*)'", alone.output())
        assert said is not None, alone.output()
        key, port, user, host, example = said.groups()
        async with asyncssh.connect(host, int(port), username=user, client_keys=[key], known_hosts=None, config=None) as connection:
            answer = await connection.run(example)
    assert 'mount-point="storage-pool"' in str(answer.stdout)
    assert (key == str(tmp_path / "box.json.userkey")) == kept
