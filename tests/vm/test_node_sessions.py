"""What ``rds-csi node`` makes of real sessions: shows them, tells what is wrong with them, and ends those that nothing uses.

That something is left alone is told by a canary: a session that nothing uses, made later and ended by the same looks.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from rds_csi.spec import csi_pb2
from rds_records.names import host_nqn_for
from tests.ring.api import Object
from tests.ring.controlplane import ControlPlane
from tests.ring.rpc import RWX, mount
from tests.ring.waiting import eventually
from tests.vm.guests import Guest
from tests.vm.node_plugin import NodePlugin
from tests.vm.nvmet import Export

pytestmark = pytest.mark.long

NODE = "node-a"
FLAGS = ("--session-interval=500ms", "--orphan-session-grace=3s", "--health-grace=3s")
CSI = Path("/var/lib/kubelet/plugins/kubernetes.io/csi")
BLOCKS = CSI / "volumeDevices"
MakeExport = Callable[..., Export]


@pytest.fixture(scope="module")
def started(guests: dict[str, Guest], plane: ControlPlane, all_plugins: dict[str, NodePlugin]) -> Iterator[NodePlugin]:
    """``rds-csi node`` that looks often and waits briefly; ask for ``plugin``."""
    all_plugins[NODE].process.stop()
    guests[NODE].run("mkdir", "-p", CSI)
    plane.api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    plugin = NodePlugin(guests[NODE], plane, FLAGS).start()
    yield plugin
    plugin.process.kill()


@pytest.fixture
def plugin(started: NodePlugin, node_a: Guest, target: Guest) -> Iterator[NodePlugin]:
    """That process, with no session and no volume of the kubelet's before and after."""
    if not started.process.running:
        started.start()
    yield started
    node_a.sh(f"rm -rf {BLOCKS}; umount -q /mnt || true; nvme disconnect-all")


@pytest.fixture
def make_export(target: Guest, plugin: NodePlugin) -> Iterator[MakeExport]:
    """Makes an export for a volume; they are gone after the test."""
    with contextlib.ExitStack() as made:

        def make(handle: str = "") -> Export:
            export = Export(target, handle or f"pvc-{uuid4()}")
            export.make()
            made.callback(export.remove)
            made.callback(export.disconnect, plugin.guest)
            return export

        yield make


@pytest.fixture
def volume(make_export: MakeExport, plugin: NodePlugin) -> Export:
    """A volume that is staged as a block device, and that the kubelet knows nothing of."""
    export = make_export()
    stage(plugin, export)
    return export


def stage(plugin: NodePlugin, export: Export, capability: csi_pb2.VolumeCapability = RWX) -> Path:
    """Stage a volume; return its staging path."""
    path = BLOCKS / "staging" / export.name
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id=export.name,
        publish_context={"nvme_address": export.target.address, "nvme_port": str(export.port), "nvme_nqn": export.nqn},
        staging_target_path=str(path),
        volume_capability=capability,
        volume_context={"reconnectDelay": "1"},
    )
    plugin.guest.run("mkdir", "-p", path)
    with plugin.csi(timeout=110.0) as csi:
        csi.call(csi.node.NodeStageVolume, request)
    return path


def kubelet_has(plugin: NodePlugin, export: Export) -> None:
    """Write what the kubelet writes before it stages a block volume."""
    data = json.dumps({"volumeHandle": export.name, "driverName": "rds.csi.srvlab.io", "specVolID": export.name})
    plugin.guest.sh(
        f"mkdir -p {BLOCKS / export.name / 'data'}; echo {shlex.quote(data)} > {BLOCKS / export.name}/data/vol_data.json"
    )


def kubelet_has_not(plugin: NodePlugin, export: Export) -> None:
    plugin.guest.run("rm", "-r", BLOCKS / export.name)


def wait_ended(plugin: NodePlugin, export: Export) -> None:
    eventually(f"the session of {export.name} is ended", lambda: not export.state(plugin.guest), timeout=60, interval=0.3)


def many_looks(plugin: NodePlugin, make_export: MakeExport) -> None:
    """Let the watch look for long enough that it ends what is made now and used by nobody."""
    canary = make_export()
    stage(plugin, canary)
    wait_ended(plugin, canary)


