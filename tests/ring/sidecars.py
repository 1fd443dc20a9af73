"""The CSI sidecars as processes with accounts of their own, and the cluster's snapshot-controller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.ring.binaries import ensure
from tests.ring.controlplane import ControlPlane, Gateway, answers
from tests.ring.installation import NAMESPACE, POD
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
    capacity_poll: str = "1s",
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
        # The Deployment, above ReplicaSet and Pod, owns the capacity objects.
        "--enable-capacity",
        "--capacity-ownerref-level=2",
        f"--capacity-poll-interval={capacity_poll}",
        "--kube-api-capacity-qps=500",
        "--kube-api-capacity-burst=1000",
    ]
    env = {"NAMESPACE": NAMESPACE, "POD_NAME": POD}
    return _sidecar("csi-provisioner", plane, socket, logs, flags, through, leader_election=leader_election, env=env)


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


def csi_resizer(
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
    """Return an external-resizer for the driver behind a socket, which expands claims and gives them a VolumeAttributesClass.

    It ends at once where the driver can do neither. See ``csi_provisioner``.
    """
    flags = [
        # The driver never says FAILED_PRECONDITION for a volume that is in use, so pods need not be watched.
        "--handle-volume-inuse-error=false",
        f"--retry-interval-start={retry_start}",
        f"--retry-interval-max={retry_max}",
        f"--timeout={timeout}",
    ]
    return _sidecar("csi-resizer", plane, socket, logs, flags, through, leader_election=leader_election)


def csi_snapshotter(
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
    """Return the sidecar half of external-snapshotter for the driver behind a socket; it needs ``snapshot_controller`` beside it.

    It ends at once where the driver makes no snapshots. See ``csi_provisioner``.
    """
    flags = [f"--retry-interval-start={retry_start}", f"--retry-interval-max={retry_max}", f"--timeout={timeout}"]
    return _sidecar("csi-snapshotter", plane, socket, logs, flags, through, leader_election=leader_election)


def snapshot_controller(plane: ControlPlane, logs: Path, *, retry_start: str = "500ms", retry_max: str = "2s") -> Process:
    """Return the cluster's half of external-snapshotter: it belongs to no driver, so it has no rules of ours and acts as the admin.

    The snapshot kinds must be installed.
    """
    flags = [f"--retry-interval-start={retry_start}", f"--retry-interval-max={retry_max}"]
    return _started_with("snapshot-controller", logs, plane.kubeconfig, flags)


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
    name: str,
    plane: ControlPlane,
    socket: Path,
    logs: Path,
    flags: list[str],
    through: Gateway | None,
    *,
    leader_election: bool,
    env: Mapping[str, str] | None = None,
) -> Process:
    flags = [f"--csi-address={socket}", *flags]
    if leader_election:
        flags += ["--leader-election", f"--leader-election-namespace={NAMESPACE}"]
    return _started_with(name, logs, plane.kubeconfig_for(NAMESPACE, name, through=through), flags, env)


def _started_with(name: str, logs: Path, kubeconfig: Path, flags: Iterable[str], env: Mapping[str, str] | None = None) -> Process:
    port = free_port()
    argv = [
        str(ensure([name])[name]),
        f"--kubeconfig={kubeconfig}",
        f"--http-endpoint={LOOPBACK}:{port}",
        # The default of 5 requests per second would be what tests measure.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--v=4",
        *flags,
    ]
    # The endpoint listens before the driver is asked; a sidecar that has met the driver serves its metrics with the driver's name.
    return Process(name, argv, logs / f"{name}-{port}.log", env=env, ready=lambda: answers(f"http://{LOOPBACK}:{port}/metrics"))
