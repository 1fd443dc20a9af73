"""The command ``rds-operator``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rds_records.names import DRIVER_NAME

from rds_operator.lease import Timing
from rds_operator.process import Settings, default_identity, live

logger = logging.getLogger(__name__)

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds its own namespace (Kubernetes documentation, "Accessing the Kubernetes API from a Pod")."""

DEFAULT_NAMESPACE: Final = "rds-csi"

DESCRIPTION: Final = """\
Watch VolumeAttachmentRecords: mark migrations that run past their deadline as TimedOut, and report what happens to volumes as
Events on their PersistentVolumeClaims and as metrics. Attaches and detaches do not need this process; what it cannot report now
it reports later. Run two replicas: one is active by Lease, the other takes over.
"""

EPILOG: Final = """\
Every option can be given as an environment variable: --lease-name is RDS_OPERATOR_LEASE_NAME; switches take true or false.
The command line wins. Exit status: 0 after SIGTERM or SIGINT, 1 when the lease was lost or the operator broke, 2 for bad options.
"""


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the command line's parser, with defaults from the environment."""
    flags = argparse.ArgumentParser(
        prog="rds-operator", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def option(flag: str, default: str, text: str, metavar: str) -> None:
        flags.add_argument(flag, default=environment.get(variable(flag), default), metavar=metavar, help=text)

    def seconds(flag: str, default: float, text: str) -> None:
        flags.add_argument(flag, type=_seconds, default=environment.get(variable(flag), str(default)), metavar="SECONDS", help=text)

    def switch(flag: str, text: str) -> None:
        value = environment.get(variable(flag), "false")
        if value.lower() not in {"true", "false"}:
            flags.error(f"{variable(flag)} is {value!r}, not true or false")
        flags.add_argument(flag, action=argparse.BooleanOptionalAction, default=value.lower() == "true", help=text)

    option("--kubeconfig", "", "how to reach the API server; as a pod does where none is named", "FILE")
    option("--driver-name", DRIVER_NAME, "the CSI driver whose PersistentVolumes these are (%(default)s)", "NAME")
    option("--metrics-address", ":9810", "where /metrics, /healthz and /readyz listen; empty: nowhere (%(default)s)", "HOST:PORT")
    switch("--disable-metrics", "serve no /metrics, /healthz and /readyz")
    switch("--disable-events", "post no Events; metrics and records are the same without")
    option("--namespace", _own_namespace(), "namespace of the Lease (%(default)s)", "NAME")
    option("--lease-name", "rds-operator", "name of the Lease (%(default)s)", "NAME")
    option("--identity", default_identity(), "this replica's name in the Lease (host name and a random suffix)", "NAME")
    timing = Timing()
    seconds("--lease-duration", timing.duration, "the standby takes over when the Lease was not renewed for so long (%(default)s)")
    seconds("--renew-deadline", timing.renew_deadline, "the active replica ends when it could not renew for so long (%(default)s)")
    seconds("--retry-period", timing.retry_period, "how often the Lease is renewed, or tried for (%(default)s)")
    flags.add_argument(
        "--log-level",
        default=environment.get(variable("--log-level"), "info"),
        choices=["debug", "info", "warning", "error"],
        help="what goes to stderr (%(default)s)",
    )
    flags.add_argument(
        "--log-format",
        default=environment.get(variable("--log-format"), "text"),
        choices=["text", "json"],
        help="one line of text, or one JSON object, per message (%(default)s)",
    )
    return flags


def variable(flag: str) -> str:
    """Return the environment variable of an option."""
    return "RDS_OPERATOR_" + flag.removeprefix("--").replace("-", "_").upper()


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.is_file() else DEFAULT_NAMESPACE


def main(argv: Sequence[str] | None = None) -> None:
    """Run the operator until SIGTERM; see ``--help``."""
    flags = parser(os.environ)
    chosen = flags.parse_args(argv)
    try:
        timing = Timing(chosen.lease_duration, chosen.renew_deadline, chosen.retry_period)
    except ValueError as error:
        flags.error(str(error))
    settings = Settings(
        kubeconfig=chosen.kubeconfig or None,
        namespace=chosen.namespace,
        lease_name=chosen.lease_name,
        timing=timing,
        identity=chosen.identity,
        driver_name=chosen.driver_name,
        metrics_address=chosen.metrics_address,
        events=not chosen.disable_events,
        metrics=not chosen.disable_metrics,
    )
    logging.basicConfig(level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(live(settings))
    except Exception:
        logger.exception("the operator broke")
        sys.exit(1)
