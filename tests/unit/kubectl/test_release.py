from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_kubectl.reading import ATTACHMENTS_PATH, NODES_PATH, VOLUMES_PATH, Reader
from rds_kubectl.release import Answer, Facts, Outcome, judge
from rds_kubectl.releasing import facts_about, release
from rds_kubectl.world import Trouble, Volume, volumes_of_driver
from rds_records.clock import ServerClock
from rds_records.fencing import FENCED, confirmed
from rds_records.forced_detach import OUT_OF_SERVICE
from rds_records.kubernetes_api import ApiUnavailable, ObjectNotFound, WriteConflict
from rds_records.kubevirt_objects import Owner, Pod, Vmi
from rds_records.names import unique_volume_name
from rds_records.record import Record
from rds_records.store import COLLECTION
from tests.unit.kubectl.cluster_objects import CLAIM, VMI, Object, attachment, ended, migrating, node, volume, with_condition
from tests.unit.records.volumes import HANDLE, START, attached, fresh
from tests.unit.test_advice import forbidden

NAME = unique_volume_name(HANDLE)
DEAD = node("node-a", ready=False)
OFF = node("node-a", ready=False, taints=[OUT_OF_SERVICE])


def pod(on: str = "node-a", *, claim: str = CLAIM.name, phase: str = "Running", namespace: str = CLAIM.namespace) -> Pod:
    return Pod(namespace, "web-1", "pod-uid", on, phase, False, {}, None, frozenset({claim}))


def vmi(on: str) -> Vmi:
    return Vmi("vms", "web", "vmi-uid", on, 0, 0, None, frozenset({CLAIM.name}))


def facts(record: Record | None = None, body: Object | None = None, **changes: Any) -> Facts:
    """Return a volume that node-a holds, and what is known of node-a."""
    usual: dict[str, Any] = {
        "handle": HANDLE,
        "node": "node-a",
        "attachments": (attachment("node-a"), attachment("node-b")),
        "record": record or attached(fresh(), "node-a"),
        "node_body": body,
        "claims": (CLAIM,),
    }
    return Facts(**{**usual, **changes})


def ground(given_facts: Facts) -> tuple[Outcome, str]:
    answer = judge(given_facts)
    return answer.outcome, answer.ground


def fenced(record: Record) -> Record:
    return confirmed(record, enabled=True, disk=True, now=START)


def test_a_node_that_does_not_exist_is_out() -> None:
    answer = judge(facts(body=None))
    assert (answer.outcome, answer.ground) == (Outcome.RELEASE, "NodeGone")
    assert answer.attachment == attachment("node-a")


def test_a_node_that_is_gone_is_not_out_while_a_pod_or_a_vm_counts_as_running_there() -> None:
    assert ground(facts(pods=[pod()])) == (Outcome.REFUSED, "PodsThere")
    assert ground(facts(vmi=vmi("node-a"), vmi_phase="Running")) == (Outcome.REFUSED, "VmRunsThere")
    assert ground(facts(vmi=vmi("node-a"), vmi_phase="Failed")) == (Outcome.RELEASE, "NodeGone")


def test_a_node_that_was_powered_off_and_marked_is_out_whatever_still_counts_as_running_there() -> None:
    assert ground(facts(body=OFF)) == (Outcome.RELEASE, "OutOfService")
    assert ground(facts(body=OFF, pods=[pod()], vmi=vmi("node-a"))) == (Outcome.RELEASE, "OutOfService")


def test_a_node_that_is_marked_and_ready_has_power() -> None:
    assert ground(facts(body=node("node-a", taints=[OUT_OF_SERVICE]))) == (Outcome.REFUSED, "OutOfServiceButReady")


def test_a_node_that_is_only_silent_may_still_write() -> None:
    answer = judge(facts(body=DEAD))
    assert (answer.outcome, answer.ground) == (Outcome.REFUSED, "NodeNotReady")
    assert "may be powered off only once it is certain that the VM does not run there" in answer.do


