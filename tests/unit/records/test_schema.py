"""The typed record and the CRD are two accounts of one thing; here they are compared."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from rds_records import names
from rds_records.record import (
    MAX_ATTACHMENTS,
    MAX_HISTORY,
    MAX_OUTBOX,
    MAX_REFUSALS,
    ClosedWindow,
    ObjectReference,
    Record,
    Spec,
    Status,
    Window,
)
from tests.unit.records.crd import CRD, ROOT, SPEC, STATUS, VERSION, Schema, objections
from tests.unit.records.volumes import attached, empty, fresh

SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", datetime: "string"}


def parts(model: type[BaseModel], schema: Schema, path: str) -> Iterator[tuple[str, type[BaseModel], Schema]]:
    """Yield every object of the schema with the model that reads it."""
    yield path, model, schema
    for name, field in model.model_fields.items():
        kind = bare(field.annotation)
        inner = schema["properties"][field.alias or name]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from parts(kind, inner, f"{path}.{field.alias}")
        elif get_origin(kind) is tuple:
            yield from parts(get_args(kind)[0], inner["items"], f"{path}.{field.alias}[]")


def bare(annotation: Any) -> Any:
    """Return a type without its ``| None``."""
    if get_origin(annotation) in {Union, types.UnionType}:
        (annotation,) = [kind for kind in get_args(annotation) if kind is not types.NoneType]
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def leaves(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield every list and scalar of the schema."""
    if schema["type"] == "object":
        for name, part in schema["properties"].items():
            yield from leaves(part, f"{path}.{name}")
        return
    yield path, schema
    if schema["type"] == "array":
        yield from leaves(schema["items"], f"{path}[]")


