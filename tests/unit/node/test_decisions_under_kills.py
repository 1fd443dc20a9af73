"""A call that is killed anywhere and made again ends as if it had not been killed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.node.decisions import Place, PlaceKind, StageWanted
from rds_csi.node.filesystems import Blank, Content, Filesystem, Occupied, Unfinished, Unknown
from rds_csi.node.mountinfo import Mount
from rds_csi.node.sysfs import ControllerState, DeviceNumber
from rds_csi.node.usage import User
from tests.unit.node.node_world import (
    FOREIGN,
    OPTIONS,
    OTHER,
    PUBLISHED,
    STAGING,
    TARGET,
    Call,
    Killed,
    World,
    disk,
    mounted,
    outcome,
    session,
)

EXAMPLES = settings(max_examples=300, deadline=None)
contents: st.SearchStrategy[Content] = st.sampled_from(
    [Blank(), Unfinished(), Filesystem("ext4"), Filesystem("xfs"), Occupied("LVM2_member"), Unknown("why")]
)
disks = st.lists(st.sampled_from([disk(), disk(size=0), disk(read_only=True)]), max_size=1)
live = st.just(session(disk()))
sessions = (
    st.none()
    | live
    | live
    | st.builds(
        lambda disks, state, address: session(*disks, state=state, address=address),
        disks,
        st.sampled_from(ControllerState),
        st.sampled_from([TARGET.address, "10.9.9.9"]),
    )
)
places = st.sampled_from(
    [
        Place(),
        Place(PlaceKind.DIRECTORY),
        Place(PlaceKind.DIRECTORY, empty=False),
        Place(PlaceKind.FILE),
        Place(PlaceKind.LINK),
        Place(PlaceKind.OTHER),
        Place(PlaceKind.BLOCK_DEVICE, number=DeviceNumber(259, 1)),
        Place(PlaceKind.BLOCK_DEVICE, number=DeviceNumber(259, 77)),
    ]
)


def mounts(*points: str) -> st.SearchStrategy[list[Mount]]:
    return st.lists(
        st.builds(
            lambda point, minor, fs_type, how: mounted(point, minor, fs_type=fs_type, options=frozenset({how, *OPTIONS})),
            st.sampled_from(points),
            st.sampled_from([1, 1, 1, 1, 1, 88, FOREIGN.minor]),
            st.sampled_from(["ext4", "ext4", "xfs"]),
            st.sampled_from(["rw", "rw", "ro"]),
        ),
        max_size=5,
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    found = draw(mounts(*draw(st.sampled_from([(STAGING,), (STAGING, PUBLISHED), (STAGING, PUBLISHED, OTHER)]))))
    world = World(
        session=draw(sessions),
        mounts=found,
        places={STAGING: draw(places), PUBLISHED: draw(places)},
        content=draw(contents),
        users=draw(st.sampled_from([(), (), (User("has the device open", "qemu", 7),)])),
    )
    for mount in found:
        # What is mounted has a directory below it.
        world.places[mount.mount_point] = Place(PlaceKind.DIRECTORY)
    return world


wishes = st.builds(StageWanted, st.just("pvc-one"), st.just(TARGET), st.booleans(), st.sampled_from(["ext4", "xfs"]), st.booleans())


def check(world: World, call: Call) -> World:
    """Make the call once, and for each of its steps once more with a kill in it; return the world after the first."""
    once = deepcopy(world)
    expected = outcome(once, call)
    assert not once.written
    steps = once.steps
    for kill_at in range(steps):
        killed = replace(deepcopy(world), kill_at=kill_at)
        with pytest.raises(Killed):
            call(killed)
        killed.kill_at = -1
        assert outcome(killed, call) == expected
        assert not killed.written
    before = once.state()
    assert outcome(once, call) == expected
    assert once.state() == before
    return once


def foreign(mounts: tuple[Mount, ...]) -> int:
    return sum(mount.number == FOREIGN for mount in mounts)


def refused(world: World, call: Call) -> bool:
    return isinstance(result := outcome(world, call), tuple) and isinstance(result[0], type)


@EXAMPLES
@given(worlds(), wishes)
def test_stage(world: World, wanted: StageWanted) -> None:
    def call(world: World) -> None:
        world.stage(wanted)

    after = check(world, call)
    if not refused(deepcopy(after), call):
        assert after.session is not None
        assert after.session.live
        (number,) = after.numbers()
        assert [mount.number for mount in after.at(STAGING)] == ([] if wanted.block else [number])
        assert wanted.block or after.content == Filesystem(wanted.fs_type) or world.at(STAGING)
    if isinstance(world.content, Filesystem | Occupied | Unknown):
        assert after.content == world.content
        if world.content != Filesystem(wanted.fs_type) and not world.at(STAGING):
            assert after.at(STAGING) == ()
    assert foreign(after.at(STAGING)) == foreign(world.at(STAGING))


@EXAMPLES
@given(worlds())
def test_unstage(world: World) -> None:
    after = check(world, World.unstage)
    if not refused(deepcopy(after), World.unstage):
        assert after.session is None
        assert after.at(STAGING) == ()
    elif world.users or any(mount.mount_point == OTHER and mount.number in world.numbers() for mount in world.mounts):
        assert after.session == world.session
    if world.users and world.session is not None and not world.session.going:
        assert after.session == world.session
    assert foreign(after.at(STAGING)) == foreign(world.at(STAGING))
    assert after.at(PUBLISHED) == world.at(PUBLISHED)
    assert after.at(OTHER) == world.at(OTHER)


@EXAMPLES
@given(worlds())
def test_publish_block(world: World) -> None:
    def call(world: World) -> None:
        world.publish(block=True)

    after = check(world, call)
    if not refused(deepcopy(after), call):
        (number,) = after.numbers()
        assert after.place(PUBLISHED) == Place(PlaceKind.BLOCK_DEVICE, number=number)


@EXAMPLES
@given(worlds(), st.sampled_from([OPTIONS, (*OPTIONS, "noexec"), (*OPTIONS, "ro")]))
def test_publish_filesystem(world: World, options: tuple[str, ...]) -> None:
    def call(world: World) -> None:
        world.publish(block=False, options=options)

    after = check(world, call)
    if not refused(deepcopy(after), call):
        (mount,) = after.at(PUBLISHED)
        assert mount.number in after.numbers()
        assert set(options) <= mount.options
        assert ("ro" in mount.options) == ("ro" in options)
    assert foreign(after.at(PUBLISHED)) == foreign(world.at(PUBLISHED))
    assert after.at(STAGING) == world.at(STAGING)


@EXAMPLES
@given(worlds())
def test_unpublish(world: World) -> None:
    after = check(world, World.unpublish)
    assert after.at(PUBLISHED) == ()
    if not refused(deepcopy(after), World.unpublish):
        assert after.place(PUBLISHED) == Place()
    assert after.at(STAGING) == world.at(STAGING)
    assert after.session == world.session


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["stage", "publish", "unpublish", "unstage"]), st.integers(-1, 6)), max_size=12),
    st.booleans(),
)
def test_over_a_whole_life_with_kills_nothing_is_left_behind(calls: list[tuple[str, int]], block: bool) -> None:
    world = World()
    wanted = StageWanted("pvc-one", TARGET, block=block, fs_type="xfs")
    made: dict[str, Call] = {
        "stage": lambda world: world.stage(wanted),
        "publish": lambda world: world.publish(block=block),
        "unpublish": World.unpublish,
        "unstage": World.unstage,
    }
    for name, kill_at in calls:
        world.kill_at = kill_at
        try:
            outcome(world, made[name])
        except Killed:
            continue
    world.kill_at = -1
    for name in ("unpublish", "unstage"):
        world.steps = 0
        made[name](world)
    assert (world.session, world.mounts, world.place(PUBLISHED)) == (None, [], Place())
    assert not world.written
