"""What the accounts of the installation may do, as the API server says: what is written here, and nothing else."""

from __future__ import annotations

import pytest

from tests.ring.api import Api, ApiError, path_of
from tests.ring.audit import Right, granted
from tests.ring.cluster import RECORD, Cluster
from tests.ring.controlplane import ControlPlane
from tests.ring.installation import CONTROLLER, NAMESPACE, NODE, OPERATOR, resources

GROUP, PLURAL = "rds.csi.srvlab.io", "volumeattachmentrecords"

EVERYBODY = {
    Right("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
    Right("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
    Right("authentication.k8s.io", "selfsubjectreviews", "create"),
}
"""What Kubernetes gives every account: to ask who it is and what it may (ClusterRole system:basic-user)."""


def rights(group: str, resource: str, *verbs: str) -> set[Right]:
    return {Right(group, resource, verb) for verb in verbs}


RIGHTS = {
    CONTROLLER: rights(GROUP, PLURAL, "get", "list", "create", "update", "delete")
    | rights(GROUP, f"{PLURAL}/status", "update")
    | rights("", "nodes", "get")
    | rights("", "persistentvolumes", "get", "list")
    | rights("", "persistentvolumeclaims", "get")
    | rights("", "pods", "list")
    | rights("kubevirt.io", "virtualmachineinstances", "get")
    | rights("kubevirt.io", "virtualmachineinstancemigrations", "list")
    | rights("storage.k8s.io", "volumeattachments", "get", "list"),
    OPERATOR: rights(GROUP, PLURAL, "get", "list", "watch", "update")
    | rights(GROUP, f"{PLURAL}/status", "update")
    | rights("", "persistentvolumes", "get", "list")
    | rights("kubevirt.io", "virtualmachineinstances", "get", "list", "watch")
    | rights("kubevirt.io", "virtualmachineinstancemigrations", "get", "list", "watch")
    | rights("", "pods", "list")
    | rights("", "nodes", "get")
    | rights("storage.k8s.io", "volumeattachments", "list", "patch")
    | rights("snapshot.storage.k8s.io", "volumesnapshotcontents", "list")
    | rights("", "events", "create", "patch"),
    NODE: rights("", "nodes", "get")
    | rights("", "persistentvolumes", "get")
    | rights(GROUP, PLURAL, "get")
    | rights("", "events", "create", "patch"),
}
"""That none is missing is shown by all other tests of the ring, that none is idle by those of the audit log."""

OWN_NAMESPACE = {
    CONTROLLER: set[Right](),
    NODE: set[Right](),
    OPERATOR: rights("coordination.k8s.io", "leases", "get", "create", "update") | rights("", "configmaps", "create"),
}
"""What an account may do in the namespace of the installation on top."""

OWN_OBJECTS: dict[str, dict[str, set[Right]]] = {
    CONTROLLER: {},
    NODE: {},
    OPERATOR: {
        "rds-operator-orphans": rights("", "configmaps", "get", "update"),
        "rds-operator-box": rights("", "configmaps", "get", "update"),
        "rds-operator": rights("apps", "deployments", "get"),
    },
}
"""What an account may do there with single objects, by their names."""

ACCOUNTS = (CONTROLLER, OPERATOR, NODE)


def allowed(api: Api, namespace: str) -> dict[str, set[Right]]:
    """Return what the account may do in a namespace, and with objects that lie in none (``kubectl auth can-i --list``).

    By the name of the object where a right is for that one alone, else under the empty name.
    """
    review = api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {"spec": {"namespace": namespace}})
    assert not review["status"]["incomplete"], review
    found: dict[str, set[Right]] = {"": set()}
    for rule in review["status"]["resourceRules"]:
        for name in rule.get("resourceNames") or [""]:
            found.setdefault(name, set()).update(granted({"rules": [rule]}))
    return found


@pytest.mark.parametrize("account", ACCOUNTS)
def test_an_account_may_do_in_any_namespace_what_is_written_here_and_no_more(
    account: str, cluster: Cluster, installed: ControlPlane
) -> None:
    assert allowed(installed.api_for(NAMESPACE, account), cluster.namespace) == {"": RIGHTS[account] | EVERYBODY}


@pytest.mark.parametrize("account", ACCOUNTS)
def test_an_account_may_keep_its_own_objects_in_its_own_namespace(account: str, installed: ControlPlane) -> None:
    own = {"": RIGHTS[account] | OWN_NAMESPACE[account] | EVERYBODY, **OWN_OBJECTS[account]}
    assert allowed(installed.api_for(NAMESPACE, account), NAMESPACE) == own


def test_no_role_that_is_shipped_has_a_wildcard_or_reads_secrets() -> None:
    roles = [body for body in resources() if body["kind"] in {"Role", "ClusterRole"}]
    assert len(roles) >= 5
    for role in roles:
        for rule in role["rules"]:
            words = [word for key in ("apiGroups", "resources", "verbs") for word in rule[key]]
            assert not [word for word in words if "*" in word], role["metadata"]["name"]
            assert not {"secrets", "serviceaccounts/token", "pods/exec"} & set(words), role["metadata"]["name"]
            assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(words), role["metadata"]["name"]
            assert "nonResourceURLs" not in rule, role["metadata"]["name"]


@pytest.mark.parametrize("account", ACCOUNTS)
@pytest.mark.parametrize(
    ("method", "kind", "name", "namespaced"),
    [
        ("GET", "Secret", None, True),
        ("GET", "Secret", "ssh-key", True),
        ("GET", "ConfigMap", None, True),
        ("GET", "Pod", "virt-launcher", True),
        ("POST", "Pod", None, True),
        ("DELETE", "Pod", "virt-launcher", True),
        ("DELETE", "PersistentVolume", "pvc-1", False),
        ("PATCH", "PersistentVolume", "pvc-1", False),
        ("GET", "PersistentVolumeClaim", None, True),
        ("PATCH", "PersistentVolumeClaim", "claim", True),
        ("DELETE", "PersistentVolumeClaim", "claim", True),
        ("PATCH", "VirtualMachineInstance", "vm", True),
        ("DELETE", "VirtualMachineInstanceMigration", "migration", True),
        ("PUT", "VolumeAttachment", "csi-1", False),
        ("DELETE", "VolumeAttachment", "csi-1", False),
        ("PATCH", "Node", "node", False),
        ("DELETE", "Node", "node", False),
        ("PATCH", "CSIDriver", "rds.csi.srvlab.io", False),
        ("POST", "StorageClass", None, False),
        ("PATCH", "CustomResourceDefinition", f"{PLURAL}.{GROUP}", False),
        ("DELETE", RECORD, None, False),
        ("POST", "ClusterRoleBinding", None, False),
        ("PATCH", "ClusterRole", "rds-csi-controller", False),
        ("PATCH", "Lease", "rds-operator", True),
    ],
)
def test_an_account_is_forbidden_what_is_not_its_business(
    account: str, method: str, kind: str, name: str | None, namespaced: bool, installed: ControlPlane
) -> None:
    api = installed.api_for(NAMESPACE, account)
    body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name or "x"}} if method in {"POST", "PATCH"} else None
    content = "application/merge-patch+json" if method == "PATCH" else "application/json"
    with pytest.raises(ApiError) as refused:
        api.request(method, path_of(kind, name, NAMESPACE if namespaced else None), body, content_type=content)
    assert (refused.value.status, refused.value.reason) == (403, "Forbidden")
