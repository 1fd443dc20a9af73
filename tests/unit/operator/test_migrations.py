"""Looks at records on behalf of KubeVirt's migrations: what is read when, what sets a look off, what trouble does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from rds_operator.kubevirt import MIGRATIONS, VMIS, KubeVirt
from rds_operator.memory import Change, RecordMemory
from rds_operator.migrations import MigrationFollower
from rds_operator.reflector import Access
from rds_records.clock import ServerClock
from rds_records.kubernetes_api import ApiUnavailable, RequestRefused
from rds_records.kubevirt_objects import vmi_view
from rds_records.record import DualAttachPolicy, ObjectReference, Record, Result
from rds_records.store import RecordStore
from rds_records.transitions import attach
from tests.unit.operator.api_server import ApiServer, Client
from tests.unit.operator.volumes import BLOCK, NOW, attached, decided, detached, path_of, read_record, record, store_record
from tests.unit.records.kubevirt import CLAIM, NAMESPACE, RUN, VM, launcher, live_migration, migration, pod, state, vmi

ONE_VM = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances/{VM}"
ONE_RUN = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstancemigrations/migration-{RUN}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class Watched(Client):
    """A client whose lists of KubeVirt's kinds are what a test says, and whose watches tell what a test puts in."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(server)
        self.lists: dict[str, list[dict[str, Any]] | Exception] = {VMIS: [], MIGRATIONS: []}
        self.told: dict[str, asyncio.Queue[dict[str, Any]]] = {VMIS: asyncio.Queue(), MIGRATIONS: asyncio.Queue()}
        self.reads: list[str] = []
        self.forbidden = ""
        self.selectors: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """What happens while pods are listed."""

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        self.reads.append(path)
        self._check(path)
        return await super().get(path, params)

    def _check(self, path: str) -> None:
        if self.forbidden and self.forbidden in path:
            raise RequestRefused(f"{path}: 403 forbidden", 403)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        if path in self.lists:
            found = self.lists[path]
            if isinstance(found, Exception):
                raise found
            return found, "1"
        self.reads.append(path)
        self._check(path)
        if self.meanwhile:
            await self.meanwhile()
        items, version = await super().list(path, params)
        field, _, value = (params or {}).get("fieldSelector", "").partition("=")
        self.selectors.append(f"{field}={value}")
        fields = {
            "spec.nodeName": lambda item: item["spec"].get("nodeName"),
            "metadata.name": lambda item: item["metadata"]["name"],
        }
        return [item for item in items if not field or fields[field](item) == value], version

    async def watch(
        self, path: str, resource_version: str, params: Mapping[str, str] | None = None, *, seconds: int = 300
    ) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self.told[path].get()


class World:
    """A follower with its reflectors, one record, and an API server."""

    def __init__(self) -> None:
        self.server = ApiServer()
        self.client = Watched(self.server)
        self.memory = RecordMemory()
        self.time = 0.0
        clock = ServerClock(monotonic=lambda: 0.0, wall=lambda: NOW.timestamp() + self.time)
        self.follower = MigrationFollower(
            self.client,
            self.client,
            RecordStore(self.client),
            clock,
            self.memory.get,
            monotonic=lambda: self.time,
            sleep=self._sleep,
        )
        self.tasks: list[asyncio.Task[Any]] = []
        self.server.watchers.append(self._watched)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    def _watched(self, kind: str, body: dict[str, Any]) -> None:
        change = self.memory.see(body, deleted=kind == "DELETED")
        if change:
            self.follower.see(change)

    def put(self, body: Record) -> Record:
        stored = store_record(self.server, body)
        change = self.memory.see(self.server.get(path_of()))
        if change:
            self.follower.see(change)
        return stored

    async def settle(self) -> None:
        """Wait until nobody looks at anything any more."""
        await self.until(lambda: not self.follower.busy)

    async def until(self, what: Callable[[], bool]) -> None:
        """Let everybody run until something is so, and whatever was set off by then as well."""
        for _ in range(5000):
            for _ in range(50):
                await asyncio.sleep(0)
            if what():
                return
        raise AssertionError("never")

    async def start(self) -> None:
        for one in self.follower.kubevirt.reflectors:
            self.tasks.append(asyncio.create_task(one.run()))
        await self.settle()

    def tell(self, path: str, kind: str, body: dict[str, Any]) -> None:
        self.server._version += 1
        body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.server._version)}}
        self.client.told[path].put_nowait({"type": kind, "object": body})

    def now(self) -> Record:
        return read_record(self.server)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.stop()


def claimed(of: Record) -> Record:
    return of.with_status(claim_ref=ObjectReference(namespace=NAMESPACE, name=CLAIM))


