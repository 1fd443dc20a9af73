"""Wrong requests are refused with the status that the CSI specification names, and leave no trace on the box or in records."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from rds_csi.spec import csi_pb2
from tests.ring.bad_requests import Bad, Mode, Targets, bad_requests, good_requests, with_mode
from tests.ring.cluster import RECORD, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Shim
from tests.ring.rpc import GIB, RWO, RWX, Csi, block, mount
from tests.ring.stack import BASE_PATH
from tests.simulator.box import SimulatedBox

INPUTS = 10_000
BATCH = 50
"""Requests that are in flight at the same time."""

SERVED = ("CreateVolume", "DeleteVolume", "ControllerPublishVolume", "ControllerUnpublishVolume", "ValidateVolumeCapabilities")


@dataclass
class World:
    """What a refused request must not touch, and a client of the shim."""

    csi: Csi
    box: SimulatedBox
    plane: ControlPlane

    def state(self) -> dict[str, Any]:
        """Return every command that the box ever received, and every record with its version."""
        records = self.plane.api.list(RECORD)
        return {
            "commands on the box": self.box.received(),
            "records": {record["metadata"]["name"]: record["metadata"]["resourceVersion"] for record in records},
        }

    def send(self, batch: list[Bad]) -> list[str]:
        """Make all calls at once; return their status codes."""
        calls = [getattr(self.csi.controller, bad.rpc).future(bad.request, timeout=30) for bad in batch]
        return [call.code().name for call in calls]


@pytest.fixture
def world(csi: Csi, box: SimulatedBox, installed: ControlPlane) -> World:
    return World(csi, box, installed)


@pytest.fixture
def targets(cluster: Cluster, csi: Csi, make_volume: Callable[..., str]) -> Targets:
    held, idle = make_volume(), make_volume()
    targets = Targets(f"pvc-{uuid4()}", held, idle, cluster.make_node(), cluster.make_node())
    csi.publish(held, targets.holder)
    return targets


def draw_distinct(targets: Targets) -> list[Bad]:
    """Let hypothesis draw requests; it repeats itself now and then, so more are drawn than are needed."""
    drawn: dict[tuple[str, bytes], Bad] = {}

    @settings(
        max_examples=INPUTS * 5 // 4,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(bad_requests(targets))
    def draw(bad: Bad) -> None:
        drawn[bad.rpc, bad.request.SerializeToString(deterministic=True)] = bad

    draw()
    return list(drawn.values())


def test_ten_thousand_bad_requests_are_refused_and_change_nothing(world: World, targets: Targets) -> None:
    requests = draw_distinct(targets)
    assert len(requests) >= INPUTS
    before = world.state()
    started = time.monotonic()
    for batch in batched(requests, BATCH):
        codes = world.send(batch)
        wrong = [(code, bad) for code, bad in zip(codes, batch, strict=True) if code not in bad.codes]
        assert not wrong
        assert world.state() == before, batch
    rpcs = Counter(bad.rpc for bad in requests)
    flaws = Counter(f"{bad.rpc}: {name}" for bad in requests for name in bad.flaws)
    print(f"{len(requests)} different bad requests, sent in {time.monotonic() - started:.0f} s: {dict(rpcs)}, {dict(flaws)}")
    assert set(rpcs) == set(SERVED)
    assert set(flaws) == {f"{rpc}: {flaw.name}" for rpc, (_, known) in good_requests(targets).items() for flaw in known}


def batched(requests: list[Bad], size: int) -> Iterator[list[Bad]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


@pytest.mark.parametrize("rpc", SERVED)
def test_the_same_requests_without_a_flaw_are_granted(rpc: str, world: World, targets: Targets) -> None:
    granted, _ = good_requests(targets)[rpc]
    assert world.send([Bad(rpc, granted, frozenset(), ())]) == ["OK"]
    world.csi.delete(targets.fresh)


# Named cases, with {held}, {idle}, {holder} and {other} where a request names a target.


def create(**fields: Any) -> Any:
    return csi_pb2.CreateVolumeRequest(**{"name": "pvc-wanted", "volume_capabilities": [RWX], **fields})


def sized(required: int, limit: int) -> Any:
    return create(capacity_range=csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit))


def with_parameter(key: str, value: str) -> Any:
    return create(parameters={key: value})


def delete(volume_id: str) -> Any:
    return csi_pb2.DeleteVolumeRequest(volume_id=volume_id)


def publish(**fields: Any) -> Any:
    return csi_pb2.ControllerPublishVolumeRequest(
        **{"volume_id": "{held}", "node_id": "{other}", "volume_capability": RWX, **fields}
    )


def unpublish(volume_id: str, node_id: str = "{holder}", **fields: Any) -> Any:
    return csi_pb2.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node_id, **fields)


def validate(*capabilities: Any, volume_id: str = "{held}", **fields: Any) -> Any:
    return csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=volume_id, volume_capabilities=capabilities, **fields)


def flagged(*flags: str, **fields: Any) -> Any:
    capability = mount()
    capability.mount.MergeFrom(csi_pb2.VolumeCapability.MountVolume(mount_flags=flags, **fields))
    return capability


NO_TYPE = csi_pb2.VolumeCapability(access_mode=Mode(mode="MULTI_NODE_MULTI_WRITER"))
NO_MODE = csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume())
SHARED_FILES = mount("MULTI_NODE_MULTI_WRITER")
READ_FILES, ONE_WRITER = mount("MULTI_NODE_READER_ONLY"), block("MULTI_NODE_SINGLE_WRITER")
SNAPSHOT = csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id="snap-1"))
CLONE = csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id="pvc-1"))
ELSEWHERE = csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments={"zone": "a"})])

REFUSED: dict[str, tuple[str, Any, str]] = {
    "a volume without a name": ("INVALID_ARGUMENT", create(name=""), "name is missing"),
    "a name of 129 characters": ("INVALID_ARGUMENT", create(name="a" * 129), "at most 128|1 to 128"),
    "a name of 128 kilobytes": ("INVALID_ARGUMENT", create(name="a" * 131_072), "1 to 128"),
    "a name with a slash": ("INVALID_ARGUMENT", create(name="../etc/passwd"), "name"),
    "a name with a quote and a second command": ("INVALID_ARGUMENT", create(name='a"; /disk remove [find]'), "name"),
    "a name with a line break": ("INVALID_ARGUMENT", create(name="a\r\n/system reboot"), "name"),
    "a name of letters outside of ASCII": ("INVALID_ARGUMENT", create(name="объём"), "name"),
    "a name with an invisible character": ("INVALID_ARGUMENT", create(name="pvc\u200b1"), "name"),
    "a name with a NUL": ("INVALID_ARGUMENT", create(name="pvc\x001"), "name"),
    "a volume without capabilities": ("INVALID_ARGUMENT", create(volume_capabilities=[]), "volume_capabilities"),
    "neither block nor mount": ("INVALID_ARGUMENT", create(volume_capabilities=[NO_TYPE]), "access_type"),
    "no access mode": ("INVALID_ARGUMENT", create(volume_capabilities=[NO_MODE]), "access_mode"),
    "an access mode of the future": ("INVALID_ARGUMENT", create(volume_capabilities=[with_mode(99, is_block=True)]), "99"),
    "ReadWriteMany with a filesystem": ("INVALID_ARGUMENT", create(volume_capabilities=[SHARED_FILES]), "volumeMode Block"),
    "ReadOnlyMany with a filesystem": ("INVALID_ARGUMENT", create(volume_capabilities=[READ_FILES]), "volumeMode Block"),
    "one writer and many readers": ("INVALID_ARGUMENT", create(volume_capabilities=[ONE_WRITER]), "ReadWriteMany"),
    "block and mount at once": ("INVALID_ARGUMENT", create(volume_capabilities=[RWO, mount()]), "mix block and mount"),
    "two filesystems": ("INVALID_ARGUMENT", create(volume_capabilities=[mount(), mount(fs_type="xfs")]), "ext4, xfs"),
    "a filesystem not offered": (
        "INVALID_ARGUMENT",
        create(volume_capabilities=[mount(fs_type="btrfs")]),
        "ext4, ext3, xfs",
    ),
    "a filesystem with an option in it": ("INVALID_ARGUMENT", create(volume_capabilities=[mount(fs_type="ext4 -F")]), "ext4"),
    "a mount flag with a second one in it": ("INVALID_ARGUMENT", create(volume_capabilities=[flagged("ro,suid")]), "mount flag"),
    "a mount flag that is an option of mount": ("INVALID_ARGUMENT", create(volume_capabilities=[flagged("--bind")]), "mount flag"),
    "a volume mount group": ("INVALID_ARGUMENT", create(volume_capabilities=[flagged(volume_mount_group="7")]), "fsGroup"),
    "a negative size": ("INVALID_ARGUMENT", sized(-1, 0), "negative"),
    "a negative limit": ("INVALID_ARGUMENT", sized(GIB, -1), "negative"),
    "a limit below what is required": ("OUT_OF_RANGE", sized(2 * GIB, GIB), "below the required"),
    "more than the largest volume": ("OUT_OF_RANGE", sized(2**63 - 1, 0), "16 TiB"),
    "a limit below the smallest volume": ("OUT_OF_RANGE", sized(0, GIB - 1), "1 GiB at least"),
    "a limit that leaves no room to round up": ("OUT_OF_RANGE", sized(GIB + 1, GIB + 1), "whole MiB"),
    "a snapshot that nobody gave out": ("NOT_FOUND", create(volume_content_source=SNAPSHOT), "no snapshot 'snap-1'"),
    "a clone of a volume without a subvolume": ("FAILED_PRECONDITION", create(volume_content_source=CLONE), "keeps no snapshots"),
    "another zone": ("RESOURCE_EXHAUSTED", create(accessibility_requirements=ELSEWHERE), "zone.*default.* only"),
    "another VolumeAttributesClass": (
        "INVALID_ARGUMENT",
        create(mutable_parameters={"iops": "1"}),
        "'iops' is unknown",
    ),
    "parameters of five kilobytes": ("INVALID_ARGUMENT", create(parameters={"fsType": "x" * 5000}), "4096"),
    "secrets of five kilobytes": ("INVALID_ARGUMENT", create(secrets={"password": "x" * 5000}), "4096"),
    "a parameter that nobody knows": ("INVALID_ARGUMENT", with_parameter("nvmeport", "4420"), "'nvmeport' is unknown; allowed are"),
    "a port that is no number": ("INVALID_ARGUMENT", with_parameter("nvmePort", "4420;"), "nvmePort.*from 1 to 65535"),
    "a port that is too large": ("INVALID_ARGUMENT", with_parameter("nvmePort", "65536"), "nvmePort.*from 1 to 65535"),
    "a port in Arabic digits": ("INVALID_ARGUMENT", with_parameter("nvmePort", "٤٤٢٠"), "nvmePort.*from 1 to 65535"),
    "a timeout below 30 seconds": ("INVALID_ARGUMENT", with_parameter("migrationTimeoutSeconds", "29"), "from 30 to 86400"),
    "a timeout above a day": ("INVALID_ARGUMENT", with_parameter("migrationTimeoutSeconds", "86401"), "from 30 to 86400"),
    "a timeout with a unit": ("INVALID_ARGUMENT", with_parameter("migrationTimeoutSeconds", "300s"), "from 30 to 86400"),
    "a policy in lower case": ("INVALID_ARGUMENT", with_parameter("dualAttachPolicy", "kubevirt"), "KubeVirt, AnyTwoNodes"),
    "a hostname where nodes need an address": ("INVALID_ARGUMENT", with_parameter("nvmeAddress", "box.example"), "IPv4 or IPv6"),
    "a path beside the base path": ("INVALID_ARGUMENT", with_parameter("volumePath", BASE_PATH + "-other"), "volumePath.*under it"),
    "a path that climbs out": ("INVALID_ARGUMENT", with_parameter("volumePath", BASE_PATH + "/../other"), "volumePath"),
    "a path with a quote": ("INVALID_ARGUMENT", with_parameter("volumePath", BASE_PATH + '/a" file-size="1'), "volumePath"),
    "a claim's name that is none": ("INVALID_ARGUMENT", with_parameter("csi.storage.k8s.io/pvc/name", "A b"), "pvc/name"),
    "a reconnect delay of 0": ("INVALID_ARGUMENT", with_parameter("reconnectDelay", "0"), "reconnectDelay.*from 1"),
    "a controller loss timeout below -1": ("INVALID_ARGUMENT", with_parameter("ctrlLossTmo", "-2"), "ctrlLossTmo.*from -1"),
    "a negative keep-alive": ("INVALID_ARGUMENT", with_parameter("keepAliveTmo", "-1"), "keepAliveTmo.*from 0"),
    "deleting no volume": ("INVALID_ARGUMENT", delete(""), "volume_id is missing"),
    "deleting a path": ("INVALID_ARGUMENT", delete("../{idle}"), "volume id"),
    "deleting everything": ("INVALID_ARGUMENT", delete('" or slot~".*'), "volume id"),
    "deleting with a line break": ("INVALID_ARGUMENT", delete("{idle}\n"), "volume id"),
    "deleting a handle of 129 characters": ("INVALID_ARGUMENT", delete("a" * 129), "1 to 128"),
    "deleting a volume that is attached": ("FAILED_PRECONDITION", delete("{held}"), "{holder}"),
    "publishing no volume": ("INVALID_ARGUMENT", publish(volume_id=""), "volume_id is missing"),
    "publishing to no node": ("INVALID_ARGUMENT", publish(node_id=""), "node_id is missing"),
    "publishing without a capability": ("INVALID_ARGUMENT", publish(volume_capability=None), "volume_capability is missing"),
    "publishing a handle with an underscore": ("INVALID_ARGUMENT", publish(volume_id="pvc_1"), "volume id"),
    "publishing to a node in upper case": ("INVALID_ARGUMENT", publish(node_id="Node-1"), "node id"),
    "publishing to another API path": ("INVALID_ARGUMENT", publish(node_id="../pods/x"), "node id"),
    "publishing to a node of 254 characters": ("INVALID_ARGUMENT", publish(node_id="a" * 254), "253"),
    "publishing read-only what is held for writing": ("ALREADY_EXISTS", publish(node_id="{holder}", readonly=True), "read-only"),
    "publishing a shared filesystem": ("INVALID_ARGUMENT", publish(volume_capability=SHARED_FILES), "volumeMode Block"),
    "publishing with a context of five kilobytes": ("INVALID_ARGUMENT", publish(volume_context={"k": "v" * 5000}), "4096"),
    "publishing a volume that nobody knows": ("NOT_FOUND", publish(volume_id=f"pvc-{uuid4()}"), "not known"),
    "publishing to a node that does not exist": ("NOT_FOUND", publish(volume_id="{idle}", node_id="nowhere"), "nowhere"),
    "publishing otherwise than before": ("ALREADY_EXISTS", publish(node_id="{holder}", volume_capability=RWO), "{holder}"),
    "unpublishing no volume": ("INVALID_ARGUMENT", unpublish(""), "volume_id is missing"),
    "unpublishing from a node that cannot be": ("INVALID_ARGUMENT", unpublish("{held}", "*"), "node id"),
    "unpublishing with secrets of five kilobytes": ("INVALID_ARGUMENT", unpublish("{held}", secrets={"k": "v" * 5000}), "4096"),
    "asking about no volume": ("INVALID_ARGUMENT", validate(RWX, volume_id=""), "volume_id is missing"),
    "asking about no capability": ("INVALID_ARGUMENT", validate(), "volume_capabilities are missing"),
    "asking about a shared filesystem": ("INVALID_ARGUMENT", validate(RWX, SHARED_FILES), "volumeMode Block"),
    "asking about a volume that nobody knows": ("NOT_FOUND", validate(RWX, volume_id=f"pvc-{uuid4()}"), "not known"),
}


def aimed(request: Any, targets: Targets) -> Any:
    """Return the request with the names of the targets in it."""
    made = type(request)()
    made.CopyFrom(request)
    for name in ("volume_id", "node_id"):
        if hasattr(made, name):
            setattr(made, name, getattr(made, name).format(**vars(targets)) if "{" in getattr(made, name) else getattr(made, name))
    return made


def rpc_of(request: Any) -> str:
    return type(request).__name__.removesuffix("Request")


@pytest.fixture(scope="module")
def shared(installed: ControlPlane, csi: Csi) -> Iterator[Targets]:
    """Targets for all named cases: none of them changes one."""
    names = [f"bad-input-{stem}-{uuid4().hex[:8]}" for stem in ("holder", "other")]
    for name in names:
        installed.api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    targets = Targets(f"pvc-{uuid4()}", csi.create(f"pvc-{uuid4()}").volume_id, csi.create(f"pvc-{uuid4()}").volume_id, *names)
    csi.publish(targets.held, targets.holder)
    yield targets
    for handle in (targets.held, targets.idle):
        csi.unpublish(handle)
        csi.delete(handle)
        installed.api.delete(RECORD, handle)
        if installed.api.find(RECORD, handle):
            installed.api.patch(RECORD, handle, {"metadata": {"finalizers": None}})
    for name in names:
        installed.api.delete("Node", name)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refused_is(case: str, world: World, shared: Targets) -> None:
    code, request, message = REFUSED[case]
    before = world.state()
    sent = aimed(request, shared)
    call = getattr(world.csi.controller, rpc_of(sent)).future(sent, timeout=30)
    assert (call.code().name, call.details()) == (code, Matching(message.format(**vars(shared)) if "{" in message else message))
    assert world.state() == before


class Matching(str):
    """A regular expression that equals every text in which it is found."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return re.search(str(self), str(other)) is not None


