"""A node as it behaves, small enough to be killed at every step: what decisions are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import assert_never

from rds_csi.errors import Rejected
from rds_csi.node import decisions
from rds_csi.node.decisions import Done, Place, PlaceKind
from rds_csi.node.filesystems import Blank, Content, Filesystem, Unfinished
from rds_csi.node.mountinfo import Mount
from rds_csi.node.nvme import Target
from rds_csi.node.sysfs import Controller, ControllerState, DeviceNumber, Namespace, Session
from rds_csi.node.usage import User

NQN = "nqn.2000-02.com.mikrotik:pvc-one"
TARGET = Target(NQN, "10.0.0.1", 4420, -1, 5, 0)
STAGING, PUBLISHED, OTHER = "/staging", "/target", "/other"
OPTIONS = ("nodev", "nosuid")
FOREIGN = DeviceNumber(259, 66)
"""Another volume's disk, alive."""

MAX_STEPS = 40


class Killed(Exception):
    """The plugin died here."""


def controller(state: ControllerState = ControllerState.LIVE, address: str = TARGET.address) -> Controller:
    return Controller("nvme0", NQN, state, "tcp", address, TARGET.port, "nqn.host", "id")


def disk(minor: int = 1, *, size: int = 1 << 30, read_only: bool = False) -> Namespace:
    return Namespace(f"nvme0n{minor}", DeviceNumber(259, minor), size, read_only, "")


def session(*namespaces: Namespace, state: ControllerState = ControllerState.LIVE, address: str = TARGET.address) -> Session:
    return Session(NQN, (controller(state, address),), namespaces)


def mounted(at: str, minor: int = 1, *, fs_type: str = "ext4", options: frozenset[str] = frozenset({"rw", *OPTIONS})) -> Mount:
    return Mount(1, 0, DeviceNumber(259, minor), "/", at, options, fs_type, f"/dev/nvme0n{minor}", frozenset({"rw"}))


