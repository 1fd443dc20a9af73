"""docs/requirements.md says *proven* or *in part* exactly of what some test carries."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def promised() -> dict[str, bool]:
    """Return every requirement of the page, and whether it says that it is proven, at least in part."""
    rows = re.findall(
        r"^\| (R\d+[ab]?) \| .* \| ((?:proven|in part) )?\|$", (ROOT / "docs" / "requirements.md").read_text(), re.MULTILINE
    )
    return {number: bool(proven) for number, proven in rows}


def carried() -> Iterator[str]:
    """Yield the requirements that tests carry as a marker."""
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "requirement":
                yield from (word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str))


def test_every_requirement_is_listed_once() -> None:
    numbers = [re.sub(r"[ab]$", "", number) for number in promised()]
    assert sorted(set(numbers), key=lambda number: int(number[1:])) == [f"R{number}" for number in range(1, 61)]


def test_the_page_says_proven_or_in_part_exactly_of_what_a_test_carries() -> None:
    known = promised()
    marked = set(carried())
    assert marked <= set(known), f"unknown requirements: {sorted(marked - set(known))}"
    assert {number for number, proven in known.items() if proven} == marked
