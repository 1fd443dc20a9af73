"""Migrations through the whole chain: claim, pods, attach/detach controller, csi-attacher, shim, record, operator, Events, metrics.

One story is played once, with a real wait for the least timeout, and looked at by many tests; the others do one thing each.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from tests.ring.api import ApiError, Object
from tests.ring.cluster import RECORD, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Metrics, Operator, Shim
from tests.ring.kubelet import Kubelet
from tests.ring.processes import Process
from tests.ring.proxy import Proxy
from tests.ring.rpc import Csi, code_of
from tests.ring.waiting import eventually

LEAST_TIMEOUT = 30
LONG_TIMEOUT = 600
MIGRATIONS = "rds_csi_migration_migrations_total"
DURATION_SUM = "rds_csi_migration_duration_seconds_sum"
DURATION_COUNT = "rds_csi_migration_duration_seconds_count"
ACTIVE = "rds_csi_migration_active_migrations"
OVERDUE = "rds_csi_migration_overdue"
RPCS = "csi_plugin_operations_seconds_count"

NAMES = ("completes", "rolls-back", "overdue", "lengthened", "shortened", "held-back")


@dataclass(frozen=True)
class Look:
    """What was to be seen at one moment."""

    records: Mapping[str, Object]
    metrics: Metrics
    table: str


@dataclass
class Story:
    """Six volumes, one migration each, and what was seen of them."""

    claims: dict[str, str] = field(default_factory=dict)
    handles: dict[str, str] = field(default_factory=dict)
    pods: dict[tuple[str, str], str] = field(default_factory=dict)
    source: str = ""
    target: str = ""
    looks: dict[str, Look] = field(default_factory=dict)
    events: dict[str, list[Object]] = field(default_factory=dict)
    described: str = ""
    listed: str = ""
    refused_third: list[str] = field(default_factory=list)
    refused_by_attacher: str = ""

    def status(self, look: str, name: str) -> Object:
        status: Object = self.looks[look].records[name]["status"]
        return status

    def window(self, look: str, name: str) -> Object:
        """Return the volume's open window, or its last one."""
        status = self.status(look, name)
        window: Object = status.get("migration") or status["history"][-1]
        return window

    def value(self, look: str, sample: str, **labels: str) -> float:
        return self.looks[look].metrics.value(sample, **labels)

    def counted(self, look: str) -> tuple[float, ...]:
        """Return how many migrations succeeded, failed, and ran out of time."""
        return tuple(self.value(look, MIGRATIONS, result=result) for result in ("success", "failed", "timeout"))

    def told(self, name: str) -> list[str]:
        """Return the reasons of the Events about the volume's migration, in order."""
        return [event["reason"] for event in self.events[name] if event["reason"].startswith("Migration")]

    def message(self, name: str, reason: str) -> str:
        (message,) = [event["message"] for event in self.events[name] if event["reason"] == reason]
        return str(message)


