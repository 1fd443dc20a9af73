"""What travels with a volume from the controller to a node: volume and publish context. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

DEFAULT_NVME_PORT: Final = 4420
MAX_KERNEL_SECONDS: Final = 2**31 - 1
"""The kernel keeps these NVMe timeouts in an int (linux, drivers/nvme/host/fabrics.c)."""

CTRL_LOSS_TMO: Final = -1
RECONNECT_DELAY: Final = 5
KEEP_ALIVE_TMO: Final = 0
"""What the Go driver writes where the StorageClass says nothing: never give up, every 5 s, the kernel's own keep-alive."""

INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,9})")


@dataclass(frozen=True, slots=True)
class VolumeContext:
    """What the context of an existing volume says; None where it says nothing that can be used."""

    nqn: str | None = None
    file_path: str | None = None
    rds_address: str | None = None
    nvme_address: str | None = None
    nvme_port: int | None = None
    ctrl_loss_tmo: int = CTRL_LOSS_TMO
    reconnect_delay: int = RECONNECT_DELAY
    keep_alive_tmo: int = KEEP_ALIVE_TMO


def parse_volume_context(context: Mapping[str, str]) -> VolumeContext:
    """Return what a volume context says, the Go driver's too; lenient: a key that makes no sense counts as absent.

    The migration timeout and the policy are the record's matter (``rds_records.imports``).
    """
    return VolumeContext(
        nqn=context.get("nqn") or None,
        file_path=context.get("volumePath") or None,
        rds_address=context.get("rdsAddress") or None,
        nvme_address=context.get("nvmeAddress") or context.get("rdsAddress") or None,
        nvme_port=_lenient(context, "nvmePort", 1, 65_535, 0) or None,
        ctrl_loss_tmo=_lenient(context, "ctrlLossTmo", -1, MAX_KERNEL_SECONDS, CTRL_LOSS_TMO),
        reconnect_delay=_lenient(context, "reconnectDelay", 1, MAX_KERNEL_SECONDS, RECONNECT_DELAY),
        keep_alive_tmo=_lenient(context, "keepAliveTmo", 0, MAX_KERNEL_SECONDS, KEEP_ALIVE_TMO),
    )


def _lenient(context: Mapping[str, str], name: str, least: int, most: int, default: int) -> int:
    text = context.get(name, "")
    if not INTEGER.fullmatch(text) or not least <= int(text) <= most:
        return default
    return int(text)


def publish_context(*, nvme_address: str, nvme_port: int, nqn: str, fs_type: str = "") -> dict[str, str]:
    """Return the publish context: where the node finds the volume today."""
    return {"nvme_address": nvme_address, "nvme_port": str(nvme_port), "nvme_nqn": nqn, "fs_type": fs_type}
