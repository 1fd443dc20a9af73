"""No page and no message advises what costs somebody's data: to end the pod of a running VM, to force, to strip a finalizer."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
import yaml

from rds_records import messages
from rds_records.record import Announcement, ObjectReference, Origin, Result, Window
from tests.documents import DOCUMENTS, ROOT
from tests.unit.records.volumes import START

pytestmark = pytest.mark.requirement("R11")

SOURCES = ("crds", "csi", "operator")
COMMAND = re.compile(r"kubectl [^`\n]+")
NEVER = {
    "force": re.compile(r"--force\b|--grace-period|--now\b"),
    "finalizers": re.compile(r"(?i)finalizer"),
    "what holds a volume": re.compile(
        r"\bdelete (?:\S+ )*?(?:volumeattachment|volumeattachmentrecord|var|node|persistentvolume|pv|pvc|persistentvolumeclaim)s?\b"
    ),
    "a virtual machine": re.compile(r"\bdelete (?:\S+ )*?(?:vmi|vm|virtualmachineinstance|virtualmachine)s?\b"),
}
DESTROYS = re.compile(
    r"(?i)\b(?:delet|remov|strip|forc|kill|evict|patch|edit)\w*\b[^.|]*\b(?:finalizer|pod that runs the VM|volumeattachment by)"
)
FORBIDS = re.compile(r"\b[Nn]ever\b|\bDo not\b|\bDANGER\b|\bNo sentence\b")
HOUR = timedelta(hours=1)


def pages() -> Iterator[tuple[str, str]]:
    """Yield each paragraph, list item, row and block of the documentation, with its page."""
    for path in DOCUMENTS:
        for part in re.split(r"\n\n+|\n(?=[|>-] |\d+\. )", path.read_text()):
            yield path.name, part


def strings() -> Iterator[tuple[str, str]]:
    """Yield every text that a program of ours can say, with its file: string constants that are no docstrings, and descriptions."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    yield path.name, "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent | inside:
                    yield path.name, node.value
    for path in (ROOT / "crds").glob("*.yaml"):
        for text in descriptions(yaml.safe_load(path.read_text())):
            yield path.name, text


def descriptions(body: object) -> Iterator[str]:
    if isinstance(body, dict):
        for key, value in body.items():
            if key in {"description", "message"} and isinstance(value, str):
                yield value
            yield from descriptions(value)
    elif isinstance(body, list):
        for value in body:
            yield from descriptions(value)


def windows() -> Iterator[Window]:
    """Yield a window in every state of result, verdict and what is known of where the VM runs."""
    results = (None, *Result)
    for result, verdict, live, known in itertools.product(results, results, ("node-a", "node-b", "node-c", None), (True, False)):
        yield Window(
            id="w1",
            origin=Origin.PUBLISH,
            source_node="node-a",
            target_node="node-b",
            start_time=START,
            timeout_seconds=30,
            result=result,
            result_time=START if result else None,
            kubevirt_result=verdict,
            live_node=live,
            vmi=ObjectReference(namespace="vms", name="database") if known else None,
            migration_name="moves" if known else None,
            migration_uid="run-1" if known else None,
            source_pod="on-node-a" if known else None,
            target_pod="on-node-b" if known else None,
        )


def said(window: Window) -> list[str]:
    """Return everything that is said of a window."""
    texts = [
        messages.started("v", window),
        messages.timed_out("v", window, HOUR),
        messages.slow_start("v", window, HOUR, ""),
        messages.long_run("v", window, HOUR),
        messages.leaving_overdue("v", window, HOUR, ""),
        messages.leaving_blocked("v", window, "node is down"),
        messages.foreign_pods("v", window, ["debug"]),
        messages.release(window),
        messages.way_out(window),
        *(messages.warning(window, kind) for kind in Announcement),
        messages.verdict("v", window),
    ]
    for gone in ((), ("node-a",), ("node-b",), ("node-a", "node-b")):
        texts += [say("v", window, 1.0, gone) for say in (messages.completed, messages.failed, messages.ended)]
    return texts


