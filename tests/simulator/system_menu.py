"""``/system``: sensors, version and name of the box."""

from collections.abc import Callable, Iterable, Mapping

from tests.simulator import frame
from tests.simulator.menu import Call, Menu, Row

UNITS = (("w", 7 * 86400), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


class HealthMenu(Menu):
    """The sensors' readings; a device without sensors prints nothing."""

    path = "/system/health"

    def rows(self) -> list[Row]:
        """One row a reading."""
        return [
            Row(number, number, {"name": name, "value": value, "type": kind}, [name, value, kind])
            for number, (name, value, kind) in enumerate(self.store.health)
        ]

    def layout(self, rows: Iterable[Row]) -> str:
        """A table."""
        return frame.table(("NAME", "VALUE", "TYPE"), [(row.number, row.printed) for row in rows])


class ResourceMenu(Menu):
    """Version, board and time since the start."""

    path = "/system/resource"
    can_find = False

    @property
    def commands(self) -> Mapping[str, Callable[[Call], str]]:
        """Only ``print``."""
        return {"print": self._print}

    def _print(self, call: Call) -> str:
        call.arguments(())
        return frame.readings(
            {
                "uptime": duration(self.machine.uptime()),
                "version": f"{self.switches.version} (stable)",
                "free-memory": "31.2GiB",
                "total-memory": "32.0GiB",
                "cpu": "ARM64",
                "cpu-count": "16",
                "cpu-load": "1%",
                "architecture-name": "arm64",
                "board-name": "RDS2216",
                "platform": "MikroTik",
            }
        )


class IdentityMenu(Menu):
    """The name of the box."""

    path = "/system/identity"
    can_find = False

    @property
    def commands(self) -> Mapping[str, Callable[[Call], str]]:
        """Only ``print``."""
        return {"print": self._print}

    def _print(self, call: Call) -> str:
        call.arguments(())
        return frame.readings({"name": "rds"})


def duration(seconds: float) -> str:
    """Whole seconds as RouterOS prints a time, ``1w2d3h4m5s``; units that are zero are left out, and zero is ``0s``."""
    left = int(seconds)
    text = ""
    for unit, length in UNITS:
        count, left = divmod(left, length)
        text += f"{count}{unit}" if count else ""
    return text or "0s"
