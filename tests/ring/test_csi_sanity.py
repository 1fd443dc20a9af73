"""csi-sanity, the conformance test of kubernetes-csi, against a running shim."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from rds_csi.spec import csi_pb2
from rds_csi.topology import TOPOLOGY
from tests.ring.binaries import ensure
from tests.ring.cluster import Cluster
from tests.ring.driver import Shim
from tests.ring.sidecars import socket_path
from tests.simulator.box import SimulatedBox

NODE_SERVICE = "NodePublishVolume|NodeUnpublishVolume|Node Service should (work|be idempotent)"
"""Tests of RPCs that no capability tells of, and that need a kernel of their own."""

NOT_OFFERED = {
    "ControllerGetVolumeHealth not supported": "alpha",
    "ControllerListVolumeHealth not supported": "alpha",
    "GetSnapshot not supported": "alpha; ListSnapshots finds one by its id",
    "GroupControllerService not supported": "Btrfs has no snapshot of several subvolumes at once",
    "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported": "alpha; every node reaches the box",
    "testnodevolumeattachlimit not enabled": "there is no limit of volumes",
    "NodeStageVolume not supported": "asked in a guest",
    "NodeUnstageVolume not supported": "asked in a guest",
    "NodeGetVolume not supported": "asked in a guest",
    "NodeExpandVolume not supported": "asked in a guest",
    "NodeGetVolumeHealth not supported": "alpha",
    "NodeGetStorageHealth not supported": "alpha",
    "pending": "csi-sanity leaves it out itself",
    "skipped": "tests of node RPCs that no capability tells of; asked in a guest",
}
"""Why csi-sanity skips what it skips."""

AT_LEAST = {
    "Identity Service": 3,
    "ControllerGetCapabilities": 1,
    "GetCapacity": 1,
    "ListVolumes": 3,
    "CreateVolume": 13,
    "DeleteVolume": 3,
    "ValidateVolumeCapabilities": 4,
    "ControllerPublishVolume": 5,
    "ControllerUnpublishVolume": 1,
    "volume lifecycle": 2,
    "ListSnapshots": 6,
    "DeleteSnapshot": 3,
    "CreateSnapshot": 5,
    "ExpandVolume": 3,
    "ModifyVolume": 4,
}
"""How many tests of each kind csi-sanity 5.6 has for what is served."""


@dataclass(frozen=True)
class Report:
    """What csi-sanity said; of what was skipped, how many tests for which reason."""

    passed: list[str]
    failed: dict[str, str]
    skipped: Counter[str]

    def __str__(self) -> str:
        ran = len(self.passed) + len(self.failed)
        first = f"{ran} run, {len(self.passed)} passed, {self.skipped.total()} skipped"
        why = [f"  {count:3} skipped: {reason} ({NOT_OFFERED.get(reason, '?')})" for reason, count in sorted(self.skipped.items())]
        return "\n".join([first, *why])


class Node(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Stands for a node that stages nothing, whose plugin is the same driver: all but the Node service is the shim's.

    csi-sanity needs a node to publish to, and calls NodeUnpublishVolume for each volume that it made, to clean up. The real Node
    service is asked in a guest, which has a kernel of its own.
    """

    def __init__(self, shim: Any, name: str) -> None:
        self.shim = shim
        self.answers = {
            "/csi.v1.Node/NodeGetInfo": csi_pb2.NodeGetInfoResponse(
                node_id=name, accessible_topology=csi_pb2.Topology(segments=TOPOLOGY)
            ),
            "/csi.v1.Node/NodeGetCapabilities": csi_pb2.NodeGetCapabilitiesResponse(),
            "/csi.v1.Node/NodeUnpublishVolume": csi_pb2.NodeUnpublishVolumeResponse(),
        }

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method in self.answers:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answers[method].SerializeToString())
        call = self.shim.unary_unary(method)

        def forward(request: bytes, context: Any) -> Any:
            try:
                return call(request, timeout=30)
            except grpc.RpcError as error:
                return context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(forward)


@contextmanager
def node_beside(shim: Shim, folder: Path, name: str) -> Iterator[str]:
    """Yield an endpoint of that node."""
    endpoint = f"unix://{socket_path(folder)}"
    with grpc.insecure_channel(shim.endpoint) as channel, futures.ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers((Node(channel, name),))
        server.add_insecure_port(endpoint)
        server.start()
        yield endpoint
        server.stop(None).wait()


def run_sanity(shim: Shim, node: str, folder: Path, access_type: str) -> Report:
    junit, attributes = folder / "report.xml", folder / "attributes.yaml"
    attributes.write_text("migrationTimeoutSeconds: '600'\n")
    with node_beside(shim, folder, node) as endpoint:
        command: list[str | Path] = [
            ensure(["csi-sanity"])["csi-sanity"],
            f"--csi.endpoint={endpoint}",
            f"--csi.controllerendpoint={shim.endpoint}",
            f"--csi.testvolumeaccesstype={access_type}",
            f"--csi.testvolumemutableparameters={attributes}",
            f"--csi.mountdir={folder / 'mount'}",
            f"--csi.stagingdir={folder / 'staging'}",
            f"--ginkgo.junit-report={junit}",
            f"--ginkgo.skip={NODE_SERVICE}",
            "--ginkgo.no-color",
            "--ginkgo.timeout=90s",
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert junit.exists(), ended.stdout + ended.stderr
    report = read_report(junit)
    assert bool(report.failed) == bool(ended.returncode), ended.stdout + ended.stderr
    return report


def read_report(junit: Path) -> Report:
    """Read a JUnit report of Ginkgo; a suite that fails outside of its tests counts as failed too."""
    report = Report([], {}, Counter())
    for case in ET.parse(junit).iter("testcase"):
        name = case.get("name", "")
        if (skipped := case.find("skipped")) is not None:
            report.skipped[skipped.get("message", "").removeprefix("skipped - ")] += 1
        elif (trouble := case.find("failure")) is not None or (trouble := case.find("error")) is not None:
            report.failed[name] = f"{trouble.get('message')}\n{trouble.text}"
        elif name.startswith("[It]"):
            report.passed.append(name)
    return report


@pytest.fixture(scope="module")
def subvolume_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """A box that can do all that the driver may offer."""
    with SimulatedBox(tmp_path_factory.mktemp("btrfs"), version="7.24") as box:
        yield box


@pytest.mark.parametrize("access_type", ["mount", "block"])
def test_csi_sanity_finds_nothing_wrong(
    access_type: str,
    make_shim: Callable[..., Shim],
    cluster: Cluster,
    subvolume_box: SimulatedBox,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    report = run_sanity(make_shim(subvolume_box), cluster.make_node(), tmp_path, access_type)
    record_property("summary", f"csi-sanity, {access_type}: {report}")
    assert not report.failed, "\n\n".join(f"{name}: {text}" for name, text in report.failed.items())
    assert set(report.skipped) == set(NOT_OFFERED)
    ran = {part: sum(f" {part}" in name for name in report.passed) for part in AT_LEAST}
    assert all(ran[part] >= least for part, least in AT_LEAST.items()), ran
    assert (subvolume_box.disks(), subvolume_box.files(), set(subvolume_box.subvolumes())) == ({}, {}, {"metal-csi"})
