"""Gauges of the box under the Go driver's names, from memory; a source that did not answer has no series (R38, R39)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rds_csi.routeros import Capacity, Sensor, Traffic
from rds_operator.inventory import Inventory, Latencies, Source, provisioned

_TEMPERATURE, _SPEED, _POWER = "C", "RPM", "W"

_SENSORS: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "cpu_temperature_celsius": ("Temperature of the CPU.", _TEMPERATURE, ("cpu-temperature",)),
    "board_temperature_celsius": ("Temperature of the board.", _TEMPERATURE, ("board-temperature1", "board-temperature")),
    "fan1_speed_rpm": ("Speed of fan 1.", _SPEED, ("fan1-speed",)),
    "fan2_speed_rpm": ("Speed of fan 2.", _SPEED, ("fan2-speed",)),
    "psu1_power_watts": ("Power drawn from PSU 1.", _POWER, ("psu1-power",)),
    "psu2_power_watts": ("Power drawn from PSU 2.", _POWER, ("psu2-power",)),
    "psu1_temperature_celsius": ("Temperature of PSU 1.", _TEMPERATURE, ("psu1-temperature",)),
    "psu2_temperature_celsius": ("Temperature of PSU 2.", _TEMPERATURE, ("psu2-temperature",)),
}
"""By the Go driver's name: what it is, its unit, and the names that ``/system/health`` has for it (MikroTik's manual, "Health")."""

_MILLISECONDS: Final = 1000.0


class BoxGauges(Collector):
    """What the last round found. A replica that does not look, such as the standby, has none of these."""

    def __init__(self, inventory: Inventory, mount_point: str) -> None:
        self._inventory = inventory
        self._mount_point = mount_point

    def describe(self) -> list[Metric]:
        """Name nothing before the first round (called when the collector is registered)."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Compute the gauges; waits for nothing."""
        inventory = self._inventory
        if not inventory.taken:
            return
        last = GaugeMetricFamily(
            "rds_csi_inventory_last_success_timestamp_seconds",
            "When the box last answered a question of the background round (0: never).",
            labels=["source"],
        )
        for source in Source:
            last.add_metric([source], inventory.last_success[source])
        yield last
        seen = inventory.seen
        if seen.pool is not None:
            yield from _pool(seen.pool)
        if seen.disks is not None:
            yield GaugeMetricFamily(
                "rds_csi_pool_provisioned_bytes",
                "Sizes of all disks made of files in the pool, together: what thin files may still claim.",
                value=provisioned(seen.disks, self._mount_point),
            )
        if seen.health is not None:
            yield from _hardware(seen.health)
        if seen.traffic is not None:
            yield from _disks(seen.traffic, inventory.latencies)


def _pool(pool: Capacity) -> Iterator[Metric]:
    yield GaugeMetricFamily("rds_hardware_disk_pool_size_bytes", "Size of the pool.", value=pool.size)
    yield GaugeMetricFamily(
        "rds_hardware_disk_pool_used_bytes", "Bytes of the pool that are not free.", value=pool.size - pool.free
    )


def _hardware(sensors: Mapping[str, Sensor]) -> Iterator[Metric]:
    for name, (text, unit, candidates) in _SENSORS.items():
        value = next((found for one in candidates if (found := _value(sensors, one, unit)) is not None), None)
        if value is None and unit == _POWER:
            value = _power(sensors, candidates[0].removesuffix("-power"))
        if value is not None:
            yield GaugeMetricFamily(f"rds_hardware_{name}", text, value=value)


def _value(sensors: Mapping[str, Sensor], name: str, unit: str) -> float | None:
    sensor = sensors.get(name)
    return sensor.number if sensor and sensor.unit == unit else None


def _power(sensors: Mapping[str, Sensor], supply: str) -> float | None:
    """Return a supply's power where the box tells volts and amperes only."""
    volts, amperes = _value(sensors, f"{supply}-voltage", "V"), _value(sensors, f"{supply}-current", "A")
    return None if volts is None or amperes is None else volts * amperes


def _disks(traffic: Mapping[str, Traffic], averages: Mapping[str, Latencies]) -> Iterator[Metric]:
    def family(name: str, text: str, values: Mapping[str, float | None]) -> Iterator[Metric]:
        metric = GaugeMetricFamily(f"rds_disk_{name}", text, labels=["slot"])
        for slot, value in values.items():
            if value is not None:
                metric.add_metric([slot], value)
        if metric.samples:
            yield metric

    def number(key: str) -> dict[str, float | None]:
        return {slot: one.numbers.get(key) for slot, one in traffic.items()}

    def rate(key: str) -> dict[str, float | None]:
        return {slot: one.rates.get(key) for slot, one in traffic.items()}

    def average(field: str) -> dict[str, float | None]:
        found = {slot: getattr(averages[slot], field) for slot in traffic if slot in averages}
        return {slot: None if value is None else value * _MILLISECONDS for slot, value in found.items()}

    def active() -> dict[str, float | None]:
        times = {slot: one.times.get("active-time") for slot, one in traffic.items()}
        return {slot: None if value is None else value * _MILLISECONDS for slot, value in times.items()}

    yield from family("read_ops_per_second", "Reads per second.", number("read-ops-per-second"))
    yield from family("write_ops_per_second", "Writes per second.", number("write-ops-per-second"))
    yield from family("read_bytes_per_second", "Bytes read per second.", rate("read-rate"))
    yield from family("write_bytes_per_second", "Bytes written per second.", rate("write-rate"))
    yield from family("read_latency_milliseconds", "Time of a read, averaged since the round before.", average("read"))
    yield from family("write_latency_milliseconds", "Time of a write, averaged since the round before.", average("write"))
    yield from family("wait_latency_milliseconds", "Time that an operation waited, averaged alike.", average("wait"))
    yield from family("in_flight_operations", "Operations that are queued now.", number("in-flight-ops"))
    yield from family("active_time_milliseconds", "Time that the disk was busy since the box's counters were reset.", active())
