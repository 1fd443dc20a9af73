"""csi-provisioner and csi-attacher as processes with accounts of their own."""

from __future__ import annotations

from pathlib import Path

from tests.ring.binaries import ensure
from tests.ring.controlplane import ControlPlane, Gateway, answers
from tests.ring.installation import NAMESPACE
from tests.ring.processes import LOOPBACK, Process, free_port

LONGEST_SOCKET_PATH = 107
"""Bytes of a unix socket's path that sun_path holds (unix(7))."""


def csi_provisioner(
    plane: ControlPlane,
    socket: Path,
    logs: Path,
    *,
    through: Gateway | None = None,
    retry_start: str = "500ms",
    retry_max: str = "2s",
    timeout: str = "30s",
    leader_election: bool = False,
) -> Process:
    """Return an external-provisioner for the driver behind a socket; ready once its leader check answers.

    It asks the driver who it is before it is ready, so the driver must be up when it is started.
    """
    flags = [
        "--extra-create-metadata",
        "--feature-gates=Topology=false",
        "--default-fstype=ext4",
        f"--retry-interval-start={retry_start}",
        f"--retry-interval-max={retry_max}",
        f"--timeout={timeout}",
    ]
    return _sidecar("csi-provisioner", plane, socket, logs, flags, through, leader_election=leader_election)


def csi_attacher(
    plane: ControlPlane,
    socket: Path,
    logs: Path,
    *,
    through: Gateway | None = None,
    retry_start: str = "200ms",
    retry_max: str = "2s",
    timeout: str = "15s",
    reconcile_sync: str = "1m",
    leader_election: bool = False,
) -> Process:
    """Return an external-attacher for the driver behind a socket; see ``csi_provisioner``."""
    flags = [
        f"--retry-interval-start={retry_start}",
        f"--retry-interval-max={retry_max}",
        f"--timeout={timeout}",
        f"--reconcile-sync={reconcile_sync}",
    ]
    return _sidecar("csi-attacher", plane, socket, logs, flags, through, leader_election=leader_election)


def socket_path(folder: Path, name: str = "csi.sock") -> Path:
    """Return an absolute path for a unix socket.

    Raises:
        ValueError: it would be longer than the kernel takes.
    """
    path = (folder / name).resolve()
    if len(str(path).encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(f"{path} is too long for a unix socket; set TMPDIR to a shorter folder")
    return path


def _sidecar(
    name: str, plane: ControlPlane, socket: Path, logs: Path, flags: list[str], through: Gateway | None, *, leader_election: bool
) -> Process:
    binary = ensure([name])[name]
    port = free_port()
    argv = [
        str(binary),
        f"--kubeconfig={plane.kubeconfig_for(NAMESPACE, name, through=through)}",
        f"--csi-address={socket}",
        f"--http-endpoint={LOOPBACK}:{port}",
        # The default of 5 requests per second would be what tests measure.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--v=4",
        *flags,
    ]
    if leader_election:
        argv += ["--leader-election", f"--leader-election-namespace={NAMESPACE}"]
    # The endpoint listens before the driver is asked; a sidecar that has met the driver serves its metrics with the driver's name.
    return Process(name, argv, logs / f"{name}-{port}.log", ready=lambda: answers(f"http://{LOOPBACK}:{port}/metrics"))