def test_how_to_power_a_silent_node_off_is_said_where_the_vm_runs_elsewhere() -> None:
    answer = judge(facts(body=DEAD, vmi=vmi("node-b"), vmi_phase="Running"))
    assert answer.do.index("power it off for certain") < answer.do.index("kubectl taint nodes node-a")


def test_a_silent_node_is_out_where_the_fence_is_on() -> None:
    assert ground(facts(fenced(attached(fresh(), "node-a")), DEAD)) == (Outcome.RELEASE, "Fenced")
    assert ground(facts(with_condition(attached(fresh(), "node-a"), FENCED, "False"), DEAD)) == (Outcome.REFUSED, "NodeNotReady")


def test_a_ready_node_that_does_not_use_the_volume_is_out() -> None:
    assert ground(facts(body=node("node-a"))) == (Outcome.RELEASE, "NotUsed")


@pytest.mark.parametrize(
    ("status", "expected"), [({"volumesInUse": [NAME]}, "Mounted"), ({"volumesAttached": [{"name": NAME}]}, "Detaching")]
)
def test_a_ready_node_is_not_out_while_kubelet_or_controller_has_the_volume(status: Mapping[str, Any], expected: str) -> None:
    assert ground(facts(body=node("node-a", **status))) == (Outcome.REFUSED, expected)
    assert ground(facts(fenced(attached(fresh(), "node-a")), node("node-a", **status))) == (Outcome.RELEASE, "Fenced")


def test_another_volume_in_use_says_nothing() -> None:
    body = node("node-a", volumesInUse=[unique_volume_name("pvc-other")], volumesAttached=[{"name": "x"}])
    assert ground(facts(body=body)) == (Outcome.RELEASE, "NotUsed")


def test_a_ready_node_is_not_out_while_a_pod_there_uses_the_claim_not_even_with_the_fence() -> None:
    for record in (attached(fresh(), "node-a"), fenced(attached(fresh(), "node-a"))):
        answer = judge(facts(record, node("node-a"), pods=[pod()]))
        assert (answer.outcome, answer.ground) == (Outcome.REFUSED, "InUse")
        assert "pod vms/web-1 uses it there" in answer.why


@pytest.mark.parametrize(
    "other", [pod(phase="Succeeded"), pod(on="node-b"), pod(claim="other"), pod(namespace="elsewhere")], ids=str
)
def test_a_pod_that_has_ended_or_is_another_s_does_not_count(other: Pod) -> None:
    assert ground(facts(body=node("node-a"), pods=[other])) == (Outcome.RELEASE, "NotUsed")


def test_the_side_on_which_the_vm_runs_is_to_be_migrated_and_never_stopped() -> None:
    answer = judge(facts(body=node("node-a"), vmi=vmi("node-a"), vmi_phase="Running"))
    assert (answer.ground, "move the VM away with a live migration" in answer.do, "stop" in answer.do) == ("InUse", True, False)


def test_a_vm_that_is_being_moved_away_is_waited_for_and_its_migration_not_cancelled() -> None:
    answer = judge(facts(migrating(), node("node-a"), vmi=vmi("node-a"), vmi_phase="Running", pods=[pod()]))
    assert (answer.ground, answer.do.startswith("wait: "), "delete" in answer.do) == ("InUse", True, False)