def admitted() -> Record:
    """Return a record with the window of a run from node-a to node-b."""
    first = attached(record(dual_attach_policy=DualAttachPolicy.KUBEVIRT), "node-a")
    evidence = live_migration("node-a", "node-b")
    return claimed(decided(attach(first, "node-b", BLOCK, now=NOW, new_id="window-1", node_exists=True, evidence=evidence)))


def with_claims(body: dict[str, Any]) -> dict[str, Any]:
    body["spec"]["volumes"] = [{"name": "root", "persistentVolumeClaim": {"claimName": CLAIM}}]
    return body


COMPLETED: dict[str, Any] = {"completed": True, "startTimestamp": "2026-11-20T12:00:10Z", "endTimestamp": "2026-11-20T12:00:50Z"}


async def test_a_verdict_is_written_when_the_watch_tells_it(world: World) -> None:
    world.client.lists = {VMIS: [vmi()], MIGRATIONS: [migration()]}
    world.put(admitted())
    await world.start()
    assert world.now().status.migration
    world.tell(VMIS, "MODIFIED", vmi(node="node-b", migrationState=state(**COMPLETED)))
    await world.settle()
    window = world.now().status.migration
    assert window
    assert (window.result, window.live_node) == (Result.SUCCEEDED, "node-b")


async def test_what_was_missed_while_the_operator_was_down_is_read_at_its_start(world: World) -> None:
    world.client.lists = {VMIS: [vmi(node="node-b", migrationState=state(**COMPLETED))], MIGRATIONS: [migration(phase="Succeeded")]}
    world.put(detached(admitted(), "node-a"))
    await world.start()
    (window,) = world.now().status.history
    assert (window.result, window.reason) == (Result.SUCCEEDED, "MigrationState")


async def test_a_migration_that_the_watch_does_not_know_is_asked_for_before_it_is_called_gone(world: World) -> None:
    world.client.lists[VMIS] = [vmi()]
    world.server.put(ONE_RUN, migration(phase="Scheduling"))
    world.put(detached(admitted(), "node-b"))
    await world.start()
    assert ONE_RUN in world.client.reads
    assert [window.result for window in world.now().status.history] == [None]


async def test_where_the_migration_is_gone_the_virtual_machine_is_read_anew(world: World) -> None:
    world.client.lists[VMIS] = [vmi()]
    failed = {**COMPLETED, "failed": True, "failureReason": "aborted by a user"}
    world.server.put(ONE_VM, vmi(migrationState=state(**failed)))
    world.put(detached(admitted(), "node-b"))
    await world.start()
    (window,) = world.now().status.history
    assert (window.result, window.reason, window.failure_reason) == (Result.FAILED, "MigrationState", "aborted by a user")


async def test_a_watch_of_virtual_machines_that_is_behind_hides_no_reason(world: World) -> None:
    world.client.lists = {VMIS: [vmi(migrationState=state())], MIGRATIONS: [migration(phase="Failed")]}
    failed = {**COMPLETED, "failed": True, "failureReason": "the guest went away"}
    world.server.put(ONE_VM, vmi(migrationState=state(**failed)))
    world.put(admitted())
    await world.start()
    window = world.now().status.migration
    assert window
    assert (window.result, window.reason, window.failure_reason) == (Result.FAILED, "MigrationState", "the guest went away")


async def test_a_run_that_failed_before_hand_off_is_told_by_its_phase(world: World) -> None:
    world.client.lists = {VMIS: [vmi()], MIGRATIONS: [migration(phase="Failed")]}
    world.server.put(ONE_VM, vmi())
    world.put(admitted())
    await world.start()
    window = world.now().status.migration
    assert window
    assert (window.result, window.reason) == (Result.FAILED, "MigrationPhase")


async def test_where_both_are_gone_who_left_decides(world: World) -> None:
    world.put(detached(admitted(), "node-b"))
    await world.start()
    (window,) = world.now().status.history
    assert (window.result, window.reason) == (Result.FAILED, "MigrationGone")


async def test_an_outage_decides_nothing_and_is_looked_at_again(world: World) -> None:
    world.client.lists[MIGRATIONS] = ApiUnavailable("away")
    world.put(detached(admitted(), "node-b"))
    await world.start()
    assert [window.result for window in world.now().status.history] == [None]
    world.client.lists[MIGRATIONS] = []
    await world.until(lambda: world.follower.kubevirt.reflectors[1].access is Access.READABLE)
    await world.settle()
    assert [window.result for window in world.now().status.history] == [Result.FAILED]


async def test_a_missing_right_is_a_condition_and_decides_nothing(world: World) -> None:
    world.client.lists[VMIS] = RequestRefused("cannot list resource virtualmachineinstances", 403)
    world.put(detached(admitted(), "node-b"))
    await world.start()
    found = world.now().status.condition("VerdictReadable")
    assert found
    assert (found.status, found.reason) == ("False", "Forbidden")
    assert "virtualmachineinstances" in found.message
    assert [window.result for window in world.now().status.history] == [None]


