"""Who may use a volume: every rule asked through CSI, and what the record says afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from tests.ring.cluster import RECORD, Cluster, StaticVolume, attachment_name
from tests.ring.driver import Operator, Shim
from tests.ring.history import nodes_of, version_now, versions
from tests.ring.rpc import RWO, RWX, Csi, Refused, block, code_of, mount
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

MakeVolume = Callable[..., str]
MakeShim = Callable[..., Shim]

NODE_FINALIZER = "external-attacher/rds-csi-srvlab-io"


@pytest.fixture
def nodes(cluster: Cluster) -> tuple[str, str, str, str]:
    """Nodes A, B, C and D."""
    return cluster.make_node("a"), cluster.make_node("b"), cluster.make_node("c"), cluster.make_node("d")


def nodes_in(cluster: Cluster, handle: str) -> list[str]:
    """Return the nodes that the record names, the older attachment first."""
    record = cluster.record(handle)
    return nodes_of(record) if record else []


def refusal(call: Callable[[], object]) -> Refused:
    """Return with what a call is refused."""
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def attached_by_go_driver(cluster: Cluster, volume: StaticVolume, node: str, *, attached: bool = True) -> None:
    """Leave a VolumeAttachment as csi-attacher leaves it, attached or about to be, with no record to it."""
    name = cluster.make_attachment(volume.pv, volume.handle, node)
    begun = {"finalizers": [NODE_FINALIZER], "annotations": {"csi.alpha.kubernetes.io/node-id": node}}
    cluster.api.patch("VolumeAttachment", name, {"metadata": begun})
    if attached:
        cluster.api.patch("VolumeAttachment", name, {"status": {"attached": True}}, subresource="status")


def next_second() -> None:
    """Wait until whatever is created next has a later creationTimestamp."""
    now = int(time.time())
    eventually("the next second", lambda: int(time.time()) > now)


# One node, two nodes, no third


def test_a_publish_answers_where_the_volume_is(csi: Csi, make_volume: MakeVolume, nodes: tuple[str, ...]) -> None:
    handle = make_volume()
    assert csi.publish(handle, nodes[0]) == {
        "nvme_address": "127.0.0.1",
        "nvme_port": "4420",
        "nvme_nqn": f"nqn.2000-02.com.mikrotik:{handle}",
        "fs_type": "",
    }


def test_a_repeated_publish_writes_nothing(csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]) -> None:
    handle = make_volume()
    first = csi.publish(handle, nodes[0])
    before = cluster.record(handle)
    assert [csi.publish(handle, nodes[0]) for _ in range(3)] == [first] * 3
    assert cluster.record(handle) == before


@pytest.mark.parametrize("again", [block("SINGLE_NODE_MULTI_WRITER"), RWO], ids=["multi writer", "writer"])
def test_the_same_class_under_another_name_is_the_same(
    csi: Csi, make_volume: MakeVolume, nodes: tuple[str, ...], again: Any
) -> None:
    handle = make_volume(capability=RWO)
    csi.publish(handle, nodes[0], RWO)
    assert csi.publish_code(handle, nodes[0], again) == "OK"


def test_a_second_node_opens_a_migration_and_a_third_waits(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, c, _ = nodes
    handle = make_volume()
    csi.publish(handle, a)
    csi.publish(handle, b)
    status = cluster.wait_phase(handle, "Migrating")["status"]
    assert (status["migration"]["sourceNode"], status["migration"]["targetNode"]) == (a, b)
    no = refusal(lambda: csi.publish(handle, c))
    assert no.code == "FAILED_PRECONDITION"
    for fact in (handle, a, b, c, status["migration"]["deadlineTime"][:16]):
        assert fact in no.message
    csi.unpublish(handle, a)
    assert csi.publish_code(handle, c) == "OK"
    assert nodes_in(cluster, handle) == [b, c]


def test_a_node_that_does_not_exist_is_not_found(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    handle = make_volume()
    assert csi.publish_code(handle, cluster.name("nobody")) == "NOT_FOUND"
    assert nodes_in(cluster, handle) == []


def test_a_volume_that_does_not_exist_is_not_found(csi: Csi, nodes: tuple[str, ...]) -> None:
    handle = f"pvc-{uuid4()}"
    assert csi.publish_code(handle, nodes[0]) == "NOT_FOUND"
    assert code_of(lambda: csi.unpublish(handle, nodes[0])) == "OK"


def test_the_policy_kubevirt_refuses_a_second_node_where_there_is_no_kubevirt_and_says_what_to_do(
    csi: Csi, cluster: Cluster, nodes: tuple[str, ...]
) -> None:
    a, b, *_ = nodes
    handle = cluster.make_static_volume().handle
    csi.publish(handle, a)
    no = refusal(lambda: csi.publish(handle, b))
    assert no.code == "FAILED_PRECONDITION"
    for fact in (handle, a, b, "KubeVirt", "dualAttachPolicy: AnyTwoNodes"):
        assert fact in no.message
    assert nodes_in(cluster, handle) == [a]
    cluster.patch_record(handle, {"dualAttachPolicy": "AnyTwoNodes"})
    assert csi.publish_code(handle, b) == "OK"


# R28


@pytest.mark.requirement("R28")
@pytest.mark.parametrize("capability", [RWO, mount()], ids=["block", "mount"])
def test_an_attachment_that_was_answered_ok_is_never_taken_by_another_node(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...], capability: Any
) -> None:
    a, b, c, _ = nodes
    handle = make_volume(capability=capability)
    csi.publish(handle, a, capability)
    csi.unpublish(handle, a)
    csi.publish(handle, b, capability)
    no = refusal(lambda: csi.publish(handle, c, capability))
    assert (no.code, nodes_in(cluster, handle)) == ("FAILED_PRECONDITION", [b])
    assert b in no.message


@pytest.mark.requirement("R28")
def test_nor_is_it_right_after_the_earlier_node_was_deleted(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, c, _ = nodes
    handle = make_volume(capability=RWO)
    csi.publish(handle, a, RWO)
    cluster.delete_node(a)
    assert csi.publish_code(handle, b, RWO) == "FAILED_PRECONDITION", "A was never detached"
    csi.unpublish(handle, a)
    csi.publish(handle, b, RWO)
    assert csi.publish_code(handle, c, RWO) == "FAILED_PRECONDITION"
    assert nodes_in(cluster, handle) == [b]


# R29


@pytest.mark.requirement("R29")
@pytest.mark.parametrize("mode", ["MULTI_NODE_MULTI_WRITER", "MULTI_NODE_SINGLE_WRITER", "MULTI_NODE_READER_ONLY", "UNKNOWN"])
def test_a_filesystem_for_several_nodes_is_an_invalid_argument(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...], mode: str
) -> None:
    provisioned = make_volume(capability=mount())
    patched = cluster.make_static_volume(volume_mode="Filesystem", bound=False).handle
    for handle in (provisioned, patched):
        assert csi.publish_code(handle, nodes[0], mount(mode)) == "INVALID_ARGUMENT"
        assert nodes_in(cluster, handle) == []


@pytest.mark.requirement("R29")
@pytest.mark.parametrize("mode", ["MULTI_NODE_SINGLE_WRITER", "UNKNOWN"])
def test_a_mode_that_is_not_offered_is_an_invalid_argument(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...], mode: str
) -> None:
    handle = make_volume()
    assert csi.publish_code(handle, nodes[0], block(mode)) == "INVALID_ARGUMENT"
    assert nodes_in(cluster, handle) == []


@pytest.mark.requirement("R29")
@pytest.mark.parametrize(("first", "second"), [(RWO, RWX), (RWX, RWO), (RWO, RWO)], ids=["RWO-RWX", "RWX-RWO", "RWO-RWO"])
def test_two_nodes_need_a_multi_node_mode_on_either_side(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...], first: Any, second: Any
) -> None:
    a, b, *_ = nodes
    handle = make_volume()
    csi.publish(handle, a, first)
    assert csi.publish_code(handle, b, second) == "FAILED_PRECONDITION"
    assert nodes_in(cluster, handle) == [a]


@pytest.mark.requirement("R29")
@pytest.mark.parametrize(("first", "second"), [(RWO, RWX), (RWX, RWO)], ids=["RWO-RWX", "RWX-RWO"])
def test_the_same_node_with_another_mode_already_exists(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...], first: Any, second: Any
) -> None:
    handle = make_volume()
    csi.publish(handle, nodes[0], first)
    assert csi.publish_code(handle, nodes[0], second) == "ALREADY_EXISTS"
    assert nodes_in(cluster, handle) == [nodes[0]]


@pytest.mark.requirement("R29")
def test_block_and_filesystem_do_not_mix(csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]) -> None:
    handle = make_volume(capability=RWO)
    assert csi.publish_code(handle, nodes[0], mount()) == "INVALID_ARGUMENT"
    csi.publish(handle, nodes[0], RWO)
    assert csi.publish_code(handle, nodes[0], mount()) == "ALREADY_EXISTS"


# R30


@pytest.mark.requirement("R30")
def test_an_unpublish_without_a_node_detaches_all(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, c, _ = nodes
    handle = make_volume()
    csi.publish(handle, a)
    csi.publish(handle, b)
    csi.unpublish(handle)
    assert nodes_in(cluster, handle) == []
    assert csi.publish_code(handle, c, RWO) == "OK"


def test_an_unpublish_of_a_node_that_was_never_attached_is_fine(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, *_ = nodes
    handle = make_volume()
    csi.publish(handle, a)
    csi.unpublish(handle, b)
    assert nodes_in(cluster, handle) == [a]


def test_an_unpublish_while_the_volume_attachment_is_wanted_is_late(csi: Csi, cluster: Cluster, nodes: tuple[str, ...]) -> None:
    volume = cluster.make_static_volume(bound=False)
    attached_by_go_driver(cluster, volume, nodes[0])
    csi.publish(volume.handle, nodes[0])
    no = refusal(lambda: csi.unpublish(volume.handle, nodes[0]))
    assert (no.code, nodes_in(cluster, volume.handle)) == ("ABORTED", [nodes[0]])
    cluster.delete_attachment(volume.handle, nodes[0])
    csi.unpublish(volume.handle, nodes[0])
    assert nodes_in(cluster, volume.handle) == []


# Refusals


def test_refusals_are_noted_once_a_minute_and_forgotten_with_the_unpublish(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, *_ = nodes
    handle = make_volume(capability=RWO)
    csi.publish(handle, a, RWO)
    since = version_now(cluster.api)
    messages = {refusal(lambda: csi.publish(handle, b, RWO)).message for _ in range(30)}
    assert len(list(versions(cluster.api, handle, since))) == 1
    record = cluster.record(handle)
    assert record
    [noted] = record["status"]["refusals"]
    assert (noted["nodeName"], noted["count"], {noted["message"]}) == (b, 1, messages)
    csi.unpublish(handle, b)
    record = cluster.record(handle)
    assert record
    assert (record["status"]["refusals"], nodes_of(record)) == ([], [a])


def test_refusals_of_many_nodes_are_bounded(csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]) -> None:
    handle = make_volume(capability=RWO)
    csi.publish(handle, nodes[0], RWO)
    for number in range(6):
        assert csi.publish_code(handle, cluster.make_node(f"refused{number}"), RWO) == "FAILED_PRECONDITION"
    record = cluster.record(handle)
    assert record
    assert len(record["status"]["refusals"]) == 4


# What the Go driver left


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("restarted", [False, True], ids=["at first publish", "at start"])
def test_a_volume_is_known_by_its_handle_and_not_by_the_name_of_its_persistent_volume(
    csi: Csi, cluster: Cluster, make_shim: MakeShim, nodes: tuple[str, ...], restarted: bool
) -> None:
    a, b, *_ = nodes
    volume = cluster.make_static_volume(pv=cluster.name("restored-db"), access_mode="ReadWriteOnce", bound=False)
    assert volume.pv != volume.handle
    attached_by_go_driver(cluster, volume, a)
    if restarted:
        shim = make_shim()
        cluster.wait_nodes(volume.handle, [a])
        with Csi(shim.endpoint) as other:
            assert other.publish_code(volume.handle, b, RWO) == "FAILED_PRECONDITION"
    no = refusal(lambda: csi.publish(volume.handle, b, RWO))
    assert (no.code, nodes_in(cluster, volume.handle)) == ("FAILED_PRECONDITION", [a])
    assert a in no.message
    assert csi.publish_code(volume.handle, a, RWO) == "OK"


@pytest.mark.requirement("R23")
def test_an_attachment_outlives_the_shim_that_made_it(
    cluster: Cluster, make_shim: MakeShim, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, *_ = nodes
    shim = make_shim()
    with Csi(shim.endpoint) as csi:
        handle = make_volume(capability=RWO)
        csi.publish(handle, a, RWO)
        shim.restart()
        assert csi.publish_code(handle, b, RWO) == "FAILED_PRECONDITION"


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("restarted", [False, True], ids=["at first publish", "at start"])
def test_three_nodes_that_are_found_attached_are_all_kept_and_no_further_one_is_admitted(
    csi: Csi, cluster: Cluster, make_shim: MakeShim, nodes: tuple[str, ...], restarted: bool
) -> None:
    *three, d = nodes
    volume = cluster.make_static_volume(attributes={"dualAttachPolicy": "AnyTwoNodes"}, bound=False)
    for node in three:
        attached_by_go_driver(cluster, volume, node)
    if restarted:
        make_shim()
        cluster.wait_nodes(volume.handle, three)
    assert csi.publish_code(volume.handle, d) == "FAILED_PRECONDITION"
    record = cluster.wait_nodes(volume.handle, three)
    assert record["status"]["overAttached"] is True
    cluster.delete_attachment(volume.handle, three[0])
    cluster.api.patch("VolumeAttachment", attachment_name(volume.handle, three[0]), {"metadata": {"finalizers": None}})
    csi.unpublish(volume.handle, three[0])
    assert csi.publish_code(volume.handle, d) == "FAILED_PRECONDITION"
    assert "overAttached" not in cluster.wait_phase(volume.handle, "Migrating")["status"]


@pytest.mark.requirement("R24")
def test_an_attach_that_had_begun_counts_as_a_holder(csi: Csi, cluster: Cluster, nodes: tuple[str, ...]) -> None:
    a, b, *_ = nodes
    volume = cluster.make_static_volume(access_mode="ReadWriteOnce", bound=False)
    attached_by_go_driver(cluster, volume, a, attached=False)
    assert csi.publish_code(volume.handle, b, RWO) == "FAILED_PRECONDITION"
    assert nodes_in(cluster, volume.handle) == [a]


@pytest.mark.requirement("R5")
def test_the_older_attachment_is_the_source_whatever_the_attachments_are_called(
    cluster: Cluster, make_shim: MakeShim, nodes: tuple[str, ...]
) -> None:
    older, younger, *_ = nodes

    def volume_whose_older_attachment_sorts(first: bool) -> StaticVolume:
        handles = (f"pvc-{uuid4()}" for _ in count())
        fitting = (name for name in handles if (attachment_name(name, older) < attachment_name(name, younger)) is first)
        return cluster.make_static_volume(handle=next(fitting), bound=False)

    volumes = [volume_whose_older_attachment_sorts(first) for first in (True, False)]
    for node in (older, younger):
        for volume in volumes:
            attached_by_go_driver(cluster, volume, node)
        next_second()
    make_shim()
    for volume in volumes:
        window = cluster.wait_phase(volume.handle, "Migrating")["status"]["migration"]
        assert (window["sourceNode"], window["targetNode"], window["origin"]) == (older, younger, "Imported")


def test_a_volume_that_is_on_its_way_out_gets_no_record_when_a_shim_starts(
    cluster: Cluster, make_shim: MakeShim, nodes: tuple[str, ...]
) -> None:
    released, volume = cluster.make_static_volume(), cluster.make_static_volume(bound=False)
    cluster.delete_claim(released.claim)

    def is_released() -> bool:
        return bool(cluster.api.get("PersistentVolume", released.pv)["status"]["phase"] == "Released")

    eventually("the claim is gone", is_released)
    shim = make_shim()
    cluster.wait_phase(volume.handle, "Detached")
    eventually("the shim has compared everything", lambda: "records compared with VolumeAttachments" in shim.output())
    assert cluster.record(released.handle) is None


@pytest.mark.requirement("R24")
def test_a_volume_that_cannot_be_recorded_keeps_no_other_from_its_import(
    cluster: Cluster, make_shim: MakeShim, nodes: tuple[str, ...]
) -> None:
    cluster.make_static_volume(attributes={"nqn": "no NQN at all"}, bound=False)
    cluster.make_static_volume(handle=f"not.ours.{uuid4()}", bound=False)
    volume = cluster.make_static_volume(bound=False)
    attached_by_go_driver(cluster, volume, nodes[0])
    make_shim()
    cluster.wait_nodes(volume.handle, [nodes[0]])


# Deletion


@pytest.mark.requirement("R52")
def test_a_file_outside_the_base_path_is_not_removed(csi: Csi, cluster: Cluster, box: SimulatedBox) -> None:
    volume = cluster.make_static_volume(attributes={"volumePath": "/other-pool/somebody/else.img"}, bound=False)
    before = box.received("/disk remove") + box.received("/file remove")
    with pytest.raises(Refused, match="lies outside") as refusal:
        csi.delete(volume.handle)
    assert refusal.value.code == "FAILED_PRECONDITION"
    assert box.received("/disk remove") + box.received("/file remove") == before


@pytest.mark.requirement("R32")
def test_a_volume_that_is_attached_twice_is_not_deleted_and_detached_it_goes_without_a_trace(
    csi: Csi, cluster: Cluster, box: SimulatedBox, make_operator: Callable[..., Operator], nodes: tuple[str, ...]
) -> None:
    a, b, *_ = nodes
    handle = csi.create(f"pvc-{uuid4()}").volume_id
    csi.publish(handle, a)
    csi.publish(handle, b)
    no = refusal(lambda: csi.delete(handle))
    assert no.code == "FAILED_PRECONDITION"
    assert a in no.message
    assert b in no.message
    csi.unpublish(handle, a)
    assert code_of(lambda: csi.delete(handle)) == "FAILED_PRECONDITION"
    assert handle in box.disks()
    csi.unpublish(handle, b)
    csi.delete(handle)
    assert handle not in box.disks()
    assert not [name for name in box.files() if handle in name]
    record = cluster.record(handle)
    assert record, "the migration is not reported yet"
    assert record["metadata"]["deletionTimestamp"]
    assert record["status"]["outbox"]
    assert code_of(lambda: csi.delete(handle)) == "OK"
    assert csi.publish_code(handle, a) == "FAILED_PRECONDITION", "it is being deleted"
    make_operator()
    eventually("the record is gone", lambda: cluster.record(handle) is None)
    assert code_of(lambda: csi.delete(handle)) == "OK"
    assert csi.publish_code(handle, a) == "NOT_FOUND"


@pytest.mark.requirement("R32")
def test_a_volume_that_never_migrated_leaves_nothing_without_an_operator(
    csi: Csi, cluster: Cluster, box: SimulatedBox, nodes: tuple[str, ...]
) -> None:
    handle = csi.create(f"pvc-{uuid4()}", capability=RWO).volume_id
    csi.publish(handle, nodes[0], RWO)
    csi.unpublish(handle, nodes[0])
    csi.delete(handle)
    assert cluster.record(handle) is None
    assert handle not in box.disks()


def test_a_record_that_an_admin_deletes_while_a_node_is_attached_goes_on_working(
    csi: Csi, cluster: Cluster, make_volume: MakeVolume, nodes: tuple[str, ...]
) -> None:
    a, b, c, _ = nodes
    handle = make_volume()
    csi.publish(handle, a)
    cluster.api.delete(RECORD, handle)
    assert csi.publish_code(handle, a) == "OK"
    assert csi.publish_code(handle, b) == "OK"
    assert csi.publish_code(handle, c) == "FAILED_PRECONDITION"
    csi.unpublish(handle, a)
    assert nodes_in(cluster, handle) == [b]
    assert cluster.wait_phase(handle, "Attached")["metadata"]["deletionTimestamp"]
    assert code_of(lambda: csi.create(handle)) == "ABORTED"


# R31a

FLAGS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "host key not checked": ("--rds-insecure-skip-verify", "--rds-host-key="),
    "no metrics, text logs": ("--metrics-address=none", "--log-format=text", "--log-level=error"),
    "short slots, addresses": ("--slot-names=short", "--nvme-address=127.0.0.9", "--nvme-port=4421"),
    "everything": ("--rds-insecure-skip-verify", "--metrics-address=none", "--slot-names=short", "--log-level=debug"),
}


def answers(csi: Csi, cluster: Cluster, nodes: tuple[str, ...], make: Callable[..., str]) -> Iterator[tuple[str, str]]:
    """Ask everything that an attach can be asked, and yield what was asked and answered."""
    a, b, c, _ = nodes
    shared, single, other, mounted = make(), make(capability=RWO), make(parameters={}), make(capability=mount())
    calls: list[tuple[str, Callable[[], object]]] = [
        ("first node", lambda: csi.publish(shared, a)),
        ("again", lambda: csi.publish(shared, a)),
        ("again, otherwise", lambda: csi.publish(shared, a, RWO)),
        ("second node", lambda: csi.publish(shared, b)),
        ("third node", lambda: csi.publish(shared, c)),
        ("deleted while attached", lambda: csi.delete(shared)),
        ("source leaves", lambda: csi.unpublish(shared, a)),
        ("third node then", lambda: csi.publish(shared, c)),
        ("all leave", lambda: csi.unpublish(shared)),
        ("no such node", lambda: csi.publish(single, cluster.name("nobody"), RWO)),
        ("single", lambda: csi.publish(single, a, RWO)),
        ("single elsewhere", lambda: csi.publish(single, b, RWO)),
        ("single shared elsewhere", lambda: csi.publish(single, b, RWX)),
        ("policy KubeVirt", lambda: csi.publish(other, a)),
        ("policy KubeVirt, second", lambda: csi.publish(other, b)),
        ("mount for many", lambda: csi.publish(mounted, a, mount("MULTI_NODE_MULTI_WRITER"))),
        ("mount", lambda: csi.publish(mounted, a, mount())),
        ("no such volume", lambda: csi.publish(f"pvc-{uuid4()}", a)),
        ("no node named", lambda: csi.publish(shared, "")),
    ]
    for asked, call in calls:
        yield asked, code_of(call)


@pytest.mark.requirement("R31a")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_no_flag_changes_what_an_attach_is_answered(
    cluster: Cluster, make_shim: MakeShim, make_volume: MakeVolume, nodes: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    shim = make_shim(extra=flags)
    with Csi(shim.endpoint) as csi:
        found = dict(answers(csi, cluster, nodes, lambda **arguments: make_volume(by=csi, **arguments)))
        assert found == {
            "first node": "OK",
            "again": "OK",
            "again, otherwise": "ALREADY_EXISTS",
            "second node": "OK",
            "third node": "FAILED_PRECONDITION",
            "deleted while attached": "FAILED_PRECONDITION",
            "source leaves": "OK",
            "third node then": "OK",
            "all leave": "OK",
            "no such node": "NOT_FOUND",
            "single": "OK",
            "single elsewhere": "FAILED_PRECONDITION",
            "single shared elsewhere": "FAILED_PRECONDITION",
            "policy KubeVirt": "OK",
            "policy KubeVirt, second": "FAILED_PRECONDITION",
            "mount for many": "INVALID_ARGUMENT",
            "mount": "OK",
            "no such volume": "NOT_FOUND",
            "no node named": "INVALID_ARGUMENT",
        }
