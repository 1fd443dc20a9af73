"""Fixtures of the guests: one set of them for the session, started when the first test asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import logs
from tests.ring.binaries import CONTROL_PLANE, SIDECARS, ensure
from tests.ring.binaries import NODES as NODE_BINARIES
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import install
from tests.ring.processes import known_processes
from tests.vm.box import FORWARDS, BoxInGuest
from tests.vm.cluster import RealCluster
from tests.vm.guests import Guest, Guests, Link, known_guest_processes
from tests.vm.kernel import NotMade, bootable
from tests.vm.kubelets import KUBELET_PORT, NodeKubelet
from tests.vm.node.client import CSI_PORT as NODE_SERVICE_PORT
from tests.vm.node_plugin import CSI_PORT, METRICS_PORT, NodePlugin
from tests.vm.packages import PackagesMissing
from tests.vm.site import Site

HERE = Path(__file__).parent
NODES = ("node-a", "node-b")
TIMEOUT = 900
"""Seconds for one test, the boot of what it is the first to need included, on a machine that has much else to do."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that they can be run apart from all others: two sets of guests are too much at once."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("guests")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make what is missing before the first test starts, where no test's timeout runs and the progress can be seen."""
    if session.config.option.collectonly or not any(item.get_closest_marker("guests") for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    # The tests that need it fail with what was wrong; those that do not, run.
    with capture.global_and_fixture_disabled(), contextlib.suppress(PackagesMissing, NotMade):
        bootable()
        if any("plane" in getattr(item, "fixturenames", ()) for item in session.items):
            ensure((*CONTROL_PLANE, *SIDECARS, *NODE_BINARIES))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the log of every process, guest and process of a guest where a test fails."""
    report = yield
    if report.failed:
        of_guests = {f"{process.guest.name}-{process.log.name}": process.log for process in known_guest_processes()}
        logs.keep(item.nodeid, {process.log.name: process.log for process in known_processes()} | of_guests)
    return report


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Guest]]:
    """The guests, by name: ``box``, a target, and the initiators ``node-a`` and ``node-b``.

    ``node-c``, without native multipath, and ``node-d``, with room for an image, are started by who needs them.
    """
    with Guests(tmp_path_factory.mktemp("guests")) as guests:
        made = [guests.target("box", forwards=FORWARDS)]
        ports = [KUBELET_PORT, CSI_PORT, METRICS_PORT, NODE_SERVICE_PORT]
        made += [guests.initiator(name, forwards=ports) for name in NODES]
        guests.start(*made)
        made.append(guests.initiator("node-c", forwards=[NODE_SERVICE_PORT], multipath=False))
        made.append(guests.initiator("node-d", forwards=[KUBELET_PORT, METRICS_PORT], memory=2048))
        yield {guest.name: guest for guest in made}


@pytest.fixture
def target(guests: dict[str, Guest]) -> Guest:
    """The guest with nvmet and the disk."""
    return sound(guests["box"])


@pytest.fixture(scope="session")
def one_box(guests: dict[str, Guest]) -> Iterator[BoxInGuest]:
    """The simulator in the target that all tests share; ask for ``box``."""
    with contextlib.closing(BoxInGuest(guests["box"], version="7.24")) as box:
        yield box


@pytest.fixture
def box(one_box: BoxInGuest, target: Guest) -> BoxInGuest:
    """A box with real exports that is as good as new; every session with it has lost its disk."""
    one_box.reset()
    return one_box


@pytest.fixture
def node_a(guests: dict[str, Guest]) -> Guest:
    """An initiator."""
    return sound(guests["node-a"])


@pytest.fixture
def node_b(guests: dict[str, Guest]) -> Guest:
    """Another initiator."""
    return sound(guests["node-b"])


def sound(guest: Guest) -> Guest:
    """Return a guest that runs and whose cables are plugged in, whatever a test before has done to it."""
    if not guest.running:
        return guest.start()
    guest.thaw()
    for link in Link:
        guest.set_link(link, up=True)
    return guest


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane, with everything that ``manifests/`` ships."""
    with ControlPlane(tmp_path_factory.mktemp("plane")) as plane:
        install(plane)
        yield plane


@pytest.fixture(scope="session")
def all_plugins(guests: dict[str, Guest], plane: ControlPlane) -> dict[str, NodePlugin]:
    """``rds-csi node`` of both nodes; ask for ``plugins``."""
    return {name: NodePlugin(guests[name], plane) for name in NODES}


@pytest.fixture(scope="session")
def all_kubelets(guests: dict[str, Guest], plane: ControlPlane) -> dict[str, NodeKubelet]:
    """The kubelets of both nodes; ask for ``kubelets``."""
    return {name: NodeKubelet(guests[name], plane) for name in NODES}


@pytest.fixture
def plugins(node_a: Guest, node_b: Guest, all_plugins: dict[str, NodePlugin]) -> dict[str, NodePlugin]:
    """``rds-csi node`` by node, serving."""
    # Each keeps a processor busy for a while: they start at once.
    started = [plugin for plugin in all_plugins.values() if not plugin.process.running]
    for plugin in started:
        plugin.launch()
    for plugin in started:
        plugin.wait_serving()
    return all_plugins


@pytest.fixture
def kubelets(node_a: Guest, node_b: Guest, all_kubelets: dict[str, NodeKubelet]) -> dict[str, NodeKubelet]:
    """The kubelets by node, every Node Ready."""
    for kubelet in all_kubelets.values():
        if not (kubelet.containerd.running and kubelet.kubelet.running):
            kubelet.launch()
    for kubelet in all_kubelets.values():
        kubelet.wait_ready()
    return all_kubelets


@pytest.fixture
def cluster(plane: ControlPlane, kubelets: dict[str, NodeKubelet]) -> Iterator[RealCluster]:
    """This test's own claims, pods and records on the real nodes; they are removed afterwards."""
    cluster = RealCluster(plane.api, kubelets)
    yield cluster
    cluster.clean_up()


@pytest.fixture(scope="session")
def installation(
    plane: ControlPlane,
    one_box: BoxInGuest,
    all_kubelets: dict[str, NodeKubelet],
    all_plugins: dict[str, NodePlugin],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The shim and its sidecars with the box and both nodes; ask for ``site``."""
    if not one_box.running:
        one_box.start()
    with Site(plane, one_box, all_kubelets, all_plugins, tmp_path_factory.mktemp("shim")) as site:
        yield site


@pytest.fixture
def site(installation: Site, plugins: dict[str, NodePlugin], cluster: RealCluster) -> Iterator[Site]:
    """A whole installation, everything running; what a test breaks is mended, and must then be without left-overs."""
    yield installation
    installation.recover()
    cluster.leave()
    for node in installation.kubelets:
        installation.wait_clean(node)
