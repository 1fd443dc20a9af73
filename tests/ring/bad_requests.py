"""Requests that are wrong by construction: a request that would be granted, with one to three of its fields spoilt.

What is allowed is written down here a second time, from the CSI specification, Kubernetes' rules for names and this driver's
documentation, and never asked of the code under test.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from rds_csi.spec import csi_pb2
from tests.ring.rpc import GIB, RWX, block, mount
from tests.ring.stack import BASE_PATH

Text = st.SearchStrategy[str]
Mode = csi_pb2.VolumeCapability.AccessMode

INVALID, RANGE = "INVALID_ARGUMENT", "OUT_OF_RANGE"
MIB, TIB = 2**20, 2**40
LETTERS, LOWER, DIGITS = string.ascii_letters, string.ascii_lowercase, string.digits

HOSTILE = (
    "; /disk remove [find]", "$(reboot)", "`id`", "x\r\n/system reset-configuration", '" file-path="/etc', "' or 1=1 --", "[find]",
    "a b", "a\tb", "a\x00b", "a\x7fb", "a\x1b[2J", "../../etc/passwd", "a/../../b", "\\\"", "%s%n", "{{7*7}}", "a,b", "a=b", "a|b",
    "a&b", "…", "ﬀ", "Ａ", "٤٤٢٠", "аdmin", "e\u0301", "\u202egmi", "\u200b", "\ufeff", "\U0001f4be", "İ", "ß", "\u2028",
)  # fmt: skip
"""Separators, substitutions and quotes of RouterOS, SQL and shells, control characters, look-alikes, invisible characters."""


@dataclass(frozen=True)
class Targets:
    """What a bad request would change if it were granted."""

    fresh: str
    """The name of a volume that does not exist."""

    held: str
    """A ReadWriteMany Block volume that is attached to ``holder``, and that ``other`` may get as second node."""

    idle: str
    """A volume that nobody holds, so it may be deleted."""

    holder: str
    other: str


@dataclass(frozen=True, repr=False)
class Bad:
    """A request that must end with one of these status codes."""

    rpc: str
    request: Any
    codes: frozenset[str]
    flaws: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.rpc} ({', '.join(self.flaws)}) {str(self.request)[:600]!r}"


@dataclass(frozen=True)
class Flaw:
    """One way to spoil a request: values, and where to put one."""

    name: str
    values: st.SearchStrategy[Any]
    put: Callable[[Any, Any], None]
    code: str = INVALID


# Values


def outside(allowed: str) -> Text:
    """Return texts with at least one character that is not allowed."""
    fine = st.sampled_from([text for text in ("", "a", "x1", "7", "30", "a1b2c3") if set(text) <= set(allowed)])
    strange = st.characters(codec="utf-8", exclude_characters=allowed)
    hostile = st.sampled_from([text for text in HOSTILE if set(text) - set(allowed)])
    return st.tuples(fine, strange | hostile, fine).map("".join)


def longer(least: int, filler: str = "a") -> Text:
    return st.integers(least, least + 4000).map(lambda length: filler * length)


def other_than(*allowed: str) -> Text:
    return (st.text(min_size=1, max_size=12) | st.sampled_from([text.upper() for text in allowed] + list(HOSTILE))).filter(
        lambda text: text not in allowed
    )


HANDLES = outside(LETTERS + DIGITS + "-") | longer(129) | st.sampled_from(["-", "-a", "a-", "--", "pvc-1-"])
NODES = outside(LOWER + DIGITS + "-.") | longer(254) | st.sampled_from(["-", "-a", "a-", ".a", "a.", "a..b", "a.-b", "Node-1"])
NAMES = outside(LETTERS + DIGITS + "._-") | longer(129) | st.sampled_from([".", "..", "-a", "a-", ".a", "a.", "_a", "a_"])
OBJECT_NAMES = NODES
FILE_SYSTEMS = other_than("ext4", "ext3", "xfs")
OVERSIZED_MAPS = st.one_of(
    longer(4097).map(lambda value: {"k": value}),
    longer(4097).map(lambda key: {key: ""}),
    longer(2048, "é").map(lambda value: {"k": value}),
    st.integers(5, 40).map(lambda count: {f"k{number}": "v" * 1000 for number in range(count)}),
)
FLAGS = st.one_of(
    st.tuples(outside(LETTERS + DIGITS + "_.:/@+=%-")).map(list),
    st.sampled_from(["", "-o", "--bind", "rw,suid", "a" * 129]).map(lambda flag: ["noatime", flag]),
    st.integers(65, 200).map(lambda count: ["noatime"] * count),
    st.integers(35, 64).map(lambda count: ["a" * 128] * count),
)

KNOWN_PARAMETERS = (
    "rdsAddress", "nvmeAddress", "nvmePort", "volumePath", "ctrlLossTmo", "reconnectDelay", "keepAliveTmo",
    "migrationTimeoutSeconds", "dualAttachPolicy", "fsType", "nqnPrefix", "sshPort", "csi.storage.k8s.io/pv/name",
    "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/fstype",
)  # fmt: skip


def no_integer(least: int, most: int) -> Text:
    """Return texts that are no whole number from ``least`` to ``most``."""
    return st.one_of(
        st.integers(max_value=least - 1).map(str),
        st.integers(min_value=most + 1).map(str),
        outside(DIGITS + "-"),
        st.sampled_from(["-", "--1", "1-", "00001", " 30", "30 ", "30s", "+30", "3e1", "0x1e", "1_000", "30.0", "NaN"]),
    )


MAX_INT = 2**31 - 1
PARAMETERS: dict[str, Text] = {
    "rdsAddress": outside(LETTERS + DIGITS + "-.:") | st.sampled_from(["-a", "a-", "a..b", "::g", "UPPER.example", "a" * 300]),
    "nvmeAddress": outside(string.hexdigits + ".:")
    | st.sampled_from(["1.2.3", "1.2.3.4.5", "256.1.1", "01.2.3.4", ":::", "1::2::3", "box.example", "fe80::1%eth0", "10.0.0.0/8"]),
    "nvmePort": no_integer(1, 65_535),
    "volumePath": outside(LETTERS + DIGITS + "_.-/").map(lambda text: f"{BASE_PATH}/{text}")
    | st.sampled_from(
        ["/", "/etc", "x", BASE_PATH[1:], BASE_PATH.upper(), BASE_PATH + "-other", "/storage-pool", "/storage-pool/other"]
        + [BASE_PATH + tail for tail in ("/", "//x", "/.", "/..", "/../x", "/x/..", "/x/", "/x/../../../etc")]
    )
    | longer(257).map(lambda name: f"{BASE_PATH}/{name}"),
    "ctrlLossTmo": no_integer(-1, MAX_INT),
    "reconnectDelay": no_integer(1, MAX_INT),
    "keepAliveTmo": no_integer(0, MAX_INT),
    "migrationTimeoutSeconds": no_integer(30, 86_400),
    "dualAttachPolicy": other_than("KubeVirt", "AnyTwoNodes"),
    "fsType": FILE_SYSTEMS,
    "csi.storage.k8s.io/fstype": FILE_SYSTEMS,
    "csi.storage.k8s.io/pv/name": OBJECT_NAMES,
    "csi.storage.k8s.io/pvc/name": OBJECT_NAMES,
    "csi.storage.k8s.io/pvc/namespace": OBJECT_NAMES,
}
BAD_PARAMETERS = st.one_of(
    *(st.tuples(st.just(key), values) for key, values in PARAMETERS.items()),
    st.tuples(other_than(*KNOWN_PARAMETERS) | st.just(""), st.text(max_size=8)),
)


def with_mode(number: int, *, is_block: bool) -> Any:
    capability = block("SINGLE_NODE_WRITER") if is_block else mount()
    capability.access_mode.mode = number  # type: ignore[assignment]
    return capability


def spoilt_mount(field: str) -> Callable[[Any], Any]:
    def spoil(value: Any) -> Any:
        capability = mount()
        if field == "mount_flags":
            capability.mount.mount_flags.extend(value)
        else:
            setattr(capability.mount, field, value)
        return capability

    return spoil


MALFORMED_CAPABILITIES = st.one_of(
    st.sampled_from(
        [
            csi_pb2.VolumeCapability(),
            csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume()),
            csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume(fs_type="ext4")),
            csi_pb2.VolumeCapability(access_mode=Mode(mode="MULTI_NODE_MULTI_WRITER")),
            mount("MULTI_NODE_MULTI_WRITER"),
            mount("MULTI_NODE_READER_ONLY"),
        ]
    ),
    st.builds(with_mode, st.just(0) | st.integers(8, 2**31 - 1) | st.integers(-(2**31), -1), is_block=st.booleans()),
    FILE_SYSTEMS.map(spoilt_mount("fs_type")),
    FLAGS.map(spoilt_mount("mount_flags")),
    st.text(min_size=1, max_size=8).map(spoilt_mount("volume_mount_group")),
)
UNSUPPORTED_CAPABILITIES = st.builds(
    with_mode,
    st.just(Mode.MULTI_NODE_SINGLE_WRITER),
    is_block=st.booleans(),
)
BAD_CAPABILITIES = MALFORMED_CAPABILITIES | UNSUPPORTED_CAPABILITIES


def lists_with(bad: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Return lists of capabilities of which one is bad, and lists that are too long."""
    return bad.map(lambda one: [one]) | bad.map(lambda one: [RWX, one]) | st.integers(33, 60).map(lambda count: [RWX] * count)


