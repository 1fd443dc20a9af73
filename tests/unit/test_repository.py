"""What holds for the repository as a whole: nothing secret or private in it, and documentation that is true."""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from prometheus_client import CollectorRegistry

from rds_csi.contexts import publish_context
from rds_csi.metrics import BoxLink, ShimMetrics
from rds_csi.node.metrics import NodeGauges, NodeMetrics
from rds_csi.node.node_events import NodeReason
from rds_csi.parameters import ALLOWED, IGNORED, parse_parameters, volume_context
from rds_operator.events import EventReason
from rds_operator.memory import RecordMemory
from rds_operator.metrics import OperatorMetrics
from rds_operator.orphan_watch import OrphanGauges
from rds_operator.orphans import Suspect
from rds_operator.reporting import REASONS, TOLD_TO_THE_VM
from rds_records.events import Reason
from tests.documents import DOCUMENTS, ROOT, objects
from tests.flags import flags_of, parsers
from tests.unit.operator.test_box_metrics import EVERYTHING, LATER, registry_of

LISTED = {
    "R1", "R2", "R3", "R4", "R8", "R10", "R12", "R13", "R14", "R15", "R16", "R17", "R18", "R19", "R20", "R21", "R23", "R26", "R27",
    "R28", "R29", "R30", "R31a", "R32", "R36", "R37", "R38", "R39", "R41", "R42", "R43", "R44", "R45", "R48", "R49", "R50", "R51",
    "R52",
}  # fmt: skip
"""What the tests that run against a real control plane must prove."""

PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\\A-Za-z0-9+/=]{60,}")
PUBLIC_KEY = re.compile(r"(?:ssh-rsa|ssh-ed25519|ecdsa-sha2-nistp\d+) AAAA[A-Za-z0-9+/]{40,}")
TOKEN = re.compile(r"eyJ[\w-]{20,}\.eyJ[\w-]{20,}\.|\bgh[pousr]_\w{30,}|\bAKIA[0-9A-Z]{16}\b")
PRIVATE_PLACE = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|tmp)/")
REGISTRY = re.compile(
    r"(?i)pypi\.org|pythonhosted\.org|registry\.npmjs|(?:proxy|sum)\.golang\.org|(?<!emit-)index-url|GOPROXY=http"
)
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


def is_ignored(path: Path) -> bool:
    """Tell whether .gitignore names a part of the path."""
    names = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()] + [".git"]
    return any(fnmatch.fnmatch(part, name) for part in path.relative_to(ROOT).parts for name in names)


@functools.cache
def texts() -> dict[str, str]:
    """Return every file of the repository but this one, which names what must not be there."""
    found = [path for path in ROOT.rglob("*") if path.is_file() and not is_ignored(path) and path != Path(__file__)]
    assert len(found) > 100, "the repository is not where this test looks for it"
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [f"{name}: {match[0][:80]}" for name, text in texts().items() for match in pattern.finditer(text)]


@pytest.mark.requirement("R59")
@pytest.mark.parametrize("pattern", [PRIVATE_KEY, PUBLIC_KEY, TOKEN], ids=["private", "public", "token"])
def test_no_key_material_is_in_the_repository(pattern: re.Pattern[str]) -> None:
    assert lines_with(pattern) == []


