"""Names of volumes and snapshots on the box."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from rds_csi.routeros.commands import FilePath
from rds_records.volume_layout import SnapshotName, is_snapshot_id, snapshot_id_for, subvolume_of, volume_file_path

HANDLE = "pvc-0f923194-922a-5dd8-b376-c2c6ccb56dd8"
BASE = "/storage-pool/metal-csi"

handles = st.one_of(
    st.uuids().map(lambda one: f"pvc-{one}"), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,126}[A-Za-z0-9]", fullmatch=True)
)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001 the strategy wants them so
    lambda one: one.replace(microsecond=0)
)


@given(st.text(max_size=60), handles, moments, st.integers(1, 2**44))
def test_a_snapshots_name_says_id_source_time_and_exact_size(name: str, handle: str, time: datetime, size: int) -> None:
    snapshot = SnapshotName(snapshot_id_for(name), handle, time, size)
    assert SnapshotName.parse(str(snapshot)) == snapshot


@given(st.text(max_size=60), handles, moments, st.integers(1, 2**44))
def test_a_snapshots_name_is_one_component_of_a_path_on_the_box(name: str, handle: str, time: datetime, size: int) -> None:
    snapshot = SnapshotName(snapshot_id_for(name), handle, time, size)
    assert FilePath(BASE).child(str(snapshot)).is_below(FilePath(BASE))


@given(st.text(max_size=80))
def test_any_other_name_is_no_snapshots(name: str) -> None:
    assert SnapshotName.parse(name) is None


def test_a_time_that_does_not_exist_is_no_snapshots() -> None:
    assert SnapshotName.parse(f"{snapshot_id_for('a')}_{HANDLE}_20261399T000000Z_1073741824") is None


def test_the_snapshot_id_of_a_name_is_the_same_for_every_try() -> None:
    assert snapshot_id_for("snapshot-1") == snapshot_id_for("snapshot-1")
    assert snapshot_id_for("snapshot-1") != snapshot_id_for("snapshot-2")
    assert is_snapshot_id(snapshot_id_for("snapshot-1"))


def test_the_go_drivers_snapshot_id_is_none_of_ours() -> None:
    assert not is_snapshot_id(f"{snapshot_id_for('a')}-at-0f923194ab")


def test_a_volume_with_a_subvolume_is_recognised_by_its_file() -> None:
    assert subvolume_of(volume_file_path(BASE, HANDLE, subvolume=True), HANDLE) == f"{BASE}/{HANDLE}"


def test_a_volume_of_the_go_driver_has_no_subvolume() -> None:
    assert volume_file_path(BASE, HANDLE, subvolume=False) == f"{BASE}/{HANDLE}.img"
    assert subvolume_of(f"{BASE}/{HANDLE}.img", HANDLE) is None


def test_a_file_in_another_volumes_subvolume_is_not_this_volumes() -> None:
    assert subvolume_of(f"{BASE}/pvc-other/disk.img", HANDLE) is None
