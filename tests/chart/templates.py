"""Templates of the chart: the shipped manifests with a value in the place of whatever an installation may want otherwise.

The manifests are the one truth. A template is its manifest's text, comments included, after the replacements that are listed here;
one that finds nothing to replace is an error, so a manifest cannot change away from under its template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.monitoring.rules import RUNBOOK_URL

ROOT = Path(__file__).parents[2]
CHART = ROOT / "manifests" / "chart"
NAMESPACE = "namespace: rds-csi"

Replacement = tuple[str, str]
"""What is looked for (it must be there), and what is put in its place everywhere."""

IMAGE: Replacement = (
    "image: rds-csi:0.1.0",
    """image: {{ include "rds-csi.image" . }}
          {{- with .Values.image.pullPolicy }}
          imagePullPolicy: {{ . }}
          {{- end }}""",
)
SECRET: Replacement = ("secretName: rds-csi-secret", "secretName: {{ .Values.box.secretName }}")
NO_REGISTRY: Replacement = (
    "          # Which registry it comes from is said by the installation: `images` in its kustomization.\n",
    "",
)


def pod_of(values: str, account: str) -> Sequence[Replacement]:
    """Return what every workload lets be chosen; ``values`` names its part of the values."""
    return (
        (
            f"      serviceAccountName: {account}\n",
            f"""      serviceAccountName: {account}
      {{{{- with .Values.imagePullSecrets }}}}
      imagePullSecrets:
        {{{{- toYaml . | nindent 8 }}}}
      {{{{- end }}}}
""",
        ),
        ("        kubernetes.io/os: linux\n", f"        {{{{- toYaml .Values.{values}.nodeSelector | nindent 8 }}}}\n"),
        IMAGE,
    )


def deployment(values: str, account: str, memory: str) -> Sequence[Replacement]:
    """Return what both Deployments let be chosen on top."""
    return (
        *pod_of(values, account),
        ("replicas: 2", f"replicas: {{{{ .Values.{values}.replicas }}}}"),
        ("priorityClassName: system-cluster-critical", f"priorityClassName: {{{{ .Values.{values}.priorityClassName }}}}"),
        (
            f"default-container: {account}\n",
            f"""default-container: {account}
        # Pods read the ConfigMap when they start.
        checksum/config: {{{{ include (print $.Template.BasePath "/config.yaml") . | sha256sum }}}}
""",
        ),
        SECRET,
        resources(values, memory),
    )


def resources(values: str, memory: str) -> Replacement:
    """Return the replacement of one container's resources, which are told apart by their memory."""
    return (
        f"""          resources:
            requests:
              cpu: 10m
              memory: {memory}
""",
        f"""          resources:
            {{{{- toYaml .Values.{values}.resources | nindent 12 }}}}
""",
    )


def more_arguments(values: str, last: str) -> Replacement:
    """Return the replacement of a list of arguments that ends with ``last`` by one that can go on."""
    return (
        f"            - {last}\n          envFrom",
        f"""            - {last}
            {{{{- with .Values.{values}.extraArgs }}}}
            {{{{- toYaml . | nindent 12 }}}}
            {{{{- end }}}}
          envFrom""",
    )


def sidecar(name: str, image: str) -> Replacement:
    """Return the replacement of a sidecar's image, of whatever version."""
    return (f"image: {image}", f"image: {{{{ .Values.sidecars.{name}.image }}}}")


TOLERATIONS: Replacement = (
    """        - key: node.kubernetes.io/not-ready
          operator: Exists
          effect: NoExecute
          tolerationSeconds: 30
        - key: node.kubernetes.io/unreachable
          operator: Exists
          effect: NoExecute
          tolerationSeconds: 30
""",
    """        {{- toYaml .Values.controller.tolerations | nindent 8 }}
""",
)

HOST_KEY = "--rds-host-key=/etc/rds-csi/rds-host-key"

METRICS_FROM = """{{- with .Values.networkPolicies.metricsFrom }}
      from:
        {{- toYaml . | nindent 8 }}
      {{- end }}
"""


def sidecar_images(text: str) -> Sequence[Replacement]:
    """Return the replacements of the images of all sidecars that a manifest has."""
    return [sidecar(name, image) for image, name in re.findall(r"image: (\S+/csi-([a-z]+):\S+)", text)]


def controller(text: str) -> Sequence[Replacement]:
    """Return the replacements of the controller's manifest."""
    return (
        NO_REGISTRY,
        *deployment("controller", "rds-csi-controller", "128Mi"),
        *sidecar_images(text),
        resources("sidecars", "32Mi"),
        TOLERATIONS,
        more_arguments("controller", HOST_KEY),
        (
            "        # It needs the snapshot kinds",
            """        {{- if .Values.snapshots.enabled }}
        # It needs the snapshot kinds""",
        ),
        (
            "      volumes:\n        - name: socket\n",
            """        {{- end }}
      volumes:
        - name: socket
""",
        ),
    )


def operator(_: str) -> Sequence[Replacement]:
    """Return the replacements of the operator's manifest."""
    return (*deployment("operator", "rds-operator", "128Mi"), more_arguments("operator", HOST_KEY))


