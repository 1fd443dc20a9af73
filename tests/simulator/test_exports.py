"""What the box offers, and the steps by which a kernel is made to offer it; here it is a model (tests/vm has a real one)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulator.exports import Export, exports_of
from tests.simulator.images import Images
from tests.simulator.language import ConsoleError
from tests.simulator.nvmet import MODEL, Change, Found, Nvmet, Subsystem, Verb, changes
from tests.simulator.server import Box

NQN = "nqn.2000-02.com.mikrotik:pvc-1"
ADD = f"/disk add type=file file-path=/storage-pool/pvc-1.img file-size=1G slot=pvc-1 nvme-tcp-export=yes nvme-tcp-server-nqn={NQN}"
SET = "/disk set pvc-1"
A, B = "nqn.2014-08.org.nvmexpress:uuid:a", "nqn.2014-08.org.nvmexpress:uuid:b"


class Kernel:
    """nvmet's configfs with the rules that the kernel has (drivers/nvme/target/configfs.c of 6.1)."""

    def __init__(self, found: Found) -> None:
        self.hosts = set(found.hosts)
        self.ports = set(found.ports)
        self.subsystems = dict(found.subsystems)

    @property
    def found(self) -> Found:
        return Found(dict(self.subsystems), frozenset(self.hosts), frozenset(self.ports))

    def apply(self, change: Change) -> None:
        match change.verb, change.path.split("/"):
            case Verb.MKDIR, ["hosts", host]:
                assert host not in self.hosts
                self.hosts.add(host)
            case Verb.MKDIR, ["ports", port]:
                assert port not in self.ports
                self.ports.add(port)
            case Verb.WRITE, ["ports", port, _]:
                assert not any(port in subsystem.ports for subsystem in self.subsystems.values())
            case Verb.MKDIR, ["subsystems", nqn]:
                assert nqn not in self.subsystems
                # The kernel's own defaults.
                self.subsystems[nqn] = Subsystem(model="Linux", any_host=False)
            case Verb.RMDIR, ["subsystems", nqn]:
                there = self.subsystems.pop(nqn)
                assert (there.ports, there.hosts, there.has_namespace) == (frozenset(), frozenset(), False)
            case Verb.LINK, ["ports", port, "subsystems", nqn]:
                assert port in self.ports
                self.change(nqn, ports=self.subsystems[nqn].ports | {port})
            case Verb.UNLINK, ["ports", port, "subsystems", nqn]:
                self.change(nqn, ports=self.subsystems[nqn].ports - {port})
            case verb, ["subsystems", nqn, *rest]:
                self.change(nqn, **self._within(self.subsystems[nqn], verb, rest, change.text))
            case other:
                raise AssertionError(other)

    def change(self, nqn: str, **values: object) -> None:
        self.subsystems[nqn] = dataclasses.replace(self.subsystems[nqn], **values)  # type: ignore[arg-type]

    def _within(self, there: Subsystem, verb: Verb, rest: list[str], text: str) -> dict[str, object]:
        match verb, rest:
            case Verb.WRITE, ["attr_model"]:
                assert not there.ports
                return {"model": text}
            case Verb.WRITE, ["attr_serial"]:
                assert not there.ports
                assert len(text) <= 20
                return {}
            case Verb.WRITE, ["attr_allow_any_host"]:
                assert text == "0" or not there.hosts
                return {"any_host": text == "1"}
            case Verb.LINK, ["allowed_hosts", host]:
                assert not there.any_host
                assert host in self.hosts
                assert text == f"hosts/{host}"
                return {"hosts": there.hosts | {host}}
            case Verb.UNLINK, ["allowed_hosts", host]:
                assert host in there.hosts
                return {"hosts": there.hosts - {host}}
            case Verb.MKDIR, ["namespaces", "1"]:
                assert not there.has_namespace
                return {"has_namespace": True}
            case Verb.RMDIR, ["namespaces", "1"]:
                assert there.has_namespace
                assert not there.enabled
                return {"has_namespace": False, "file": "", "uuid": ""}
            case Verb.WRITE, ["namespaces", "1", attribute]:
                assert there.has_namespace
                assert (attribute == "enable") or not there.enabled
                return {
                    {"device_path": "file", "device_uuid": "uuid"}.get(attribute, "enabled"): text
                    if attribute != "enable"
                    else text == "1"
                }
            case other:
                raise AssertionError(other)


