"""The transcripts in docs/kubectl-rds.md are what the plugin prints: one story is played, and each page of it compared.

Compared are words. Names that differ from run to run, times and the widths of columns are masked on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from rds_kubectl import cli
from rds_kubectl.workloads import CONFIG_MAP, KINDS
from tests.documents import blocks
from tests.ring.installation import NAMESPACE, resources, say_ready
from tests.ring.kubevirt import KubeVirt, install_kinds
from tests.ring.plugin import DOCTOR, RELEASER, VIEWER, Plugin
from tests.ring.stack import Stack, reach
from tests.ring.waiting import eventually

PROMPT = "$ kubectl rds "
TRANSCRIPTS = {
    text.splitlines()[0].removeprefix(PROMPT): text.split("\n", 1)[1]
    for page, text in blocks("")
    if page == "kubectl-rds.md" and text.startswith(PROMPT)
}
"""What the page shows, by the command."""

MASKS = (
    (r"\btest-[0-9a-f]{8}\b", "vms"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z| UTC)?", "TIME"),
    (r"\b\d\d:\d\d:\d\d\b", "TIME"),
    # Before ages: a part of it may read as one.
    (r"pvc-[0-9a-f]{8}-[0-9a-f-]{27}", "HANDLE"),
    (r"\b(\d+(ms|[smhd]))+\b", "AGE"),
    (r"\b\d+\.\d s\b", "SECONDS"),
    (r"csi-[0-9a-f]{64}", "ATTACHMENT"),
    (r"(virt-launcher-\w+|kubevirt-migrate-vm)-[0-9a-z]{5,6}\b", r"\1-SUFFIX"),
    (r"SHA256:[A-Za-z0-9+/]{43}", "FINGERPRINT"),
    (r"\b\d+\.\d+\.\d+\.\d+:\d+\b", "BOX"),
    (r"\b(rds-address) [\d.]+", r"\1 HOST"),
    (r"port \d+ on \d+\.\d+\.\d+\.\d+", "PORT"),
    (r"\brds-[0-9a-f]{8}\b", "rds"),
    (r"\bv?\d+\.\d+\.\d+\b", "VERSION"),
    (r"\b(has all) \d+\b", r"\1 MANY"),
    (r" {2,}", "   "),
    (r" +$", ""),
)


ROWS = re.compile(r"^((?:Pods|Events)\n.*\n)((?:  .*\n?)+)", re.MULTILINE)
"""The rows of a table without an order of its own, after its title and its head."""


def masked(text: str) -> str:
    """Return the text with all that differs from run to run masked."""
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    # Pods have names by chance, and Events of one second come in any order.
    return ROWS.sub(lambda table: table[1] + "\n".join(sorted(table[2].splitlines())), text.strip())


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each command printed, in a cluster of its own: two VMs, a migration, a node that falls silent, a box that is off."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield play(stack)


def play(stack: Stack) -> dict[str, str]:
    """Play the story; return the page of each command."""
    api, cluster, box = stack.plane.api, stack.cluster, stack.box()
    install_kinds(api)
    box.switch(version="7.24")
    shim = stack.shim(reach(box))
    stack.sidecars(shim)
    stack.operator("rds-operator-7d9c", reach(box), ("--inventory-interval=0.5s",))
    api.patch("ConfigMap", CONFIG_MAP, {"data": {"RDS_ADDRESS": "127.0.0.1", "RDS_PORT": str(box.port)}}, NAMESPACE)
    for name, kind in KINDS.items():
        say_ready(stack.plane, kind, name)
    person = Plugin(stack.plane, VIEWER, RELEASER, DOCTOR)
    pages: dict[str, str] = {}

    def show(command: str, status: int = 0) -> None:
        pages[command] = person.page(*command.replace("vms/", f"{cluster.namespace}/").split(), status=status)

    for name in ("node-a", "node-b", "node-c"):
        cluster.make_node(name=name)
    storage_class = cluster.make_storage_class(stem="rds")
    kubevirt = KubeVirt(cluster)
    machines = {}
    for name, node in (("db", "node-c"), ("web", "node-a")):
        claim = cluster.make_claim(storage_class, name=f"{name}-root", size="50Gi")
        cluster.wait_bound(claim)
        machines[name] = kubevirt.run(name, claims=[claim], node=node)
    web = machines["web"]
    for machine in machines.values():
        cluster.wait_record(
            machine.handles[0], "is seen on the box", lambda status: status.get("vmi") and "DiskPresent" in str(status)
        )
        cluster.wait_event(machine.disks[0].claim, "VolumeAttached")
    # Events are gone after an hour.
    for event in api.list("Event", cluster.namespace):
        api.delete("Event", event["metadata"]["name"], cluster.namespace)

    with person.watching("migrations", "-w") as watch:
        eventually("the watch has begun", lambda: "No migration is open" in watch.log.read_text())
        run = kubevirt.migrate(web, to="node-b").until("Running")
        for reason in ("MigrationStarted", "VolumeAttached"):
            cluster.wait_event(web.disks[0].claim, reason)
        eventually("its deadline is printed", lambda: "deadline" in watch.log.read_text())
        kubevirt.lose("node-c")
        show("status")
        show("volume vms/web-root")
        run.until("moved")
        cluster.wait_record(web.handles[0], "moved", lambda status: status["migration"].get("liveNode") == "node-b")
        run.until("Succeeded")
        cluster.wait_record(web.handles[0], "concluded", lambda status: status["migration"].get("result") == "Succeeded")
        run.complete()
        cluster.wait_event(web.disks[0].claim, "MigrationEnded")
        eventually("its end is printed", lambda: "Succeeded after" in watch.log.read_text())
        pages["migrations -w"] = watch.log.read_text()
    show("migrations")

    show("release vms/db-root node-c", status=1)
    left = cluster.make_static_volume(claim="old-root")
    cluster.make_attachment(left.pv, left.handle, "node-b")
    cluster.wait_attached(left.handle, "node-b")
    show("release vms/old-root node-b --dry-run")
    show("release vms/old-root node-b")

    box.stop()
    eventually("the box is told to be off", lambda: person.checks()["Box SSH"]["state"] == "WRONG")
    for body in resources():
        if body["kind"].endswith("Binding"):
            # As shipped: elsewhere in the ring each sidecar has an account of its own.
            api.apply(body)
    show("doctor")
    return pages


@pytest.mark.parametrize("command", list(TRANSCRIPTS))
def test_the_page_shows_what_is_printed(command: str, printed: dict[str, str]) -> None:
    assert masked(TRANSCRIPTS[command]) == masked(printed[command]), f"it prints\n{printed[command]}"


def test_every_command_has_a_transcript() -> None:
    (commands,) = [action.choices for action in cli.parser()._actions if action.dest == "command"]
    assert commands
    assert {command.split()[0] for command in TRANSCRIPTS} == set(commands)
    assert "migrations -w" in TRANSCRIPTS
