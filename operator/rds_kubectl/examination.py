"""Whether the installation is as it should be: one check each, with what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from rds_kubectl.installation import Object, Right
from rds_kubectl.world import lease_age
from rds_process.tables import age, one_line, table

LEAST_VERSION: Final = (1, 32)
"""Records have selectable fields, which are stable since then."""

CLOCK: Final = timedelta(seconds=5)
APPLY: Final = "apply again what it was installed with, your kustomization or the chart"
"""Not ``manifests/base`` itself: that would take the box's address and the like away."""


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WRONG = "WRONG"
    UNKNOWN = "unknown"
    """It could not be looked at."""

    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {key: value or None for key, value in asdict(self).items()}


class Examination:
    """All checks, in order."""

    def __init__(self, checks: Iterable[Check]) -> None:
        self.checks = list(checks)

    @property
    def wrong(self) -> bool:
        """Whether something is wrong, or could not be looked at."""
        return any(check.state in {State.WRONG, State.UNKNOWN} for check in self.checks)

    def lines(self) -> Iterator[str]:
        """Yield the page for people."""
        yield from table(("CHECK", "STATE", "FOUND"), ((check.name, check.state, check.found) for check in self.checks))
        to_do = [check for check in self.checks if check.fix]
        if to_do:
            yield from ("", "What to do")
            yield from (one_line(f"- {check.name}: {check.fix}.") for check in to_do)

    def to_json(self) -> dict[str, Any]:
        """Return the page for programs."""
        return {"checks": [check.to_json() for check in self.checks]}


def api_server(version: Object) -> Check:
    """Check the API server's version (``/version``)."""
    known = str(version.get("gitVersion", ""))
    digits = tuple(int("".join(filter(str.isdecimal, str(version.get(key, "")))) or 0) for key in ("major", "minor"))
    if digits < LEAST_VERSION:
        return Check("API server", State.WRONG, known, "records need Kubernetes 1.32 or newer")
    return Check("API server", State.OK, known)


def clock(disagreement: timedelta) -> Check:
    """Check this machine's clock against the API server's ``Date`` header; ages that are shown are the API server's either way."""
    text = f"this machine's clock is {disagreement.total_seconds():.1f} s from the API server's"
    if disagreement > CLOCK:
        return Check("Clock", State.WRONG, text, "synchronize both clocks (NTP); times on records are the API server's")
    return Check("Clock", State.OK, text)


def definition(found: Object | None, shipped: Object) -> Check:
    """Check the CustomResourceDefinition: there, established, and with every field that this version knows."""
    name = "Record definition"
    if found is None:
        return Check(name, State.WRONG, "there is none", APPLY)
    conditions = {one["type"]: one["status"] for one in (found.get("status") or {}).get("conditions") or ()}
    if conditions.get("Established") != "True":
        return Check(name, State.WRONG, "it is not established", f"`kubectl describe crd {found['metadata']['name']}` says why")
    served = {one["name"]: one for one in found["spec"]["versions"] if one.get("served")}
    (wanted,) = shipped["spec"]["versions"]
    if wanted["name"] not in served:
        return Check(name, State.WRONG, f"it does not serve {wanted['name']}", APPLY)
    lacking = sorted(_fields(wanted["schema"]["openAPIV3Schema"]) - _fields(served[wanted["name"]]["schema"]["openAPIV3Schema"]))
    if lacking:
        text = f"it is older than this plugin and would drop {', '.join(lacking[:5])}"
        return Check(name, State.WRONG, text, f"{APPLY}, of the version that runs")
    return Check(name, State.OK, f"{wanted['name']}, established, with all fields that this version knows")


def _fields(schema: Object, path: str = "") -> set[str]:
    found = set()
    for name, inner in (schema.get("properties") or {}).items():
        found |= {f"{path}.{name}", *_fields(inner, f"{path}.{name}")}
    items = schema.get("items")
    return found | (_fields(items, f"{path}[]") if isinstance(items, Mapping) else set())


