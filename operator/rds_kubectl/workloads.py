"""Whether the three programs run, in one version, and how they are configured, by pod templates and their ConfigMap. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rds_kubectl.examination import APPLY, Check, State
from rds_kubectl.installation import SHIPPED_NAMESPACE, Object
from rds_records.box_report import BoxReport
from rds_records.imports import DEFAULT_BASE_PATH

CONTROLLER: Final = "rds-csi-controller"
OPERATOR: Final = "rds-operator"
NODE: Final = "rds-csi-node"
KINDS: Final[Mapping[str, str]] = {CONTROLLER: "Deployment", OPERATOR: "Deployment", NODE: "DaemonSet"}
"""The names under which alerts and runbooks know them too."""

IMAGE: Final = "rds-csi"
"""The last part of the name of the image that holds all three programs (docs/image.md)."""

CONFIG_MAP: Final = "rds-csi-config"
"""Where the manifests keep the variables of controller and operator."""

SHELLS: Final = frozenset({"sh", "bash", "ash", "dash"})
CONFIGURATION: Final = "Configuration"
VERSIONS: Final = "Versions"

FLAGS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "--rds-address": ("", ("RDS_ADDRESS",)),
    "--rds-port": ("22", ("RDS_PORT",)),
    "--rds-volume-base-path": (DEFAULT_BASE_PATH, ("RDS_VOLUME_BASE_PATH",)),
    "--rds-insecure-skip-verify": ("false", ()),
    "--fence": ("none", ()),
    "--snapshot-backend": ("auto", ()),
}
"""Their defaults, and the variables that they have beside their own (docs/configuration.md)."""

PREFIXES: Final = {CONTROLLER: "RDS_CSI_", OPERATOR: "RDS_OPERATOR_"}
_REFERENCE = re.compile(r"\$\((\w+)\)")


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment or DaemonSet as it was read; ``body`` is None where the API server says that there is none."""

    name: str
    body: Object | None
    config: Object | None = None
    """The ConfigMap ``rds-csi-config``; None where there is none, or it was not read."""

    @property
    def container(self) -> Object | None:
        """The one container of ours; None where that cannot be told."""
        pod = ((self.body or {}).get("spec") or {}).get("template", {}).get("spec") or {}
        found = [one for one in pod.get("containers") or () if _image_name(one) == IMAGE or one.get("name") == self.name]
        return found[0] if len(found) == 1 else None

    def option(self, flag: str) -> str | None:
        """Return the value that the program takes for a flag; None where the template does not say it."""
        container = self.container
        if container is None:
            return None
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        if words and words[0].rsplit("/", 1)[-1] in SHELLS:
            return None
        default, others = FLAGS[flag]
        given = _on_command_line(flag, words)
        if given is not None:
            return _resolved(given, container)
        for name in (PREFIXES[self.name] + flag.removeprefix("--").replace("-", "_").upper(), *others):
            value = self._variable(name, container)
            if value is None or value:
                return value
        return default

    def _variable(self, name: str, container: Object) -> str | None:
        """Return a variable's value, empty where it is not set; None where it comes from what was not read."""
        for one in reversed(container.get("env") or ()):
            if one.get("name") == name:
                return None if "valueFrom" in one else _not_of_a_service(_resolved(str(one.get("value") or ""), container))
        # The last source that has it counts.
        for source in reversed(container.get("envFrom") or ()):
            if source.get("prefix") or (source.get("configMapRef") or {}).get("name") != CONFIG_MAP or self.config is None:
                return None
            if name in (data := self.config.get("data") or {}):
                return _not_of_a_service(data[name])
        return ""


def _not_of_a_service(value: str | None) -> str | None:
    """Return the value; empty for what a Service of that name leaves there, which counts as not set."""
    return "" if value and "://" in value else value


def _image_name(container: Object) -> str:
    return re.sub(r"[:@].*", "", str(container.get("image", "")).rsplit("/", 1)[-1])


def _on_command_line(flag: str, words: list[str]) -> str | None:
    """Return what is given last, as argparse does; a switch that stands alone is ``true``."""
    found = None
    for word, following in itertools.pairwise([*words, "--"]):
        if word == flag:
            found = "true" if following.startswith("--") else following
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def _resolved(text: str, container: Object) -> str | None:
    """Put in the variables that Kubernetes puts in; None where one comes from elsewhere."""
    values = {one["name"]: one.get("value") for one in container.get("env") or () if "valueFrom" not in one}
    if any(values.get(name) is None for name in _REFERENCE.findall(text)):
        return None
    return _REFERENCE.sub(lambda found: str(values[found[1]]), text)


