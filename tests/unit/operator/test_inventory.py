"""What rounds of looking at the box say of volumes and of the box."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rds_csi.routeros import Capacity, Disk, File, Traffic
from rds_operator.inventory import Availability, Inventory, Reason, Sighting, Source, find, latencies, provisioned
from rds_records.names import nqn_for
from rds_records.record import Record, Target
from tests.unit.operator.volumes import record

GIB = 2**30
BASE = "/storage-pool/metal-csi"
PATH = f"{BASE}/pvc-1.img"
TARGET = Target(nqn=nqn_for("pvc-1"), slot="pvc-1", file_path=PATH)
DISK = Disk("pvc-1", PATH, GIB, exported=True, nqn=nqn_for("pvc-1"), port=4420)
FILE = File(PATH, ".img file", "1024.0MiB")
POOL = Capacity(100 * GIB, 50 * GIB, "storage-pool")
WHOLE = Sighting(disks=(DISK,), files=(FILE,), pool=POOL)
EMPTY = Sighting(disks=(), files=(), pool=POOL)


def volume(**status: object) -> Record:
    plain = record()
    return plain.replace(spec=plain.spec.replace(target=TARGET)).with_status(**{"initialized": True, **status})


def reasons(availability: Availability, *rounds: Sighting) -> list[Reason | None]:
    said = [availability.judge([volume()], seen) for seen in rounds]
    return [one[0][1].reason if one else None for one in said]


def test_a_volume_that_is_there_is_available_at_once() -> None:
    assert reasons(Availability(BASE), WHOLE) == [Reason.DISK_PRESENT]


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (EMPTY, Reason.DISK_MISSING),
        (Sighting(disks=(), files=(FILE,), pool=POOL), Reason.DISK_MISSING),
        (
            Sighting(disks=(Disk("pvc-1", "/storage-pool/other.img", GIB, True, None, None),), files=(FILE,), pool=POOL),
            Reason.DISK_MISSING,
        ),
        (Sighting(disks=(Disk("pvc-1", PATH, GIB, False, None, None),), files=(FILE,), pool=POOL), Reason.NOT_EXPORTED),
        (Sighting(disks=(DISK,), files=(), pool=POOL), Reason.FILE_MISSING),
    ],
)
def test_what_is_wrong_is_said_after_two_complete_rounds_in_a_row(seen: Sighting, reason: Reason) -> None:
    assert reasons(Availability(BASE), WHOLE, seen, seen, seen) == [Reason.DISK_PRESENT, None, reason, reason]
    assert reasons(Availability(BASE), seen, WHOLE, seen) == [None, Reason.DISK_PRESENT, None]


@pytest.mark.requirement("R39")
@pytest.mark.parametrize("part", [Sighting(), Sighting(disks=(), pool=POOL), Sighting(files=(), pool=POOL), Sighting((), ())])
def test_an_incomplete_round_says_nothing_and_forgets_nothing(part: Sighting) -> None:
    assert reasons(Availability(BASE), part, part, part) == [None, None, None]
    assert reasons(Availability(BASE), EMPTY, part, EMPTY) == [None, None, Reason.DISK_MISSING]


@given(st.lists(st.sampled_from(["whole", "empty", "failed"]), max_size=12))
def test_a_volume_is_missing_only_if_the_last_two_complete_rounds_missed_it(rounds: list[str]) -> None:
    sightings = {"whole": WHOLE, "empty": EMPTY, "failed": Sighting(disks=())}
    said = reasons(Availability(BASE), *(sightings[one] for one in rounds))
    for position, one in enumerate(said):
        complete = [name for name in rounds[: position + 1] if name != "failed"]
        missing = rounds[position] == "empty" and complete[-2:] == ["empty", "empty"]
        assert (one is Reason.DISK_MISSING) == missing


@pytest.mark.parametrize("status", [{"deleting": True}, {"initialized": None}])
def test_a_volume_that_is_being_made_or_deleted_is_not_judged(status: dict[str, object]) -> None:
    availability = Availability(BASE)
    for _ in range(3):
        assert availability.judge([volume(**status)], EMPTY) == []


@pytest.mark.parametrize("spelled", [PATH[1:], PATH.replace("/metal", "//metal")])
def test_a_volume_is_found_however_its_record_spells_the_path(spelled: str) -> None:
    target = Target(nqn=nqn_for("pvc-1"), slot="pvc-1", file_path=spelled)
    assert find(target, {"pvc-1": DISK}, frozenset({PATH}), BASE).reason is Reason.DISK_PRESENT


def test_what_is_said_names_slot_file_and_the_way_out() -> None:
    message = find(TARGET, {}, frozenset({PATH}), BASE).message
    assert "slot pvc-1" in message
    assert PATH in message
    assert "its file is still there" in message
    assert "nvme-tcp-export=yes" in find(TARGET, {"pvc-1": Disk("pvc-1", PATH, GIB, False, None, None)}, frozenset(), BASE).message


def test_a_volume_outside_the_base_path_is_available_though_its_file_is_not_listed() -> None:
    assert find(TARGET, {"pvc-1": DISK}, frozenset(), "/storage-pool/elsewhere").reason is Reason.DISK_PRESENT
    assert find(TARGET, {}, frozenset(), "/storage-pool/elsewhere").reason is Reason.DISK_MISSING


def measured(ops: int, time: float, waited: float = 0.0) -> Traffic:
    return Traffic(
        "pool", {"read-ops": ops, "write-ops": ops}, {}, {"read-time": time, "write-time": 2 * time, "wait-time": waited}
    )


def test_latencies_are_what_an_operation_took_between_two_rounds() -> None:
    between = latencies(measured(100, 10.0), measured(110, 10.5, waited=2.0))
    assert (between.read, between.write, between.wait) == (0.05, 0.1, 0.1)


@pytest.mark.parametrize("now", [measured(100, 10.0), measured(5, 0.1)], ids=["nothing done", "counters reset"])
def test_latencies_are_unknown_where_nothing_was_done_or_the_counters_were_reset(now: Traffic) -> None:
    between = latencies(measured(100, 10.0), now)
    assert (between.read, between.write, between.wait) == (None, None, None)


def test_a_latency_that_the_box_does_not_print_is_unknown_and_not_zero() -> None:
    one, two = (Traffic("pool", {"read-ops": count, "write-ops": count}, {}, {}) for count in (1, 2))
    between = latencies(one, two)
    assert (between.read, between.write, between.wait) == (None, None, None)


def test_each_source_remembers_when_it_last_answered() -> None:
    inventory = Inventory()
    inventory.take(Sighting(disks=(), traffic={}), now=100.0)
    inventory.take(Sighting(files=()), now=200.0)
    assert inventory.last_success == {
        Source.DISKS: 100.0, Source.TRAFFIC: 100.0, Source.FILES: 200.0, Source.POOL: 0.0, Source.HEALTH: 0.0,
    }  # fmt: skip


def test_what_was_promised_is_the_sum_of_the_pools_disks() -> None:
    other = Disk("x", "/other-pool/x.img", GIB, True, None, None)
    assert provisioned([DISK, DISK, other], "storage-pool") == 2 * GIB