@pytest.mark.parametrize("request_type", [csi_pb2.GetSnapshotRequest, csi_pb2.ControllerGetVolumeRequest])
def test_what_is_not_offered_is_unimplemented_whatever_is_in_it(request_type: Any, world: World) -> None:
    before = world.state()
    assert world.send([Bad(rpc_of(request_type()), request_type(), frozenset(), ())]) == ["UNIMPLEMENTED"]
    assert world.state() == before


@pytest.mark.parametrize("rpc", SERVED)
@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", b"\x0a\x02\xc3\x28", b"\x08" + b"\xff" * 11, b"\x2a" * 3], ids=repr)
def test_bytes_that_are_no_request_are_refused(rpc: str, data: bytes, world: World, shim: Shim) -> None:
    before = world.state()
    with grpc.insecure_channel(shim.endpoint) as channel:
        call = channel.unary_unary(f"/csi.v1.Controller/{rpc}").future(data, timeout=10)
        assert call.code().name == "INVALID_ARGUMENT"
    assert world.state() == before


@pytest.mark.parametrize("rpc", SERVED)
def test_a_request_of_seventeen_megabytes_is_refused(rpc: str, world: World, targets: Targets) -> None:
    request, _ = good_requests(targets)[rpc]
    before = world.state()
    request.secrets["password"] = "x" * (17 * 2**20)
    assert world.send([Bad(rpc, request, frozenset(), ())]) == ["RESOURCE_EXHAUSTED"]
    assert world.state() == before