names = st.sampled_from(["x", "y", "z"])
some_hosts = st.frozensets(st.sampled_from([A, B, "c"]))
wishes = st.dictionaries(
    names,
    st.builds(
        lambda port, image, hosts: (port, image, hosts), st.sampled_from([4420, 4421]), st.integers(1, 2), st.none() | some_hosts
    ),
).map(
    lambda chosen: {
        nqn: (Export(nqn, port, image, 1 << 30, f"uuid-{image}", hosts), f"/pool/{image}")
        for nqn, (port, image, hosts) in chosen.items()
    }
)


@st.composite
def kernels(draw: st.DrawFn) -> Found:
    """What a killed simulator, or somebody else, may have left."""

    def subsystem(model: str, port: str, namespace: int, hosts: frozenset[str], linked: bool, has_host: bool) -> Subsystem:
        return Subsystem(
            model=model,
            ports=frozenset([port] if linked else []),
            has_namespace=namespace > 0,
            file="/pool/1" if namespace > 1 else "",
            uuid="uuid-1" if namespace > 2 else "",
            enabled=namespace > 3,
            any_host=not (hosts and has_host),
            hosts=hosts if has_host else frozenset(),
        )

    made = st.builds(
        subsystem,
        st.sampled_from([MODEL, "Linux"]),
        st.sampled_from(["4420", "4421"]),
        st.integers(0, 4),
        some_hosts,
        st.booleans(),
        st.booleans(),
    )
    subsystems = draw(st.dictionaries(names, made))
    ports = {port for each in subsystems.values() for port in each.ports}
    hosts = {host for each in subsystems.values() for host in each.hosts}
    return Found(subsystems, frozenset(hosts), frozenset(ports))


@given(kernels(), wishes)
def test_whatever_the_kernel_has_becomes_what_is_wanted(found: Found, wanted: dict[str, tuple[Export, str]]) -> None:
    kernel = Kernel(found)
    for change in changes(found, wanted):
        kernel.apply(change)
    ours = {nqn: each for nqn, each in kernel.subsystems.items() if each.model == MODEL}
    assert ours == {
        nqn: Subsystem(
            MODEL, frozenset([str(export.port)]), True, file, export.uuid, True, export.hosts is None, export.hosts or frozenset()
        )
        for nqn, (export, file) in wanted.items()
    }
    strangers = {nqn: each for nqn, each in found.subsystems.items() if each.model != MODEL and nqn not in wanted}
    assert {nqn: each for nqn, each in kernel.subsystems.items() if nqn in strangers} == strangers
    assert list(changes(kernel.found, wanted)) == []


@given(kernels(), wishes, st.integers(0, 40))
def test_a_start_after_a_kill_at_any_step_ends_the_same(found: Found, wanted: dict[str, tuple[Export, str]], done: int) -> None:
    kernel = Kernel(found)
    for change in list(changes(found, wanted))[:done]:
        kernel.apply(change)
    for change in changes(kernel.found, wanted):
        kernel.apply(change)
    assert list(changes(kernel.found, wanted)) == []
    assert wanted.keys() <= kernel.subsystems.keys()


@given(wishes, wishes)
def test_a_list_of_hosts_changes_without_ending_a_session(
    before: dict[str, tuple[Export, str]], after: dict[str, tuple[Export, str]]
) -> None:
    kernel = Kernel(Found({}))
    for change in changes(kernel.found, before):
        kernel.apply(change)
    same = {
        nqn
        for nqn in before.keys() & after.keys()
        if dataclasses.replace(before[nqn][0], hosts=None) == dataclasses.replace(after[nqn][0], hosts=None)
    }
    touched = {change.path for change in changes(kernel.found, after)}
    assert not any(path.startswith("ports/") and path.rpartition("/")[2] in same for path in touched)
    assert not any(path.startswith(f"subsystems/{nqn}/namespaces") for nqn in same for path in touched)


class Offered:
    """A back end that remembers, and can refuse."""

    def __init__(self) -> None:
        self.said: list[list[Export]] = []
        self.refuse = ""

    def offer(self, exports: Collection[Export]) -> None:
        self.said.append(list(exports))
        if self.refuse and any(export.nqn == self.refuse for export in exports):
            raise ConsoleError("failure: nvmet refused")


@pytest.fixture
def offered() -> Offered:
    return Offered()


@pytest.fixture
def box(tmp_path: Path, offered: Offered) -> Box:
    """A box on a back end that remembers."""
    return Box(tmp_path / "box.json", backend=lambda images: offered)


