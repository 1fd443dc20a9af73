"""Migrations as KubeVirt plays them, with what must be seen of each in the end, whoever was away meanwhile.

A scenario is a generator over a scene. What comes before its first yield happens with the operator there, what comes after it also
while the operator is down; where there is a second yield, what comes after that happens when the operator is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.kubevirt import VMIM, KubeVirt, Run, Vm

EXPLICIT_TIMEOUT = 30
"""The least that a StorageClass may ask for."""


@dataclass
class Scene:
    """One virtual machine with one disk on the first of three nodes."""

    name: str
    kubevirt: KubeVirt
    nodes: tuple[str, str, str]
    claim: str
    vm: Vm

    @property
    def cluster(self) -> Cluster:
        return self.kubevirt.cluster

    @property
    def handle(self) -> str:
        return self.vm.disks[0].handle

    def migrate(self, to: str, *, configuration: Mapping[str, Any] | None = None) -> Run:
        """Begin a migration to node ``a``, ``b`` or ``c``."""
        return self.kubevirt.migrate(self.vm, to=self.nodes["abc".index(to)], configuration=configuration)

    def letter(self, node: str | None) -> str:
        """Return which of the three nodes that is, or nothing."""
        return "abc"[self.nodes.index(node)] if node else ""

    def phase(self, phase: str, *, timeout: float = 30.0) -> None:
        self.cluster.wait_phase(self.handle, phase, timeout=timeout)

    def result(self, result: str) -> None:
        """Wait until the open window has a result."""
        self.cluster.wait_record(self.handle, result, lambda status: status.get("migration", {}).get("result") == result)


Play = Callable[[Scene], Iterator[None]]


@dataclass(frozen=True)
class Window:
    """What the record keeps of one window; nodes by letter."""

    result: str
    ground: str
    left: str
    live: str
    roles: str = "ab"
    origin: str = "Publish"
    verdict: str = ""
    """KubeVirt's own result, where it came after another one."""

    why: str = ""
    """A part of KubeVirt's reason."""


@dataclass(frozen=True)
class Expected:
    """What must be seen in the end; Events without order, since some come late where the operator was away."""

    windows: tuple[Window, ...]
    events: tuple[str, ...]
    nodes: str
    vm_events: tuple[str, ...] = ()
    open_window: str = ""
    """The result of a window that stays open."""


@dataclass(frozen=True)
class Scenario:
    """A play and what must be seen of it."""

    play: Play
    expected: Expected
    timeout: int | None = None
    hotplug: bool = False


STARTED, COMPLETED, FAILED, ENDED, VERDICT = (
    "MigrationStarted",
    "MigrationCompleted",
    "MigrationFailed",
    "MigrationEnded",
    "MigrationVerdict",
)
SUCCESS = Expected((Window("Succeeded", "MigrationState", "a", "b"),), (STARTED, COMPLETED, ENDED), "b")
NOTHING = Expected((), (), "a")

THERE_AND_BACK = Expected(
    (
        Window("Succeeded", "MigrationState", "", "b"),
        Window("Succeeded", "MigrationState", "b", "a", roles="ba", origin="Observed"),
    ),
    (STARTED, COMPLETED, ENDED, STARTED, COMPLETED, ENDED),
    "a",
)


def failure(ground: str, why: str, *, left: str = "b", live: str = "a", nodes: str = "a") -> Expected:
    """Return what is seen of a migration that failed, and whose target left."""
    return Expected((Window("Failed", ground, left, live, why=why),), (STARTED, FAILED, ENDED), nodes, (FAILED,))


CANCELLED = failure("MigrationGone", "cancelled")
ABORTED = failure("MigrationState", "has been aborted")


