"""The CRD in a real API server: what its rules refuse and admit, and what kubectl makes of a record."""

from __future__ import annotations

import copy
import random
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rds_records.decisions import Decided, Refused
from rds_records.imports import Holder, add_missing, import_attachments
from rds_records.kubevirt_runs import Verdict
from rds_records.names import file_path_for, nqn_for
from rds_records.record import AccessMode, DualAttachPolicy, Record, Result, Spec, Target, VolumeMode
from rds_records.transitions import Access, attach, begin_deletion, detach, detach_all, initialize, note_refusal
from rds_records.window_warnings import warn
from rds_records.windows import conclude, conclude_pending, expire, observe_run, supersede
from tests.ring.api import Api, ApiError, Object
from tests.ring.controlplane import ControlPlane
from tests.unit.records.kubevirt import live_migration

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
KIND = "VolumeAttachmentRecord"
Make = Callable[..., Object]


def time(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def held(node: str, mode: str = "ReadWriteMany", number: int = 1) -> Object:
    return {"nodeName": node, "id": f"{node}-{number}", "accessMode": mode, "readOnly": False, "attachTime": time(0)}


def window(source: str, target: str, name: str = "window-1", **more: Any) -> Object:
    return {"id": name, "origin": "Publish", "sourceNode": source, "targetNode": target, "startTime": time(1), **more}


def closed(of: Object, **more: Any) -> Object:
    return {**of, "endTime": time(60), "durationSeconds": 59, "result": "Succeeded", **more}


KNOWN: Object = {"initialized": True}
ALONE: Object = {**KNOWN, "attachments": [held("node-a")]}
TWO: Object = {**KNOWN, "attachments": [held("node-a"), held("node-b")], "migration": window("node-a", "node-b")}
THREE: Object = {**KNOWN, "overAttached": True, "attachments": [held("node-a"), held("node-b"), held("node-c")]}


@pytest.fixture
def api(installed: ControlPlane) -> Api:
    return installed.api


@pytest.fixture
def make(api: Api) -> Iterator[Make]:
    """Make records without finalizers, with a status of one's choice; they are removed afterwards."""
    made: list[str] = []

    def make(status: Object | None = None, **spec: Any) -> Object:
        handle = f"pvc-{uuid.uuid4()}"
        usual = Spec(
            volume_handle=handle,
            volume_mode=VolumeMode.BLOCK,
            access_mode=AccessMode.READ_WRITE_MANY,
            capacity_bytes=1 << 30,
            target=Target(nqn=nqn_for(handle), slot=handle, file_path=file_path_for("/storage-pool/metal-csi", handle)),
        )
        body = Record.new(usual).to_json()
        body["spec"] |= spec
        record = api.create(body)
        made.append(handle)
        return record if status is None else to(record, status)

    def to(record: Object, status: Object) -> Object:
        return api.replace({**record, "status": status}, "status")

    yield make
    for name in made:
        api.delete(KIND, name)


def write(api: Api, record: Object, status: Object) -> Object:
    """Write a status over the newest version of a record."""
    return api.replace({**api.get(KIND, record["metadata"]["name"]), "status": status}, "status")


def refused(api: Api, record: Object, status: Object, why: str) -> None:
    before = api.get(KIND, record["metadata"]["name"])
    with pytest.raises(ApiError, match=why) as error:
        write(api, record, status)
    assert error.value.status == 422
    assert api.get(KIND, record["metadata"]["name"]) == before


# Additions -------------------------------------------------------------------------------------------


def test_status_sent_along_with_a_new_record_is_dropped(api: Api, make: Make) -> None:
    assert "status" not in make()


@pytest.mark.parametrize("first", [None, KNOWN, ALONE], ids=["first write", "attached nowhere", "attached once"])
def test_two_nodes_with_a_window_between_them_are_admitted(api: Api, make: Make, first: Object | None) -> None:
    assert write(api, make(first), TWO)["status"] == TWO


@pytest.mark.parametrize("first", [None, KNOWN, ALONE], ids=["first write", "attached nowhere", "attached once"])
def test_a_second_node_needs_a_window(api: Api, make: Make, first: Object | None) -> None:
    without = {name: part for name, part in TWO.items() if name != "migration"}
    refused(api, make(first), without, "a second node needs an open migration between the two")


def test_a_second_node_needs_a_window_of_its_own(api: Api, make: Make) -> None:
    refused(api, make(ALONE), {**TWO, "migration": window("node-a", "node-c")}, "a second node needs an open migration")


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("first", [None, ALONE, TWO], ids=["first write", "attached once", "attached twice"])
def test_a_third_node_needs_the_flag(api: Api, make: Make, first: Object | None) -> None:
    record = make(first)
    unflagged = {**TWO, "attachments": THREE["attachments"]}
    refused(api, record, unflagged, "two nodes hold the volume and a third cannot be added")
    refused(api, record, {**unflagged, "overAttached": False}, "a third cannot be added")
    assert write(api, record, {**unflagged, "overAttached": True} if first is TWO else THREE)["status"]["overAttached"] is True


@pytest.mark.requirement("R28", "R29")
@pytest.mark.parametrize("first", [None, {**KNOWN, "attachments": [held("node-a", "ReadWriteOnce")]}], ids=["first", "later"])
@pytest.mark.parametrize("second", ["ReadWriteOnce", "ReadWriteMany"])
def test_a_second_node_beside_one_that_is_alone_needs_the_flag(api: Api, make: Make, first: Object | None, second: str) -> None:
    record = make(first)
    status = {**TWO, "attachments": [held("node-a", "ReadWriteOnce"), held("node-b", second)]}
    refused(api, record, status, "for itself alone")
    write(api, record, {**status, "overAttached": True})


@pytest.mark.requirement("R29")
def test_a_second_node_on_a_filesystem_needs_the_flag(api: Api, make: Make) -> None:
    record = make(ALONE, volumeMode="Filesystem")
    refused(api, record, TWO, "a volume with a filesystem is for one node")
    write(api, record, {**TWO, "overAttached": True})


@pytest.mark.requirement("R32")
def test_nobody_is_added_to_a_volume_that_is_being_deleted(api: Api, make: Make) -> None:
    refused(api, make({**KNOWN, "deleting": True}), {**ALONE, "deleting": True}, "being deleted")
    refused(api, make(), {**ALONE, "deleting": True}, "being deleted")


def test_nobody_is_added_before_it_is_known_who_holds_the_volume(api: Api, make: Make) -> None:
    refused(api, make(), {"attachments": [held("node-a")]}, "not initialized")


@pytest.mark.parametrize("first", [None, ALONE], ids=["first write", "later"])
def test_a_window_opens_only_between_attached_nodes(api: Api, make: Make, first: Object | None) -> None:
    refused(api, make(first), {**ALONE, "migration": window("node-a", "node-b")}, "both attached")


def test_a_window_has_two_ends(api: Api, make: Make) -> None:
    refused(api, make(), {**ALONE, "migration": window("node-a", "node-a")}, "from one node to another")


# Removals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["node-a", "node-b", "node-c"])
@pytest.mark.parametrize("flag", [{}, {"overAttached": True}, {"overAttached": False}], ids=str)
def test_an_attachment_can_always_be_removed(api: Api, make: Make, gone: str, flag: Object) -> None:
    record = make(THREE)
    rest = [one for one in THREE["attachments"] if one["nodeName"] != gone]
    assert len(write(api, record, {**KNOWN, **flag, "attachments": rest})["status"]["attachments"]) == 2
    assert len(write(api, record, {**KNOWN, **flag, "attachments": rest[:1]})["status"]["attachments"]) == 1
    write(api, record, KNOWN)


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteMany"])
def test_an_attachment_can_be_removed_whatever_else_is_wrong(api: Api, make: Make, mode: str) -> None:
    four = [held(f"node-{number}", mode) for number in range(4)]
    record = make({**KNOWN, "overAttached": True, "attachments": four}, volumeMode="Filesystem")
    for left in (3, 2, 1, 0):
        write(api, record, {**KNOWN, "attachments": four[:left]})


def test_an_attachment_can_be_removed_without_the_window(api: Api, make: Make) -> None:
    write(api, make(TWO), ALONE)
    write(api, make(TWO), {**TWO, "attachments": [held("node-b")]})


def test_one_removed_and_another_added_is_no_removal(api: Api, make: Make) -> None:
    refused(api, make(TWO), {**TWO, "attachments": [held("node-a"), held("node-c")]}, "a second node needs an open migration")


# Facts that stay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [{"initialized": False}, {}], ids=["false", "absent"])
def test_initialized_is_not_taken_back(api: Api, make: Make, later: Object) -> None:
    refused(api, make(KNOWN), later, "initialized")


def test_a_status_is_not_emptied(api: Api, make: Make) -> None:
    record = make(KNOWN)
    body = {name: part for name, part in record.items() if name != "status"}
    with pytest.raises(ApiError, match="the status cannot be emptied"):
        api.replace(body, "status")


def test_deleting_is_not_taken_back(api: Api, make: Make) -> None:
    refused(api, make({**KNOWN, "deleting": True}), KNOWN, "deleting cannot be taken back")


def test_removed_from_box_is_not_taken_back(api: Api, make: Make) -> None:
    gone = {**KNOWN, "deleting": True, "removedFromBox": True}
    refused(api, make(gone), {**KNOWN, "deleting": True}, "removedFromBox cannot be taken back")


@pytest.mark.requirement("R32")
def test_deleting_is_not_set_while_a_node_is_attached(api: Api, make: Make) -> None:
    refused(api, make(ALONE), {**ALONE, "deleting": True}, "detach them first")


def test_an_older_generation_is_not_observed_again(api: Api, make: Make) -> None:
    record = make({**KNOWN, "observedGeneration": 5})
    refused(api, record, {**KNOWN, "observedGeneration": 4}, "newer spec")
    refused(api, record, KNOWN, "newer spec")
    write(api, record, {**KNOWN, "observedGeneration": 6})


@pytest.mark.parametrize("change", [{"result": "Failed"}, {"result": None}], ids=["changed", "dropped"])
def test_the_result_of_an_open_window_is_set_once(api: Api, make: Make, change: Object) -> None:
    record = make(TWO)
    timed_out = {**TWO, "migration": window("node-a", "node-b", result="TimedOut")}
    write(api, record, timed_out)
    changed = {name: part for name, part in (timed_out["migration"] | change).items() if part is not None}
    refused(api, record, {**TWO, "migration": changed}, "the result of a migration is set once")
    write(api, record, {**TWO, "migration": {**timed_out["migration"], "kubevirtResult": "Succeeded"}})


@pytest.mark.parametrize(
    "change", [{"sourceNode": "node-b", "targetNode": "node-a"}, {"startTime": time(2)}], ids=["roles", "start"]
)
def test_roles_and_start_of_an_open_window_are_fixed(api: Api, make: Make, change: Object) -> None:
    refused(api, make(TWO), {**TWO, "migration": TWO["migration"] | change}, "fixed when it opens")


@pytest.mark.requirement("R10")
def test_the_deadline_of_an_open_window_moves(api: Api, make: Make) -> None:
    record = make(TWO)
    for seconds in (300, 30, 3600):
        write(api, record, {**TWO, "migration": {**TWO["migration"], "timeoutSeconds": seconds, "deadlineTime": time(1 + seconds)}})


def test_a_window_goes_to_the_history_as_it_is(api: Api, make: Make) -> None:
    timed_out = window("node-a", "node-b", result="TimedOut")
    record = make({**TWO, "migration": timed_out})
    for change in ({"result": "Succeeded"}, {"sourceNode": "node-c"}, {"startTime": time(2)}):
        wrong = closed(timed_out, **{"result": "TimedOut", **change})
        refused(api, record, {**ALONE, "history": [wrong]}, "stay as they are when it goes to the history")
    write(api, record, {**ALONE, "history": [closed(timed_out, result="TimedOut")]})


def test_a_window_does_not_vanish_while_both_nodes_stay(api: Api, make: Make) -> None:
    record = make(TWO)
    refused(api, record, {name: part for name, part in TWO.items() if name != "migration"}, "must go to the history")
    reverse = window("node-b", "node-a", "window-2")
    refused(api, record, {**TWO, "migration": reverse}, "must go to the history")
    write(api, record, {**TWO, "migration": reverse, "history": [closed(window("node-a", "node-b"))]})


def test_history_does_not_change(api: Api, make: Make) -> None:
    entry = closed(window("node-a", "node-b"))
    record = make({**KNOWN, "history": [entry]})
    refused(api, record, {**KNOWN, "history": [entry | {"result": "Failed"}]}, "set once")
    refused(api, record, {**KNOWN, "history": [entry | {"sourceNode": "node-c"}]}, "never change")
    write(api, record, {**KNOWN, "history": [entry | {"kubevirtResult": "Failed"}]})
    write(api, record, KNOWN)


def test_an_entry_that_was_counted_is_not_claimed_again(api: Api, make: Make) -> None:
    entry = {"id": "window-1-started", "kind": "Started", "time": time(1)}
    record = make({**KNOWN, "outbox": [entry]})
    write(api, record, {**KNOWN, "outbox": [entry | {"reportedBy": "life-1"}]})
    refused(api, record, {**KNOWN, "outbox": [entry | {"reportedBy": "life-2"}]}, "cannot be claimed a second time")
    refused(api, record, {**KNOWN, "outbox": [entry]}, "cannot be claimed a second time")
    write(api, record, KNOWN)


@pytest.mark.parametrize(
    "status",
    [
        {"attachments": [held("node-a"), held("node-a", number=2)]},
        {"attachments": [held("Not A Node")]},
        {"history": [closed(window("node-a", "node-b"))] * 2},
        {"phase": "Confused"},
        {"refusals": [{"nodeName": "node-a"}]},
        {"outbox": [{"id": "a b", "kind": "Started", "time": time(0)}]},
        {"attachments": [{**held("node-a"), "attachTime": "yesterday"}]},
    ],
    ids=["node twice", "no node name", "window twice", "no phase", "fields missing", "no id", "no time"],
)
def test_malformed_status_is_refused(api: Api, make: Make, status: Object) -> None:
    refused(api, make(KNOWN), {**KNOWN, "overAttached": True, **status}, "Invalid|Unsupported|Duplicate|Required|must be")


# The spec --------------------------------------------------------------------------------------------


def edited(api: Api, record: Object, **changes: Any) -> Object:
    newest = copy.deepcopy(api.get(KIND, record["metadata"]["name"]))
    newest["spec"] |= changes
    return api.replace(newest)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"volumeHandle": "pvc-other"}, "never changes"),
        ({"volumeMode": "Filesystem"}, "never changes"),
        ({"migrationTimeoutSeconds": 29}, "greater than or equal to 30"),
        ({"migrationTimeoutSeconds": 86_401}, "less than or equal to 86400"),
        ({"dualAttachPolicy": "Whoever"}, "Unsupported value"),
        ({"capacityBytes": -1}, "greater than or equal to 0"),
        ({"target": None}, "say which disk this volume is"),
    ],
    ids=str,
)
def test_what_may_not_be_edited_is_refused(api: Api, make: Make, changes: Object, why: str) -> None:
    with pytest.raises(ApiError, match=why):
        edited(api, make(), **changes)


