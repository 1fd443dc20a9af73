"""Volumes are made and removed once, whole, and of the size that was promised, whatever breaks in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from tests.ring.api import Object
from tests.ring.cluster import RECORD, Cluster
from tests.ring.driver import Shim
from tests.ring.proxy import Proxy, Rule
from tests.ring.rpc import GIB, RWO, Csi, Refused, at_once, block, code_of, mount
from tests.ring.waiting import eventually
from tests.simulator.box import SimulatedBox

MakeVolume = Callable[..., str]
MakeShim = Callable[..., Shim]

RECORDS = "/volumeattachmentrecords"
MIB = 2**20


@pytest.fixture
def proxy(shared_proxy: Proxy) -> Iterator[Proxy]:
    """That proxy, as good as new."""
    yield shared_proxy
    shared_proxy.clear()


@pytest.fixture
def switched(box: SimulatedBox) -> Iterator[Callable[..., None]]:
    """Return a function that turns the box's switches for this test."""
    yield box.switch
    box.switch(full_pool=False, slot_limit=None, latency={})


def new_name() -> str:
    return f"pvc-{uuid4()}"


def refusal(call: Callable[[], object]) -> Refused:
    """Return with what a call is refused."""
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def on_box(box: SimulatedBox, handle: str) -> tuple[list[str], list[str]]:
    """Return the slots and the files that have to do with the volume."""
    stem = handle.replace("-", "")[:25]
    slots, files = box.disks(), box.files()
    return [slot for slot in slots if stem in slot.replace("-", "")], [name for name in files if stem in name.replace("-", "")]


def made_once(cluster: Cluster, box: SimulatedBox, handle: str) -> Object:
    """Check that record, disk and file of a volume are there, once, and agree; return the record."""
    record = cluster.record(handle)
    assert record
    assert record["status"]["initialized"] is True
    target = record["spec"]["target"]
    slots, files = on_box(box, handle)
    assert (slots, [f"/{name}" for name in files]) == ([target["slot"]], [target["filePath"]])
    disk = box.disks()[target["slot"]]
    assert disk["size"] == record["spec"]["capacityBytes"]
    assert disk["file_path"] == target["filePath"]
    assert disk["nvme_tcp_export"] is True
    assert disk["nvme_tcp_server_nqn"] == target["nqn"]
    return record


def gone(cluster: Cluster, box: SimulatedBox, handle: str) -> bool:
    """Tell whether nothing is left of a volume, anywhere."""
    return cluster.record(handle) is None and on_box(box, handle) == ([], [])


# Size


@pytest.mark.requirement("R48")
@pytest.mark.parametrize(
    "required",
    [1, GIB, GIB + 1, 5 * 10**9, 50 * 10**9, 3 * 2**39, 3 * 2**39 + 1, 1_234_567_890_123, 2 * 2**40 - 1],
)
def test_a_volume_has_the_size_that_is_answered_and_at_least_what_was_asked(
    csi: Csi, cluster: Cluster, box: SimulatedBox, make_volume: MakeVolume, required: int
) -> None:
    name = new_name()
    volume = csi.create(name, size=required)
    make_volume(name, size=required)  # the retry
    record = made_once(cluster, box, name)
    assert volume.capacity_bytes == record["spec"]["capacityBytes"] >= required
    assert volume.capacity_bytes - required < max(GIB, MIB)
    assert volume.capacity_bytes % MIB == 0
    assert csi.create(name, size=required) == volume


@pytest.mark.requirement("R48")
def test_a_limit_that_no_size_fits_is_out_of_range(csi: Csi, cluster: Cluster, box: SimulatedBox) -> None:
    name = new_name()
    assert code_of(lambda: csi.create(name, size=GIB + 1, limit=GIB + 2)) == "OUT_OF_RANGE"
    assert gone(cluster, box, name)


# Idempotence


def test_a_volume_is_made_once(csi: Csi, cluster: Cluster, box: SimulatedBox, make_volume: MakeVolume) -> None:
    name = new_name()
    handle = make_volume(name)
    first = csi.create(name)
    adds = len(box.received("/disk add"))
    assert [csi.create(name) for _ in range(3)] == [first] * 3
    assert len(box.received("/disk add")) == adds
    made_once(cluster, box, handle)


def test_a_name_of_another_kind_gets_a_handle_of_its_own(
    csi: Csi, cluster: Cluster, box: SimulatedBox, make_volume: MakeVolume
) -> None:
    name = cluster.name("My.Volume_1")
    handle = make_volume(name)
    assert handle.startswith("pvc-")
    assert csi.create(name).volume_id == handle
    made_once(cluster, box, handle)


