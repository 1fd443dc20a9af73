"""The files of ``manifests/monitoring/`` that are made of others."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.monitoring.rules import OBJECT, Object, prometheus_rule

HEAD = "# Made by ./justw monitoring; do not edit.\n"


def made() -> dict[Path, str]:
    """Return the text of every such file."""
    return {OBJECT: _yaml(prometheus_rule())}


def _yaml(body: Object) -> str:
    return HEAD + yaml.safe_dump(body, sort_keys=False, width=1000, allow_unicode=True)
