"""What a VolumeCapability asks for."""

from __future__ import annotations

import pytest

from rds_csi.capabilities import Unsupported, combine, parse_capabilities, parse_capability
from rds_csi.errors import InvalidArgument
from rds_csi.spec import csi_pb2
from rds_records.record import AccessMode, Attachment, VolumeMode
from tests.unit.records.volumes import START

Mode = csi_pb2.VolumeCapability.AccessMode


def block(mode: int) -> csi_pb2.VolumeCapability:
    made = csi_pb2.VolumeCapability(access_mode=Mode(mode=mode))  # type: ignore[arg-type]
    made.block.SetInParent()
    return made


def mount(mode: int, *, fs_type: str = "", flags: tuple[str, ...] = (), group: str = "") -> csi_pb2.VolumeCapability:
    made = csi_pb2.VolumeCapability(access_mode=Mode(mode=mode))  # type: ignore[arg-type]
    made.mount.CopyFrom(csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type, mount_flags=flags, volume_mount_group=group))
    return made


@pytest.mark.parametrize("mode", [Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER])
def test_read_write_once_is_one_class_however_it_arrives(mode: int) -> None:
    parsed = parse_capability(mount(mode))
    assert (parsed.access_mode, parsed.multi_node, parsed.read_only) == (AccessMode.READ_WRITE_ONCE, False, False)
    assert parsed.access == parse_capability(mount(Mode.SINGLE_NODE_WRITER)).access


def test_shared_block_volume_is_read_write_many() -> None:
    parsed = parse_capability(block(Mode.MULTI_NODE_MULTI_WRITER))
    assert (parsed.access_mode, parsed.volume_mode, parsed.multi_node) == (AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK, True)
    assert parsed.csi_mode == "MULTI_NODE_MULTI_WRITER"


def test_reader_on_one_node_is_read_only() -> None:
    parsed = parse_capability(block(Mode.SINGLE_NODE_READER_ONLY))
    assert (parsed.access_mode, parsed.read_only) == (AccessMode.READ_WRITE_ONCE, True)


def test_read_write_once_pod_is_for_one_node_and_of_the_same_class_as_read_write_once() -> None:
    parsed = parse_capability(mount(Mode.SINGLE_NODE_SINGLE_WRITER))
    assert (parsed.access_mode, parsed.multi_node, parsed.read_only) == (AccessMode.READ_WRITE_ONCE_POD, False, False)
    held = Attachment(node_name="node-a", id="1", access_mode=AccessMode.READ_WRITE_ONCE, attach_time=START)
    assert parsed.access.same_class(held, VolumeMode.FILESYSTEM)


def test_read_only_many_is_for_several_nodes_and_for_reading() -> None:
    parsed = parse_capability(block(Mode.MULTI_NODE_READER_ONLY))
    assert (parsed.access_mode, parsed.multi_node, parsed.read_only) == (AccessMode.READ_ONLY_MANY, True, True)


@pytest.mark.parametrize("mode", [Mode.MULTI_NODE_MULTI_WRITER, Mode.MULTI_NODE_READER_ONLY])
def test_shared_file_system_is_refused_with_the_reason(mode: int) -> None:
    with pytest.raises(InvalidArgument, match="live migration use volumeMode Block") as caught:
        parse_capability(mount(mode))
    assert not isinstance(caught.value, Unsupported)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (Mode.MULTI_NODE_SINGLE_WRITER, "one writer"),
    ],
)
def test_modes_that_are_not_offered_say_what_to_use(mode: int, reason: str) -> None:
    with pytest.raises(Unsupported, match=rf"{reason}.*use ReadWrite"):
        parse_capability(block(mode))


@pytest.mark.parametrize(
    "capability",
    [
        csi_pb2.VolumeCapability(),
        csi_pb2.VolumeCapability(access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER)),
        csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume()),
        block(Mode.UNKNOWN),
        block(99),
    ],
)
def test_incomplete_or_unknown_capability_is_malformed(capability: csi_pb2.VolumeCapability) -> None:
    with pytest.raises(InvalidArgument, match=r"^volume capability: ") as caught:
        parse_capability(capability)
    assert not isinstance(caught.value, Unsupported)


@pytest.mark.parametrize("fs_type", ["", "ext4", "ext3", "xfs"])
def test_file_systems_that_can_be_made_are_taken(fs_type: str) -> None:
    assert parse_capability(mount(Mode.SINGLE_NODE_WRITER, fs_type=fs_type)).fs_type == fs_type


@pytest.mark.parametrize("fs_type", ["btrfs", "EXT4", "ext4 ", "ext4;reboot", "x" * 5000])
def test_other_file_systems_are_refused(fs_type: str) -> None:
    with pytest.raises(InvalidArgument, match="allowed are ext4, ext3, xfs"):
        parse_capability(mount(Mode.SINGLE_NODE_WRITER, fs_type=fs_type))


def test_mount_flags_are_kept_in_order() -> None:
    assert parse_capability(mount(Mode.SINGLE_NODE_WRITER, flags=("noatime", "data=ordered"))).mount_flags == (
        "noatime",
        "data=ordered",
    )


@pytest.mark.parametrize(
    "flags", [("user=x,suid,dev",), ("",), ("-o",), ("a b",), ("$(x)",), ("a" * 129,), ("a",) * 65, ("a" * 100,) * 60]
)
def test_mount_flags_that_hold_more_than_one_option_or_are_too_many_are_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="mount"):
        parse_capability(mount(Mode.SINGLE_NODE_WRITER, flags=flags))


def test_volume_mount_group_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="fsGroup"):
        parse_capability(mount(Mode.SINGLE_NODE_WRITER, group="100"))


def test_volume_for_several_modes_is_made_for_the_widest() -> None:
    parsed = parse_capabilities(
        [block(Mode.SINGLE_NODE_READER_ONLY), block(Mode.MULTI_NODE_MULTI_WRITER), block(Mode.SINGLE_NODE_WRITER)]
    )
    assert combine(parsed).access_mode is AccessMode.READ_WRITE_MANY
    alone = parse_capabilities([block(Mode.SINGLE_NODE_SINGLE_WRITER), block(Mode.SINGLE_NODE_WRITER)])
    assert combine(alone).access_mode is combine(alone[::-1]).access_mode is AccessMode.READ_WRITE_ONCE
    many = parse_capabilities([block(Mode.MULTI_NODE_READER_ONLY), block(Mode.SINGLE_NODE_WRITER)])
    assert combine(many).access_mode is AccessMode.READ_ONLY_MANY


def test_volume_cannot_be_both_block_and_mount_or_have_two_file_systems() -> None:
    with pytest.raises(InvalidArgument, match="mix block and mount"):
        combine(parse_capabilities([block(Mode.SINGLE_NODE_WRITER), mount(Mode.SINGLE_NODE_WRITER)]))
    with pytest.raises(InvalidArgument, match="ext4, xfs"):
        combine(parse_capabilities([mount(Mode.SINGLE_NODE_WRITER, fs_type=kind) for kind in ("xfs", "ext4")]))
