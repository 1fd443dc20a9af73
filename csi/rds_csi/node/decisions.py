"""What a node does next for a volume, from what was found just now. Pure.

Each RPC is a loop: look, decide, do that one step, look again, until the decision is ``Done`` or a refusal. So nothing rests
on what an earlier call did or believed it had done, and a call that ended anywhere is continued by its repetition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from rds_csi.errors import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, Unavailable
from rds_csi.node.filesystems import Blank, Content, Filesystem, Occupied, Unfinished, Unknown, lacks
from rds_csi.node.mountinfo import Mount
from rds_csi.node.nvme import Target, connected_elsewhere
from rds_csi.node.sysfs import DeviceNumber, Namespace, Session
from rds_csi.node.usage import User, describe

_POD = re.compile(r"(.+/pods/[^/]+)/volumes/.+")
"""A target path of a kubelet, and the directory of its pod (kubernetes, pkg/kubelet/kubelet_getters.go)."""


class PlaceKind(Enum):
    """What is at a path, without following a link."""

    NOTHING = auto()
    DIRECTORY = auto()
    FILE = auto()
    LINK = auto()
    BLOCK_DEVICE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Place:
    """A staging or target path as it is found."""

    kind: PlaceKind = PlaceKind.NOTHING
    empty: bool = True
    """Of a directory or file."""

    number: DeviceNumber | None = None
    """Of a block device."""


# Steps


@dataclass(frozen=True, slots=True)
class Done:
    """The volume is as the call wants it."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to the target."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End every session of this node with the subsystem."""


@dataclass(frozen=True, slots=True)
class Await:
    """Look again soon; where the call's time is up, it ends as UNAVAILABLE with these words."""

    what: str


@dataclass(frozen=True, slots=True)
class LookAtContent:
    """Find out what is on the device."""


@dataclass(frozen=True, slots=True)
class LookForUsers:
    """Find out who uses the device."""


@dataclass(frozen=True, slots=True)
class Format:
    """Make a file system on a device that was proven to hold nothing."""

    fs_type: str
    over_unfinished: bool = False


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make the directory that a mount needs, and its parents."""


@dataclass(frozen=True, slots=True)
class MountDevice:
    """Mount the device's file system at the staging path."""


@dataclass(frozen=True, slots=True)
class BindMount:
    """Show the staging path at the target path."""


@dataclass(frozen=True, slots=True)
class Unmount:
    """Take off the uppermost mount at the path."""


@dataclass(frozen=True, slots=True)
class Grow:
    """Make the mounted file system as large as its device."""


@dataclass(frozen=True, slots=True)
class MakeDeviceNode:
    """Make a device node at the target path, and its parent directory."""

    number: DeviceNumber


@dataclass(frozen=True, slots=True)
class MakeFile:
    """Make an empty file at the target path, and its parent directory: a device is shown at it."""


@dataclass(frozen=True, slots=True)
class BindDevice:
    """Show the device of /dev at the target path."""

    disk: Namespace


@dataclass(frozen=True, slots=True)
class SetReadOnly:
    """Let nobody on this node write to the device."""

    disk: Namespace


@dataclass(frozen=True, slots=True)
class Rescan:
    """Have the kernel ask the target for the disk's size again."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the one entry at the path: unlink, or rmdir, which fails for a directory that is not empty."""

    kind: PlaceKind


StageStep = (
    Done
    | Connect
    | Disconnect
    | Await
    | LookAtContent
    | LookForUsers
    | Format
    | MakeDirectory
    | MountDevice
    | Unmount
    | Grow
    | SetReadOnly
)
UnstageStep = Done | Disconnect | Await | LookForUsers | Unmount
PublishStep = Done | MakeDirectory | BindMount | MakeDeviceNode | MakeFile | BindDevice | Remove | Unmount
UnpublishStep = Done | Unmount | Remove
ExpandStep = Done | Await | Rescan | Grow


# Stage


