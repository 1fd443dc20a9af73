"""Which volumes the kubelet has on this node, read from the files that it keeps of them under its root directory.

Source: kubernetes, pkg/volume/csi (csi_attacher.go, csi_block.go, csi_mounter.go): ``vol_data.json`` is written before the first
call for a volume and removed after the last one, so what is in none of them is neither staged, nor published, nor about to be.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PLUGIN: Final = Path("plugins/kubernetes.io/csi")
DATA: Final = "vol_data.json"
BLOCK: Final = "volumeDevices"

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


class KubeletUnreadable(Exception):
    """The kubelet's files cannot be read or understood: nothing is known, least of all that a volume is not used."""


def kubelet_volumes(root: Path, driver: str) -> frozenset[str]:
    """Return the handles of the driver's volumes that are staged or published here, or about to be.

    Raises KubeletUnreadable, also where the directory is not there: the kubelet makes it with its first CSI volume, so this is
    not its root directory. Blocks: run it in a thread.
    """
    plugin = root / PLUGIN
    if not plugin.is_dir():
        raise KubeletUnreadable(f"{plugin} is not there: --kubelet-root-dir must be the kubelet's --root-dir")
    # Published before staged: a volume that is being taken away is in the second where it is no more in the first.
    files = [
        *_entries(root, "pods/*/volumes/kubernetes.io~csi/*"),
        *_entries(plugin, f"{driver}/*"),
        *_entries(plugin, "pv/*"),
        *_entries(plugin, f"{BLOCK}/*/data"),
    ]
    handles = frozenset(handle for directory in files if (handle := _handle(directory / DATA, driver)))
    for published in _entries(plugin, f"{BLOCK}/publish/*"):
        if _is_filled(published) and not (plugin / BLOCK / published.name / "data" / DATA).exists():
            raise KubeletUnreadable(f"{published} holds a device and nothing says of which volume")
    return handles


def _entries(directory: Path, pattern: str) -> Iterator[Path]:
    """Yield the paths of a pattern; unlike ``Path.glob``, what cannot be read is an error."""
    first, _, rest = pattern.partition("/")
    if first != "*":
        children: Iterator[Path] | list[Path] = [directory / first]
    else:
        try:
            children = sorted(directory.iterdir())
        except OSError as error:
            if error.errno in _GONE:
                return
            raise KubeletUnreadable(f"{directory}: {error.strerror}") from error
    for child in children:
        if rest:
            yield from _entries(child, rest)
        else:
            yield child


def _handle(file: Path, driver: str) -> str:
    """Return the handle of the driver's volume that the file is about; empty where it is about none."""
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise KubeletUnreadable(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise KubeletUnreadable(f"{file}: {error}") from error
    if not isinstance(data, dict) or not isinstance(handle := data.get("volumeHandle"), str):
        raise KubeletUnreadable(f"{file} names no volume")
    return handle if data.get("driverName", driver) == driver else ""


def _is_filled(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise KubeletUnreadable(f"{directory}: {error.strerror}") from error
