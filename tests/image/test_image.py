"""The image, built from this checkout on a Debian made here: what is in it, what is not, and that it runs as it will be run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from rds_csi.node import filesystems
from rds_process.version import commit
from tests.image.building import BILL, Image, built
from tests.image.confined import confined, lend, run
from tests.image.tools import TOOLS
from tests.ring.driver import Operator, Shim
from tests.ring.processes import Process
from tests.ring.stack import Stack, reach
from tests.unit.test_repository import PRIVATE_KEY

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MIB = 1 << 20
UNPACKED_LIMIT = 340 * MIB
ARCHIVE_LIMIT = 110 * MIB
PROGRAMS = ("rds-csi", "rds-operator", "kubectl-rds")
NOT_THERE = ("gcc", "cc", "c++", "ld", "as", "make", "pip", "pip3", "git", "curl", "wget", "ssh", "uv", "gpg")
FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/rds-csi/bin")


@pytest.fixture(scope="session")
def image() -> Image:
    return built()


def files(image: Image) -> Iterator[Path]:
    """Yield every regular file once, however many names it has."""
    seen = set()
    for folder, _, names in os.walk(image.root):
        for path in (Path(folder, name) for name in names):
            status = path.lstat()
            if path.is_file() and not path.is_symlink() and status.st_ino not in seen:
                seen.add(status.st_ino)
                yield path


def installed_by_dpkg(image: Image) -> set[str]:
    """Return NAME VERSION of every Debian package, from dpkg's own record."""
    status = (image.root / "var/lib/dpkg/status").read_text()
    found = set()
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found.add(f"{fields['Package']} {fields['Version']}")
    return found


def installed_in_python(image: Image) -> set[str]:
    """Return NAME VERSION of every Python distribution, from the names of its folders."""
    folders = image.root.glob("opt/rds-csi/lib/python3*/site-packages/*.dist-info")
    return {re.sub(r"[-_.]+", "-", name).lower() + f" {number}" for name, _, number in (f.stem.rpartition("-") for f in folders)}


def test_it_is_small(image: Image, record_property: Callable[[str, object], None]) -> None:
    unpacked = sum(path.stat().st_size for path in files(image))
    packed = image.archive.stat().st_size
    record_property("summary", f"image: {unpacked / MIB:.0f} MiB unpacked, {packed / MIB:.0f} MiB as an archive")
    assert unpacked < UNPACKED_LIMIT, f"{unpacked / MIB:.0f} MiB"
    assert packed < ARCHIVE_LIMIT, f"{packed / MIB:.0f} MiB"