@pytest.mark.parametrize(
    "otherwise",
    [
        {"size": 2 * GIB},
        {"capability": RWO},
        {"capability": mount()},
        {"parameters": {"dualAttachPolicy": "KubeVirt"}},
    ],
    ids=["size", "access mode", "volume mode", "policy"],
)
def test_the_same_name_for_something_else_already_exists(
    csi: Csi, cluster: Cluster, box: SimulatedBox, make_volume: MakeVolume, otherwise: dict[str, object]
) -> None:
    handle = make_volume()
    before = cluster.record(handle)
    no = refusal(lambda: csi.create(handle, **otherwise))  # type: ignore[arg-type]
    assert no.code == "ALREADY_EXISTS"
    assert handle in no.message
    assert cluster.record(handle) == before
    made_once(cluster, box, handle)


def test_creations_of_one_name_at_a_time_make_one_volume(
    csi: Csi, through: Csi, cluster: Cluster, box: SimulatedBox, make_volume: MakeVolume
) -> None:
    name = new_name()
    codes = at_once([lambda by=by: by.create(name) for by in (csi, through) for _ in range(4)])
    assert set(codes) <= {"OK", "ABORTED"}
    make_volume(name)
    made_once(cluster, box, name)


def test_the_name_of_a_volume_that_is_going_is_aborted(csi: Csi, cluster: Cluster, make_volume: MakeVolume) -> None:
    handle = make_volume()
    cluster.api.delete(RECORD, handle)
    assert code_of(lambda: csi.create(handle)) == "ABORTED"


def test_deleting_what_is_not_there_is_fine_and_deleting_twice_too(csi: Csi, cluster: Cluster, box: SimulatedBox) -> None:
    name = new_name()
    csi.delete(name)
    csi.create(name)
    csi.delete(name)
    assert gone(cluster, box, name)
    csi.delete(name)
    csi.create(name)
    made_once(cluster, box, name)
    csi.delete(name)
    assert gone(cluster, box, name)


def test_deleting_what_only_a_file_is_left_of_removes_the_file(csi: Csi, cluster: Cluster, box: SimulatedBox) -> None:
    handle = new_name()
    static = cluster.make_static_volume(handle=handle, bound=False)
    path = f"storage-pool/metal-csi/{handle}.img"
    box.run(f"/disk add type=file file-path=/{path} file-size=1G slot={handle}")
    box.run(f"/disk remove [find slot={handle}]")
    assert path in box.files()
    csi.delete(static.handle)
    assert gone(cluster, box, handle)


# Cut links


