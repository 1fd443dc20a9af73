"""The files of ``manifests/monitoring/`` that are made of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.monitoring import dashboard
from tests.monitoring.rules import OBJECT, Object, prometheus_rule

HEAD = "# Made by ./justw monitoring; do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def made() -> dict[Path, str]:
    """Return the text of every such file."""
    return {
        OBJECT: _yaml(prometheus_rule()),
        dashboard.DASHBOARD: dashboard.text(),
        dashboard.CONFIG_MAP: _yaml(dashboard.config_map()),
    }


def _yaml(body: Object) -> str:
    return HEAD + yaml.dump(body, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
