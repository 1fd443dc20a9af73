"""The command ``rds-operator``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import uvloop

from rds_csi.routeros import Settings as BoxSettings
from rds_csi.routeros.options import BOX_OPTIONS, add_box_options, box_settings, lacking
from rds_operator import handlers, orphans_command
from rds_operator.lease import Timing
from rds_operator.process import Settings, default_identity, live
from rds_process import logs
from rds_process.exposition import parse_address
from rds_process.options import Options, duration
from rds_process.version import ShowVersion
from rds_records.kubernetes_api import UnusableConfiguration
from rds_records.names import DRIVER_NAME

logger = logging.getLogger(__name__)

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds its own namespace (Kubernetes documentation, "Accessing the Kubernetes API from a Pod")."""

DEFAULT_NAMESPACE: Final = "rds-csi"
DEFAULT_METRICS_ADDRESS: Final = ":9810"

MIN_INTERVAL: Final = 0.5
"""Seconds; below that the box would do little else."""

ORPHANS: Final = """\
List what lies under --rds-volume-base-path on the box and is named by nobody in the cluster: no PersistentVolume, no record, no
VolumeSnapshotContent. The active operator keeps the list. Nothing is ever deleted by itself, because a restored cluster, or the
wrong one, makes live data look like this. With delete, one orphan is looked up again everywhere, and removed if you type its name.
"""

DESCRIPTION: Final = """\
Watch VolumeAttachmentRecords: mark migrations that run past their deadline as TimedOut, and report what happens to volumes as
Events on their PersistentVolumeClaims and as metrics. With --rds-address, look at the box now and then: volumes that it lost,
orphans, sensors, the pool. Attaches and detaches do not need this process; what it cannot report now it reports later. Run two
replicas: one is active by Lease, the other takes over.
"""

EPILOG: Final = """\
Every option can be given as an environment variable; the command line wins.
Exit status: 0 after SIGTERM or SIGINT, 1 when the lease was lost or the operator broke, 2 for bad options.
"""


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the command line's parser, with defaults from the environment."""
    flags = argparse.ArgumentParser(
        prog="rds-operator", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--version", action=ShowVersion, program="rds-operator")
    options = Options(flags, environment, prefix="RDS_OPERATOR_")
    timing = Timing()
    options.add("--kubeconfig", "how to reach the API server; where none is named, as a pod does", metavar="FILE")
    options.add("--driver-name", "the CSI driver whose PersistentVolumes these are", default=DRIVER_NAME, metavar="NAME")
    options.add(
        "--metrics-address", "where /metrics, /healthz and /readyz listen", default=DEFAULT_METRICS_ADDRESS, metavar="HOST:PORT"
    )
    options.switch("--disable-metrics", "listen nowhere: no /metrics, /healthz and /readyz")
    options.switch("--disable-events", "post no Events; metrics and records are the same without them")
    options.add("--namespace", "namespace of the Lease", default=_own_namespace(), metavar="NAME")
    options.add("--lease-name", "name of the Lease", default="rds-operator", metavar="NAME")
    options.add("--identity", "this replica's name in the Lease; else the host's name and a random suffix", metavar="NAME")
    for flag, text, seconds in (
        ("--lease-duration", "the standby takes over when the Lease was not renewed for so long", timing.duration),
        ("--renew-deadline", "the active replica ends when it could not renew the Lease for so long", timing.renew_deadline),
        ("--retry-period", "how often the Lease is renewed, or tried for", timing.retry_period),
    ):
        options.add(flag, text, default=f"{seconds:g}s", metavar="TIME", kind=duration)
    add_box_options(options)
    options.add("--inventory-interval", "how often the box is looked at", default="60s", metavar="TIME", kind=_interval)
    options.add(
        "--disk-metrics",
        "whose traffic is measured: the pool's, or each volume's too (as many series as volumes)",
        default="pool",
        choices=("pool", "volumes"),
    )
    options.add(
        "--orphan-grace",
        "for how long nobody must name a thing on the box before it is reported as an orphan",
        default="24h",
        metavar="TIME",
        kind=duration,
    )
    options.add(
        "--deployment-name", "the operator's own Deployment, on which orphans are reported", default="rds-operator", metavar="NAME"
    )
    options.add("--log-format", "one line of text, or one JSON object, per message", default="json", choices=logs.FORMATS)
    options.add("--log-level", "what goes to stderr", default="info", choices=logs.LEVELS)
    _commands(flags)
    return flags


def _commands(flags: argparse.ArgumentParser) -> None:
    commands = flags.add_subparsers(dest="command", required=False, metavar="orphans", title="commands")
    orphans = commands.add_parser(
        "orphans",
        help="list what lies on the box and nobody in the cluster names; without a command, operate",
        description=ORPHANS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    orphans.add_argument("-o", "--output", default="table", choices=("table", "json"), help="a table for people, or JSON")
    actions = orphans.add_subparsers(dest="action", required=False, metavar="delete", title="actions")
    delete = actions.add_parser("delete", help="check one again and, if the answer is its name, remove it from the box")
    delete.add_argument("name", metavar="NAME", help="as the list shows it")


def settings(flags: argparse.ArgumentParser, arguments: Sequence[str] | None) -> tuple[Settings, argparse.Namespace]:
    """Return how the operator runs, and the arguments as they were given; ends the process where they cannot be right."""
    chosen = flags.parse_args(arguments)
    try:
        timing = Timing(chosen.lease_duration, chosen.renew_deadline, chosen.retry_period)
        if chosen.metrics_address:
            parse_address(chosen.metrics_address)
        box = _box(flags, chosen)
    except ValueError as error:
        flags.error(str(error))
    return Settings(
        kubeconfig=chosen.kubeconfig or None,
        namespace=chosen.namespace,
        lease_name=chosen.lease_name,
        timing=timing,
        identity=chosen.identity or default_identity(),
        driver_name=chosen.driver_name,
        metrics_address="" if chosen.disable_metrics else chosen.metrics_address,
        events=not chosen.disable_events,
        box=box,
        base_path=chosen.rds_volume_base_path,
        inventory_interval=chosen.inventory_interval,
        every_disk=chosen.disk_metrics == "volumes",
        orphan_grace=chosen.orphan_grace,
        deployment=chosen.deployment_name,
    ), chosen


def _box(flags: argparse.ArgumentParser, chosen: argparse.Namespace) -> BoxSettings | None:
    if not chosen.rds_address:
        return None
    if wrong := lacking(chosen):
        flags.error(wrong)
    return box_settings(**{name: getattr(chosen, name) for name in BOX_OPTIONS})


def _interval(text: str) -> float:
    seconds = duration(text)
    if seconds < MIN_INTERVAL:
        raise ValueError(f"{text!r} is less than {MIN_INTERVAL:g} s")
    return seconds


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.is_file() else DEFAULT_NAMESPACE


def main(argv: Sequence[str] | None = None) -> None:
    """Run the operator until SIGTERM; see ``--help``."""
    chosen, given = settings(parser(os.environ), argv)
    logs.configure(given.log_format, given.log_level)
    handlers.quiet()
    if given.command == "orphans":
        sys.exit(uvloop.run(orphans_command.run(chosen, given)))
    try:
        uvloop.run(live(chosen))
    except UnusableConfiguration as error:
        logger.critical("cannot run", extra={"error": str(error)})
        sys.exit(1)
    except Exception:
        logger.exception("the operator ends: it broke")
        sys.exit(1)
