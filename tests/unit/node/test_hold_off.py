"""A volume whose connection or mount fails again and again is held off, and let go by success and by its annotation."""

from __future__ import annotations

from itertools import pairwise

import pytest

from rds_csi.errors import Unavailable
from rds_csi.node.hold_off import AFTER, FORGET_SECONDS, LONGEST_SECONDS, Annotation, VolumeHoldOff
from rds_csi.node.incidents import EachIncident
from rds_csi.node.reports import MountOperation, Operation
from tests.unit.node.node_world import TARGET

VOLUME, OTHER = "pvc-one", "pvc-two"


class Heard(EachIncident):
    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[str, int, float]] = []
        self.let_go: list[tuple[str, str]] = []

    def held_off(self, volume_id: str, failures: int, seconds: float, failure: str) -> None:
        self.held.append((volume_id, failures, seconds))

    def released(self, volume_id: str, why: str) -> None:
        self.let_go.append((volume_id, why))


class Node:
    """A hold-off, a clock, and stages that end as told."""

    def __init__(self, most: int = 100) -> None:
        self.heard = Heard()
        self.at = 1000.0
        self.hold_off = VolumeHoldOff("node-a", self.heard, monotonic=lambda: self.at, most=most)

    def fail(self, times: int = 1, volume: str = VOLUME, *, cause: str = "connect") -> None:
        for _ in range(times):
            if cause == "connect":
                self.hold_off.connect_ended(volume, TARGET, 1.0, "no answer")
            elif cause == "mount":
                self.hold_off.connect_ended(volume, TARGET, 1.0, "")
                self.hold_off.mount_ended(volume, MountOperation.MOUNT, "bad superblock")
            self.hold_off.operation_ended(volume, Operation.STAGE, 1.0, "it failed: no answer")

    def succeed(self, volume: str = VOLUME, operation: Operation = Operation.STAGE) -> None:
        self.hold_off.operation_ended(volume, operation, 1.0, "")

    def is_held(self, volume: str = VOLUME) -> bool:
        try:
            self.hold_off.check(volume)
        except Unavailable:
            return True
        return False


@pytest.fixture
def node() -> Node:
    return Node()


def test_two_failures_hold_nothing_off(node: Node) -> None:
    node.fail(AFTER - 1)
    assert not node.is_held()


@pytest.mark.parametrize("cause", ["connect", "mount"])
def test_three_failures_in_a_row_hold_the_volume_off_for_ten_seconds(node: Node, cause: str) -> None:
    node.fail(3, cause=cause)
    assert node.is_held()
    assert node.heard.held == [(VOLUME, 3, 10.0)]
    node.at += 9.9
    assert node.is_held()
    node.at += 0.1
    assert not node.is_held()


def test_each_further_failure_doubles_the_time_up_to_five_minutes(node: Node) -> None:
    for _ in range(30):
        node.fail()
        node.at += LONGEST_SECONDS
    assert [seconds for _, _, seconds in node.heard.held][:7] == [10, 20, 40, 80, 160, 300, 300]
    assert {seconds for _, _, seconds in node.heard.held[5:]} == {LONGEST_SECONDS}


def test_volumes_are_held_off_apart(node: Node) -> None:
    node.fail(3)
    assert not node.is_held(OTHER)
    assert node.hold_off.held() == [VOLUME]


def test_a_stage_that_was_refused_for_another_reason_counts_for_nothing(node: Node) -> None:
    node.fail(10, cause="in use")
    assert not node.is_held()


def test_a_connection_that_came_at_last_is_no_trouble(node: Node) -> None:
    for _ in range(5):
        node.hold_off.connect_ended(VOLUME, TARGET, 1.0, "no answer")
        node.hold_off.connect_ended(VOLUME, TARGET, 1.0, "")
        node.hold_off.operation_ended(VOLUME, Operation.STAGE, 1.0, "holds xfs, and ext4 is asked for")
    assert not node.is_held()


def test_a_success_in_between_starts_the_count_anew(node: Node) -> None:
    node.fail(2)
    node.succeed()
    node.fail(2)
    assert not node.is_held()


def test_success_releases_the_volume_and_is_told(node: Node) -> None:
    node.fail(3)
    node.at += 10
    node.succeed()
    assert node.heard.let_go == [(VOLUME, "it was staged")]
    node.fail(2)
    assert not node.is_held()


def test_another_call_that_succeeds_releases_nothing(node: Node) -> None:
    node.fail(3)
    node.succeed(operation=Operation.UNSTAGE)
    assert node.is_held()


def test_failures_that_lie_far_apart_are_not_in_a_row(node: Node) -> None:
    for _ in range(10):
        node.fail()
        node.at += FORGET_SECONDS
    assert not node.is_held()


def test_the_message_says_when_what_failed_and_the_way_out(node: Node) -> None:
    node.fail(3)
    node.at += 3
    with pytest.raises(Unavailable) as caught:
        node.hold_off.check(VOLUME)
    said = str(caught.value)
    assert "failed 3 times in a row on node node-a" in said
    assert "in 7 s" in said
    assert "rds.csi.srvlab.io/reset-circuit-breaker" in said
    assert "it failed: no answer" in said


@pytest.mark.parametrize(
    ("before", "command", "after"),
    [
        (None, "kubectl annotate pv the-pv rds.csi.srvlab.io/reset-circuit-breaker=true", "true"),
        ("true", "kubectl annotate pv the-pv rds.csi.srvlab.io/reset-circuit-breaker-", None),
    ],
)
def test_the_command_in_the_message_releases_it(node: Node, before: str | None, command: str, after: str | None) -> None:
    node.fail(3)
    node.hold_off.annotation_seen(VOLUME, Annotation("the-pv", before))
    with pytest.raises(Unavailable) as caught:
        node.hold_off.check(VOLUME)
    assert f"{command}. " in str(caught.value)
    node.hold_off.annotation_seen(VOLUME, Annotation("the-pv", after))
    assert not node.is_held()
    assert [volume for volume, _ in node.heard.let_go] == [VOLUME]


def test_an_annotation_that_stays_releases_nothing(node: Node) -> None:
    node.fail(3)
    for _ in range(3):
        node.hold_off.annotation_seen(VOLUME, Annotation("the-pv", "true"))
    assert node.is_held()


def test_the_annotation_works_again_when_the_volume_is_held_off_again(node: Node) -> None:
    values = [None, "true", None, "true"]
    for before, after in pairwise(values):
        node.fail(3)
        node.hold_off.annotation_seen(VOLUME, Annotation("the-pv", before))
        assert node.is_held()
        node.hold_off.annotation_seen(VOLUME, Annotation("the-pv", after))
        assert not node.is_held()
    assert [failures for _, failures, _ in node.heard.held] == [3, 3, 3], "and the count starts anew"


def test_a_change_while_the_volume_was_being_tried_counts_too(node: Node) -> None:
    node.fail(3)
    node.hold_off.annotation_seen(VOLUME, Annotation("the-pv", None))
    node.at += 10
    node.fail()
    node.hold_off.annotation_seen(VOLUME, Annotation("the-pv", "true"))
    assert not node.is_held()


def test_memory_is_bounded() -> None:
    node = Node(most=10)
    for number in range(1000):
        node.fail(3, f"pvc-{number}")
        node.hold_off.connect_ended(f"cancelled-{number}", TARGET, 1.0, "no answer")
    assert node.hold_off.held() == [f"pvc-{number}" for number in range(990, 1000)]
    assert len(node.hold_off._trouble) <= 10