@pytest.mark.parametrize("name", ["nqn", "slot", "filePath"])
def test_the_disk_behind_a_volume_never_changes(api: Api, make: Make, name: str) -> None:
    record = make()
    other = {"nqn": nqn_for("other"), "slot": "other", "filePath": "/other.img"}[name]
    with pytest.raises(ApiError, match="which disk this volume is"):
        edited(api, record, target=record["spec"]["target"] | {name: other})


@pytest.mark.requirement("R10")
def test_what_may_be_edited_is_taken(api: Api, make: Make) -> None:
    record = make()
    for changes in (
        {"migrationTimeoutSeconds": 30},
        {"migrationTimeoutSeconds": 86_400},
        {"dualAttachPolicy": "AnyTwoNodes"},
        {"capacityBytes": 2 << 30},
        {"target": record["spec"]["target"] | {"address": "192.0.2.7", "port": 4421}},
    ):
        edited(api, record, **changes)


def test_the_policy_is_kubevirt_where_none_is_given(api: Api, make: Make) -> None:
    assert make()["spec"]["dualAttachPolicy"] == "KubeVirt"


def test_a_record_has_the_name_of_its_volume(api: Api, make: Make) -> None:
    body = make()
    body = {"apiVersion": body["apiVersion"], "kind": KIND, "metadata": {"name": "a-name"}, "spec": body["spec"]}
    with pytest.raises(ApiError, match="the name of a record is the volume handle"):
        api.create(body)


