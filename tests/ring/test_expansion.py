"""Volumes grow on the box to exactly what is answered, whatever breaks in between, and never while they migrate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from rds_csi.spec import csi_pb2
from tests.ring.cluster import Cluster
from tests.ring.driver import Shim
from tests.ring.rpc import GIB, RWO, Csi, Refused, at_once, code_of, mount
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

MIB, TIB = 2**20, 2**40
MakeVolume = Callable[..., str]


def refusal(call: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


@pytest.fixture
def switched(box: SimulatedBox) -> Iterator[SimulatedBox]:
    """The box; its switches are turned back afterwards."""
    yield box
    box.switch(full_pool=False, latency={})


@pytest.mark.requirement("R48")
@pytest.mark.parametrize("size", [GIB + 1, 5 * 10**9, 1536 * GIB, 3 * GIB])
def test_the_box_has_exactly_what_is_answered_and_never_less_than_was_asked(
    csi: Csi, make_volume: MakeVolume, box: SimulatedBox, cluster: Cluster, size: int
) -> None:
    handle = make_volume()
    answered, _ = csi.expand(handle, size)
    record = cluster.record(handle)
    assert record
    assert answered >= size
    assert box.disks()[handle]["size"] == record["spec"]["capacityBytes"] == answered
    assert csi.expand(handle, size) == (answered, False)


def test_a_volume_never_becomes_smaller(csi: Csi, make_volume: MakeVolume, box: SimulatedBox) -> None:
    handle = make_volume(size=4 * GIB)
    assert csi.expand(handle, 2 * GIB)[0] == box.disks()[handle]["size"] == 4 * GIB


def test_what_does_not_fit_is_out_of_range(csi: Csi, make_volume: MakeVolume) -> None:
    handle = make_volume(size=4 * GIB)
    for size, limit in ((16 * TIB + 1, 0), (2 * GIB, GIB), (GIB, 2 * GIB), (GIB + 1, GIB + 1)):
        assert code_of(lambda size=size, limit=limit: csi.expand(handle, size, limit=limit)) == "OUT_OF_RANGE"


def test_a_volume_that_nobody_knows_is_not_found(csi: Csi, make_volume: MakeVolume, box: SimulatedBox) -> None:
    assert code_of(lambda: csi.expand(f"pvc-{uuid4()}", GIB)) == "NOT_FOUND"
    handle = make_volume()
    box.run(f"/disk remove [find slot={handle}]")
    refused = refusal(lambda: csi.expand(handle, 2 * GIB))
    assert (refused.code, "no disk in slot" in refused.message) == ("NOT_FOUND", True)


@pytest.mark.parametrize("request_", [{"volume_id": ""}, {"volume_id": "a;b"}, {"capacity_range": None}], ids=str)
def test_a_request_that_names_no_volume_or_size_is_invalid(csi: Csi, request_: dict[str, object]) -> None:
    whole: dict[str, object] = {"volume_id": f"pvc-{uuid4()}", "capacity_range": csi_pb2.CapacityRange(required_bytes=GIB)}
    request = csi_pb2.ControllerExpandVolumeRequest(**{**whole, **request_})  # type: ignore[arg-type]
    assert code_of(lambda: csi.call(csi.controller.ControllerExpandVolume, request)) == "INVALID_ARGUMENT"


@pytest.mark.requirement("R32")
def test_a_migrating_volume_is_expanded_when_the_migration_is_over(
    csi: Csi, make_volume: MakeVolume, cluster: Cluster, box: SimulatedBox
) -> None:
    handle, source, target = make_volume(), cluster.make_node("source"), cluster.make_node("target")
    csi.publish(handle, source)
    csi.publish(handle, target)
    refused = refusal(lambda: csi.expand(handle, 2 * GIB))
    assert (refused.code, source in refused.message, target in refused.message) == ("ABORTED", True, True)
    assert box.disks()[handle]["size"] == GIB
    csi.unpublish(handle, source)
    assert csi.expand(handle, 2 * GIB) == (2 * GIB, True)


@pytest.mark.requirement("R13", "R32")
def test_a_second_node_waits_until_the_volume_has_grown_through_another_replica_too(
    csi: Csi, make_volume: MakeVolume, cluster: Cluster, switched: SimulatedBox, make_shim: Callable[..., Shim]
) -> None:
    handle, source, target = make_volume(), cluster.make_node("source"), cluster.make_node("target")
    csi.publish(handle, source)
    with Csi(make_shim().endpoint) as replica, ThreadPoolExecutor(1) as pool:
        switched.switch(latency={"/disk set": 3.0})
        growing = pool.submit(csi.expand, handle, 2 * GIB)
        eventually("the expansion is marked", lambda: (cluster.record(handle) or {}).get("status", {}).get("expansion"))
        refused = refusal(lambda: replica.publish(handle, target))
        assert (refused.code, "is being expanded" in refused.message) == ("UNAVAILABLE", True)
        assert growing.result() == (2 * GIB, True)
        assert replica.publish_code(handle, target) == "OK"


def test_the_node_follows_a_filesystem_always_and_a_device_while_a_node_has_it(
    csi: Csi, make_volume: MakeVolume, cluster: Cluster
) -> None:
    filesystem, device = make_volume(capability=mount()), make_volume(capability=RWO)
    for _ in range(2):
        assert csi.expand(filesystem, 2 * GIB) == (2 * GIB, True)
        assert csi.expand(device, 2 * GIB) == (2 * GIB, False)
    csi.publish(device, cluster.make_node(), RWO)
    assert csi.expand(device, 2 * GIB) == (2 * GIB, True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_link_is_answered_unavailable_and_the_retry_finishes(
    csi: Csi, make_volume: MakeVolume, box: SimulatedBox, cluster: Cluster, when: str
) -> None:
    handle = make_volume()
    box.drop_link(when, "^/disk set")

    def grown() -> int | None:
        try:
            return csi.expand(handle, 3 * GIB)[0]
        except Refused as error:
            if error.code != "UNAVAILABLE":
                raise
            return None

    assert eventually("the volume has grown", grown) == 3 * GIB
    record = cluster.record(handle)
    assert record
    assert (record["spec"]["capacityBytes"], box.disks()[handle]["size"]) == (3 * GIB, 3 * GIB)


def test_a_full_pool_changes_nothing_and_is_said(
    csi: Csi, make_volume: MakeVolume, switched: SimulatedBox, cluster: Cluster
) -> None:
    handle = make_volume()
    switched.switch(full_pool=True)
    assert code_of(lambda: csi.expand(handle, 3 * GIB)) == "RESOURCE_EXHAUSTED"
    record = cluster.record(handle)
    assert record
    assert (record["spec"]["capacityBytes"], "expansion" in record["status"]) == (GIB, False)


@pytest.mark.requirement("R17")
def test_an_expansion_without_a_box_is_unavailable(
    make_shim: Callable[..., Shim], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with SimulatedBox(tmp_path_factory.mktemp("away")) as box, Csi(make_shim(box).endpoint) as csi:
        handle = csi.create(f"pvc-{uuid4()}").volume_id
        box.stop()
        assert code_of(lambda: csi.expand(handle, 2 * GIB, timeout=3)) in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        box.start()
        assert eventually("the volume has grown", lambda: code_of(lambda: csi.expand(handle, 2 * GIB)) == "OK")
        csi.delete(handle)


def test_a_shim_that_is_killed_while_a_volume_grows_leaves_a_retry_that_finishes(
    make_shim: Callable[..., Shim], cluster: Cluster, switched: SimulatedBox
) -> None:
    shim = make_shim()
    with Csi(shim.endpoint) as csi, ThreadPoolExecutor(1) as pool:
        handle = csi.create(f"pvc-{uuid4()}").volume_id
        switched.switch(latency={"/disk set": 2.0})
        lost = pool.submit(code_of, lambda: csi.expand(handle, 2 * GIB, timeout=10))
        eventually("the expansion is marked", lambda: (cluster.record(handle) or {}).get("status", {}).get("expansion"))
        shim.kill()
        assert lost.result() == "UNAVAILABLE"
        switched.switch(latency={})
        shim.start()
        assert csi.expand(handle, 2 * GIB)[0] == 2 * GIB
        csi.delete(handle)


def resizes(box: SimulatedBox, handle: str) -> list[str]:
    """Return the commands that made the disk larger, or tried to."""
    return [line for line in box.received("/disk set") if handle in line and "file-size" in line]


@pytest.mark.requirement("R18")
def test_a_first_node_and_a_repeat_wait_for_no_expansion(
    csi: Csi, make_volume: MakeVolume, cluster: Cluster, switched: SimulatedBox
) -> None:
    handle, node = make_volume(), cluster.make_node()
    with ThreadPoolExecutor(1) as pool:
        switched.switch(latency={"/disk set": 3.0})
        growing = pool.submit(csi.expand, handle, 2 * GIB)
        eventually("the box is at work", lambda: resizes(switched, handle))
        assert [csi.publish_code(handle, node) for _ in range(2)] == ["OK", "OK"]
        assert not growing.done()
        assert growing.result() == (2 * GIB, True), "the node that came meanwhile reads the size again"


@pytest.mark.requirement("R13", "R48")
def test_two_replicas_that_are_asked_for_two_sizes_never_make_a_volume_smaller(
    csi: Csi, make_volume: MakeVolume, cluster: Cluster, switched: SimulatedBox, make_shim: Callable[..., Shim]
) -> None:
    handle = make_volume()
    with Csi(make_shim().endpoint) as replica, ThreadPoolExecutor(1) as pool:
        switched.switch(latency={"/disk set": 3.0})
        growing = pool.submit(csi.expand, handle, 3 * GIB)
        eventually("the box is at work", lambda: resizes(switched, handle))
        refused = refusal(lambda: replica.expand(handle, 2 * GIB))
        assert (refused.code, f"{3 * GIB} bytes" in refused.message) == ("ABORTED", True)
        assert code_of(lambda: csi.expand(handle, 3 * GIB)) == "ABORTED", "one call per volume and process"
        assert growing.result()[0] == 3 * GIB
        switched.switch(latency={})
        assert replica.expand(handle, 2 * GIB)[0] == 3 * GIB
        sizes = [2 * GIB, 4 * GIB, 5 * GIB, 6 * GIB]
        codes = at_once([lambda by=by, size=size: by.expand(handle, size) for by in (csi, replica) for size in sizes])
        assert set(codes) <= {"OK", "ABORTED"}
        assert replica.expand(handle, 6 * GIB)[0] == 6 * GIB
    sent = [int(line.rpartition("=")[2].removesuffix("G")) for line in resizes(switched, handle)]
    assert sent == sorted(sent)
    record = cluster.record(handle)
    assert record
    assert (record["spec"]["capacityBytes"], switched.disks()[handle]["size"]) == (6 * GIB, 6 * GIB)
    assert "expansion" not in record["status"]


@pytest.mark.requirement("R32")
def test_a_driver_that_dies_while_a_volume_grows_holds_up_no_migration_for_long(
    csi: Csi, make_volume: MakeVolume, make_shim: Callable[..., Shim], cluster: Cluster, switched: SimulatedBox
) -> None:
    handle, source, target = make_volume(), cluster.make_node("source"), cluster.make_node("target")
    csi.publish(handle, source)
    doomed = make_shim()
    with Csi(doomed.endpoint) as by, ThreadPoolExecutor(1) as pool:
        switched.switch(latency={"/disk set": 2.0})
        lost = pool.submit(code_of, lambda: by.expand(handle, 2 * GIB, timeout=8))
        eventually("the box is at work", lambda: resizes(switched, handle))
        doomed.kill()
        assert lost.result() == "UNAVAILABLE"
    assert csi.publish_code(handle, target) == "UNAVAILABLE"
    eventually("the mark is void", lambda: csi.publish_code(handle, target) == "OK")
    csi.unpublish(handle, target)
    assert csi.expand(handle, 2 * GIB) == (2 * GIB, True)


def test_the_size_of_an_imported_volume_is_the_boxs_not_its_persistent_volumes(
    csi: Csi, make_volume: MakeVolume, cluster: Cluster, box: SimulatedBox
) -> None:
    handle = make_volume(size=3 * GIB)
    cluster.api.patch("VolumeAttachmentRecord", handle, {"spec": {"capacityBytes": 4 * GIB}})
    assert csi.expand(handle, 2 * GIB)[0] == 3 * GIB
    record = cluster.record(handle)
    assert record
    assert record["spec"]["capacityBytes"] == box.disks()[handle]["size"] == 3 * GIB
