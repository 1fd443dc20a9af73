"""Migrations in steps: volumes that are driven by CSI calls, and held at any point of any step by what a proxy lets through.

A volume lives through one of three scenarios. Each operation of a scenario can be held inside the shim (its calls to the API server
are frozen, before or after they took effect) or inside the operator while it reports what the operation did. Whoever is killed
there has got exactly so far.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from rds_records.names import FINALIZER
from tests.ring.api import ApiError, Object, Unreachable
from tests.ring.cluster import DRIVER, RECORD, Cluster
from tests.ring.driver import Metrics
from tests.ring.proxy import Proxy, Rule
from tests.ring.rpc import Csi, Refused
from tests.ring.waiting import eventually

BACK_SECONDS = 60
"""How much earlier than it is the shim of these tests is told it is: the windows that it opens are older than the least timeout."""

LEAST_TIMEOUT = 30
LONG_TIMEOUT = 3600

RETRIED = {"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"}
"""Answers after which csi-attacher and csi-provisioner call again, and nothing else is to be expected here."""

RECORDS = "/volumeattachmentrecords"
RESULTS = {"Succeeded": "success", "Failed": "failed", "TimedOut": "timeout"}


class Scenario(StrEnum):
    """How a migration ends."""

    COMPLETES = "completes"
    ROLLS_BACK = "rolls back"
    RUNS_OUT = "runs out of time"


class Operation(StrEnum):
    """What is done to a volume."""

    CREATE = "create"
    PUBLISH_SOURCE = "publish to the source"
    PUBLISH_TARGET = "publish to the target"
    RUN_OUT = "let the deadline pass"
    UNPUBLISH_SOURCE = "unpublish from the source"
    UNPUBLISH_TARGET = "unpublish from the target"


BEGINNING = (Operation.CREATE, Operation.PUBLISH_SOURCE, Operation.PUBLISH_TARGET)
SCRIPTS: Mapping[Scenario, Sequence[Operation]] = {
    Scenario.COMPLETES: (*BEGINNING, Operation.UNPUBLISH_SOURCE),
    Scenario.ROLLS_BACK: (*BEGINNING, Operation.UNPUBLISH_TARGET),
    Scenario.RUNS_OUT: (*BEGINNING, Operation.RUN_OUT, Operation.UNPUBLISH_TARGET),
}


class Point(StrEnum):
    """How far an operation has got."""

    RECORD_NOT_MADE = "the record's creation is sent"
    RECORD_MADE = "the record is made, unanswered"
    AT_THE_BOX = "the box is at it"
    NOT_WRITTEN = "the status write is sent"
    WRITTEN = "the status is written, unanswered"
    NOT_TOLD = "nothing is reported"
    TOLD = "the Event is there, nothing is claimed"
    CLAIMED = "claimed, not counted"
    COUNTED = "counted, not removed from the outbox"
    REMOVED = "removed from the outbox, unanswered"
    DONE = "done and reported"


REPORTING = (Point.NOT_TOLD, Point.TOLD, Point.CLAIMED, Point.COUNTED, Point.REMOVED)
WRITING = (Point.NOT_WRITTEN, Point.WRITTEN)
POINTS: Mapping[Operation, Sequence[Point]] = {
    Operation.CREATE: (Point.RECORD_NOT_MADE, Point.RECORD_MADE, Point.AT_THE_BOX, *WRITING, Point.DONE),
    Operation.PUBLISH_SOURCE: (*WRITING, Point.DONE),
    Operation.PUBLISH_TARGET: (*WRITING, *REPORTING, Point.DONE),
    # Written by the operator: the deadline is about to fire, has fired, and is being reported.
    Operation.RUN_OUT: (*WRITING, *REPORTING, Point.DONE),
    Operation.UNPUBLISH_SOURCE: (*WRITING, *REPORTING, Point.DONE),
    Operation.UNPUBLISH_TARGET: (*WRITING, *REPORTING, Point.DONE),
}


@dataclass(frozen=True)
class Step:
    """An operation that has got as far as a point."""

    operation: Operation
    point: Point

    def __str__(self) -> str:
        return f"{self.operation}: {self.point}"


def steps_of(scenario: Scenario) -> list[Step]:
    """Return every step of a scenario, in order."""
    return [Step(operation, point) for operation in SCRIPTS[scenario] for point in POINTS[operation]]


@dataclass
class Volume:
    """One volume, its scenario, and the step at which the kill is to meet it."""

    scenario: Scenario
    step: Step
    source: str
    target: str
    handle: str = field(default_factory=lambda: f"pvc-{uuid.uuid4()}")

    @property
    def claim(self) -> str:
        """The claim that it is bound to."""
        return f"claim-of-{self.handle}"

    @property
    def before(self) -> Sequence[Operation]:
        """Operations that are done before the one of its step."""
        script = SCRIPTS[self.scenario]
        return script[: script.index(self.step.operation)]

    @property
    def after(self) -> Sequence[Operation]:
        """Operations that come after the one of its step."""
        script = SCRIPTS[self.scenario]
        return script[script.index(self.step.operation) + 1 :]

    @property
    def status_path(self) -> str:
        """Matches where its status is written."""
        return rf"{RECORDS}/{self.handle}/status$"

    @property
    def volume_path(self) -> str:
        """Matches where its PersistentVolume is read, which the operator does before it posts an Event."""
        return rf"/persistentvolumes/{self.handle}$"

    def __str__(self) -> str:
        return f"{self.handle} ({self.scenario}; {self.step})"


class Hands:
    """Does operations as sidecars and an administrator would: what fails for a while is tried again."""

    def __init__(self, cluster: Cluster, csi: Csi, *, patience: float = 90.0) -> None:
        self.cluster = cluster
        self.csi = csi
        self.patience = patience

    def do(self, volume: Volume, operation: Operation) -> None:
        """Do one operation until it succeeded; raises AssertionError for any final error."""
        match operation:
            case Operation.CREATE:
                parameters = {"dualAttachPolicy": "AnyTwoNodes", "migrationTimeoutSeconds": str(LONG_TIMEOUT)}
                self.retry(volume, lambda: self.csi.create(volume.handle, parameters=parameters))
                self._bind(volume)
            case Operation.PUBLISH_SOURCE:
                self.retry(volume, lambda: self.csi.publish(volume.handle, volume.source))
            case Operation.PUBLISH_TARGET:
                self.retry(volume, lambda: self.csi.publish(volume.handle, volume.target))
            case Operation.UNPUBLISH_SOURCE:
                self.retry(volume, lambda: self.csi.unpublish(volume.handle, volume.source))
            case Operation.UNPUBLISH_TARGET:
                self.retry(volume, lambda: self.csi.unpublish(volume.handle, volume.target))
            case Operation.RUN_OUT:
                self.retry(volume, lambda: self.cluster.patch_record(volume.handle, {"migrationTimeoutSeconds": LEAST_TIMEOUT}))
                self.wait(volume, "TimedOut", lambda status: status.get("migration", {}).get("result") == "TimedOut")

    def delete(self, volume: Volume) -> None:
        """Delete the claim, then, once its PersistentVolume is released, the volume and that, as csi-provisioner does."""
        self.retry(volume, lambda: self.wait_volume(volume, "Bound"))
        self.retry(volume, lambda: self.cluster.delete_claim(volume.claim))
        self.retry(volume, lambda: self.wait_volume(volume, "Released"))
        self.retry(volume, lambda: self.csi.delete(volume.handle))
        self.retry(volume, lambda: self.cluster.api.delete("PersistentVolume", volume.handle))

    def wait_volume(self, volume: Volume, phase: str) -> None:
        """Wait until the PersistentVolume is in that phase; a claim that goes before it is bound releases nothing."""

        def there() -> bool:
            body = self.cluster.api.find("PersistentVolume", volume.handle)
            return body is None or body["status"].get("phase") == phase

        eventually(f"{volume}'s PersistentVolume is {phase}", there, timeout=60)

    def retry(self, volume: Volume, call: Callable[[], object]) -> None:
        """Make a call until it succeeds; what a sidecar would not get over fails at once."""

        def attempt() -> bool:
            try:
                call()
            except Refused as error:
                if error.code not in RETRIED:
                    raise RuntimeError(f"{volume}: {error}") from error
                raise AssertionError(str(error)) from error
            except Unreachable as error:
                raise AssertionError(str(error)) from error
            except ApiError as error:
                if error.status < 500 and error.status != 429:
                    raise
                raise AssertionError(str(error)) from error
            return True

        eventually(f"{volume}: the call succeeds", attempt, timeout=self.patience, interval=0.2)

    def wait(self, volume: Volume, what: str, predicate: Callable[[Object], object], *, timeout: float | None = None) -> Object:
        """Wait until the record's status satisfies the predicate, also while the API server is away."""

        def satisfied() -> Object | None:
            try:
                body = self.cluster.record(volume.handle)
            except (Unreachable, ApiError) as error:
                raise AssertionError(str(error)) from error
            assert body is not None, "no record"
            assert predicate(body.get("status", {})), body.get("status")
            return body

        return eventually(f"{volume}: {what}", satisfied, timeout=timeout or self.patience, interval=0.4)

    def settle(self, volume: Volume, done: Sequence[Operation]) -> None:
        """Wait until everything that these operations brought up is reported."""
        if done and done[-1] is not Operation.CREATE:
            self.wait(volume, "settled", lambda status: not status.get("outbox") and status.get("claimRef"))

    def _bind(self, volume: Volume) -> None:
        """Make the PersistentVolume, as csi-provisioner does once the volume is made, and the claim that it is for."""
        namespace, modes = self.cluster.namespace, {"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}
        bodies: list[Object] = [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": volume.handle},
                "spec": {
                    **modes,
                    "capacity": {"storage": "1Gi"},
                    "persistentVolumeReclaimPolicy": "Retain",
                    "claimRef": {
                        "apiVersion": "v1",
                        "kind": "PersistentVolumeClaim",
                        "namespace": namespace,
                        "name": volume.claim,
                    },
                    "csi": {"driver": DRIVER, "volumeHandle": volume.handle},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": volume.claim, "namespace": namespace},
                "spec": {
                    **modes,
                    "storageClassName": "",
                    "volumeName": volume.handle,
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            },
        ]
        for body in bodies:
            self.retry(volume, partial(self._create_once, body))

    def _create_once(self, body: Object) -> None:
        try:
            self.cluster.api.create(body)
        except ApiError as error:
            # Made by a try whose answer was lost.
            if error.status != 409:
                raise


class Holds:
    """Holds volumes at their steps; ``shim`` and ``operator`` are the proxies that these processes go through."""

    def __init__(self, shim: Proxy, operator: Proxy) -> None:
        self.shim = shim
        self.operator = operator
        self._rules: dict[str, list[Rule]] = {}

    def let_go(self) -> None:
        """Cut every call that is held: who made it never hears what became of it."""
        for rules in self._rules.values():
            for rule in rules:
                rule.release(cut=True)
        self._rules.clear()

    def arm(self, volume: Volume, point: Point) -> Rule:
        """See to it that the volume's operation gets as far as this point and no further; the rule tells when it is there."""
        applied = point in {Point.RECORD_MADE, Point.WRITTEN, Point.CLAIMED, Point.REMOVED}
        match point:
            case Point.RECORD_NOT_MADE | Point.RECORD_MADE:
                rule = self.shim.freeze("POST", f"{RECORDS}$", body=volume.handle, applied=applied)
            case Point.NOT_WRITTEN | Point.WRITTEN if volume.step.operation is Operation.RUN_OUT:
                # What was written is not reported yet.
                self._keep(volume, self.operator.freeze("GET", volume.volume_path))
                rule = self.operator.freeze("PUT", volume.status_path, body='"TimedOut"', applied=applied)
            case Point.NOT_WRITTEN | Point.WRITTEN:
                rule = self.shim.freeze("PUT", volume.status_path, applied=applied)
            case Point.NOT_TOLD:
                rule = self.operator.freeze("GET", volume.volume_path)
            case Point.TOLD | Point.CLAIMED:
                rule = self.operator.freeze("PUT", volume.status_path, body='"reportedBy"', applied=applied)
            case Point.COUNTED | Point.REMOVED:
                rule = self.operator.freeze("PUT", volume.status_path, body=r'"outbox": ?\[\]', applied=applied)
            case _:
                raise ValueError(f"nothing can be held at {point}")
        return self._keep(volume, rule)

    def advance(self, volume: Volume, point: Point) -> None:
        """Let a volume that is held get to a point at a later request, and wait until it is there."""
        before = self._rules[volume.handle].pop()
        rule = self.arm(volume, point)
        before.release()
        rule.wait_hit()

    def _keep(self, volume: Volume, rule: Rule) -> Rule:
        self._rules.setdefault(volume.handle, []).append(rule)
        return rule


# What is compared


def outcome(cluster: Cluster, volume: Volume) -> dict[str, Any]:
    """Return what record and Events say of a volume, without what differs from volume to volume: names, ids, times."""

    def plain(text: str | None) -> str:
        text = text or ""
        for name, role in ((volume.handle, "VOLUME"), (volume.source, "SOURCE"), (volume.target, "TARGET")):
            text = text.replace(name, role)
        return re.sub(r"(elapsed|duration): (\d+h)?(\d+m)?[\d.]+s", r"\1: SOME", text)

    record = cluster.record(volume.handle) or {}
    status = record.get("status", {})
    told = sorted(cluster.events(volume.claim), key=lambda event: int(event["metadata"]["resourceVersion"]))
    return {
        "spec": {
            name: value
            for name, value in record.get("spec", {}).items()
            if name not in {"volumeHandle", "target", "persistentVolumeName"}
        },
        "finalizers": record.get("metadata", {}).get("finalizers"),
        "phase": status.get("phase"),
        "nodes": plain(status.get("nodes")),
        "attachments": [
            {**entry, "nodeName": plain(entry["nodeName"]), "id": "", "attachTime": ""} for entry in status.get("attachments", [])
        ],
        "initialized": status.get("initialized"),
        "migration": status.get("migration"),
        "outbox": status.get("outbox", []),
        "refusals": status.get("refusals", []),
        "claim": status.get("claimRef", {}).get("name") == volume.claim,
        "conditions": {condition["type"]: condition["status"] for condition in status.get("conditions", [])},
        "history": [
            {
                name: plain(window.get(name)) if name != "timeoutSeconds" else window.get(name)
                for name in (
                    "origin",
                    "sourceNode",
                    "targetNode",
                    "result",
                    "reason",
                    "leftNode",
                    "liveNode",
                    "timeoutSeconds",
                )
            }
            for window in status.get("history", [])
        ],
        "events": [
            (event["type"], event["reason"], plain(event["message"])) for event in told if event["reason"].startswith("Migration")
        ],
    }


def at_rest(seen: Mapping[str, Any]) -> bool:
    """Tell whether nothing is left to do for a volume whose script is over."""
    left = seen["migration"] or seen["outbox"] or seen["finalizers"] != [FINALIZER]
    return bool(seen["history"] and seen["claim"] and not left)


def results(records: Sequence[Object]) -> Counter[str]:
    """Return how many windows have which result, open ones that are past their deadline too, by the metric's label."""
    return Counter(
        RESULTS[window["result"]]
        for record in records
        for window in (*record.get("status", {}).get("history", []), record.get("status", {}).get("migration", {}))
        if window.get("result")
    )


def claimed_results(records: Sequence[Object]) -> Counter[str]:
    """Return how many of the results some life of the operator has claimed, by the metric's label."""
    waiting = Counter(
        RESULTS[entry["kind"]]
        for record in records
        for entry in record.get("status", {}).get("outbox", [])
        if entry["kind"] in RESULTS and not entry.get("reportedBy")
    )
    return results(records) - waiting


def counted_results(scrape: Metrics) -> Counter[str]:
    """Return what an operator life has counted."""
    values = {label: scrape.value("rds_csi_migration_migrations_total", result=label) for label in RESULTS.values()}
    return Counter({label: int(value) for label, value in values.items() if value})


def records_of(cluster: Cluster, volumes: Sequence[Volume]) -> list[Object]:
    """Return the records of these volumes that exist, at one moment."""
    handles = {volume.handle for volume in volumes}
    return [record for record in cluster.api.list(RECORD) if record["spec"]["volumeHandle"] in handles]
