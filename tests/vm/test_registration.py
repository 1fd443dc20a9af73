"""A real kubelet registers the driver by itself, whatever dies in between."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.ring.cluster import DRIVER
from tests.ring.controlplane import ControlPlane
from tests.ring.waiting import eventually
from tests.vm.guests import Guest
from tests.vm.kubelets import NodeKubelet
from tests.vm.node_plugin import REGISTRY, NodePlugin

pytestmark = pytest.mark.long

NODE = "node-a"
SOCKET = REGISTRY / f"{DRIVER}-reg.sock"


@pytest.fixture
def plugin(kubelets: dict[str, NodeKubelet], plugins: dict[str, NodePlugin], plane: ControlPlane) -> Iterator[NodePlugin]:
    """The plugin of a node whose kubelet knows the driver; so it is after the test."""
    wait_registered(plane)
    yield plugins[NODE]
    if not plugins[NODE].process.running:
        plugins[NODE].start()
    wait_registered(plane)


def registered(plane: ControlPlane) -> bool:
    """Tell whether the kubelet has the driver, under the node's name."""
    body = plane.api.find("CSINode", NODE) or {}
    return any(one["name"] == DRIVER and one["nodeID"] == NODE for one in body.get("spec", {}).get("drivers") or [])


def wait_registered(plane: ControlPlane) -> None:
    eventually("the kubelet has the driver", lambda: registered(plane), timeout=90, interval=0.3)


def wait_dropped(plane: ControlPlane) -> None:
    eventually("the kubelet has no such driver", lambda: not registered(plane), timeout=60, interval=0.1)


def times(plugin: NodePlugin) -> int:
    """Return how often a kubelet said that it has registered the driver."""
    return plugin.process.output().count('"registered with the kubelet"')


def wait_again(plugin: NodePlugin, before: int) -> None:
    eventually("the kubelet registers the driver again", lambda: times(plugin) > before, timeout=90, interval=0.3)


def test_a_plugin_is_ready_once_the_kubelet_has_registered_it(plugin: NodePlugin) -> None:
    def ready() -> bool:
        status, text = plugin.get("/readyz")
        assert (status, json.loads(text)["registration"]) == (200, "ok"), text
        return True

    eventually("the plugin is ready", ready)


def test_a_killed_plugin_stays_registered_and_is_registered_again(plugin: NodePlugin, plane: ControlPlane) -> None:
    before = times(plugin)
    plugin.kill()
    assert plugin.guest.ask(f"test -S {SOCKET}").status == 0
    assert registered(plane)
    plugin.start()
    wait_again(plugin, before)
    assert registered(plane)


def test_a_socket_that_somebody_removed_is_made_again_and_registered(plugin: NodePlugin, plane: ControlPlane) -> None:
    before = times(plugin)
    plugin.guest.run("rm", SOCKET)
    wait_again(plugin, before)
    wait_registered(plane)


def test_a_plugin_that_ends_takes_the_driver_with_it(plugin: NodePlugin, plane: ControlPlane) -> None:
    plugin.process.stop()
    assert plugin.process.returncode == 0
    wait_dropped(plane)
    plugin.start()
    wait_registered(plane)


def test_a_kubelet_that_was_killed_registers_the_driver_again(
    plugin: NodePlugin, kubelets: dict[str, NodeKubelet], plane: ControlPlane
) -> None:
    before = times(plugin)
    kubelets[NODE].kubelet.kill()
    kubelets[NODE].kubelet.start()
    wait_again(plugin, before)
    assert registered(plane)


def test_a_plugin_that_is_called_otherwise_than_its_node_is_not_registered(
    plugin: NodePlugin, plane: ControlPlane, node_a: Guest
) -> None:
    plugin.process.stop()
    wait_dropped(plane)
    stranger = NodePlugin(node_a, plane, ["--node-id=nobody"]).start()
    try:

        def said() -> bool:
            status, text = stranger.get("/readyz")
            assert status == 503
            detail = json.loads(text)
            assert "there is no Node nobody" in detail["node"], detail
            assert "there is no Node nobody" in detail["registration"], detail
            return True

        eventually("the kubelet's refusal is told", said, timeout=60)
        assert not registered(plane)
    finally:
        stranger.process.stop()
