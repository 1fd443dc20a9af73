"""A real Prometheus that scrapes processes of ours and evaluates the rules that are shipped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml

from tests.ring.controlplane import answers
from tests.ring.driver import Served
from tests.ring.processes import LOOPBACK, Process, free_port

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Line:
    """One series of an answer over time."""

    labels: Labels
    points: list[tuple[float, float]]


class PrometheusServer(Process):
    """Prometheus with the rule file, scraping each second; ``targets`` by job."""

    def __init__(self, binary: Path, folder: Path, rules: Path, targets: Mapping[str, Served]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"{LOOPBACK}:{free_port()}"
        self.jobs = frozenset(targets)
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [process.address]}]} for job, process in targets.items()
            ],
        }
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(configuration))
        argv: list[str | Path] = [
            binary,
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--log.level=warn",
        ]
        super().__init__(
            "prometheus", argv, folder / "prometheus.log", ready=lambda: answers(f"http://{self.address}/-/ready"), cwd=folder
        )

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """Return labels and value of each element now; what is no number is left out, as a panel shows nothing of it.

        Raises AssertionError where Prometheus does not take the expression.
        """
        found = self._ask("query", query=expression)
        result = found["data"]["result"]
        if found["data"]["resultType"] == "scalar":
            return [({}, float(result[1]))]
        elements = [(element["metric"], float(element["value"][1])) for element in result]
        return [(labels, value) for labels, value in elements if not math.isnan(value)]

    def over_time(self, expression: str, *, start: float, end: float, step: float = 1.0) -> list[Line]:
        """Return what an expression gave from one moment to another."""
        found = self._ask("query_range", query=expression, start=str(start), end=str(end), step=str(step))
        return [
            Line(series["metric"], [(float(at), float(value)) for at, value in series["values"]])
            for series in found["data"]["result"]
        ]

    def names(self, job: str) -> set[str]:
        """Return the name of every series that was ever scraped of a job."""
        return set(self._ask("label/__name__/values", **{"match[]": f'{{job="{job}"}}'})["data"])

    def scraped(self) -> bool:
        """Tell whether every target was scraped."""
        return {labels["job"] for labels, value in self.query("up") if value == 1} == self.jobs

    def health_of_rules(self) -> dict[str, str]:
        """Return ``ok`` or what else is said of the evaluation of each rule, by alert or series."""
        groups = self._ask("rules")["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    def _ask(self, what: str, **fields: str) -> Any:
        with urllib3.PoolManager(retries=False, timeout=10.0) as pool:
            answer = pool.request("GET", f"http://{self.address}/api/v1/{what}", fields=fields)
        assert answer.status == 200, answer.data.decode()
        said = json.loads(answer.data)
        assert not said.get("warnings"), said
        return said
