from __future__ import annotations

import pytest

from rds_kubectl.resolving import NotOneVolume, resolve
from rds_kubectl.world import VOLUMES, Trouble, World, volumes_of_driver
from rds_records.names import record_name
from rds_records.record import ObjectReference
from tests.unit.kubectl.cluster_objects import CLAIM, volume, world
from tests.unit.records.volumes import HANDLE, fresh


def meant(one: World, name: str, namespace: str = "default") -> str:
    return resolve(volumes_of_driver(one), name, namespace, one).handle


@pytest.fixture
def two() -> World:
    other = ObjectReference(namespace="other", name=CLAIM.name)
    return world(volumes=(volume("Vol-1", name="static-1"), volume("vol-2", claim=other)))


@pytest.mark.parametrize("name", ["Vol-1", "static-1", "vms/root"])
def test_a_volume_is_found_by_handle_persistent_volume_and_claim(two: World, name: str) -> None:
    assert meant(two, name) == "Vol-1"


def test_a_claim_without_namespace_is_that_of_the_namespace_that_counts(two: World) -> None:
    assert (meant(two, "root", "vms"), meant(two, "root", "other")) == ("Vol-1", "vol-2")
    with pytest.raises(NotOneVolume, match="claim in namespace default"):
        meant(two, "root")


def test_a_volume_is_found_by_its_record_also_where_that_is_named_otherwise() -> None:
    record = fresh(volume_handle="Vol-9")
    record = record.replace(metadata=record.metadata.replace(name=record_name("Vol-9")))
    assert meant(world(record, volumes=()), record_name("Vol-9")) == "Vol-9"


def test_a_name_of_two_volumes_names_neither() -> None:
    one = world(volumes=(volume("vol-1", name="vol-2"), volume("vol-2", name="static", claim=None)))
    with pytest.raises(NotOneVolume, match=r"vms/root \(vol-1\) and vol-2 \(vol-2\): name one by"):
        meant(one, "vol-2")


def test_what_was_not_read_is_not_said_to_be_absent() -> None:
    with pytest.raises(NotOneVolume, match="may be there all the same"):
        meant(world(fresh(), volumes=None, troubles=(Trouble(VOLUMES, "forbidden"),)), "static-1")


def test_a_volume_that_nobody_knows_is_told_with_where_to_look() -> None:
    with pytest.raises(NotOneVolume, match="kubectl rds status"):
        meant(world(fresh()), f"{HANDLE}x")