def device(plugin: NodePlugin, export: Export) -> str:
    head = plugin.guest.sh(f"ls -d $(dirname $(grep -lx {export.nqn} /sys/class/nvme-subsystem/*/subsysnqn))/nvme*n*").split()[-1]
    return f"/dev/{Path(head).name}"


def events(plane: ControlPlane, reason: str, word: str) -> list[Object]:
    """Return the Events about the Node that name something."""
    selector = f"involvedObject.kind=Node,involvedObject.name={NODE},reason={reason}"
    return [event for event in plane.api.list("Event", "default", fieldSelector=selector) if word in event["message"]]


def wait_event(plane: ControlPlane, reason: str, word: str) -> Object:
    return eventually(f"{reason} about {word}", lambda: events(plane, reason, word), timeout=60)[-1]


# What is shown


@pytest.mark.requirement("R46")
def test_connections_are_the_sessions_of_this_node_each_with_its_state_and_host_nqn(
    plugin: NodePlugin, make_export: MakeExport
) -> None:
    assert plugin.scrape().value("rds_csi_nvme_connections_active") == 0
    exports = [make_export(), make_export()]
    for export in exports:
        kubelet_has(plugin, export)
        stage(plugin, export)
    scrape = plugin.scrape()
    assert scrape.value("rds_csi_nvme_connections_active") == 2
    for export in exports:
        labels = {"nqn": export.nqn, "state": "live", "host_nqn": host_nqn_for(NODE)}
        assert scrape.value("rds_csi_nvme_session_info", **labels, address=f"{export.target.address}:{export.port}") == 1
    exports[0].disconnect(plugin.guest)
    assert plugin.scrape().value("rds_csi_nvme_connections_active") == 1


def test_a_session_under_another_host_nqn_is_shown_as_foreign_and_never_ended(plugin: NodePlugin, make_export: MakeExport) -> None:
    export = make_export()
    export.connect(plugin.guest)
    many_looks(plugin, make_export)
    assert export.state(plugin.guest) == "live"
    assert plugin.scrape().value("rds_csi_nvme_foreign_sessions") == 1
    assert f"{export.nqn} as nqn." in plugin.process.output()


# What is ended


def test_a_session_that_nothing_uses_is_ended_counted_and_told(plugin: NodePlugin, volume: Export, plane: ControlPlane) -> None:
    before = plugin.scrape().value("rds_csi_orphans_cleaned_total")
    wait_ended(plugin, volume)
    wait_event(plane, "OrphanDetected", volume.nqn)
    wait_event(plane, "OrphanCleaned", volume.nqn)
    assert plugin.scrape().value("rds_csi_orphans_cleaned_total") == before + 1


def test_a_session_that_a_killed_plugin_left_is_ended_by_its_next_life(plugin: NodePlugin, volume: Export) -> None:
    plugin.restart()
    wait_ended(plugin, volume)


def test_a_session_whose_target_is_gone_is_ended_too(plugin: NodePlugin, volume: Export, target: Guest) -> None:
    volume.remove()
    try:
        wait_ended(plugin, volume)
    finally:
        volume.make()


def test_a_volume_that_the_kubelet_has_keeps_its_session_until_it_has_it_no_more(
    plugin: NodePlugin, make_export: MakeExport
) -> None:
    export = make_export()
    kubelet_has(plugin, export)
    stage(plugin, export)
    many_looks(plugin, make_export)
    assert export.state(plugin.guest) == "live"
    kubelet_has_not(plugin, export)
    wait_ended(plugin, export)


def test_a_disk_that_a_process_has_open_keeps_its_session_until_it_is_closed(
    plugin: NodePlugin, volume: Export, make_export: MakeExport
) -> None:
    holder = plugin.guest.process("holder", ["tail", "-f", device(plugin, volume)]).start()
    try:
        many_looks(plugin, make_export)
        assert volume.state(plugin.guest) == "live"
        assert "its disk is in use: tail" in plugin.process.output()
    finally:
        holder.kill()
    wait_ended(plugin, volume)


def test_a_disk_that_is_mounted_somewhere_keeps_its_session_until_it_is_unmounted(
    plugin: NodePlugin, volume: Export, make_export: MakeExport
) -> None:
    plugin.guest.sh(f"mkfs.ext4 -q {device(plugin, volume)} && mount {device(plugin, volume)} /mnt", timeout=90)
    many_looks(plugin, make_export)
    assert volume.state(plugin.guest) == "live"
    plugin.guest.run("umount", "/mnt")
    wait_ended(plugin, volume)


