"""The image, built from this checkout: ``python -m tests.image.building [--base IMAGE] [--output FOLDER]`` (``./justw image``).

Without ``--base`` it is built on a Debian made here, from the packages of the archive that this machine's apt is configured for; no
container registry is asked. How the machine reaches its archives and indexes (apt's sources, pip's configuration, an authority of
its own) is lent to the build in folders of this process's, and is in no layer.

Base, layers and images are kept in the cache: the base under Debian's point release, an image under what it was made from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from rds_process.version import commit
from tests.image.packages import IMAGE
from tests.packages import PackagesMissing
from tests.ring.binaries import cache_folder, exclusive

ROOT = Path(__file__).parents[2]
CONTAINERFILE = Path("manifests/image/Containerfile")
BILL = Path("usr/share/sbom/rds-csi.cdx.json")
SUITE = "bookworm"
SOURCES = ("crds", "csi", "operator", "manifests/base", "manifests/image", "requirements")
FILES = (".dockerignore", "pyproject.toml", "README.md", "LICENSE")

OF_THE_MACHINE = frozenset({"cert", "cache-dir", "find-links", "log", "prefix", "root", "target", "user"})
"""What pip is told here that is a path of this machine's, or where it installs."""

PIP_FOLDER = "/mnt"

BASE_OPTIONS = (
    "--mode=root",
    "--variant=minbase",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    "--include=usr-is-merged",
    # As Debian's own slim images: manuals and translations stay out, licenses stay.
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-include=/usr/share/locale/locale.alias",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    # The base is nobody's: it does not know where it came from.
    "--customize-hook=rm -f $1/etc/apt/sources.list $1/etc/apt/sources.list.d/* $1/etc/apt/apt.conf.d/99mmdebstrap",
    "--customize-hook=rm -f $1/etc/resolv.conf $1/etc/hostname",
)


