"""What people and dashboards see of KubeVirt's migrations, and what becomes of the operator where KubeVirt cannot be read."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.driver import Operator
from tests.ring.installation import OPERATOR, resources
from tests.ring.kubevirt import KubeVirt, Vm, install_kinds, remove_kinds
from tests.ring.proxy import Proxy
from tests.ring.waiting import eventually

pytestmark = pytest.mark.usefixtures("attacher", "provisioner")

MIGRATIONS = "rds_csi_migration_migrations_total"
KUBEVIRT_SECONDS = "rds_csi_migration_kubevirt_duration_seconds_sum"


@pytest.fixture(scope="module")
def operator_proxy(installed: ControlPlane) -> Iterator[Proxy]:
    with Proxy(installed) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def operator(installed: ControlPlane, operator_proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The only operator while the tests of this file run; it starts before KubeVirt's kinds are there."""
    with Operator(installed, tmp_path_factory.mktemp("operator"), through=operator_proxy) as operator:
        yield operator


class Pair:
    """A virtual machine on the first of two nodes."""

    def __init__(self, kubevirt: KubeVirt, *, disks: int = 1) -> None:
        self.kubevirt = kubevirt
        self.cluster = kubevirt.cluster
        tag = secrets.token_hex(2)
        self.a, self.b = self.cluster.make_node(f"a-{tag}"), self.cluster.make_node(f"b-{tag}")
        storage_class = self.cluster.make_storage_class({}, stem=f"class-{tag}")
        self.claims = [self.cluster.make_claim(storage_class) for _ in range(disks)]
        for claim in self.claims:
            self.cluster.wait_bound(claim)
        self.vm: Vm = kubevirt.run(f"vm-{tag}", claims=self.claims, node=self.a)
        self.handle = self.vm.handles[0]

    def status(self) -> Object:
        record = self.cluster.record(self.handle)
        assert record is not None
        status: Object = record["status"]
        return status

    def condition(self, kind: str, status: str) -> Object:
        """Wait until the record has a condition in that state; return it."""

        def there() -> Object | None:
            return next((one for one in self.status()["conditions"] if (one["type"], one["status"]) == (kind, status)), None)

        return eventually(f"{kind} is {status}", there, timeout=40)


def access(operator: Operator) -> dict[str, str]:
    """Return what the operator says of each of KubeVirt's kinds."""
    kinds: dict[str, str] = json.loads(operator.get("/readyz")[1])["kubevirt"]
    return kinds


def test_the_operator_starts_without_kubevirt_and_notices_its_kinds_when_they_appear(
    operator: Operator, installed: ControlPlane, cluster: Cluster
) -> None:
    eventually("it knows that there is no KubeVirt", lambda: set(access(operator).values()) == {"NotInstalled"})
    install_kinds(installed.api)
    try:
        kubevirt = KubeVirt(cluster)
        pair = Pair(kubevirt)
        kubevirt.migrate(pair.vm, to=pair.b).complete()
        pair.cluster.wait_record(pair.handle, "concluded", lambda status: status["history"][0].get("reason") == "MigrationState")
        kubevirt.clean_up()
    finally:
        remove_kinds(installed.api)


def test_kubevirt_that_is_removed_takes_its_virtual_machines_off_the_records(
    operator: Operator, installed: ControlPlane, cluster: Cluster
) -> None:
    install_kinds(installed.api)
    try:
        pair = Pair(KubeVirt(cluster))
        cluster.wait_record(pair.handle, "names its virtual machine", lambda status: "vmi" in status)
    finally:
        remove_kinds(installed.api)
    cluster.wait_record(pair.handle, "names none any more", lambda status: "vmi" not in status)


@pytest.mark.requirement("R9")
def test_kubevirts_own_duration_is_a_metric_of_its_own(operator: Operator, kubevirt: KubeVirt) -> None:
    pair = Pair(kubevirt)
    before = operator.scrape()
    run = kubevirt.migrate(pair.vm, to=pair.b).until("Running")
    begin = datetime.now(UTC) - timedelta(seconds=40)
    run._write_state(startTimestamp=begin.strftime("%Y-%m-%dT%H:%M:%SZ"))
    run.complete()
    record = pair.cluster.wait_record(pair.handle, "reported", lambda status: status["history"] and not status["outbox"])
    after = operator.scrape()
    assert after.value(KUBEVIRT_SECONDS) - before.value(KUBEVIRT_SECONDS) == pytest.approx(40, abs=1.5)
    window = record["status"]["history"][0]
    assert window["durationSeconds"] < 30
    lasted = "rds_csi_migration_duration_seconds_sum"
    assert after.value(lasted) - before.value(lasted) == pytest.approx(window["durationSeconds"], abs=0.01)