def csi_driver(found: Object | None, shipped: Object) -> Check:
    """Check the CSIDriver object against the one that is shipped."""
    if found is None:
        return Check("CSIDriver", State.WRONG, "there is none, so nothing is attached through the driver", APPLY)
    is_now, should = found["spec"], shipped["spec"]
    wrong = [f"{key} is {is_now.get(key)!r}, not {value!r}" for key, value in should.items() if is_now.get(key) != value]
    if wrong:
        fix = f"{APPLY}; attachRequired must be true, or nobody is asked who may attach"
        return Check("CSIDriver", State.WRONG, "; ".join(wrong), fix)
    return Check("CSIDriver", State.OK, "as shipped")


def registrations(nodes: Mapping[str, Object], csi_nodes: Iterable[Object], driver: str) -> Check:
    """Check on which nodes the driver is registered, and that it names each as Kubernetes does."""
    ids = {
        one["metadata"]["name"]: entry.get("nodeID")
        for one in csi_nodes
        for entry in (one.get("spec") or {}).get("drivers") or ()
        if entry.get("name") == driver
    }
    misnamed = sorted(name for name, node_id in ids.items() if node_id != name)
    if misnamed:
        text = f"the driver has another id than the Node's name on {', '.join(misnamed)}"
        return Check("Nodes", State.WRONG, text, "give `rds-csi node` the Node's name as --node-id, and restart it there")
    if not ids:
        return Check("Nodes", State.WRONG, "the driver is registered on no node", "see that `rds-csi node` runs on the nodes")
    missing = sorted(nodes.keys() - ids.keys())
    if missing:
        text = f"registered on {len(ids)} of {len(nodes)} nodes; not on {', '.join(missing[:8])}"
        return Check("Nodes", State.NOTE, text, "where volumes are to be used on those too, see that `rds-csi node` runs there")
    return Check("Nodes", State.OK, f"registered on all {len(ids)}")


def operator(lease: Object | None, now: datetime, installation: str) -> Check:
    """Check that an operator is active, by its Lease."""
    known = lease_age(lease, now) if lease else None
    look = f"`kubectl -n {installation} get pods`, and the operator's logs"
    if lease is None or known is None:
        return Check("Operator", State.WRONG, "none is active: nobody holds the Lease rds-operator", look)
    holder, renewed = lease["spec"]["holderIdentity"], age(timedelta(seconds=known[0]))
    if known[0] > known[1]:
        return Check("Operator", State.WRONG, f"none is active: {holder} has not renewed the Lease for {renewed}", look)
    return Check("Operator", State.OK, f"{holder} is active, seen {renewed} ago")


def kubevirt(group: Object | None) -> Check:
    """Check that KubeVirt's kinds are served, by the discovery of their group."""
    versions = {one["version"] for one in (group or {}).get("versions") or ()}
    if "v1" in versions:
        return Check("KubeVirt", State.OK, "kubevirt.io/v1 is served")
    found = f"only {', '.join(sorted(versions))}" if versions else "its kinds are not there"
    fix = "install KubeVirt; without it every second node is refused, unless a volume's dualAttachPolicy is AnyTwoNodes"
    return Check("KubeVirt", State.NOTE, found, fix)


def access(wanted: Sequence[Right], missing: Iterable[Right]) -> Iterator[Check]:
    """Check that each account may do what the shipped roles give it; one check per account and role."""
    lacking = set(missing)
    for account, role in sorted({(right.account, right.role) for right in wanted}):
        ours = [right for right in wanted if (right.account, right.role) == (account, role)]
        gone = [right.describe() for right in ours if right in lacking]
        name = f"Rights {role}"
        if gone:
            text = f"{account} may not {', '.join(gone[:6])}{f' and {len(gone) - 6} more' if len(gone) > 6 else ''}"
            yield Check(name, State.WRONG, text, f"{APPLY}; no restart is needed")
        else:
            yield Check(name, State.OK, f"{account} has all {len(ours)}")


def unknown(name: str, why: str) -> Check:
    """Return the check that could not be made."""
    return Check(name, State.UNKNOWN, why, "ask somebody who may look, or bind ClusterRole and Role rds-csi-doctor to yourself")