@pytest.mark.parametrize("hidden", ["pods", "nodes"])
async def test_a_right_that_is_missing_beside_the_verdict_hides_no_verdict(world: World, hidden: str) -> None:
    world.client.lists = {VMIS: [vmi(node="node-b", migrationState=state(**COMPLETED))], MIGRATIONS: [migration()]}
    world.client.forbidden = f"/{hidden}"
    world.put(admitted())
    await world.start()
    window, found = world.now().status.migration, world.now().status.condition("VerdictReadable")
    assert window
    assert window.result is Result.SUCCEEDED
    if hidden == "nodes":
        # Whether the node that should leave is ready is asked once the result is known.
        world.follower._look_at_all()
        await world.settle()
        found = world.now().status.condition("VerdictReadable")
    assert found
    assert (found.status, found.reason) == ("False", "Forbidden")
    assert hidden in found.message


async def test_another_run_between_the_two_nodes_is_followed(world: World) -> None:
    world.client.lists = {VMIS: [vmi()], MIGRATIONS: [migration(phase="Succeeded")]}
    for body in (launcher("aaaaa", "node-a", job="run-2"), launcher("bbbbb", "node-b", job=RUN)):
        world.server.put(f"{PODS}/{body['metadata']['name']}", body)
    world.put(admitted())
    await world.start()
    world.tell(MIGRATIONS, "ADDED", migration("run-2", phase="Scheduling"))
    await world.settle()
    window = world.now().status.migration
    assert window
    assert (window.migration_uid, window.source_node, window.target_node) == ("run-2", "node-b", "node-a")
    assert [old.result for old in world.now().status.history] == [Result.SUCCEEDED]


def there_and_back(world: World) -> None:
    """The first run is over and the second under way, which is all that the virtual machine itself still tells of."""
    copy = {**state(**COMPLETED), "targetPod": "virt-launcher-database-bbbbb"}
    over = migration(phase="Succeeded")
    over["status"]["migrationState"] = copy
    machine = vmi(node="node-b", migrationState=state("run-2", sourceNode="node-b", targetNode="node-a"))
    world.client.lists = {VMIS: [machine], MIGRATIONS: [over, migration("run-2")]}
    world.server.put(ONE_VM, machine)
    for body in (launcher("aaaaa", "node-a", job="run-2"), launcher("bbbbb", "node-b", job=RUN)):
        world.server.put(f"{PODS}/{body['metadata']['name']}", body)


async def test_a_starting_operator_follows_no_run_before_it_can_read_how_the_one_before_it_ended(world: World) -> None:
    there_and_back(world)
    migrations, world.client.lists[MIGRATIONS] = world.client.lists[MIGRATIONS], ApiUnavailable("not yet")
    world.put(admitted())

    async def appear() -> None:
        world.client.meanwhile, world.client.lists[MIGRATIONS] = None, migrations
        await world.until(lambda: world.follower.kubevirt.known)

    world.client.meanwhile = appear
    world.time = 60
    await world.start()
    await world.until(lambda: world.follower.kubevirt.known)
    await world.settle()
    (old,) = world.now().status.history
    assert (old.result, old.reason, old.kubevirt_result) == (Result.SUCCEEDED, "MigrationState", None)


async def test_a_run_that_begins_in_the_middle_of_a_look_takes_no_verdict_away(world: World) -> None:
    there_and_back(world)
    over, following = world.client.lists[MIGRATIONS]  # type: ignore[misc]
    world.client.lists = {VMIS: [vmi(migrationState=state())], MIGRATIONS: [migration()]}
    world.put(admitted())

    async def go_on() -> None:
        world.client.meanwhile = None
        for body in (over, following):
            world.tell(MIGRATIONS, "MODIFIED", body)
        await world.until(lambda: len(world.follower.kubevirt.migrations_of((NAMESPACE, VM))) == 2)

    world.client.meanwhile = go_on
    await world.start()
    (old,) = world.now().status.history
    assert (old.result, old.reason, old.kubevirt_result) == (Result.SUCCEEDED, "MigrationState", None)


async def test_a_window_that_was_found_is_explained_by_the_run_that_moves_its_claims_user(world: World) -> None:
    world.client.lists = {VMIS: [with_claims(vmi())], MIGRATIONS: [migration()]}
    for body in (launcher("aaaaa", "node-a"), launcher("bbbbb", "node-b", job=RUN)):
        world.server.put(f"{PODS}/{body['metadata']['name']}", body)
    found = admitted().status.migration
    assert found
    bare = found.replace(vmi=None, migration_name=None, migration_uid=None, source_pod=None, target_pod=None)
    world.put(admitted().with_status(migration=bare, outbox=()))
    await world.start()
    window = world.now().status.migration
    assert window
    assert (window.id, window.migration_uid) == ("window-1", RUN)


