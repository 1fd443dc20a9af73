"""Prometheus' own engine (``build/promql``), asked one expression over samples that come with the question."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[float, float]
"""A moment in seconds and a value."""


class BadQuery(Exception):
    """The engine does not take the expression or the rules, or cannot evaluate them."""


@dataclass(frozen=True)
class Series:
    """Samples of one metric with its labels, oldest first."""

    name: str
    labels: Mapping[str, str]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Answer:
    """What an expression gives at one moment: labels and value of each element, and the metrics that it asked for."""

    elements: Sequence[tuple[Mapping[str, str], float]]
    metrics: frozenset[str]
    warnings: Sequence[str]

    @property
    def value(self) -> float:
        """The value of the only element."""
        ((_, value),) = self.elements
        return value


class Prometheus:
    """The engine; it knows nothing between two questions."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary

    def query(self, expression: str, series: Iterable[Series], *, at: float) -> Answer:
        """Return what the expression gives at a moment in seconds; raises BadQuery."""
        known = [{"labels": {"__name__": one.name} | dict(one.labels), "samples": one.samples} for one in series]
        asked = {"expression": expression, "time": at, "series": known}
        said = json.loads(self._run(json.dumps(asked)))
        elements = [(element["labels"], float(element["value"])) for element in said["elements"]]
        return Answer(elements, frozenset(said["metrics"]), said["warnings"])

    def load(self, rules: str) -> None:
        """Read a rule file, given as its text, as Prometheus does when it loads one; raises BadQuery."""
        self._run(rules, "rules")

    def _run(self, text: str, *words: str) -> str:
        done = subprocess.run([self._binary, *words], input=text, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise BadQuery(done.stderr.strip())
        return done.stdout


def series_of(scrapes: Iterable[tuple[float, str]], **labels: str) -> list[Series]:
    """Return the series of several scrapes of one process, each with its moment, under the labels that Prometheus would add."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[Sample]] = {}
    for moment, text in scrapes:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault((sample.name, tuple(sorted(sample.labels.items()))), []).append((moment, sample.value))
    return [Series(name, {**dict(own), **labels}, samples) for (name, own), samples in found.items()]