@pytest.mark.parametrize("command", ["/disk print", "/file print", "/disk add"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_creation_whose_link_is_cut_is_made_good_by_the_retry(
    csi: Csi, cluster: Cluster, box: SimulatedBox, make_volume: MakeVolume, command: str, when: str
) -> None:
    name = new_name()
    box.drop_link(when, f"^{command}.*{name}")
    assert code_of(lambda: csi.create(name)) in {"OK", "UNAVAILABLE"}
    make_volume(name)
    made_once(cluster, box, name)
    assert len([line for line in box.received("/disk add") if name in line]) <= 2


@pytest.mark.parametrize("command", ["/disk print", "/disk remove", "/file print", "/file remove"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deletion_whose_link_is_cut_is_made_good_by_the_retry(
    csi: Csi, cluster: Cluster, box: SimulatedBox, command: str, when: str
) -> None:
    handle = csi.create(new_name()).volume_id
    box.drop_link(when, f"^{command}.*{handle}")
    assert code_of(lambda: csi.delete(handle)) in {"OK", "UNAVAILABLE"}
    csi.delete(handle)
    assert gone(cluster, box, handle)


@pytest.mark.parametrize(
    ("method", "applied"),
    [("GET", False), *((method, applied) for method in ("POST", "PUT", "DELETE") for applied in (False, True))],
)
def test_a_cut_link_to_the_api_server_is_made_good_by_the_retry(
    through: Csi, cluster: Cluster, box: SimulatedBox, proxy: Proxy, method: str, applied: bool
) -> None:
    handle = new_name()
    with proxy.drop(method, RECORDS, applied=applied, times=2):
        for _ in range(4):
            if code_of(lambda: through.create(handle)) == "OK":
                break
        through.create(handle)
        made_once(cluster, box, handle)
    with proxy.drop(method, RECORDS, applied=applied, times=2):
        for _ in range(4):
            if code_of(lambda: through.delete(handle)) == "OK":
                break
        through.delete(handle)
        assert gone(cluster, box, handle)


# Kills


class Crash:
    """Holds calls exactly before or behind one of their writes, kills the shim there and starts it again."""

    def __init__(self, shim: Shim, proxy: Proxy, threads: ThreadPoolExecutor) -> None:
        self.shim, self.proxy, self.threads = shim, proxy, threads
        self.calls: dict[str, Callable[[], object]] = {}
        self.rules: list[Rule] = []
        self.flying: list[object] = []

    def hold(self, what: str, call: Callable[[], object], method: str, path: str, *, nth: int = 1, applied: bool = False) -> None:
        """Begin a call and wait until it hangs at its nth write that fits."""
        rule = self.proxy.freeze(method, path, applied=applied)
        if nth > 1:
            self.proxy.delay(method, path, 0.0, times=nth - 1)
        self.rules.append(rule)
        self.calls[what] = call
        self.flying.append(self.threads.submit(code_of, call))
        rule.wait_hit()

    def now(self) -> dict[str, str]:
        """Kill, start again, and repeat all calls; return how that ended."""
        self.shim.kill()
        for rule in self.rules:
            rule.release(cut=True)
        self.proxy.clear()
        self.shim.start()
        return {what: code_of(call) for what, call in self.calls.items()}


@pytest.fixture
def crash(behind: Shim, proxy: Proxy) -> Iterator[Crash]:
    with ThreadPoolExecutor(max_workers=16) as threads:
        yield Crash(behind, proxy, threads)


def test_a_kill_at_any_step_of_a_creation_is_made_good_by_the_retry(
    crash: Crash, through: Csi, cluster: Cluster, box: SimulatedBox, switched: Callable[..., None]
) -> None:
    names = {
        step: new_name() for step in ("record", "record made", "disk added", "status", "status written")
    }  # what is done, or is just about to be
    begin = {step: (lambda name=name: through.create(name)) for step, name in names.items()}
    # The path of a POST does not name the volume: one after the other.
    crash.hold("record", begin["record"], "POST", f"{RECORDS}$")
    crash.hold("record made", begin["record made"], "POST", f"{RECORDS}$", applied=True)
    for rule in crash.rules:
        rule.times = rule.hits
    crash.hold("status", begin["status"], "PUT", f"{names['status']}/status$")
    crash.hold("status written", begin["status written"], "PUT", f"{names['status written']}/status$", applied=True)
    # In the middle of the disk: the box is slow to add it, and goes on alone when the shim is dead.
    switched(latency={f"/disk add type=file slot={names['disk added']}": 1.0, "/disk add": 0.0})
    crash.calls["disk added"] = begin["disk added"]
    crash.threads.submit(code_of, begin["disk added"])
    eventually("the box adds the disk", lambda: [line for line in box.received("/disk add") if names["disk added"] in line])
    assert crash.now() == dict.fromkeys(crash.calls, "OK")
    assert set(crash.calls) == set(names)
    for handle in names.values():
        made_once(cluster, box, handle)
        through.delete(handle)
        assert gone(cluster, box, handle)


def test_a_kill_at_any_step_of_a_deletion_is_made_good_by_the_retry(
    crash: Crash, through: Csi, cluster: Cluster, box: SimulatedBox
) -> None:
    steps: dict[str, tuple[str, str, int, bool]] = {
        "deleting": ("PUT", "/status$", 1, False),
        "deleting written": ("PUT", "/status$", 1, True),
        "removed": ("PUT", "/status$", 2, False),
        "removed written": ("PUT", "/status$", 2, True),
        "finalizer": ("PUT", "$", 1, False),
        "finalizer taken off": ("PUT", "$", 1, True),
        "record": ("DELETE", "$", 1, False),
        "record deleted": ("DELETE", "$", 1, True),
    }
    handles = {step: through.create(new_name()).volume_id for step in steps}
    for step, (method, end, nth, applied) in steps.items():
        handle = handles[step]
        crash.hold(step, lambda handle=handle: through.delete(handle), method, f"/{handle}{end}", nth=nth, applied=applied)  # type: ignore[misc]
    assert crash.now() == dict.fromkeys(steps, "OK")
    for step, handle in handles.items():
        assert gone(cluster, box, handle), step


def test_an_attach_that_comes_between_the_steps_of_a_deletion_is_refused(
    through: Csi, csi: Csi, cluster: Cluster, box: SimulatedBox, proxy: Proxy
) -> None:
    handle, node = through.create(new_name()).volume_id, cluster.make_node()
    with ThreadPoolExecutor() as threads:
        rule = proxy.freeze("PUT", f"/{handle}/status$", applied=True)
        call = threads.submit(code_of, lambda: through.delete(handle))
        rule.wait_hit()
        assert csi.publish_code(handle, node) == "FAILED_PRECONDITION"
        assert code_of(lambda: csi.create(handle)) == "ABORTED"
        rule.release()
        assert call.result() == "OK"
    assert gone(cluster, box, handle)


def test_a_deletion_that_loses_against_an_attach_touches_nothing(
    through: Csi, csi: Csi, cluster: Cluster, box: SimulatedBox, proxy: Proxy, make_volume: MakeVolume
) -> None:
    handle, node = make_volume(), cluster.make_node()
    with ThreadPoolExecutor() as threads:
        rule = proxy.freeze("PUT", f"/{handle}/status$", times=1)
        call = threads.submit(code_of, lambda: through.delete(handle))
        rule.wait_hit()
        assert csi.publish_code(handle, node) == "OK"
        rule.release()
        assert call.result() == "FAILED_PRECONDITION"
    made_once(cluster, box, handle)


# What the box does not do


def test_a_full_pool_leaves_neither_record_nor_disk(
    csi: Csi, cluster: Cluster, box: SimulatedBox, make_volume: MakeVolume, switched: Callable[..., None]
) -> None:
    name = new_name()
    switched(full_pool=True)
    assert code_of(lambda: csi.create(name)) == "RESOURCE_EXHAUSTED"
    assert gone(cluster, box, name)
    csi.delete(name)
    switched(full_pool=False)
    make_volume(name)
    made_once(cluster, box, name)


def test_a_box_that_cuts_slots_says_so_and_short_slots_help(
    csi: Csi,
    cluster: Cluster,
    box: SimulatedBox,
    make_shim: MakeShim,
    make_volume: MakeVolume,
    switched: Callable[..., None],
) -> None:
    name = new_name()
    switched(slot_limit=32)
    no = refusal(lambda: csi.create(name))
    assert "--slot-names=short" in no.message
    assert gone(cluster, box, name)
    with Csi(make_shim(extra=["--slot-names=short"]).endpoint) as short:
        other = make_volume(by=short)
        record = made_once(cluster, box, other)
        assert record["spec"]["target"]["slot"] == f"pvc-{other.removeprefix('pvc-').replace('-', '')[:28]}"
        assert csi.create(other).volume_id == other, "the record says where it is, not the flag"
        # The claim that failed is tried again under its name.
        make_volume(name, by=short)
        made_once(cluster, box, name)


def test_a_disk_that_a_dead_shim_left_in_a_cut_slot_is_deleted_with_its_volume(
    crash: Crash, through: Csi, cluster: Cluster, box: SimulatedBox, switched: Callable[..., None]
) -> None:
    name = new_name()
    switched(slot_limit=32, latency={"/disk add": 1.0})
    crash.calls["creation"] = lambda: through.create(name)
    crash.threads.submit(code_of, crash.calls["creation"])
    eventually("the box adds the disk", lambda: [line for line in box.received("/disk add") if name in line])
    crash.shim.kill()
    eventually("the disk is there", lambda: on_box(box, name)[0])
    crash.shim.start()
    through.delete(name)
    assert gone(cluster, box, name)


def test_a_file_that_lies_in_the_way_is_not_touched(csi: Csi, cluster: Cluster, box: SimulatedBox) -> None:
    old = csi.create(new_name()).volume_id
    cluster.api.patch(RECORD, old, {"metadata": {"finalizers": None}})
    cluster.api.delete(RECORD, old)
    box.run(f'/disk remove [find where slot="{old}"]')
    assert on_box(box, old)[1]
    assert code_of(lambda: csi.create(old)) == "FAILED_PRECONDITION"
    assert cluster.record(old) is None
    csi.delete(old)
    assert on_box(box, old)[1]


def test_what_can_be_attached_is_confirmed(csi: Csi, make_volume: MakeVolume) -> None:
    from rds_csi.spec import csi_pb2

    handle = make_volume()

    def confirmed(capability: csi_pb2.VolumeCapability) -> bool:
        request = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=handle, volume_capabilities=[capability])
        answer = csi.call(csi.controller.ValidateVolumeCapabilities, request)
        return bool(answer.HasField("confirmed"))

    assert [confirmed(capability) for capability in (block(), RWO, mount())] == [True, True, False]