async def test_a_foreign_pod_on_one_of_the_nodes_is_told(world: World) -> None:
    world.client.lists = {VMIS: [vmi()], MIGRATIONS: [migration()]}
    for body in (launcher("aaaaa", "node-a"), launcher("bbbbb", "node-b", job=RUN), pod("backup", "node-b")):
        world.server.put(f"{PODS}/{body['metadata']['name']}", body)
    world.put(admitted())
    await world.start()
    found = world.now().status.condition("ForeignPod")
    assert found
    assert "backup" in found.message


@pytest.mark.requirement("R34")
async def test_a_node_that_should_leave_and_is_gone_is_told(world: World) -> None:
    world.client.lists = {VMIS: [vmi(node="node-b", migrationState=state(**COMPLETED))], MIGRATIONS: [migration()]}
    world.put(admitted())
    await world.start()
    found = world.now().status.condition("LeavingNodeReady")
    assert found
    assert (found.status, found.reason) == ("False", "NodeGone")


async def test_where_a_migration_hangs_is_read_only_when_it_is_late(world: World) -> None:
    world.client.lists = {VMIS: [vmi()], MIGRATIONS: [migration(phase="Scheduling")]}
    world.put(admitted())
    await world.start()
    assert not [selector for selector in world.client.selectors if selector.startswith("metadata.name=")]
    world.time = 1201
    world.follower._look_at_all()
    await world.settle()
    found = world.now().status.condition("SlowStart")
    assert found
    assert "is in phase Scheduling" in found.message
    assert [selector for selector in world.client.selectors if selector.startswith("metadata.name=")]


async def test_the_virtual_machine_that_uses_a_claim_is_kept_on_its_record(world: World) -> None:
    world.put(claimed(attached(record(), "node-a")))
    await world.start()
    assert world.now().status.vmi is None
    world.tell(VMIS, "ADDED", with_claims(vmi()))
    await world.settle()
    assert world.now().status.vmi == ObjectReference(namespace=NAMESPACE, name=VM, uid=f"{VM}-uid")
    world.tell(VMIS, "DELETED", with_claims(vmi()))
    await world.settle()
    assert world.now().status.vmi is None


async def test_a_virtual_machine_that_was_started_again_is_shown_under_its_new_uid(world: World) -> None:
    world.put(claimed(attached(record(), "node-a")))
    world.client.lists[VMIS] = [with_claims(vmi())]
    await world.start()
    world.tell(VMIS, "DELETED", with_claims(vmi()))
    world.tell(VMIS, "ADDED", with_claims(vmi(uid="second")))
    await world.settle()
    assert world.now().status.vmi == ObjectReference(namespace=NAMESPACE, name=VM, uid="second")


async def test_nobody_is_taken_off_a_record_while_virtual_machines_cannot_be_read(world: World) -> None:
    user = ObjectReference(namespace=NAMESPACE, name=VM, uid="u")
    world.client.lists[VMIS] = ApiUnavailable("away")
    world.put(claimed(attached(record(), "node-a")).with_status(vmi=user))
    await world.start()
    assert world.now().status.vmi == user


async def test_a_cluster_without_kubevirt_costs_records_nothing(world: World) -> None:
    stored = world.put(claimed(attached(record(), "node-a")))
    await world.start()
    assert world.now().metadata.resource_version == stored.metadata.resource_version


async def test_what_a_heartbeat_of_a_virtual_machine_says_costs_no_write(world: World) -> None:
    world.client.lists = {VMIS: [vmi()], MIGRATIONS: [migration()]}
    world.put(admitted())
    await world.start()
    writes = len(world.server.writes)
    world.tell(VMIS, "MODIFIED", vmi(guestOSInfo={"name": "Debian"}))
    world.tell(VMIS, "MODIFIED", vmi(memory="2Gi", phase="Running"))
    await world.settle()
    assert len(world.server.writes) == writes


async def test_a_record_that_is_gone_is_forgotten(world: World) -> None:
    world.put(admitted())
    await world.settle()
    stored = world.memory.records()[0]
    world.memory.see(world.server.get(path_of()), deleted=True)
    world.follower.see(Change(stored, None))
    await world.settle()
    assert (world.follower._keys, dict(world.follower._by_vmi), dict(world.follower._by_claim)) == ({}, {}, {})


def test_of_several_virtual_machines_with_one_claim_that_of_the_window_counts() -> None:
    kubevirt = KubeVirt(Watched(ApiServer()), lambda _: None, lambda _: None, lambda: None)
    for name in ("another", VM):
        kubevirt._vmi_changed(None, vmi_view(with_claims(vmi(name))))
    user, plain = kubevirt.user_of(admitted()), kubevirt.user_of(claimed(record()))
    assert user
    assert plain
    assert (user.name, plain.name) == (VM, "another")
