"""The container images of the guests, made from the host's busybox: no registry, no docker (OCI image layout, image-spec 1.0)."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tests.vm.kernel import BUSYBOX

IMAGE = "localhost/busybox:1"
"""Every applet of busybox. ``/lib`` and ``/lib64`` lead into ``/usr``, where a pod may mount the node's."""

PAUSE = "localhost/pause:1"
"""What holds a pod's namespaces."""

FOLDERS = ("bin", "data", "dev", "etc", "proc", "root", "run", "sys", "usr", "var")
FOREVER = "2000000000"


def write_images(path: Path) -> None:
    """Write a tar of both images, as ``ctr images import`` takes it."""
    blobs: dict[str, bytes] = {}

    def add(blob: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(blob).hexdigest()
        blobs[digest] = blob
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(blob)}

    layer = add(_layer(), "layer.v1.tar")
    manifests = []
    for name, config in ((IMAGE, {"Cmd": ["/bin/sh"]}), (PAUSE, {"Entrypoint": ["/bin/busybox", "sleep", FOREVER]})):
        image = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            "history": [{"created_by": name}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": add(_json(image), "config.v1+json"),
            "layers": [layer],
        }
        annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
        platform = {"architecture": "amd64", "os": "linux"}
        manifests.append({**add(_json(manifest), "manifest.v1+json"), "platform": platform, "annotations": annotations})
    with tarfile.open(path, "w") as tar:
        _file(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}), 0o644)
        _file(tar, "index.json", _json({"schemaVersion": 2, "manifests": manifests}), 0o644)
        for digest, blob in blobs.items():
            _file(tar, f"blobs/sha256/{digest}", blob, 0o644)


def _layer() -> bytes:
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in (*FOLDERS, "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        _file(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        _file(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        links = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
        for name, to in (links | {"lib": "usr/lib", "lib64": "usr/lib64"}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            tar.addfile(entry)
    return file.getvalue()


def _file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
