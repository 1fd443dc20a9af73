"""Fixtures of the ring: a real control plane shared by the session, and what stands before and around it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import logs
from tests.ring.binaries import CONTROL_PLANE, MONITORING, QUERIES, SIDECARS, ensure
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.definitions import install_definitions, remove_definitions
from tests.ring.driver import Operator, Shim
from tests.ring.installation import install
from tests.ring.kubelet import Kubelet
from tests.ring.kubevirt import KubeVirt, install_kinds, remove_kinds
from tests.ring.processes import Process, known_processes
from tests.ring.prometheus import Prometheus
from tests.ring.proxy import Proxy
from tests.ring.rpc import Csi
from tests.ring.sidecars import csi_attacher, csi_provisioner, csi_resizer, csi_snapshotter, snapshot_controller
from tests.ring.snapshots import Snapshots
from tests.ring.stack import reach
from tests.simulator.box import SimulatedBox

SNAPSHOT_KINDS = ("volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what is missing before the first test starts, where no test's timeout runs and the progress can be seen."""
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    names = (*(CONTROL_PLANE + SIDECARS if "control_plane" in wanted else ()), *(QUERIES if "prometheus" in wanted else ()))
    names += tuple(name for name in MONITORING if name in wanted or "watched" in wanted)
    if not names or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        ensure(names)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the log of every process where a test fails: ``test-logs/TEST/PROCESS.log``."""
    report = yield
    if report.failed:
        logs.keep(item.nodeid, {process.log.name: process.log for process in known_processes()})
    return report


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One etcd, kube-apiserver and kube-controller-manager for all tests of the session."""
    with ControlPlane(tmp_path_factory.mktemp("ring")) as plane:
        yield plane


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with everything that ``manifests/`` ships."""
    install(control_plane)
    return control_plane


@pytest.fixture(scope="session")
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    """The played kubelets of all nodes."""
    with Kubelet(control_plane.api) as kubelet:
        yield kubelet


@pytest.fixture
def cluster(installed: ControlPlane, kubelet: Kubelet) -> Iterator[Cluster]:
    """This test's own nodes, claims, pods and records; they are removed afterwards."""
    cluster = Cluster(installed.api, kubelet)
    yield cluster
    cluster.clean_up()


