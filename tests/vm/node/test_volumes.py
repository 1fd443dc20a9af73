"""The Node service on a real kernel, with a real target: what a kubelet asks for, also twice, and what it must not get."""

from __future__ import annotations

import grpc
import pytest

from tests.vm.node.client import BLOCK, IN_USE, KUBELET, SIZE, Make, Mode, Node, Volume, refused, retried

START = "head -c 16M {disk} | sha256sum"
"""Whoever makes a file system writes there; to read a whole disk takes an emulated processor minutes."""


@pytest.mark.requirement("R55")
@pytest.mark.parametrize("fs", [BLOCK, "ext4", "xfs"])
def test_a_volume_is_staged_published_and_taken_away_and_every_call_may_be_repeated(node: Node, make: Make, fs: str) -> None:
    volume = make(fs)
    for _ in range(2):
        node.stage(volume)
    for _ in range(2):
        path = node.publish(volume)
    if fs == BLOCK:
        assert node.number(path) == node.number(node.disk(volume))
    else:
        assert [len(node.mounts(volume.staging)), len(node.mounts(path))] == [1, 1]
        node.guest.sh(f"echo precious > {path}/file; sync {path}/file")
    for _ in range(2):
        node.unpublish(volume)
    assert node.guest.ask(f"ls -d {path}").status != 0
    for _ in range(2):
        node.unstage(volume)
    assert not node.connected(volume)
    node.stage(volume)
    node.publish(volume)
    if fs != BLOCK:
        assert node.guest.sh(f"cat {path}/file") == "precious\n"


@pytest.mark.requirement("R55")
@pytest.mark.parametrize("fs", [BLOCK, "ext4"])
def test_statistics_tell_the_bytes_of_both_and_the_inodes_of_a_file_system(node: Node, make: Make, fs: str) -> None:
    volume = make(fs)
    node.stage(volume)
    node.publish(volume)
    usage = node.stats(volume)
    if fs == BLOCK:
        assert usage["BYTES"].total == SIZE
        assert "INODES" not in usage
    else:
        assert SIZE * 0.8 < usage["BYTES"].total < SIZE
        assert usage["BYTES"].used + usage["BYTES"].available <= usage["BYTES"].total
        assert usage["INODES"].used > 0
    refused(grpc.StatusCode.NOT_FOUND, node.stats, volume, "no-such-pod")


@pytest.mark.requirement("R53")
@pytest.mark.parametrize(
    "what", ["mknod -m 660 {path} b 7 0", "mknod {path} c 1 3", "ln -s {disk} {path}", "touch {path}", "mkdir {path}"]
)
def test_what_is_in_the_place_of_the_device_is_replaced_by_it(node: Node, make: Make, what: str) -> None:
    volume = make()
    node.stage(volume)
    path, disk = volume.target(), node.disk(volume)
    node.guest.sh(f"mkdir -p $(dirname {path}); {what.format(path=path, disk=disk)}")
    if what.startswith("mknod {path} c"):
        refused(IN_USE, node.publish, volume)
        node.guest.sh(f"rm {path}")
    node.publish(volume)
    assert node.guest.sh(f"stat -c %F {path}") == "block special file\n"
    assert node.number(path) == node.number(disk)


@pytest.mark.requirement("R53")
def test_a_device_that_got_another_number_is_not_the_one_that_the_pod_before_had(node: Node, make: Make) -> None:
    first, second = make(), make()
    node.stage(first)
    node.publish(first)
    old = node.number(first.target())
    node.guest.sh(f"nvme disconnect -n {first.export.nqn}")
    node.stage(second)
    node.publish(second)
    assert node.number(second.target()) == old, "this kernel gives the number to the next disk, so the test shows nothing"
    node.stage(first)
    node.publish(first)
    assert node.number(first.target()) == node.number(node.disk(first)) != old


@pytest.mark.requirement("R53")
def test_a_kubelet_folder_without_device_nodes_gets_the_device_by_a_bind_mount(node: Node, make: Make) -> None:
    volume = make()
    node.stage(volume)
    pods = f"{KUBELET}/pods"
    node.guest.sh(f"mkdir -p {pods}; mount -t tmpfs -o nodev tmpfs {pods}")
    try:
        for _ in range(2):
            path = node.publish(volume)
        assert len(node.mounts(path)) == 1
        node.guest.sh(f"dd if={path} of=/dev/null bs=4096 count=1 status=none")
        for _ in range(2):
            node.unpublish(volume)
        assert node.guest.ask(f"ls -d {path}").status != 0
    finally:
        node.guest.sh(f"umount {pods}")


