"""Fields that the requests of many RPCs have in common, validated. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rds_csi.errors import InvalidArgument, NameRefused
from rds_records.names import check_handle

MAX_MAP: Final = 4096
"""Bytes (CSI spec, "Size Limits"); of a map, all keys and values together."""


def parse_volume_id(volume_id: str) -> str:
    """Return the handle that a request names; raises InvalidArgument."""
    if not volume_id:
        raise InvalidArgument("volume_id is missing")
    try:
        return check_handle(volume_id)
    except ValueError as error:
        raise NameRefused(str(error)) from error


def check_map(name: str, entries: Mapping[str, str]) -> dict[str, str]:
    """Return the map of a request unchanged; raises InvalidArgument where it is longer than CSI allows."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in entries.items())
    if size > MAX_MAP:
        raise InvalidArgument(f"{name} have {size} bytes; at most {MAX_MAP} are taken")
    return dict(entries)