# Everything that the rules of the package make ---------------------------------------------------------


NODES = ("node-a", "node-b", "node-c")


def step(record: Record, choose: random.Random, now: datetime, number: int) -> Record | None:
    """Return the record after something that can happen to it; None where that changes nothing."""
    node = choose.choice(NODES)
    attached = record.status.attachment_of(node)
    decision: Decided | Refused
    match choose.randrange(12):
        case 0 | 1 | 2 | 3 | 4:
            mode = record.spec.access_mode if choose.random() < 0.9 else AccessMode.READ_WRITE_ONCE
            access = Access(mode, record.spec.volume_mode)
            decision = attach(record, node, access, now=now, new_id=f"attachment-{number}", node_exists=True)
            if isinstance(decision, Refused):
                return note_refusal(record, node, decision, now=now)
        case 5 | 6 | 7:
            decision = detach(record, node, attachment_id=attached.id if attached else None, wanted=False, now=now)
        case 8:
            decision = detach_all(record, attachment_ids=[one.id for one in record.status.attachments], now=now)
        case 9:
            return expire(record, now=now, elapsed=timedelta(seconds=choose.choice([10, 400])))
        case 10:
            found = [Holder(name, now - timedelta(seconds=choose.randrange(500)), True) for name in NODES if choose.random() < 0.4]
            repaired = add_missing(record, found, now=now)
            return None if repaired is record else repaired
        case _:
            if record.status.outbox and choose.random() < 0.5:
                return record.with_status(outbox=record.status.outbox[1:])
            decision = begin_deletion(record, now=now) if choose.random() < 0.1 else initialize(record, now=now)
    return decision.record if isinstance(decision, Decided) and decision.changed else None