@pytest.mark.requirement("R54")
def test_a_block_device_that_a_process_of_another_mount_namespace_has_open_is_not_taken_away(node: Node, make: Make) -> None:
    volume = make()
    node.stage(volume)
    holder = node.guest.process(
        "holder", ["unshare", "--mount", "/bin/sh", "-c", f"exec 3< {node.disk(volume)}; echo held; exec sleep 600"]
    ).start()
    try:
        node.guest.sh("until grep -q held /share/logs/*/holder.log; do sleep 0.05; done")
        words = refused(IN_USE, node.unstage, volume)
        assert "sleep (pid " in words
        assert "has the device open" in words
        assert node.connected(volume)
    finally:
        holder.kill()
    node.unstage(volume)
    assert not node.connected(volume)


@pytest.mark.requirement("R54")
def test_a_loop_device_as_the_kubelet_makes_it_holds_the_disk(node: Node, make: Make) -> None:
    volume = make()
    node.stage(volume)
    path = node.publish(volume)
    loop = node.guest.sh(f"losetup --find --show {path}").strip()
    try:
        assert f"loop device {loop.removeprefix('/dev/')} is set up on" in refused(IN_USE, node.unstage, volume)
    finally:
        node.guest.sh(f"losetup --detach {loop}")
    node.unpublish(volume)
    retried(node.unstage, volume, timeout=10)


