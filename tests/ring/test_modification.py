"""What a VolumeAttributesClass may change of a volume: the migration's timeout, and nothing that opens the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from uuid import uuid4

import pytest

from rds_csi.spec import csi_pb2
from tests.ring.api import Object
from tests.ring.cluster import Cluster
from tests.ring.driver import Operator
from tests.ring.rpc import RWX, Csi, Refused, code_of
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

MakeVolume = Callable[..., str]


def modify(csi: Csi, handle: str, parameters: Mapping[str, str]) -> None:
    request = csi_pb2.ControllerModifyVolumeRequest(volume_id=handle, mutable_parameters=parameters)
    csi.call(csi.controller.ControllerModifyVolume, request)


def create(csi: Csi, name: str, parameters: Mapping[str, str], mutable: Mapping[str, str]) -> csi_pb2.Volume:
    request = csi_pb2.CreateVolumeRequest(name=name, volume_capabilities=[RWX], parameters=parameters, mutable_parameters=mutable)
    volume: csi_pb2.Volume = csi.call(csi.controller.CreateVolume, request).volume
    return volume


def record_of(cluster: Cluster, handle: str) -> Object:
    record = cluster.record(handle)
    assert record
    return record


@pytest.mark.requirement("R10")
def test_a_new_timeout_stands_on_the_record(csi: Csi, make_volume: MakeVolume, cluster: Cluster) -> None:
    handle = make_volume(parameters={"migrationTimeoutSeconds": "60"})
    for _ in range(2):
        modify(csi, handle, {"migrationTimeoutSeconds": "900"})
        assert record_of(cluster, handle)["spec"]["migrationTimeoutSeconds"] == 900
    modify(csi, handle, {})
    assert record_of(cluster, handle)["spec"]["migrationTimeoutSeconds"] == 900


@pytest.mark.requirement("R10")
def test_the_deadline_of_a_running_migration_moves(csi: Csi, make_volume: MakeVolume, cluster: Cluster, operator: Operator) -> None:
    handle = make_volume(parameters={"migrationTimeoutSeconds": "600", "dualAttachPolicy": "AnyTwoNodes"})
    for node in (cluster.make_node("source"), cluster.make_node("target")):
        csi.publish(handle, node)
    modify(csi, handle, {"migrationTimeoutSeconds": "3600"})

    def hour() -> bool:
        window = record_of(cluster, handle)["status"]["migration"]
        start, deadline = (datetime.fromisoformat(window[name]) for name in ("startTime", "deadlineTime"))
        return (deadline - start).total_seconds() == 3600

    eventually("the deadline has moved", hour)


@pytest.mark.requirement("R10")
def test_a_volume_attributes_class_wins_over_the_storage_class_when_a_volume_is_made(csi: Csi, cluster: Cluster) -> None:
    name = f"pvc-{uuid4()}"
    volume = create(csi, name, {"migrationTimeoutSeconds": "60"}, {"migrationTimeoutSeconds": "120"})
    assert record_of(cluster, name)["spec"]["migrationTimeoutSeconds"] == 120
    assert volume.volume_context["migrationTimeoutSeconds"] == "120"
    csi.delete(name)


@pytest.mark.requirement("R10")
@pytest.mark.parametrize("value", ["abc", "29", "86401", "5m", "-1"])
def test_a_timeout_that_is_none_is_refused_and_changes_nothing(
    csi: Csi, make_volume: MakeVolume, cluster: Cluster, value: str
) -> None:
    handle = make_volume(parameters={"migrationTimeoutSeconds": "60"})
    assert code_of(lambda: modify(csi, handle, {"migrationTimeoutSeconds": value})) == "INVALID_ARGUMENT"
    assert record_of(cluster, handle)["spec"]["migrationTimeoutSeconds"] == 60


def test_the_policy_cannot_be_changed_by_whoever_may_edit_a_claim(csi: Csi, make_volume: MakeVolume, cluster: Cluster) -> None:
    handle = make_volume(parameters={})
    for call in (
        lambda: modify(csi, handle, {"dualAttachPolicy": "AnyTwoNodes", "migrationTimeoutSeconds": "60"}),
        lambda: create(csi, f"pvc-{uuid4()}", {}, {"dualAttachPolicy": "AnyTwoNodes"}),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.code, "edit a claim" in refused.value.message) == ("INVALID_ARGUMENT", True)
    assert record_of(cluster, handle)["spec"]["dualAttachPolicy"] == "KubeVirt"
    assert "migrationTimeoutSeconds" not in record_of(cluster, handle)["spec"]


def test_a_volume_that_nobody_knows_is_not_found(csi: Csi) -> None:
    assert code_of(lambda: modify(csi, f"pvc-{uuid4()}", {"migrationTimeoutSeconds": "60"})) == "NOT_FOUND"
    assert code_of(lambda: modify(csi, "", {})) == "INVALID_ARGUMENT"


def test_what_publish_would_refuse_is_not_confirmed(csi: Csi, make_volume: MakeVolume, cluster: Cluster, box: SimulatedBox) -> None:
    handle, node = make_volume(), cluster.make_node()
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=handle, volume_capabilities=[RWX])

    def confirmed() -> tuple[bool, str]:
        answer = csi.call(csi.controller.ValidateVolumeCapabilities, request)
        return answer.HasField("confirmed"), answer.message

    assert confirmed() == (True, "")
    box.fail_command("^/disk remove", "failure: disk is busy")
    assert code_of(lambda: csi.delete(handle)) == "FAILED_PRECONDITION"
    assert csi.publish_code(handle, node) == "FAILED_PRECONDITION"
    assert confirmed() == (False, f"volume {handle} is being deleted and is not published any more")
