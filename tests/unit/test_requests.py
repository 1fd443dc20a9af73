"""Requests are refused for what is wrong with them, in the reference driver's order, and garbage does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi import requests
from rds_csi.errors import Aborted, InvalidArgument, NotFound, OutOfRange, ResourceExhausted
from rds_csi.requests import create_snapshot, delete_snapshot, list_snapshots
from rds_csi.sizes import GIB, MIB, TIB
from rds_csi.spec import csi_pb2
from rds_records.names import check_handle, check_node_name
from rds_records.record import AccessMode, DualAttachPolicy, VolumeMode
from rds_records.volume_layout import is_snapshot_id
from tests.unit.csi_messages import NASTY, fill, messages

BASE = "/storage-pool/metal-csi"
HANDLE = "pvc-6a1b1a51-8c0e-4f5e-9a4e-3f1a2b3c4d5e"
Mode = csi_pb2.VolumeCapability.AccessMode
T = TypeVar("T")
EXAMPLES = settings(max_examples=2000, deadline=None)


def capability(mode: int = Mode.MULTI_NODE_MULTI_WRITER, *, block: bool = True, fs_type: str = "") -> csi_pb2.VolumeCapability:
    made = csi_pb2.VolumeCapability(access_mode=Mode(mode=mode))  # type: ignore[arg-type]
    if block:
        made.block.SetInParent()
    else:
        made.mount.fs_type = fs_type
        made.mount.SetInParent()
    return made


def create(**changes: Any) -> csi_pb2.CreateVolumeRequest:
    fields: dict[str, Any] = {
        "name": HANDLE,
        "volume_capabilities": [capability()],
        "capacity_range": csi_pb2.CapacityRange(required_bytes=50 * GIB),
        "parameters": {"migrationTimeoutSeconds": "600", "dualAttachPolicy": "AnyTwoNodes", "csi.storage.k8s.io/pv/name": HANDLE},
    }
    return csi_pb2.CreateVolumeRequest(**(fields | changes))


def publish(**changes: Any) -> csi_pb2.ControllerPublishVolumeRequest:
    fields: dict[str, Any] = {"volume_id": HANDLE, "node_id": "node-a", "volume_capability": capability()}
    return csi_pb2.ControllerPublishVolumeRequest(**(fields | changes))


def made(request: csi_pb2.CreateVolumeRequest) -> requests.CreateVolume:
    return requests.create_volume(request, base_path=BASE)


def test_good_create_request_is_understood() -> None:
    asked = made(create())
    assert (asked.name, asked.capacity_bytes, asked.limit_bytes) == (HANDLE, 50 * GIB, 0)
    assert (asked.capability.access_mode, asked.capability.volume_mode) == (AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK)
    assert asked.parameters.migration_timeout_seconds == 600
    assert asked.parameters.dual_attach_policy is DualAttachPolicy.ANY_TWO_NODES
    assert asked.parameters.persistent_volume_name == HANDLE


def test_checks_come_in_the_reference_order() -> None:
    request = csi_pb2.CreateVolumeRequest(
        capacity_range=csi_pb2.CapacityRange(required_bytes=17 * TIB), parameters={"migrationTimeoutSeconds": "abc"}
    )
    request.volume_content_source.volume.volume_id = ""

    def said() -> str:
        with pytest.raises((InvalidArgument, OutOfRange)) as caught:
            made(request)
        return str(caught.value)

    assert said() == "name is missing"
    request.name = "bad name"
    assert said() == "volume_capabilities are missing"
    request.volume_capabilities.append(capability(block=False))
    assert "volumeMode Block" in said()
    request.volume_capabilities[0].CopyFrom(capability())
    assert "16 TiB" in said()
    request.capacity_range.required_bytes = GIB
    assert said().startswith("name 'bad name'")
    request.name = "good-name"
    assert said() == "volume_id is missing"
    request.ClearField("volume_content_source")
    assert said().startswith("StorageClass parameter migrationTimeoutSeconds 'abc'")


@pytest.mark.parametrize(
    ("required", "limit", "capacity"),
    [(0, 0, GIB), (1, 0, GIB), (GIB + 1, 0, GIB + MIB), (5 * GIB, 5 * GIB, 5 * GIB), (16 * TIB, 0, 16 * TIB)],
)
def test_sizes_are_rounded_up_to_what_the_box_makes_exactly(required: int, limit: int, capacity: int) -> None:
    asked = made(create(capacity_range=csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)))
    assert asked.capacity_bytes == capacity


@pytest.mark.parametrize(
    ("required", "limit"), [(2 * GIB, GIB), (16 * TIB + 1, 0), (2**63 - 1, 0), (GIB + 1, GIB + 2), (1, GIB - 1)]
)
def test_sizes_that_do_not_fit_are_out_of_range(required: int, limit: int) -> None:
    with pytest.raises(OutOfRange):
        made(create(capacity_range=csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)))


@pytest.mark.parametrize(("required", "limit"), [(-1, 0), (0, -1), (-(2**63), 2**63 - 1)])
def test_negative_sizes_are_invalid(required: int, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="negative"):
        made(create(capacity_range=csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)))


@pytest.mark.parametrize("name", [HANDLE, "sanity-controller-CREATE-1A2B.x_y", "a" * 128, "x"])
def test_names_that_callers_use_are_taken(name: str) -> None:
    assert made(create(name=name)).name == name


BAD_NAMES = ["a" * 129, "ключ", "a b", "a;b", "a\n", "a/b", "../a", "$(x)", '"', "-a", "a-", "a\x00"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_that_could_be_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        made(create(name=name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mutable_parameters", {"a": "b"}),
        ("volume_content_source", csi_pb2.VolumeContentSource()),
        ("parameters", {"a": "x" * 5000}),
        ("secrets", {"a": "x" * 5000}),
        ("parameters", {"unknown": "x"}),
        ("volume_capabilities", [capability()] * 33),
        ("volume_capabilities", [capability(), capability(Mode.SINGLE_NODE_WRITER, block=False)]),
        ("volume_capabilities", [csi_pb2.VolumeCapability()]),
    ],
)
def test_what_is_not_offered_or_too_large_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument):
        made(create(**{field: value}))


def topologies(*zones: str) -> csi_pb2.TopologyRequirement:
    key = "topology.rds.csi.srvlab.io/zone"
    return csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments={key: zone}) for zone in zones])


@pytest.mark.parametrize("zones", [[], ["default"], ["elsewhere", "default"]])
def test_a_volume_may_be_wanted_in_the_one_zone(zones: list[str]) -> None:
    assert made(create(accessibility_requirements=topologies(*zones))).name == HANDLE


def test_a_volume_that_is_wanted_elsewhere_cannot_be_made() -> None:
    with pytest.raises(ResourceExhausted, match=r"accessibility_requirements.*default"):
        made(create(accessibility_requirements=topologies("elsewhere")))


@pytest.mark.requirement("R59")
def test_refusal_does_not_repeat_secrets() -> None:
    with pytest.raises(InvalidArgument) as caught:
        made(create(secrets={"password": "hunter2" * 1000}))
    assert "hunter2" not in str(caught.value)


def test_good_publish_request_is_understood() -> None:
    asked = requests.controller_publish(publish(volume_context={"nqn": "nqn.x"}))
    assert (asked.handle, asked.node, asked.volume_context) == (HANDLE, "node-a", {"nqn": "nqn.x"})
    assert asked.capability.access.mode is AccessMode.READ_WRITE_MANY


def test_publish_checks_come_in_the_reference_order() -> None:
    request = csi_pb2.ControllerPublishVolumeRequest()

    def said() -> str:
        with pytest.raises(InvalidArgument) as caught:
            requests.controller_publish(request)
        return str(caught.value)

    assert said() == "volume_id is missing"
    request.volume_id = "a/b"
    assert said() == "node_id is missing"
    request.node_id = "Node_A"
    assert said().startswith("volume id 'a/b'")
    request.volume_id = HANDLE
    assert said() == "volume_capability is missing"
    request.volume_capability.CopyFrom(capability(block=False))
    assert said().startswith("node id 'Node_A'")
    request.node_id = "node-a"
    assert "volumeMode Block" in said()
    request.volume_capability.CopyFrom(capability())
    request.secrets["key"] = "x" * 5000
    assert said().startswith("secrets")


def test_a_publish_is_read_only_where_it_says_so_or_its_mode_does() -> None:
    assert not requests.controller_publish(publish()).capability.access.read_only
    assert requests.controller_publish(publish(readonly=True)).capability.access.read_only
    mode = capability(Mode.MULTI_NODE_READER_ONLY)
    assert requests.controller_publish(publish(volume_capability=mode)).capability.access.read_only


BAD_IDS = [text for text in NASTY if text not in {"pvc-1", HANDLE, "node-a", "a" * 128, "ext4", "300", "KubeVirt", "1e9"}]
BAD_IDS = [text for text in BAD_IDS if not text.isascii() or not text.isalnum() or len(text) > 128]


@pytest.mark.parametrize(
    "ask",
    [
        lambda text: requests.delete_volume(csi_pb2.DeleteVolumeRequest(volume_id=text)),
        lambda text: requests.controller_publish(publish(volume_id=text)),
        lambda text: requests.controller_unpublish(csi_pb2.ControllerUnpublishVolumeRequest(volume_id=text)),
        lambda text: requests.validate_capabilities(
            csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=text, volume_capabilities=[capability()])
        ),
    ],
    ids=["delete", "publish", "unpublish", "validate"],
)
@pytest.mark.parametrize("text", BAD_IDS, ids=lambda text: repr(text[:20]))
def test_malformed_volume_id_is_refused_by_every_rpc(ask: Callable[[str], object], text: str) -> None:
    with pytest.raises(InvalidArgument):
        ask(text)


@pytest.mark.parametrize("node", ["Node", "a_b", "node;x", "a" * 254, "нода", "a\n"])
def test_malformed_node_id_is_refused(node: str) -> None:
    with pytest.raises(InvalidArgument, match="node id"):
        requests.controller_publish(publish(node_id=node))
    with pytest.raises(InvalidArgument, match="node id"):
        requests.controller_unpublish(csi_pb2.ControllerUnpublishVolumeRequest(volume_id=HANDLE, node_id=node))


def test_unpublish_without_node_means_every_node() -> None:
    asked = requests.controller_unpublish(csi_pb2.ControllerUnpublishVolumeRequest(volume_id=HANDLE))
    assert asked == requests.ControllerUnpublish(HANDLE, "")


def test_mode_that_is_not_offered_is_no_error_of_validate() -> None:
    asked = requests.validate_capabilities(
        csi_pb2.ValidateVolumeCapabilitiesRequest(
            volume_id=HANDLE, volume_capabilities=[capability(), capability(Mode.MULTI_NODE_SINGLE_WRITER)]
        )
    )
    assert not asked.capabilities
    assert "one writer" in asked.unsupported


def test_validate_refuses_a_shared_file_system_and_missing_capabilities() -> None:
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=HANDLE)
    with pytest.raises(InvalidArgument, match="missing"):
        requests.validate_capabilities(request)
    request.volume_capabilities.append(capability(block=False))
    with pytest.raises(InvalidArgument, match="volumeMode Block"):
        requests.validate_capabilities(request)


def answer(ask: Callable[[], T]) -> T | None:
    """Return what the request was understood as, or None where it was refused; anything else is raised."""
    try:
        return ask()
    except (InvalidArgument, OutOfRange, NotFound, ResourceExhausted) as error:
        message = str(error)
    assert 0 < len(message) < 1000
    return None


@given(messages(csi_pb2.CreateVolumeRequest))
@EXAMPLES
def test_any_create_request_is_understood_or_refused(request: csi_pb2.CreateVolumeRequest) -> None:
    if asked := answer(lambda: made(request)):
        check_created(request, asked)


def check_created(request: csi_pb2.CreateVolumeRequest, asked: requests.CreateVolume) -> None:
    assert asked.capacity_bytes % MIB == 0
    assert GIB <= asked.capacity_bytes <= 16 * TIB
    assert asked.capacity_bytes >= request.capacity_range.required_bytes
    assert not asked.limit_bytes or asked.capacity_bytes <= asked.limit_bytes
    assert asked.name.isascii()
    assert f"{asked.parameters.volume_path}/".startswith(f"{BASE}/")
    assert ".." not in asked.parameters.volume_path.split("/")
    assert not (asked.capability.multi_node and not asked.capability.block)
    if asked.source:
        assert is_snapshot_id(asked.source.snapshot_id or "") or check_handle(asked.source.volume_handle or "")


@given(st.integers(0, 2**64), st.sampled_from(["name", "volume_capabilities", "capacity_range", "parameters"]))
@EXAMPLES
def test_good_create_request_with_one_field_of_garbage_is_understood_or_refused(seed: int, field: str) -> None:
    garbage = fill(csi_pb2.CreateVolumeRequest(), Random(seed), chance=0.9)
    request = create()
    request.ClearField(field)
    request.MergeFrom(csi_pb2.CreateVolumeRequest(**{field: getattr(garbage, field)}))
    if asked := answer(lambda: made(request)):
        check_created(request, asked)


@given(messages(csi_pb2.ControllerPublishVolumeRequest))
@EXAMPLES
def test_any_publish_request_is_understood_or_refused(request: csi_pb2.ControllerPublishVolumeRequest) -> None:
    if asked := answer(lambda: requests.controller_publish(request)):
        check_handle(asked.handle)
        check_node_name(asked.node)


@given(messages(csi_pb2.ControllerUnpublishVolumeRequest))
@EXAMPLES
def test_any_unpublish_request_is_understood_or_refused(request: csi_pb2.ControllerUnpublishVolumeRequest) -> None:
    if asked := answer(lambda: requests.controller_unpublish(request)):
        check_handle(asked.handle)


@given(messages(csi_pb2.DeleteVolumeRequest))
@EXAMPLES
def test_any_delete_request_is_understood_or_refused(request: csi_pb2.DeleteVolumeRequest) -> None:
    if asked := answer(lambda: requests.delete_volume(request)):
        check_handle(asked.handle)


@given(messages(csi_pb2.ValidateVolumeCapabilitiesRequest))
@EXAMPLES
def test_any_validate_request_is_understood_or_refused(request: csi_pb2.ValidateVolumeCapabilitiesRequest) -> None:
    if asked := answer(lambda: requests.validate_capabilities(request)):
        check_handle(asked.handle)
        assert bool(asked.capabilities) != bool(asked.unsupported)


def test_a_snapshot_names_itself_and_its_source() -> None:
    asked = create_snapshot(csi_pb2.CreateSnapshotRequest(name="snapshot-1", source_volume_id=HANDLE))
    assert (asked.name, asked.source_handle, asked.ignored) == ("snapshot-1", HANDLE, ())


def test_parameters_of_a_snapshot_class_are_refused_but_for_the_go_drivers() -> None:
    request = csi_pb2.CreateSnapshotRequest(name="snapshot-1", source_volume_id=HANDLE)
    request.parameters.update({"volumePath": "/storage-pool/x", "csi.storage.k8s.io/volumesnapshot/name": "mine"})
    assert create_snapshot(request).ignored == ("volumePath",)
    request.parameters["speed"] = "fast"
    with pytest.raises(InvalidArgument, match="speed"):
        create_snapshot(request)


@pytest.mark.parametrize(("name", "source"), [("", HANDLE), ("a;b", HANDLE), ("snapshot-1", ""), ("snapshot-1", "a;b")])
def test_a_snapshot_without_a_name_or_source_is_refused(name: str, source: str) -> None:
    with pytest.raises(InvalidArgument):
        create_snapshot(csi_pb2.CreateSnapshotRequest(name=name, source_volume_id=source))


def test_a_negative_page_of_snapshots_is_refused_and_a_strange_token_aborts() -> None:
    with pytest.raises(InvalidArgument):
        list_snapshots(csi_pb2.ListSnapshotsRequest(max_entries=-1))
    with pytest.raises(Aborted):
        list_snapshots(csi_pb2.ListSnapshotsRequest(starting_token="17"))


def test_any_snapshot_id_may_be_deleted_but_none() -> None:
    assert delete_snapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id="whatever it is")) == "whatever it is"
    with pytest.raises(InvalidArgument):
        delete_snapshot(csi_pb2.DeleteSnapshotRequest())
