"""The command ``rds-csi``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from rds_csi.capacity import Reserve
from rds_csi.contexts import DEFAULT_NVME_PORT
from rds_csi.fence_mode import FenceMode
from rds_csi.identity import check_driver_name
from rds_csi.node.nvme import DEFAULT_MANAGED_PREFIX, MANAGED_PREFIX_VARIABLE, check_managed_prefix
from rds_csi.node.registration import registration_socket
from rds_csi.routeros.options import BOX_OPTIONS, add_box_options, lacking, port
from rds_csi.server import parse_endpoint
from rds_csi.settings import (
    DEFAULT_ENDPOINT,
    DEFAULT_KUBELET_ROOT,
    DEFAULT_METRICS_ADDRESS,
    DEFAULT_REGISTRY,
    ControllerSettings,
    NodeSettings,
    Settings,
)
from rds_csi.snapshot_mode import SnapshotMode
from rds_process import logs
from rds_process.exposition import parse_address
from rds_process.options import Options, duration
from rds_process.version import ShowVersion
from rds_records.names import DRIVER_NAME, SlotNames, check_ip_address, check_node_name

_log = logging.getLogger(__name__)

DESCRIPTION: Final = """\
CSI driver for MikroTik ROSE Data Servers: volumes are files on the box, served over NVMe/TCP, and a ReadWriteMany Block volume
may be on two nodes for as long as a KubeVirt live migration takes.
"""

CONTROLLER: Final = """\
Serve the CSI Identity and Controller services, beside csi-provisioner, csi-attacher, csi-resizer and csi-snapshotter. Who may use a
volume is read from and written to its VolumeAttachmentRecord (kubectl get var); the box is reached over SSH for volumes and
snapshots, and to attach only with --fence. Any number of replicas may run. It starts, attaches and detaches while the box is away.
"""

NODE: Final = """\
Serve the CSI Identity and Node services to the kubelet, and the kubelet's plugin registration, so that no node-driver-registrar is
needed. Volumes are connected over NVMe/TCP and mounted or shown as devices; sessions are watched, and those that nothing uses are
ended. It starts and serves while the API server is away.
"""

EPILOG: Final = """\
Every option can be given as an environment variable, shown as env; where several are shown the first that is set counts, and the
command line wins. Switches take true or false. Durations are numbers with ms, s (also without), m or h.

SIGTERM and SIGINT end the process when the calls in flight have ended, or --drain-timeout is over; a second signal ends it at
once. Exit status: 0 after a signal, 1 when it could not start or broke, 2 for bad options.
"""

EXAMPLE: Final = """\

example:
  rds-csi controller --endpoint unix:///csi/csi.sock --rds-address 10.0.0.5 --rds-user metal-csi \\
    --rds-host-key /etc/rds-csi/rds-host-key --nvme-address 10.0.1.5 --rds-volume-base-path /storage-pool/metal-csi
"""


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the command line's parser, with defaults from the environment."""
    top = argparse.ArgumentParser(prog="rds-csi", description=DESCRIPTION, allow_abbrev=False)
    top.add_argument("--version", action=ShowVersion, program="rds-csi")
    commands = top.add_subparsers(dest="command", required=True, metavar="controller|node")
    _controller(_command(commands, "controller", "serve the Controller service", CONTROLLER, EPILOG + EXAMPLE), environment)
    _node(_command(commands, "node", "serve the Node service", NODE, EPILOG), environment)
    return top