def test_an_export_is_offered_with_all_that_the_disk_says(box: Box, offered: Offered) -> None:
    box.apply(f"{ADD} nvme-tcp-server-port=4444 nvme-tcp-server-allow-host-name={A},{B}")
    (export,) = offered.said[-1]
    assert (export.nqn, export.port, export.size, export.hosts) == (NQN, 4444, 1 << 30, frozenset([A, B]))


@pytest.mark.parametrize(("names", "hosts"), [("", None), (A, {A}), (",", set())])
def test_only_no_name_at_all_lets_everybody_in(box: Box, offered: Offered, names: str, hosts: set[str] | None) -> None:
    box.apply(f"{ADD} nvme-tcp-server-allow-host-name={names}")
    assert offered.said[-1][0].hosts == hosts


def test_a_disk_without_an_nqn_is_offered_under_its_slot(box: Box, offered: Offered) -> None:
    box.apply(ADD.replace(f" nvme-tcp-server-nqn={NQN}", ""))
    assert [export.nqn for export in offered.said[-1]] == ["pvc-1"]


def test_an_export_keeps_its_identity_and_another_disk_of_the_same_name_has_its_own(
    box: Box, offered: Offered, tmp_path: Path
) -> None:
    box.apply(ADD)
    (first,) = offered.said[-1]
    box.apply(f"{SET} nvme-tcp-export=no; {SET} nvme-tcp-export=yes file-size=2G slot=other")
    assert offered.said[-1] == [dataclasses.replace(first, size=2 << 30)]
    Box(tmp_path / "box.json", backend=lambda images: offered)
    assert offered.said[-1] == [dataclasses.replace(first, size=2 << 30)]
    box.apply(f"/disk remove other; {ADD}")
    assert offered.said[-1][0].uuid != first.uuid


def test_an_export_is_cycled_within_one_line(box: Box, offered: Offered) -> None:
    box.apply(ADD)
    offered.said.clear()
    box.apply(f"{SET} nvme-tcp-export=no; {SET} nvme-tcp-export=yes")
    assert [len(exports) for exports in offered.said] == [0, 1]


def test_reading_touches_nothing(box: Box, offered: Offered) -> None:
    box.apply(ADD)
    offered.said.clear()
    box.apply("/disk print detail; :put [/disk get pvc-1 size]")
    assert offered.said == []


def test_what_the_kernel_refuses_fails_and_changes_nothing(box: Box, offered: Offered, tmp_path: Path) -> None:
    box.apply(ADD)
    before = box.store.text()
    offered.refuse = "refused"
    second = ADD.replace("pvc-1", "pvc-2").replace(NQN.replace("pvc-1", "pvc-2"), "refused")
    assert box.apply(second).error == "failure: nvmet refused\r\n"
    assert box.store.text() == before == (tmp_path / "box.json").read_text()
    assert [export.nqn for export in offered.said[-1]] == [NQN]


@pytest.mark.parametrize(
    "line",
    [
        ADD.replace("pvc-1.img", "pvc-2.img").replace("slot=pvc-1", "slot=pvc-2"),
        f"{SET} nvme-tcp-server-allow-host-name=a/b",
        f"{SET} nvme-tcp-server-nqn=..",
        f"{SET} nvme-tcp-server-nqn={'x' * 224}",
    ],
)
def test_names_that_cannot_be_are_refused(box: Box, line: str) -> None:
    box.apply(ADD)
    before = box.store.text()
    assert box.apply(line).error
    assert box.store.text() == before


def test_a_disk_whose_image_is_gone_is_offered_no_more(box: Box, offered: Offered) -> None:
    box.apply(f"{ADD}; /file remove storage-pool/pvc-1.img")
    assert offered.said[-1] == []


def test_a_kernel_that_refuses_is_named_with_the_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("ports", "subsystems", "hosts"):
        (tmp_path / "nvmet" / folder).mkdir(parents=True)
    target = Nvmet(Images(tmp_path / "images"), root=tmp_path / "nvmet")
    # An ordinary folder has none of the directories that configfs makes of itself.
    with pytest.raises(ConsoleError, match="nvmet refused mkdir subsystems/x/namespaces/1: No such file or directory"):
        target.offer([Export("x", 4420, 1, 4096, "uuid")])
    assert "nvmet refused" in caplog.text
    assert (tmp_path / "images" / "1").stat().st_size == 4096


def test_a_box_without_a_kernel_says_the_same(tmp_path: Path) -> None:
    box = Box(tmp_path / "box.json")
    assert box.apply(ADD).error == ""
    assert [export.nqn for export in exports_of(box.store)] == [NQN]
