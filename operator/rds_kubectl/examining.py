"""``kubectl rds doctor``: reads what the checks need of the API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from rds_kubectl import box_examination, examination, workloads
from rds_kubectl.examination import Check, Examination
from rds_kubectl.installation import Right, definition, rights, shipped
from rds_kubectl.reading import NODES_PATH, lease_path
from rds_kubectl.workloads import CONTROLLER, KINDS, OPERATOR, Workload
from rds_process.version import DISTRIBUTION
from rds_records.box_report import CONFIG_MAP
from rds_records.kubernetes_api import ApiError, KubernetesApi, ObjectNotFound
from rds_records.names import API_GROUP, PLURAL

AT_ONCE: Final = 16
"""Requests; a cluster's rights are about a hundred questions."""

_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_DEFINITION: Final = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{API_GROUP}"
_CSI_DRIVERS: Final = "/apis/storage.k8s.io/v1/csidrivers"
_CSI_NODES: Final = "/apis/storage.k8s.io/v1/csinodes"


async def examine(api: KubernetesApi, *, driver: str, installation: str) -> Examination:
    """Return all checks. Raises ApiError where the API server does not answer at all; what it forbids is a check of its own."""
    server = await api.get("/version")
    objects = list(shipped())
    csi_driver = next(body for body in objects if body["kind"] == "CSIDriver")

    async def of_definition() -> Sequence[Check]:
        return [examination.definition(await _find(api, _DEFINITION), definition())]

    async def of_csi_driver() -> Sequence[Check]:
        return [examination.csi_driver(await _find(api, f"{_CSI_DRIVERS}/{driver}"), csi_driver)]

    async def of_nodes() -> Sequence[Check]:
        (nodes, _), (csi_nodes, _) = await asyncio.gather(api.list(NODES_PATH), api.list(_CSI_NODES))
        return [examination.registrations({node["metadata"]["name"]: node for node in nodes}, csi_nodes, driver)]

    async def of_kubevirt() -> Sequence[Check]:
        return [examination.kubevirt(await _find(api, "/apis/kubevirt.io"))]

    async def of_rights() -> Sequence[Check]:
        wanted = rights(objects, installation)
        return list(examination.access(wanted, await missing_rights(api, wanted, installation)))

    groups = await asyncio.gather(
        _attempt("Record definition", of_definition),
        _attempt("CSIDriver", of_csi_driver),
        _attempt("Nodes", of_nodes),
        _programs_and_box(api, installation),
        _attempt("KubeVirt", of_kubevirt),
        _attempt("Rights", of_rights),
    )
    first = [examination.api_server(server), examination.clock(api.clock.disagreement())]
    return Examination([*first, *(check for group in groups for check in group)])


async def _programs_and_box(api: KubernetesApi, installation: str) -> list[Check]:
    """Return what is to be said of the three programs, and of the box as the active operator found it."""
    place = f"/api/v1/namespaces/{installation}/configmaps"
    known: dict[str, Workload] = {}
    lease: dict[str, Any] | None = None
    found: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    with contextlib.suppress(ApiError):
        # What is in it is told as not known then.
        config = await api.get(f"{place}/{workloads.CONFIG_MAP}")

    async def of_operator() -> Sequence[Check]:
        nonlocal lease
        lease = await _find(api, lease_path(installation))
        return [examination.operator(lease, api.clock.now(), installation)]

    async def of_workload(name: str) -> Sequence[Check]:
        path = f"/apis/apps/v1/namespaces/{installation}/{KINDS[name].lower()}s/{name}"
        known[name] = Workload(name, await _find(api, path), config)
        return [workloads.running(known[name], installation)]

    async def of_box() -> Sequence[Check]:
        nonlocal found
        found = await _find(api, f"{place}/{CONFIG_MAP}")
        mode = known[CONTROLLER].option("--snapshot-backend") if CONTROLLER in known else None
        address = known[OPERATOR].option("--rds-address") if OPERATOR in known else None
        watched = None if address is None else address != ""
        return box_examination.box(found, lease, api.clock.now(), mode=mode, watched=watched)

    checks = [*await _attempt("Operator", of_operator)]
    for name, kind in KINDS.items():
        checks += await _attempt(f"{kind} {name}", partial(of_workload, name))
    of_the_box = await _attempt(box_examination.SSH, of_box)
    if known:
        checks.append(workloads.versions([known[name] for name in KINDS if name in known], version(DISTRIBUTION)))
    if CONTROLLER in known and OPERATOR in known:
        report = box_examination.news(found, lease, api.clock.now())
        checks += workloads.configuration(known[CONTROLLER], known[OPERATOR], report, installation)
    return [*checks, *of_the_box]


async def missing_rights(api: KubernetesApi, wanted: Sequence[Right], installation: str) -> list[Right]:
    """Return the rights that the API server does not give to the account that needs them; raises ApiError."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def given(right: Right) -> bool:
        async with gate:
            answer = await api.create(_REVIEWS, review(right, installation))
        return bool(answer["status"].get("allowed"))

    answers = await asyncio.gather(*(given(right) for right in wanted))
    return [right for right, has in zip(wanted, answers, strict=True) if not has]


def review(right: Right, installation: str) -> dict[str, Any]:
    """Return the question to the API server whether an account has a right."""
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "namespace": right.namespace,
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "name": right.name,
    }
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{installation}:{right.account}",
            "groups": ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{installation}"],
            "resourceAttributes": {key: value for key, value in attributes.items() if value},
        },
    }


async def _find(api: KubernetesApi, path: str) -> dict[str, Any] | None:
    try:
        return await api.get(path)
    except ObjectNotFound:
        return None


async def _attempt(name: str, look: Callable[[], Awaitable[Sequence[Check]]]) -> Sequence[Check]:
    try:
        return await look()
    except ApiError as error:
        return [examination.unknown(name, str(error))]