@pytest.mark.requirement("R54")
def test_a_file_system_that_only_another_mount_namespace_sees_is_not_taken_away(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    holder = node.guest.process("holder", ["unshare", "--mount", "--propagation", "private", "/bin/sleep", "600"]).start()
    try:
        node.guest.sh(f"until grep -q {volume.staging} /proc/{holder.pid}/mountinfo; do sleep 0.05; done; sleep 0.2")
        words = refused(IN_USE, node.unstage, volume)
        assert f"sees it mounted at {volume.staging}" in words
        assert f"(pid {holder.pid})" in words
    finally:
        holder.kill()
    retried(node.unstage, volume, timeout=10)
    assert not node.connected(volume)


@pytest.mark.requirement("R54")
def test_a_file_system_mounted_where_no_process_lives_is_not_taken_away(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    node.guest.sh("""
        mkdir -p /run/kept; mount --bind /run/kept /run/kept; mount --make-private /run/kept; touch /run/kept/namespace
        unshare --mount=/run/kept/namespace --propagation private true
    """)
    try:
        assert "where no process of this node shows it" in refused(IN_USE, node.unstage, volume)
        assert node.connected(volume)
    finally:
        node.guest.sh("umount /run/kept/namespace; umount /run/kept")
    retried(node.unstage, volume, timeout=10)


@pytest.mark.requirement("R54")
def test_a_pod_that_has_a_file_open_keeps_its_volume_and_is_named(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    path = node.publish(volume)
    holder = node.guest.process("holder", ["/bin/sh", "-c", f"cd {path}; exec sleep 600"]).start()
    try:
        node.guest.sh(f"until [ $(readlink /proc/{holder.pid}/cwd) = {path} ]; do sleep 0.05; done")
        words = refused(IN_USE, node.unpublish, volume)
        assert f"sleep (pid {holder.pid}) has files of it in use" in words
        assert "is still mounted" in refused(IN_USE, node.unstage, volume)
        assert node.guest.ask(f"ls {path}/lost+found").status == 0
    finally:
        holder.kill()
    node.unpublish(volume)
    node.unstage(volume)


@pytest.mark.requirement("R55")
def test_nothing_is_removed_through_a_mount_below_the_target_path(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    path = node.publish(volume)
    node.guest.sh(f"mkdir {path}/inner; mount -t tmpfs tmpfs {path}/inner; touch {path}/inner/precious")
    try:
        assert "is mounted below the target path" in refused(IN_USE, node.unpublish, volume)
        assert node.guest.ask(f"ls {path}/inner/precious").status == 0
    finally:
        node.guest.sh(f"umount {path}/inner")
    node.unpublish(volume)


@pytest.mark.requirement("R55")
def test_files_in_the_place_of_a_mount_are_left_alone(node: Node, make: Make) -> None:
    volume = make("ext4")
    path = volume.target()
    node.guest.sh(f"mkdir -p {path}; touch {path}/precious")
    assert "is not empty" in refused(IN_USE, node.unpublish, volume)
    assert node.guest.sh(f"ls {path}; rm -r {path}") == "precious\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("mkfs.xfs -q {disk}", "holds xfs, and ext4 is asked for"),
        ("mkswap {disk}", "swap is on"),
        ("echo 'label: gpt' | sfdisk -q {disk}", "a partition table (gpt) is on"),
        ("printf x | dd of={disk} conv=nocreat,fsync status=none", "data that blkid does not know is on"),
    ],
)
def test_nothing_is_formatted_that_holds_something_and_no_session_stays(node: Node, make: Make, content: str, words: str) -> None:
    volume = make("ext4")
    block = Volume(volume.export)
    node.stage(block)
    node.guest.sh(content.format(disk=node.disk(block)))
    before = node.guest.sh(START.format(disk=node.disk(block)))
    node.unstage(block)
    assert words in refused(IN_USE, node.stage, volume)
    assert not node.connected(volume)
    node.stage(block)
    assert node.guest.sh(START.format(disk=node.disk(block))) == before


@pytest.mark.long
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_a_copy_of_a_mounted_file_system_mounts_beside_it_with_all_that_was_synced(node: Node, make: Make, fs: str) -> None:
    """So is a restored snapshot: its journal is as it was, dirty, and its UUID is the source's."""
    source = make(fs)
    node.stage(source)
    path = node.publish(source)
    node.guest.sh(
        f"for i in $(seq 50); do echo $i > {path}/$i; done; sync -f {path}; rm {path}/50; echo 51 > {path}/51; sync {path}/51"
    )
    copy = make(fs, size=SIZE + (64 << 20), name="-copy")
    copied = f"dd if={source.export.file} of={copy.export.file} bs=1M conv=notrunc,sparse,fsync status=none"
    source.export.target.sh(copied, timeout=300)
    node.stage(copy)
    restored = node.publish(copy)
    assert node.guest.sh(f"cat {restored}/49 {restored}/51") == "49\n51\n"
    # The volume was made larger than its source: the file system has grown into it.
    assert node.stats(copy)["BYTES"].total > node.stats(source)["BYTES"].total + (32 << 20)


@pytest.mark.long
@pytest.mark.parametrize("fs", [BLOCK, "ext4", "xfs"])
def test_a_volume_grows_while_it_is_used(node: Node, make: Make, fs: str) -> None:
    volume = make(fs)
    node.stage(volume)
    node.publish(volume)
    before = node.stats(volume)["BYTES"].total
    larger = SIZE + (128 << 20)
    assert "bytes here, and not" in refused(grpc.StatusCode.UNAVAILABLE, node.expand, volume, larger, timeout=4)
    volume.export.target.sh(f"""
        truncate -s {larger} {volume.export.file}
        echo 1 > /sys/kernel/config/nvmet/subsystems/{volume.export.nqn}/namespaces/1/revalidate_size
    """)
    for _ in range(2):
        assert node.expand(volume, larger) == larger
    assert node.stats(volume)["BYTES"].total > before + (96 << 20)


@pytest.mark.long
def test_a_full_file_system_is_measured_unpublished_and_staged_again(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    path = node.publish(volume)
    node.guest.ask(f"dd if=/dev/zero of={path}/fill bs=1M status=none; sync -f {path}", timeout=120)
    assert node.stats(volume)["BYTES"].available == 0
    node.unpublish(volume)
    node.unstage(volume)
    node.stage(volume)


@pytest.mark.long
def test_a_file_system_that_the_kernel_made_read_only_is_not_grown_and_can_be_taken_away(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    path = node.publish(volume)
    disk = node.disk(volume).removeprefix("/dev/")
    node.guest.sh(f"mount -o remount,errors=remount-ro {volume.staging}; echo test > /sys/fs/ext4/{disk}/trigger_fs_error")
    assert node.guest.ask(f"touch {path}/x").status != 0
    assert "read-only now" in refused(IN_USE, node.expand, volume, SIZE)
    assert node.stats(volume)["BYTES"].total
    node.stage(volume)
    node.unpublish(volume)
    node.unstage(volume)
    assert not node.connected(volume)


@pytest.mark.long
def test_an_xfs_that_has_shut_itself_down_is_not_measured_or_grown_and_can_be_taken_away(node: Node, make: Make) -> None:
    volume = make("xfs")
    node.stage(volume)
    path = node.publish(volume)
    node.guest.ask(f"xfs_io -x -c shutdown {path}")
    assert node.guest.ask(f"ls {path}").status != 0
    assert "read-only now" in refused(IN_USE, node.expand, volume, SIZE)
    assert "shut itself down" in refused(grpc.StatusCode.UNAVAILABLE, node.stats, volume)
    node.stage(volume)
    node.unpublish(volume)
    node.unstage(volume)
    node.stage(volume)
    node.guest.sh(f"ls {node.publish(volume)}")


@pytest.mark.long
def test_a_reader_cannot_write_to_a_block_device_and_the_next_writer_can(node: Node, make: Make) -> None:
    reader = make(mode=Mode.MULTI_NODE_READER_ONLY)
    writer = Volume(reader.export)
    write = "dd if=/dev/zero of={} bs=4096 count=1 oflag=direct conv=nocreat status=none"
    for _ in range(2):
        node.stage(reader)
    path = node.publish(reader)
    assert node.guest.ask(write.format(path)).status != 0
    # The session of a reader that was never unstaged.
    node.stage(writer)
    node.publish(writer)
    node.guest.sh(write.format(path))


@pytest.mark.long
def test_a_read_only_pod_of_a_volume_that_others_write_to_cannot_write(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    writes, reads = node.publish(volume), node.publish(volume, "reader", read_only=True)
    node.guest.sh(f"echo text > {writes}/file")
    assert node.guest.sh(f"cat {reads}/file") == "text\n"
    assert node.guest.ask(f"touch {reads}/file").status != 0


@pytest.mark.long
def test_a_volume_for_one_pod_alone_is_not_given_to_a_second_one(node: Node, make: Make) -> None:
    volume = make("ext4", mode=Mode.SINGLE_NODE_SINGLE_WRITER)
    node.stage(volume)
    for _ in range(2):
        node.publish(volume)
    assert "for one pod alone" in refused(IN_USE, node.publish, volume, "pod-2")


class InOneDirectory(Volume):
    """A block volume whose device nodes lie as a kubelet has them: in a directory of the volume, one for each pod."""

    def target(self, pod: str = "pod-1") -> str:
        return f"{KUBELET}/plugins/kubernetes.io/csi/volumeDevices/publish/{self.handle}/{pod}"


@pytest.mark.long
def test_a_block_volume_for_one_pod_alone_is_not_given_to_a_second_one(node: Node, make: Make) -> None:
    volume = InOneDirectory(make().export, mode=Mode.SINGLE_NODE_SINGLE_WRITER)
    node.stage(volume)
    for _ in range(2):
        node.publish(volume)
    assert "for one pod alone" in refused(IN_USE, node.publish, volume, "pod-2")
    node.unpublish(volume)
    node.publish(volume, "pod-2")
    node.unpublish(volume, "pod-2")


@pytest.mark.long
def test_mount_options_are_those_asked_for_and_nosuid_and_nodev_always(node: Node, make: Make) -> None:
    volume = make("ext4", flags=("noatime", "noexec"))
    node.stage(volume)
    for path in (volume.staging, node.publish(volume)):
        assert {"nosuid", "nodev", "noexec", "noatime"} <= set(node.mounts(path)[-1].split(","))
    refused(grpc.StatusCode.INVALID_ARGUMENT, node.stage, Volume(volume.export, "ext4", flags=("suid",)))


@pytest.mark.long
def test_programs_on_a_volume_run_unless_noexec_is_asked_for(node: Node, make: Make) -> None:
    volume = make("ext4")
    node.stage(volume)
    path = node.publish(volume)
    assert node.guest.sh(f"cp /bin/true {path}/program && {path}/program && echo ran") == "ran\n"
