"""Reading what RouterOS prints: captures as they were taken, and everything that the simulator can print."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rds_csi.routeros import errors, parser
from rds_csi.routeros.parser import Output
from tests.simulator import frame
from tests.simulator.console import Console
from tests.simulator.store import Disk, File, Store
from tests.simulator.switches import Switches

# A capture of RouterOS 7.16, without index and legend.
WITHOUT_INDEX = """\
type=file slot="pvc-test-123" slot-default="" parent="" fs=-
               model="/storage-pool/test.img"
               size=53 687 091 200 mount-filesystem=yes mount-read-only=no
               compress=no sector-size=512 raid-master=none
               nvme-tcp-export=yes nvme-tcp-server-port=4420
               nvme-tcp-server-nqn="nqn.2000-02.com.mikrotik:pvc-test-123"
               nvme-tcp-server-allow-host-name="" iscsi-export=no
               nfs-sharing=no smb-sharing=no media-sharing=no
               media-interface=none swap=no
               file-path=/storage-pool/test.img
               file-size=50.0GiB file-offset=0
"""

# A capture of RouterOS 7.16: continuation lines indented further than the first key, an empty line between entries.
LIST = """\
 0  type=file slot="pvc-test-1" size=53 687 091 200
               file-path=/storage-pool/test1.img file-size=50.0GiB
               nvme-tcp-export=yes nvme-tcp-server-port=4420
               nvme-tcp-server-nqn="nqn.2000-02.com.mikrotik:pvc-test-1"

 1  type=file slot="pvc-test-2" size=107 374 182 400
               file-path=/storage-pool/test2.img file-size=100.0GiB
               nvme-tcp-export=yes nvme-tcp-server-port=4420
               nvme-tcp-server-nqn="nqn.2000-02.com.mikrotik:pvc-test-2"
"""

# Captures of an RDS2216 with RouterOS 7.24, about 200 columns: a disk, and the pool it lies on.
WIDE_DISK = """\
Flags: B - BLOCK-DEVICE; t - NVME-TCP-EXPORT
31 Bt type=file slot="vm-storage-001" slot-default="" parent="" fs=- model="/raid10/vm-storage-001.img" size=1 099 511 627 776 \
mount-filesystem=no mount-read-only=no compress=no sector-size=512 raid-master=none nvme-tcp-export=yes
      nvme-tcp-server-port=4420 nvme-tcp-server-nqn="nqn.2026-09.com.mikrotik:rds2216.vm-storage-001" \
nvme-tcp-server-allow-host-name="" iscsi-export=no nfs-sharing=no smb-sharing=no media-sharing=no media-interface=none swap=no
      file-path=/raid10/vm-storage-001.img file-size=1024.0GiB file-offset=0
"""
WIDE_POOL = """\
Flags: B - BLOCK-DEVICE; M - MOUNTED; r - RAID-MEMBER
26 BM  type=raid slot="raid10" slot-default="" parent="" fs-label="ocp-storage" fs-uuid="40437dbc-2318-45dc-817b-b3bb95cf48ab" \
fs=xfs model="RAID0 striped" size=16 003 143 565 312 free=14 789 895 307 264 total-inodes=1 562 806 656
       free-inodes=1 562 806 652 use=8% mount-point="raid10" mount-filesystem=yes
       state="clean" raid-uuid="eadca0af-ecff031c-239758ad-951a47de" nvme-tcp-export=no iscsi-export=no
"""

# A capture of RouterOS 7.16, production.
FILES = """\
 0   name=storage-pool/metal-csi type=directory
     last-modified=2025-11-11 16:47:07

 1   name=storage-pool/metal-csi/pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f.img
     type=.img file size=10.0GiB last-modified=2025-11-11 14:32:41

 2   name=storage-pool/metal-csi/pvc-0f923194-922a-5dd8-b376-c2c6ccb56dd8.img
     type=.img file size=1024.0MiB last-modified=2025-11-11 16:47:07
