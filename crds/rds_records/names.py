"""Names that follow from a volume handle: record, slot, NQN, backing file, VolumeAttachment."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import uuid
from enum import StrEnum
from typing import Final

API_GROUP: Final = "rds.csi.srvlab.io"
API_VERSION: Final = "v1alpha1"
KIND: Final = "VolumeAttachmentRecord"
PLURAL: Final = "volumeattachmentrecords"
DRIVER_NAME: Final = "rds.csi.srvlab.io"
FINALIZER: Final = "rds.csi.srvlab.io/protect"
NQN_PREFIX: Final = "nqn.2000-02.com.mikrotik:"
MAX_HANDLE_LENGTH: Final = 128
"""Bytes of a volume id (CSI spec, "Size Limits")."""

_HANDLE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,126}[A-Za-z0-9])?")
_PVC_UUID = re.compile(r"pvc-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DNS_1123_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_UUID_NAMESPACE: Final = uuid.NAMESPACE_DNS


class SlotNames(StrEnum):
    """How a volume's slot on the box is called (``--slot-names``)."""

    HANDLE = "handle"
    """The handle itself, as the Go driver does: either driver finds the other's volumes."""

    SHORT = "short"
    """``pvc-`` and 28 hex digits, for a box that keeps only 32 characters of a slot."""


def check_handle(handle: str) -> str:
    """Return the volume handle unchanged, or raise ValueError where it is none that this driver can have given out."""
    if not is_handle(handle):
        raise ValueError(f"volume id {handle[:140]!r} is not valid: 1 to {MAX_HANDLE_LENGTH} letters, digits and inner hyphens")
    return handle


def is_handle(text: str) -> bool:
    """Tell whether this driver can have given out this volume handle."""
    return _HANDLE.fullmatch(text) is not None


def check_node_name(node: str) -> str:
    """Return the Node name unchanged, or raise ValueError where Kubernetes admits no Node of that name."""
    if not is_dns_name(node):
        raise ValueError(
            f"node id {node[:260]!r} is not the name of a Kubernetes Node (a lower-case DNS name, at most 253 characters)"
        )
    return node


def check_ip_address(address: str) -> str:
    """Return the address unchanged, or raise ValueError where it is neither an IPv4 nor an IPv6 address."""
    if not address.isascii() or "%" in address:
        raise ValueError(f"{address[:60]!r} is no plain IP address")
    ipaddress.ip_address(address)
    return address


def is_dns_name(name: str) -> bool:
    """Tell whether the name is a DNS-1123 subdomain, as the names of most Kubernetes objects must be."""
    return _DNS_1123_SUBDOMAIN.fullmatch(name) is not None


def handle_for(csi_name: str) -> str:
    """Return the handle of a new volume: the CSI name where it is ``pvc-<uuid>``, else ``pvc-`` and the UUIDv5 of it."""
    if _PVC_UUID.fullmatch(csi_name):
        return csi_name
    return f"pvc-{uuid.uuid5(_UUID_NAMESPACE, csi_name)}"


def record_name(handle: str) -> str:
    """Return the name of the volume's record: the handle, or ``var-`` and 40 hex digits where that is no DNS name."""
    if is_dns_name(handle):
        return handle
    return f"var-{hashlib.sha256(handle.encode()).hexdigest()[:40]}"


def slot_for(handle: str, names: SlotNames = SlotNames.HANDLE) -> str:
    """Return the slot of the volume on the box."""
    if names is SlotNames.HANDLE:
        return handle
    digits = (
        handle.removeprefix("pvc-").replace("-", "") if _PVC_UUID.fullmatch(handle) else hashlib.sha256(handle.encode()).hexdigest()
    )
    return f"pvc-{digits[:28]}"


def nqn_for(handle: str) -> str:
    """Return the NVMe qualified name under which the box serves the volume."""
    return f"{NQN_PREFIX}{handle.lower()}"


def file_path_for(base_path: str, slot: str) -> str:
    """Return the path of the backing file on the box."""
    return f"{base_path.rstrip('/')}/{slot}.img"


def volume_attachment_name(handle: str, node: str, driver: str = DRIVER_NAME) -> str:
    """Return the name of the VolumeAttachment for the volume on the node.

    The attach/detach controller derives it so (kubernetes, pkg/volume/csi/csi_attacher.go, ``getAttachmentName``).
    """
    return f"csi-{hashlib.sha256(f'{handle}{driver}{node}'.encode()).hexdigest()}"


def unique_volume_name(handle: str, driver: str = DRIVER_NAME) -> str:
    """Return the name under which a Node's ``volumesInUse`` and ``volumesAttached`` have the volume.

    Source: kubernetes, pkg/volume/csi/csi_plugin.go, ``GetVolumeName``, and pkg/volume/util, ``GetUniqueVolumeName``.
    """
    return f"kubernetes.io/csi/{driver}^{handle}"


def attacher_finalizer(driver: str = DRIVER_NAME) -> str:
    """Return the finalizer that csi-attacher puts on a VolumeAttachment before it publishes.

    Source: external-attacher, pkg/attacher/util.go, ``GetFinalizerName``.
    """
    return f"external-attacher/{re.sub(r'[^a-zA-Z0-9-]', '-', driver)}"


def host_id_for(node: str) -> str:
    """Return the NVMe host identifier of a node: the UUIDv5 of its name, so that every process knows it without asking."""
    return str(uuid.uuid5(uuid.uuid5(_UUID_NAMESPACE, DRIVER_NAME), check_node_name(node)))


def host_nqn_for(node: str) -> str:
    """Return the host NQN of a node, in the UUID form (NVM Express Base Specification, "NVMe Qualified Names").

    It goes with ``host_id_for``: Linux refuses one host id under two host NQNs (linux, drivers/nvme/host/fabrics.c).
    """
    return f"nqn.2014-08.org.nvmexpress:uuid:{host_id_for(node)}"