@pytest.mark.parametrize("seed", range(24))
def test_the_api_server_takes_whatever_the_transitions_make(api: Api, make: Make, seed: int) -> None:
    choose = random.Random(seed)
    mode, access = choose.choice([("Block", "ReadWriteMany")] * 3 + [("Block", "ReadWriteOnce"), ("Filesystem", "ReadWriteOnce")])
    record = Record.from_json(make(volumeMode=mode, accessMode=access, dualAttachPolicy=DualAttachPolicy.ANY_TWO_NODES.value))
    found = [Holder(name, START - timedelta(seconds=choose.randrange(500)), True) for name in NODES if choose.random() < 0.4]
    record = Record.from_json(api.replace(import_attachments(record, found, now=START).to_json(), "status"))
    for number in range(40):
        changed = step(record, choose, START + timedelta(seconds=20 * number), number)
        if changed is not None:
            record = Record.from_json(api.replace(changed.to_json(), "status"))
            assert record.status == Record.from_json(changed.to_json()).status, "nothing is dropped or filled in"


def kubevirt_step(record: Record, choose: random.Random, now: datetime, number: int) -> Record | None:
    """Return the record after something that KubeVirt does; None where that changes nothing."""
    status = record.status
    holders = [held.node_name for held in status.attachments]
    window = status.migration
    uids = [one.migration_uid for one in (*status.history, *((window,) if window else ())) if one.migration_uid]
    match choose.randrange(8):
        case 0 | 1 | 2:
            node = choose.choice(NODES)
            run = live_migration(holders[0] if holders else "node-z", node, f"run-{number}")
            access = Access(record.spec.access_mode, record.spec.volume_mode)
            decision = attach(record, node, access, now=now, new_id=f"attachment-{number}", node_exists=True, evidence=run)
        case 3 if uids:
            result = choose.choice([Result.SUCCEEDED, Result.FAILED])
            verdict = Verdict(choose.choice(uids), result, "MigrationState", "why", "node-a", START, START + timedelta(seconds=9))
            decision = conclude(record, verdict, now=now)
        case 4 if status.pending and choose.random() < 0.3:
            decision = conclude_pending(record, status.pending[0].id, now=now)
        case 5 if window:
            source, target = choose.sample([window.source_node, window.target_node], 2)
            run = live_migration(source, target, f"run-{number}")
            decision = supersede(record, run, None, now=now, new_id=f"window-{number}")
        case 6 if window:
            decision = observe_run(record, start=now, timeout_seconds=choose.choice([None, 570]), live_node="node-a", now=now)
        case 7 if window:
            return warn(record, now=now, detail="it hangs")
        case _:
            return step(record, choose, now, number)
    return decision.record if isinstance(decision, Decided) and decision.changed else None


