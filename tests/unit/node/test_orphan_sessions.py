"""Which sessions may be ended at all, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rds_csi.node.nvme import DEFAULT_MANAGED_PREFIX
from rds_csi.node.orphan_sessions import OrphanSessions, may_be_orphan, volume_of
from rds_csi.node.sysfs import Controller, ControllerState, Session
from rds_records.names import host_nqn_for, nqn_for

NODE, VOLUME = "node-a", "pvc-one"
BOOT = "nqn.2000-02.com.mikrotik:boot-node-a"


def session(
    nqn: str = nqn_for(VOLUME), *, host: str = NODE, name: str = "nvme0", state: ControllerState = ControllerState.LIVE
) -> Session:
    return Session(nqn, (Controller(name, nqn, state, "tcp", "10.0.0.1", 4420, host_nqn_for(host), "id"),), ())


def judged(one: Session, *volumes: str, prefix: str = DEFAULT_MANAGED_PREFIX) -> bool:
    return may_be_orphan(one, volumes, NODE, prefix)


def test_a_session_of_ours_for_no_volume_may_be_an_orphan() -> None:
    assert judged(session())
    assert judged(session(), "pvc-two")
    assert volume_of(session()) == VOLUME


@pytest.mark.parametrize("state", [ControllerState.CONNECTING, ControllerState.RESETTING])
def test_one_that_reconnects_for_ever_too(state: ControllerState) -> None:
    assert judged(session(state=state))


def test_a_volume_that_the_kubelet_has_is_none() -> None:
    assert not judged(session(), VOLUME)
    assert not judged(session(nqn_for("PVC-Upper")), "PVC-Upper", prefix="nqn.2000-02.com.mikrotik:pvc-")


def test_the_boot_session_is_none_under_any_prefix() -> None:
    assert not judged(session(BOOT))
    assert not judged(session(BOOT, host="firmware"), prefix="nqn.2000-02.com.mikrotik:")
    assert not judged(session(nqn_for("pvc-boot"), host="firmware"))


def test_a_session_with_one_controller_of_somebody_else_is_none() -> None:
    mixed = replace(session(), controllers=(*session().controllers, *session(host="node-b", name="nvme1").controllers))
    assert not judged(mixed)


def test_one_on_its_way_out_is_none() -> None:
    assert not judged(session(state=ControllerState.DELETING))


def test_one_without_controllers_is_none() -> None:
    assert not judged(replace(session(), controllers=()))


def looks(*seen: tuple[float, list[Session], list[str]]) -> list[list[str]]:
    orphans = OrphanSessions(NODE, DEFAULT_MANAGED_PREFIX, grace=120)
    return [[one.nqn for one in orphans.look(now, sessions, volumes)] for now, sessions, volumes in seen]


NQN = nqn_for(VOLUME)


def test_it_must_be_one_for_the_whole_grace_and_at_two_looks() -> None:
    assert looks((0, [session()], []), (119, [session()], []), (120, [session()], [])) == [[], [], [NQN]]
    assert looks((1000, [session()], [])) == [[]]


def test_a_use_in_between_starts_its_time_anew() -> None:
    assert looks((0, [session()], []), (60, [session()], [VOLUME]), (120, [session()], []), (239, [session()], [])) == [[]] * 4


def test_a_session_that_was_made_anew_starts_its_time_anew() -> None:
    assert looks((0, [session()], []), (120, [session(name="nvme7")], []), (239, [session(name="nvme7")], [])) == [[]] * 3


def test_a_time_in_which_nobody_could_look_counts_for_nothing() -> None:
    orphans = OrphanSessions(NODE, DEFAULT_MANAGED_PREFIX, grace=120)
    orphans.look(0, [session()], [])
    orphans.forget()
    assert orphans.look(500, [session()], []) == ()
    assert orphans.look(620, [session()], []) != ()