@dataclass(frozen=True, slots=True)
class StageWanted:
    """What NodeStageVolume asks for."""

    volume_id: str
    target: Target
    block: bool = False
    fs_type: str = "ext4"
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class StageFound:
    """What was found on the node; ``None`` where nobody has looked yet in this call."""

    session: Session | None = None
    place: Place = Place()
    mounts: tuple[Mount, ...] = ()
    """At the staging path, the uppermost last."""

    present: frozenset[DeviceNumber] = frozenset()
    """Those devices of ``mounts`` that the kernel still has."""

    content: Content | None = None
    users: tuple[User, ...] | None = None
    waited: bool = False
    """Whether the time that a live controller gets to show its disk is up."""

    reconnected: bool = False
    """Whether this call has already disconnected once."""

    grown: bool = False
    keeps_size: bool = False
    """Whether the kernel would not grow the file system of the uppermost mount: it has errors, or has stopped after one."""


def stage(wanted: StageWanted, found: StageFound) -> StageStep:
    """Return the next step of NodeStageVolume; raises Rejected."""
    numbers = _numbers(found.session)
    if found.mounts and found.mounts[-1].number not in numbers:
        return _unmount_dead(wanted.volume_id, found.mounts[-1], found.present)
    if found.session is None:
        return Connect()
    if not found.session.live:
        return _stage_not_live(wanted, found, found.session)
    if not found.session.namespaces:
        return _stage_without_disk(wanted, found)
    disk = _only_disk(wanted.volume_id, found.session)
    if not disk.size_bytes:
        return Await(f"volume {wanted.volume_id}: {disk.name} has no size yet")
    if wanted.block:
        if found.mounts:
            raise FailedPrecondition(
                f"volume {wanted.volume_id} is mounted at {found.mounts[-1].mount_point}, and is to be a block device now"
            )
        return _stage_block(wanted, found, disk)
    if found.mounts:
        return _stage_mounted(wanted, found)
    return _stage_filesystem(wanted, found, disk)


def _stage_not_live(wanted: StageWanted, found: StageFound, session: Session) -> StageStep:
    states = ", ".join(f"{controller.name} at {controller.address} is {controller.state}" for controller in session.controllers)
    what = f"volume {wanted.volume_id}: no controller is live ({states or 'none is left'})"
    if session.going or not session.controllers or not connected_elsewhere(session, wanted.target):
        return Await(what)
    # The box has moved: this session would look for it at its old address for ever.
    if found.mounts:
        raise Unavailable(f"{what}; the volume is at {wanted.target.address} now, but still mounted here: end the pods that use it")
    if found.users is None:
        return LookForUsers()
    if found.users:
        raise Unavailable(f"{what}; the volume is at {wanted.target.address} now, but still used: {describe(found.users)}")
    return Disconnect()


def _stage_without_disk(wanted: StageWanted, found: StageFound) -> StageStep:
    if not found.waited:
        return Await(f"volume {wanted.volume_id}: the target is connected and shows no disk")
    if found.reconnected:
        raise Unavailable(f"volume {wanted.volume_id}: the target is connected and shows no disk, also after a new connection")
    # A target whose disk has other identifiers than before shows it to a new connection only.
    return Disconnect()


def _stage_block(wanted: StageWanted, found: StageFound, disk: Namespace) -> StageStep:
    if wanted.read_only == disk.read_only:
        return Done()
    if wanted.read_only:
        return SetReadOnly(disk)
    # Read-only is what an earlier user made of it, or the target. A new connection tells which, if nobody needs this one.
    if found.users is None:
        return LookForUsers()
    if found.users:
        return Done()
    if found.reconnected:
        raise FailedPrecondition(f"volume {wanted.volume_id}: the target lets nobody write to it")
    return Disconnect()


def _stage_mounted(wanted: StageWanted, found: StageFound) -> StageStep:
    top = found.mounts[-1]
    if len(found.mounts) > 1:
        return Unmount()
    if top.fs_type != wanted.fs_type:
        raise FailedPrecondition(f"volume {wanted.volume_id} is mounted as {top.fs_type}, not as {wanted.fs_type}")
    if ("ro" in top.options) != wanted.read_only:
        how = "read-only" if "ro" in top.options else "for writing"
        raise AlreadyExists(f"volume {wanted.volume_id} is already staged {how} at {top.mount_point}; unstage it first")
    return Done() if found.grown or found.keeps_size or top.read_only else Grow()


