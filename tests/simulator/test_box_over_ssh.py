"""The client against the simulated box, over real SSH."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest

from rds_csi.routeros import (
    BoxUnreachable,
    DiskInTheWay,
    FileInTheWay,
    HostKey,
    HostKeyRefused,
    KeyUnusable,
    Leftover,
    LoginRefused,
    NotUnderstood,
    OutcomeUnknown,
    PoolFull,
    ReadBackMismatch,
    SessionRefused,
    Settings,
    exchange,
)
from tests.simulator import SimulatedBox
from tests.simulator.conftest import HANDLE, Client, client_of, settings_for, spec, within

FILE = f"storage-pool/metal-csi/{HANDLE}.img"


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> float:
    """Wait for a condition; how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + timeout, "it did not happen in time"
        await asyncio.sleep(0.02)
    return time.monotonic() - begin


# Volumes


async def test_a_created_disk_is_on_the_box_as_specified(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    disk = await box.create_disk(spec(), deadline=within(5))
    assert disk.differences(spec()) == {}
    kept = ros.disks()[HANDLE]
    assert (kept["size"], kept["file_path"], kept["nvme_tcp_export"]) == (50 << 30, "/" + FILE, True)
    assert not kept["mount_filesystem"]


async def test_creating_twice_sends_one_add(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    first = await box.create_disk(spec(), deadline=within(5))
    assert await box.create_disk(spec(), deadline=within(5)) == first
    assert len(ros.received("/disk add")) == 1


async def test_a_deleted_volume_leaves_neither_disk_nor_file(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    await box.delete_disk(spec().slot, path=spec().path, deadline=within(5))
    assert list(ros.files()) == [FILE], "the box leaves the file"
    await box.delete_file(spec().path, deadline=within(5))
    assert ros.files() == {}
    await box.delete_disk(spec().slot, deadline=within(5))
    await box.delete_file(spec().path, deadline=within(5))


async def test_a_disk_of_another_size_is_in_the_way(client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    with pytest.raises(DiskInTheWay, match="size is 53687091200 instead of 54760833024"):
        await box.create_disk(spec(size=51 << 30), deadline=within(5))


async def test_a_disk_that_lost_its_export_gets_it_back(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    ros.run(f"/disk set {HANDLE} nvme-tcp-export=no")
    assert (await box.create_disk(spec(), deadline=within(5))).exported


async def test_a_file_without_a_disk_is_not_taken_for_a_new_volume(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    await box.delete_disk(spec().slot, deadline=within(5))
    with pytest.raises(FileInTheWay, match="may hold data"):
        await box.create_disk(spec(size=60 << 30), deadline=within(5))
    await box.create_disk(spec(size=60 << 30), leftover=Leftover.REMOVE, deadline=within(5))
    assert ros.files()[FILE]["size"] == 60 << 30


async def test_a_file_that_a_disk_is_made_of_is_not_removed(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    with pytest.raises(DiskInTheWay):
        await box.delete_file(spec().path, deadline=within(5))
    assert list(ros.files()) == [FILE]


async def test_a_directory_is_not_removed(client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    with pytest.raises(FileInTheWay, match="directory"):
        await box.delete_file(type(spec().path)("/storage-pool/metal-csi"), deadline=within(5))


@pytest.mark.parametrize("width", [40, 80, 132, 200])
async def test_answers_are_read_at_any_width(ros: SimulatedBox, client: Client, width: int) -> None:
    box, _, _ = client
    ros.switch(width=width)
    other = spec("pvc-0f923194-922a-5dd8-b376-c2c6ccb56dd8", size=1 << 40)
    made = [await box.create_disk(each, deadline=within(5)) for each in (spec(), other)]
    assert list(await box.disks(deadline=within(5))) == made
    file = await box.file(spec().path, deadline=within(5))
    assert file is not None
    assert file.is_regular
    capacity = await box.capacity("storage-pool", deadline=within(5))
    assert (capacity.size, capacity.free) == (7_681_574_174_720, 7_681_574_174_720 - (50 << 30) - (1 << 40))


async def test_a_box_that_cuts_slots_is_found_out(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    ros.switch(slot_limit=32)
    with pytest.raises(ReadBackMismatch, match=r"keeps only 32 characters.*--slot-names=short") as caught:
        await box.create_disk(spec(), deadline=within(5))
    assert list(caught.value.differences) == ["slot"]
    with pytest.raises(ReadBackMismatch, match="--slot-names=short"):
        await box.create_disk(spec(), leftover=Leftover.REMOVE, deadline=within(5))
    assert list(ros.files()) == [FILE], "what the disk in the cut slot is made of stays"


async def test_a_full_pool_says_so_and_leaves_nothing(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    ros.switch(full_pool=True)
    with pytest.raises(PoolFull):
        await box.create_disk(spec(), deadline=within(5))
    assert (ros.disks(), ros.files()) == ({}, {})
    assert (await box.capacity("storage-pool", deadline=within(5))).free == 0


@pytest.mark.parametrize(("stream", "status"), [("stdout", 0), ("stdout", 1), ("stderr", 0), ("stderr", 1)])
async def test_an_error_is_an_error_on_any_stream_with_any_status(
    ros: SimulatedBox, client: Client, stream: str, status: int
) -> None:
    box, transport, _ = client
    ros.switch(error_stream=stream, error_status=status)
    with pytest.raises(PoolFull):
        await box.create_disk(spec(size=16 << 40), deadline=within(5))
    with pytest.raises(NotUnderstood):
        await exchange.read(transport, "/disk print detail where; /frobnicate", within(5))


async def test_a_slot_that_the_box_does_not_know_is_deleted_already(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    ros.switch(missing_item="no such item")
    await box.delete_disk(spec("pvc-gone").slot, deadline=within(5))
    assert HANDLE in ros.disks()


# Who is at the other end


async def test_another_host_key_than_the_pinned_one_is_refused(ros: SimulatedBox) -> None:
    other = HostKey.parse(asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode())
    async with client_of(ros, host_key=other) as (_, transport, _):
        with pytest.raises(HostKeyRefused) as caught:
            await transport.run("/disk print detail", deadline=within(5))
    assert other.fingerprint in str(caught.value)
    assert HostKey.parse(ros.host_key).fingerprint in str(caught.value)
    assert ros.received() == []


async def test_an_rsa_host_key_can_be_pinned(tmp_path: Path) -> None:
    with SimulatedBox(tmp_path / "rsa", host_key_type="ssh-rsa") as ros:
        assert ros.host_key.startswith("ssh-rsa ")
        async with client_of(ros) as (_, transport, _):
            await transport.wait_connected(5)


async def test_a_host_key_of_another_type_is_refused(ros: SimulatedBox) -> None:
    other = HostKey.parse(asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_public_key().decode())
    async with client_of(ros, host_key=other) as (_, transport, _):
        with pytest.raises(HostKeyRefused, match=r"ssh-ed25519 SHA256:.*expected ssh-rsa SHA256:"):
            await transport.run("/disk print detail", deadline=within(5))


async def test_without_a_host_key_nothing_starts(ros: SimulatedBox) -> None:
    with pytest.raises(KeyUnusable):
        settings_for(ros, host_key=None)


async def test_the_insecure_flag_warns_at_each_start(ros: SimulatedBox, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        async with client_of(ros, host_key=None, insecure_skip_verify=True) as (_, transport, _):
            await transport.wait_connected(5)
        assert [record.levelno for record in caplog.records if "NOT verified" in record.message] == [logging.WARNING]


async def test_ssh_files_of_the_user_are_neither_read_nor_written(
    ros: SimulatedBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text("Host *\n  Port 1\n  User nobody\n")
    (home / ".ssh" / "known_hosts").write_text("")
    monkeypatch.setenv("HOME", str(home))
    async with client_of(ros) as (_, transport, _):
        await transport.wait_connected(5)
    assert sorted(path.name for path in (home / ".ssh").iterdir()) == ["config", "known_hosts"]
    assert (home / ".ssh" / "known_hosts").read_text() == ""


async def test_a_renewed_private_key_is_taken_up(ros: SimulatedBox, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key_file)
    async with client_of(ros, key_file=key_file) as (_, transport, _):
        with pytest.raises(LoginRefused):
            await transport.run("/disk print detail", deadline=within(5))
        key_file.write_bytes(ros.private_key.read_bytes())
        await until(lambda: transport.connected)


async def test_a_missing_private_key_is_trouble_with_a_name(ros: SimulatedBox, tmp_path: Path) -> None:
    async with client_of(ros, key_file=tmp_path / "none") as (_, transport, _):
        with pytest.raises(LoginRefused, match="FileNotFoundError"):
            await transport.run("/disk print detail", deadline=within(5))


# Links that fail


async def test_an_add_whose_answer_was_lost_is_found_done(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    ros.drop_link("after", "^/disk add")
    assert (await box.create_disk(spec(), deadline=within(5))).size == 50 << 30
    assert len(ros.received("/disk add")) == 1


async def test_an_add_that_never_arrived_is_unknown_until_the_next_call(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    ros.drop_link("before", "^/disk add")
    with pytest.raises(OutcomeUnknown):
        await box.create_disk(spec(), deadline=within(5))
    assert ros.received()[-1].startswith("/disk print detail"), "it looked before it answered"
    await box.create_disk(spec(), deadline=within(5))
    assert len(ros.disks()) == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["^/disk remove", "^/file remove"])
async def test_deleting_ends_well_over_lost_links(ros: SimulatedBox, client: Client, when: str, what: str) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    ros.drop_link(when, what)

    async def delete() -> None:
        await box.delete_disk(spec().slot, deadline=within(5))
        await box.delete_file(spec().path, deadline=within(5))

    if when == "before":
        with pytest.raises(OutcomeUnknown):
            await delete()
    await delete()
    assert (ros.disks(), ros.files()) == ({}, {})


async def test_a_read_whose_link_is_lost_is_no_absence(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    await box.create_disk(spec(), deadline=within(5))
    ros.drop_link("after", "^/disk print")
    with pytest.raises(OutcomeUnknown):
        await box.disk(spec().slot, deadline=within(5))
    assert await box.disk(spec().slot, deadline=within(5)) is not None


@pytest.mark.requirement("R20")
async def test_a_client_that_starts_before_the_box_finds_it_later(ros: SimulatedBox) -> None:
    ros.stop()
    async with client_of(ros) as (box, transport, watched):
        begin = time.monotonic()
        with pytest.raises(BoxUnreachable, match="cannot connect"):
            await box.disks(deadline=within(5))
        assert time.monotonic() - begin < 2
        assert watched.states == [False]
        ros.start()
        await until(lambda: transport.connected)
        assert await box.disks(deadline=within(5)) == ()
        assert watched.states == [False, True]
        assert watched.attempts[-1]
        assert not watched.attempts[0]


async def test_a_killed_box_keeps_its_disks_and_is_found_again(ros: SimulatedBox, client: Client) -> None:
    box, transport, watched = client
    made = await box.create_disk(spec(), deadline=within(5))
    ros.kill()
    await until(lambda: not transport.connected)
    trouble = transport.trouble
    assert isinstance(trouble, BoxUnreachable)
    ros.start()
    await until(lambda: transport.connected)
    assert transport.trouble is None
    assert await box.disk(spec().slot, deadline=within(5)) == made
    assert watched.states == [False, True, False, True]


async def test_a_call_on_a_link_that_was_just_cut_waits_for_the_next_one(ros: SimulatedBox) -> None:
    # A call waits for one attempt, and that may take its time on a busy machine: how quick it is, is not asked here.
    async with client_of(ros, connect_timeout=10.0, session_timeout=10.0) as (box, transport, _):
        await transport.wait_connected(10)
        ros.cut()
        assert await box.disks(deadline=within(20)) == ()


# Silence


@pytest.mark.requirement("R19")
async def test_in_a_black_hole_every_call_ends_by_its_deadline(ros: SimulatedBox, client: Client) -> None:
    box, transport, _ = client
    ros.switch(black_hole=True)
    begin = time.monotonic()
    calls = [box.disks(deadline=begin + 0.3 * number) for number in range(1, 13)]
    ends: list[float] = []

    async def timed(call: object) -> None:
        with pytest.raises((BoxUnreachable, OutcomeUnknown)):
            await call  # type: ignore[misc]
        ends.append(time.monotonic() - begin)

    await asyncio.gather(*(timed(call) for call in calls))
    late = [end - 0.3 * number for number, end in enumerate(sorted(ends), start=1)]
    assert max(late) < 1, late
    assert not transport.connected


@pytest.mark.requirement("R19")
async def test_a_silent_box_is_noticed_without_any_call_and_found_when_it_is_back(ros: SimulatedBox, client: Client) -> None:
    box, transport, watched = client
    ros.switch(black_hole=True)
    noticed = await until(lambda: not transport.connected)
    assert noticed < 4, noticed
    ros.switch(black_hole=False)
    assert await until(lambda: transport.connected) < 4
    assert await box.disks(deadline=within(5)) == ()
    assert watched.states == [False, True, False, True]


@pytest.mark.requirement("R19")
def test_default_timeouts_notice_silence_and_return_within_thirty_seconds(tmp_path: Path) -> None:
    defaults = Settings("192.0.2.1", "user", tmp_path / "key", insecure_skip_verify=True)
    assert defaults.probe_interval + 2 * defaults.session_timeout < 30
    steps_of_an_attempt = 3
    assert defaults.backoff_longest + steps_of_an_attempt * defaults.connect_timeout < 30


@pytest.mark.requirement("R19")
async def test_a_box_that_accepts_and_never_speaks_is_unreachable(ros: SimulatedBox) -> None:
    ros.switch(black_hole=True)
    async with client_of(ros) as (box, transport, _):
        with pytest.raises(BoxUnreachable):
            await box.disks(deadline=within(1.5))
        ros.switch(black_hole=False)
        await transport.wait_connected(4)


@pytest.mark.requirement("R19")
async def test_a_call_that_was_sent_into_silence_has_an_unknown_outcome(ros: SimulatedBox, client: Client) -> None:
    _, transport, _ = client
    ros.switch(latency={"/disk add": 60})
    with pytest.raises(OutcomeUnknown):
        await transport.run("/disk add x=1", deadline=within(0.3))


async def test_time_that_runs_out_over_a_change_is_no_unreachable_box(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    ros.switch(latency={"/disk add": 2.0})
    with pytest.raises(OutcomeUnknown):
        await box.create_disk(spec(), deadline=within(1.5))
    await until(lambda: HANDLE in ros.disks(), 20.0)
    await box.create_disk(spec(), deadline=within(5))
    assert len(ros.received("/disk add")) == 1


async def test_a_slow_command_does_not_cost_the_link(ros: SimulatedBox, client: Client) -> None:
    box, _, watched = client
    ros.switch(latency={"/disk print": 1.0})
    with pytest.raises(OutcomeUnknown):
        await box.disks(deadline=within(0.3))
    ros.switch(latency={})
    assert await box.disks(deadline=within(5)) == ()
    assert watched.states == [False, True]


async def test_cancelled_calls_give_their_places_back(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    ros.switch(latency={"/disk print": 60})
    calls = [asyncio.ensure_future(box.disks(deadline=within(60))) for _ in range(4)]
    await until(lambda: len(ros.received("/disk print")) == 4)
    begin = time.monotonic()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - begin < 1
    ros.switch(latency={})
    assert await box.disks(deadline=within(2)) == ()


async def test_black_holes_do_not_pile_up_threads(ros: SimulatedBox, client: Client) -> None:
    box, transport, _ = client
    before = threading.active_count()
    ros.switch(black_hole=True)
    for _ in range(6):
        await asyncio.gather(*(box.disks(deadline=within(0.2)) for _ in range(6)), return_exceptions=True)
    ros.switch(black_hole=False)
    await transport.wait_connected(5)
    # Worker threads are bounded and stay; what runs besides them ends.
    await until(lambda: threading.active_count() <= before + 8)


async def test_closing_in_a_black_hole_ends_every_call_soon(ros: SimulatedBox) -> None:
    async with client_of(ros) as (box, transport, _):
        await transport.wait_connected(5)
        ros.switch(black_hole=True)
        calls = [asyncio.ensure_future(box.disks(deadline=within(60))) for _ in range(8)]
        await asyncio.sleep(0.1)
        begin = time.monotonic()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - begin < 3
    assert {type(end) for end in ends} <= {BoxUnreachable, OutcomeUnknown}
    with pytest.raises(BoxUnreachable, match="closed"):
        await box.disks(deadline=within(5))


# Sessions


async def test_a_box_that_refuses_parallel_sessions_serves_parallel_calls(ros: SimulatedBox, client: Client) -> None:
    box, _, watched = client
    ros.switch(max_sessions=1, latency={"/disk print": 0.05})
    answers = await asyncio.gather(*(box.disks(deadline=within(5)) for _ in range(8)))
    assert answers == [()] * 8
    assert watched.states == [False, True]


async def test_a_box_that_opens_no_session_refuses_by_the_deadline(ros: SimulatedBox, client: Client) -> None:
    box, _, watched = client
    ros.switch(max_sessions=0)
    with pytest.raises(SessionRefused):
        await box.disks(deadline=within(0.5))
    assert watched.states == [False, True], "a refusal is an answer"


async def test_commands_run_side_by_side(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    ros.switch(latency={"/disk print": 1.0})
    begin = time.monotonic()
    await asyncio.gather(*(box.disks(deadline=within(10)) for _ in range(4)))
    assert time.monotonic() - begin < 3.0


async def test_a_call_past_its_deadline_sends_nothing(ros: SimulatedBox, client: Client) -> None:
    box, _, _ = client
    with pytest.raises(BoxUnreachable):
        await box.disks(deadline=time.monotonic() - 1)
    assert ros.received() == []


def test_a_port_that_nobody_listens_on_is_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "key")

    async def connect() -> None:
        from rds_csi.routeros import Transport

        settings = Settings("127.0.0.1", "user", tmp_path / "key", port=port, insecure_skip_verify=True)
        async with Transport(settings) as transport:
            with pytest.raises(BoxUnreachable, match=f"127.0.0.1:{port}"):
                await transport.wait_connected(1)

    asyncio.run(connect())
