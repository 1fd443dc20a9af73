"""The documentation as a site: links lead somewhere, pages can be found, and reading it fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from rds_csi.contexts import MAX_KERNEL_SECONDS
from rds_csi.errors import InvalidArgument
from rds_csi.parameters import parse_parameters
from tests import flags, reference
from tests.documents import ROOT
from tests.flags import parsers
from tests.unit.test_repository import code, tables

FETCHING = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src", "object": "data"}
NAMED_ONLY = {"canonical", "next", "prev", "alternate", "edit"}
"""Relations of ``link`` that a browser does not fetch."""


class Fetched(HTMLParser):
    """Collects what a browser would fetch by itself to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        address = found.get(FETCHING.get(tag, ""))
        if address and not (tag == "link" and found.get("rel") in NAMED_ONLY):
            self.addresses.append(address)


def mkdocs(*words: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *words],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = mkdocs("build", "--strict", "--quiet", "--site-dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_is_built_with_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    made = {path.relative_to(site) for path in site.rglob("*.html")}
    assert made - {Path("404.html")} == pages


class _Settings(yaml.SafeLoader):
    """Reads mkdocs.yml, in which a function is named that this need not know."""


_Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def pages_of(nav: list[Any]) -> Iterator[str]:
    """Yield the pages of a part of the navigation, in its order."""
    for entry in nav:
        for part in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [part] if isinstance(part, str) else pages_of(part)


def test_every_page_is_in_the_navigation_once_and_runbooks_as_their_index_lists_them() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), _Settings)
    pages = list(pages_of(settings["nav"]))
    assert "not_in_nav" not in settings
    assert sorted(pages) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    runbooks = [page for page in pages if page.startswith("runbooks/")]
    assert runbooks == ["runbooks/index.md", *(f"runbooks/{code(row[0])[0]}.md" for row in tables("runbooks/index.md")["Alerts"])]


def test_reading_it_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = Fetched()
        parser.feed(page.read_text())
        assert parser.addresses, page
        # The page for what is not found is served anywhere, so it names its resources from the root of the site.
        assert [address for address in parser.addresses if urlsplit(address).netloc] == [], page
        local = [page.parent / urlsplit(address).path for address in parser.addresses if not address.startswith(("/", "data:"))]
        assert [str(path) for path in local if not path.exists()] == [], page
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']+", styles) == []


def test_a_broken_link_or_a_page_that_cannot_be_found_fails_the_build(tmp_path: Path) -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    head = settings[: settings.index("\nnav:")].replace("name: material", "name: mkdocs").replace("  font: false\n", "")
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(f"{head}\nnav:\n  - index.md\n")
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[away](nowhere.md), [below](#nothing)\n")
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    done = mkdocs("build", "--strict", folder=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert all(text in said for text in ("nowhere.md", "#nothing", "lost.md")), said


def test_the_definition_of_the_records_is_documented_as_it_is() -> None:
    assert reference.PAGE.read_text() == reference.written(), "run ./justw reference"


def test_the_flags_are_documented_as_the_programs_tell_them() -> None:
    assert flags.PAGE.read_text() == flags.written(), "run ./justw reference"


def test_the_reference_has_every_field_with_its_bounds() -> None:
    version = yaml.safe_load(reference.DEFINITION.read_text())["spec"]["versions"][0]
    text = reference.PAGE.read_text()
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert all(f"| `{name}{'[]' if field['type'] == 'array' else ''}` |" in text for name, field in status.items())
    assert "| `migrationTimeoutSeconds` | int32 |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| `migrationTimeoutSeconds` "))
    assert row.endswith("At least 30, at most 86400. |")


PLACEHOLDERS = {"true|false", "KEY|FILE"}
"""What ``--help`` shows for a value that is none of a few words."""

NUMBERS = {
    name: (int(low), int(high))
    for row in tables("configuration.md")["StorageClass parameters"]
    for name in code(row[0])
    if (found := re.fullmatch(r"(-?\d+) to (\d+)", row[2]))
    for low, high in [found.groups()]
}


def test_what_configuration_says_of_numbers_is_what_is_taken() -> None:
    assert {"nvmePort", "migrationTimeoutSeconds", "ctrlLossTmo", "reconnectDelay", "keepAliveTmo"} == set(NUMBERS)
    assert {high for name, (_, high) in NUMBERS.items() if name.endswith(("Tmo", "Delay"))} == {MAX_KERNEL_SECONDS}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_least_and_the_greatest_number_are_taken_and_those_beyond_are_not(name: str) -> None:
    low, high = NUMBERS[name]
    for taken in (low, high):
        parse_parameters({name: str(taken)}, base_path="/pool/volumes")
    for refused in (low - 1, high + 1):
        with pytest.raises(InvalidArgument, match=name):
            parse_parameters({name: str(refused)}, base_path="/pool/volumes")


@pytest.mark.parametrize("command", ["rds-csi controller", "rds-csi node", "rds-operator"])
def test_configuration_names_every_value_that_a_flag_chooses_from(command: str) -> None:
    meanings = {code(row[0])[0]: row[3] for row in tables("configuration.md")[command]}
    shown = {action.option_strings[0]: str(action.metavar) for action in parsers()[command]._actions if action.option_strings}
    choices = {flag: text.split("|") for flag, text in shown.items() if "|" in text and text not in PLACEHOLDERS}
    assert "--log-level" in choices
    lacking = {flag: set(values) - set(code(meanings[flag])) for flag, values in choices.items()}
    assert {flag: values for flag, values in lacking.items() if values} == {}