"""


def entries(text: str, count: int | None = None) -> tuple[parser.Entry, ...]:
    """The entries of a frame, with CRLF and followed by a count."""
    counted = text if count is None else f"{text}{count}\n"
    return parser.entries(Output(counted.replace("\n", "\r\n")))


def test_a_capture_without_index_is_read() -> None:
    (disk,) = entries(WITHOUT_INDEX, 1)
    assert disk.text("slot") == "pvc-test-123"
    assert disk.number("size") == 50 << 30
    assert disk.text("file-path") == "/storage-pool/test.img"
    assert disk.text("nvme-tcp-server-nqn") == "nqn.2000-02.com.mikrotik:pvc-test-123"
    assert disk.flag("nvme-tcp-export")
    assert disk.text("slot-default") == ""
    assert len(disk.values) == 25


def test_a_capture_of_a_list_is_read() -> None:
    first, second = entries(LIST, 2)
    assert (first.text("slot"), first.number("size")) == ("pvc-test-1", 50 << 30)
    assert (second.text("slot"), second.number("size")) == ("pvc-test-2", 100 << 30)
    assert second.text("file-path") == "/storage-pool/test2.img"


def test_a_wide_capture_with_flags_is_read() -> None:
    (disk,) = entries(WIDE_DISK, 1)
    assert disk.flags == frozenset("Bt")
    assert disk.number("size") == 1 << 40
    assert disk.text("file-size") == "1024.0GiB"
    assert disk.number("nvme-tcp-server-port") == 4420


def test_a_capture_of_the_pool_is_read() -> None:
    (pool,) = entries(WIDE_POOL, 1)
    assert pool.flags == frozenset("BM")
    assert (pool.number("size"), pool.number("free")) == (16_003_143_565_312, 14_789_895_307_264)
    assert (pool.text("mount-point"), pool.text("model"), pool.text("use")) == ("raid10", "RAID0 striped", "8%")


def test_a_capture_of_files_is_read() -> None:
    directory, image, other = entries(FILES, 3)
    assert directory.text("type") == "directory"
    assert image.text("name") == "storage-pool/metal-csi/pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f.img"
    assert (image.text("type"), image.text("size")) == (".img file", "10.0GiB")
    assert other.text("last-modified") == "2025-11-11 16:47:07"


def test_the_simulator_prints_the_wide_capture_as_it_was_taken() -> None:
    store = Store(disks=[])
    store.disks = [
        Disk(
            id=number,
            slot="vm-storage-001",
            file_path="/raid10/vm-storage-001.img",
            size=1 << 40,
            nvme_tcp_export=True,
            nvme_tcp_server_nqn="nqn.2026-09.com.mikrotik:rds2216.vm-storage-001",
            mount_filesystem=False,
        )
        for number in range(31)
    ]
    row = Console(store, Switches())._disk_rows()[31]
    printed = frame.disk_answer([frame.Item(row.number, row.flags, row.printed)], width=230)
    assert printed == WIDE_DISK.replace("\n", "\r\n")


def test_the_simulator_prints_the_capture_of_files_as_it_was_taken() -> None:
    items = [
        frame.Item(0, frozenset(), ["name=storage-pool/metal-csi", "type=directory", "last-modified=2025-11-11 16:47:07"]),
        *(
            frame.Item(
                number,
                frozenset(),
                [f"name=storage-pool/metal-csi/{name}", "type=.img file", f"size={size}", f"last-modified={at}"],
            )
            for number, name, size, at in [
                (1, "pvc-ccdecfad-a8bf-572e-9120-464c4d99f12f.img", frame.rounded(10 << 30), "2025-11-11 14:32:41"),
                (2, "pvc-0f923194-922a-5dd8-b376-c2c6ccb56dd8.img", frame.rounded(1 << 30), "2025-11-11 16:47:07"),
            ]
        ),
    ]
    # The stored capture has empty separator lines; the manual's page on files shows them with one space.
    assert frame.file_answer(items, width=80).replace("\r\n \r\n", "\r\n\r\n") == FILES.replace("\n", "\r\n")


@pytest.mark.parametrize("separator", ["", " ", "\r"])
def test_any_separator_line_separates(separator: str) -> None:
    assert len(entries(FILES.replace("\n\n", f"\n{separator}\n"), 3)) == 3


def test_no_match_is_a_legend_and_a_count_of_zero() -> None:
    legend = (
        "Flags: X - DISABLED, B - BLOCK-DEVICE; M - MOUNTED, S - SWAP-ENABLED\n       g - GUID-PARTITION-TABLE, p - PARTITION\n"
    )
    assert entries(legend, 0) == ()
    assert entries("", 0) == ()


def test_a_number_broken_before_its_last_group_starts_no_entry() -> None:
    text = ' 0  type=file slot="a" size=53 687 091\n    200 use=8% file-path=/p/a.img\n'
    (disk,) = entries(text, 1)
    assert disk.number("size") == 53_687_091_200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Flags: B - BLOCK-DEVICE\r\n",
        WIDE_DISK,
        WIDE_DISK[:-20],
        LIST + "3\n",
        LIST + "1\n",
        'type=file slot="open\n1\n',
        "0 a=1 a=2\n1\n",
        "hello\n1\n",
    ],
)
def test_an_answer_that_is_cut_short_or_does_not_add_up_says_nothing(text: str) -> None:
    with pytest.raises(errors.MalformedAnswer):
        entries(text)


@settings(deadline=None)
@given(st.integers(0, len(WIDE_DISK + "1\r\n") - 2))
def test_no_part_of_an_answer_passes_for_the_whole(end: int) -> None:
    whole = WIDE_DISK.replace("\n", "\r\n") + "1\r\n"
    with pytest.raises(errors.MalformedAnswer):
        parser.entries(Output(whole[:end]))


WORDINGS = [
    ("failure: not enough space", errors.PoolFull),
    ("failure: already have such entry", errors.AlreadyThere),
    ("no such item", errors.NoSuchItem),
    ("failure: no such item", errors.NoSuchItem),
    ("expected end of command (line 1 column 24)", errors.NotUnderstood),
    ("bad command name nvme (line 1 column 7)", errors.NotUnderstood),
    ("syntax error (line 1 column 1)", errors.NotUnderstood),
    ("input does not match any value of slot", errors.NotUnderstood),
    ("invalid value for argument file-size", errors.NotUnderstood),
    ("not enough permissions (9)", errors.NotPermitted),
    ("std failure: not allowed (9)", errors.NotPermitted),
    ("failure: disk is in use", errors.BoxBusy),
    ("failure: compression only available for btrfs", errors.CommandFailed),
]


@pytest.mark.parametrize(("text", "kind"), WORDINGS)
@pytest.mark.parametrize("place", ["stdout", "stderr"])
@pytest.mark.parametrize("status", [0, 1])
def test_errors_are_known_by_their_words_wherever_they_appear(
    text: str, kind: type[errors.CommandFailed], place: str, status: int
) -> None:
    output = Output(text + "\r\n", "", status) if place == "stdout" else Output("", text + "\r\n", status)
    for read in (parser.entries, parser.expect_silence):
        with pytest.raises(errors.CommandFailed) as caught:
            read(output)
        assert type(caught.value) is kind
        assert text in str(caught.value)


def test_an_error_after_some_entries_is_an_error() -> None:
    with pytest.raises(errors.NotPermitted):
        entries(WIDE_DISK + "not enough permissions (9)\n")


@pytest.mark.parametrize("words", ["failure: no such item", "syntax error (line 1 column 1)", "not enough space"])
def test_a_property_that_reads_like_an_error_is_data(words: str) -> None:
    (disk,) = entries(WIDE_DISK.replace('parent=""', f'parent="{words}"'), 1)
    assert disk.text("parent") == words
    with pytest.raises(errors.CommandFailed) as caught:
        parser.entries(Output(WIDE_DISK.replace('parent=""', f'parent="{words}"'), exit_status=1))
    assert type(caught.value) is errors.CommandFailed


@pytest.mark.parametrize("output", [Output("anything"), Output("", "anything"), Output("", "", 1)])
def test_a_change_that_is_not_silent_has_failed(output: Output) -> None:
    with pytest.raises(errors.CommandFailed):
        parser.expect_silence(output)


def test_a_silent_change_passes() -> None:
    parser.expect_silence(Output("\r\n", "", 0))


@pytest.mark.parametrize(("key", "method"), [("missing", "text"), ("model", "number"), ("size", "flag")])
def test_a_property_that_is_not_as_expected_is_a_malformed_answer(key: str, method: str) -> None:
    (disk,) = entries(WIDE_DISK, 1)
    with pytest.raises(errors.MalformedAnswer, match=key):
        getattr(disk, method)(key)


slots = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,60}", fullmatch=True)
components = st.from_regex(r"[A-Za-z0-9_.-]{1,60}", fullmatch=True)
paths = st.lists(components, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
nqns = st.from_regex(r"nqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.-]{1,40}:[a-z0-9._:-]{1,120}", fullmatch=True)
sizes = st.one_of(st.integers(0, 1 << 45), st.integers(0, 999), st.integers(0, 20).map(lambda power: 1000**power))
disks = st.builds(
    Disk,
    id=st.just(1),
    slot=slots,
    file_path=paths,
    size=sizes,
    nvme_tcp_export=st.booleans(),
    nvme_tcp_server_port=st.integers(1, 65535),
    nvme_tcp_server_nqn=nqns,
    nvme_tcp_server_allow_host_name=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
)
widths = st.integers(40, 300)


@settings(deadline=None)
@given(st.lists(disks, max_size=5), widths, st.integers(0, 1200))
@example([], 40, 0)
def test_whatever_disks_the_box_prints_at_any_width_is_read_back_exactly(many: list[Disk], width: int, first: int) -> None:
    rows = Console(Store(disks=many), Switches())._disk_rows()[1:]
    printed = frame.disk_answer([frame.Item(first + row.number, row.flags, row.printed) for row in rows], width)
    assert all(len(line) <= width for line in printed.split("\r\n"))
    found = parser.entries(Output(f"{printed}{len(many)}\r\n"))
    assert len(found) == len(many)
    for entry, disk in zip(found, many, strict=True):
        assert (entry.text("slot"), entry.number("size"), entry.text("file-path")) == (disk.slot, disk.size, disk.file_path)
        assert entry.text("model") == disk.file_path
        assert entry.flags == frozenset("Bt" if disk.nvme_tcp_export else "B")
        assert entry.flag("nvme-tcp-export") == disk.nvme_tcp_export
        if disk.nvme_tcp_export:
            assert entry.text("nvme-tcp-server-nqn") == disk.nvme_tcp_server_nqn
            assert entry.number("nvme-tcp-server-port") == disk.nvme_tcp_server_port
            assert entry.text("nvme-tcp-server-allow-host-name") == disk.nvme_tcp_server_allow_host_name


@settings(deadline=None)
@given(st.lists(paths, max_size=6, unique=True), st.lists(sizes, min_size=6, max_size=6), widths)
def test_whatever_files_the_box_prints_at_any_width_is_read_back_exactly(names: list[str], bytes_: list[int], width: int) -> None:
    files = {name[1:]: File(name[1:], size=size) for name, size in zip(names, bytes_, strict=False)}
    rows = Console(Store(files=files), Switches())._file_rows()
    printed = frame.file_answer([frame.Item(row.number, row.flags, row.printed) for row in rows], width)
    found = parser.entries(Output(f"{printed}{len(rows)}\r\n"))
    assert [entry.text("name") for entry in found] == ["storage-pool", *sorted(files)]


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=30), st.integers(0, 2))
def test_no_text_at_all_makes_the_parser_fall_over(stdout: str, stderr: str, status: int) -> None:
    for read in (parser.entries, parser.expect_silence):
        with contextlib.suppress(errors.BoxError):
            read(Output(stdout, stderr, status))
