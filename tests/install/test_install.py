"""The chart in a cluster: installed as the documentation says, used, upgraded under an open migration, uninstalled, and again.

Controller and operator run in containers of the image, under their own accounts, users and rights, several of each; the API server,
its controllers, the sidecars and the SSH of the box are real. The node plugin's pods are only said to run: guests prove those.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.image.building import Image, built
from tests.install.containers import RootFilesystem, Sandbox
from tests.install.guide import Reader, blocks, tools, variables
from tests.install.pods import Machine
from tests.ring.api import Object
from tests.ring.binaries import ensure
from tests.ring.cluster import RECORD, Cluster
from tests.ring.controlplane import CONTROLLERS, WORKLOADS, ControlPlane
from tests.ring.definitions import install_definitions
from tests.ring.installation import CONTROLLER, NAMESPACE, OPERATOR, ROOT
from tests.ring.kubelet import Kubelet
from tests.ring.kubevirt import KubeVirt, Step, install_kinds
from tests.ring.packaging import rendered_by_helm
from tests.ring.processes import LOOPBACK, LOOPBACK_FROM_GUESTS
from tests.ring.sidecars import snapshot_controller
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

REPOSITORY = "registry.example/rds-csi"
NEXT = "next"
"""The tag of the image that is upgraded to."""

SIDECARS = ("csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter")


@dataclass
class Story:
    """What was seen, by what was done."""

    doctor: str = ""
    volumes: str = ""
    pods: dict[str, list[Object]] = field(default_factory=dict)
    users: dict[str, set[str]] = field(default_factory=dict)
    first: Object = field(default_factory=dict)
    before: Object = field(default_factory=dict)
    during: Object = field(default_factory=dict)
    replaced: bool = False
    result: Object = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    again: Object = field(default_factory=dict)
    disks: list[int] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def image() -> Image:
    return built()


@pytest.fixture(scope="module")
def story(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Play all of it once; the tests look at what was seen."""
    folder = tmp_path_factory.mktemp("install")
    # The path of a unix socket holds 107 bytes.
    short = Path(tempfile.mkdtemp(prefix="rds-pods-"))
    try:
        with ExitStack() as ends:
            yield play(image, folder, short, ends)
    finally:
        shutil.rmtree(short, ignore_errors=True)