CONTRADICTING_CAPABILITIES = st.sampled_from([[block("SINGLE_NODE_WRITER"), mount()], [mount(), mount(fs_type="xfs")]])
IMPOSSIBLE_RANGES = st.one_of(
    st.tuples(st.integers(16 * TIB + 1, 2**63 - 1), st.just(0)),
    st.integers(2, 16 * TIB).flatmap(lambda required: st.tuples(st.just(required), st.integers(1, required - 1))),
    st.tuples(st.just(0), st.integers(1, GIB - 1)),
    st.tuples(st.integers(GIB // MIB, 16 * TIB // MIB - 1), st.integers(1, MIB - 1)).map(
        lambda drawn: (drawn[0] * MIB + drawn[1], drawn[0] * MIB + drawn[1])
    ),
)
NEGATIVE_RANGES = st.one_of(
    st.tuples(st.integers(-(2**63), -1), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), -1)),
)
SOURCES = st.one_of(
    st.just(csi_pb2.VolumeContentSource()),
    st.just(csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource())),
    HANDLES.map(lambda one: csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=one))),
)


# Where they go


def field(name: str) -> Callable[[Any, Any], None]:
    return lambda request, value: setattr(request, name, value)


def message(name: str) -> Callable[[Any, Any], None]:
    return lambda request, value: getattr(request, name).CopyFrom(value)


