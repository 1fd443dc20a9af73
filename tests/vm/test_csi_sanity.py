"""csi-sanity, the conformance test of kubernetes-csi, against a shim on the host and a node service in a guest, on real disks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.building import Image, built
from tests.ring.binaries import ensure
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Shim
from tests.ring.processes import LOOPBACK, LOOPBACK_FROM_GUESTS, free_port
from tests.ring.stack import reach
from tests.ring.test_csi_sanity import AT_LEAST, NOT_OFFERED, Report, read_report
from tests.vm.box import BoxInGuest
from tests.vm.guests import SHARE, Guest
from tests.vm.image_root import ImageRoot
from tests.vm.node_plugin import SOCKET, NodePlugin

NODE = "node-a"
SKIPPED = {reason for reason, why in NOT_OFFERED.items() if "in a guest" not in why}
SERVED_ON_NODES = {
    "NodeGetCapabilities": 1,
    "NodeGetInfo": 1,
    "NodeStageVolume": 3,
    "NodeUnstageVolume": 2,
    "NodePublishVolume": 4,
    "NodeUnpublishVolume": 3,
    "NodeGetVolumeStats": 4,
    "NodeExpandVolume": 4,
    "Node Service should": 2,
}
"""How many tests of each kind csi-sanity 5.6 has for what the node service serves: all of them."""

SIZE = 1 << 30
TIMEOUT = 900
MOUNTS = Path("/run/sanity")
KUBELET = Path("/var/lib/kubelet")


@pytest.fixture
def plugin(plane: ControlPlane, node_a: Guest, all_plugins: dict[str, NodePlugin]) -> Iterator[NodePlugin]:
    """The node service of a Node that needs no kubelet here."""
    cluster = Cluster(plane.api)
    if plane.api.find("Node", NODE) is None:
        cluster.make_node(name=NODE)
    plugin = all_plugins[NODE]
    if not plugin.process.running:
        plugin.start()
    yield plugin
    cluster.clean_up()


@pytest.fixture(scope="session")
def image() -> Image:
    """The image, built before the guests start where the cache does not hold it."""
    return built()


@pytest.fixture
def plugin_of_image(image: Image, plugin: NodePlugin) -> Iterator[NodePlugin]:
    """The node service of the image, with the image's tools, in the place of the checkout's."""
    root = ImageRoot(plugin.guest, image, [MOUNTS, KUBELET])
    usual = plugin.process.argv
    plugin.process.stop()
    root.prepare()
    plugin.process.argv = root.command([Path(usual[0]).name, *usual[1:]])
    try:
        plugin.start()
        yield plugin
    finally:
        plugin.process.stop()
        plugin.process.argv = usual
        root.forget()


@pytest.fixture
def shim(plane: ControlPlane, box: BoxInGuest, tmp_path: Path) -> Iterator[tuple[Shim, int]]:
    """A shim that guests can call, and its port."""
    port = free_port()
    with Shim(plane, tmp_path / "shim", reach(box), extra=[f"--endpoint=tcp://{LOOPBACK}:{port}"]) as shim:
        yield shim, port


def run_sanity(plugin: NodePlugin, port: int, box: BoxInGuest, access_type: str, name: str = "checkout") -> Report:
    guest = plugin.guest
    folder = guest.share / "sanity" / name / access_type
    folder.mkdir(parents=True)
    there = SHARE / folder.relative_to(guest.share)
    (folder / "parameters.yaml").write_text(f"nvmeAddress: {box.nvme_address}\n")
    (folder / "attributes.yaml").write_text("migrationTimeoutSeconds: '600'\n")
    command = [
        ensure(["csi-sanity"])["csi-sanity"],
        f"--csi.endpoint=unix://{SOCKET}",
        f"--csi.controllerendpoint=dns:///{LOOPBACK_FROM_GUESTS}:{port}",
        f"--csi.testvolumeaccesstype={access_type}",
        f"--csi.testvolumesize={SIZE}",
        f"--csi.testvolumeexpandsize={2 * SIZE}",
        f"--csi.testvolumeparameters={there / 'parameters.yaml'}",
        f"--csi.testvolumemutableparameters={there / 'attributes.yaml'}",
        f"--csi.mountdir={MOUNTS}/mount",
        f"--csi.stagingdir={MOUNTS}/staging",
        f"--ginkgo.junit-report={there / 'report.xml'}",
        "--ginkgo.no-color",
        f"--ginkgo.timeout={TIMEOUT}s",
    ]
    answer = guest.ask(f"mkdir -p {MOUNTS}; {shlex.join(map(str, command))}", timeout=TIMEOUT + 60)
    junit = folder / "report.xml"
    assert junit.exists(), answer.output
    report = read_report(junit)
    assert bool(report.failed) == bool(answer.status), answer.output
    return report


@pytest.mark.long
@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("access_type", ["mount", "block"])
def test_csi_sanity_finds_nothing_wrong_on_real_disks(
    access_type: str,
    plugin: NodePlugin,
    shim: tuple[Shim, int],
    box: BoxInGuest,
    record_property: Callable[[str, object], None],
) -> None:
    report = run_sanity(plugin, shim[1], box, access_type)
    record_property("summary", f"csi-sanity in a guest, {access_type}: {report}")
    assert_all_of_the_node_was_tested(report)
    assert_nothing_is_left(plugin, box)
    assert str(MOUNTS) not in plugin.guest.sh("cat /proc/self/mountinfo")


@pytest.mark.long
@pytest.mark.timeout(3 * TIMEOUT)
@pytest.mark.parametrize("access_type", ["mount", "block"])
def test_csi_sanity_finds_nothing_wrong_with_the_tools_of_the_image(
    access_type: str,
    image: Image,
    plugin_of_image: NodePlugin,
    shim: tuple[Shim, int],
    box: BoxInGuest,
    record_property: Callable[[str, object], None],
) -> None:
    plugin = plugin_of_image
    # All that it can call is the image's: it sees no other files.
    assert plugin.guest.sh(f"readlink /proc/{plugin.process.pid}/root").strip() == str(image.root)
    report = run_sanity(plugin, shim[1], box, access_type, name="image")
    record_property("summary", f"csi-sanity in a guest, {access_type}, with the tools of the image: {report}")
    assert_all_of_the_node_was_tested(report)
    assert_nothing_is_left(plugin, box)
    # Mounts show on both sides, as they must for the kubelet: none is left on either.
    for process in ("self", plugin.process.pid):
        assert f"{MOUNTS}/" not in plugin.guest.sh(f"cat /proc/{process}/mountinfo")


def assert_all_of_the_node_was_tested(report: Report) -> None:
    assert not report.failed, "\n\n".join(f"{name}: {text}" for name, text in report.failed.items())
    assert set(report.skipped) == SKIPPED
    least = {**AT_LEAST, **SERVED_ON_NODES}
    ran = {part: sum(f" {part}" in name for name in report.passed) for part in least}
    assert all(ran[part] >= count for part, count in least.items()), ran


def assert_nothing_is_left(plugin: NodePlugin, box: BoxInGuest) -> None:
    assert (box.disks(), box.files(), set(box.subvolumes())) == ({}, {}, {"metal-csi"})
    assert plugin.guest.sh("cat /sys/class/nvme/*/subsysnqn 2> /dev/null || true") == ""
