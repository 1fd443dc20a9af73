from __future__ import annotations

import json
import re

from rds_kubectl.volume_page import Around, Page
from rds_kubectl.world import ATTACHMENTS, NODES, VOLUMES, Trouble, World, volumes_of_driver
from rds_records.record import Record, Result, format_time
from tests.unit.kubectl.cluster_objects import CLAIM, NOW, VMI, Object, attachment, ended, migrating, volume, with_condition, world
from tests.unit.records.volumes import HANDLE, at, attached, fresh, left


def page(record: Record | None = None, around: Around | None = None, one: World | None = None) -> Page:
    seen = one or world(*([record] if record else []))
    (found,) = volumes_of_driver(seen)
    return Page(found, around or Around(), seen)


def text(*arguments: object) -> str:
    return "\n".join(page(*arguments).lines())  # type: ignore[arg-type]


def event(reason: str, seconds: float, message: str = "m") -> Object:
    about = {"kind": "PersistentVolumeClaim", "name": CLAIM.name}
    return {
        "reason": reason,
        "type": "Normal",
        "message": message,
        "lastTimestamp": format_time(at(seconds)),
        "involvedObject": about,
    }


def test_the_page_says_who_holds_the_volume_in_the_record_and_in_kubernetes() -> None:
    record = attached(fresh(), "node-a")
    seen = world(record, attachments=(attachment("node-b", attached=False, attachError={"message": "refused"}),))
    lines = text(record, None, seen).splitlines()
    row_a, row_b = (next(line for line in lines if line.strip().startswith(name)) for name in ("node-a", "node-b"))
    assert re.split(r" {3,}", row_a.strip()) == ["node-a", "attached for 1h", "none", "Ready"]
    assert "not attached: refused" in row_b


def test_the_page_has_the_history_newest_first() -> None:
    record = left(ended(), "node-a", now=at(90))
    record = record.with_status(history=(*record.status.history, record.status.history[0].replace(id="w2", result=Result.FAILED)))
    shown = text(record)
    assert shown.index("Failed") < shown.index("Succeeded")


def test_the_page_says_where_the_vm_runs() -> None:
    vmi = {"metadata": {"name": "web", "namespace": "vms"}, "status": {"nodeName": "node-a", "phase": "Running"}}
    assert "VM:                 vms/web, Running, runs on node-a" in text(migrating(), Around(vmi=vmi))
    assert "vms/web, not there, or not read" in text(migrating())


def test_the_page_has_what_the_record_says_of_the_box() -> None:
    record = with_condition(fresh(), "Available", "False", "DiskMissing", "no disk in its slot")
    shown = text(record)
    assert f"slot {HANDLE}, file /storage-pool/metal-csi/{HANDLE}.img" in shown
    assert "False, DiskMissing: no disk in its slot" in shown


def test_a_volume_without_a_record_has_a_page() -> None:
    assert "none yet: it is made at the first attach" in text(None, None, world(volumes=(volume("pvc-1"),)))


def test_events_are_shown_by_age_and_cannot_break_the_page() -> None:
    shown = text(fresh(), Around(events=(event("MigrationStarted", 3500, "a\nb\x1b[31m"),)))
    line = next(line for line in shown.splitlines() if "MigrationStarted" in line)
    assert line.split()[0] == "1m40s"
    assert line.isprintable()


def test_what_could_not_be_read_is_on_the_page() -> None:
    seen = world(fresh(), nodes=None, troubles=(Trouble(NODES, "forbidden"),))
    assert "- nodes: forbidden" in text(None, None, seen)


def test_what_could_not_be_read_is_never_called_none() -> None:
    record = attached(fresh(), "node-a")
    troubles = tuple(Trouble(what, "forbidden") for what in (VOLUMES, ATTACHMENTS, NODES))
    shown = text(record, None, world(record, volumes=None, attachments=None, nodes=None, troubles=troubles))
    (row,) = [line for line in shown.splitlines() if line.strip().startswith("node-a")]
    assert re.split(r" {3,}", row.strip()) == ["node-a", "attached for 1h", "not read", "not read"]
    assert "PersistentVolume:   not read" in shown
    assert "Nothing is wrong in what could be read." in shown


def test_a_record_that_says_nothing_yet_does_not_call_a_node_not_attached() -> None:
    record = fresh().with_status(initialized=None)
    shown = text(record, None, world(record, attachments=(attachment("node-a"),)))
    assert re.search(r"node-a +says nothing +attached", shown)


def test_without_an_operator_a_volume_is_not_called_fine() -> None:
    record = attached(fresh(), "node-a")
    shown = text(record, None, world(record, lease=None))
    assert "- installation: no operator is active" in shown
    assert "Nothing is wrong" not in shown


def test_programs_get_whole_objects() -> None:
    claim = {"metadata": {"name": CLAIM.name}}
    body = json.loads(json.dumps(page(migrating(), Around(claim=claim)).to_json()))
    assert body["record"]["status"]["migration"]["vmi"] == VMI.to_json()
    assert body["persistentVolumeClaim"] == claim
    assert [one["spec"]["nodeName"] for one in body["volumeAttachments"]] == ["node-a", "node-b"]


def test_a_page_of_a_healthy_volume_says_that_nothing_is_wrong() -> None:
    assert text(attached(fresh(), "node-a")).splitlines()[-1] == "Nothing is wrong."
    assert page(attached(fresh(), "node-a")).world.now == NOW