def entries(name: str) -> Callable[[Any, Any], None]:
    return lambda request, value: getattr(request, name).update(value)


def replaced(name: str) -> Callable[[Any, Any], None]:
    def put(request: Any, value: Any) -> None:
        request.ClearField(name)
        getattr(request, name).extend(value)

    return put


def cleared(name: str) -> Flaw:
    return Flaw(f"no {name}", st.none(), lambda request, value: request.ClearField(name))


def set_range(request: Any, value: tuple[int, int]) -> None:
    request.capacity_range.required_bytes, request.capacity_range.limit_bytes = value


def set_parameter(request: Any, value: tuple[str, str]) -> None:
    request.parameters[value[0]] = value[1]


OVERSIZED = {name: Flaw(f"oversized {name}", OVERSIZED_MAPS, entries(name)) for name in ("secrets", "volume_context", "parameters")}

CREATE = (
    cleared("name"),
    Flaw("name", NAMES, field("name")),
    cleared("volume_capabilities"),
    Flaw("capabilities", lists_with(BAD_CAPABILITIES), replaced("volume_capabilities")),
    Flaw("contradicting capabilities", CONTRADICTING_CAPABILITIES, replaced("volume_capabilities")),
    Flaw("negative size", NEGATIVE_RANGES, set_range),
    Flaw("impossible size", IMPOSSIBLE_RANGES, set_range, RANGE),
    # Twice, for it has the most to spoil.
    Flaw("parameter", BAD_PARAMETERS, set_parameter),
    Flaw("another parameter", BAD_PARAMETERS, set_parameter),
    Flaw("content source", SOURCES, message("volume_content_source")),
    Flaw("mutable parameters", st.text(max_size=8).map(lambda key: {key: "x"}), entries("mutable_parameters")),
    OVERSIZED["parameters"],
    OVERSIZED["secrets"],
)
DELETE = (cleared("volume_id"), Flaw("volume id", HANDLES, field("volume_id")), OVERSIZED["secrets"])
PUBLISH = (
    cleared("volume_id"),
    Flaw("volume id", HANDLES, field("volume_id")),
    cleared("node_id"),
    Flaw("node id", NODES, field("node_id")),
    cleared("volume_capability"),
    Flaw("capability", BAD_CAPABILITIES, message("volume_capability")),
    OVERSIZED["volume_context"],
    OVERSIZED["secrets"],
)
UNPUBLISH = (
    cleared("volume_id"),
    Flaw("volume id", HANDLES, field("volume_id")),
    Flaw("node id", NODES, field("node_id")),
    OVERSIZED["secrets"],
)
VALIDATE = (
    cleared("volume_id"),
    Flaw("volume id", HANDLES, field("volume_id")),
    cleared("volume_capabilities"),
    Flaw("capabilities", lists_with(MALFORMED_CAPABILITIES), replaced("volume_capabilities")),
    *OVERSIZED.values(),
    Flaw("oversized mutable_parameters", OVERSIZED_MAPS, entries("mutable_parameters")),
)