def _command(commands: Any, name: str, line: str, description: str, epilog: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def _controller(flags: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    options = Options(flags, environment, prefix="RDS_CSI_")
    _shared(options)
    add = options.add
    add_box_options(options)
    add(
        "--nvme-address",
        "where nodes reach volumes whose StorageClass names no address; empty: at the box's",
        metavar="IP",
        kind=_ip,
    )
    add("--nvme-port", "the NVMe/TCP port", default=str(DEFAULT_NVME_PORT), metavar="PORT", kind=port)
    add(
        "--slot-names",
        "slots named like the volume, as the Go driver does, or of 32 characters",
        default=SlotNames.HANDLE.value,
        choices=[names.value for names in SlotNames],
    )
    add(
        "--snapshot-backend",
        "keep volumes in Btrfs subvolumes, so that they can be snapshotted and cloned: where the box has them, always, never",
        default=SnapshotMode.AUTO.value,
        choices=[mode.value for mode in SnapshotMode],
    )
    add(
        "--pool-reserve",
        "what GetCapacity keeps free of the pool, a size or a share of it",
        default="5%",
        metavar="SIZE",
        kind=Reserve.parse,
    )
    add(
        "--fence",
        "whether the box refuses nodes that a volume is not attached to (never tried on hardware), or takes any",
        default=FenceMode.NONE.value,
        choices=[mode.value for mode in FenceMode],
    )
    add(
        "--attachment-reconcile-interval",
        "how often recorded nodes are compared with VolumeAttachments; a node that has none twice is released once it is out",
        default="1m",
        metavar="DURATION",
        kind=_positive,
    )
    add("--kubeconfig", "how to reach the API server; empty: as a pod does", metavar="FILE", variables=["KUBECONFIG"])


def _node(flags: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    options = Options(flags, environment, prefix="RDS_CSI_")
    _shared(options)
    options.add(
        "--node-id", "the name of this machine's Node object (required)", metavar="NAME", kind=_node_name, variables=["NODE_ID"]
    )
    options.add(
        "--plugin-registration-path",
        "directory in which the kubelet looks for plugins",
        default=DEFAULT_REGISTRY,
        metavar="DIRECTORY",
        kind=_absolute,
    )
    options.add(
        "--kubelet-registration-path",
        "the CSI socket as the kubelet sees it; empty: that of --endpoint",
        metavar="PATH",
        kind=_absolute,
    )
    options.switch("--disable-registration", "leave the kubelet's plugin registration to node-driver-registrar")
    options.add(
        "--kubelet-root-dir",
        "the kubelet's --root-dir, which shows what it has staged",
        default=DEFAULT_KUBELET_ROOT,
        metavar="DIRECTORY",
        kind=_absolute,
    )
    options.add(
        "--managed-nqn-prefix",
        "what the NQNs of volumes begin with; no other session is made, shown or ended",
        default=DEFAULT_MANAGED_PREFIX,
        metavar="PREFIX",
        kind=check_managed_prefix,
        variables=[MANAGED_PREFIX_VARIABLE],
    )
    for flag, text, default in (
        ("--session-interval", "how often sessions are looked at", "10s"),
        ("--health-grace", "how long a volume may be without connection or disk before that is told", "30s"),
        ("--orphan-session-grace", "how long a session must be for no volume of the kubelet's before it is ended", "2m"),
    ):
        options.add(flag, text, default=default, metavar="DURATION", kind=_positive)
    options.switch("--disable-orphan-cleanup", "only tell of sessions that nothing uses")
    options.switch("--disable-events", "post no Events; metrics are the same without them")
    options.add("--kubeconfig", "how to reach the API server; empty: as a pod does", metavar="FILE", variables=["KUBECONFIG"])


def _shared(options: Options) -> None:
    add = options.add
    add(
        "--endpoint",
        "where CSI is served: unix:///PATH or tcp://HOST:PORT",
        default=DEFAULT_ENDPOINT,
        metavar="URL",
        kind=_endpoint,
        variables=["CSI_ENDPOINT"],
    )
    add("--driver-name", "name of the CSI driver", default=DRIVER_NAME, metavar="NAME", kind=check_driver_name)
    add(
        "--metrics-address",
        "where /metrics, /healthz and /readyz are served; none: nowhere",
        default=DEFAULT_METRICS_ADDRESS,
        metavar="HOST:PORT",
        kind=_address,
    )
    add("--drain-timeout", "how long calls in flight may take at the end", default="30s", metavar="DURATION", kind=duration)
    add("--log-level", "least level that is logged", default="info", choices=logs.LEVELS)
    add("--log-format", "one JSON object or one line of text per message, on stderr", default="json", choices=logs.FORMATS)


def read(argv: Sequence[str] | None, environment: Mapping[str, str]) -> tuple[Settings, argparse.Namespace]:
    """Return the settings of ``rds-csi COMMAND …``, and all that was given; bad options end the process with status 2."""
    flags = parser(environment)
    chosen = flags.parse_args(argv)
    shared = {name: getattr(chosen, name) for name in ("endpoint", "driver_name", "metrics_address", "drain_timeout")}
    if chosen.command == "node":
        if not chosen.node_id:
            flags.error("--node-id is required")
        node = ("node_id", "kubeconfig", "kubelet_root_dir", "managed_nqn_prefix", "session_interval", "health_grace")
        shared |= {name: getattr(chosen, name) for name in (*node, "orphan_session_grace")}
        shared |= {"orphan_cleanup": not chosen.disable_orphan_cleanup, "events": not chosen.disable_events}
        try:
            return _node_settings(shared, chosen), chosen
        except ValueError as error:
            flags.error(str(error))
    if wrong := lacking(chosen):
        flags.error(wrong)
    settings = ControllerSettings(
        **shared,
        **{name: getattr(chosen, name) for name in BOX_OPTIONS},
        rds_volume_base_path=chosen.rds_volume_base_path,
        nvme_address=chosen.nvme_address,
        nvme_port=chosen.nvme_port,
        slot_names=SlotNames(chosen.slot_names),
        pool_reserve=chosen.pool_reserve,
        snapshot_backend=SnapshotMode(chosen.snapshot_backend),
        fence=FenceMode(chosen.fence),
        attachment_reconcile_interval=chosen.attachment_reconcile_interval,
        kubeconfig=chosen.kubeconfig,
    )
    return settings, chosen


def _node_settings(shared: Mapping[str, Any], chosen: argparse.Namespace) -> NodeSettings:
    """Return the node's settings; raises ValueError where the kubelet could not reach the driver."""
    if chosen.disable_registration:
        return NodeSettings(**shared, plugin_registration_path="")
    directory, driver = chosen.plugin_registration_path, chosen.driver_name
    parse_endpoint(f"unix://{registration_socket(directory, driver)}")
    path = chosen.kubelet_registration_path or str(parse_endpoint(chosen.endpoint).path or "")
    if not path:
        raise ValueError(
            f"--endpoint {chosen.endpoint} is no unix socket, which the kubelet needs; --disable-registration leaves it untold"
        )
    return NodeSettings(**shared, plugin_registration_path=directory, kubelet_registration_path=path)


def _endpoint(text: str) -> str:
    parse_endpoint(text)
    return text


def _node_name(text: str) -> str:
    return text and check_node_name(text)


def _absolute(text: str) -> str:
    if text and (not text.startswith("/") or "\0" in text):
        raise ValueError(f"{text[:120]!r} is no absolute path")
    return text


def _positive(text: str) -> float:
    seconds = duration(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} must be more than nothing")
    return seconds


def _ip(text: str) -> str:
    return text and check_ip_address(text)


def _address(text: str) -> str:
    if text in {"", "none"}:
        return ""
    parse_address(text)
    return text


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a process's coroutine on uvloop; what breaks it is logged and ends the process with status 1."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())
    except (OSError, ValueError) as error:
        # What configuration and surroundings can get wrong says what to do; a traceback would bury it.
        _log.critical("cannot run", extra={"error": str(error)})
        sys.exit(1)
    except Exception:  # noqa: BLE001 the end of the process, told
        _log.critical("broke", exc_info=True)
        sys.exit(1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``rds-csi``; see ``--help``."""
    settings, chosen = read(argv, os.environ)
    logs.configure(chosen.log_format, chosen.log_level)
    # Imported late: --help needs neither SSH nor Kubernetes.
    from rds_csi import process

    if isinstance(settings, ControllerSettings):
        run(lambda: process.controller(settings))
    elif isinstance(settings, NodeSettings):
        run(lambda: process.node(settings))