def _stage_filesystem(wanted: StageWanted, found: StageFound, disk: Namespace) -> StageStep:
    match found.content:
        case None:
            return LookAtContent()
        case Unknown(why):
            raise Unavailable(f"volume {wanted.volume_id}: what is on {disk.name} cannot be told ({why}); nothing was written")
        case Occupied(what):
            raise FailedPrecondition(
                f"volume {wanted.volume_id}: {what} is on {disk.name}, and no {wanted.fs_type}; nothing was written. "
                "Use the volume with volumeMode Block, or wipe it by hand if nobody needs that"
            )
        case Filesystem(fs_type) if fs_type != wanted.fs_type:
            raise FailedPrecondition(
                f"volume {wanted.volume_id} holds {fs_type}, and {wanted.fs_type} is asked for; nothing was written. "
                f"Ask for fsType {fs_type}"
            )
        case Blank() | Unfinished():
            return _stage_format(wanted, found, disk)
    if disk.read_only and not wanted.read_only:
        # mount(8) would mount it read-only then, and say no more than a warning.
        raise FailedPrecondition(f"volume {wanted.volume_id}: the target lets nobody write to it")
    if found.place.kind is PlaceKind.NOTHING:
        return MakeDirectory()
    if found.place.kind is not PlaceKind.DIRECTORY:
        raise FailedPrecondition(f"volume {wanted.volume_id}: the staging path is no directory; remove what is there")
    return MountDevice()


def _stage_format(wanted: StageWanted, found: StageFound, disk: Namespace) -> StageStep:
    if wanted.read_only or disk.read_only:
        raise FailedPrecondition(f"volume {wanted.volume_id} is blank and read-only: no file system can be made on it")
    if found.users is None:
        return LookForUsers()
    if found.users:
        raise FailedPrecondition(f"volume {wanted.volume_id} is blank and in use, so it is not formatted: {describe(found.users)}")
    return Format(wanted.fs_type, over_unfinished=isinstance(found.content, Unfinished))


# Unstage


@dataclass(frozen=True, slots=True)
class UnstageFound:
    """What was found on the node; ``users`` is None where nobody has looked since the last unmount."""

    session: Session | None = None
    mounts: tuple[Mount, ...] = ()
    """At the staging path, the uppermost last."""

    elsewhere: tuple[Mount, ...] = ()
    """Mounts of the volume's devices at other places."""

    below: tuple[Mount, ...] = ()
    """Mounts of whatever below the staging path."""

    present: frozenset[DeviceNumber] = frozenset()
    users: tuple[User, ...] | None = None


def unstage(volume_id: str, found: UnstageFound) -> UnstageStep:
    """Return the next step of NodeUnstageVolume; raises Rejected.

    ``Done`` only where the session is gone: the controller gives the volume to another node after that.
    """
    for mount in (*found.elsewhere, *found.below):
        raise FailedPrecondition(f"volume {volume_id} is in use: {mount.mount_point} is still mounted; unpublish it first")
    if found.mounts:
        if found.mounts[-1].number in _numbers(found.session):
            return Unmount()
        return _unmount_dead(volume_id, found.mounts[-1], found.present)
    if found.session is None:
        return Done()
    if found.session.going:
        return Await(f"volume {volume_id}: its session is being ended, and not gone yet")
    if found.users is None:
        return LookForUsers()
    if found.users:
        raise FailedPrecondition(f"volume {volume_id} is in use: {describe(found.users)}")
    return Disconnect()


# Publish


@dataclass(frozen=True, slots=True)
class PublishFound:
    """What was found on the node."""

    session: Session | None = None
    staged: tuple[Mount, ...] = ()
    """At the staging path, the uppermost last."""

    place: Place = Place()
    """At the target path, as a process sees it: on top of all mounts."""

    mounts: tuple[Mount, ...] = ()
    """At the target path, the uppermost last."""

    present: frozenset[DeviceNumber] = frozenset()
    nodev: bool = False
    """Whether device nodes at the target path cannot be opened, for the file system there is mounted so."""

    others: tuple[str, ...] = ()
    """Where it is published besides, of a volume that is for one pod alone."""


