"""What the watch for orphans makes of rounds and of trouble with the API server."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from rds_csi.routeros import BoxUnreachable, Capacity, Disk, File, Output
from rds_csi.routeros.box import Box
from rds_csi.routeros.commands import FilePath
from rds_operator.box_watch import BoxWatch
from rds_operator.events import COMPONENT
from rds_operator.inventory import Inventory, Sighting
from rds_operator.memory import RecordMemory
from rds_operator.metrics import OperatorMetrics
from rds_operator.orphan_watch import CONTENTS, VOLUMES, NamesInCluster, OrphanWatch
from rds_operator.suspects import SuspectStore
from rds_records.clock import ServerClock
from rds_records.events import EventRecorder
from rds_records.kubernetes_api import RequestRefused
from rds_records.names import DRIVER_NAME
from rds_records.store import RecordStore
from rds_records.volume_layout import SnapshotName, snapshot_id_for
from tests.unit.operator.api_server import ApiServer, Client, Fault

BASE = "/storage-pool/metal-csi"
NAMESPACE = "rds-csi"
NOW = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)
LOST = Disk("pvc-lost", f"{BASE}/pvc-lost.img", 2**30, exported=True, nqn=None, port=None)
POOL = Capacity(2**40, 2**39, "storage-pool")
FOUND = Sighting(disks=(LOST,), files=(File(LOST.path, ".img file", "1024.0MiB"),), pool=POOL)
GONE = Sighting(disks=(), files=(), pool=POOL)


class Refusing(Client):
    """A connection to which some paths are forbidden."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(server)
        self.forbidden: set[str] = set()

    def _check(self, path: str) -> None:
        if path in self.forbidden:
            raise RequestRefused(f"GET {path}: 403", 403, "Forbidden")

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        self._check(path)
        return await super().get(path, params)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        self._check(path)
        return await super().list(path, params)


@pytest.fixture
def server() -> ApiServer:
    """An API server with one PersistentVolume of ours, so that there is something to compare with."""
    server = ApiServer()
    volume = {"metadata": {"name": "pv"}, "spec": {"csi": {"driver": DRIVER_NAME, "volumeHandle": "pvc-known"}}}
    server.put(f"{VOLUMES}/pv", volume)
    return server


@pytest.fixture
def api(server: ApiServer) -> Refusing:
    """The operator's connection."""
    return Refusing(server)


def watch(api: Refusing, *, grace: float = 100.0) -> OrphanWatch:
    return OrphanWatch(
        BASE,
        NamesInCluster(api, RecordStore(api)),
        SuspectStore(api, NAMESPACE),
        EventRecorder(api, COMPONENT, "life"),
        deployment="rds-operator",
        grace=grace,
        interval=60.0,
        count=OperatorMetrics(RecordMemory()).count_event,
    )


async def see(orphans: OrphanWatch, *rounds: Sighting) -> None:
    for seen in rounds:
        await orphans.see(seen, now=NOW, elapsed=60.0)


async def kept(api: Refusing) -> dict[str, tuple[float, bool]]:
    return {name: (one.observed, one.reported) for name, one in (await SuspectStore(api, NAMESPACE).load()).items()}


async def test_an_orphan_is_kept_and_reported_once(server: ApiServer, api: Refusing) -> None:
    await see(watch(api), FOUND, FOUND, FOUND, FOUND)
    assert [event["reason"] for event in server.events(NAMESPACE)] == ["OrphanDetected"]
    assert await kept(api) == {"pvc-lost.img": (120.0, True)}


async def test_an_event_that_cannot_be_posted_keeps_nothing_from_being_written_down(server: ApiServer, api: Refusing) -> None:
    orphans = watch(api, grace=0.0)
    server.faults = [Fault.LOST_REQUEST]
    await see(orphans, FOUND)
    assert (server.events(NAMESPACE), await kept(api)) == ([], {"pvc-lost.img": (0.0, False)})
    await see(orphans, FOUND)
    assert (len(server.events(NAMESPACE)), await kept(api)) == (1, {"pvc-lost.img": (60.0, True)})


async def test_an_orphan_is_reported_where_the_deployment_may_not_be_read(server: ApiServer, api: Refusing) -> None:
    api.forbidden.add(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/rds-operator")
    await see(watch(api, grace=0.0), FOUND)
    involved = [event["involvedObject"] for event in server.events(NAMESPACE)]
    assert [(one["kind"], one["name"], "uid" in one) for one in involved] == [("Deployment", "rds-operator", False)]


async def test_that_something_is_named_again_is_written_down_after_a_write_that_failed(server: ApiServer, api: Refusing) -> None:
    orphans = watch(api)
    await see(orphans, FOUND, FOUND)
    server.faults = [Fault.LOST_REQUEST]
    await see(orphans, GONE)
    assert await kept(api) == {"pvc-lost.img": (0.0, False)}
    await see(orphans, GONE)
    assert await kept(api) == {}


async def test_snapshots_stay_as_they_were_while_their_contents_cannot_be_listed(api: Refusing) -> None:
    name = SnapshotName(snapshot_id_for("snapshot-uid"), "pvc-known", NOW, 2**30)
    seen = Sighting(disks=(), files=(File(f"{BASE}/{name}", "directory"),), pool=POOL)
    orphans = watch(api)
    await see(orphans, seen, seen, seen)
    assert [one.thing.name for one in orphans.orphans()] == [str(name)]
    api.forbidden.add(CONTENTS)
    await see(orphans, seen, seen)
    assert [(one.thing.name, one.observed) for one in orphans.orphans()] == [(str(name), 120.0)]
    await see(orphans, GONE)
    assert orphans.orphans() == []


async def test_a_config_map_with_something_else_in_it_stops_judging_and_stays(server: ApiServer, api: Refusing) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/rds-operator-orphans"
    server.put(path, {"metadata": {"name": "rds-operator-orphans"}, "data": {"suspects.json": "{"}})
    orphans = watch(api, grace=0.0)
    await see(orphans, FOUND)
    assert (orphans.orphans(), orphans.judged, server.get(path)["data"]) == ([], False, {"suspects.json": "{"})


class NoLink:
    """A box that cannot be reached."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def run(self, command: str, *, deadline: float) -> Output:
        self.asked.append(command)
        raise BoxUnreachable("no route to the box")


async def test_a_box_that_cannot_be_reached_is_waited_for_once_in_a_round(api: Refusing) -> None:
    link, inventory = NoLink(), Inventory()
    looking = BoxWatch(
        Box(link), FilePath(BASE), RecordStore(api), RecordMemory(), inventory, ServerClock(), interval=60.0, every_disk=True
    )
    await looking.round()
    await looking.round()
    assert (len(link.asked), inventory.taken, inventory.seen) == (2, 2, Sighting())