def play(image: Image, folder: Path, short: Path, ends: ExitStack) -> Story:
    """Install, use, upgrade, uninstall and install again."""
    story = Story()
    plane = ends.enter_context(ControlPlane(folder / "plane", controllers=(*CONTROLLERS, *WORKLOADS)))
    install_others(plane, ends, folder)
    kubelet = ends.enter_context(Kubelet(plane.api))
    box = ends.enter_context(SimulatedBox(folder / "box", host_key_type="ssh-rsa", version="7.24"))
    cluster = Cluster(plane.api, kubelet)
    source, target = (cluster.make_node(name=f"node-{letter}") for letter in "ab")
    for node in (source, target):
        plane.api.patch("Node", node, {"metadata": {"labels": {"kubernetes.io/os": "linux"}}})
    machine = ends.enter_context(Machine(plane, NAMESPACE, source, images(image, folder), short, folder / "logs"))
    desk = Sandbox("desk", short / "desk", folder / "logs")
    desk.start()
    ends.callback(desk.stop)
    reader = reader_at(desk, plane, box, folder)

    reader.follow("A key for the box")
    box.admit((folder / "desk" / "rds-private-key.pub").read_text())
    reader.follow("The namespace and the Secret")
    at_commit("HEAD~1", folder / "before")
    swap_chart(folder, folder / "before")
    reader.follow("With Helm")
    story.doctor = reader.follow("Whether it works")
    story.pods = {workload: machine.running(workload) for workload in (CONTROLLER, OPERATOR)}
    story.users = {workload: users_of(machine, workload) for workload in (CONTROLLER, OPERATOR)}
    story.volumes = reader.follow("The first volume")
    story.first = plane.api.get("PersistentVolumeClaim", "first", "default")

    kubevirt = KubeVirt(cluster)
    claim = cluster.make_claim("rds-vm", name="moves")
    cluster.wait_bound(claim)
    handle = cluster.handle_of(claim)
    vm = kubevirt.run("moves", claims=[claim], node=source)
    run = kubevirt.migrate(vm, to=target).until(Step.RUNNING)
    story.before = cluster.wait_record(handle, "KubeVirt's run is known", lambda status: status["migration"].get("runStartTime"))

    uids = {body["metadata"]["uid"] for workload in (CONTROLLER, OPERATOR) for body in machine.running(workload)}
    swap_chart(folder, ROOT)
    block = next(block for block in blocks() if block.section == "Upgrade")
    reader.run(f"{block.text.rstrip()} --set image.tag={NEXT} --wait --timeout 5m")
    reader.run(next(block.text for block in blocks() if block.section == "Whether it works").replace("kubectl rds doctor", ""))
    eventually("the old pods are gone", lambda: not uids & {uid_of(body) for body in machine.running("rds-")}, timeout=120)
    story.replaced = True
    story.during = record_of(plane, handle)
    run.complete()
    story.result = cluster.wait_nodes(handle, [target], timeout=60)
    eventually("it is told", lambda: not record_of(plane, handle)["status"].get("outbox"), timeout=60)
    story.result = record_of(plane, handle)
    story.restarts = {body["metadata"]["name"]: restarts_of(body) for body in plane.api.list("Pod", NAMESPACE)}

    story.disks.append(len(box.disks()))
    reader.follow("Uninstall")
    story.left = {kind: len(plane.api.list(kind)) for kind in (RECORD, "PersistentVolume")}
    story.disks.append(len(box.disks()))
    story.gone = sorted(kind for kind, namespace, name in rendered_by_helm() if plane.api.find(kind, name, namespace or None))
    reader.run(f"{next(block.text for block in blocks() if block.section == 'With Helm').rstrip()} --set image.tag={NEXT} --wait")
    another = cluster.make_claim("rds-vm", name="another")
    cluster.wait_bound(another)
    kubevirt.run("another", claims=[another], node=target)
    story.again = record_of(plane, cluster.handle_of(another))
    return story


def install_others(plane: ControlPlane, ends: ExitStack, folder: Path) -> None:
    """Install what a cluster has of other projects."""
    install_kinds(plane.api)
    kinds = ensure(["snapshot-kinds", "monitoring-kinds"])
    for name in ("volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots"):
        install_definitions(plane.api, kinds["snapshot-kinds"] / f"snapshot.storage.k8s.io_{name}.yaml")
    for name in ("podmonitors", "prometheusrules"):
        install_definitions(plane.api, kinds["monitoring-kinds"] / f"monitoring.coreos.com_{name}.yaml")
    ends.enter_context(snapshot_controller(plane, folder / "logs"))


def images(image: Image, folder: Path) -> dict[str, RootFilesystem]:
    """Return ours, under the version and under the tag that is upgraded to, and one of each sidecar with its program alone."""
    ours = RootFilesystem(image.root, image.config["Entrypoint"], image.config["Env"])
    found = {f"{REPOSITORY}:{image.name.rsplit(':', 1)[1]}": ours, f"{REPOSITORY}:{NEXT}": ours}
    values = yaml.safe_load((ROOT / "manifests" / "chart" / "values.yaml").read_text())
    for name in SIDECARS:
        root = folder / "images" / name
        root.mkdir(parents=True)
        shutil.copy(ensure([name])[name], root / name)
        found[values["sidecars"][name.removeprefix("csi-")]["image"]] = RootFilesystem(root, [f"/{name}"])
    return found


def reader_at(desk: Sandbox, plane: ControlPlane, box: SimulatedBox, folder: Path) -> Reader:
    """Return somebody at a desk with a network of its own, from which API server and box are reached as from a pod."""
    home = folder / "desk"
    home.mkdir()
    (home / "manifests").symlink_to(folder / "chart")
    kubeconfig = plane.kubeconfig_of("installer", "system:masters")
    kubeconfig.write_text(kubeconfig.read_text().replace(LOOPBACK, LOOPBACK_FROM_GUESTS))
    own = {
        "BOX": LOOPBACK_FROM_GUESTS,
        "BOX_PORT": str(box.port),
        "BOX_USER": box.user,
        "BOX_NVME": LOOPBACK_FROM_GUESTS,
        "IMAGE": REPOSITORY,
    }
    assert own.keys() == variables(next(block for block in blocks() if block.section == "Where things are")).keys()
    programs = {**ensure(["kubectl", "helm"]), "kubectl-rds": Path(sys.executable).with_name("kubectl-rds")}
    environment = {**own, "PATH": tools(folder / "tools", programs), "HOME": str(home), "KUBECONFIG": str(kubeconfig)}
    return Reader(home, environment, before=desk.inside())