@pytest.fixture(scope="module")
def kubevirt_kinds(installed: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with KubeVirt's kinds; files that do not ask for them meet a cluster without KubeVirt."""
    install_kinds(installed.api)
    yield installed
    remove_kinds(installed.api)


@pytest.fixture
def kubevirt(cluster: Cluster, kubevirt_kinds: ControlPlane) -> Iterator[KubeVirt]:
    """The played KubeVirt of this test's namespace."""
    kubevirt = KubeVirt(cluster)
    yield kubevirt
    kubevirt.clean_up()


@pytest.fixture(scope="module")
def snapshot_kinds(installed: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with the snapshot kinds; files that do not ask for them meet a cluster without."""
    files = [ensure(["snapshot-kinds"])["snapshot-kinds"] / f"snapshot.storage.k8s.io_{kind}.yaml" for kind in SNAPSHOT_KINDS]
    for file in files:
        install_definitions(installed.api, file)
    yield installed
    for file in files:
        remove_definitions(installed.api, file)


@pytest.fixture
def snapshots(cluster: Cluster, snapshot_kinds: ControlPlane) -> Iterator[Snapshots]:
    """The snapshots of this test's namespace."""
    snapshots = Snapshots(cluster)
    yield snapshots
    snapshots.clean_up()


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    """A proxy of this test's own before the API server."""
    with Proxy(control_plane) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def shared_proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    """One proxy for all tests of this file."""
    with Proxy(control_plane) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """The box that the shared shim talks to; a test that turns its switches turns them back."""
    with SimulatedBox(tmp_path_factory.mktemp("box")) as box:
        yield box


@pytest.fixture(scope="session")
def shim(installed: ControlPlane, box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    """A shim that tests share; those that kill one make their own (``make_shim``)."""
    with Shim(installed, tmp_path_factory.mktemp("shim"), reach(box)) as shim:
        yield shim


@pytest.fixture(scope="session")
def csi(shim: Shim) -> Iterator[Csi]:
    """CSI calls to the shared shim."""
    with Csi(shim.endpoint) as csi:
        yield csi


@pytest.fixture(scope="module")
def behind(
    installed: ControlPlane, box: SimulatedBox, shared_proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shim]:
    """A shim whose API server is behind that proxy."""
    with Shim(installed, tmp_path_factory.mktemp("behind"), reach(box), through=shared_proxy) as shim:
        yield shim


@pytest.fixture(scope="module")
def through(behind: Shim) -> Iterator[Csi]:
    """CSI calls to that shim."""
    with Csi(behind.endpoint) as csi:
        yield csi


@pytest.fixture
def make_volume(csi: Csi, cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Return a function that makes a volume on the box and returns its handle; arguments as ``Csi.create``'s, ``by`` its client."""
    made: list[str] = []

    def make(name: str = "", *, by: Csi = csi, **arguments: Any) -> str:
        handle = str(by.create(name or f"pvc-{uuid4()}", **arguments).volume_id)
        made.append(handle)
        return handle

    yield make
    for handle in made:
        csi.unpublish(handle)
        csi.delete(handle)
        cluster.forget(handle)


@pytest.fixture
def make_shim(
    installed: ControlPlane, box: SimulatedBox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Shim]]:
    """Return a function that starts a shim of this test's own; arguments as ``Shim``'s, ``box`` a SimulatedBox."""
    with ExitStack() as ends:

        def make(box: SimulatedBox = box, **arguments: Any) -> Shim:
            return ends.enter_context(Shim(installed, tmp_path_factory.mktemp("shim"), reach(box), **arguments))

        yield make


@pytest.fixture
def make_operator(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Operator]]:
    """Return a function that starts an operator of this test's own; a file that uses it does not use ``operator``."""
    with ExitStack() as ends:

        def make(**arguments: Any) -> Operator:
            return ends.enter_context(Operator(installed, tmp_path_factory.mktemp("operator"), **arguments))

        yield make


@pytest.fixture(scope="module")
def operator(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The only operator while the tests of one file run."""
    with Operator(installed, tmp_path_factory.mktemp("operator")) as operator:
        yield operator


@pytest.fixture(scope="session")
def prometheus() -> Prometheus:
    """Prometheus' engine, for queries over samples that a test names."""
    return Prometheus(ensure(QUERIES)["promql"])


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' tool for rules."""
    return ensure(["promtool"])["promtool"]


@pytest.fixture(scope="module")
def attacher(installed: ControlPlane, shim: Shim) -> Iterator[Process]:
    """A csi-attacher beside the shared shim, while the tests of one file run; other files play its part."""
    with csi_attacher(installed, shim.socket, installed.logs) as process:
        yield process


@pytest.fixture(scope="module")
def provisioner(installed: ControlPlane, shim: Shim) -> Iterator[Process]:
    """A csi-provisioner beside the shared shim, while the tests of one file run."""
    with csi_provisioner(installed, shim.socket, installed.logs) as process:
        yield process


@pytest.fixture(scope="module")
def resizer(installed: ControlPlane, shim: Shim) -> Iterator[Process]:
    """A csi-resizer beside the shared shim, while the tests of one file run."""
    with csi_resizer(installed, shim.socket, installed.logs) as process:
        yield process


@pytest.fixture(scope="module")
def snapshot_control(snapshot_kinds: ControlPlane) -> Iterator[Process]:
    """The cluster's snapshot-controller, while the tests of one file run."""
    with snapshot_controller(snapshot_kinds, snapshot_kinds.logs) as process:
        yield process


@pytest.fixture(scope="module")
def snapshotter(snapshot_control: Process, snapshot_kinds: ControlPlane, shim: Shim) -> Iterator[Process]:
    """A csi-snapshotter beside the shared shim, and the snapshot-controller, while the tests of one file run."""
    with csi_snapshotter(snapshot_kinds, shim.socket, snapshot_kinds.logs) as process:
        yield process
