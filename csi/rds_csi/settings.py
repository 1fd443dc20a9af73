"""How one ``rds-csi`` process runs."""

from __future__ import annotations

from dataclasses import dataclass

from rds_csi.capacity import NO_RESERVE, Reserve
from rds_csi.contexts import DEFAULT_NVME_PORT
from rds_csi.fence_mode import FenceMode
from rds_csi.node import health, orphan_sessions
from rds_csi.node.nvme import DEFAULT_MANAGED_PREFIX
from rds_csi.routeros.options import DEFAULT_KEY_FILE
from rds_csi.server import DRAIN_SECONDS
from rds_csi.snapshot_mode import SnapshotMode
from rds_records.imports import DEFAULT_BASE_PATH
from rds_records.names import DRIVER_NAME, SlotNames

DEFAULT_ENDPOINT = f"unix:///var/lib/kubelet/plugins/{DRIVER_NAME}/csi.sock"
DEFAULT_METRICS_ADDRESS = ":9809"
DEFAULT_KUBELET_ROOT = "/var/lib/kubelet"
DEFAULT_REGISTRY = f"{DEFAULT_KUBELET_ROOT}/plugins_registry"
SESSION_INTERVAL = 10.0
ATTACHMENT_INTERVAL = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What controller and node have in common; all of it is checked where it is read."""

    endpoint: str = DEFAULT_ENDPOINT
    driver_name: str = DRIVER_NAME
    metrics_address: str = DEFAULT_METRICS_ADDRESS
    """Empty: no HTTP endpoint."""

    drain_timeout: float = DRAIN_SECONDS
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings(Settings):
    """The controller's."""

    rds_address: str
    rds_port: int = 22
    rds_user: str = "admin"
    rds_key_file: str = DEFAULT_KEY_FILE
    rds_host_key: str = ""
    """The key, or the path of a file that holds it."""

    rds_insecure_skip_verify: bool = False
    rds_volume_base_path: str = DEFAULT_BASE_PATH
    nvme_address: str = ""
    """Empty: the box's address."""

    nvme_port: int = DEFAULT_NVME_PORT
    slot_names: SlotNames = SlotNames.HANDLE
    snapshot_backend: SnapshotMode = SnapshotMode.AUTO
    pool_reserve: Reserve = NO_RESERVE
    fence: FenceMode = FenceMode.NONE
    attachment_reconcile_interval: float = ATTACHMENT_INTERVAL
    """Seconds."""

    kubeconfig: str = ""
    """Empty: as a pod reaches its API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings(Settings):
    """The node's; durations in seconds."""

    node_id: str
    kubeconfig: str = ""
    """Empty: as a pod reaches its API server."""

    plugin_registration_path: str = DEFAULT_REGISTRY
    """Directory; empty: the kubelet is not told of the driver."""

    kubelet_registration_path: str = ""
    """Of the CSI socket, as the kubelet sees it."""

    kubelet_root_dir: str = DEFAULT_KUBELET_ROOT
    managed_nqn_prefix: str = DEFAULT_MANAGED_PREFIX
    session_interval: float = SESSION_INTERVAL
    health_grace: float = health.GRACE_SECONDS
    orphan_session_grace: float = orphan_sessions.GRACE_SECONDS
    orphan_cleanup: bool = True
    events: bool = True
