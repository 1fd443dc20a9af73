"""Lists of volumes, and how much room there is for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from rds_csi.spec import csi_pb2
from tests.ring.driver import Shim
from tests.ring.rpc import GIB, RWX, Csi, Refused, mount
from tests.simulator.box import SimulatedBox
from tests.simulator.store import DEFAULT_POOL_SIZE

TIB = 2**40
POOL = 100 * GIB


@pytest.fixture(scope="module")
def small_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """A box with a pool of 100 GiB, of which 40 GiB are free."""
    with SimulatedBox(tmp_path_factory.mktemp("small")) as box:
        box.pool(size=POOL, used_elsewhere=60 * GIB)
        yield box


def volumes(csi: Csi, **asked: Any) -> tuple[list[Any], str]:
    answer = csi.call(csi.controller.ListVolumes, csi_pb2.ListVolumesRequest(**asked))
    return [entry.volume for entry in answer.entries], answer.next_token


def capacity(csi: Csi, **asked: Any) -> Any:
    return csi.call(csi.controller.GetCapacity, csi_pb2.GetCapacityRequest(**asked))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code


def test_volumes_are_listed_with_their_sizes_until_they_are_deleted(csi: Csi, make_volume: Callable[..., str]) -> None:
    made = {make_volume(size=size): size for size in (GIB, 3 * GIB)}
    listed = {volume.volume_id: volume.capacity_bytes for volume in volumes(csi)[0]}
    assert made.items() <= listed.items()
    for handle in made:
        csi.delete(handle)
    assert not made.keys() & {volume.volume_id for volume in volumes(csi)[0]}


def test_pages_of_volumes_stay_in_step_while_volumes_go(csi: Csi, make_volume: Callable[..., str]) -> None:
    made = {make_volume() for _ in range(4)}
    seen: list[str] = []
    token = ""
    while True:
        page, token = volumes(csi, max_entries=2, starting_token=token)
        assert len(page) <= 2
        seen += [volume.volume_id for volume in page]
        if not token:
            break
        csi.delete(page[-1].volume_id) if page[-1].volume_id in made else None
    assert seen == sorted(seen)
    assert made <= set(seen)


def test_a_token_that_nobody_gave_out_aborts_and_a_negative_page_is_invalid(csi: Csi) -> None:
    for token in ("invalid-token", "after:a token;"):
        assert refused(partial(volumes, csi, starting_token=token)) == "ABORTED"
    assert refused(lambda: volumes(csi, max_entries=-1)) == "INVALID_ARGUMENT"


def test_nobody_is_told_where_volumes_are_published(csi: Csi) -> None:
    assert {"LIST_VOLUMES", "GET_CAPACITY"} <= csi.capabilities()
    assert "LIST_VOLUMES_PUBLISHED_NODES" not in csi.capabilities()


@pytest.mark.requirement("R56")
@pytest.mark.parametrize(("reserve", "available"), [("5%", 35), ("10GiB", 30), ("0", 40), ("90%", 0)])
def test_the_pools_free_space_less_the_reserve_is_the_capacity(
    make_shim: Callable[..., Shim], small_box: SimulatedBox, reserve: str, available: int
) -> None:
    with Csi(make_shim(small_box, extra=[f"--pool-reserve={reserve}"]).endpoint) as csi:
        for asked in ({}, {"volume_capabilities": [RWX]}, {"parameters": {"volumePath": "/storage-pool/metal-csi/vms"}}):
            room = capacity(csi, **asked)
            assert room.available_capacity == available * GIB
            assert (room.maximum_volume_size.value, room.minimum_volume_size.value) == (available * GIB, GIB)


def test_the_largest_volume_is_one_that_can_be_made(csi: Csi, box: SimulatedBox) -> None:
    box.pool(size=64 * TIB)
    assert capacity(csi).maximum_volume_size.value == 16 * TIB
    box.pool(size=DEFAULT_POOL_SIZE)


def test_there_is_no_room_for_what_is_not_offered(csi: Csi) -> None:
    shared_filesystem = mount("MULTI_NODE_MULTI_WRITER")
    assert capacity(csi, volume_capabilities=[shared_filesystem]).available_capacity == 0


def test_a_storage_class_that_names_secrets_has_the_same_capacity(csi: Csi) -> None:
    secret = {"csi.storage.k8s.io/provisioner-secret-name": "s", "csi.storage.k8s.io/node-stage-secret-namespace": "n"}
    assert capacity(csi, parameters=secret).available_capacity > 0


def test_parameters_that_no_volume_could_have_are_refused(csi: Csi) -> None:
    assert refused(lambda: capacity(csi, parameters={"volumePath": "/elsewhere/x"})) == "INVALID_ARGUMENT"


@pytest.mark.requirement("R17", "R39")
def test_a_box_or_a_pool_that_is_away_is_no_empty_pool(
    make_shim: Callable[..., Shim], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with SimulatedBox(tmp_path_factory.mktemp("away")) as box, Csi(make_shim(box).endpoint) as csi:
        box.pool(mount_point="")
        assert refused(lambda: capacity(csi)) == "UNAVAILABLE"
        box.stop()
        csi.timeout = 5
        assert refused(lambda: capacity(csi)) in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
