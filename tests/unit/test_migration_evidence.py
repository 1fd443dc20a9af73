"""What the driver reads to find a live migration, in how many rounds, and what it makes of trouble."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest

from rds_csi.migration_evidence import MigrationEvidence
from rds_records.kubernetes_api import ApiError, ApiUnavailable, ObjectNotFound, RequestRefused
from rds_records.kubevirt_evidence import Evidence, EvidenceUnavailable, LiveMigration, NotExplained, Rule
from rds_records.record import DualAttachPolicy, ObjectReference, Record
from tests.unit.records.kubevirt import CLAIM, NAMESPACE, RUN, VM, hotplug, launcher, migration, pod, vmi
from tests.unit.records.volumes import HANDLE, attached, fresh

pytestmark = pytest.mark.requirement("R7")

Body = dict[str, Any]

KUBEVIRT = "/apis/kubevirt.io/v1"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
PV = f"/api/v1/persistentvolumes/{HANDLE}"
PVC = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/{CLAIM}"
VMI = f"{KUBEVIRT}/namespaces/{NAMESPACE}/virtualmachineinstances/{VM}"
MIGRATIONS = f"{KUBEVIRT}/namespaces/{NAMESPACE}/virtualmachineinstancemigrations"
HINT = ObjectReference(namespace=NAMESPACE, name=CLAIM)
KINDS = ("virtualmachineinstances", "virtualmachineinstances/status", "virtualmachineinstancemigrations")


def volume(name: str = HANDLE, *, claim: str | None = CLAIM, uid: str = "claim-uid", phase: str = "Bound", **csi: str) -> Body:
    source = {"driver": "rds.csi.srvlab.io", "volumeHandle": HANDLE, **csi}
    body: Body = {"metadata": {"name": name}, "spec": {"csi": source}, "status": {"phase": phase}}
    if claim:
        body["spec"]["claimRef"] = {"namespace": NAMESPACE, "name": claim, "uid": uid}
    return body


class Api:
    """A cluster in memory that notes every read and which were made at the same time; ``troubles`` meet paths that match."""

    def __init__(self, *pods: Body, runs: tuple[Body, ...] = (migration(phase="Pending"),)) -> None:
        self.objects: dict[str, Body] = {
            PV: volume(),
            PVC: {"metadata": {"name": CLAIM, "uid": "claim-uid"}},
            VMI: vmi(),
            KUBEVIRT: {"resources": [{"name": name} for name in KINDS]},
        }
        self.pods = list(pods or (launcher("src", "node-a"), launcher("dst", "node-b", job=RUN, phase="Pending")))
        self.runs: list[Body] | None = list(runs)
        self.volumes: list[Body] = []
        self.troubles: dict[str, ApiError | Exception] = {}
        self.rounds: list[list[str]] = []
        self._open: asyncio.Future[None] | None = None

    @property
    def reads(self) -> int:
        return sum(map(len, self.rounds))

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Body:
        await self._round(path)
        if path not in self.objects:
            raise ObjectNotFound(f"GET {path}: 404", 404)
        return self.objects[path]

    async def get_metadata(self, path: str) -> Body:
        metadata: Body = (await self.get(path))["metadata"]
        return metadata

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[Body], str]:
        await self._round(f"{path}?{'&'.join((params or {}).values())}")
        if path.endswith("/pods"):
            node = (params or {})["fieldSelector"].removeprefix("spec.nodeName=")
            here = [body for body in self.pods if body["spec"]["nodeName"] == node]
            return [body for body in here if path == "/api/v1/pods" or f"/{body['metadata']['namespace']}/" in path], "1"
        if path == "/api/v1/persistentvolumes":
            return self.volumes, "1"
        assert path == MIGRATIONS, path
        if self.runs is None:
            raise ObjectNotFound(f"GET {path}: 404", 404)
        wanted = (params or {}).get("labelSelector", "")
        labels = [f"kubevirt.io/vmi-name={body['metadata']['labels']['kubevirt.io/vmi-name']}" for body in self.runs]
        return [body for body, label in zip(self.runs, labels, strict=True) if wanted in {"", label}], "1"

    async def _round(self, what: str) -> None:
        """Hold a read until all that were begun with it are here too: those make one round."""
        loop = asyncio.get_running_loop()
        if self._open is None:
            self._open = loop.create_future()
            self.rounds.append([])
            loop.call_soon(self._end_round)
        self.rounds[-1].append(what)
        await self._open
        for pattern, error in self.troubles.items():
            if re.search(pattern, what):
                raise error

    def _end_round(self) -> None:
        assert self._open is not None
        self._open.set_result(None)
        self._open = None


def record(claim: ObjectReference | None = HINT, **changes: Any) -> Record:
    return attached(fresh(dual_attach_policy=DualAttachPolicy.KUBEVIRT, **changes), "node-a").with_status(claim_ref=claim)


async def look(api: Api, asked: Record | None = None) -> Evidence:
    return await MigrationEvidence(api).look(asked or record(), "node-a", "node-b")


async def yes(api: Api, asked: Record | None = None) -> LiveMigration:
    evidence = await look(api, asked)
    assert isinstance(evidence, LiveMigration), evidence
    return evidence


async def no(api: Api, rule: Rule, *words: str, asked: Record | None = None) -> NotExplained:
    evidence = await look(api, asked)
    assert isinstance(evidence, NotExplained), evidence
    assert evidence.rule is rule, evidence
    assert [word for word in words if word not in evidence.text] == []
    return evidence


# What is read -------------------------------------------------------------------------------------


async def test_a_live_migration_is_found_in_two_rounds_of_six_reads_of_what_it_needs_only() -> None:
    api = Api()
    run = await yes(api)
    assert (run.vmi.name, run.migration.uid, run.source_node, run.target_node) == (VM, RUN, "node-a", "node-b")
    assert [sorted(reads) for reads in api.rounds] == [
        sorted([PV, PVC, f"{PODS}?spec.nodeName=node-a", f"{PODS}?spec.nodeName=node-b"]),
        sorted([VMI, f"{MIGRATIONS}?kubevirt.io/vmi-name={VM}"]),
    ]


async def test_without_a_hint_pods_of_all_namespaces_are_read_and_the_claim_is_checked_later() -> None:
    api = Api()
    stranger = pod("stranger", "node-a")
    stranger["metadata"]["namespace"] = "elsewhere"
    api.pods.append(stranger)
    await yes(api, record(None))
    assert [sorted(reads) for reads in api.rounds] == [
        sorted([PV, "/api/v1/pods?spec.nodeName=node-a", "/api/v1/pods?spec.nodeName=node-b"]),
        sorted([PVC, VMI, f"{MIGRATIONS}?kubevirt.io/vmi-name={VM}"]),
    ]


async def test_where_no_pods_could_be_migrating_the_second_round_asks_whether_there_is_kubevirt() -> None:
    api = Api(launcher("src", "node-a"))
    await no(api, Rule.NO_TARGET_POD, CLAIM, "node-b")
    assert (api.rounds[1], api.reads) == ([KUBEVIRT], 5)


async def test_hotplugged_disks_need_no_further_read() -> None:
    source, target = launcher("src", "node-a", claims=()), launcher("dst", "node-b", claims=(), job=RUN, phase="Pending")
    api = Api(source, target, hotplug(source), hotplug(target, job=RUN))
    await yes(api)
    assert (len(api.rounds), api.reads) == (2, 6)


@pytest.mark.parametrize("hint", [ObjectReference(namespace="old", name=CLAIM), ObjectReference(namespace=NAMESPACE, name="old")])
async def test_a_hint_that_is_out_of_date_costs_another_look_at_the_claim_that_counts(hint: ObjectReference) -> None:
    api = Api()
    await yes(api, record(hint))
    assert sorted(api.rounds[1]) == sorted([PVC, f"{PODS}?spec.nodeName=node-a", f"{PODS}?spec.nodeName=node-b"])
    assert len(api.rounds) == 3


async def test_a_volume_under_another_name_is_found_by_its_handle() -> None:
    api = Api()
    api.objects[PV] = volume(volumeHandle="another")
    api.volumes = [volume("old", phase="Released", uid="old-uid"), volume("static", driver="x"), volume("static-1")]
    await yes(api)
    del api.objects[PV]
    await yes(api)
    assert "/api/v1/persistentvolumes?" in api.rounds[1]


async def test_the_name_on_the_record_counts_before_the_handle() -> None:
    api = Api()
    api.objects["/api/v1/persistentvolumes/static-1"] = api.objects.pop(PV)
    await yes(api, record(persistent_volume_name="static-1"))
    assert api.reads == 6


async def test_of_a_vm_whose_name_is_no_label_all_migrations_are_read() -> None:
    name = "v" * 64
    pods = launcher("src", "node-a", vmi=name), launcher("dst", "node-b", vmi=name, job=RUN)
    api = Api(*pods, runs=(migration(vmi=name), migration("run-9")))
    api.objects[VMI.replace(VM, name)] = vmi(name)
    await yes(api)
    assert f"{MIGRATIONS}?" in api.rounds[1]


async def test_a_name_in_an_owner_reference_never_becomes_a_path() -> None:
    name = "../../../../api/v1/namespaces/kube-system/secrets/token"
    api = Api(launcher("src", "node-a", vmi=name), launcher("dst", "node-b", vmi=name, job=RUN))
    await no(api, Rule.NO_LIVE_MIGRATION, "does not exist any more")
    assert [read for reads in api.rounds for read in reads if "secrets" in read] == []


# What is not there --------------------------------------------------------------------------------


async def test_without_a_volume_of_that_handle_nobody_uses_it() -> None:
    api = Api()
    del api.objects[PV]
    await no(api, Rule.NO_CLAIM, HANDLE, "no PersistentVolume")


async def test_a_volume_that_is_bound_to_nothing_is_used_by_nobody() -> None:
    api = Api()
    api.objects[PV] = volume(claim=None)
    await no(api, Rule.NO_CLAIM, HANDLE, "bound to no claim")
    del volume_claim(api)["uid"]
    await no(api, Rule.NO_CLAIM, "bound to no claim")


def volume_claim(api: Api) -> Body:
    api.objects[PV] = volume()
    claim: Body = api.objects[PV]["spec"]["claimRef"]
    return claim


@pytest.mark.parametrize("hint", [HINT, None], ids=["hint", "no hint"])
async def test_a_claim_that_is_gone_or_another_of_its_name_makes_its_pods_strangers(hint: ObjectReference | None) -> None:
    api = Api()
    api.objects[PVC]["metadata"]["uid"] = "younger"
    await no(api, Rule.NO_CLAIM, f"{NAMESPACE}/{CLAIM}", "another one", asked=record(hint))
    del api.objects[PVC]
    await no(api, Rule.NO_CLAIM, f"{NAMESPACE}/{CLAIM}", "does not exist any more", asked=record(hint))
    api.pods = []
    await no(api, Rule.NO_CLAIM, "does not exist any more", asked=record(hint))


@pytest.mark.parametrize("pods", [(), (launcher("src", "node-a"),), (pod("a", "node-a"), pod("b", "node-b"))])
async def test_in_a_cluster_without_kubevirt_that_is_what_is_said(pods: tuple[Body, ...]) -> None:
    api = Api()
    api.pods, api.runs = list(pods), None
    del api.objects[KUBEVIRT]
    await no(api, Rule.NO_KUBEVIRT)
    api.objects[KUBEVIRT] = {"resources": [{"name": "virtualmachineinstances"}]}
    await no(api, Rule.NO_KUBEVIRT)


async def test_pods_that_pretend_do_not_help_where_there_is_no_kubevirt() -> None:
    api = Api()
    api.runs = None
    await no(api, Rule.NO_KUBEVIRT)


async def test_a_vm_that_is_gone_does_not_migrate() -> None:
    api = Api()
    del api.objects[VMI]
    await no(api, Rule.NO_LIVE_MIGRATION, "does not exist any more")


# Trouble ------------------------------------------------------------------------------------------

READS = {
    "the volume": (f"{PV}$", "get persistentvolumes"),
    "the claim": (f"{PVC}$", f"get persistentvolumeclaims in namespace {NAMESPACE}"),
    "pods of the source": ("pods.*node-a$", f"list pods in namespace {NAMESPACE}"),
    "pods of the target": ("pods.*node-b$", f"list pods in namespace {NAMESPACE}"),
    "the VM": (f"{VMI}$", f"get virtualmachineinstances.kubevirt.io in namespace {NAMESPACE}"),
    "migrations": (f"{MIGRATIONS}?", f"list virtualmachineinstancemigrations.kubevirt.io in namespace {NAMESPACE}"),
}


@pytest.mark.parametrize(("path", "right"), READS.values(), ids=READS)
async def test_what_is_forbidden_is_named_with_the_right_that_is_missing(path: str, right: str) -> None:
    api = Api()
    api.troubles[path] = RequestRefused("GET …: 403 forbidden", 403, "Forbidden")
    evidence = await look(api)
    assert isinstance(evidence, EvidenceUnavailable), evidence
    assert evidence.forbidden
    assert f"may not {right}: grant it, the rule is in manifests/base/rbac-controller.yaml" in evidence.text


@pytest.mark.parametrize("error", [ApiUnavailable("no answer"), ApiUnavailable("503", 503), RequestRefused("401", 401)])
@pytest.mark.parametrize(("path", "right"), READS.values(), ids=READS)
async def test_what_could_not_be_read_is_named(path: str, right: str, error: ApiError) -> None:
    api = Api()
    api.troubles[path] = error
    evidence = await look(api)
    assert isinstance(evidence, EvidenceUnavailable), evidence
    assert not evidence.forbidden
    assert f"{right.split(' ', 1)[1]} could not be read ({error})" in evidence.text


@pytest.mark.parametrize("path", ["pods.*node-a", "persistentvolumes\\?"])
async def test_a_list_that_is_not_found_is_no_empty_list(path: str) -> None:
    api = Api()
    del api.objects[PV]
    api.troubles[path] = ObjectNotFound("404", 404)
    assert isinstance(await look(api), EvidenceUnavailable)


async def test_without_a_hint_the_right_to_list_pods_everywhere_is_named() -> None:
    api = Api()
    api.troubles["pods"] = RequestRefused("403", 403)
    evidence = await look(api, record(None))
    assert isinstance(evidence, EvidenceUnavailable)
    assert "list pods in all namespaces" in evidence.text


async def test_whether_there_is_kubevirt_may_be_unknown_too() -> None:
    api = Api(launcher("src", "node-a"))
    api.troubles[f"{KUBEVIRT}$"] = ApiUnavailable("429", 429)
    assert isinstance(await look(api), EvidenceUnavailable)


async def test_the_vm_is_known_where_only_its_migrations_could_not_be_read() -> None:
    api = Api()
    api.troubles[MIGRATIONS] = ApiUnavailable("503", 503)
    evidence = await look(api)
    assert isinstance(evidence, EvidenceUnavailable)
    assert evidence.vmi is not None
    assert (evidence.namespace, evidence.vmi.name) == (NAMESPACE, VM)


async def test_a_defect_is_not_taken_for_trouble() -> None:
    api = Api()
    api.troubles[f"{VMI}$"] = ValueError("a defect")
    with pytest.raises(ExceptionGroup) as raised:
        await look(api)
    assert raised.group_contains(ValueError, match="a defect")


@pytest.mark.requirement("R35")
async def test_a_look_that_is_cancelled_leaves_no_read_behind() -> None:
    api = Api()
    before = asyncio.all_tasks()
    task = asyncio.create_task(look(api))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert api.reads == 4
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
