"""What this version ships for a cluster (``manifests/base``): the plugin compares with it what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

Object = Mapping[str, Any]

_INSTALLED: Final = Path(__file__).with_name("manifests") / "base"
_CHECKED_OUT: Final = Path(__file__).parents[2] / "manifests" / "base"
SHIPPED_NAMESPACE: Final = "rds-csi"


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One verb on one resource (``RESOURCE/SUBRESOURCE``) that an account of the installation needs."""

    account: str
    role: str
    namespace: str
    """Empty: in the whole cluster."""

    group: str
    resource: str
    verb: str
    name: str = ""
    """Of the one object that it is for; empty: any."""

    def describe(self) -> str:
        """Return it for people."""
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {resource}{f' {self.name}' if self.name else ''}"


def shipped() -> Iterator[Object]:
    """Yield every object of the base manifests but the CustomResourceDefinition."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKED_OUT
    for file in sorted(folder.glob("*.yaml")):
        for body in yaml.safe_load_all(file.read_text()):
            if body and body["kind"] != "Kustomization":
                yield body


def definition() -> Object:
    """Return the CustomResourceDefinition of the records."""
    packed = _INSTALLED.parent / "volumeattachmentrecords.yaml"
    file = packed if packed.exists() else _CHECKED_OUT.parents[1] / "crds" / "volumeattachmentrecords.yaml"
    body: Object = yaml.safe_load(file.read_text())
    return body


def rights(objects: list[Object], namespace: str) -> list[Right]:
    """Return every right that the shipped bindings give to accounts, as needed in that namespace of the installation."""
    roles = {(body["kind"], body["metadata"]["name"]): body["rules"] for body in objects if body["kind"] in {"Role", "ClusterRole"}}
    found = set()
    for body in objects:
        if not body["kind"].endswith("RoleBinding") or "roleRef" not in body:
            continue
        role = body["roleRef"]["name"]
        place = namespace if body["kind"] == "RoleBinding" else ""
        accounts = [one["name"] for one in body["subjects"] if one["kind"] == "ServiceAccount"]
        rules = roles[body["roleRef"]["kind"], role]
        found |= {Right(account, role, place, *right) for account in accounts for right in _granted(rules)}
    return sorted(found)


def _granted(rules: list[Object]) -> Iterator[tuple[str, str, str, str]]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames") or ("",):
                        yield group, resource, verb, name