def test_it_runs_as_nobody_in_particular_and_starts_the_driver(image: Image) -> None:
    owner = image.config["User"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", owner), "runAsNonRoot needs a number"
    assert image.config["Entrypoint"] == ["rds-csi"]
    assert run(image, *image.config["Entrypoint"], *image.config["Cmd"]).stdout.startswith("usage: rds-csi")
    assert image.config["Labels"]["org.opencontainers.image.revision"] == commit()
    # Whoever it runs as changes nothing in it.
    uid = int(owner.partition(":")[0])
    assert [path for path in files(image) if path.stat().st_uid == uid] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_runs_on_a_read_only_root_and_tells_version_and_commit(image: Image, program: str) -> None:
    assert run(image, program, "--version").stdout == f"{program} {version('rds-csi')} (commit {commit()})\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_user_that_the_image_does_not_know_will_do(image: Image, program: str) -> None:
    assert run(image, program, "--help", user="4711:4711").stdout.startswith("usage: ")


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_of_the_node_is_there_and_runs(image: Image, tool: str) -> None:
    done = run(image, tool, *filter(None, [TOOLS[tool]]), user="0:0", check=False)
    assert re.search(r"\d+\.\d+", done.stdout + done.stderr), done
    assert done.returncode == (0 if TOOLS[tool] else 1)


@pytest.mark.parametrize("kind", ["ext3", "ext4", "xfs"])
def test_its_tools_make_and_find_file_systems(image: Image, tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    run(image, *filesystems.make(kind, str(disk)).words, user="0:0", folder=tmp_path)
    assert f"TYPE={kind}" in run(image, "blkid", "-p", "-o", "export", disk, user="0:0", folder=tmp_path).stdout


def test_the_bill_of_materials_names_all_that_is_installed(image: Image) -> None:
    assert (image.bill["bomFormat"], image.bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {part["purl"]: f"{part['name']} {part['version']}" for part in image.bill["components"] if "purl" in part}
    debian = {text for purl, text in listed.items() if purl.startswith("pkg:deb/debian/")}
    python = {purl.removeprefix("pkg:pypi/").replace("@", " ") for purl in listed if purl.startswith("pkg:pypi/")}
    assert debian == installed_by_dpkg(image)
    assert python == installed_in_python(image)
    assert {f"rds-csi {version('rds-csi')}", *(f"{name} {version(name)}" for name in ("kopf", "grpcio", "paramiko"))} <= python
    assert {"nvme-cli", "xfsprogs", "e2fsprogs", "util-linux"} <= {text.partition(" ")[0] for text in debian}
    told = {one["name"]: one["value"] for one in image.bill["metadata"]["component"]["properties"]}
    assert told == {"rds-csi:commit": commit()}


def test_every_part_of_the_bill_is_in_the_image_for_the_image(image: Image) -> None:
    parts = {part["bom-ref"] for part in image.bill["components"]}
    (needed,) = (entry["dependsOn"] for entry in image.bill["dependencies"] if entry["ref"] == "image")
    assert set(needed) == parts
    # As a file it is world-readable: a scanner needs no rights.
    assert (image.root / BILL).stat().st_mode & 0o777 == 0o644


def test_nothing_is_in_it_that_only_the_build_needs(image: Image) -> None:
    assert [name for folder in FOLDERS for name in NOT_THERE if (image.root / folder / name).exists()] == []
    names = {text.partition(" ")[0] for text in installed_in_python(image)}
    assert names & {"pip", "setuptools", "wheel", "hatchling", "cyclonedx-python-lib", "pytest"} == set()
    for leftover in ("build", "root/.cache", "etc/pip.conf", "mnt/pip.conf", "mnt/authorities.pem"):
        assert not (image.root / leftover).exists(), leftover
    for folder in ("var/lib/apt/lists", "var/cache/apt", "tmp", "var/log"):
        assert list((image.root / folder).rglob("*")) == [], folder


def test_neither_keys_nor_an_identity_nor_the_way_to_an_index_are_in_it(image: Image) -> None:
    # Libraries have keys compiled in that they test themselves with; a key that somebody could use is text.
    suspects = [path for path in files(image) if b"PRIVATE KEY-----" in (data := path.read_bytes()) and b"\0" not in data]
    assert [path for path in suspects if PRIVATE_KEY.search(path.read_text(errors="replace"))] == []
    assert not any((image.root / "etc/nvme" / name).exists() for name in ("hostid", "hostnqn"))
    machine = image.root / "etc/machine-id"
    assert not machine.exists() or machine.read_text().strip() in {"", "uninitialized"}
    addresses = {
        address
        for file in Path("/etc/apt/sources.list.d").glob("*.sources")
        for address in re.findall(r"^URIs: (\S+)", file.read_text(), re.MULTILINE)
    }
    told = [path for path in files(image) if path.is_relative_to(image.root / "etc")]
    assert [path for path in told if any(address.encode() in path.read_bytes() for address in addresses)] == []


def test_no_file_in_it_gives_rights(image: Image) -> None:
    assert [path for path in files(image) if path.stat().st_mode & 0o6000] == []


def test_python_needs_to_compile_nothing_at_each_start(image: Image) -> None:
    (folder,) = image.root.glob("opt/rds-csi/lib/python3*/site-packages")
    (cached,) = (folder / "rds_csi" / "__pycache__").glob("cli.*.pyc")
    # unchecked-hash (PEP 552): valid whatever the time of the source is.
    assert int.from_bytes(cached.read_bytes()[4:8], "little") == 1


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("image-ring")) as stack:
        yield stack


def ready_in_the_image(image: Image, process: Process, folder: Path) -> None:
    """Let a process of the ring be the image's, and see that it gets ready; what it does then is asked elsewhere."""
    process.argv = confined(
        image, [Path(process.argv[0]).name, *lend(process.argv[1:], folder, image.config["User"])], folder=folder
    )
    with process:
        assert process.running
        owner = Path(f"/proc/{process.pid}").stat().st_uid
        assert (owner, Path(f"/proc/{process.pid}/root").readlink()) == (int(image.config["User"].partition(":")[0]), image.root)


def test_the_controller_gets_ready_without_rights_on_a_read_only_root(image: Image, stack: Stack, tmp_path: Path) -> None:
    shim = Shim(stack.plane, tmp_path / "shim", reach(stack.box()))
    ready_in_the_image(image, shim, shim.socket.parent)


def test_the_operator_gets_ready_without_rights_on_a_read_only_root(image: Image, stack: Stack, tmp_path: Path) -> None:
    ready_in_the_image(image, Operator(stack.plane, tmp_path / "operator"), tmp_path / "operator")


def test_the_file_beside_the_image_is_the_one_in_it(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.image import building

    monkeypatch.setattr("sys.argv", ["image", "--output", str(tmp_path)])
    building.main()
    assert json.loads((tmp_path / f"rds-csi-{version('rds-csi')}.cdx.json").read_text()) == image.bill