def publish_block(volume_id: str, found: PublishFound) -> PublishStep:
    """Return the next step of NodePublishVolume for a block device: a device node at the target path; raises Rejected.

    A node that is there is believed only where its number is the disk's of now: names and numbers are given anew at each
    connect, and an old node may be another volume's disk.
    """
    disk = _only_disk(volume_id, _staged_session(volume_id, found.session))
    _refuse_second_pod(volume_id, found.others)
    match found.place:
        case Place(PlaceKind.BLOCK_DEVICE, number=there) if there == disk.number:
            if len(found.mounts) > 1:
                return Unmount()
            if found.mounts or not found.nodev:
                return Done()
        case Place(PlaceKind.NOTHING):
            return MakeFile() if found.nodev else MakeDeviceNode(disk.number)
        case Place(PlaceKind.FILE, empty=True) if found.nodev and not found.mounts:
            return BindDevice(disk)
    if found.mounts:
        # Also a bind mount of a device node, which is how other drivers publish.
        if found.place.kind in {PlaceKind.BLOCK_DEVICE, PlaceKind.FILE}:
            return Unmount()
        return _unmount_dead(volume_id, found.mounts[-1], found.present)
    return _remove(volume_id, found.place)


def publish_filesystem(volume_id: str, options: tuple[str, ...], found: PublishFound) -> PublishStep:
    """Return the next step of NodePublishVolume for a file system: one bind mount of the staging path; raises Rejected."""
    if not found.staged:
        raise FailedPrecondition(f"volume {volume_id} is not staged here")
    _refuse_second_pod(volume_id, found.others)
    staged = found.staged[-1].number
    if staged not in _numbers(_staged_session(volume_id, found.session)):
        raise FailedPrecondition(f"volume {volume_id}: its disk has another number than when it was staged; stage it again")
    if found.mounts:
        top = found.mounts[-1]
        if top.number != staged:
            return _unmount_dead(volume_id, top, found.present)
        # One that lacks a restriction is what a crash within mount(8) leaves: it binds first and restricts then. Where a
        # pod uses it, it cannot be unmounted, and the call fails.
        return Unmount() if len(found.mounts) > 1 or lacks(top.options, options) else Done()
    if found.place.kind is PlaceKind.NOTHING:
        return MakeDirectory()
    if found.place.kind is PlaceKind.DIRECTORY:
        return BindMount()
    return _remove(volume_id, found.place)


def mounted_for_others(mounts: Iterable[Mount], staging: str, target: str) -> tuple[str, ...]:
    """Return where a staged file system is mounted for other pods than that of the target path.

    A kubelet mounts what a container asks for by ``subPath`` beside its pod's volumes.
    """
    pod = _POD.fullmatch(target)
    own = f"{pod[1]}/volume-subpaths/" if pod else ""
    return tuple(
        mount.mount_point
        for mount in mounts
        if mount.mount_point not in {staging, target} and not (own and mount.mount_point.startswith(own))
    )


def _refuse_second_pod(volume_id: str, others: tuple[str, ...]) -> None:
    for other in others:
        raise FailedPrecondition(f"volume {volume_id} is for one pod alone (ReadWriteOncePod), and published at {other} already")


# Unpublish


@dataclass(frozen=True, slots=True)
class UnpublishFound:
    """What was found at the target path."""

    place: Place = Place()
    mounts: tuple[Mount, ...] = ()
    below: tuple[Mount, ...] = ()


def unpublish(volume_id: str, found: UnpublishFound) -> UnpublishStep:
    """Return the next step of NodeUnpublishVolume; raises Rejected.

    Nothing is removed through a mount: the path goes only once the mount table shows none there, and only as one entry.
    """
    for mount in found.below:
        raise FailedPrecondition(f"volume {volume_id}: {mount.mount_point} is mounted below the target path; unmount it first")
    if found.mounts:
        return Unmount()
    if found.place.kind is PlaceKind.NOTHING:
        return Done()
    return _remove(volume_id, found.place)


# Expand


@dataclass(frozen=True, slots=True)
class ExpandWanted:
    """What NodeExpandVolume asks for; sizes in bytes, 0 where there is no bound."""

    volume_id: str
    path: str
    required_bytes: int = 0
    limit_bytes: int = 0
    block: bool = False


