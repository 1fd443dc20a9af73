"""``docs/record-reference.md``, written from the definition of the records; ``./justw reference`` writes the flags', too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tests import flags
from tests.documents import ROOT

DEFINITION = ROOT / "crds" / "volumeattachmentrecords.yaml"
PAGE = ROOT / "docs" / "record-reference.md"

HEAD = """\
# The record's definition

Written from `crds/volumeattachmentrecords.yaml`; `kubectl explain var` reads the same. What the fields mean together, and what to
do about them at night: [the record, field by field](record.md).

| | |
|---|---|
"""

BOUNDS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "minProperties": "at least {} fields",
    "maxProperties": "at most {} fields",
    "pattern": "`{}`",
}

Schema = Mapping[str, Any]


def page(definition: Schema) -> str:
    """Return the page for a CustomResourceDefinition with one version."""
    spec = definition["spec"]
    (version,) = spec["versions"]
    names = spec["names"]
    facts = {
        "kind": f"`{names['kind']}`, {spec['scope'].lower()} scoped",
        "group and version": f"`{spec['group']}/{version['name']}`",
        "names": ", ".join(f"`{name}`" for name in (names["plural"], names["singular"], *names["shortNames"])),
        "category": ", ".join(f"`{name}`" for name in names["categories"]),
        "selectable fields": ", ".join(f"`{field['jsonPath'].removeprefix('.')}`" for field in version["selectableFields"]),
    }
    schema = version["schema"]["openAPIV3Schema"]
    lines = [HEAD + "\n".join(f"| {name} | {fact} |" for name, fact in facts.items()), "", *_columns(version)]
    for part in ("spec", "status"):
        one = schema["properties"][part]
        lines += [f"## {part}", "", one["description"], "", "| field | type | meaning |", "|---|---|---|", *_rows(one, ""), ""]
    rules = list(_rules(schema, ""))
    lines += [
        "## Rules",
        "",
        "The API server itself refuses what breaks one of these (CEL).",
        "",
        "| where | refused with |",
        "|---|---|",
    ]
    lines += [f"| `{path or 'the record'}` | {_cell(rule['message'])} |" for path, rule in rules]
    return "\n".join(lines) + "\n"


def _columns(version: Schema) -> Iterator[str]:
    yield from ("## Columns", "", "| column | from | shown | meaning |", "|---|---|---|---|")
    for column in version["additionalPrinterColumns"]:
        shown = "`-o wide`" if column.get("priority") else "always"
        path = _cell(column["jsonPath"].removeprefix("."))
        yield f"| {column['name']} | `{path}` | {shown} | {_cell(column.get('description', ''))} |"
    yield ""


def _rows(schema: Schema, path: str) -> Iterator[str]:
    """Yield a row for each field, depth first; what is in a list is told by ``[]``."""
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        where = f"{path}.{name}".lstrip(".")
        inner = field.get("items", field)
        if field["type"] == "array":
            where += "[]"
        needed = ", required" if name in required else ""
        yield f"| `{where}` | {_type(field)}{needed} | {_meaning(field, inner)} |"
        yield from _rows(inner, where)


def _type(field: Schema) -> str:
    if field["type"] != "array":
        return str(field.get("format") or field["type"])
    keys = field.get("x-kubernetes-list-map-keys")
    return f"list of {field['items']['type']}" + (f" by `{'`, `'.join(keys)}`" if keys else "")


def _meaning(field: Schema, inner: Schema) -> str:
    parts = [field.get("description", "")]
    if inner is not field and inner.get("description"):
        parts.append(inner["description"])
    if "enum" in inner:
        parts.append("One of " + ", ".join(f"`{value}`" for value in map(_written, inner["enum"])) + ".")
    if "default" in field:
        parts.append(f"Default `{_written(field['default'])}`." if field["default"] != "" else "Default empty.")
    bounds = [text.format(_written(field[key])) for key, text in BOUNDS.items() if key in field]
    if bounds:
        said = ", ".join(bounds)
        parts.append(f"{said[0].upper()}{said[1:]}.")
    return _cell(" ".join(part for part in parts if part))


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _rules(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, rule
    for name, field in schema.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def written() -> str:
    """Return the page as it should be."""
    return page(yaml.safe_load(DEFINITION.read_text()))


if __name__ == "__main__":
    PAGE.write_text(written())
    flags.PAGE.write_text(flags.written())
