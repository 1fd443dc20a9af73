"""Fixtures of the guests: one set of them for the session, started when the first test asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import logs
from tests.ring.processes import known_processes
from tests.vm.guests import Guest, Guests, known_guest_processes
from tests.vm.kernel import NotMade, bootable
from tests.vm.packages import PackagesMissing

HERE = Path(__file__).parent
SSH_PORT = 22
KUBELET_PORT = 10250
CSI_PORT = 9000
METRICS_PORT = 9810


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that they can be run apart from all others: two sets of guests are too much at once."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("guests")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make what is missing before the first test starts, where no test's timeout runs and the progress can be seen."""
    if session.config.option.collectonly or not any(item.get_closest_marker("guests") for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    # The tests that need it fail with what was wrong; those that do not, run.
    with capture.global_and_fixture_disabled(), contextlib.suppress(PackagesMissing, NotMade):
        bootable()


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
    """The guests, by name: ``box``, a target, and the initiators ``node-a`` and ``node-b``."""
    with Guests(tmp_path_factory.mktemp("guests")) as guests:
        made = [guests.target("box", forwards=[SSH_PORT])]
        made += [guests.initiator(name, forwards=[KUBELET_PORT, CSI_PORT, METRICS_PORT]) for name in ("node-a", "node-b")]
        guests.start()
        yield {guest.name: guest for guest in made}


@pytest.fixture
def target(guests: dict[str, Guest]) -> Guest:
    """The guest with nvmet and the disk."""
    return running(guests["box"])


@pytest.fixture
def node_a(guests: dict[str, Guest]) -> Guest:
    """An initiator."""
    return running(guests["node-a"])


@pytest.fixture
def node_b(guests: dict[str, Guest]) -> Guest:
    """Another initiator."""
    return running(guests["node-b"])


def running(guest: Guest) -> Guest:
    """Return a guest that runs, whatever a test before has done to it."""
    return guest if guest.running else guest.start()
