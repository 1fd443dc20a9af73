from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest

from rds_kubectl import examination
from rds_kubectl.examination import Check, Examination, State
from rds_kubectl.examining import review
from rds_kubectl.installation import Right, definition, rights, shipped
from rds_records.names import DRIVER_NAME
from tests.unit.kubectl.cluster_objects import NOW, Object, lease, node
from tests.unit.test_advice import forbidden

OBJECTS = list(shipped())
DRIVER = next(body for body in OBJECTS if body["kind"] == "CSIDriver")
RIGHTS = rights(OBJECTS, "rds-csi")


def established() -> Any:
    body = copy.deepcopy(dict(definition()))
    return {**body, "status": {"conditions": [{"type": "Established", "status": "True"}]}}


def csi_node(name: str, node_id: str = "") -> Object:
    return {"metadata": {"name": name}, "spec": {"drivers": [{"name": DRIVER_NAME, "nodeID": node_id or name}]}}


def test_the_definition_that_is_shipped_is_fine() -> None:
    assert examination.definition(established(), definition()).state is State.OK


def test_a_definition_that_would_drop_a_field_is_older() -> None:
    old = established()
    status = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    del status["migration"]["properties"]["liveNode"]
    check = examination.definition(old, definition())
    assert (check.state, ".status.migration.liveNode" in check.found) == (State.WRONG, True)


def test_a_newer_definition_is_fine() -> None:
    new = established()
    new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["more"] = {"type": "string"}
    assert examination.definition(new, definition()).state is State.OK


@pytest.mark.parametrize("found", [None, {**definition(), "status": {}}])
def test_a_definition_that_is_missing_or_not_established_is_wrong(found: Any) -> None:
    assert examination.definition(found, definition()).state is State.WRONG


def test_a_driver_that_asks_nobody_who_may_attach_is_wrong() -> None:
    found = {**DRIVER, "spec": {**DRIVER["spec"], "attachRequired": False}}
    check = examination.csi_driver(found, DRIVER)
    assert (check.state, "attachRequired is False" in check.found) == (State.WRONG, True)
    assert examination.csi_driver(None, DRIVER).state is State.WRONG
    assert examination.csi_driver(DRIVER, DRIVER).state is State.OK


def test_nodes_on_which_the_driver_is_not_registered_are_named() -> None:
    nodes = {name: node(name) for name in ("a", "b")}
    assert examination.registrations(nodes, [csi_node("a"), csi_node("b")], DRIVER_NAME).state is State.OK
    some = examination.registrations(nodes, [csi_node("a")], DRIVER_NAME)
    assert (some.state, "not on b" in some.found) == (State.NOTE, True)
    assert examination.registrations(nodes, [], DRIVER_NAME).state is State.WRONG


def test_a_node_that_the_driver_calls_otherwise_is_wrong() -> None:
    assert examination.registrations({"a": node("a")}, [csi_node("a", "other")], DRIVER_NAME).state is State.WRONG


@pytest.mark.parametrize(
    ("body", "state"),
    [(None, State.WRONG), (lease(), State.OK), (lease(renewed=60), State.WRONG), (lease(holder=""), State.WRONG)],
)
def test_an_operator_is_active_while_its_lease_is_renewed(body: Any, state: State) -> None:
    assert examination.operator(body, NOW, "rds-csi").state is state


@pytest.mark.parametrize(
    ("version", "state"),
    [({"major": "1", "minor": "36+", "gitVersion": "v1.36.3"}, State.OK), ({"major": "1", "minor": "31"}, State.WRONG)],
)
def test_the_api_server_must_be_new_enough(version: Any, state: State) -> None:
    assert examination.api_server(version).state is state


def test_clocks_that_disagree_are_told() -> None:
    assert examination.clock(timedelta(seconds=1)).state is State.OK
    assert examination.clock(timedelta(seconds=60)).state is State.WRONG


def test_a_cluster_without_kubevirt_is_told_what_that_means() -> None:
    assert examination.kubevirt(None).state is State.NOTE
    assert examination.kubevirt({"versions": [{"version": "v1"}, {"version": "v1alpha3"}]}).state is State.OK
    assert examination.kubevirt({"versions": [{"version": "v1alpha3"}]}).state is State.NOTE


def test_every_binding_that_is_shipped_is_asked_for() -> None:
    asked = {right.role for right in RIGHTS}
    assert asked == {body["roleRef"]["name"] for body in OBJECTS if body["kind"] in {"RoleBinding", "ClusterRoleBinding"}}


def test_a_right_that_is_missing_is_told_for_its_account_and_role() -> None:
    lost = next(right for right in RIGHTS if (right.role, right.resource) == ("rds-csi-controller", "pods"))
    wrong = [check for check in examination.access(RIGHTS, [lost]) if check.state is State.WRONG]
    assert [(check.name, check.found) for check in wrong] == [("Rights rds-csi-controller", "rds-csi-controller may not list pods")]


def test_a_question_about_a_right_names_account_subresource_and_object() -> None:
    body = review(Right("rds-operator", "role", "rds-csi", "g", "things/status", "update", "one"), "elsewhere")
    assert body["spec"]["user"] == "system:serviceaccount:elsewhere:rds-operator"
    assert body["spec"]["resourceAttributes"] == {
        "namespace": "rds-csi",
        "verb": "update",
        "group": "g",
        "resource": "things",
        "subresource": "status",
        "name": "one",
    }


def test_what_could_not_be_looked_at_counts_as_wrong_and_a_note_does_not() -> None:
    assert Examination([examination.unknown("Nodes", "forbidden")]).wrong
    assert not Examination([Check("KubeVirt", State.NOTE, "none", "install it")]).wrong


def test_every_check_that_is_not_fine_says_what_to_do() -> None:
    checks = [
        examination.definition(None, definition()),
        examination.csi_driver(None, DRIVER),
        examination.registrations({}, [], DRIVER_NAME),
        examination.operator(None, NOW, "rds-csi"),
        examination.kubevirt(None),
        examination.clock(timedelta(minutes=1)),
        examination.unknown("Rights", "forbidden"),
        *examination.access(RIGHTS, RIGHTS),
    ]
    assert [check for check in checks if not check.fix or forbidden(check.fix)] == []
    assert len([line for line in Examination(checks).lines() if line.startswith("- ")]) == len(checks)
