"""When a volume may grow, and who waits meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_records import expansion
from rds_records.decisions import Code, Decided, Reason
from rds_records.record import DualAttachPolicy, Expansion, Record, VolumeMode
from tests.unit.records.volumes import MOUNTED, ask, at, attached, empty, fresh, left, no, yes

GIB = 2**30


def growing(record: Record, until: float = 60) -> Record:
    return yes(expansion.begin(record, 2 * GIB, until=at(until), now=at(0)))


@pytest.mark.requirement("R32")
def test_a_volume_that_migrates_does_not_grow_and_the_refusal_is_no_failed_precondition() -> None:
    refused = no(expansion.begin(attached(fresh(), "a", "b"), 2 * GIB, until=at(60), now=at(0)))
    assert (refused.code, refused.reason) == (Code.ABORTED, Reason.MIGRATING)
    assert "from a to b" in refused.message


def test_a_volume_grows_again_when_one_of_the_two_has_left() -> None:
    record = left(attached(fresh(), "a", "b"), "a", now=at(10))
    assert growing(record).status.expansion is not None


def test_a_volume_that_is_being_deleted_does_not_grow() -> None:
    refused = no(expansion.begin(fresh().with_status(deleting=True), 2 * GIB, until=at(60), now=at(0)))
    assert (refused.code, refused.reason) == (Code.ABORTED, Reason.DELETING)


def test_a_volume_of_which_nothing_is_known_does_not_grow_yet() -> None:
    assert no(expansion.begin(empty(), 2 * GIB, until=at(60), now=at(0))).code is Code.UNAVAILABLE


@pytest.mark.requirement("R32")
def test_a_second_node_waits_while_the_volume_grows() -> None:
    refused = no(ask(growing(attached(fresh(), "a")), "b", now=at(59)))
    assert (refused.code, refused.reason) == (Code.UNAVAILABLE, Reason.EXPANDING)
    assert f"{2 * GIB} bytes" in refused.message


@pytest.mark.parametrize("policy", DualAttachPolicy)
def test_a_mark_that_is_void_holds_nobody_up(policy: DualAttachPolicy) -> None:
    record = growing(attached(fresh(dual_attach_policy=policy), "a"))
    late = ask(record, "b", now=at(60))
    assert yes(late).status.migration if policy is DualAttachPolicy.ANY_TWO_NODES else no(late).reason is Reason.NO_EVIDENCE


def test_a_second_node_is_admitted_when_the_volume_has_grown() -> None:
    record = growing(attached(fresh(), "a"))
    record = yes(expansion.end(record, record.status.expansion, now=at(4)))
    assert yes(ask(record, "b", now=at(5))).status.migration


def test_a_first_node_and_a_repeat_need_not_wait() -> None:
    assert yes(ask(growing(fresh()), "a", now=at(1))).status.attachments
    record = growing(attached(fresh(), "a"))
    assert yes(ask(record, "a", now=at(1))) is record


def test_a_retry_takes_the_mark_over_and_another_size_waits_for_its_end() -> None:
    first = growing(fresh())
    second = yes(expansion.begin(first, 2 * GIB, until=at(90), now=at(30)))
    assert second.status.expansion == Expansion(capacity_bytes=2 * GIB, until_time=at(90))
    assert not expansion.end(second, first.status.expansion, now=at(31)).changed, "it belongs to the retry now"
    refused = no(expansion.begin(second, 3 * GIB, until=at(200), now=at(89)))
    assert (refused.code, refused.reason) == (Code.ABORTED, Reason.EXPANDING)
    assert yes(expansion.begin(second, 3 * GIB, until=at(200), now=at(90))).status.expansion != second.status.expansion


def test_beginning_and_ending_twice_changes_nothing() -> None:
    record = growing(fresh())
    assert expansion.begin(record, 2 * GIB, until=at(60), now=at(1)) == Decided(record, changed=False)
    ended = yes(expansion.end(record, record.status.expansion, now=at(1)))
    assert ended.status.expansion is None
    assert not expansion.end(ended, record.status.expansion, now=at(2)).changed


def test_anybody_may_take_a_void_mark_off() -> None:
    record = growing(fresh())
    assert not expansion.end(record, None, now=at(59)).changed
    assert yes(expansion.end(record, None, now=at(60))).status.expansion is None


def test_a_node_follows_for_a_filesystem_always_and_for_a_device_while_one_has_it() -> None:
    block, mounted = fresh(), fresh(volume_mode=VolumeMode.FILESYSTEM)
    assert not expansion.node_must_follow(block)
    assert expansion.node_must_follow(attached(block, "a"))
    assert expansion.node_must_follow(mounted)
    assert expansion.node_must_follow(attached(mounted, "a", access=MOUNTED))


@given(begin_first=st.booleans(), moments=st.tuples(st.integers(0, 100), st.integers(0, 100)), until=st.integers(0, 100))
def test_nobody_is_admitted_as_second_node_while_a_call_may_still_change_the_size(
    begin_first: bool, moments: tuple[int, int], until: int
) -> None:
    record = attached(fresh(), "a")
    first, second = sorted(moments)
    if begin_first:
        decision = ask(growing(record, until=first + until), "b", now=at(second))
        assert (second < first + until) == (getattr(decision, "reason", None) is Reason.EXPANDING)
    else:
        shared = yes(ask(record, "b", now=at(first)))
        assert no(expansion.begin(shared, 2 * GIB, until=at(second + until), now=at(second))).code is Code.ABORTED