def test_a_pod_that_runs_a_vm_is_not_to_be_stopped_where_nobody_has_said_yet_which_vm_it_is() -> None:
    owner = Owner("VirtualMachineInstance", "web", "vmi-uid")
    labels = {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": "vmi-uid"}
    launcher = replace(pod(), owner=owner, labels=labels)
    assert launcher.vmi is not None
    answer = judge(facts(body=node("node-a"), pods=[launcher]))
    assert (answer.ground, answer.do.startswith("move the VM away")) == ("InUse", True)


def test_whoever_powers_a_node_off_is_told_that_all_on_it_ends() -> None:
    assert "whatever else still runs on that node ends with it" in judge(facts(body=DEAD, vmi=vmi("node-b"))).do


def test_what_is_left_of_a_migration_is_ended_with_the_command_that_its_window_gives() -> None:
    answer = judge(facts(ended(), node("node-a"), pods=[pod()]))
    assert "`kubectl -n vms delete pod on-node-a` ends what is left of it there" in answer.do


def test_a_node_that_is_not_attached_needs_no_release() -> None:
    assert ground(facts(node="node-c")) == (Outcome.NOTHING, "NotAttached")


def test_a_detach_that_is_under_way_is_not_begun_again() -> None:
    hangs = attachment("node-a", deleted=60, detachError={"message": "box is away"})
    answer = judge(facts(attachments=(hangs,)))
    assert (answer.outcome, answer.ground, "box is away" in answer.why) == (Outcome.NOTHING, "Detaching", True)


def test_a_holder_without_attachment_is_left_to_the_driver_which_releases_it_by_the_same_proof() -> None:
    assert ground(facts(attachments=())) == (Outcome.NOTHING, "NoVolumeAttachment")
    assert ground(facts(attachments=(), body=node("node-a"))) == (Outcome.NOTHING, "NoVolumeAttachment")
    answer = judge(facts(attachments=(), body=node("node-a"), pods=[pod()]))
    assert (answer.outcome, answer.ground, "pod vms/web-1 uses it there" in answer.why) == (
        Outcome.REFUSED,
        "NoVolumeAttachment",
        True,
    )
    assert ground(facts(fenced(attached(fresh(), "node-a")), DEAD, attachments=())) == (Outcome.REFUSED, "NoVolumeAttachment")


def test_nothing_is_proven_by_what_could_not_be_read() -> None:
    answer = judge(facts(body=None, troubles=[Trouble("nodes", "forbidden")]))
    assert (answer.outcome, "nodes: forbidden" in answer.why) == (Outcome.UNKNOWN, True)


HELD = attached(fresh(), "node-a")
usages = st.fixed_dictionaries(
    {
        "record": st.sampled_from(
            [attached(fresh(), "node-a"), fenced(attached(fresh(), "node-a")), ended(), fenced(ended()), None]
        ),
        "node_body": st.sampled_from([None, DEAD, OFF, node("node-a"), node("node-a", taints=[OUT_OF_SERVICE])])
        | st.just(node("node-a", volumesInUse=[NAME]))
        | st.just(node("node-a", volumesAttached=[{"name": NAME}])),
        "pods": st.lists(st.sampled_from([pod(), pod(phase="Failed"), pod(on="node-b")]), max_size=2),
        "vmi": st.sampled_from([None, vmi("node-a"), vmi("node-b"), vmi("")]),
        "vmi_phase": st.sampled_from(["", "Running", "Failed"]),
        "troubles": st.sampled_from([(), (), (), (Trouble("pods", "away"),)]),
    }
)


@pytest.mark.requirement("R11")
@given(usages)
def test_nothing_is_released_that_may_be_written_to(usage: dict[str, Any]) -> None:
    one = facts(**{"body": None, **usage})
    answer = judge(one)
    body = one.node_body
    powered_off = body == OFF
    ready = body not in (None, DEAD, OFF)
    if answer.outcome is Outcome.RELEASE:
        assert not one.troubles
        assert powered_off or not (one.users and (ready or body is None))
        assert powered_off or one.live_node != "node-a" or (one.fenced and body == DEAD)
        assert body != DEAD or one.fenced
        assert not ready or one.fenced or (body and NAME not in str(body["status"]))
    else:
        assert answer.why
        assert forbidden(answer.do) == []
        assert "delete pod on-node-b" not in answer.do, "node-b runs the VM"
        assert f"taint nodes {one.live_node}" not in answer.do


class Cluster:
    """An API server that has what it is given, and says 404 of the rest: with a reason, as an API server does, or without one."""

    def __init__(self, objects: dict[str, list[Object]], reason: str = "NotFound") -> None:
        self.objects = objects
        self.reason = reason
        self.clock = ServerClock()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Object:
        raise ObjectNotFound(f"GET {path}: 404", 404, self.reason)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[Object], str]:
        if path not in self.objects:
            raise ObjectNotFound(f"GET {path}: 404 page not found", 404)
        return self.objects[path], "1"