@dataclass(frozen=True, slots=True)
class ExpandFound:
    """What was found on the node."""

    session: Session | None = None
    place: Place = Place()
    """At the volume path."""

    mounts: tuple[Mount, ...] = ()
    """At the volume path, else at the staging path, the uppermost last."""

    rescanned: bool = False
    """Whether the kernel was just told to ask the target."""

    grown: bool = False
    stopped: bool = False
    """Whether the file system of the uppermost mount has stopped after an error."""


def expand(wanted: ExpandWanted, found: ExpandFound) -> ExpandStep:
    """Return the next step of NodeExpandVolume; raises Rejected.

    NOT_FOUND only where there is neither a session nor anything at the path: the kubelet takes it for a wish that cannot come true.
    """
    if found.session is None:
        if found.place.kind is PlaceKind.NOTHING:
            raise NotFound(f"volume {wanted.volume_id} is not connected here, and nothing is at {wanted.path[:120]}")
        raise Unavailable(f"volume {wanted.volume_id} is not connected here (any more); stage it again")
    if not found.session.live:
        return Await(f"volume {wanted.volume_id}: no controller is live, so its size cannot be asked for")
    if not found.session.namespaces:
        return Await(f"volume {wanted.volume_id} is connected, and its disk is not there now")
    disk = _only_disk(wanted.volume_id, found.session)
    if disk.size_bytes < wanted.required_bytes:
        what = f"volume {wanted.volume_id}: {disk.name} has {disk.size_bytes} bytes here, and not {wanted.required_bytes} yet"
        return Await(what) if found.rescanned else Rescan()
    if wanted.limit_bytes and disk.size_bytes > wanted.limit_bytes:
        raise OutOfRange(f"volume {wanted.volume_id}: {disk.name} has {disk.size_bytes} bytes, more than {wanted.limit_bytes}")
    # A caller need not say how the volume is used.
    if wanted.block or found.place.kind is PlaceKind.BLOCK_DEVICE:
        return Done()
    if found.place.kind is PlaceKind.NOTHING:
        raise NotFound(f"volume {wanted.volume_id}: nothing is at {wanted.path[:120]}")
    if not found.mounts or found.mounts[-1].number != disk.number:
        raise FailedPrecondition(f"volume {wanted.volume_id} is not mounted at {wanted.path[:120]}; stage and publish it first")
    if found.grown:
        return Done()
    if found.stopped or "ro" in found.mounts[-1].super_options:
        raise FailedPrecondition(f"volume {wanted.volume_id}: its file system is read-only now, and cannot be grown")
    return Grow()


# What they share


def _numbers(session: Session | None) -> frozenset[DeviceNumber]:
    return frozenset(namespace.number for namespace in session.namespaces) if session else frozenset()


def _staged_session(volume_id: str, session: Session | None) -> Session:
    if session is None:
        raise FailedPrecondition(f"volume {volume_id} is not connected here; stage it first")
    if not session.namespaces:
        raise Unavailable(f"volume {volume_id} is connected, and its disk is not there now")
    return session


def _only_disk(volume_id: str, session: Session) -> Namespace:
    if len(session.namespaces) > 1:
        names = ", ".join(namespace.name for namespace in session.namespaces)
        raise FailedPrecondition(f"volume {volume_id}: its subsystem has more than one disk ({names}); nobody can say which it is")
    return session.namespaces[0]


def _unmount_dead(volume_id: str, mount: Mount, present: Iterable[DeviceNumber]) -> Unmount:
    """Unmount what is left of a disk that was lost or renumbered; raises FailedPrecondition for a living, foreign one."""
    if mount.number in present:
        raise FailedPrecondition(
            f"volume {volume_id}: {mount.source} ({mount.number}), which is not its disk, is mounted at {mount.mount_point}"
        )
    return Unmount()


def _remove(volume_id: str, place: Place) -> Remove:
    if place.kind in {PlaceKind.DIRECTORY, PlaceKind.FILE} and not place.empty:
        raise FailedPrecondition(f"volume {volume_id}: what is at the target path is not empty; it is not removed")
    if place.kind is PlaceKind.OTHER:
        raise FailedPrecondition(f"volume {volume_id}: what is at the target path is neither directory, file, link nor disk")
    return Remove(place.kind)