KUBELET = "/var/lib/kubelet"


def node(_: str) -> Sequence[Replacement]:
    """Return the replacements of the node plugin's manifest."""
    return (
        NO_REGISTRY,
        *pod_of("node", "rds-csi-node"),
        ("        - operator: Exists\n", "        {{- toYaml .Values.node.tolerations | nindent 8 }}\n"),
        (
            "          args: [node, --node-id=$(NODE_NAME)]\n",
            """          args:
            - node
            - --node-id=$(NODE_NAME)
            {{- with .Values.node.kubeletPath }}
            {{- if ne . "/var/lib/kubelet" }}
            - --kubelet-root-dir={{ . }}
            - --plugin-registration-path={{ . }}/plugins_registry
            - --endpoint=unix://{{ . }}/plugins/rds.csi.srvlab.io/csi.sock
            {{- end }}
            {{- end }}
            {{- with .Values.node.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
""",
        ),
        *(
            (f"{key}: {KUBELET}{rest}\n", f"{key}: {{{{ .Values.node.kubeletPath }}}}{rest}\n")
            for key in ("mountPath", "path")
            for rest in ("", "/plugins/rds.csi.srvlab.io")
        ),
        ("maxUnavailable: 10%", "maxUnavailable: {{ .Values.node.maxUnavailable }}"),
        resources("node", "96Mi"),
    )


def network_policies(_: str) -> Sequence[Replacement]:
    """Return the replacements of the network policies."""
    return (
        (
            "        - port: 443\n        - port: 6443\n",
            """        {{- range .Values.networkPolicies.apiServerPorts }}
        - port: {{ . }}
        {{- end }}
""",
        ),
        ("        - port: 22\n", "        - port: {{ .Values.box.sshPort }}\n"),
        ("        - port: snapshotter\n", f"        - port: snapshotter\n      {METRICS_FROM}"),
        ("        - port: metrics\n  egress", f"        - port: metrics\n      {METRICS_FROM}  egress"),
    )


def prometheus_rule(_: str) -> Sequence[Replacement]:
    """Return the replacement of where the pages of the alerts are."""
    return ((f"runbook_url: {RUNBOOK_URL}", "runbook_url: {{ $.Values.monitoring.runbooks }}"),)


def definition(_: str) -> Sequence[Replacement]:
    """Return the replacement that keeps the records, and with them who holds which volume, when the chart is uninstalled."""
    name = "  name: volumeattachmentrecords.rds.csi.srvlab.io\n"
    return ((name, f"{name}  annotations:\n    helm.sh/resource-policy: keep\n"),)


def nothing(_: str) -> Sequence[Replacement]:
    """Return no replacement."""
    return ()


BASE = "manifests/base"
MONITORING = "manifests/monitoring"

TEMPLATES = {
    "crds/volumeattachmentrecords.yaml": (definition, ""),
    f"{BASE}/csidriver.yaml": (nothing, ""),
    f"{BASE}/serviceaccounts.yaml": (nothing, ""),
    f"{BASE}/rbac-controller.yaml": (nothing, ""),
    f"{BASE}/rbac-sidecars.yaml": (nothing, ""),
    f"{BASE}/rbac-operator.yaml": (nothing, ""),
    f"{BASE}/rbac-node.yaml": (nothing, ""),
    f"{BASE}/rbac-kubectl.yaml": (nothing, ""),
    f"{BASE}/networkpolicies.yaml": (network_policies, "networkPolicies.enabled"),
    f"{BASE}/controller.yaml": (controller, ""),
    f"{BASE}/operator.yaml": (operator, ""),
    f"{BASE}/node.yaml": (node, ""),
    f"{MONITORING}/podmonitors.yaml": (nothing, "monitoring.podMonitors"),
    f"{MONITORING}/prometheusrule.yaml": (prometheus_rule, "monitoring.prometheusRule"),
    f"{MONITORING}/dashboard-configmap.yaml": (nothing, "monitoring.dashboard"),
}
"""By manifest: its replacements, and the value that it is there for (empty: always)."""


class Unmatched(ValueError):
    """A manifest does not have what is to be replaced in it; the message names both."""


def made() -> dict[Path, str]:
    """Return the text of every template that is made of a manifest."""
    return {CHART / "templates" / Path(name).name: template(name) for name in TEMPLATES}


def template(name: str) -> str:
    """Return the template of a manifest; raises Unmatched."""
    replacements, condition = TEMPLATES[name]
    original = (ROOT / name).read_text()
    # What looks like a template's own braces (Prometheus' templates, Grafana's legends) is text.
    text = re.sub(r"\{\{|\}\}", lambda found: f'{{{{ "{found[0]}" }}}}', original)
    for old, new in replacements(original):
        if old not in text:
            raise Unmatched(f"{name} does not have {old!r}")
        text = text.replace(old, new)
    text = text.replace(NAMESPACE, "namespace: {{ .Release.Namespace }}")
    if condition:
        text = f"{{{{- if .Values.{condition} }}}}\n{text}{{{{- end }}}}\n"
    return f"{{{{- /* Made of {name} by ./justw chart; do not edit. */}}}}\n{text}"
