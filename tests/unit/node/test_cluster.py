"""What a node reads of the cluster: its Node, and the PersistentVolume of a volume, each by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rds_csi.errors import FailedPrecondition, Unavailable
from rds_csi.node.cluster import EventSubjects, NodeCheck, PersistentVolumes, watch_annotations
from rds_csi.node.hold_off import RESET_ANNOTATION, VolumeHoldOff
from rds_csi.node.incidents import EachIncident
from rds_csi.node.reports import Operation
from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound
from rds_records.record import Record
from tests.unit.node.node_world import TARGET
from tests.unit.records.volumes import empty

DRIVER, HANDLE = "rds.csi.srvlab.io", "pvc-one"
NODE_PATH = "/api/v1/nodes/node-a"


class Api:
    """Objects by their paths; ``trouble`` is raised by every call while it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.records: dict[str, Record] = {}
        self.trouble: Exception | None = None
        self.asked: list[str] = []

    async def get(self, path: str, params: object = None) -> dict[str, Any]:
        self.asked.append(path)
        if self.trouble:
            raise self.trouble
        if path not in self.objects:
            raise ObjectNotFound(f"GET {path}: 404", 404)
        return self.objects[path]

    async def get_metadata(self, path: str) -> dict[str, Any]:
        metadata: dict[str, Any] = (await self.get(path))["metadata"]
        return metadata

    async def read(self, handle: str) -> Record | None:
        if self.trouble:
            raise self.trouble
        return self.records.get(handle)

    def volume(self, name: str, handle: str = HANDLE, *, claim: bool = True, driver: str = DRIVER, annotation: str = "") -> None:
        spec: dict[str, Any] = {"csi": {"driver": driver, "volumeHandle": handle}}
        if claim:
            spec["claimRef"] = {"namespace": "vms", "name": "disk", "uid": "claim-uid"}
        annotations = {RESET_ANNOTATION: annotation} if annotation else {}
        body = {"metadata": {"name": name, "annotations": annotations}, "spec": spec}
        self.objects[f"/api/v1/persistentvolumes/{name}"] = body


@pytest.fixture
def api() -> Api:
    return Api()


async def test_a_node_that_is_there_is_known_with_its_uid(api: Api) -> None:
    api.objects[NODE_PATH] = {"metadata": {"uid": "node-uid"}}
    check = NodeCheck(api, "node-a")
    assert await check.look()
    check.refuse_if_absent()
    assert (check.uid, check.trouble) == ("node-uid", "")


async def test_a_node_that_is_not_there_is_refused_with_the_way_out(api: Api) -> None:
    check = NodeCheck(api, "node-a")
    assert not await check.look()
    with pytest.raises(FailedPrecondition, match=r"there is no Node node-a: --node-id must be .*spec\.nodeName"):
        check.refuse_if_absent()


async def test_an_api_server_that_is_away_is_no_evidence(api: Api) -> None:
    check = NodeCheck(api, "node-a")
    check.refuse_if_absent()
    api.trouble = ApiUnavailable("away")
    assert not await check.look()
    check.refuse_if_absent()
    assert "cannot be read: away" in check.trouble


async def test_the_node_is_asked_for_until_it_is_there(api: Api) -> None:
    api.trouble = ApiUnavailable("away")
    check = NodeCheck(api, "node-a")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            api.trouble = None
        if len(slept) == 7:
            assert check.absent
            api.objects[NODE_PATH] = {"metadata": {"uid": "node-uid"}}

    await check.run(sleep)
    assert slept == [1, 2, 4, 8, 16, 30, 30]
    check.refuse_if_absent()


def volumes(api: Api) -> PersistentVolumes:
    return PersistentVolumes(api, api, DRIVER)


async def test_a_volume_is_found_under_its_own_name(api: Api) -> None:
    api.volume(HANDLE)
    found = await volumes(api).of(HANDLE)
    assert found is not None
    assert api.asked == [f"/api/v1/persistentvolumes/{HANDLE}"]


async def test_a_volume_of_another_name_is_found_through_its_record(api: Api) -> None:
    api.volume("disk-1")
    api.records[HANDLE] = empty(persistent_volume_name="disk-1")
    found = await volumes(api).of(HANDLE)
    assert found is not None
    assert found["metadata"]["name"] == "disk-1"


@pytest.mark.parametrize(("handle", "driver"), [("pvc-other", DRIVER), (HANDLE, "ebs.csi.aws.com")])
async def test_a_persistent_volume_of_that_name_for_another_volume_is_not_it(api: Api, handle: str, driver: str) -> None:
    api.volume(HANDLE, handle, driver=driver)
    assert await volumes(api).of(HANDLE) is None


async def test_a_handle_that_is_no_name_is_asked_of_the_record_alone(api: Api) -> None:
    assert await volumes(api).of("Upper/../case") is None
    assert api.asked == []


async def test_events_of_a_volume_are_about_its_claim_and_else_about_the_node(api: Api) -> None:
    subjects = EventSubjects(volumes(api), "node-a", lambda: "node-uid")
    api.volume(HANDLE)
    about = await subjects.of(HANDLE)
    assert (about.kind, about.reference.namespace, about.reference.name, about.reference.uid) == (
        "PersistentVolumeClaim",
        "vms",
        "disk",
        "claim-uid",
    )
    api.volume(HANDLE, claim=False)
    for volume_id in (HANDLE, "pvc-unknown", ""):
        about = await subjects.of(volume_id)
        assert (about.kind, about.reference.name, about.reference.uid) == ("Node", "node-a", "node-uid")


def held(hold_off: VolumeHoldOff) -> bool:
    try:
        hold_off.check(HANDLE)
    except Unavailable:
        return True
    return False


async def test_an_annotation_that_is_set_releases_a_volume_and_an_outage_in_between_does_not(api: Api) -> None:
    hold_off = VolumeHoldOff("node-a", EachIncident(), monotonic=lambda: 0.0)
    for _ in range(3):
        hold_off.connect_ended(HANDLE, TARGET, 1.0, "no answer")
        hold_off.operation_ended(HANDLE, Operation.STAGE, 1.0, "no answer")
    api.volume(HANDLE)
    seen: list[bool] = []

    async def sleep(_: float) -> None:
        seen.append(held(hold_off))
        match len(seen):
            case 1:
                api.trouble = ApiUnavailable("away")
                api.volume(HANDLE, annotation="true")
            case 2:
                api.trouble = None
            case 4:
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await watch_annotations(hold_off, volumes(api), sleep)
    assert seen == [True, True, False, False]
    assert len(api.asked) == 3, "a volume that is not held off is not asked for"