def described(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield every node of the schema that ``kubectl explain`` prints."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from described(part, f"{path}.{name}")
    if "items" in schema:
        yield from described(schema["items"], f"{path}[]")


OBJECTS = [*parts(Spec, SPEC, "spec"), *parts(Status, STATUS, "status")]
LEAVES = [*leaves(SPEC, "spec"), *leaves(STATUS, "status")]


def by_path(pairs: list[tuple[str, Schema]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("schema", [pytest.param(schema, id=path) for path, schema in pairs])


objects = pytest.mark.parametrize(("model", "schema"), [pytest.param(model, schema, id=path) for path, model, schema in OBJECTS])


@objects
def test_model_and_schema_have_the_same_fields(model: type[BaseModel], schema: Schema) -> None:
    assert {field.alias for field in model.model_fields.values()} == set(schema["properties"])


@objects
def test_model_and_schema_require_the_same_fields(model: type[BaseModel], schema: Schema) -> None:
    assert {field.alias for field in model.model_fields.values() if field.is_required()} == set(schema.get("required", ()))


@objects
def test_model_and_schema_have_the_same_types_and_values(model: type[BaseModel], schema: Schema) -> None:
    for field in model.model_fields.values():
        kind, part = bare(field.annotation), schema["properties"][field.alias]
        if get_origin(kind) is tuple:
            assert part["type"] == "array", field.alias
        elif issubclass(kind, StrEnum):
            assert (part["type"], set(part["enum"])) == ("string", set(kind)), field.alias
        elif issubclass(kind, BaseModel):
            assert part["type"] == "object", field.alias
        else:
            assert part["type"] == SCALARS[kind], field.alias
            assert (part.get("format") == "date-time") == (kind is datetime), field.alias


@objects
def test_model_and_schema_fill_in_the_same_values(model: type[BaseModel], schema: Schema) -> None:
    filled = {
        field.alias: field.default
        for field in model.model_fields.values()
        if not field.is_required() and field.default is not None and field.default != ()
    }
    assert filled == {name: part["default"] for name, part in schema["properties"].items() if "default" in part}


@by_path(LEAVES)
def test_every_string_list_and_number_is_bounded(schema: Schema) -> None:
    match schema["type"]:
        case "string":
            assert "enum" in schema or "maxLength" in schema or schema.get("format") == "date-time"
        case "array":
            assert "maxItems" in schema
        case "integer" | "number":
            assert schema["minimum"] < schema["maximum"]
        case other:
            assert other == "boolean"


@by_path([*described(SPEC, "spec"), *described(STATUS, "status")])
def test_kubectl_explain_has_a_sentence_for_every_field(schema: Schema) -> None:
    assert schema["description"].endswith(".")
    assert schema["description"][0].isupper()


@by_path([(path, schema) for path, schema in LEAVES if schema["type"] == "array"])
def test_every_list_is_a_map_whose_key_is_required(schema: Schema) -> None:
    assert schema["x-kubernetes-list-type"] == "map"
    assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])


@by_path([*described(ROOT, "")])
def test_unknown_fields_are_dropped_everywhere(schema: Schema) -> None:
    assert not [key for key in schema if key.startswith("x-kubernetes-preserve") or key == "additionalProperties"]


@pytest.mark.parametrize(("name", "limit"), [("attachments", MAX_ATTACHMENTS), ("outbox", MAX_OUTBOX), ("refusals", MAX_REFUSALS)])
def test_lists_are_as_long_in_both(name: str, limit: int) -> None:
    assert STATUS["properties"][name]["maxItems"] == limit


def test_the_history_has_room_for_windows_that_wait_for_their_result() -> None:
    assert STATUS["properties"]["history"]["maxItems"] >= 2 * MAX_HISTORY


def test_list_keys_are_those_that_the_transitions_keep_apart() -> None:
    keys = {name: part["x-kubernetes-list-map-keys"] for name, part in STATUS["properties"].items() if part["type"] == "array"}
    assert keys == {
        "attachments": ["nodeName"],
        "forcedDetaches": ["id"],
        "history": ["id"],
        "outbox": ["id"],
        "refusals": ["nodeName"],
        "conditions": ["type"],
    }


def test_a_window_looks_the_same_open_and_closed() -> None:
    closed = STATUS["properties"]["history"]["items"]["properties"]
    for name, part in STATUS["properties"]["migration"]["properties"].items():
        assert closed[name] == part, name
    assert set(closed) == {field.alias for field in ClosedWindow.model_fields.values()}
    assert set(STATUS["properties"]["migration"]["properties"]) == {field.alias for field in Window.model_fields.values()}


def test_the_kind_has_the_names_that_the_package_uses() -> None:
    spec: Mapping[str, Any] = CRD["spec"]
    assert (spec["group"], spec["scope"], VERSION["name"]) == (names.API_GROUP, "Cluster", names.API_VERSION)
    assert (spec["names"]["kind"], spec["names"]["plural"]) == (names.KIND, names.PLURAL)
    assert (spec["names"]["shortNames"], spec["names"]["categories"]) == (["var"], ["rds"])
    assert CRD["metadata"]["name"] == f"{names.PLURAL}.{names.API_GROUP}"


def test_columns_and_selectable_fields_are_those_of_the_design() -> None:
    columns = VERSION["additionalPrinterColumns"]
    assert [column["name"] for column in columns if not column.get("priority")] == [
        "Phase", "Nodes", "Source", "Target", "Since", "Deadline", "Claim", "Age",
    ]  # fmt: skip
    assert [column["name"] for column in columns if column.get("priority")] == ["VM", "Migration", "Last result", "Size"]
    assert [field["jsonPath"] for field in VERSION["selectableFields"]] == [".status.phase", ".status.vmi.name"]
    assert VERSION["subresources"] == {"status": {}}


def test_every_rule_says_what_to_do() -> None:
    rules = [rule for _, schema in described(ROOT, "") for rule in schema.get("x-kubernetes-validations", ())]
    assert len(rules) >= 15
    assert all(len(rule["message"]) > 20 for rule in rules)


def test_the_schema_accepts_a_fresh_record_and_one_in_migration() -> None:
    assert objections(empty()) == []
    assert objections(fresh()) == []
    assert objections(attached(fresh(), "node-a", "node-b")) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"nodes": "n" * 5000},
        {"claim_ref": ObjectReference(namespace="No.Namespace", name="claim")},
        {"attachments": (attached(fresh(), "node-a").status.attachments[0],) * 2},
        {"observed_generation": -1},
        {"unheard_of": 1},
    ],
)
def test_the_validation_of_these_tests_finds_what_is_wrong(damage: dict[str, Any]) -> None:
    record: Record = fresh().with_status(**damage)
    assert objections(record)
