"""What PersistentVolumes and VolumeAttachments say about a volume without a record."""

from __future__ import annotations

from typing import Any

import pytest

from rds_records.imports import (
    NODE_ID_ANNOTATION,
    Holder,
    add_missing,
    holders,
    import_attachments,
    quantity_bytes,
    spec_from_volume,
    target_from_context,
    volumes_of,
)
from rds_records.names import DRIVER_NAME, SlotNames, attacher_finalizer, file_path_for, nqn_for, slot_for
from rds_records.record import MAX_ATTACHMENTS, AccessMode, Announcement, DualAttachPolicy, Origin, Record, VolumeMode
from rds_records.transitions import begin_deletion
from tests.unit.records.crd import objections
from tests.unit.records.volumes import HANDLE, START, at, attached, empty, fresh, left, window, yes

OTHER = "pvc-00000000-0000-4000-8000-000000000777"


def volume(name: str = HANDLE, handle: str = HANDLE, **changes: Any) -> dict[str, Any]:
    """Return a PersistentVolume as the Go driver's csi-provisioner made it."""
    spec = {
        "accessModes": ["ReadWriteMany"],
        "volumeMode": "Block",
        "capacity": {"storage": "50Gi"},
        "csi": {"driver": DRIVER_NAME, "volumeHandle": handle, "volumeAttributes": {}},
    }
    return {"metadata": {"name": name}, "spec": spec | changes}


def with_context(**context: str) -> dict[str, Any]:
    return volume(csi={"driver": DRIVER_NAME, "volumeHandle": HANDLE, "volumeAttributes": context})


def attachment(
    node: str, second: int, *, volume: str = HANDLE, state: str = "attached", driver: str = DRIVER_NAME
) -> dict[str, Any]:
    """Return a VolumeAttachment in a state: new, begun (csi-attacher may have published), attached, leaving, begun-leaving."""
    metadata: dict[str, Any] = {"name": f"csi-{node}", "creationTimestamp": at(second).isoformat().replace("+00:00", "Z")}
    if state != "new":
        metadata |= {"finalizers": [attacher_finalizer(driver)], "annotations": {NODE_ID_ANNOTATION: node}}
    if state.endswith("leaving"):
        metadata["deletionTimestamp"] = at(second + 60).isoformat()
    return {
        "metadata": metadata,
        "spec": {"attacher": driver, "nodeName": node, "source": {"persistentVolumeName": volume}},
        "status": {"attached": state in {"attached", "leaving"}},
    }


def names(found: list[Holder]) -> list[str]:
    return [holder.node for holder in found]


def imported(*attachments: dict[str, Any], caller: str | None = None, **changes: Any) -> Record:
    return import_attachments(empty(**changes), holders(HANDLE, [HANDLE], attachments, caller=caller), now=at(100))


# Who holds the volume --------------------------------------------------------------------------------


@pytest.mark.requirement("R5")
@pytest.mark.parametrize("order", [("node-a", "node-b"), ("node-b", "node-a")])
def test_the_source_is_the_older_attachment_whatever_the_names_say(order: tuple[str, str]) -> None:
    older, younger = order
    record = imported(*sorted([attachment(older, 0), attachment(younger, 30)], key=lambda found: found["metadata"]["name"]))
    opened = window(record)
    assert (opened.source_node, opened.target_node) == (older, younger)
    assert (opened.origin, opened.start_time) == (Origin.IMPORTED, at(30))


@pytest.mark.requirement("R4")
def test_the_window_of_an_import_began_with_the_second_node_and_keeps_that_deadline() -> None:
    record = imported(attachment("node-a", -30 * 86_400), attachment("node-b", 40))
    assert window(record).deadline_time == at(340)
    assert left(record, "node-a", now=at(110)).status.history[0].duration_seconds == 70


@pytest.mark.requirement("R23")
def test_a_volume_is_known_by_its_handle_and_not_by_the_name_of_its_volume() -> None:
    volumes = [volume("restored-db", OTHER), volume(OTHER, HANDLE), volume("foreign", HANDLE, csi={"driver": "other"})]
    found = volumes_of(OTHER, volumes)
    assert [one["metadata"]["name"] for one in found] == ["restored-db"]
    attachments = [attachment("node-a", 0, volume="restored-db"), attachment("node-b", 1, volume=OTHER)]
    assert names(holders(OTHER, ["restored-db"], attachments)) == ["node-a"]


def test_attachments_of_all_volumes_that_name_the_handle_count() -> None:
    attachments = [attachment("node-a", 0, volume="one"), attachment("node-b", 1, volume="two")]
    assert names(holders(HANDLE, ["one", "two"], attachments)) == ["node-a", "node-b"]


def test_an_inline_volume_counts_by_its_handle() -> None:
    inline = attachment("node-a", 0)
    inline["spec"]["source"] = {"inlineVolumeSpec": {"csi": {"driver": DRIVER_NAME, "volumeHandle": HANDLE}}}
    assert names(holders(HANDLE, [], [inline])) == ["node-a"]
    assert names(holders(OTHER, [], [inline])) == []