def swap_chart(folder: Path, checkout: Path) -> None:
    """Let the reader's ``manifests`` be those of a checkout."""
    link = folder / "chart"
    link.unlink(missing_ok=True)
    link.symlink_to(checkout / "manifests")


def at_commit(commit: str, folder: Path) -> None:
    """Write the manifests of a commit into a folder."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit, "manifests"], capture_output=True, check=False)
    assert archive.returncode == 0, f"the commit before cannot be read: {archive.stderr.decode()}"
    subprocess.run(["tar", "--extract", "--directory", folder], input=archive.stdout, check=True)


def users_of(machine: Machine, workload: str) -> set[str]:
    """Return user and rights of the first process of every container of a workload, as the kernel has them."""
    found = set()
    for process in machine.processes(workload):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        told = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        rights = f"capabilities {int(told['CapEff'], 16)}, no new privileges {told['NoNewPrivs']}"
        found.add(f"uid {told['Uid'].split()[0]}, {rights}")
    return found


def uid_of(body: Object) -> str:
    return str(body["metadata"]["uid"])


def restarts_of(body: Object) -> int:
    return sum(status["restartCount"] for status in body["status"].get("containerStatuses", []))


def record_of(plane: ControlPlane, handle: str) -> Object:
    (found,) = (body for body in plane.api.list(RECORD) if body["spec"]["volumeHandle"] == handle)
    return found


def test_every_block_of_the_page_is_run_or_says_why_not() -> None:
    assert [block.section for block in blocks() if not block.run] == ["The image", "A key for the box", "The nodes"]
    assert len([block for block in blocks() if block.run]) == 8


def test_two_controllers_and_two_operators_run_in_containers_of_the_image(story: Story) -> None:
    assert {workload: len(pods) for workload, pods in story.pods.items()} == {CONTROLLER: 2, OPERATOR: 2}


def test_their_processes_have_no_rights_on_their_machine(story: Story) -> None:
    powerless = {"uid 65532, capabilities 0, no new privileges 1"}
    assert story.users == {CONTROLLER: powerless, OPERATOR: powerless}


def test_no_container_had_to_be_started_twice(story: Story) -> None:
    assert sum(story.restarts.values()) == 0, story.restarts


def test_doctor_finds_nothing_wrong_with_a_fresh_installation(story: Story) -> None:
    assert "WRONG" not in story.doctor, story.doctor
    assert "Box answers" in story.doctor


@pytest.mark.requirement("R57")
def test_the_first_claim_of_the_page_is_bound_through_the_box(story: Story) -> None:
    assert story.first["status"]["phase"] == "Bound"
    assert story.first["spec"]["volumeName"] in story.volumes


def test_a_migration_that_was_open_during_an_upgrade_goes_on(story: Story) -> None:
    assert story.replaced
    assert story.before["status"]["migration"] == story.during["status"]["migration"]
    assert story.during["status"]["phase"] == "Migrating"


def test_and_ends_as_kubevirt_says(story: Story) -> None:
    (window,) = story.result["status"]["history"]
    assert (window["result"], window["sourceNode"], window["targetNode"]) == ("Succeeded", "node-a", "node-b")
    assert story.result["status"]["phase"] == "Attached"


def test_an_uninstallation_takes_no_data_with_it(story: Story) -> None:
    assert story.left == {RECORD: 2, "PersistentVolume": 2}
    assert story.disks == [2, 2]


def test_an_uninstallation_leaves_the_definition_of_the_records_and_nothing_else(story: Story) -> None:
    assert story.gone == ["CustomResourceDefinition"]


def test_what_was_uninstalled_can_be_installed_again(story: Story) -> None:
    assert story.again["status"]["phase"] == "Attached"