@pytest.mark.requirement("R7")
def test_a_second_node_without_a_migration_is_refused_and_counts_nothing(operator: Operator, kubevirt: KubeVirt) -> None:
    pair = Pair(kubevirt)
    pair.cluster.wait_record(pair.handle, "names its virtual machine", lambda status: "vmi" in status)
    before = operator.scrape()
    pair.cluster.launcher_pod(pair.claims[0], pair.b)
    pair.cluster.wait_attach_error(pair.handle, pair.b, "NoTargetPod")
    pair.cluster.wait_event(pair.claims[0], "AttachmentConflict")
    eventually(
        "the virtual machine whose disk it is is told",
        lambda: pair.cluster.events(pair.vm.name, kind="VirtualMachineInstance", reason="AttachmentConflict"),
    )
    assert pair.status()["phase"] == "Attached"
    after = operator.scrape()
    for result in ("success", "failed", "timeout"):
        assert after.value(MIGRATIONS, result=result) == before.value(MIGRATIONS, result=result)


def test_a_refused_pod_of_a_virtual_machine_is_an_event_on_the_virtual_machine(operator: Operator, kubevirt: KubeVirt) -> None:
    pair = Pair(kubevirt)
    run = kubevirt.migrate(pair.vm, to=pair.b).until("target pod")
    # It is over before its pod asks for the disk.
    run.ask_to_cancel()
    kubevirt._drop_finalizers("VirtualMachineInstanceMigration", run.name)
    kubevirt._bind(run.target.name, pair.b)
    pair.cluster.wait_attach_error(pair.handle, pair.b, "NoLiveMigration")

    def told() -> list[Object]:
        return pair.cluster.events(pair.vm.name, kind="VirtualMachineInstance", reason="AttachmentConflict")

    (event,) = eventually("the virtual machine is told", told)
    assert event["type"] == "Warning"
    assert run.target.name in event["message"]
    assert event["involvedObject"]["uid"] == pair.vm.uid