@pytest.mark.parametrize("seed", range(12))
def test_the_api_server_takes_whatever_kubevirts_runs_make(api: Api, make: Make, seed: int) -> None:
    choose = random.Random(seed)
    record = Record.from_json(
        make(volumeMode="Block", accessMode="ReadWriteMany", dualAttachPolicy=DualAttachPolicy.KUBEVIRT.value)
    )
    record = Record.from_json(api.replace(import_attachments(record, [], now=START).to_json(), "status"))
    for number in range(60):
        changed = kubevirt_step(record, choose, START + timedelta(seconds=400 * number), number)
        if changed is not None:
            record = Record.from_json(api.replace(changed.to_json(), "status"))
            assert record.status == Record.from_json(changed.to_json()).status, "nothing is dropped or filled in"
        if record.status.deleting:
            return


# What people see -------------------------------------------------------------------------------------


@pytest.fixture
def kubectl(installed: ControlPlane) -> Callable[..., str]:
    def run(*words: str) -> str:
        command = [installed.binaries["kubectl"], f"--kubeconfig={installed.kubeconfig}", *words]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True, timeout=60).stdout

    return run


OVERDUE: Object = {
    **TWO,
    "migration": window(
        "node-a", "node-b", deadlineTime=time(301), result="TimedOut", migrationName="kubevirt-migrate-vm-1",
    ),
    "history": [closed(window("node-c", "node-a", "window-0"))],
    "claimRef": {"namespace": "default", "name": "a-claim"},
    "vmi": {"namespace": "default", "name": "a-vm"},
    "phase": "Overdue",
    "nodes": "node-a,node-b",
}  # fmt: skip


