"""``docs/install.md`` as its reader follows it: block by block, in one shell's folder and environment."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.documents import ROOT

PAGE = ROOT / "docs" / "install.md"
_SECTION = re.compile(r"^## (?P<title>.+)$", re.MULTILINE)
_BLOCK = re.compile(r"(?P<not_run><!-- not run: [^>]+ -->\n)?^```sh\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


class NotAsWritten(AssertionError):
    """A block of the page failed; the message has the block and what it said."""


@dataclass(frozen=True)
class Block:
    """Commands of a section; ``run`` is False where the page says that a test cannot run them."""

    section: str
    text: str
    run: bool


def blocks() -> list[Block]:
    """Return every block of commands of the page, in its order."""
    text = PAGE.read_text()
    sections = list(_SECTION.finditer(text))
    found = []
    for section, following in zip(sections, [*sections[1:], None], strict=True):
        part = text[section.end() : following.start() if following else len(text)]
        found += [Block(section["title"], block["text"], not block["not_run"]) for block in _BLOCK.finditer(part)]
    return found


def variables(block: Block) -> dict[str, str]:
    """Return what a block exports."""
    words = (shlex.split(line, comments=True) for line in block.text.splitlines())
    return dict(word.split("=", 1) for _, word in words)


class Reader:
    """Somebody who follows the page: ``before`` goes before each command (a network to be in), ``environment`` is all there is."""

    def __init__(self, folder: Path, environment: Mapping[str, str], before: tuple[str, ...] = ()) -> None:
        self._folder, self._environment, self._before = folder, dict(environment), before

    def follow(self, section: str) -> str:
        """Run the blocks of a section, return what they printed; raises NotAsWritten."""
        chosen = [block for block in blocks() if block.section == section and block.run]
        assert chosen, f"the page has no section {section!r} with commands"
        return "".join(self.run(block.text) for block in chosen)

    def run(self, text: str) -> str:
        """Run commands; the first that fails ends them."""
        done = subprocess.run(
            [*self._before, "bash", "-euo", "pipefail", "-c", text],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NotAsWritten(f"{text}\nsaid ({done.returncode}):\n{done.stdout}{done.stderr}")
        return done.stdout


def tools(folder: Path, programs: Mapping[str, Path]) -> str:
    """Return a PATH with these programs before the machine's own."""
    folder.mkdir(parents=True)
    for name, path in programs.items():
        (folder / name).symlink_to(path)
    return f"{folder}:{os.defpath}"