def kubectl(plane: ControlPlane, *words: str) -> str:
    done = subprocess.run(
        [str(plane.binaries["kubectl"]), f"--kubeconfig={plane.kubeconfig}", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.requirement("R11", "R44")
def test_kubectl_lists_the_volumes_of_one_virtual_machine_and_shows_its_migration(
    operator: Operator, kubevirt: KubeVirt, installed: ControlPlane
) -> None:
    pair, other = Pair(kubevirt, disks=3), Pair(kubevirt)
    for handle in (*pair.vm.handles, other.handle):
        pair.cluster.wait_record(handle, "names its virtual machine", lambda status: "vmi" in status)
    run = kubevirt.migrate(pair.vm, to=pair.b).until("Running")
    for handle in pair.vm.handles:
        pair.cluster.wait_record(handle, "has KubeVirt's deadline", lambda status: "deadlineTime" in status["migration"])
    listed = kubectl(installed, "get", "var", "-o", "wide", f"--field-selector=status.vmi.name={pair.vm.name}")
    header, *rows = listed.splitlines()
    assert sorted(row.split()[0] for row in rows) == sorted(pair.vm.handles)
    for row in rows:
        for part in ("Migrating", pair.a, pair.b, pair.vm.name, run.name):
            assert part in row
    for column in ("SOURCE", "TARGET", "SINCE", "DEADLINE", "AGE", "VM", "MIGRATION"):
        assert column in header
    described = kubectl(installed, "describe", "var", pair.handle)
    assert f"Live Node:                {pair.a}".split() == next(
        line.split() for line in described.splitlines() if line.strip().startswith("Live Node:")
    )
    run.complete()


def test_the_deadline_is_kubevirts_own_from_the_moment_that_the_run_was_seen_to_start(
    operator: Operator, kubevirt: KubeVirt
) -> None:
    pair = Pair(kubevirt)
    run = kubevirt.migrate(pair.vm, to=pair.b).until("TargetReady")
    assert "deadlineTime" not in pair.status()["migration"]
    run.until("started")
    record = pair.cluster.wait_record(pair.handle, "has a deadline", lambda status: "deadlineTime" in status["migration"])
    window = record["status"]["migration"]
    # 2Gi are three units of 10^9 bytes, 150 s each, and two minutes for letting go.
    assert window["timeoutSeconds"] == 3 * 150 + 120
    seen, deadline = (datetime.fromisoformat(window[name]) for name in ("runStartTime", "deadlineTime"))
    assert (deadline - seen).total_seconds() == window["timeoutSeconds"]
    pair.cluster.patch_record(pair.handle, {"migrationTimeoutSeconds": 1000})
    moved = pair.cluster.wait_record(pair.handle, "is its own", lambda status: status["migration"].get("timeoutSeconds") == 1000)
    window = moved["status"]["migration"]
    begun, deadline = (datetime.fromisoformat(window[name]) for name in ("startTime", "deadlineTime"))
    assert (deadline - begun).total_seconds() == 1000
    run.complete()


def test_a_migration_that_does_not_start_is_told_with_where_it_hangs_and_what_is_safe(
    operator: Operator, operator_proxy: Proxy, kubevirt: KubeVirt
) -> None:
    pair = Pair(kubevirt)
    run = kubevirt.migrate(pair.vm, to=pair.b).not_ready()
    pair.cluster.wait_phase(pair.handle, "Migrating")
    operator_proxy.shift_date(21 * 60)
    try:
        condition = pair.condition("SlowStart", "True")
        (event,) = eventually(
            "the virtual machine is told",
            lambda: pair.cluster.events(pair.vm.name, kind="VirtualMachineInstance", reason="MigrationSlowStart"),
        )
    finally:
        operator_proxy.clear()
        operator_proxy.shift_date(0)
    assert f"migration {run.name} is in phase Scheduling" in condition["message"]
    assert f"its target pod {run.target.name} runs and is not ready" in condition["message"]
    assert f"the VM runs on {pair.a}" in event["message"]
    safe = f"kubectl -n {pair.cluster.namespace} delete virtualmachineinstancemigration {run.name}"
    assert safe in event["message"]
    assert pair.status()["migration"].get("result") is None
    # What it says is safe is what is done.
    run.cancel().complete()
    pair.cluster.wait_record(pair.handle, "ended", lambda status: status["history"][-1].get("reason") == "MigrationGone")
    assert pair.condition("SlowStart", "False")


def test_a_pod_that_is_no_part_of_the_virtual_machine_is_told_while_it_is_there(operator: Operator, kubevirt: KubeVirt) -> None:
    pair = Pair(kubevirt)
    run = kubevirt.migrate(pair.vm, to=pair.b).until("Running")
    # It lands on a node that holds the volume already, so nobody is asked.
    pod = pair.cluster.launcher_pod(pair.claims[0], pair.a, stem="backup")
    assert pod in pair.condition("ForeignPod", "True")["message"]
    assert pod in pair.cluster.wait_event(pair.claims[0], "ForeignPod")["message"]
    pair.cluster.delete_pod(pod)
    run.complete()
    pair.condition("ForeignPod", "False")


def test_an_operator_that_may_not_read_migrations_says_so_on_the_record_and_guesses_nothing(
    operator: Operator, kubevirt: KubeVirt, installed: ControlPlane, tmp_path: Path
) -> None:
    pair = Pair(kubevirt)
    (shipped,) = [body for body in resources() if body["kind"] == "ClusterRole" and body["metadata"]["name"] == OPERATOR]
    rules = [rule for rule in shipped["rules"] if rule["apiGroups"] != ["kubevirt.io"]]
    run = kubevirt.migrate(pair.vm, to=pair.b).until("Running")
    operator.kill()
    installed.api.patch("ClusterRole", OPERATOR, {"rules": rules})
    try:
        operator.start()
        condition = pair.condition("VerdictReadable", "False")
        assert condition["reason"] == "Forbidden"
        assert "virtualmachineinstance" in condition["message"]
        run.complete()
        record = pair.cluster.wait_record(pair.handle, "closed", lambda status: status.get("history"))
        assert "result" not in record["status"]["history"][0]
    finally:
        installed.api.patch("ClusterRole", OPERATOR, {"rules": shipped["rules"]})
    pair.cluster.wait_record(pair.handle, "concluded", lambda status: status["history"][0].get("result") == "Succeeded")
    pair.cluster.wait_event(pair.claims[0], "MigrationCompleted")