def columns(table: str) -> dict[str, str]:
    """Return the first row of a table of kubectl by its headings; headings and cells are set apart by two spaces or more."""
    header, row = table.splitlines()[:2]
    names = [name for name in header.split("  ") if name.strip()]
    starts = [header.index(name.strip()) for name in names]
    return {
        name.strip(): row[start:end].strip() for name, start, end in zip(names, starts, [*starts[1:], None], strict=True)
    }  # fmt: skip


@pytest.mark.requirement("R11", "R44")
def test_kubectl_get_var_shows_who_where_and_until_when(make: Make, kubectl: Callable[..., str]) -> None:
    name = make(OVERDUE)["metadata"]["name"]
    row = columns(kubectl("get", "var", name))
    assert list(row) == ["NAME", "PHASE", "NODES", "SOURCE", "TARGET", "SINCE", "DEADLINE", "CLAIM", "AGE"]
    assert (row["PHASE"], row["NODES"], row["SOURCE"], row["TARGET"]) == ("Overdue", "node-a,node-b", "node-a", "node-b")
    assert (row["DEADLINE"], row["CLAIM"]) == (time(301), "a-claim")


def test_kubectl_get_var_wide_adds_the_virtual_machine_and_the_last_result(make: Make, kubectl: Callable[..., str]) -> None:
    name = make(OVERDUE)["metadata"]["name"]
    row = columns(kubectl("get", "var", name, "-o", "wide"))
    assert (row["VM"], row["MIGRATION"], row["LAST RESULT"], row["SIZE"]) == (
        "a-vm", "kubevirt-migrate-vm-1", "Succeeded", "1073741824",
    )  # fmt: skip


def test_records_are_found_by_their_category(make: Make, kubectl: Callable[..., str]) -> None:
    name = make(KNOWN)["metadata"]["name"]
    assert name in kubectl("get", "rds", "-o", "name")


@pytest.mark.parametrize("selector", ["status.phase=Overdue", "status.vmi.name=a-vm"])
def test_records_are_selected_by_phase_and_by_virtual_machine(make: Make, kubectl: Callable[..., str], selector: str) -> None:
    wanted, other = (make(status)["metadata"]["name"] for status in (OVERDUE, ALONE))
    found = kubectl("get", "var", "-o", "name", "--field-selector", selector)
    assert wanted in found
    assert other not in found


def test_kubectl_explain_says_what_a_field_means(kubectl: Callable[..., str]) -> None:
    text = " ".join(kubectl("explain", "var.status.migration").split())
    for sentence in ("Names the migration for good", "Set once, never changed", "When the second node was admitted"):
        assert sentence in text
    assert "Absent, nothing is known yet" in " ".join(kubectl("explain", "var.status.initialized").split())
