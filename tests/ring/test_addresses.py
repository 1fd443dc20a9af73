"""The box may move: a publish says where it is today, unless somebody chose a place for the volume."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.ring.cluster import RECORD, Cluster
from tests.ring.driver import Shim
from tests.ring.rpc import Csi

MakeVolume = Callable[..., str]
OLD, NEW, CHOSEN = "127.0.0.1", "127.0.0.9", "127.0.0.7"


@pytest.fixture
def moved(make_shim: Callable[..., Shim]) -> Shim:
    """A driver that was told that nodes find the box elsewhere now."""
    return make_shim(extra=[f"--nvme-address={NEW}", "--nvme-port=4421"])


def place(csi: Csi, handle: str, node: str, context: dict[str, str] | None = None) -> tuple[str, str]:
    found = csi.publish(handle, node, context=context)
    return found["nvme_address"], found["nvme_port"]


@pytest.mark.requirement("R58")
def test_a_volume_that_was_made_before_the_box_moved_is_found_where_it_is_now(
    csi: Csi, moved: Shim, make_volume: MakeVolume, cluster: Cluster
) -> None:
    handle, node = make_volume(), cluster.make_node()
    context = dict(csi.create(handle).volume_context)
    assert context["nvmeAddress"] == OLD
    assert place(csi, handle, node, context) == (OLD, "4420")
    with Csi(moved.endpoint) as later:
        assert place(later, handle, node, context) == (NEW, "4421"), "a repeat, of a node that is attached already"
        csi.unpublish(handle)
        assert place(later, handle, node, context) == (NEW, "4421")


@pytest.mark.requirement("R58")
def test_an_imported_volume_of_the_go_driver_is_found_where_the_box_is_now(moved: Shim, cluster: Cluster) -> None:
    volume, node = cluster.make_static_volume(), cluster.make_node()
    with Csi(moved.endpoint) as later:
        assert place(later, volume.handle, node) == (NEW, "4421")
        later.unpublish(volume.handle)


@pytest.mark.requirement("R58")
def test_a_place_that_the_storage_class_chose_stays(moved: Shim, make_volume: MakeVolume, cluster: Cluster) -> None:
    handle = make_volume(parameters={"nvmeAddress": CHOSEN, "nvmePort": "4422"})
    with Csi(moved.endpoint) as later:
        assert place(later, handle, cluster.make_node()) == (CHOSEN, "4422")


@pytest.mark.requirement("R58")
def test_a_place_that_is_edited_on_the_record_counts_at_the_next_publish(
    csi: Csi, moved: Shim, make_volume: MakeVolume, cluster: Cluster
) -> None:
    handle, node = make_volume(), cluster.make_node()
    cluster.api.patch(RECORD, handle, {"spec": {"target": {"address": CHOSEN, "port": 4423}}})
    assert place(csi, handle, node) == (CHOSEN, "4423")
    cluster.api.patch(RECORD, handle, {"spec": {"target": {"address": None, "port": None}}})
    with Csi(moved.endpoint) as later:
        assert place(later, handle, node) == (NEW, "4421")
