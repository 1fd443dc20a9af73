"""Fixtures of the ring: a real control plane shared by the session, and what stands before and around it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.ring.binaries import CONTROL_PLANE, SIDECARS, ensure
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import install
from tests.ring.kubelet import Kubelet
from tests.ring.processes import known_processes
from tests.ring.proxy import Proxy

KEPT_LOGS = Path(__file__).parents[2] / "test-logs"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what is missing before the first test starts, where no test's timeout runs and the progress can be seen."""
    needs_ring = any("control_plane" in getattr(item, "fixturenames", ()) for item in session.items)
    if not needs_ring or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        ensure((*CONTROL_PLANE, *SIDECARS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the log of every process where a test fails: ``test-logs/TEST/PROCESS.log``."""
    report = yield
    if report.failed:
        folder = KEPT_LOGS / re.sub(r"[^\w.-]+", "_", item.nodeid)
        for process in known_processes():
            if process.log.exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(process.log, folder / process.log.name)
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


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    """A proxy of this test's own before the API server."""
    with Proxy(control_plane) as proxy:
        yield proxy
