"""The watch over a node's sessions: what it shows, tells and ends, on a sysfs and kubelet files as they are on disk."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rds_csi.node.commands import Command, Output
from rds_csi.node.health import Change, HealthWatch, Problem
from rds_csi.node.host import Host, NodePaths
from rds_csi.node.incidents import EachIncident
from rds_csi.node.nvme import DEFAULT_MANAGED_PREFIX
from rds_csi.node.orphan_sessions import OrphanSessions
from rds_csi.node.session_watch import SessionWatch
from rds_csi.node.sysfs import Session
from rds_csi.node.usage import User, UsersUnknown
from rds_csi.volume_locks import VolumeLocks
from rds_records.names import host_nqn_for
from tests.unit.node.fake_sysfs import NQN, FakeSysfs, write

NODE, DRIVER, VOLUME = "node-a", "rds.csi.srvlab.io", "pvc-one"
OURS = host_nqn_for(NODE)
GRACE = 120.0


class Heard(EachIncident):
    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[Problem, bool]] = []
        self.found: list[str] = []
        self.cleaned: list[str] = []

    def health_changed(self, change: Change) -> None:
        self.changes.append((change.problem, change.began))

    def orphan_found(self, session: Session) -> None:
        self.found.append(session.nqn)

    def orphan_cleaned(self, session: Session) -> None:
        self.cleaned.append(session.nqn)


@dataclass(frozen=True, slots=True)
class UsedHost(Host):
    """A host whose users are told by the test; who uses a real device is asked in a guest."""

    in_use: list[User | Exception] = field(default_factory=list)

    async def users(self, session: Session | None) -> tuple[User, ...]:
        for one in self.in_use:
            if isinstance(one, Exception):
                raise one
        return tuple(one for one in self.in_use if isinstance(one, User))


class Node:
    """A node in a directory, with a clock."""

    def __init__(self, folder: Path, *, clean: bool = True) -> None:
        self.sysfs = FakeSysfs(folder / "sys", multipath=True)
        self.kubelet = folder / "kubelet"
        (self.kubelet / "plugins/kubernetes.io/csi").mkdir(parents=True)
        self.mounts = folder / "proc/1/mountinfo"
        self.mounts.parent.mkdir(parents=True)
        self.mounts.write_text("")
        self.at = 0.0
        self.commands: list[Command] = []
        self.heard = Heard()
        self.locks = VolumeLocks()
        self.stays = False
        self.host = UsedHost(NodePaths(self.sysfs.root, folder / "proc", folder / "dev"), self.run)
        self.watch = SessionWatch(
            self.host,
            NODE,
            self.heard,
            self.locks,
            OrphanSessions(NODE, DEFAULT_MANAGED_PREFIX, GRACE),
            HealthWatch(30.0),
            driver=DRIVER,
            kubelet_root=self.kubelet,
            clean=clean,
            monotonic=lambda: self.at,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0)

    async def run(self, command: Command) -> Output:
        self.commands.append(command)
        if not self.stays:
            self.lose("nvme0")
        return Output(0, "", "")

    def lose(self, controller: str) -> None:
        """Take a controller and its disk out of sysfs."""
        shutil.rmtree(self.sysfs.root / "class")
        (self.sysfs.root / "class").mkdir()

    def connect(self, *, nqn: str = NQN, host_nqn: str = OURS, state: str = "live") -> None:
        self.sysfs.connect(nqn, host_nqn=host_nqn, state=state)
        self.sysfs.disk(nqn)

    def state(self, text: str) -> None:
        (self.sysfs.root / "class/nvme/nvme0/state").write_text(f"{text}\n")

    def stage(self, handle: str = VOLUME) -> None:
        data = self.kubelet / f"plugins/kubernetes.io/csi/volumeDevices/{handle}/data"
        data.mkdir(parents=True)
        (data / "vol_data.json").write_text(json.dumps({"volumeHandle": handle, "driverName": DRIVER}))

    async def look(self, *, after: float = 0.0) -> None:
        self.at += after
        await self.watch.look()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def orphan(node: Node) -> Node:
    """A node with a session of ours that is for no volume."""
    node.connect()
    return node


async def test_a_session_that_nothing_uses_is_ended_when_it_was_seen_for_long_enough(orphan: Node) -> None:
    await orphan.look()
    await orphan.look(after=GRACE - 1)
    assert orphan.commands == []
    await orphan.look(after=1)
    assert [command.words for command in orphan.commands] == [("nvme", "disconnect", f"--nqn={NQN}")]
    assert (orphan.heard.found, orphan.heard.cleaned) == ([NQN], [NQN])


async def left_alone(node: Node) -> bool:
    for _ in range(4):
        await node.look(after=GRACE)
    return not node.commands and not node.heard.cleaned


async def test_a_session_for_a_volume_that_the_kubelet_has_is_left_alone(orphan: Node) -> None:
    orphan.stage()
    assert await left_alone(orphan)
    assert orphan.heard.found == []


@pytest.mark.parametrize(
    "nqn", ["nqn.2000-02.com.mikrotik:boot", "nqn.2014-08.org.nvmexpress:uuid:1", "nqn.2000-02.com.mikrotik:pvc-"]
)
async def test_a_session_that_is_not_ours_is_neither_ended_nor_shown(node: Node, nqn: str) -> None:
    node.connect(nqn=nqn)
    assert await left_alone(node)
    assert node.watch.sessions == ()


async def test_a_session_under_another_host_nqn_is_shown_and_left_alone(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.connect(host_nqn="nqn.2014-08.org.nvmexpress:uuid:the-go-driver")
    assert await left_alone(node)
    assert node.watch.sessions is not None
    assert [session.nqn for session in node.watch.sessions] == [NQN]
    assert [record.message for record in caplog.records].count("a session was made under another host NQN than this node's") == 1


async def test_a_disk_in_use_keeps_its_session(orphan: Node) -> None:
    orphan.host.in_use.append(User("has the device open", "qemu", 7))
    assert await left_alone(orphan)
    orphan.host.in_use.clear()
    await orphan.look(after=1)
    assert orphan.heard.cleaned == [NQN]
    assert orphan.heard.found == [NQN], "it is told once"


async def test_users_that_cannot_be_looked_at_keep_it(orphan: Node) -> None:
    orphan.host.in_use.append(UsersUnknown("process 7 cannot be looked at"))
    assert await left_alone(orphan)


async def test_a_call_for_its_volume_that_is_under_way_keeps_it(orphan: Node) -> None:
    async with orphan.locks.hold(VOLUME):
        assert await left_alone(orphan)
    await orphan.look(after=1)
    assert orphan.heard.cleaned == [NQN]


async def test_a_volume_that_is_staged_in_the_last_moment_keeps_it(orphan: Node) -> None:
    await orphan.look()
    async with orphan.locks.hold(VOLUME):
        await orphan.look(after=GRACE)
        orphan.stage()
    assert await left_alone(orphan)


async def test_a_kubelet_that_cannot_be_read_keeps_all_sessions_and_says_so(orphan: Node) -> None:
    shutil.rmtree(orphan.kubelet)
    assert await left_alone(orphan)
    assert "--kubelet-root-dir" in orphan.watch.trouble
    assert orphan.watch.sessions, "they are shown all the same"


async def test_time_in_which_the_kubelet_could_not_be_read_does_not_count(orphan: Node) -> None:
    await orphan.look()
    broken = orphan.kubelet / "pods/x/volumes/kubernetes.io~csi/y"
    broken.mkdir(parents=True)
    (broken / "vol_data.json").write_text("{")
    await orphan.look(after=GRACE - 1)
    shutil.rmtree(broken)
    await orphan.look(after=2)
    assert orphan.commands == []
    assert orphan.watch.trouble == ""


async def test_a_session_that_does_not_go_is_tried_again_and_not_counted(orphan: Node) -> None:
    orphan.stays = True
    await orphan.look()
    await orphan.look(after=GRACE)
    assert orphan.heard.cleaned == []
    orphan.stays = False
    await orphan.look(after=1)
    assert (len(orphan.commands), orphan.heard.cleaned) == (2, [NQN])


async def test_cleaning_that_is_switched_off_only_tells(tmp_path: Path) -> None:
    node = Node(tmp_path, clean=False)
    node.connect()
    assert await left_alone(node)
    assert node.heard.found == [NQN]


async def test_a_sysfs_that_cannot_be_read_is_neither_health_nor_absence(orphan: Node) -> None:
    await orphan.look()
    shutil.rmtree(orphan.sysfs.root / "class")
    await orphan.look(after=GRACE)
    assert (orphan.watch.sessions, orphan.watch.problems) == (None, None)
    assert "sysfs is not mounted" in orphan.watch.trouble
    assert orphan.heard.changes == []


async def test_a_lost_connection_is_told_with_its_end(node: Node) -> None:
    node.connect()
    node.stage()
    await node.look()
    node.state("connecting")
    await node.look(after=10)
    await node.look(after=30)
    assert node.watch.problems == {VOLUME: frozenset({Problem.CONNECTION_LOST})}
    node.state("live")
    await node.look(after=10)
    assert node.heard.changes == [(Problem.CONNECTION_LOST, True), (Problem.CONNECTION_LOST, False)]
    assert node.watch.problems == {}


async def test_a_staged_volume_whose_session_went_has_lost_its_disk(node: Node) -> None:
    node.connect()
    node.stage()
    await node.look()
    node.lose("nvme0")
    await node.look(after=10)
    await node.look(after=30)
    assert node.heard.changes == [(Problem.DEVICE_VANISHED, True)]


async def test_files_of_a_volume_that_was_never_here_since_the_start_are_no_incident(node: Node) -> None:
    node.stage()
    (node.sysfs.root / "class").mkdir(exist_ok=True)
    for _ in range(4):
        await node.look(after=30)
    assert node.heard.changes == []


async def test_a_volume_that_was_unstaged_is_no_incident(node: Node) -> None:
    node.connect()
    node.stage()
    await node.look()
    node.lose("nvme0")
    shutil.rmtree(node.kubelet / "plugins/kubernetes.io/csi/volumeDevices")
    for _ in range(4):
        await node.look(after=30)
    assert node.heard.changes == []


async def test_a_file_system_gone_read_only_is_told(node: Node) -> None:
    node.connect()
    node.stage()
    node.mounts.write_text("29 1 259:1 / /staging rw,relatime - ext4 /dev/nvme0n1 ro\n")
    await node.look()
    assert node.heard.changes == [(Problem.FILESYSTEM_READ_ONLY, True)]


async def test_an_ext4_that_stopped_and_is_not_shown_so_in_the_mount_table_is_told(node: Node) -> None:
    node.connect()
    node.stage()
    node.mounts.write_text("29 1 259:1 / /staging rw,relatime - ext4 /dev/nvme0n1 rw,errors=remount-ro\n")
    write(node.sysfs.root / "fs/ext4/nvme0n1", errors_count="1", last_error_time="1000", journal_task="7")
    write(node.mounts.parents[1] / "7", stat=f"7 (jbd2) {' '.join(['S', *'0' * 18, '0'])} 0")
    (node.mounts.parents[1] / "stat").write_text("btime 2000\n")
    await node.look()
    assert node.heard.changes == [(Problem.FILESYSTEM_ERRORS, True)]
    (node.sysfs.root / "fs/ext4/nvme0n1/last_error_time").write_text("2001\n")
    await node.look()
    assert node.heard.changes[1:] == [(Problem.FILESYSTEM_ERRORS, False), (Problem.FILESYSTEM_READ_ONLY, True)]


async def test_an_xfs_that_has_shut_itself_down_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.connect()
    node.stage()
    node.mounts.write_text("29 1 259:1 / /staging rw,relatime - xfs /dev/nvme0n1 rw\n30 1 259:1 / /pod rw - xfs /dev/nvme0n1 rw\n")
    asked = []

    def lstat(path: Path) -> None:
        asked.append(path)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("rds_csi.node.filesystem_errors.os.lstat", lstat)
    await node.look()
    monkeypatch.undo()
    # As the node's first process has it, and once per file system.
    assert asked == [node.mounts.parent / "root/staging"]
    assert node.heard.changes == [(Problem.FILESYSTEM_READ_ONLY, True)]


async def test_a_scrape_shows_the_sessions_of_now(node: Node) -> None:
    await node.look()
    assert not node.watch.sessions
    node.connect()
    await node.watch.refresh()
    assert [session.nqn for session in node.watch.sessions or ()] == [NQN]


async def test_a_look_that_fails_is_followed_by_the_next(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    async def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise asyncio.CancelledError
        raise RuntimeError("a defect")

    monkeypatch.setattr(node.watch, "look", look)
    with pytest.raises(asyncio.CancelledError):
        await node.watch.run(10.0)
    assert (len(looks), node.at) == (3, 20)