def completes(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b").until("Running")
    yield
    run.complete()


def completes_before_anybody_looks(scene: Scene) -> Iterator[None]:
    yield
    scene.migrate("b").complete()


def leaves_long_after_it_completed(scene: Scene) -> Iterator[None]:
    """volumesInUse lags: the result is known while both nodes are attached."""
    run = scene.migrate("b").until("pod ended")
    scene.result("Succeeded")
    yield
    run.complete()


def is_cancelled_at(step: str) -> Play:
    def play(scene: Scene) -> Iterator[None]:
        run = scene.migrate("b").until(step)
        yield
        run.cancel().complete()

    return play


def fails_at(step: str) -> Play:
    def play(scene: Scene) -> Iterator[None]:
        run = scene.migrate("b").until(step)
        yield
        run.fail("the guest went away").complete()

    return play


def is_unschedulable(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b").until("Pending")
    yield
    run.unschedulable().complete()


def is_never_ready(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b").not_ready()
    scene.phase("Migrating")
    yield
    run.cancel().complete()


def goes_over_to_post_copy(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b", configuration={"allowPostCopy": True}).until("Running")
    scene.cluster.wait_record(scene.handle, "has KubeVirt's deadline", lambda status: "deadlineTime" in status["migration"])
    run.post_copy()
    scene.cluster.wait_record(scene.handle, "has no deadline any more", lambda status: "deadlineTime" not in status["migration"])
    yield
    run.complete()


def goes_back_before_the_source_was_unmounted(scene: Scene) -> Iterator[None]:
    """Ping-pong: two runs between the same two nodes, and no CSI call for the second."""
    scene.migrate("b").until("pod ended")
    back = scene.migrate("a").until("Scheduling")
    scene.result("Succeeded")
    yield
    back.until("Running")
    yield
    scene.cluster.wait_record(
        scene.handle,
        "follows the run back",
        lambda status: status["migration"]["sourceNode"] == scene.nodes[1] and len(status["history"]) == 1,
    )
    back.complete()


def goes_back_while_nobody_looks(scene: Scene) -> Iterator[None]:
    """The second run is over, and its source has left, before the operator is back."""
    scene.migrate("b").until("pod ended")
    scene.result("Succeeded")
    yield
    scene.migrate("a").complete()


def is_tried_again_while_the_target_never_left(scene: Scene) -> Iterator[None]:
    """A run is aborted and its target stays attached; the next run goes to the same node, without any CSI call."""
    scene.migrate("b").abort()
    scene.result("Failed")
    again = scene.migrate("b").until("bound")
    yield
    again.until("Running")
    yield
    scene.cluster.wait_record(
        scene.handle, "follows the second run", lambda status: status.get("migration", {}).get("migrationUID") == again.uid
    )
    again.complete()


def moves_on_to_a_third_node(scene: Scene) -> Iterator[None]:
    earlier = scene.migrate("b").until("pod ended")
    chained = scene.migrate("c").until("bound")
    scene.cluster.wait_attach_error(scene.handle, scene.nodes[2], scene.nodes[0])
    yield
    earlier.complete()
    chained.complete()


def vanishes_while_both_are_attached(leaving: str) -> Play:
    """Nobody ever says how it ended: its object is removed, and then a node leaves."""

    def play(scene: Scene) -> Iterator[None]:
        run = scene.migrate("b").until("attached")
        scene.phase("Migrating")
        scene.cluster.api.delete(VMIM, run.name, scene.cluster.namespace)
        scene.kubevirt._drop_finalizers(VMIM, run.name)
        yield
        launcher = run.target if leaving == "b" else run.source
        scene.kubevirt._delete_pods(launcher)
        scene.kubevirt.release(scene.vm, launcher)
        scene.cluster.wait_detached(scene.handle, launcher.node)

    return play


def fails_and_its_target_stays(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b").until("Running")
    yield
    run.fail("virt-handler is dead", target_stays=True)


def loses_its_target(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b").until("Running")
    yield
    run.lose_target()
    scene.kubevirt.take_out(scene.nodes[1])
    run.complete()


def loses_its_source(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b").until("Running")
    yield
    run.lose_source()
    run.complete()


def hears_the_verdict_after_it_timed_out(scene: Scene) -> Iterator[None]:
    run = scene.migrate("b").until("Running")
    scene.phase("Overdue", timeout=EXPLICIT_TIMEOUT + 15)
    yield
    run.until("reported")
    yield
    scene.cluster.wait_record(
        scene.handle, "has the verdict beside its result", lambda status: status["migration"].get("kubevirtResult") == "Succeeded"
    )
    run.complete()


def hears_the_verdict_after_it_timed_out_and_closed(scene: Scene) -> Iterator[None]:
    """A node leaves, and what KubeVirt says of the run is written only then."""
    run = scene.migrate("b").until("TargetReady")
    scene.phase("Overdue", timeout=EXPLICIT_TIMEOUT + 15)
    yield
    scene.kubevirt._set_phase(run.target, "Failed")
    scene.kubevirt.release(scene.vm, run.target)
    scene.cluster.wait_detached(scene.handle, scene.nodes[1])
    run.fail("the target went away", target_stays=True)


SCENARIOS: dict[str, Scenario] = {
    "completes": Scenario(completes, SUCCESS),
    "completes-unseen": Scenario(completes_before_anybody_looks, SUCCESS),
    "leaves-late": Scenario(leaves_long_after_it_completed, SUCCESS),
    "post-copy": Scenario(goes_over_to_post_copy, SUCCESS),
    "hotplug": Scenario(completes, SUCCESS, hotplug=True),
    **{
        f"cancelled-{step.replace(' ', '-')}": Scenario(is_cancelled_at(step), NOTHING)
        for step in ("created", "Pending", "target pod", "Scheduling")
    },
    **{f"cancelled-{step}": Scenario(is_cancelled_at(step), CANCELLED) for step in ("attached", "Scheduled")},
    **{f"aborted-{step}": Scenario(is_cancelled_at(step), ABORTED) for step in ("PreparingTarget", "TargetReady", "Running")},
    **{f"failed-{step}": Scenario(fails_at(step), NOTHING) for step in ("Pending", "Scheduling")},
    **{f"failed-{step}": Scenario(fails_at(step), failure("MigrationPhase", "no reason")) for step in ("attached", "Scheduled")},
    **{
        f"failed-{step}": Scenario(fails_at(step), failure("MigrationState", "the guest went away"))
        for step in ("hand-off", "PreparingTarget", "TargetReady", "Running")
    },
    "unschedulable": Scenario(is_unschedulable, NOTHING),
    "never-ready": Scenario(is_never_ready, CANCELLED),
    "back-and-forth": Scenario(goes_back_before_the_source_was_unmounted, THERE_AND_BACK),
    "back-unseen": Scenario(goes_back_while_nobody_looks, THERE_AND_BACK),
    "tried-again": Scenario(
        is_tried_again_while_the_target_never_left,
        Expected(
            (
                Window("Failed", "MigrationState", "", "a", why="aborted"),
                Window("Succeeded", "MigrationState", "a", "b", origin="Observed"),
            ),
            (STARTED, FAILED, ENDED, STARTED, COMPLETED, ENDED),
            "b",
            (FAILED,),
        ),
    ),
    "chained": Scenario(
        moves_on_to_a_third_node,
        Expected(
            (Window("Succeeded", "MigrationState", "a", "b"), Window("Succeeded", "MigrationState", "b", "c", roles="bc")),
            (STARTED, COMPLETED, ENDED, STARTED, COMPLETED, ENDED, "AttachmentConflict"),
            "c",
            ("AttachmentConflict",),
        ),
    ),
    "vanished-target-left": Scenario(vanishes_while_both_are_attached("b"), CANCELLED),
    "vanished-source-left": Scenario(
        vanishes_while_both_are_attached("a"),
        Expected((Window("Succeeded", "MigrationGone", "a", "b"),), (STARTED, COMPLETED, ENDED), "b"),
    ),
    "target-stays": Scenario(
        fails_and_its_target_stays,
        Expected(
            (Window("Failed", "MigrationState", "", "a", why="virt-handler is dead"),),
            (STARTED, FAILED),
            "ab",
            (FAILED,),
            open_window="Failed",
        ),
    ),
    "target-lost": Scenario(loses_its_target, failure("MigrationState", "connection lost")),
    "source-lost": Scenario(loses_its_source, failure("MigrationPhase", "no reason")),
    "verdict-after-timeout": Scenario(
        hears_the_verdict_after_it_timed_out,
        Expected(
            (Window("TimedOut", "Timeout", "a", "b", verdict="Succeeded"),),
            (STARTED, FAILED, VERDICT, ENDED),
            "b",
            (FAILED, VERDICT),
        ),
        timeout=EXPLICIT_TIMEOUT,
    ),
    "verdict-after-the-end": Scenario(
        hears_the_verdict_after_it_timed_out_and_closed,
        Expected(
            (Window("TimedOut", "Timeout", "b", "a", verdict="Failed", why="the target went away"),),
            (STARTED, FAILED, VERDICT, ENDED),
            "a",
            (FAILED, VERDICT),
        ),
        timeout=EXPLICIT_TIMEOUT,
    ),
}


def seen_of(scene: Scene) -> Expected:
    """Return what is to be seen of a scene now."""
    record = scene.cluster.record(scene.handle) or {}
    status: Object = record.get("status", {})
    running = status.get("migration")
    windows = tuple(
        Window(
            result=one.get("result", ""),
            ground=one.get("reason", ""),
            left=scene.letter(one.get("leftNode")),
            live=scene.letter(one.get("liveNode")),
            roles=scene.letter(one["sourceNode"]) + scene.letter(one["targetNode"]),
            origin=one["origin"],
            verdict=one.get("kubevirtResult", ""),
            why=one.get("failureReason", ""),
        )
        for one in (*status.get("history", []), *([running] if running else []))
    )
    return Expected(
        windows=windows,
        events=tuple(sorted(_reasons(scene.cluster.events(scene.claim)))),
        nodes="".join(sorted(scene.letter(one["nodeName"]) for one in status.get("attachments", []))),
        vm_events=tuple(sorted(_reasons(scene.cluster.events(scene.vm.name, kind="VirtualMachineInstance")))),
        open_window=(running or {}).get("result", "none") if running else "",
    )


TOLD = frozenset({STARTED, COMPLETED, FAILED, ENDED, VERDICT, "AttachmentConflict"})
"""What is compared; warnings come and go with time."""


def _reasons(events: list[Object]) -> list[str]:
    return [event["reason"] for event in events if event["reason"] in TOLD]
