"""What is shipped to watch with is made of one source, complete, and explained."""

from __future__ import annotations

import re
import shlex

import pytest

import rds_kubectl.cli
import rds_operator.cli
from tests.documents import ROOT
from tests.monitoring.files import made
from tests.monitoring.rules import RULES, RUNBOOK_URL, RUNBOOKS, alerts
from tests.ring.installation import CONTROLLER, NODE, OPERATOR
from tests.unit.test_repository import code, known_series, tables

HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
WORKLOADS = {f"deployment/{CONTROLLER}", f"deployment/{OPERATOR}", f"daemonset/{NODE}"}
PAGES = {path.stem: path.read_text() for path in RUNBOOKS.glob("*.md") if path.stem != "index"}


@pytest.mark.parametrize("path", sorted(made()), ids=lambda path: path.name)
def test_what_is_made_of_others_is_up_to_date(path: object) -> None:
    files = {str(file): text for file, text in made().items()}
    assert (ROOT / str(path)).read_text() == files[str(path)], "run ./justw monitoring"


@pytest.mark.requirement("R47")
def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    assert set(PAGES) == set(alerts())


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_says_what_it_means_what_it_does_where_to_look_and_what_is_safe(name: str) -> None:
    title, *rest = re.split(r"^## ", PAGES[name], flags=re.MULTILINE)
    assert title.strip() == f"# {name}"
    parts = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in rest}
    assert list(parts) == HEADINGS
    assert all(parts.values())
    assert "```sh\n" in parts["Diagnosis"]


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_says_how_bad_it_is_what_it_is_what_to_type_and_where_to_read_on(name: str) -> None:
    alert = alerts()[name]
    assert alert.labels.keys() == {"severity"}
    assert alert.labels["severity"] in {"info", "warning", "critical"}
    assert alert.annotations.keys() == {"summary", "description", "runbook_url"}
    assert alert.annotations["runbook_url"] == f"{RUNBOOK_URL}{name}.html"
    assert "kubectl " in alert.annotations["description"]


def test_the_index_lists_every_alert_with_its_page_and_severity_in_the_order_of_the_rules() -> None:
    listed = []
    for cell, severity, meaning in tables("runbooks/index.md")["Alerts"]:
        (name,) = code(cell)
        assert f"]({name}.md)" in cell
        assert meaning
        listed.append((name, severity))
    assert listed == [(name, alert.labels["severity"]) for name, alert in alerts().items()]


def test_every_metric_of_a_rule_exists() -> None:
    named = set(re.findall(r"(?<![:\w])(?:rds_)?(?:csi|hardware|disk)_[a-z0-9_]+(?!\w*:)", expressions()))
    assert len(named) > 15
    assert named - known_series() == set()


def expressions() -> str:
    return "\n".join(line for line in RULES.read_text().splitlines() if re.match(r"\s+(?:expr:|sum|/|and|or|time|rds_)", line))


# Commands: kubectl itself takes those of pages in the ring, but for what needs a container that runs


def commands() -> list[tuple[str, list[str]]]:
    """Return every command that a page or an alert names, by who names it."""
    blocks = [
        (name, block) for name, page in PAGES.items() for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ]
    said = [(name, alert.annotations["description"]) for name, alert in alerts().items()]
    return [
        *((name, shlex.split(line, comments=True)) for name, text in blocks for line in text.splitlines()),
        *((name, shlex.split(text[text.index("kubectl ") :])) for name, text in said),
    ]


def test_every_command_is_one_of_kubectl() -> None:
    assert len(commands()) > 60
    assert [(name, words) for name, words in commands() if words[0] != "kubectl"] == []


def test_logs_and_restarts_are_of_workloads_that_are_shipped() -> None:
    of = [word for _, words in commands() for word in words if re.match(r"(?:deployment|daemonset|statefulset)/", word)]
    assert set(of) == WORKLOADS
    verbs = {"logs", "exec", "rollout"}
    for name, words in commands():
        if verbs & set(words):
            assert words[1:3] == ["-n", "rds-csi"], name
            assert WORKLOADS & set(words), name


def test_the_plugin_has_every_command_that_is_asked_of_it() -> None:
    asked = [words[2:] for _, words in commands() if words[1] == "rds"]
    assert len(asked) > 5
    for words in asked:
        assert rds_kubectl.cli.read(words).command == words[0]


def test_the_operator_has_every_command_that_is_asked_of_it() -> None:
    asked = [words[words.index("--") + 2 :] for _, words in commands() if "exec" in words]
    assert len(asked) > 2
    for words in asked:
        assert rds_operator.cli.parser({}).parse_args(words).command == "orphans"


@pytest.mark.parametrize("danger", ["delete pod", "--force", "finalizers", "delete volumeattachment", "--grace-period"])
def test_no_page_has_a_command_that_may_corrupt_a_volume(danger: str) -> None:
    assert [(name, words) for name, words in commands() if danger in " ".join(words).lower()] == []