@pytest.mark.parametrize("indent", ["", "    "])
@pytest.mark.parametrize("form", ["PKCS8", "OpenSSH", "TraditionalOpenSSL"])
def test_a_key_in_a_manifest_would_be_found(form: str, indent: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if form == "TraditionalOpenSSL" else ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    assert PRIVATE_KEY.search("".join(indent + line for line in private.splitlines(keepends=True)))
    assert PRIVATE_KEY.search(private.replace("\n", "\\n"))
    assert PUBLIC_KEY.search(f"hostKey: {public}")


@pytest.mark.parametrize("pattern", [PRIVATE_PLACE, REGISTRY, UNFINISHED], ids=["machine paths", "registries", "unfinished"])
def test_nothing_of_the_machine_that_it_was_written_on_is_in_the_repository(pattern: re.Pattern[str]) -> None:
    assert lines_with(pattern) == []


# Requirements


def marked(tree: ast.Module) -> Iterator[str]:
    """Yield the requirements that a file's tests carry, but for those that ``./justw test`` leaves out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(decorator) for decorator in node.decorator_list]
            if "pytest.mark.long" not in marks:
                yield from requirements_in(marks)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from requirements_in([ast.unparse(node.value)])


def requirements_in(marks: list[str]) -> Iterator[str]:
    for mark in marks:
        for call in re.findall(r"pytest\.mark\.requirement\(([^)]*)\)", mark):
            yield from ast.literal_eval(f"({call},)")


def test_every_listed_requirement_is_proven_in_the_ring() -> None:
    proven = {name for path in (ROOT / "tests" / "ring").glob("test_*.py") for name in marked(ast.parse(path.read_text()))}
    assert sorted(LISTED - proven) == []


def test_no_test_claims_a_requirement_that_cannot_be() -> None:
    claimed = {name for path in (ROOT / "tests").rglob("test_*.py") for name in marked(ast.parse(path.read_text()))}
    assert [name for name in claimed if not re.fullmatch(r"R(?:[1-9]|[1-5]\d|60)[a-z]?", name)] == []


# Documents


def tables(document: str) -> dict[str, list[list[str]]]:
    """Return the rows of a document's tables, without their heads, by the heading above them."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in (ROOT / "docs" / document).read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return {heading: rows[2:] for heading, rows in found.items()}


def code(cell: str) -> list[str]:
    """Return what a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("command", ["rds-csi controller", "rds-csi node", "rds-operator"])
def test_configuration_lists_every_flag_with_its_variables_and_default(command: str) -> None:
    documented = {}
    for flag, variables, default, meaning in tables("configuration.md")[command]:
        documented[code(flag)[0]] = (code(variables), "".join(code(default)))
        assert meaning
    assert documented == {flag.name: (list(flag.variables), flag.default) for flag in flags_of(parsers()[command])}


def test_configuration_lists_every_parameter() -> None:
    listed = [name for row in tables("configuration.md")["StorageClass parameters"] for name in code(row[0])]
    assert sorted(listed) == sorted({*ALLOWED, *IGNORED})


def test_configuration_lists_every_context_key() -> None:
    listed = tables("configuration.md")
    everything = {"migrationTimeoutSeconds": "600", "dualAttachPolicy": "AnyTwoNodes"}
    parameters = parse_parameters(everything, base_path="/pool/volumes")
    context = volume_context(
        parameters, nqn="nqn", file_path="/pool/volumes/a.img", rds_address="10.0.0.1", nvme_address="10.0.0.2", nvme_port=4420
    )
    assert {name for row in listed["Volume context"] for name in code(row[0])} == set(context)
    published = publish_context(nvme_address="10.0.0.2", nvme_port=4420, nqn="nqn")
    assert {name for row in listed["Publish context"] for name in code(row[0])} == set(published)


def families(registry: CollectorRegistry) -> dict[str, tuple[str, set[str]]]:
    """Return type and labels of every metric by the name that a query uses."""
    found = {}
    collectors: list[Any] = list(registry._collector_to_names)
    for collector in collectors:
        for family in collector.describe():
            labels = getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = (family.type, set(labels))
    return found


def shim_registry() -> CollectorRegistry:
    metrics = ShimMetrics()
    BoxLink(metrics, "10.0.0.1")
    return metrics.registry


def node_gauges() -> dict[str, set[str]]:
    """Return the labels of every gauge of a node by its name."""
    return {family.name: set(family._labelnames) for family in NodeGauges("node-a", tuple, dict, int).describe()}  # type: ignore[attr-defined]


def registry(process: str) -> CollectorRegistry:
    match process:
        case "Operator":
            return OperatorMetrics(RecordMemory()).registry
        case "Shim":
            return shim_registry()
        case _:
            return NodeMetrics().registry


@pytest.mark.parametrize("process", ["Operator", "Shim", "Node"])
def test_metrics_lists_every_metric_with_its_type_and_labels(process: str) -> None:
    documented = {}
    for names, kind, labels, meaning in tables("metrics.md")[process]:
        for name in code(names):
            documented[name] = (kind, set(code(labels.split(":")[0])))
        assert meaning
    assert documented == families(registry(process))


def test_metrics_lists_every_gauge_of_a_node_with_its_labels() -> None:
    documented = {}
    for names, labels, _meaning in tables("metrics.md")["The node now"]:
        documented.update({name: set(code(labels.split(":")[0])) for name in code(names)})
    assert documented == node_gauges()


@pytest.mark.parametrize(("heading", "reasons"), [("From the operator", EventReason), ("From a node", NodeReason)])
def test_events_lists_every_reason_with_its_type(heading: str, reasons: type[Reason]) -> None:
    listed = {name: kind for names, kind, *_ in tables("events.md")[heading] for name in code(names)}
    assert listed == {str(reason): reason.type for reason in reasons}


def test_events_says_which_are_told_to_the_virtual_machine_too() -> None:
    listed = {name for names, _, on, *_ in tables("events.md")["From the operator"] if "VM" in on for name in code(names)}
    assert listed == {str(REASONS[kind]) for kind in TOLD_TO_THE_VM} | {"AttachmentConflict"}


def test_a_warning_of_the_operator_says_what_to_do() -> None:
    rows = tables("events.md")["From the operator"] + tables("events.md")["From a node"]
    assert [names for names, kind, _, when, act in rows if not when or (kind == "Warning" and not act)] == []


def box_metrics() -> dict[str, set[str]]:
    """Return the labels of every gauge of the box by its name."""
    families = [*registry_of(EVERYTHING, LATER).collect(), *OrphanGauges(Judged()).collect()]  # type: ignore[arg-type]
    return {family.name: {name for sample in family.samples for name in sample.labels} for family in families}


class Judged:
    """An orphan watch that found nothing."""

    judged = True

    def orphans(self) -> list[Suspect]:
        return []


def test_metrics_lists_every_gauge_of_the_box_with_its_labels() -> None:
    documented = {}
    for names, labels, _meaning in tables("metrics.md")["The box, as the operator sees it"]:
        documented.update({name: set(code(labels.split(":")[0])) for name in code(names)})
    assert documented == box_metrics()


def known_series() -> set[str]:
    """Return the name of every series that some process has."""
    counted = {name for process in ("Operator", "Shim", "Node") for name in families(registry(process))}
    known = counted | set(box_metrics()) | set(node_gauges())
    return known | {f"{name}_{suffix}" for name in known for suffix in ("bucket", "sum", "count")}


def test_every_metric_that_a_document_names_exists() -> None:
    series = known_series()
    named = {(path.name, name) for path in DOCUMENTS for name in re.findall(r"\b(?:rds_)?csi_[a-z0-9_]+", path.read_text())}
    assert {(path, name) for path, name in named if name not in series and name != "rds_csi"} == set()


def test_every_link_between_documents_leads_somewhere() -> None:
    dead = [
        f"{path.name}: {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\((?!https?://)([^)]+)\)", re.sub(r"`[^`\n]*`", "", path.read_text()))
        if not leads_somewhere(path, *target.partition("#")[::2])
    ]
    assert dead == []


def leads_somewhere(page: Path, target: str, anchor: str) -> bool:
    """Tell whether there is such a file, and such a heading in it."""
    file = page.parent / target if target else page
    if not file.exists() or not anchor:
        return file.exists()
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_yaml_in_a_document_is_one_or_more_objects() -> None:
    assert objects()
    assert [(page, body) for page, body in objects() if not {"apiVersion", "kind", "metadata"} <= set(body)] == []
