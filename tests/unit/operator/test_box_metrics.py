"""Gauges of the box, as far as it answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from rds_csi.routeros import Capacity, Disk, Sensor, Traffic
from rds_operator.box_metrics import BoxGauges
from rds_operator.inventory import Inventory, Sighting

HEALTH = {
    "cpu-temperature": Sensor("43", "C"), "board-temperature1": Sensor("29", "C"), "fan1-speed": Sensor("5654", "RPM"),
    "fan2-speed": Sensor("5700", "RPM"), "psu1-voltage": Sensor("12.1", "V"), "psu1-current": Sensor("10", "A"),
    "psu2-power": Sensor("70.5", "W"), "psu1-state": Sensor("ok"), "psu1-temperature": Sensor("25", "C"),
    "psu2-temperature": Sensor("26", "C"),
}  # fmt: skip
TRAFFIC = {
    "storage-pool": Traffic(
        "storage-pool",
        {"read-ops": 100, "write-ops": 0, "read-ops-per-second": 5, "write-ops-per-second": 76, "in-flight-ops": 3},
        {"read-rate": 125.0, "write-rate": 1_600_000.0},
        {"read-time": 2.0, "write-time": 0.0, "wait-time": 0.0, "active-time": 48.149},
    )
}
EVERYTHING = Sighting(
    disks=(Disk("pvc-1", "/storage-pool/x/pvc-1.img", 2**30, True, None, None),),
    files=(),
    pool=Capacity(1000, 400, "storage-pool"),
    health=HEALTH,
    traffic=TRAFFIC,
)
LATER = replace(
    EVERYTHING,
    traffic={
        "storage-pool": Traffic(
            "storage-pool",
            {**TRAFFIC["storage-pool"].numbers, "read-ops": 110, "write-ops": 10},
            TRAFFIC["storage-pool"].rates,
            {"read-time": 2.5, "write-time": 1.0, "wait-time": 0.2, "active-time": 50.0},
        )
    },
)


def registry_of(*rounds: Sighting) -> CollectorRegistry:
    inventory, registry = Inventory(), CollectorRegistry()
    registry.register(BoxGauges(inventory, "storage-pool"))
    for number, seen in enumerate(rounds):
        inventory.take(seen, now=1000.0 + number)
    return registry


def names(registry: CollectorRegistry) -> set[str]:
    return {family.name for family in registry.collect()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rds_hardware_cpu_temperature_celsius", 43), ("rds_hardware_board_temperature_celsius", 29),
        ("rds_hardware_fan1_speed_rpm", 5654), ("rds_hardware_psu1_power_watts", 121), ("rds_hardware_psu2_power_watts", 70.5),
        ("rds_hardware_disk_pool_size_bytes", 1000), ("rds_hardware_disk_pool_used_bytes", 600),
        ("rds_csi_pool_provisioned_bytes", 2**30),
    ],
)  # fmt: skip
def test_what_the_box_says_is_shown_in_its_unit(name: str, value: float) -> None:
    assert registry_of(EVERYTHING).get_sample_value(name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("read_ops_per_second", 5), ("write_ops_per_second", 76), ("read_bytes_per_second", 125), ("write_bytes_per_second", 1.6e6),
        ("in_flight_operations", 3), ("active_time_milliseconds", 48_149),
    ],
)  # fmt: skip
def test_traffic_is_shown_under_the_go_drivers_names(name: str, value: float) -> None:
    assert registry_of(EVERYTHING).get_sample_value(f"rds_disk_{name}", {"slot": "storage-pool"}) == value


def test_latencies_are_there_from_the_second_round_on_and_only_where_something_was_done() -> None:
    first, second, third = registry_of(EVERYTHING), registry_of(EVERYTHING, LATER), registry_of(EVERYTHING, LATER, LATER)
    assert "rds_disk_read_latency_milliseconds" not in names(first)
    assert second.get_sample_value("rds_disk_read_latency_milliseconds", {"slot": "storage-pool"}) == 50
    assert second.get_sample_value("rds_disk_write_latency_milliseconds", {"slot": "storage-pool"}) == 100
    assert second.get_sample_value("rds_disk_wait_latency_milliseconds", {"slot": "storage-pool"}) == pytest.approx(10)
    assert "rds_disk_write_latency_milliseconds" not in names(third)


@pytest.mark.requirement("R39")
def test_a_sensor_that_is_not_there_or_has_another_unit_has_no_series() -> None:
    odd = {"fan1-speed": Sensor("5654", "RPM"), "psu1-temperature": Sensor("77", "F")}
    found = {name for name in names(registry_of(replace(EVERYTHING, health=odd))) if "hardware" in name and "pool" not in name}
    assert found == {"rds_hardware_fan1_speed_rpm"}


@pytest.mark.requirement("R39")
def test_a_source_that_fails_has_no_series_but_the_time_of_its_last_success() -> None:
    registry = registry_of(EVERYTHING, Sighting())
    assert names(registry) == {"rds_csi_inventory_last_success_timestamp_seconds"}
    assert registry.get_sample_value("rds_csi_inventory_last_success_timestamp_seconds", {"source": "health"}) == 1000


def test_before_the_first_round_there_is_nothing() -> None:
    assert names(registry_of()) == set()
