"""The alerts and recording rules that are shipped: one file for Prometheus and promtool, and the object made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.documents import ROOT

FOLDER: Final = ROOT / "manifests" / "monitoring"
RULES: Final = FOLDER / "rules.yaml"
OBJECT: Final = FOLDER / "prometheusrule.yaml"
RUNBOOKS: Final = ROOT / "docs" / "runbooks"
RUNBOOK_URL: Final = "https://rds-csi.example/runbooks/"
"""A place that is nobody's: whoever serves the pages puts his own there."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Alert:
    """An alert as the file has it."""

    name: str
    expression: str
    labels: dict[str, str]
    annotations: dict[str, str]


def groups() -> list[Object]:
    """Return the groups of the rule file."""
    found: list[Object] = yaml.safe_load(RULES.read_text())["groups"]
    return found


def rules() -> list[Object]:
    """Return all rules."""
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> dict[str, Alert]:
    """Return every alert by its name."""
    return {
        rule["alert"]: Alert(rule["alert"], rule["expr"], rule["labels"], rule["annotations"])
        for rule in rules()
        if "alert" in rule
    }


def recorded() -> dict[str, str]:
    """Return the expression of every recording rule by the name of its series."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def prometheus_rule() -> Object:
    """Return what the Prometheus operator takes."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "rds-csi", "namespace": "rds-csi", "labels": {"app.kubernetes.io/part-of": "rds-csi"}},
        "spec": {"groups": groups()},
    }