@dataclass
class World:
    """One node and one volume."""

    session: Session | None = None
    mounts: list[Mount] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    content: Content = field(default_factory=Blank)
    users: tuple[User, ...] = ()
    next_minor: int = 2
    grown: bool = False
    nodev: bool = False
    """Whether device nodes at the target path cannot be opened."""

    shown: DeviceNumber | None = None
    """The device that is bound to the target path."""

    written: bool = False
    """Whether a format went over something that was no blank device."""

    kill_at: int = -1
    """The step that is the last one; it is done half where it can be."""

    steps: int = 0

    def at(self, path: str) -> tuple[Mount, ...]:
        return tuple(mount for mount in self.mounts if mount.mount_point == path)

    def numbers(self) -> frozenset[DeviceNumber]:
        return frozenset(namespace.number for namespace in self.session.namespaces) if self.session else frozenset()

    def present(self) -> frozenset[DeviceNumber]:
        return self.numbers() | {FOREIGN}

    def place(self, path: str) -> Place:
        if self.at(path) and self.at(path)[-1].fs_type == "devtmpfs":
            return Place(PlaceKind.BLOCK_DEVICE, number=self.shown)
        return Place(PlaceKind.DIRECTORY, empty=False) if self.at(path) else self.places.get(path, Place())

    def state(self) -> object:
        """What a later call can see; the number of a disk is the kernel's choice, so it is counted from the disk of now."""
        numbers = self.numbers()
        return (
            self.session is None or (self.session.live, len(self.session.namespaces)),
            [(mount.mount_point, mount.number in numbers, sorted(mount.options)) for mount in self.mounts],
            {
                path: (place.kind, place.number in numbers, place.empty)
                for path, place in self.places.items()
                if place.kind is not PlaceKind.NOTHING
            },
            self.content,
        )

    # The kernel

    def connect(self) -> None:
        self.session = session(disk(self.next_minor))
        self.next_minor += 1

    def disconnect(self) -> None:
        self.session = None

    def _time_passes(self) -> None:
        """What was on its way arrives: gone, live, with a size."""
        if self.session is None:
            return
        if self.session.going or not self.session.controllers:
            self.disconnect()
        elif not self.session.live:
            self.session = replace(self.session, controllers=(controller(),))
        else:
            disks = tuple(replace(one, size_bytes=1 << 30) for one in self.session.namespaces)
            self.session = replace(self.session, namespaces=disks)

    def unmount(self, path: str) -> None:
        self.mounts.remove(self.at(path)[-1])

    # One call

    def _step(self) -> bool:
        """Count a step; returns whether the plugin is killed in it."""
        self.steps += 1
        assert self.steps < MAX_STEPS, "this goes on for ever"
        return self.steps - 1 == self.kill_at

    def stage(self, wanted: decisions.StageWanted) -> None:
        looked: dict[str, object] = {"content": None, "users": None, "grown": False, "waited": False, "reconnected": False}
        while True:
            step = decisions.stage(
                wanted,
                decisions.StageFound(
                    session=self.session,
                    place=self.place(STAGING),
                    mounts=self.at(STAGING),
                    present=self.present(),
                    **looked,  # type: ignore[arg-type]
                ),
            )
            if isinstance(step, Done):
                return
            killed = self._step()
            self._stage_step(step, wanted, looked, killed=killed)
            if killed:
                raise Killed

    def _stage_step(self, step: object, wanted: decisions.StageWanted, looked: dict[str, object], *, killed: bool) -> None:
        match step:
            case decisions.Connect():
                self.connect()
            case decisions.Disconnect():
                self.disconnect()
                looked["reconnected"] = True
            case decisions.Await():
                self._time_passes()
                looked["waited"] = True
            case decisions.LookAtContent():
                looked["content"] = self.content
            case decisions.LookForUsers():
                looked["users"] = self.users
            case decisions.Format():
                self._format(step, killed=killed)
                looked["content"] = None
            case decisions.MakeDirectory():
                self.places[STAGING] = Place(PlaceKind.DIRECTORY)
            case decisions.MountDevice():
                self._mount(read_only=wanted.read_only)
            case decisions.Unmount():
                self.unmount(STAGING)
            case decisions.SetReadOnly(one):
                assert self.session
                self.session = replace(self.session, namespaces=(replace(one, read_only=True),))
            case decisions.Grow():
                self.grown = looked["grown"] = True
            case _:
                raise AssertionError(step)

    def _format(self, step: decisions.Format, *, killed: bool) -> None:
        self.written |= not isinstance(self.content, Unfinished if step.over_unfinished else Blank) or bool(self.users)
        # Killed in the middle: mkfs.xfs leaves its mark, mkfs.ext4 writes the superblock last.
        half: Content = Unfinished() if step.fs_type == "xfs" else self.content
        self.content = half if killed else Filesystem(step.fs_type)

    def _mount(self, *, read_only: bool) -> None:
        assert isinstance(self.content, Filesystem)
        (number,) = self.numbers()
        options = frozenset({"ro" if read_only else "rw", *OPTIONS})
        self.mounts.append(mounted(STAGING, number.minor, fs_type=self.content.fs_type, options=options))

    def unstage(self) -> None:
        users: tuple[User, ...] | None = None
        while True:
            numbers = self.numbers() | {mount.number for mount in self.at(STAGING)}
            step = decisions.unstage(
                "pvc-one",
                decisions.UnstageFound(
                    session=self.session,
                    mounts=self.at(STAGING),
                    elsewhere=tuple(one for one in self.mounts if one.number in numbers and one.mount_point != STAGING),
                    present=self.present(),
                    users=users,
                ),
            )
            if isinstance(step, Done):
                return
            killed = self._step()
            match step:
                case decisions.Disconnect():
                    self.disconnect()
                case decisions.Await():
                    self.disconnect()
                case decisions.LookForUsers():
                    users = self.users
                case decisions.Unmount():
                    self.unmount(STAGING)
                    users = None
                case _:
                    assert_never(step)
            if killed:
                raise Killed

    def publish(self, *, block: bool, options: tuple[str, ...] = OPTIONS) -> None:
        while True:
            found = decisions.PublishFound(
                self.session, self.at(STAGING), self.place(PUBLISHED), self.at(PUBLISHED), self.present(), self.nodev
            )
            step = decisions.publish_block("pvc-one", found) if block else decisions.publish_filesystem("pvc-one", options, found)
            if isinstance(step, Done):
                return
            killed = self._step()
            match step:
                case decisions.MakeDirectory():
                    self.places[PUBLISHED] = Place(PlaceKind.DIRECTORY)
                case decisions.BindMount():
                    # mount(8) binds first, and restricts then.
                    had = {"rw"} if killed else ({*options} if "ro" in options else {"rw", *options})
                    self.mounts.append(replace(self.at(STAGING)[-1], mount_point=PUBLISHED, options=frozenset(had)))
                case decisions.MakeDeviceNode(number):
                    self.places[PUBLISHED] = Place(PlaceKind.BLOCK_DEVICE, number=number)
                case decisions.MakeFile():
                    self.places[PUBLISHED] = Place(PlaceKind.FILE)
                case decisions.BindDevice(shown):
                    self.mounts.append(replace(mounted(PUBLISHED), number=DeviceNumber(0, 6), fs_type="devtmpfs"))
                    self.shown = shown.number
                case decisions.Remove():
                    self._remove()
                case decisions.Unmount():
                    self.unmount(PUBLISHED)
                case _:
                    assert_never(step)
            if killed:
                raise Killed

    def unpublish(self) -> None:
        while True:
            step = decisions.unpublish("pvc-one", decisions.UnpublishFound(self.place(PUBLISHED), self.at(PUBLISHED)))
            if isinstance(step, Done):
                return
            killed = self._step()
            match step:
                case decisions.Remove():
                    self._remove()
                case decisions.Unmount():
                    self.unmount(PUBLISHED)
                case _:
                    assert_never(step)
            if killed:
                raise Killed

    def _remove(self) -> None:
        assert not self.at(PUBLISHED), "removed through a mount"
        assert self.places.pop(PUBLISHED).empty


Call = Callable[[World], None]


def outcome(world: World, call: Call) -> object:
    """Return what a call led to: the state after it, or the refusal."""
    world.steps = 0
    try:
        call(world)
    except Rejected as refused:
        return type(refused), str(refused), world.state()
    return world.state()
