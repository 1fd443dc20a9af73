"""What the active operator tells of the box, in one ConfigMap: whoever may read it need not reach the box. It has no secrets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from rds_records.record import Time

CONFIG_MAP: Final = "rds-operator-box"
KEY: Final = "box.json"

REPEAT: Final = timedelta(minutes=5)
"""So often at least it is written again while nothing changes, so that its age says whether anybody still looks."""


_PASSING: Final = ("observed_time", "answered_time", "exported_disks", "operator_clock_seconds")
"""What changes without any news."""


class Link(StrEnum):
    """How the operator's SSH link to the box does."""

    CONNECTED = "Connected"
    SILENT = "Silent"
    """There is a link, and no question was answered."""

    UNREACHABLE = "Unreachable"
    LOGIN_REFUSED = "LoginRefused"
    HOST_KEY_REFUSED = "HostKeyRefused"
    """Whoever answers has another host key than the pinned one, or none to pin can be read."""


class BoxReport(BaseModel):
    """One report; times are the API server's."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    operator: str
    """Who wrote it, as in the Lease."""

    version: str
    """Of the operator."""

    address: str
    """``HOST:PORT`` of SSH."""

    user: str
    host_key_pinned: bool
    """False: whoever answers is taken for the box (``--rds-insecure-skip-verify``)."""

    base_path: str
    interval_seconds: float
    """How often the box is looked at."""

    observed_time: Time
    """When the box was last looked at."""

    link: Link
    since: Time
    """Since when this operator has seen the link so."""

    trouble: str = ""
    """Why there is no link, in one sentence."""

    answered_time: Time | None = None
    """When the box last answered anything, an earlier operator included; None where nobody knows of such a time."""

    unanswered: Mapping[str, str] = Field(default_factory=dict)
    """The questions that the box did not answer although there was a link, and why."""

    router_os: str | None = None
    """Its version, as printed; None where it was not told yet. This and what follows is from the last time that the box told it."""

    board: str | None = None
    subvolumes: bool | None = None
    """Whether it keeps Btrfs subvolumes, without which there are no snapshots and no clones."""

    no_subvolumes: str = ""
    operator_clock_seconds: float | None = None
    """How far the clock of the operator's machine is from the API server's, without sign."""

    exported_disks: int | None = None
    """Disks made of files that are exported over NVMe/TCP, whosoever they are."""

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed."""
        return self.model_copy(update=changes)

    def says_the_same(self, other: BoxReport | None) -> bool:
        """Tell whether nothing but time has passed, a clock has drifted, and disks have come and gone."""
        if other is None:
            return False
        return other.replace(**{name: getattr(self, name) for name in _PASSING}) == self

    def data(self) -> dict[str, str]:
        """Return what the ConfigMap holds."""
        return {KEY: self.model_dump_json(by_alias=True, exclude_none=True, indent=2)}

    @classmethod
    def of(cls, config_map: Mapping[str, Any]) -> Self:
        """Read what ``data`` wrote; raises ValueError, in one line, where it is something else."""
        try:
            return cls.model_validate_json((config_map.get("data") or {}).get(KEY, ""))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            why = f"{place}: {first['msg']}" if place else first["msg"]
            raise ValueError(f"ConfigMap {CONFIG_MAP} does not hold what this version understands: {why}") from error
