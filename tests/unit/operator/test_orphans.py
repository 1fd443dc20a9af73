"""What is an orphan, and what never is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.routeros import Disk, File
from rds_operator.orphans import Kind, Named, Suspect, Thing, follow, named_by, unnamed
from rds_operator.suspects import MOST_BYTES, decode, encode
from rds_records.names import nqn_for
from rds_records.record import AccessMode, ContentSource, Record, Spec, Target, VolumeMode
from rds_records.volume_layout import SnapshotName, snapshot_id_for

DRIVER = "rds.csi.srvlab.io"
BASE = "/storage-pool/metal-csi"
NOW = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)
GIB = 2**30
A, B = "pvc-00000000-0000-4000-8000-00000000000a", "pvc-00000000-0000-4000-8000-00000000000b"
SNAPSHOT = SnapshotName(snapshot_id_for("snapshot-uid-1"), A, NOW, GIB)


def disk(slot: str, path: str = "") -> Disk:
    return Disk(slot, path or f"{BASE}/{slot}.img", GIB, exported=True, nqn=None, port=None)


def image(path: str) -> File:
    return File(path, ".img file", "1024.0MiB")


def directory(path: str) -> File:
    return File(path, "directory")


def volume(handle: str, name: str = "", **attributes: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name or handle},
        "spec": {"csi": {"driver": DRIVER, "volumeHandle": handle, "volumeAttributes": attributes}},
    }


def names(*, volumes: list[Any] | None = None, records: Any = (), attachments: Any = (), contents: Any = ()) -> Named:
    return named_by([volume("pvc-somebody")] if volumes is None else volumes, records, attachments, contents, DRIVER)


def found(disks: list[Disk], files: list[File], named: Named | None = None) -> dict[str, Kind]:
    return {thing.name: thing.kind for thing in unnamed(BASE, disks, files, named or names())}


def test_a_disk_with_its_file_is_one_orphan() -> None:
    assert found([disk(A)], [image(f"{BASE}/{A}.img")]) == {f"{A}.img": Kind.DISK}


def test_a_disk_with_its_subvolume_is_one_orphan() -> None:
    files = [directory(f"{BASE}/{A}"), image(f"{BASE}/{A}/disk.img")]
    assert found([disk(A, f"{BASE}/{A}/disk.img")], files) == {A: Kind.DISK}


def test_a_file_or_a_subvolume_without_a_disk_is_one() -> None:
    files = [image(f"{BASE}/old.img"), directory(f"{BASE}/{A}"), image(f"{BASE}/{A}/disk.img"), directory(f"{BASE}/{B}")]
    assert found([], files) == {"old.img": Kind.FILE, A: Kind.SUBVOLUME, B: Kind.SUBVOLUME}


def test_a_snapshot_that_no_content_names_is_one() -> None:
    files = [directory(f"{BASE}/{SNAPSHOT}"), image(f"{BASE}/{SNAPSHOT}/disk.img")]
    assert found([], files) == {str(SNAPSHOT): Kind.SNAPSHOT}


@pytest.mark.requirement("R52")
@pytest.mark.parametrize(
    "content",
    [
        {"spec": {"driver": DRIVER}, "status": {"snapshotHandle": SNAPSHOT.id}},
        {"spec": {"driver": DRIVER, "source": {"snapshotHandle": SNAPSHOT.id}}},
        {"spec": {"driver": DRIVER, "source": {"volumeHandle": A}, "volumeSnapshotRef": {"uid": "uid-1"}}},
    ],
    ids=["taken", "imported", "being taken"],
)
def test_a_snapshot_that_a_content_names_is_none(content: dict[str, Any]) -> None:
    assert found([], [directory(f"{BASE}/{SNAPSHOT}"), image(f"{BASE}/{SNAPSHOT}/disk.img")], names(contents=[content])) == {}


@pytest.mark.requirement("R52")
def test_snapshots_are_not_judged_where_nobody_can_list_their_contents() -> None:
    files = [directory(f"{BASE}/{SNAPSHOT}"), image(f"{BASE}/{SNAPSHOT}/disk.img")]
    assert found([], files, names(contents=None)) == {}


@pytest.mark.requirement("R52")
@pytest.mark.parametrize(
    "named",
    [
        names(volumes=[volume(A)]),
        names(volumes=[volume("restored", name=A)]),
        names(volumes=[volume("other", volumePath=f"{BASE}/{A}.img")]),
        names(attachments=[{"spec": {"attacher": DRIVER, "source": {"persistentVolumeName": A}}}]),
        names(contents=[{"spec": {"driver": DRIVER, "source": {"volumeHandle": A}}}]),
    ],
    ids=["volume", "volume's name", "volume's file", "attachment", "source of a snapshot"],
)
def test_what_anything_in_the_cluster_names_is_none(named: Named) -> None:
    assert found([disk(A)], [image(f"{BASE}/{A}.img")], named) == {}
    assert found([], [image(f"{BASE}/{A}.img")], named) == {}


@pytest.mark.requirement("R52")
@pytest.mark.parametrize("initialized", [None, True])
def test_a_volume_in_creation_is_none(initialized: bool | None) -> None:
    spec = Spec(
        volume_handle=A, volume_mode=VolumeMode.BLOCK, access_mode=AccessMode.READ_WRITE_MANY, capacity_bytes=GIB,
        target=Target(nqn=nqn_for(A), slot=A, file_path=f"{BASE}/{A}/disk.img"),
    )  # fmt: skip
    named = names(records=[Record.new(spec).with_status(initialized=initialized)])
    files = [directory(f"{BASE}/{A}"), image(f"{BASE}/{A}/disk.img")]
    assert found([], files, named) == {}
    assert found([disk(A, f"{BASE}/{A}/disk.img")], files, named) == {}


@pytest.mark.requirement("R52")
@pytest.mark.parametrize("slot", ["recovered", A[:32]], ids=["renamed by hand", "cut short by the box"])
@pytest.mark.parametrize("path", [f"{BASE}/{A}.img", f"{BASE}/{A}/disk.img", f"{BASE}/vms/{A}/disk.img"])
def test_the_file_of_a_named_volume_is_none_in_whatever_slot_its_disk_is(slot: str, path: str) -> None:
    files = [image(path), directory(f"{BASE}/{A}"), image(f"{BASE}/{A}/notes.txt")]
    assert found([disk(slot, path)], files, names(volumes=[volume(A)])) == {}


@pytest.mark.requirement("R52")
@pytest.mark.parametrize("spelled", ["storage-pool/metal-csi/by-hand.img", "/storage-pool//metal-csi/by-hand.img"])
def test_a_file_is_known_however_a_volume_spells_its_path(spelled: str) -> None:
    path = f"{BASE}/by-hand.img"
    assert found([disk("other", path)], [image(path)], names(volumes=[volume("x", volumePath=spelled)])) == {}


GO_SNAPSHOT = "snap-00000000-0000-5000-8000-000000000001-at-0000000001"


@pytest.mark.requirement("R52")
@pytest.mark.parametrize("contents", [None, [{"spec": {"driver": DRIVER}, "status": {"snapshotHandle": GO_SNAPSHOT}}]])
def test_a_snapshot_of_the_go_driver_is_none_while_it_is_named_or_nobody_can_tell(contents: Any) -> None:
    named, files = names(contents=contents), [image(f"{BASE}/{GO_SNAPSHOT}.img")]
    assert found([disk(GO_SNAPSHOT)], files, named) == {}
    assert found([], files, named) == {}
    assert found([disk(GO_SNAPSHOT)], files) == {f"{GO_SNAPSHOT}.img": Kind.DISK}


@pytest.mark.requirement("R52")
def test_a_disk_made_of_a_snapshots_file_is_none_so_that_no_snapshot_loses_it() -> None:
    path = f"{BASE}/{SNAPSHOT}/disk.img"
    files = [directory(f"{BASE}/{SNAPSHOT}"), image(path)]
    named = names(contents=[{"spec": {"driver": DRIVER}, "status": {"snapshotHandle": SNAPSHOT.id}}])
    assert found([disk("recovered", path)], files, named) == {}
    assert found([disk("recovered", path)], files) == {str(SNAPSHOT): Kind.SNAPSHOT}


@pytest.mark.requirement("R52")
def test_the_source_of_a_volume_in_creation_is_none() -> None:
    spec = Spec(
        volume_handle=B, volume_mode=VolumeMode.BLOCK, access_mode=AccessMode.READ_WRITE_MANY, capacity_bytes=GIB,
        content_source=ContentSource(snapshot_id=SNAPSHOT.id),
    )  # fmt: skip
    files = [directory(f"{BASE}/{SNAPSHOT}"), image(f"{BASE}/{SNAPSHOT}/disk.img")]
    assert found([], files, names(records=[Record.new(spec)])) == {}
    assert found([], files, names(records=[Record.new(spec).with_status(initialized=True)])) == {str(SNAPSHOT): Kind.SNAPSHOT}


def test_of_a_disk_whose_directory_holds_more_only_the_file_is_an_orphan() -> None:
    files = [directory(f"{BASE}/{A}"), image(f"{BASE}/{A}/disk.img"), image(f"{BASE}/{A}/mine.img")]
    assert found([disk(A, f"{BASE}/{A}/disk.img")], files) == {f"{A}/disk.img": Kind.DISK, f"{A}/mine.img": Kind.FILE}


@pytest.mark.requirement("R52")
def test_nothing_is_judged_where_the_cluster_names_no_volume_at_all() -> None:
    assert found([disk(A)], [image(f"{BASE}/{A}.img")], names(volumes=[])) == {}
    foreign = {"metadata": {"name": "x"}, "spec": {"csi": {"driver": "other", "volumeHandle": "x"}}}
    assert found([disk(A)], [image(f"{BASE}/{A}.img")], names(volumes=[foreign])) == {}


@pytest.mark.requirement("R52")
@pytest.mark.parametrize("base", ["/storage-pool/metal-csi-other", "/storage-pool", "/storage-pool/other/metal-csi"])
def test_what_lies_elsewhere_is_never_looked_at(base: str) -> None:
    files = [image(f"{base}/{A}.img"), directory(f"{base}/{B}"), directory(f"{base}/{SNAPSHOT}")]
    assert found([disk(A, f"{base}/{A}.img")], files) == {}


@pytest.mark.requirement("R52")
def test_a_file_of_which_somebody_elses_disk_is_made_is_none() -> None:
    assert found([disk("boot", "/storage-pool/boot.img")], [image("/storage-pool/boot.img")]) == {}
    assert found([disk("nixos", f"{BASE}/nixos.img")], [image(f"{BASE}/nixos.img")]) == {"nixos.img": Kind.DISK}


def test_directories_for_volumes_are_none() -> None:
    files = [directory(f"{BASE}/vms"), directory(f"{BASE}/vms/{A}"), image(f"{BASE}/vms/{A}/disk.img")]
    assert found([], files) == {f"vms/{A}": Kind.SUBVOLUME}
    assert found([], [directory(f"{BASE}/vms")]) == {}


def test_a_directory_that_holds_more_than_a_volume_is_none_but_its_files_are() -> None:
    files = [directory(f"{BASE}/{A}"), image(f"{BASE}/{A}/disk.img"), image(f"{BASE}/{A}/mine.img")]
    assert found([], files) == {f"{A}/disk.img": Kind.FILE, f"{A}/mine.img": Kind.FILE}


THING = Thing(A, Kind.SUBVOLUME, f"{BASE}/{A}")


def after(*rounds: tuple[bool, float], grace: float = 100.0) -> bool:
    """Whether the thing is an orphan after rounds in which it was seen, or not, so many seconds after the one before."""
    suspects: dict[str, Suspect] = {}
    for seen, elapsed in rounds:
        suspects = follow(suspects, [THING] if seen else [], now=NOW, elapsed=elapsed, longest=30.0)
    return A in suspects and suspects[A].observed >= grace


def test_the_grace_period_is_over_when_it_was_seen_all_the_time() -> None:
    assert not after((True, 0), *[(True, 10)] * 9)
    assert after((True, 0), *[(True, 10)] * 10)


def test_a_round_in_which_it_is_named_begins_anew() -> None:
    assert not after((True, 0), *[(True, 10)] * 9, (False, 10), *[(True, 10)] * 10)


def test_a_time_in_which_nobody_looked_proves_nothing() -> None:
    assert not after((True, 0), (True, 86_400), (True, 86_400))


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1000)), max_size=30), st.floats(1, 200))
def test_an_orphan_was_unnamed_in_every_round_of_at_least_its_grace_period(rounds: list[tuple[bool, float]], grace: float) -> None:
    if after(*rounds, grace=grace):
        run = 0.0
        for seen, elapsed in reversed(rounds):
            if not seen:
                break
            run += elapsed
        assert run >= grace - 1e-6


def test_another_thing_under_the_same_name_begins_anew() -> None:
    suspects = {A: Suspect(THING, NOW, 99.0)}
    other = Thing(A, Kind.DISK, f"{BASE}/{A}", slot=A)
    later = NOW + timedelta(seconds=1)
    assert follow(suspects, [other], now=later, elapsed=10, longest=30) == {A: Suspect(other, later)}


def test_what_a_round_cannot_judge_stays_as_it_was() -> None:
    suspects = {A: Suspect(THING, NOW, 99.0), B: Suspect(Thing(B, Kind.FILE, f"{BASE}/{B}"), NOW, 99.0)}
    assert follow(suspects, [], now=NOW, elapsed=10, longest=30, unjudged={A}) == {A: suspects[A]}


suspect_lists = st.lists(
    st.builds(
        Suspect,
        st.builds(
            Thing, st.text(min_size=1, max_size=20), st.sampled_from(Kind), st.text(max_size=20), st.text(max_size=9),
            st.text(max_size=9), st.none() | st.integers(0, 2**44), st.text(max_size=9),
        ),
        st.just(NOW), st.integers(0, 10**6).map(float), st.booleans(),
    ),
    unique_by=lambda one: one.thing.name, max_size=8,
)  # fmt: skip


@given(suspect_lists)
def test_suspects_survive_a_restart(suspects: list[Suspect]) -> None:
    by_name = {one.thing.name: one for one in suspects}
    assert decode(encode(by_name)) == by_name


def test_of_more_suspects_than_a_config_map_holds_the_oldest_are_kept() -> None:
    path = f"{BASE}/{'d' * 400}"
    suspects = {
        str(number): Suspect(Thing(str(number), Kind.FILE, f"{path}/{number}.img"), NOW + timedelta(seconds=number))
        for number in range(2_000)
    }
    text = encode(suspects)
    kept = decode(text)
    assert MOST_BYTES - 1_000 < len(text) <= MOST_BYTES
    assert list(kept) == [str(number) for number in range(len(kept))]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "x"}]', "null", '{"a": 1}'])
def test_garbage_is_no_empty_list_of_suspects(text: str) -> None:
    with pytest.raises(ValueError, match="delete it"):
        decode(text)