def running(workload: Workload, installation: str) -> Check:
    """Check that its pods are ready."""
    kind, body = KINDS[workload.name], workload.body
    name = f"{kind} {workload.name}"
    if body is None:
        text = f"there is none in namespace {installation}"
        return Check(name, State.WRONG, text, f"see whether it is installed in another namespace (--driver-namespace); {APPLY}")
    status = body.get("status") or {}
    if kind == "DaemonSet":
        wanted, ready = int(status.get("desiredNumberScheduled") or 0), int(status.get("numberReady") or 0)
        updated = int(status.get("updatedNumberScheduled") or 0)
    else:
        wanted, ready = int(body["spec"].get("replicas", 1)), int(status.get("readyReplicas") or 0)
        updated = int(status.get("updatedReplicas") or 0)
    text = f"{ready} of {wanted} ready"
    if status.get("observedGeneration", 0) < body["metadata"].get("generation", 0) or updated < wanted:
        text += f", {updated} of them as it says now: it is being rolled out"
    look = f"`kubectl -n {installation} describe {kind.lower()} {workload.name}` and `kubectl -n {installation} get pods` say why"
    if not wanted:
        return Check(name, State.WRONG, "no pod is asked for", look)
    return Check(name, State.OK, text) if ready >= wanted else Check(name, State.WRONG, text, look)


def versions(workloads: Sequence[Workload], plugin: str) -> Check:
    """Check that all run the same image; ``plugin`` is the plugin's own version."""
    images = {one.name: one.container.get("image", "") if one.container else "" for one in workloads if one.body}
    known = {image for image in images.values() if image}
    text = f"plugin {plugin}, " + (
        ", ".join(f"{name} {image or 'not told'}" for name, image in images.items()) or "nothing else known"
    )
    if len(known) > 1:
        return Check(
            VERSIONS,
            State.NOTE,
            text,
            "let all run the same image, with the record's definition of that version; in a rollout wait",
        )
    return Check(VERSIONS, State.OK if known and all(images.values()) else State.NOTE, text)


def configuration(
    controller: Workload, operator: Workload, report: BoxReport | None = None, installation: str = SHIPPED_NAMESPACE
) -> Iterator[Check]:
    """Check what the templates of controller and operator say; what comes from elsewhere is not guessed.

    ``report`` is what the active operator tells: a process goes by what was said when it started.
    """
    if controller.body is None and operator.body is None:
        return
    wrong, do = [], []
    if controller.body is not None and controller.option("--rds-address") == "":
        wrong.append("the controller is given no box, so it ends at once")
        do.append(f"set --rds-address, or RDS_ADDRESS in the ConfigMap {CONFIG_MAP}, and restart it")
    for one in (controller, operator):
        if one.body is not None and one.option("--rds-insecure-skip-verify") in {"true", "1"}:
            wrong.append(f"{one.name} takes whoever answers for the box")
            do.append("give --rds-host-key, and take --rds-insecure-skip-verify away")
    if controller.body is not None and operator.body is not None and operator.option("--rds-address") != "":
        for flag, what in (("--rds-address", "box"), ("--rds-port", "port of the box"), ("--rds-volume-base-path", "base path")):
            ours, its = controller.option(flag), operator.option(flag)
            if ours is not None and its is not None and ours != its:
                wrong.append(f"the operator has another {what} ({its}) than the controller ({ours})")
                do.append(f"give both the same {flag}: what the operator says of volumes and orphans is not of this box and place")
    for what, says, has in _since_the_start(operator, report) if report else ():
        wrong.append(f"the operator runs with another {what} ({has}) than it is given now ({says})")
        restart = f"kubectl -n {installation} rollout restart deployment {CONTROLLER} {OPERATOR}"
        do.append(f"see which is right; what is given now counts once they start anew: `{restart}`")
    if wrong:
        yield Check(CONFIGURATION, State.WRONG, "; ".join(wrong), "; ".join(dict.fromkeys(do)))
        return
    shown = {
        flag.removeprefix("--"): controller.option(flag)
        for flag in ("--rds-address", "--rds-volume-base-path", "--fence", "--snapshot-backend")
        if controller.body is not None
    }
    text = ", ".join(f"{name} {value or ('not given' if value == '' else 'not known')}" for name, value in shown.items())
    told = bool(shown) and None not in shown.values() and operator.option("--rds-address") is not None
    yield Check(CONFIGURATION, State.OK if told else State.NOTE, text or "the controller's template is not there")


def _since_the_start(operator: Workload, report: BoxReport) -> Iterator[tuple[str, str, str]]:
    """Yield what an operator that runs was told otherwise when it started: what it is, what is said now, what was said then."""
    host, port, path = (operator.option(flag) for flag in ("--rds-address", "--rds-port", "--rds-volume-base-path"))
    if host and port and report.address != f"{host}:{port}":
        yield "box", f"{host}:{port}", report.address
    if path and report.base_path != path:
        yield "base path", path, report.base_path