def test_swap_keeps_its_session(plugin: NodePlugin, volume: Export, make_export: MakeExport) -> None:
    disk = device(plugin, volume)
    plugin.guest.sh(f"mkswap -q {disk} && swapon {disk}")
    try:
        many_looks(plugin, make_export)
        assert volume.state(plugin.guest) == "live"
    finally:
        plugin.guest.run("swapoff", disk)
    wait_ended(plugin, volume)


def test_files_of_the_kubelet_that_cannot_be_understood_keep_every_session(
    plugin: NodePlugin, volume: Export, make_export: MakeExport
) -> None:
    broken = make_export()
    kubelet_has(plugin, broken)
    plugin.guest.sh(f"echo -n '{{' > {BLOCKS / broken.name}/data/vol_data.json")
    eventually("it is told", lambda: "vol_data.json" in plugin.get("/readyz")[1], timeout=30)
    assert volume.state(plugin.guest) == "live"
    kubelet_has_not(plugin, broken)
    wait_ended(plugin, volume)


@pytest.mark.parametrize("prefix", ["nqn.2000-02.com.mikrotik:pvc-", "nqn.2000-02.com.mikrotik:"])
def test_a_diskless_machines_own_session_survives_whatever_the_prefix_is(
    prefix: str, guests: dict[str, Guest], plane: ControlPlane, plugin: NodePlugin, make_export: MakeExport
) -> None:
    boot = make_export("boot-of-node-a")
    boot.connect(plugin.guest)
    plugin.process.kill()
    other = NodePlugin(plugin.guest, plane, [*FLAGS, f"--managed-nqn-prefix={prefix}"]).start()
    try:
        many_looks(other, make_export)
        assert boot.state(plugin.guest) == "live"
    finally:
        other.process.kill()


# What is told


def unhealthy(plugin: NodePlugin, problem: str, count: int) -> None:
    def shown() -> bool:
        found = plugin.scrape().value("rds_csi_volumes_unhealthy", problem=problem)
        assert found == count, found
        return True

    eventually(f"{count} volumes with {problem}", shown, timeout=90, interval=0.5)


def test_a_lost_connection_is_shown_and_told_with_its_end(plugin: NodePlugin, volume: Export, plane: ControlPlane) -> None:
    kubelet_has(plugin, volume)
    with plugin.guest.cut():
        unhealthy(plugin, "connection_lost", 1)
        wait_event(plane, "ConnectionLost", volume.name)
        (info,) = [one for one in plugin.scrape().labels("rds_csi_nvme_session_info") if one["nqn"] == volume.nqn]
        assert info["state"] != "live"
    unhealthy(plugin, "connection_lost", 0)
    wait_event(plane, "ConnectionRecovery", volume.name)


def test_a_disk_that_vanished_is_shown_and_told_with_its_return(
    plugin: NodePlugin, volume: Export, plane: ControlPlane, target: Guest
) -> None:
    kubelet_has(plugin, volume)
    # The watch must have seen the disk before it can miss it.
    many = f"/sys/kernel/config/nvmet/subsystems/{volume.nqn}/namespaces/1/enable"
    target.sh(f"echo 0 > {many}")
    unhealthy(plugin, "device_vanished", 1)
    wait_event(plane, "DeviceVanished", volume.name)
    target.sh(f"echo 1 > {many}")
    unhealthy(plugin, "device_vanished", 0)
    wait_event(plane, "DeviceReturned", volume.name)


def test_a_file_system_that_the_kernel_made_read_only_is_shown_and_told(
    plugin: NodePlugin, make_export: MakeExport, plane: ControlPlane
) -> None:
    export = make_export()
    kubelet_has(plugin, export)
    path = stage(plugin, export, mount())
    plugin.guest.sh(f"mount -o remount,errors=remount-ro {path}")
    name = Path(device(plugin, export)).name
    plugin.guest.sh(f"echo test > /sys/fs/ext4/{name}/trigger_fs_error")
    unhealthy(plugin, "filesystem_read_only", 1)
    wait_event(plane, "FilesystemReadOnly", export.name)
    plugin.guest.run("umount", path)