def test_secrets_of_four_kilobytes_are_taken(world: World, shared: Targets) -> None:
    request = aimed(validate(RWX, secrets={"k": "v" * 4095}), shared)
    assert world.csi.call(world.csi.controller.ValidateVolumeCapabilities, request).HasField("confirmed")


def test_a_mode_that_is_not_offered_is_answered_and_not_confirmed(world: World, shared: Targets) -> None:
    before = world.state()
    answer = world.csi.call(world.csi.controller.ValidateVolumeCapabilities, aimed(validate(ONE_WRITER), shared))
    assert answer.message
    assert not answer.HasField("confirmed")
    assert world.state() == before


def test_a_block_volume_is_not_confirmed_for_mounting(world: World, shared: Targets) -> None:
    answer = world.csi.call(world.csi.controller.ValidateVolumeCapabilities, aimed(validate(mount()), shared))
    assert "cannot be used as a filesystem" in answer.message
    assert not answer.HasField("confirmed")


def test_a_long_name_with_odd_characters_that_are_allowed_is_taken(csi: Csi, make_volume: Callable[..., str]) -> None:
    name = "A" + "._-" * 42 + "z"
    handle = make_volume(name)
    assert csi.create(name).volume_id == handle
    assert len(handle) == len("pvc-") + 36