def test_attachments_of_other_drivers_and_volumes_do_not_count() -> None:
    assert holders(HANDLE, [HANDLE], [attachment("node-a", 0, driver="other"), attachment("node-b", 0, volume="other")]) == []


@pytest.mark.requirement("R24")
@pytest.mark.parametrize(
    ("state", "counts"), [("new", False), ("begun", True), ("attached", True), ("leaving", True), ("begun-leaving", True)]
)
def test_a_node_holds_the_volume_from_the_moment_that_it_may_have_been_told_yes(state: str, counts: bool) -> None:
    assert names(holders(HANDLE, [HANDLE], [attachment("node-a", 0, state=state)])) == (["node-a"] if counts else [])


@pytest.mark.requirement("R24")
def test_of_several_nodes_that_may_have_been_told_yes_the_oldest_counts() -> None:
    pending = [attachment("node-c", 3, state="begun"), attachment("node-b", 2, state="begun")]
    assert names(holders(HANDLE, [HANDLE], [*pending, attachment("node-a", 9)])) == ["node-b", "node-a"]


def test_the_caller_itself_never_counts() -> None:
    found = holders(HANDLE, [HANDLE], [attachment("node-a", 0), attachment("node-b", 1)], caller="node-b")
    assert names(found) == ["node-a"]


def test_a_caller_that_is_pending_first_does_not_hide_the_others() -> None:
    pending = [attachment("node-a", 1, state="begun"), attachment("node-b", 2, state="begun")]
    assert names(holders(HANDLE, [HANDLE], pending, caller="node-a")) == ["node-b"]


# What becomes of them --------------------------------------------------------------------------------


def test_a_volume_that_nobody_holds_is_initialized() -> None:
    record = imported()
    assert (record.initialized, record.status.attachments, record.status.nodes) == (True, (), "")


def test_one_holder_is_attached_since_its_attachment_was_made() -> None:
    record = imported(attachment("node-a", 7))
    (held,) = record.status.attachments
    assert (held.node_name, held.attach_time, held.access_mode) == ("node-a", at(7), AccessMode.READ_WRITE_MANY)
    assert objections(record) == []


@pytest.mark.requirement("R24")
def test_three_holders_are_all_kept_and_flagged() -> None:
    record = imported(attachment("node-a", 0), attachment("node-b", 1), attachment("node-c", 2))
    assert (record.status.nodes, record.status.over_attached, record.status.migration) == ("node-a,node-b,node-c", True, None)
    assert objections(record) == []


def test_two_holders_of_a_volume_for_one_node_are_flagged() -> None:
    record = imported(attachment("node-a", 0), attachment("node-b", 1), access_mode=AccessMode.READ_WRITE_ONCE)
    assert (record.status.over_attached, record.status.migration) == (True, None)


def test_two_holders_under_kubevirt_are_a_window_without_a_deadline() -> None:
    record = imported(attachment("node-a", 0), attachment("node-b", 1), dual_attach_policy=DualAttachPolicy.KUBEVIRT)
    assert window(record).deadline_time is None
    assert [entry.kind for entry in record.status.outbox] == [Announcement.STARTED]


def test_every_import_gives_new_ids() -> None:
    found = [Holder("node-a", START, True), Holder("node-b", START, True)]
    first = import_attachments(empty(), found, now=at(1))
    again = import_attachments(empty(), found, now=at(2))
    ids = [held.id for record in (first, again) for held in record.status.attachments]
    assert len(set(ids)) == 4


def test_as_many_holders_as_a_record_can_name_are_kept() -> None:
    record = imported(*[attachment(f"node-{number}", number) for number in range(MAX_ATTACHMENTS)])
    assert len(record.status.attachments) == MAX_ATTACHMENTS
    assert objections(record) == []


def test_whoever_holds_a_volume_for_readers_is_found_reading() -> None:
    reading = import_attachments(empty(access_mode=AccessMode.READ_ONLY_MANY), [Holder("node-a", START, True)], now=at(1))
    assert [held.read_only for held in reading.status.attachments] == [True]
    writing = import_attachments(empty(), [Holder("node-a", START, True)], now=at(1))
    assert [held.read_only for held in writing.status.attachments] == [False]


# Repairs ---------------------------------------------------------------------------------------------


def test_a_missing_holder_is_added_and_said_so() -> None:
    record = add_missing(attached(fresh(), "node-a"), [Holder("node-b", at(50), True)], now=at(60))
    assert (window(record).source_node, window(record).target_node, window(record).start_time) == ("node-a", "node-b", at(50))
    repaired = record.status.condition("Consistent")
    assert repaired is not None
    assert (repaired.status, repaired.reason) == ("True", "Repaired")
    assert "node-b" in repaired.message
    assert objections(record) == []


