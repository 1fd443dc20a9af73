"""StorageClass parameters, and the volume context that follows from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rds_csi.capabilities import check_fs_type
from rds_csi.contexts import CTRL_LOSS_TMO, INTEGER, KEEP_ALIVE_TMO, MAX_KERNEL_SECONDS, RECONNECT_DELAY
from rds_csi.errors import InvalidArgument, NameRefused
from rds_csi.routeros.commands import FilePath
from rds_csi.routeros.errors import InvalidName
from rds_csi.routeros.options import check_base_path
from rds_records.names import check_ip_address, is_dns_name
from rds_records.record import DualAttachPolicy, ObjectReference

MIN_MIGRATION_TIMEOUT: Final = 30
MAX_MIGRATION_TIMEOUT: Final = 86_400
MAX_NAMESPACE: Final = 63
_EXTRA = "csi.storage.k8s.io/"
_PV_NAME: Final = _EXTRA + "pv/name"
_PVC_NAME: Final = _EXTRA + "pvc/name"
_PVC_NAMESPACE: Final = _EXTRA + "pvc/namespace"
_EXTRA_FS_TYPE: Final = _EXTRA + "fstype"

IGNORED: Final = ("nqnPrefix", "sshPort")
"""In the Go driver's README, and never read by it: taken without effect, so that StorageClasses made from it go on working."""

ALLOWED: Final = (
    "rdsAddress",
    "nvmeAddress",
    "nvmePort",
    "volumePath",
    "ctrlLossTmo",
    "reconnectDelay",
    "keepAliveTmo",
    "migrationTimeoutSeconds",
    "dualAttachPolicy",
    "fsType",
)
MUTABLE: Final = ("migrationTimeoutSeconds",)
"""What a VolumeAttributesClass may set."""

_EXTRAS: Final = (_PV_NAME, _PVC_NAME, _PVC_NAMESPACE, _EXTRA_FS_TYPE)


@dataclass(frozen=True, slots=True)
class VolumeParameters:
    """What a StorageClass says about a volume; None and empty where it says nothing."""

    volume_path: str
    """Directory of the backing file on the box."""

    rds_address: str | None = None
    nvme_address: str | None = None
    """Where nodes connect; an ``rdsAddress`` that is an IP address stands in for it, as in the Go driver."""

    nvme_port: int | None = None
    ctrl_loss_tmo: int = CTRL_LOSS_TMO
    """Seconds; -1 means that the kernel never gives the controller up."""

    reconnect_delay: int = RECONNECT_DELAY
    keep_alive_tmo: int = KEEP_ALIVE_TMO
    migration_timeout_seconds: int | None = None
    dual_attach_policy: DualAttachPolicy = DualAttachPolicy.KUBEVIRT
    fs_type: str = ""
    persistent_volume_name: str | None = None
    claim: ObjectReference | None = None
    """Without uid: csi-provisioner tells none."""

    ignored: tuple[str, ...] = ()
    """Parameters that were given and have no effect; worth a warning."""


def parse_parameters(parameters: Mapping[str, str], *, base_path: str) -> VolumeParameters:
    """Return a StorageClass's parameters, validated; ``volumePath`` must be ``base_path`` or lie under it.

    Raises InvalidArgument that names the parameter and what is allowed, also for one that is unknown.
    """
    unknown = sorted(set(parameters) - set(ALLOWED) - set(IGNORED) - set(_EXTRAS))
    if unknown:
        raise InvalidArgument(f"StorageClass parameter {unknown[0][:60]!r} is unknown; allowed are {', '.join(ALLOWED)}")
    fs_types = {parameters[key] for key in ("fsType", _EXTRA_FS_TYPE) if parameters.get(key)}
    if len(fs_types) > 1:
        raise InvalidArgument(f"StorageClass parameters fsType and {_EXTRA_FS_TYPE} differ; name one of them")
    rds_address = _rds_address(parameters.get("rdsAddress", ""))
    return VolumeParameters(
        volume_path=_volume_path(parameters.get("volumePath", ""), base_path),
        rds_address=rds_address,
        nvme_address=_ip_address("nvmeAddress", parameters.get("nvmeAddress", "")) or _plain_ip(rds_address),
        nvme_port=_integer(parameters, "nvmePort", 1, 65_535),
        ctrl_loss_tmo=_or(_integer(parameters, "ctrlLossTmo", -1, MAX_KERNEL_SECONDS), CTRL_LOSS_TMO),
        reconnect_delay=_or(_integer(parameters, "reconnectDelay", 1, MAX_KERNEL_SECONDS), RECONNECT_DELAY),
        keep_alive_tmo=_or(_integer(parameters, "keepAliveTmo", 0, MAX_KERNEL_SECONDS), KEEP_ALIVE_TMO),
        migration_timeout_seconds=_integer(parameters, "migrationTimeoutSeconds", MIN_MIGRATION_TIMEOUT, MAX_MIGRATION_TIMEOUT),
        dual_attach_policy=_policy(parameters.get("dualAttachPolicy", "")),
        fs_type=check_fs_type(next(iter(fs_types), "")),
        persistent_volume_name=_object_name(parameters, _PV_NAME),
        claim=_claim(parameters),
        ignored=tuple(key for key in IGNORED if key in parameters),
    )


