"""The CRD's schema, and what the API server's structural validation says of an object (its CEL rules: tests/ring)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rds_records.record import Record

Schema = Mapping[str, Any]

CRD: Schema = yaml.safe_load((Path(__file__).parents[3] / "crds" / "volumeattachmentrecords.yaml").read_text())
VERSION: Schema = CRD["spec"]["versions"][0]
ROOT: Schema = VERSION["schema"]["openAPIV3Schema"]
SPEC: Schema = ROOT["properties"]["spec"]
STATUS: Schema = ROOT["properties"]["status"]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def objections(record: Record) -> list[str]:
    """Return what the API server would object to in a record; unknown fields count, though it would only drop them."""
    body = record.to_json()
    return [*_check(body["spec"], SPEC, "spec"), *_check(body["status"], STATUS, "status")]


def _check(value: Any, schema: Schema, path: str) -> Iterator[str]:
    match schema["type"]:
        case "object":
            yield from _check_object(value, schema, path)
        case "array":
            yield from _check_list(value, schema, path)
        case "string":
            yield from _check_string(value, schema, path)
        case "boolean":
            if not isinstance(value, bool):
                yield f"{path}: {value!r} is no boolean"
        case "integer" | "number":
            kinds = (int,) if schema["type"] == "integer" else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool):
                yield f"{path}: {value!r} is no {schema['type']}"
            elif not schema["minimum"] <= value <= schema["maximum"]:
                yield f"{path}: {value} is out of bounds"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"


def _check_object(value: Any, schema: Schema, path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{path}: {value!r} is no object"
        return
    yield from (f"{path}.{name} is missing" for name in schema.get("required", ()) if name not in value)
    for name, part in value.items():
        if name in schema["properties"]:
            yield from _check(part, schema["properties"][name], f"{path}.{name}")
        else:
            yield f"{path}.{name} is unknown"


def _check_list(value: Any, schema: Schema, path: str) -> Iterator[str]:
    if len(value) > schema["maxItems"]:
        yield f"{path}: {len(value)} items, at most {schema['maxItems']}"
    keys = [tuple(item.get(key) for key in schema["x-kubernetes-list-map-keys"]) for item in value]
    if len(set(keys)) != len(keys):
        yield f"{path}: a key occurs twice: {keys}"
    for number, item in enumerate(value):
        yield from _check(item, schema["items"], f"{path}[{number}]")


def _check_string(value: Any, schema: Schema, path: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{path}: {value!r} is no string"
    elif schema.get("format") == "date-time":
        if not _RFC_3339.fullmatch(value):
            yield f"{path}: {value!r} is no time"
    elif not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path}: {len(value)} characters"
    elif "pattern" in schema and not re.fullmatch(schema["pattern"].removesuffix("$"), value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