def test_holders_found_one_after_the_other_get_different_ids() -> None:
    record = fresh()
    for node in ("node-a", "node-b"):
        record = add_missing(record, [Holder(node, START, True)], now=at(60))
    assert len({held.id for held in record.status.attachments}) == 2


def test_what_the_record_knows_is_not_added_again() -> None:
    record = attached(fresh(), "node-a")
    assert add_missing(record, [Holder("node-a", at(50), True)], now=at(60)) is record


@pytest.mark.requirement("R24")
def test_a_third_holder_is_added_and_flagged_and_the_window_stays() -> None:
    record = attached(fresh(), "node-a", "node-b")
    repaired = add_missing(record, [Holder("node-c", at(50), True)], now=at(60))
    assert (repaired.status.over_attached, repaired.status.migration) == (True, record.status.migration)


def test_nobody_is_added_to_a_volume_that_is_being_deleted() -> None:
    record = yes(begin_deletion(fresh(), now=START))
    assert add_missing(record, [Holder("node-a", START, True)], now=at(60)) is record


# The spec of a volume of the Go driver ---------------------------------------------------------------


def test_a_volume_of_the_go_driver_gets_its_spec_from_its_volume() -> None:
    path = f"/elsewhere/{HANDLE}.img"
    spec = spec_from_volume(
        HANDLE, with_context(nqn=nqn_for(HANDLE), volumePath=path, nvmeAddress="192.0.2.1", migrationTimeoutSeconds="600")
    )
    assert (spec.volume_mode, spec.access_mode, spec.capacity_bytes) == (VolumeMode.BLOCK, AccessMode.READ_WRITE_MANY, 50 << 30)
    assert (spec.dual_attach_policy, spec.migration_timeout_seconds) == (DualAttachPolicy.KUBEVIRT, 600)
    assert spec.target is not None
    assert (spec.target.nqn, spec.target.slot, spec.target.file_path) == (nqn_for(HANDLE), HANDLE, path)
    assert spec.target.address is None
    assert objections(Record.new(spec)) == []


def test_what_the_context_leaves_out_follows_from_the_handle() -> None:
    target = target_from_context(HANDLE, {})
    assert (target.nqn, target.file_path) == (nqn_for(HANDLE), file_path_for("/storage-pool/metal-csi", HANDLE))


def test_a_short_slot_is_told_by_the_name_of_the_file() -> None:
    short = slot_for(HANDLE, SlotNames.SHORT)
    assert target_from_context(HANDLE, {"volumePath": f"/pool/{short}.img"}).slot == short
    assert target_from_context(HANDLE, {"volumePath": "/pool/another-name.img"}).slot == HANDLE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300", None), ("", None), ("600", 600), ("10", 30), ("999999", 86_400), ("5m", None), ("-5", None), ("٣٠", None)],
)
def test_300_seconds_mean_that_nobody_chose(text: str, seconds: int | None) -> None:
    assert spec_from_volume(HANDLE, with_context(migrationTimeoutSeconds=text)).migration_timeout_seconds == seconds


def test_a_policy_in_the_context_is_kept() -> None:
    assert spec_from_volume(HANDLE, with_context(dualAttachPolicy="AnyTwoNodes")).dual_attach_policy == "AnyTwoNodes"
    assert spec_from_volume(HANDLE, with_context(dualAttachPolicy="Whoever")).dual_attach_policy == "KubeVirt"


@pytest.mark.parametrize(
    ("modes", "mode"),
    [
        (["ReadWriteOnce"], "ReadWriteOnce"),
        (["ReadWriteOnce", "ReadWriteMany"], "ReadWriteMany"),
        ([], "ReadWriteOnce"),
        (["ReadWriteOncePod"], "ReadWriteOncePod"),
    ],
)
def test_the_widest_access_mode_counts(modes: list[str], mode: str) -> None:
    assert spec_from_volume(HANDLE, volume(accessModes=modes)).access_mode == mode


@pytest.mark.parametrize("changes", [{"accessModes": ["WriteOnly"]}, {"volumeMode": "Tape"}, {"capacity": {"storage": "much"}}])
def test_a_volume_that_cannot_be_ours_is_a_value_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        spec_from_volume(HANDLE, volume(**changes))


def test_a_volume_without_a_mode_is_a_filesystem() -> None:
    source = volume()
    del source["spec"]["volumeMode"]
    assert spec_from_volume(HANDLE, source).volume_mode is VolumeMode.FILESYSTEM


@pytest.mark.parametrize(
    ("quantity", "size"),
    [("50Gi", 50 << 30), ("53687091200", 53_687_091_200), ("1.5Ti", 3 << 39), ("5G", 5_000_000_000), ("1e3", 1000)],
)
def test_quantities_are_read_as_kubernetes_reads_them(quantity: str, size: int) -> None:
    assert quantity_bytes(quantity) == size