class BuildFailed(RuntimeError):
    """A step failed; the message has the command and what it said."""


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes:
        name: as buildah knows it.
        folder: what the cache has of it.
    """

    name: str
    folder: Path

    @property
    def root(self) -> Path:
        """Its files, unpacked."""
        return self.folder / "root"

    @property
    def archive(self) -> Path:
        """The image as an OCI archive."""
        return self.folder / "image.tar"

    @cached_property
    def config(self) -> dict[str, Any]:
        """What it says of how it is run: ``User``, ``Env``, ``Entrypoint`` … (OCI image-spec 1.0, image configuration)."""
        found: dict[str, Any] = json.loads((self.folder / "inspected.json").read_text())["OCIv1"]["config"]
        return found

    @property
    def env(self) -> dict[str, str]:
        """The environment that its programs get."""
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    @cached_property
    def bill(self) -> dict[str, Any]:
        """The bill of materials in it."""
        found: dict[str, Any] = json.loads((self.root / BILL).read_text())
        return found


def built(base: str = "", *, console: Console | None = None) -> Image:
    """Return the image of this checkout, built where the cache does not hold it.

    Raises:
        PackagesMissing: a program that builds it is not installed.
        BuildFailed: a step failed.
    """
    return Workshop(console or Console(stderr=True)).image(base)


class Workshop:
    """Builds with storage of its own in the cache, so that nothing of the machine's is seen or changed."""

    def __init__(self, console: Console) -> None:
        IMAGE.require()
        if os.geteuid() != 0:
            raise BuildFailed("the image is built as root: buildah changes the root of what it runs")
        self.console = console
        self.cache = cache_folder() / "image"

    def image(self, base: str) -> Image:
        """Return the image on a base; on the Debian made here where none is named."""
        base_name = base or self._base_name()
        folder = self.cache / f"image-{digest_of_sources(base_name)}"
        image = Image(f"localhost/rds-csi:{version('rds-csi')}", folder)
        if (folder / "inspected.json").exists():
            return image
        with exclusive(self.cache, "build", self.console), lent() as lending:
            if not (folder / "inspected.json").exists():
                if not base:
                    self._make_base(base_name, lending)
                self._build(image, base_name, lending)
        return image

    def _base_name(self) -> str:
        asked = self._run("looking up Debian's release", ["apt-cache", "policy", "base-files"])
        found = re.search(r"Candidate: ([0-9]+\.[0-9]+)(?:\+deb[0-9]+u([0-9]+))?", asked)
        if not found:
            raise BuildFailed("apt knows no base-files: run apt-get update")
        options = hashlib.sha256("\0".join((SUITE, *BASE_OPTIONS)).encode()).hexdigest()[:8]
        return f"localhost/debian:{found[1]}-{found[2] or 0}-{options}"

    def _make_base(self, name: str, lending: Lending) -> None:
        if self._buildah_knows(name):
            return
        with tempfile.TemporaryDirectory(dir=self.cache) as folder:
            archive = Path(folder) / "base.tar"
            command: list[str | Path] = [
                "mmdebstrap",
                *BASE_OPTIONS,
                f"--aptopt={lending.acquire}",
                SUITE,
                archive,
                *lending.sources,
            ]
            self._run("making a Debian base", command)
            container = self._buildah("importing it", "from", "scratch").strip()
            self._buildah("importing it", "add", "--quiet", container, archive, "/")
            self._buildah("importing it", "config", "--cmd", "/bin/bash", container)
            self._buildah("importing it", "commit", "--quiet", "--rm", container, name)

    def _build(self, image: Image, base: str, lending: Lending) -> None:
        self._buildah(
            "building the image",
            "build",
            "--layers",
            "--isolation=chroot",
            "--pull-never" if base.startswith("localhost/") else "--pull",
            *(f"--volume={host}:{inside}:ro" for host, inside in lending.volumes),
            f"--build-arg=BASE={base}",
            f"--build-arg=COMMIT={commit()}",
            f"--build-arg=PIP_CONFIG_FILE={PIP_FOLDER}/pip.conf",
            f"--tag={image.name}",
            f"--file={ROOT / CONTAINERFILE}",
            ROOT,
        )
        made = image.folder.with_suffix(".making")
        # Of a build that was killed, and of commits before.
        for left in (made, *self.cache.glob("image-*")):
            shutil.rmtree(left, ignore_errors=True)
        made.mkdir(parents=True)
        self._buildah("writing it out", "push", "--quiet", image.name, f"oci-archive:{made / 'image.tar'}:{image.name}")
        inspected = self._buildah("writing it out", "inspect", "--type=image", image.name)
        container = self._buildah("unpacking it", "from", "--pull-never", image.name).strip()
        try:
            mounted = self._buildah("unpacking it", "mount", container).strip()
            self._run("unpacking it", ["cp", "--archive", mounted, made / "root"])
        finally:
            self._buildah("unpacking it", "rm", container)
        # Last: an image with it is whole.
        (made / "inspected.json").write_text(inspected)
        made.rename(image.folder)

    def _buildah_knows(self, name: str) -> bool:
        return subprocess.run([*self._prefix, "inspect", "--type=image", name], capture_output=True, check=False).returncode == 0

    @property
    def _prefix(self) -> list[str]:
        return ["buildah", f"--root={self.cache / 'storage'}", f"--runroot={self.cache / 'run'}", "--storage-driver=overlay"]

    def _buildah(self, title: str, *words: str | Path) -> str:
        return self._run(title, [*self._prefix, *words])

    def _run(self, title: str, command: Sequence[str | Path]) -> str:
        with self.console.status(f"image: {title}"):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise BuildFailed(f"{title}: {' '.join(str(word) for word in command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout


@dataclass(frozen=True)
class Lending:
    """What a build borrows of the machine: files of apt's and pip's configuration, and where they are mounted."""

    acquire: Path
    sources: tuple[Path, ...]
    volumes: tuple[tuple[Path, str], ...]


@contextmanager
def lent() -> Iterator[Lending]:
    """Lend the machine's way to Debian's archive and to the Python index, as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="lent-") as text:
        folder = Path(text)
        apt = folder / "apt"
        for name in ("apt.conf.d", "auth.conf.d", "keyrings", "preferences.d", "sources.list.d", "trusted.gpg.d"):
            (apt / name).mkdir(parents=True)
        lists = (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*")))
        sources = [path for path in lists if path.is_file() and path.suffix in {".list", ".sources"}]
        for path in sources:
            shutil.copy(path, apt / "sources.list.d")
        for path in (*Path("/etc/apt/trusted.gpg.d").glob("*"), *Path("/etc/apt/auth.conf.d").glob("*")):
            shutil.copy(path, apt / path.parent.name)
        acquire = apt / "apt.conf.d" / "machine"
        acquire.write_text(_said(["apt-config", "dump", "Acquire"]) + 'APT::Install-Recommends "false";\n')
        pip = folder / "pip"
        pip.mkdir()
        _write_pip_configuration(pip)
        # Folders that every Debian has: a mount point that had to be made would stay in a layer.
        volumes = ((apt, "/etc/apt"), (pip, PIP_FOLDER))
        yield Lending(acquire, tuple(apt / "sources.list.d" / path.name for path in sources), volumes)


def _write_pip_configuration(folder: Path) -> None:
    """Write what lets pip in the build find what pip here finds, however it was told."""
    told = _said([sys.executable, "-m", "pip", "config", "list"])
    options = {name: value.strip("'\"") for name, value in re.findall(r"^(?:global|:env:)\.([\w-]+)=(.*)$", told, re.MULTILINE)}
    lines = [f"{name} = {value}" for name, value in options.items() if name not in OF_THE_MACHINE]
    authority = options.get("cert") or os.environ.get("SSL_CERT_FILE", "")
    if authority and Path(authority).is_file():
        shutil.copy(authority, folder / "authorities.pem")
        lines.append(f"cert = {PIP_FOLDER}/authorities.pem")
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def digest_of_sources(base: str) -> str:
    """Return a digest of everything that the image is made from."""
    digest = hashlib.sha256(f"{base}\0{commit()}".encode())
    for path in sorted(_sources()):
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode:o}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    yield from (ROOT / name for name in FILES)
    for folder in SOURCES:
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def main() -> None:
    """Build the image and put it, with its bill of materials beside it, into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", help="an image of Debian 12, fetched; else one is made here")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where the files go [default: dist/]")
    given = parser.parse_args()
    try:
        image = built(given.base)
    except (BuildFailed, PackagesMissing) as failure:
        sys.exit(f"image: {failure}")
    given.output.mkdir(parents=True, exist_ok=True)
    name = f"rds-csi-{version('rds-csi')}"
    files = {image.archive: f"{name}.oci.tar", image.root / BILL: f"{name}.cdx.json"}
    for source, target in files.items():
        shutil.copy(source, given.output / target)
    print("\n".join(str(given.output / target) for target in files.values()))


if __name__ == "__main__":
    main()