def parse_mutable_parameters(parameters: Mapping[str, str]) -> int | None:
    """Return the migration timeout (seconds) that a VolumeAttributesClass sets; None where it sets none.

    Raises InvalidArgument for anything else: whoever may edit a claim may name any VolumeAttributesClass.
    """
    if "dualAttachPolicy" in parameters:
        raise InvalidArgument(
            "VolumeAttributesClass parameter dualAttachPolicy: only a StorageClass or an edit of the record sets it; "
            "else whoever may edit a claim could let a second node in without a live migration"
        )
    unknown = sorted(set(parameters) - set(MUTABLE))
    if unknown:
        raise InvalidArgument(f"VolumeAttributesClass parameter {unknown[0][:60]!r} is unknown; allowed is {', '.join(MUTABLE)}")
    return _integer(
        parameters, "migrationTimeoutSeconds", MIN_MIGRATION_TIMEOUT, MAX_MIGRATION_TIMEOUT, kind="VolumeAttributesClass"
    )


def _volume_path(path: str, base_path: str) -> str:
    if not path:
        return base_path
    allowed = f"allowed is {base_path} or a directory under it, of letters, digits and _.-"
    try:
        directory = FilePath(check_base_path(path))
    except (InvalidName, ValueError) as error:
        raise NameRefused(f"StorageClass parameter volumePath {path[:60]!r}: {allowed}") from error
    if directory != base_path and not directory.is_below(FilePath(base_path)):
        raise NameRefused(f"StorageClass parameter volumePath {path[:60]!r}: {allowed}")
    return str(directory)


def _rds_address(address: str) -> str | None:
    if not address or is_dns_name(address):
        return address or None
    return _ip_address("rdsAddress", address, "an IP address or a DNS name")


def _plain_ip(address: str | None) -> str | None:
    try:
        return address and check_ip_address(address)
    except ValueError:
        return None


def _ip_address(name: str, address: str, allowed: str = "an IPv4 or IPv6 address") -> str | None:
    if not address:
        return None
    try:
        return check_ip_address(address)
    except ValueError as error:
        raise InvalidArgument(f"StorageClass parameter {name} {address[:60]!r}: allowed is {allowed}") from error


def _integer(parameters: Mapping[str, str], name: str, least: int, most: int, *, kind: str = "StorageClass") -> int | None:
    text = parameters.get(name, "")
    if not text:
        return None
    value = int(text) if INTEGER.fullmatch(text) else None
    if value is None or not least <= value <= most:
        raise InvalidArgument(f"{kind} parameter {name} {text[:60]!r}: allowed is a whole number from {least} to {most}")
    return value


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _policy(text: str) -> DualAttachPolicy:
    if not text:
        return DualAttachPolicy.KUBEVIRT
    try:
        return DualAttachPolicy(text)
    except ValueError as error:
        raise InvalidArgument(
            f"StorageClass parameter dualAttachPolicy {text[:60]!r}: allowed are {', '.join(DualAttachPolicy)}"
        ) from error


def _object_name(parameters: Mapping[str, str], key: str) -> str | None:
    name = parameters.get(key, "")
    if name and not is_dns_name(name):
        raise NameRefused(f"parameter {key} {name[:60]!r} is not the name of a Kubernetes object")
    return name or None


def _claim(parameters: Mapping[str, str]) -> ObjectReference | None:
    namespace, name = _object_name(parameters, _PVC_NAMESPACE), _object_name(parameters, _PVC_NAME)
    if namespace and ("." in namespace or len(namespace) > MAX_NAMESPACE):
        raise NameRefused(f"parameter {_PVC_NAMESPACE} {namespace[:60]!r} is not the name of a namespace")
    return ObjectReference(namespace=namespace, name=name) if namespace and name else None


def volume_context(
    parameters: VolumeParameters, *, nqn: str, file_path: str, rds_address: str, nvme_address: str, nvme_port: int
) -> dict[str, str]:
    """Return the volume context: the Go driver's nine keys, so that either driver can serve the volume.

    The addresses and the port are today's, for where the StorageClass names none. ``migrationTimeoutSeconds`` is left out where
    nobody chose one. ``dualAttachPolicy`` is a tenth key, only where it is not the default: it lets a lost record be made up from
    the PersistentVolume.
    """
    context = {
        "rdsAddress": parameters.rds_address or rds_address,
        "nvmeAddress": parameters.nvme_address or nvme_address,
        "nvmePort": str(parameters.nvme_port or nvme_port),
        "nqn": nqn,
        "volumePath": file_path,
        "ctrlLossTmo": str(parameters.ctrl_loss_tmo),
        "reconnectDelay": str(parameters.reconnect_delay),
        "keepAliveTmo": str(parameters.keep_alive_tmo),
    }
    if parameters.migration_timeout_seconds is not None:
        context["migrationTimeoutSeconds"] = str(parameters.migration_timeout_seconds)
    if parameters.dual_attach_policy is not DualAttachPolicy.KUBEVIRT:
        context["dualAttachPolicy"] = str(parameters.dual_attach_policy)
    return context
