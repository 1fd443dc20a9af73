from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_process.tables import age, one_line, size, table


def test_every_column_is_as_wide_as_its_widest_cell() -> None:
    assert list(table(("A", "B"), [("long cell", "x"), ("", "y")])) == ["A           B", "long cell   x", "-           y"]


@given(st.lists(st.tuples(st.text(), st.text())))
def test_a_row_is_one_printable_line_whatever_is_in_it(rows: list[tuple[str, str]]) -> None:
    lines = list(table(("A", "B"), rows))
    assert len(lines) == len(rows) + 1
    assert all(line.isprintable() for line in lines)


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert one_line("a\x1b[2Jb\nc") == "a [2Jb c"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (50 << 30, "50 GiB"), (3 << 50, "3072 TiB")])
def test_sizes_are_binary(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (12, "12s"), (190, "3m10s"), (180, "3m"), (18_720, "5h12m"), (3600, "1h"), (273_600, "3d4h")]
)
def test_ages_are_the_two_largest_units(seconds: int, text: str) -> None:
    assert age(timedelta(seconds=seconds)) == text
