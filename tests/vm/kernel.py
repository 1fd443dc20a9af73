"""What guests boot: Debian's kernel and an initramfs, made once and kept in the cache of the ring's binaries.

The kernel package is downloaded and unpacked, never installed. Its image is unpacked too: QEMU starts the ELF inside directly, and
no XZ is decompressed by an emulated processor.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tests.ring.binaries import cache_folder, exclusive
from tests.vm.packages import require

PACKAGE = r"linux-image-6\.1\.0-[0-9]+-amd64"
"""Debian 12's plain kernel, any revision. The cloud kernel has no 9p."""

MODULES = {
    "common": ("virtio_pci", "virtio_net", "virtio_blk", "9pnet_virtio", "9p", "overlay", "crc32c_generic", "ext4"),
    "target": ("crc64_rocksoft_generic", "nvmet", "nvmet_tcp"),
    "initiator": ("crc64_rocksoft_generic", "nvme_tcp", "xfs", "loop"),
}
"""What the init script loads in which role. Nobody answers the kernel's requests for modules in the guest, so that the generic
implementations of algorithms, which it would ask for, are named."""

LEFT_OUT = frozenset({"crc32c-intel.ko", "crct10dif-pclmul.ko"})
"""They only look for processor features that emulation does not gain from."""

BOOT = Path(__file__).with_name("boot")
BUSYBOX = Path("/bin/busybox")


class NotMade(RuntimeError):
    """Kernel or initramfs cannot be made; the message has what was tried and what it said."""


@dataclass(frozen=True)
class Bootable:
    """The files that QEMU starts."""

    kernel: Path
    initramfs: Path


def bootable(console: Console | None = None, cache: Path | None = None) -> Bootable:
    """Return kernel and initramfs, making what the cache does not hold.

    Raises:
        PackagesMissing: programs are missing on this machine.
        NotMade: anything else; no network, or no such package.
    """
    require()
    return _Maker(console or Console(stderr=True), (cache or cache_folder()) / "guests").make()


class _Maker:
    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = folder

    def make(self) -> Bootable:
        kernel = self.folder / f"kernel-{_digest([PACKAGE, json.dumps(MODULES), *sorted(LEFT_OUT)])}"
        scripts = [path.read_bytes() for path in sorted(BOOT.iterdir())]
        initramfs = self.folder / f"initramfs-{_digest([kernel.name, BUSYBOX.read_bytes(), *scripts])}.gz"
        if not (kernel.exists() and initramfs.exists()):
            with exclusive(self.folder, "build", self.console):
                # We hold the lock: whatever lies here was left by a build that was killed.
                work = self.folder / "building"
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                try:
                    if not kernel.exists():
                        self._timed("kernel", lambda: self._kernel(work), kernel)
                    if not initramfs.exists():
                        self._timed("initramfs", lambda: self._initramfs(work, kernel), initramfs)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
        return Bootable(kernel / "vmlinux", initramfs)

    def _timed(self, what: str, make: Callable[[], Path], place: Path) -> None:
        started = time.monotonic()
        self.console.print(f"guests: making the {what}", soft_wrap=True)
        make().replace(place)
        self.console.print(f"guests: making the {what}: done in {time.monotonic() - started:.0f} s", soft_wrap=True)

    def _kernel(self, work: Path) -> Path:
        package = self._download(work)
        tree = work / "package"
        _run(["dpkg", "--extract", package, tree])
        (release,) = [path.name for path in (tree / "lib" / "modules").iterdir()]
        _run(["depmod", "--basedir", tree, release])
        made = work / "kernel"
        made.mkdir()
        (made / "vmlinux").write_bytes(unpacked((tree / "boot" / f"vmlinuz-{release}").read_bytes()))
        listed: set[str] = set()
        for role, names in MODULES.items():
            wanted = [path for path in _load_order(tree, release, names) if path.name not in listed | LEFT_OUT]
            for path in wanted:
                shutil.copy(path, made / path.name)
            (made / f"{role}.list").write_text("".join(f"{path.name}\n" for path in wanted))
            listed |= {path.name for path in wanted} if role == "common" else set()
        return made

    def _download(self, work: Path) -> Path:
        said = []
        # Lists may be missing, or name a revision that the archive has no more.
        for prepare in ([], ["apt-get", "update"]):
            try:
                if prepare:
                    _run(prepare)
                names = re.findall(rf"(?m)^({PACKAGE}) ", _run(["apt-cache", "search", "--names-only", f"^{PACKAGE}$"]))
                if not names:
                    said.append("no package has a name like that")
                    continue
                newest = max(names, key=lambda name: int(name.split("-")[3]))
                self.console.print(f"guests: fetching {newest} (apt-get download)", soft_wrap=True)
                _run(["apt-get", "download", newest], cwd=work)
                (file,) = work.glob("linux-image-*.deb")
            except NotMade as failure:
                said.append(str(failure))
            else:
                return file
        raise NotMade(
            f"no kernel {PACKAGE} can be downloaded; the guests need Debian 12 (bookworm), amd64, and its archive:\n"
            + "\n".join(said)
        )

    def _initramfs(self, work: Path, kernel: Path) -> Path:
        root = work / "root"
        for folder in ("bin", "boot", "modules"):
            (root / folder).mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "bin" / "busybox")
        shutil.copy(BOOT / "init", root / "init")
        for name in ("system", "control"):
            shutil.copy(BOOT / name, root / "boot" / name)
        for path in (root / "init", *(root / "boot").iterdir()):
            path.chmod(0o755)
        for path in kernel.iterdir():
            if path.suffix in {".ko", ".list"}:
                shutil.copy(path, root / "modules" / path.name)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        packed = subprocess.run(
            ["cpio", "--create", "--format=newc", "--quiet"], cwd=root, input=names.encode(), capture_output=True, check=False
        )
        if packed.returncode:
            raise NotMade(f"cpio: {packed.stderr.decode(errors='replace')}")
        made = work / "initramfs.gz"
        made.write_bytes(gzip.compress(packed.stdout, compresslevel=1))
        return made


def unpacked(image: bytes) -> bytes:
    """Return the ELF inside an x86 kernel image (Linux' x86 boot protocol: setup_sects, payload_offset, payload_length)."""
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = lzma.LZMADecompressor().decompress(image[start : start + length])
    if payload[:4] != b"\x7fELF":
        raise NotMade("there is no ELF in the kernel image")
    return payload


def _load_order(tree: Path, release: str, names: Sequence[str]) -> list[Path]:
    """Return the files of modules, each after what it depends on."""
    found: dict[Path, None] = {}
    for name in names:
        said = _run(["modprobe", "--dirname", tree, "--set-version", release, "--show-depends", name])
        found |= {Path(line.split()[1]): None for line in said.splitlines() if line.startswith("insmod ")}
    return list(found)


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMade(f"{' '.join(str(word) for word in command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]