def usual(record: Record | None = None) -> dict[str, list[Object]]:
    """Return what an API server has of one volume that node-a holds and does not use."""
    one = record or attached(fresh(), "node-a")
    return {
        COLLECTION: [one.to_json()],
        VOLUMES_PATH: [volume()],
        ATTACHMENTS_PATH: [attachment("node-a")],
        NODES_PATH: [node("node-a")],
        f"/api/v1/namespaces/{CLAIM.namespace}/pods": [],
    }


async def looked_at(objects: dict[str, list[Object]], reason: str = "NotFound") -> Answer:
    reader = Reader(Cluster(objects, reason))
    seen = await reader.world()
    (one,) = volumes_of_driver(seen)
    return judge(await facts_about(reader, seen, one, "node-a"))


async def test_a_node_that_is_ready_and_uses_nothing_is_released_by_what_is_read() -> None:
    assert (await looked_at(usual())).ground == "NotUsed"


@pytest.mark.parametrize("path", [NODES_PATH, ATTACHMENTS_PATH, VOLUMES_PATH, f"/api/v1/namespaces/{CLAIM.namespace}/pods"])
async def test_an_answer_that_no_api_server_gives_is_not_taken_for_absence(path: str) -> None:
    answer = await looked_at({key: items for key, items in usual().items() if key != path})
    assert (answer.outcome, answer.ground) == (Outcome.UNKNOWN, "Unread")


async def test_a_vm_that_was_seen_and_whose_kind_is_not_served_is_not_taken_for_gone() -> None:
    record = attached(fresh(), "node-a").with_status(vmi=VMI)
    assert (await looked_at(usual(record))).ground == "NotUsed"
    assert (await looked_at(usual(record), reason="")).ground == "Unread"


async def test_nothing_is_proven_of_a_volume_whose_claim_nobody_knows() -> None:
    answer = await looked_at({**usual(), VOLUMES_PATH: []})
    assert (answer.ground, "no pod that uses it can be looked for" in answer.why) == ("Unread", True)


class Server:
    """An API server that takes one kind of request, and remembers it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[dict[str, Any]] = []

    async def delete(
        self, path: str, *, resource_version: str | None = None, uid: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        self.asked.append({"path": path, "version": resource_version, "uid": uid, "dry_run": dry_run})
        if self.error:
            raise self.error
        return {}


def proven(**changes: Any) -> Facts:
    return facts(body=None, **changes)


async def test_only_what_was_judged_is_deleted_and_only_as_it_was() -> None:
    server = Server()
    done = await release(server, proven(), Volume(HANDLE), dry_run=False)
    name = attachment("node-a")["metadata"]["name"]
    path = f"/apis/storage.k8s.io/v1/volumeattachments/{name}"
    assert server.asked == [{"path": path, "version": "7", "uid": "uid-node-a", "dry_run": False}]
    assert (done.done, done.to_json()["released"]) == (True, True)


async def test_a_dry_run_asks_and_releases_nothing() -> None:
    server = Server()
    done = await release(server, proven(), Volume(HANDLE), dry_run=True)
    assert server.asked[0]["dry_run"]
    assert (done.done, done.to_json()["released"]) == (True, False)


async def test_what_is_not_proven_is_not_asked_for() -> None:
    server = Server()
    done = await release(server, facts(body=DEAD), Volume(HANDLE), dry_run=False)
    assert (server.asked, done.done) == ([], False)


@pytest.mark.parametrize(
    ("error", "done", "words"),
    [
        (ObjectNotFound("gone", 404), True, "has just gone"),
        (WriteConflict("changed", 409), False, "changed while this was looked at"),
        (ApiUnavailable("no answer"), False, "it is not known whether it was released"),
    ],
)
async def test_how_the_deletion_ends_is_told(error: Exception, done: bool, words: str) -> None:
    made = await release(Server(error), proven(), Volume(HANDLE), dry_run=False)
    assert (made.done, words in made.said) == (done, True)


def test_an_answer_for_programs_names_the_attachment() -> None:
    assert Answer(Outcome.REFUSED, "InUse", "why", "do", attachment("node-a")).to_json()["volumeAttachment"].startswith("csi-")