@pytest.mark.parametrize("attribute", ["nqn", "volumePath"])
def test_a_persistent_volume_with_a_command_in_it_is_refused(attribute: str, world: World, cluster: Cluster) -> None:
    volume = cluster.make_static_volume(attributes={attribute: '/a" ; /system reset-configuration'}, bound=False)
    before = world.state()
    assert world.csi.publish_code(volume.handle, cluster.make_node()) == "INVALID_ARGUMENT"
    assert world.state() == before


def test_what_a_caller_says_about_a_volume_is_not_believed(world: World, cluster: Cluster) -> None:
    before = world.state()
    context = {"nqn": "nqn.2000-02.com.mikrotik:pvc-1", "volumePath": BASE_PATH + "/pvc-1.img", "dualAttachPolicy": "AnyTwoNodes"}
    request = publish(volume_id=f"pvc-{uuid4()}", node_id=cluster.make_node(), volume_context=context)
    assert world.send([Bad("ControllerPublishVolume", request, frozenset(), ())]) == ["NOT_FOUND"]
    assert world.state() == before


@pytest.mark.requirement("R59")
def test_secrets_of_a_request_are_in_no_log(world: World, shim: Shim, targets: Targets) -> None:
    secret = f"hunter2-{uuid4()}"
    for rpc in SERVED:
        request, _ = good_requests(targets)[rpc]
        setattr(request, "name" if rpc == "CreateVolume" else "volume_id", "no-handle-")
        request.secrets["password"] = secret
        assert world.send([Bad(rpc, request, frozenset(), ())]) == ["INVALID_ARGUMENT"]
    assert "stripped" in shim.output()
    assert secret not in shim.output()
