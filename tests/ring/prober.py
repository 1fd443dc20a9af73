"""A kubelet's part in liveness probes: it asks a process as the manifest says, and starts it anew when that fails too often."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import urllib3

from tests.ring.driver import Served
from tests.ring.installation import resources

SCALE = 0.1
"""By how much all times of a manifest are shortened."""

GRACE_SECONDS = 30.0
"""Kubernetes' default of terminationGracePeriodSeconds."""


@dataclass(frozen=True)
class Liveness:
    """A livenessProbe as the manifest has it; times in seconds."""

    path: str
    port: int
    period: float
    timeout: float
    failures: int
    grace: float

    def answers(self, process: Served, *, scale: float = 1.0) -> str:
        """Ask once; return what is wrong, empty where the process is alive (kubelet: any status from 200 to 399)."""
        with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=self.timeout * scale)) as pool:
            try:
                answer = pool.request("GET", f"http://{process.address}{self.path}", redirect=False)
            except urllib3.exceptions.HTTPError as error:
                return type(error).__name__
        return "" if 200 <= answer.status < 400 else f"{answer.status}: {answer.data.decode().strip()}"


def liveness(workload: str) -> Liveness:
    """Return the livenessProbe of our container in a workload of the base: the one with a port of the name ``metrics``."""
    pod = pods()[workload]
    (container,) = (one for one in pod["containers"] if any(port["name"] == "metrics" for port in one.get("ports", [])))
    probe = container["livenessProbe"]
    (port,) = (one["containerPort"] for one in container["ports"] if one["name"] == probe["httpGet"]["port"])
    return Liveness(
        path=probe["httpGet"]["path"],
        port=port,
        period=probe.get("periodSeconds", 10),
        timeout=probe.get("timeoutSeconds", 1),
        failures=probe.get("failureThreshold", 3),
        grace=pod.get("terminationGracePeriodSeconds", GRACE_SECONDS),
    )


def pods() -> Mapping[str, Any]:
    """Return the pod of every workload of the base."""
    return {
        body["metadata"]["name"]: body["spec"]["template"]["spec"] for body in resources() if "template" in body.get("spec", {})
    }


class Prober:
    """Asks a started process until left; how long it waits after a start is the process's own ``ready``."""

    def __init__(self, process: Served, liveness: Liveness, scale: float = SCALE) -> None:
        self.process = process
        self.liveness = liveness
        self.scale = scale
        self.restarts: list[list[str]] = []
        """What was wrong each time in a row before each restart."""

        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"prober of {process.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        wrong: list[str] = []
        asked = time.monotonic()
        while not self._stopped.wait(asked + self.liveness.period * self.scale - time.monotonic()):
            asked = time.monotonic()
            trouble = self.liveness.answers(self.process, scale=self.scale)
            wrong = [*wrong, trouble] if trouble else []
            if len(wrong) == self.liveness.failures:
                self.process.stop(timeout=self.liveness.grace * self.scale)
                self.process.start()
                self.restarts.append(wrong)
                wrong = []
