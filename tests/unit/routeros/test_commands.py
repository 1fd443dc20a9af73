"""What may reach a RouterOS command line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rds_csi.routeros import DiskSpec, FilePath, InvalidName, Nqn, Slot, commands
from rds_csi.routeros.commands import file_size
from tests.simulator.language import Command, Pair, Word, read_line

HANDLE = "pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f"
PATH = FilePath(f"/storage-pool/metal-csi/{HANDLE}.img")
SPEC = DiskSpec(Slot(HANDLE), PATH, 50 << 30, Nqn(f"nqn.2000-02.com.mikrotik:{HANDLE}"))


def test_the_command_lines_are_these() -> None:
    assert commands.add_disk(SPEC) == (
        f"/disk add type=file file-path=/storage-pool/metal-csi/{HANDLE}.img file-size=50G slot={HANDLE}"
        " mount-filesystem=no mount-read-only=no compress=no"
        f" nvme-tcp-export=yes nvme-tcp-server-port=4420 nvme-tcp-server-nqn=nqn.2000-02.com.mikrotik:{HANDLE}"
    )
    assert commands.remove_disk(SPEC.slot) == f"/disk remove [find slot={HANDLE}]"
    assert commands.remove_file(PATH) == f'/file remove [find name="storage-pool/metal-csi/{HANDLE}.img"]'
    assert commands.print_disk(SPEC.slot) == f"/disk print detail where slot={HANDLE}; :put [:len [/disk find where slot={HANDLE}]]"
    assert commands.print_mount("storage-pool").startswith('/disk print detail where mount-point="storage-pool"; ')


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 30, "1G"), (1536 << 30, "1536G"), (1 << 40, "1T"), (1025 << 20, "1025M"), (16 << 40, "16T"), (3 << 10, "3K")],
)
def test_sizes_are_written_in_the_largest_unit_that_divides_them(size: int, text: str) -> None:
    assert file_size(size) == text


@settings(deadline=None)
@given(st.integers(1, 1 << 35))
def test_written_sizes_are_exact(kib: int) -> None:
    text = file_size(kib << 10)
    assert int(text[:-1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[text[-1]] == kib << 10


@pytest.mark.parametrize("size", [0, -1, 1, 1023, (1 << 30) + 1])
def test_sizes_that_no_unit_divides_are_refused(size: int) -> None:
    with pytest.raises(InvalidName):
        file_size(size)


MEANINGFUL = [*";[]{}()$\"'\\#~=*?!&|<>`, \n\r\t\0ä·"]


@pytest.mark.parametrize("sign", MEANINGFUL)
@pytest.mark.parametrize("place", ["{}a", "a{}b", "a{}"])
def test_no_sign_that_means_something_to_routeros_gets_into_a_value(sign: str, place: str) -> None:
    text = place.format(sign)
    makers: list[Callable[[], str]] = [
        lambda: Slot(text),
        lambda: FilePath(f"/pool/{text}"),
        lambda: FilePath(f"/{text}/x"),
        lambda: Nqn(f"nqn.2000-02.com.mikrotik:{text}"),
        lambda: commands.print_mount(text),
    ]
    for make in makers:
        with pytest.raises(InvalidName):
            make()


@pytest.mark.parametrize(
    "path",
    ["", "/", "a", "a/b", "//a", "/a//b", "/a/", "/a/../b", "/a/./b", "/..", "/a/..", "/a b", "/" + "a" * 512, "/a\n"],
)
def test_paths_are_absolute_and_normalised(path: str) -> None:
    with pytest.raises(InvalidName):
        FilePath(path)


@pytest.mark.parametrize("slot", ["", "-a", "a" * 129, "a_b", "a.b", "a/b", "a\n"])
def test_slots_are_letters_digits_and_hyphens(slot: str) -> None:
    with pytest.raises(InvalidName):
        Slot(slot)


@pytest.mark.parametrize(
    "nqn", ["", "nqn", "nqn.2000-02.com.mikrotik:", "nqn.2000-02.com.mikrotik:PVC", "nqn.2000-2.a:b", "nqn.2000-02.a:" + "b" * 210]
)
def test_nqns_are_of_the_form_of_the_nvme_specification(nqn: str) -> None:
    with pytest.raises(InvalidName):
        Nqn(nqn)


def test_an_nqn_may_have_223_bytes() -> None:
    assert len(Nqn("nqn.2000-02.a:" + "b" * 209)) == 223


def test_below_means_whole_components() -> None:
    base = FilePath("/storage-pool/metal-csi")
    assert FilePath("/storage-pool/metal-csi/x.img").is_below(base)
    assert not FilePath("/storage-pool/metal-csi-evil/x.img").is_below(base)
    assert not base.is_below(base)
    with pytest.raises(InvalidName):
        base.child("../x")
    with pytest.raises(InvalidName):
        base.child("..")


@pytest.mark.parametrize("changes", [{"port": 0}, {"port": 65536}, {"size": 0}, {"size": 1000}, {"path": FilePath("/pool")}])
def test_a_specification_is_checked(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidName):
        DiskSpec(**{"slot": SPEC.slot, "path": PATH, "size": 1 << 30, "nqn": SPEC.nqn} | changes)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"[A-Za-z0-9/._:;\[\]\" -]{0,40}", fullmatch=True))
def test_whatever_is_accepted_stays_one_value_of_one_command(text: str) -> None:
    made: list[str] = []
    makers: list[Callable[[], str]] = [
        lambda: commands.remove_disk(Slot(text)),
        lambda: commands.remove_file(FilePath(text)),
        lambda: commands.print_mount(text).split(";")[0],
        lambda: commands.add_disk(DiskSpec(Slot(text), PATH, 1 << 30, SPEC.nqn)),
        lambda: commands.add_disk(DiskSpec(SPEC.slot, FilePath(text), 1 << 30, SPEC.nqn)),
    ]
    for make in makers:
        try:
            made.append(make())
        except InvalidName:
            continue
    for line in made:
        (command,) = read_line(line)
        values = {item.value for item in flat(command) if isinstance(item, Pair)}
        assert text in values or text.lstrip("/") in values
        assert re.fullmatch(r"[A-Za-z0-9/._:\[\]\"= -]+", line)


def flat(command: Command) -> list[Word | Pair]:
    """Every word and pair of a command and of its substitutions."""
    items: list[Word | Pair] = []
    for item in command.items:
        items += flat(item) if isinstance(item, Command) else [item]
    return items