@pytest.fixture(scope="module")
def operator_proxy(installed: ControlPlane) -> Iterator[Proxy]:
    """What this file's operator goes through."""
    with Proxy(installed) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def operator(installed: ControlPlane, operator_proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The only operator while the tests of this file run, and no records but theirs."""
    for record in installed.api.list(RECORD):
        installed.api.delete(RECORD, record["metadata"]["name"])
        try:
            installed.api.patch(RECORD, record["metadata"]["name"], {"metadata": {"finalizers": None}})
        except ApiError as error:
            if error.status != 404:
                raise
    with Operator(installed, tmp_path_factory.mktemp("operator"), through=operator_proxy) as operator:
        yield operator


class Kubectl:
    """The real kubectl."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._command = [str(plane.binaries["kubectl"]), f"--kubeconfig={plane.kubeconfig}", f"--namespace={namespace}"]

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def story(
    installed: ControlPlane, kubelet: Kubelet, operator: Operator, shim: Shim, csi: Csi, attacher: Process, provisioner: Process
) -> Iterator[Story]:
    """The story, played to its end."""
    cluster = Cluster(installed.api, kubelet)
    try:
        yield Play(cluster, Kubectl(installed, cluster.namespace), operator, csi).play()
    finally:
        cluster.clean_up()


class Play:
    """Plays the story in its acts."""

    def __init__(self, cluster: Cluster, kubectl: Kubectl, operator: Operator, csi: Csi) -> None:
        self.cluster = cluster
        self.kubectl = kubectl
        self.operator = operator
        self.csi = csi
        self.story = Story(source=cluster.make_node("source"), target=cluster.make_node("target"))
        self.third = cluster.make_node("third")

    def play(self) -> Story:
        self.look("fresh")
        self.begin()
        self.restart()
        self.end_two()
        self.run_out()
        self.end()
        return self.story

    def look(self, moment: str) -> None:
        """Remember what is to be seen now."""
        records = {name: self.cluster.record(handle) or {} for name, handle in self.story.handles.items()}
        self.story.looks[moment] = Look(records, self.operator.scrape(), self.kubectl("get", "var", "-o", "wide"))

    def reported(self, *names: str) -> None:
        """Wait until everything about these volumes is reported."""
        for name in names:
            reported(self.cluster, self.story.handles[name])

    def attach(self, node: str, nodes: Sequence[str]) -> None:
        """Put a launcher pod of each volume on the node, which makes these nodes the holders."""
        for name in NAMES:
            self.story.pods[name, node] = self.cluster.launcher_pod(self.story.claims[name], node)
        for name in NAMES:
            self.cluster.wait_attached(self.story.handles[name], node, timeout=60)
            # What the record says is what the VolumeAttachments say, within five seconds.
            self.cluster.wait_nodes(self.story.handles[name], nodes, timeout=5)

    def leave(self, name: str, node: str) -> None:
        """Delete the volume's pod on the node."""
        self.cluster.delete_pod(self.story.pods[name, node])

    def begin(self) -> None:
        """Bind six claims, attach them twice, edit the timeout of two."""
        story, cluster = self.story, self.cluster
        classes = {
            seconds: cluster.make_storage_class(
                {"dualAttachPolicy": "AnyTwoNodes", "migrationTimeoutSeconds": str(seconds)}, stem=f"after-{seconds}"
            )
            for seconds in (LEAST_TIMEOUT, LONG_TIMEOUT)
        }
        for name in NAMES:
            seconds = LEAST_TIMEOUT if name in {"overdue", "lengthened"} else LONG_TIMEOUT
            story.claims[name] = cluster.make_claim(classes[seconds], stem=name)
        for name in NAMES:
            story.handles[name] = cluster.wait_bound(story.claims[name])
        self.attach(story.source, [story.source])
        self.attach(story.target, [story.source, story.target])
        cluster.patch_record(story.handles["lengthened"], {"migrationTimeoutSeconds": LONG_TIMEOUT})
        cluster.patch_record(story.handles["shortened"], {"migrationTimeoutSeconds": LEAST_TIMEOUT})
        self.reported(*NAMES)
        self.look("running")

    def restart(self) -> None:
        """Kill the operator and start it again."""
        self.operator.restart()
        eventually("what runs is seen", lambda: self.operator.scrape().value(ACTIVE) == len(NAMES), interval=0.2)
        self.look("after a restart")

    def end_two(self) -> None:
        """One source leaves, one target leaves, and one source's pod goes while its node still uses the volume."""
        story, cluster = self.story, self.cluster
        cluster.hold_detach(story.source, story.handles["held-back"])
        self.leave("held-back", story.source)
        self.leave("completes", story.source)
        self.leave("rolls-back", story.target)
        for name, left, stays in (
            ("completes", story.source, story.target),
            ("rolls-back", story.target, story.source),
        ):
            cluster.wait_detached(story.handles[name], left)
            cluster.wait_nodes(story.handles[name], [stays], timeout=5)
        self.reported("completes", "rolls-back")
        self.look("two ended")

    def run_out(self) -> None:
        """The deadlines pass, and a third node asks for the volume."""
        story, cluster = self.story, self.cluster
        handle = story.handles["overdue"]
        for name in ("overdue", "shortened"):
            cluster.wait_phase(story.handles[name], "Overdue", timeout=60)
        self.reported("overdue", "shortened")
        self.look("overdue")
        story.refused_third = [code_of(lambda: self.csi.publish(handle, self.third)) for _ in range(10)]
        third_pod = cluster.launcher_pod(story.claims["overdue"], self.third)
        story.refused_by_attacher = cluster.wait_attach_error(handle, self.third, story.source)
        cluster.wait_event(story.claims["overdue"], "AttachmentConflict")
        self.look("refused")
        cluster.delete_pod(third_pod)
        # The attach/detach controller leaves the VolumeAttachment of a refused attach behind for a while, and csi-attacher goes on
        # asking as long as it is there; the third node must not be next when a slot is free.
        cluster.delete_attachment(handle, self.third)
        cluster.wait_detached(handle, self.third)

    def end(self) -> None:
        """Whoever is still attached twice leaves one node."""
        story, cluster = self.story, self.cluster
        cluster.release_detach(story.source, story.handles["held-back"])
        cluster.wait_detached(story.handles["held-back"], story.source)
        for name in ("overdue", "shortened", "lengthened"):
            self.leave(name, story.target)
        for name in NAMES:
            cluster.wait_phase(story.handles[name], "Attached")
        self.reported(*NAMES)
        self.look("ended")
        story.events = {name: cluster.events(claim) for name, claim in story.claims.items()}
        story.described = self.kubectl("describe", "pvc", story.claims["overdue"])
        story.listed = self.kubectl("get", "events", f"--field-selector=involvedObject.name={story.claims['overdue']}")


def reported(cluster: Cluster, handle: str) -> Object:
    """Wait until the operator has reported everything about a volume."""
    return cluster.wait_record(handle, "reported", lambda status: not status.get("outbox"))


def _seconds(window: Object, since: str, until: str) -> float:
    return (datetime.fromisoformat(window[until]) - datetime.fromisoformat(window[since])).total_seconds()


# The story


@pytest.mark.requirement("R37")
def test_every_result_is_there_at_zero_before_the_first_migration(story: Story) -> None:
    assert story.counted("fresh") == (0, 0, 0)
    assert story.value("fresh", ACTIVE) == 0
    assert story.value("fresh", DURATION_COUNT) == 0
    assert story.value("fresh", "rds_csi_events_posted_total", reason="MigrationStarted") == 0


@pytest.mark.requirement("R44")
def test_a_running_migration_is_seen_on_the_record(story: Story) -> None:
    for name in NAMES:
        status = story.status("running", name)
        assert status["phase"] == "Migrating"
        assert status["nodes"] == f"{story.source},{story.target}"
        assert (status["migration"]["sourceNode"], status["migration"]["targetNode"]) == (story.source, story.target)
        assert status["claimRef"]["name"] == story.claims[name]
    assert story.value("running", ACTIVE) == len(NAMES)
    assert story.value("running", "rds_csi_attachment_records", phase="Migrating") == len(NAMES)


@pytest.mark.requirement("R11", "R44")
def test_kubectl_get_var_shows_who_where_since_when_and_until_when(story: Story) -> None:
    header, *rows = story.looks["running"].table.splitlines()
    assert header.split()[:8] == ["NAME", "PHASE", "NODES", "SOURCE", "TARGET", "SINCE", "DEADLINE", "CLAIM"]
    (row,) = [row.split() for row in rows if row.startswith(story.handles["overdue"])]
    window = story.window("running", "overdue")
    assert row[1:5] == ["Migrating", f"{story.source},{story.target}", story.source, story.target]
    assert row[6] == window["deadlineTime"]
    assert row[7] == story.claims["overdue"]
    (row,) = [row.split() for row in story.looks["overdue"].table.splitlines() if row.startswith(story.handles["overdue"])]
    assert row[1] == "Overdue"


@pytest.mark.requirement("R4")
def test_a_restarted_operator_counts_what_runs_from_the_records(story: Story) -> None:
    assert story.value("after a restart", ACTIVE) == len(NAMES)
    assert story.counted("after a restart") == (0, 0, 0)
    starts = [datetime.fromisoformat(story.window("running", name)["startTime"]).timestamp() for name in NAMES]
    oldest = "rds_csi_migration_oldest_active_start_timestamp_seconds"
    assert story.value("after a restart", oldest) == pytest.approx(min(starts), abs=0.01)


@pytest.mark.requirement("R3")
def test_a_source_that_leaves_completes_the_migration(story: Story) -> None:
    window = story.window("two ended", "completes")
    assert (window["result"], window["reason"]) == ("Succeeded", "SourceLeft")
    assert (window["leftNode"], window["liveNode"]) == (story.source, story.target)
    assert story.told("completes") == ["MigrationStarted", "MigrationCompleted"]
    message = story.message("completes", "MigrationCompleted")
    assert f"completed - source: {story.source} -> target: {story.target} (duration: " in message


@pytest.mark.requirement("R3")
def test_a_target_that_leaves_is_a_rollback_and_the_roles_stay(story: Story) -> None:
    window = story.window("two ended", "rolls-back")
    assert (window["result"], window["reason"]) == ("Failed", "RolledBack")
    assert (window["sourceNode"], window["targetNode"]) == (story.source, story.target)
    assert (window["leftNode"], window["liveNode"]) == (story.target, story.source)
    assert story.told("rolls-back") == ["MigrationStarted", "MigrationFailed"]
    message = story.message("rolls-back", "MigrationFailed")
    assert f"source: {story.source}, target: {story.target}, reason: rolled back" in message
    assert f"stays on {story.source}" in message


@pytest.mark.requirement("R2", "R3")
def test_what_ended_is_counted_once_and_under_its_own_result(story: Story) -> None:
    assert story.counted("two ended") == (1, 1, 0)
    assert story.value("two ended", ACTIVE) == len(NAMES) - 2
    lasted = sum(story.window("two ended", name)["durationSeconds"] for name in ("completes", "rolls-back"))
    assert story.value("two ended", DURATION_SUM) == pytest.approx(lasted, abs=0.1)
    assert story.value("two ended", DURATION_COUNT) == 2


@pytest.mark.requirement("R1", "R4")
def test_a_migration_past_its_deadline_is_reported_though_nobody_calls(story: Story) -> None:
    window = story.window("overdue", "overdue")
    assert (window["result"], window["reason"], window["timeoutSeconds"]) == ("TimedOut", "Timeout", LEAST_TIMEOUT)
    # From its start, though the operator was restarted meanwhile; never early, and at most two seconds late.
    assert 0 <= _seconds(window, "deadlineTime", "resultTime") <= 2
    assert story.status("overdue", "overdue")["nodes"] == f"{story.source},{story.target}"
    assert story.counted("overdue") == (1, 1, 2)
    assert story.value("overdue", OVERDUE) == 2
    assert story.told("overdue")[:2] == ["MigrationStarted", "MigrationFailed"]
    assert f"source: {story.source}, target: {story.target}, reason: timeout, elapsed: 30s (timeout: 30s)" in story.message(
        "overdue", "MigrationFailed"
    )


@pytest.mark.requirement("R1")
def test_refused_third_nodes_change_nothing_about_a_migration_that_ran_out_of_time(story: Story) -> None:
    assert story.refused_third == ["FAILED_PRECONDITION"] * 10
    for part in (story.handles["overdue"], story.source, story.target, "TimedOut"):
        assert part in story.refused_by_attacher
    assert story.counted("refused") == story.counted("overdue")
    assert story.window("refused", "overdue") == story.window("overdue", "overdue")
    assert story.told("overdue").count("MigrationFailed") == 1


@pytest.mark.requirement("R10")
def test_a_timeout_that_is_raised_on_a_running_migration_moves_its_deadline_away(story: Story) -> None:
    assert story.status("overdue", "lengthened")["phase"] == "Migrating"
    window = story.window("overdue", "lengthened")
    assert window["timeoutSeconds"] == LONG_TIMEOUT
    assert _seconds(window, "startTime", "deadlineTime") == LONG_TIMEOUT
    assert "MigrationFailed" in story.told("lengthened")
    assert "rolled back" in story.message("lengthened", "MigrationFailed")


@pytest.mark.requirement("R10")
def test_a_timeout_that_is_lowered_on_a_running_migration_brings_its_deadline_near(story: Story) -> None:
    window = story.window("overdue", "shortened")
    assert (window["result"], window["timeoutSeconds"]) == ("TimedOut", LEAST_TIMEOUT)
    assert 0 <= _seconds(window, "deadlineTime", "resultTime") <= 2


@pytest.mark.requirement("R3", "R44")
def test_a_volume_in_use_keeps_the_migration_open_until_the_node_lets_go(story: Story) -> None:
    assert story.status("refused", "held-back")["phase"] == "Migrating"
    assert story.status("refused", "held-back")["nodes"] == f"{story.source},{story.target}"
    assert story.window("ended", "held-back")["result"] == "Succeeded"
    assert story.told("held-back") == ["MigrationStarted", "MigrationCompleted"]


@pytest.mark.requirement("R1", "R2")
def test_a_result_never_changes_and_the_end_of_an_overdue_migration_is_told(story: Story) -> None:
    window = story.window("ended", "overdue")
    assert (window["result"], window["leftNode"], window["liveNode"]) == ("TimedOut", story.target, story.source)
    assert story.told("overdue") == ["MigrationStarted", "MigrationFailed", "MigrationEnded"]


@pytest.mark.requirement("R2", "R8")
def test_in_the_end_the_counts_are_the_migrations_that_were_started(story: Story) -> None:
    assert story.counted("ended") == (2, 2, 2)
    started = sum(story.told(name).count("MigrationStarted") for name in NAMES)
    assert sum(story.counted("ended")) == started == len(NAMES)
    assert story.value("ended", ACTIVE) == story.value("ended", OVERDUE) == 0
    assert story.value("ended", DURATION_COUNT) == len(NAMES)


@pytest.mark.requirement("R8", "R42")
def test_kubectl_shows_the_story_on_the_claim(story: Story) -> None:
    for text in (story.described, story.listed):
        for reason in ("MigrationStarted", "MigrationFailed", "MigrationEnded", "AttachmentConflict", "VolumeAttached"):
            assert reason in text
    assert "rds-csi-controller" in story.described
    rows = [row.split() for row in story.listed.splitlines()]
    assert {"MigrationStarted": "Normal", "MigrationFailed": "Warning"}.items() <= {row[2]: row[1] for row in rows[1:]}.items()


@pytest.mark.requirement("R42")
def test_events_say_which_operator_reported_them(story: Story) -> None:
    ours = [event for name in NAMES for event in story.events[name] if event["reason"].startswith(("Migration", "Volume"))]
    assert {event["source"]["component"] for event in ours} == {"rds-csi-controller"}
    assert {event["reportingComponent"] for event in ours} == {"rds-csi-controller"}
    assert all(event["reportingInstance"].startswith("rds-operator") for event in ours)
    assert {event["involvedObject"]["kind"] for event in ours} == {"PersistentVolumeClaim"}


# One thing each


@pytest.fixture
def nodes(cluster: Cluster) -> tuple[str, str, str]:
    return cluster.make_node("a"), cluster.make_node("b"), cluster.make_node("c")


@pytest.fixture
def make_claimed(csi: Csi, cluster: Cluster) -> Iterator[Callable[..., tuple[str, str]]]:
    """Return a function that makes a volume with a claim of this test's; returns handle and claim."""
    made: list[str] = []

    def make(**parameters: str) -> tuple[str, str]:
        handle = str(
            csi.create(cluster.name(f"vol-{len(made)}"), parameters={"dualAttachPolicy": "AnyTwoNodes", **parameters}).volume_id
        )
        made.append(handle)
        return handle, cluster.make_static_volume(handle=handle).claim

    yield make
    for handle in made:
        csi.unpublish(handle)


@pytest.mark.requirement("R41")
def test_a_hundred_refusals_are_one_event_and_all_counted(
    operator: Operator, shim: Shim, csi: Csi, cluster: Cluster, nodes: tuple[str, str, str], make_claimed: Any
) -> None:
    handle, claim = make_claimed()
    first, second, third = nodes
    csi.publish(handle, first)
    csi.publish(handle, second)
    before = shim.scrape()
    assert {csi.publish_code(handle, third) for _ in range(100)} == {"FAILED_PRECONDITION"}
    cluster.wait_event(claim, "AttachmentConflict")
    reported(cluster, handle)
    assert len(cluster.events(claim, reason="AttachmentConflict")) <= 3
    after = shim.scrape()
    conflicts, attaches = "rds_csi_attachment_conflicts_total", "rds_csi_attachment_attach_total"
    assert after.value(conflicts) - before.value(conflicts) == 100
    assert after.value(attaches, status="failure") - before.value(attaches, status="failure") == 100


@pytest.mark.requirement("R43")
def test_every_call_is_in_the_histogram_under_its_answer(
    shim: Shim, csi: Csi, cluster: Cluster, nodes: tuple[str, str, str]
) -> None:
    def counts() -> dict[tuple[str, str], float]:
        scrape = shim.scrape()
        keys = {(labels["method_name"], labels["grpc_status_code"]) for labels in scrape.labels(RPCS)}
        return {(method, code): scrape.value(RPCS, method_name=method, grpc_status_code=code) for method, code in keys}

    before = counts()
    handle = str(csi.create(cluster.name("counted")).volume_id)
    csi.publish(handle, nodes[0])
    csi.publish(handle, nodes[1])
    assert csi.publish_code(handle, nodes[2]) == "FAILED_PRECONDITION"
    assert code_of(lambda: csi.delete(handle)) == "FAILED_PRECONDITION"
    csi.unpublish(handle)
    reported(cluster, handle)
    csi.delete(handle)
    after = counts()
    # The shim has no other caller that publishes while this test runs; its sidecars only probe.
    for service, method, code, times in (
        ("Controller", "CreateVolume", "OK", 1),
        ("Controller", "ControllerPublishVolume", "OK", 2),
        ("Controller", "ControllerPublishVolume", "FailedPrecondition", 1),
        ("Controller", "ControllerUnpublishVolume", "OK", 1),
        ("Controller", "DeleteVolume", "FailedPrecondition", 1),
        ("Controller", "DeleteVolume", "OK", 1),
    ):
        key = (f"/csi.v1.{service}/{method}", code)
        assert after[key] - before.get(key, 0) == times, key


@pytest.mark.requirement("R44")
def test_the_number_of_series_does_not_grow_with_the_number_of_volumes(
    operator: Operator, shim: Shim, csi: Csi, cluster: Cluster, nodes: tuple[str, str, str], make_claimed: Any
) -> None:
    def migrate() -> str:
        handle: str = make_claimed()[0]
        csi.publish(handle, nodes[0])
        csi.publish(handle, nodes[1])
        csi.unpublish(handle, nodes[0])
        reported(cluster, handle)
        return handle

    def series() -> dict[str, set[str]]:
        return {
            process.name: {line.rsplit(" ", 1)[0] for line in process.scrape().text.splitlines() if not line.startswith("#")}
            for process in (operator, shim)
        }

    migrate()
    before = series()
    handles = [migrate() for _ in range(10)]
    assert series() == before
    assert not any(handle in text for handle in handles for text in before["rds-operator"])


@pytest.mark.requirement("R45")
def test_a_shim_whose_clock_is_an_hour_ahead_neither_lowers_durations_nor_hastens_deadlines(
    operator: Operator,
    csi: Csi,
    cluster: Cluster,
    nodes: tuple[str, str, str],
    make_claimed: Any,
    make_shim: Callable[..., Shim],
    proxy: Proxy,
) -> None:
    handle, claim = make_claimed(migrationTimeoutSeconds=str(LEAST_TIMEOUT))
    csi.publish(handle, nodes[0])
    before = operator.scrape()
    proxy.shift_date(3600)
    ahead = make_shim(through=proxy, name="shim-ahead")
    with Csi(ahead.endpoint) as other:
        other.publish(handle, nodes[1])
    assert reported(cluster, handle)["status"]["phase"] == "Migrating"
    csi.unpublish(handle, nodes[0])
    (window,) = reported(cluster, handle)["status"]["history"]
    assert (window["result"], window["durationSeconds"]) == ("Succeeded", 0)
    after = operator.scrape()
    assert after.value(DURATION_SUM) == pytest.approx(before.value(DURATION_SUM))
    assert after.value(DURATION_COUNT) - before.value(DURATION_COUNT) == 1
    clamps = "rds_csi_migration_clock_clamps_total"
    assert after.value(clamps) - before.value(clamps) == 1
    assert cluster.event_texts(claim)


def _run_a_migration(csi: Csi, handle: str, nodes: tuple[str, str, str]) -> None:
    csi.publish(handle, nodes[0])
    csi.publish(handle, nodes[1])
    csi.unpublish(handle, nodes[0])


@pytest.mark.requirement("R15", "R40")
def test_events_that_the_api_server_refuses_hold_up_no_attach_and_no_count(
    operator: Operator,
    operator_proxy: Proxy,
    csi: Csi,
    cluster: Cluster,
    nodes: tuple[str, str, str],
    make_claimed: Any,
) -> None:
    handle, claim = make_claimed()
    before = operator.scrape()
    with operator_proxy.fail("POST", "/events$", status=403, message="the namespace is being terminated"):
        _run_a_migration(csi, handle, nodes)
        reported(cluster, handle)
    after = operator.scrape()
    assert after.value(MIGRATIONS, result="success") - before.value(MIGRATIONS, result="success") == 1
    for reason in ("MigrationStarted", "MigrationCompleted"):
        failed = "rds_csi_events_failed_total"
        assert after.value(failed, reason=reason) - before.value(failed, reason=reason) == 1
    assert not [text for text in cluster.event_texts(claim) if "Migration" in text]


@pytest.mark.requirement("R15")
def test_events_that_cannot_be_posted_now_hold_up_no_attach_and_come_later_once(
    operator: Operator,
    operator_proxy: Proxy,
    csi: Csi,
    cluster: Cluster,
    nodes: tuple[str, str, str],
    make_claimed: Any,
) -> None:
    handle, claim = make_claimed()
    with operator_proxy.fail("POST", "/events$", status=503) as away:
        _run_a_migration(csi, handle, nodes)
        away.wait_hit(2)
        status = (cluster.record(handle) or {})["status"]
        assert status["history"][-1]["result"] == "Succeeded"
        assert [entry["kind"] for entry in status["outbox"]] == ["Started", "Succeeded"]
    reported(cluster, handle)
    told = [event["reason"] for event in cluster.events(claim) if event["reason"].startswith("Migration")]
    assert sorted(told) == ["MigrationCompleted", "MigrationStarted"]


@pytest.mark.requirement("R15")
def test_a_namespace_that_is_going_away_holds_up_no_attach(
    operator: Operator, csi: Csi, cluster: Cluster, nodes: tuple[str, str, str], make_claimed: Any
) -> None:
    handle, _ = make_claimed()
    stays = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "stays", "namespace": cluster.namespace, "finalizers": ["rds.csi.srvlab.io/test"]},
    }
    cluster.api.create(stays)
    cluster.api.delete("Namespace", cluster.namespace)
    before = operator.scrape()
    try:
        _run_a_migration(csi, handle, nodes)
        reported(cluster, handle)
    finally:
        cluster.api.patch("ConfigMap", "stays", {"metadata": {"finalizers": None}}, cluster.namespace)
    after = operator.scrape()
    assert after.value(MIGRATIONS, result="success") - before.value(MIGRATIONS, result="success") == 1
    failed = "rds_csi_events_failed_total"
    assert after.value(failed, reason="MigrationCompleted") - before.value(failed, reason="MigrationCompleted") == 1
