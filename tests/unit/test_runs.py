"""Two goes of tests end as one would: every failure counts, and so does every test."""

from __future__ import annotations

import pytest

from tests.runs import summary, verdict

PASSED, FAILED, INTERRUPTED, NONE = (
    int(code)
    for code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED, pytest.ExitCode.NO_TESTS_COLLECTED)
)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([PASSED, PASSED], PASSED),
        ([FAILED, PASSED], FAILED),
        ([PASSED, FAILED], FAILED),
        ([INTERRUPTED, PASSED], INTERRUPTED),
        ([PASSED, NONE], PASSED),
        ([NONE, FAILED], FAILED),
        ([NONE, NONE], NONE),
    ],
)
def test_a_failure_of_either_go_is_one_of_both(statuses: list[int], expected: int) -> None:
    assert verdict(statuses) == expected


def test_the_last_line_counts_the_tests_of_both() -> None:
    tallies = [{"passed": ["a", "b"], "failed": ["c"], "deselected": ["e"]}, {"passed": ["d"], "deselected": ["a"]}]
    *failures, last = summary(tallies, 61.5).splitlines()
    assert failures == ["FAILED c"]
    assert last.strip("= ") == "1 failed, 3 passed in 61.50s"


def test_a_go_that_died_without_a_count_does_not_hide_the_other() -> None:
    assert "1 passed" in summary([{}, {"passed": ["a"]}], 1)