def good_requests(targets: Targets) -> dict[str, tuple[Any, tuple[Flaw, ...]]]:
    """Return by RPC a request that would be granted, and change something, and how it can be spoilt."""
    return {
        "CreateVolume": (
            csi_pb2.CreateVolumeRequest(
                name=targets.fresh, volume_capabilities=[RWX], capacity_range=csi_pb2.CapacityRange(required_bytes=GIB)
            ),
            CREATE,
        ),
        "DeleteVolume": (csi_pb2.DeleteVolumeRequest(volume_id=targets.idle), DELETE),
        "ControllerPublishVolume": (
            csi_pb2.ControllerPublishVolumeRequest(volume_id=targets.held, node_id=targets.other, volume_capability=RWX),
            PUBLISH,
        ),
        "ControllerUnpublishVolume": (
            csi_pb2.ControllerUnpublishVolumeRequest(volume_id=targets.held, node_id=targets.holder),
            UNPUBLISH,
        ),
        "ValidateVolumeCapabilities": (
            csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=targets.held, volume_capabilities=[RWX]),
            VALIDATE,
        ),
    }


def bad_requests(targets: Targets) -> st.SearchStrategy[Bad]:
    """Return requests that no correct driver grants: the flaw that is put in last is whole, whatever the ones before it were."""
    good = good_requests(targets)
    choices = {rpc: st.lists(st.sampled_from(flaws), min_size=1, max_size=3, unique=True) for rpc, (_, flaws) in good.items()}
    rpcs = st.sampled_from(sorted(good))

    @st.composite
    def spoilt(draw: st.DrawFn) -> Bad:
        rpc = draw(rpcs)
        granted, _ = good[rpc]
        request = type(granted)()
        request.CopyFrom(granted)
        chosen = draw(choices[rpc])
        for flaw in chosen:
            flaw.put(request, draw(flaw.values))
        return Bad(rpc, request, frozenset(flaw.code for flaw in chosen), tuple(flaw.name for flaw in chosen))

    return spoilt()
