"""The documentation as tests see it: which pages there are, and what stands in their fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield page and text of every block of a language (empty: of none)."""
    for path in DOCUMENTS:
        for block in _BLOCK.finditer(path.read_text()):
            if block["language"] == language:
                yield path.name, block["text"]


def objects() -> list[tuple[str, dict[str, Any]]]:
    """Return page and body of every object in a YAML block, in the order in which a reader meets them."""
    return [(page, body) for page, text in blocks("yaml") for body in yaml.safe_load_all(text)]