def forbidden(text: str) -> list[str]:
    """Return the commands of a text that nobody may be told to run; one of ours checks everything again and asks."""
    commands = [command for command in COMMAND.findall(text) if "-- rds-operator orphans delete " not in command]
    return [command for command in commands if any(pattern.search(command) for pattern in NEVER.values())]


@pytest.mark.parametrize(
    "command",
    [
        "kubectl delete pod web --force",
        "kubectl delete pod web --grace-period=0",
        'kubectl patch volumeattachment csi-1 -p \'{"metadata":{"finalizers":null}}\'',
        "kubectl -n vms delete vmi web",
        "kubectl -n vms delete --wait=false virtualmachine web",
        "kubectl delete volumeattachment csi-1",
        "kubectl delete var pvc-1",
    ],
)
def test_bad_advice_would_be_found(command: str) -> None:
    assert forbidden(f"Run `{command}`.") == [command]


def test_a_migration_may_be_deleted() -> None:
    assert forbidden("kubectl -n vms delete virtualmachineinstancemigration moves") == []
    assert forbidden("kubectl -n vms delete vmim moves") == []


def test_no_page_gives_a_command_that_costs_data() -> None:
    assert [(page, command) for page, part in pages() for command in forbidden(part)] == []


def test_no_message_gives_a_command_that_costs_data() -> None:
    assert len(list(strings())) > 1000
    assert [(name, command) for name, text in strings() for command in forbidden(text)] == []


def test_pages_speak_of_it_only_to_forbid_it() -> None:
    spoken = [(page, part) for page, part in pages() if DESTROYS.search(part)]
    assert spoken
    assert [(page, part) for page, part in spoken if not FORBIDS.search(part)] == []


def test_messages_do_not_speak_of_it() -> None:
    assert [(name, text) for name, text in strings() if DESTROYS.search(text)] == []


def test_pages_give_the_command_that_ends_a_pod_only_for_one_that_does_not_run_the_vm() -> None:
    given = [(page, part) for page, part in pages() if re.search(r"kubectl [^`\n]*\bdelete pod\b", part)]
    assert given
    assert [(page, part) for page, part in given if "does not run the VM" not in part] == []


def test_pages_give_the_taint_only_after_the_power_is_off() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        for found in re.finditer(r"kubectl taint nodes", text):
            assert re.search(r"\*\*Power the node off, for certain\*\*", text[: found.start()]), path.name


@pytest.mark.parametrize("live", ["node-a", "node-b"])
def test_no_message_ever_ends_the_pod_on_the_live_node(live: str) -> None:
    texts = [text for window in windows() if window.live_node == live for text in said(window)]
    assert any("delete pod" in text for text in texts)
    assert [text for text in texts if f"delete pod on-{live}" in text] == []


@pytest.mark.parametrize("live", ["node-c", None])
def test_no_message_ends_a_pod_where_the_live_node_is_not_one_of_the_two(live: str | None) -> None:
    assert [text for window in windows() if window.live_node == live for text in said(window) if "delete pod" in text] == []


def test_no_message_gives_the_taint_without_the_power_switch() -> None:
    texts = [text for window in windows() for text in said(window) if "out-of-service" in text]
    assert texts
    assert [text for text in texts if "power it off for certain" not in text.split("out-of-service")[0]] == []


@pytest.mark.parametrize("live", ["node-a", "node-b"])
def test_no_message_gives_the_taint_for_the_live_node(live: str) -> None:
    texts = [text for window in windows() if window.live_node == live for text in said(window)]
    assert any("taint nodes" in text for text in texts)
    assert [text for text in texts if f"taint nodes {live}" in text] == []


def test_no_message_of_a_window_costs_data() -> None:
    assert [command for window in windows() for text in said(window) for command in forbidden(text)] == []
