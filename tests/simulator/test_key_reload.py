"""Keys of a mounted Secret that change under a connection, over real SSH."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest

from rds_csi.routeros import BoxUnreachable, HostKeyRefused, LoginRefused, OutcomeUnknown, Transport
from rds_process.logs import AUDIT
from tests.mounted_secret import MountedSecret
from tests.simulator import SimulatedBox
from tests.simulator.conftest import Client, client_of, spec, within
from tests.simulator.test_box_over_ssh import until

PRIVATE, HOST = "id_rsa", "host-key"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedBox]:
    """A box whose keys these tests may change."""
    with SimulatedBox(tmp_path_factory.mktemp("renewed")) as box:
        yield box


@pytest.fixture
def secret(own: SimulatedBox, tmp_path: Path) -> MountedSecret:
    """The mounted Secret with the keys of that box."""
    own.reset()
    return MountedSecret(tmp_path / "secret", good(own))


@pytest.fixture
async def linked(own: SimulatedBox, secret: MountedSecret) -> AsyncIterator[Client]:
    """A client that is connected with what the Secret holds."""
    async with client_of(own, key_file=secret / PRIVATE, host_key_file=secret / HOST) as client:
        await client[1].wait_connected(5)
        yield client


def good(box: SimulatedBox) -> dict[str, bytes | str]:
    return {PRIVATE: box.private_key.read_bytes(), HOST: box.host_key}


def audited(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    fields = [record.__dict__ for record in caplog.records if record.name == AUDIT]
    return [(one["audit"], one["box"], one["reason"]) for one in fields]


def another_host_key() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()


def another_private_key() -> bytes:
    return asyncssh.generate_private_key("ssh-ed25519").export_private_key()


async def refused(transport: Transport) -> BoxUnreachable:
    """Wait until an attempt with the new keys was refused; return how."""
    await until(lambda: isinstance(transport.trouble, HostKeyRefused | LoginRefused))
    assert transport.trouble is not None
    return transport.trouble


async def test_a_box_with_new_keys_is_reached_when_the_secret_has_them(
    own: SimulatedBox, secret: MountedSecret, linked: Client
) -> None:
    box, transport, _ = linked
    own.renew_keys()
    assert isinstance(await refused(transport), HostKeyRefused)
    assert own.received() == [], "nothing is said to a box that is not the expected one"
    secret.put(good(own))
    await until(lambda: transport.connected)
    assert await box.disks(deadline=within(5)) == ()


async def test_a_link_does_not_outlive_the_host_key_that_it_was_made_with(
    own: SimulatedBox, secret: MountedSecret, linked: Client, caplog: pytest.LogCaptureFixture
) -> None:
    _, transport, watched = linked
    other = another_host_key()
    secret.put({**good(own), HOST: other})
    trouble = await refused(transport)
    assert isinstance(trouble, HostKeyRefused)
    assert "SHA256:" in str(trouble)
    with pytest.raises(HostKeyRefused):
        await transport.run("/disk print detail", deadline=within(1))
    assert own.received() == []
    loud = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.__dict__["reason"] for record in loud] == [str(trouble)], "once, however often it is tried"
    assert audited(caplog) == [("host_key.refused", f"{own.address}:{own.port}", str(trouble))]
    secret.put(good(own))
    await until(lambda: transport.connected)
    assert watched.states[-1]


async def test_a_link_does_not_outlive_the_private_key_that_it_was_made_with(
    own: SimulatedBox, secret: MountedSecret, linked: Client, caplog: pytest.LogCaptureFixture
) -> None:
    _, transport, _ = linked
    secret.put({**good(own), PRIVATE: another_private_key()})
    assert isinstance(await refused(transport), LoginRefused)
    assert any(record.levelno == logging.ERROR and "refuses user" in record.__dict__["reason"] for record in caplog.records)
    assert [kind for kind, _, _ in audited(caplog)] == ["login.refused"]
    assert "PRIVATE KEY" not in caplog.text
    secret.put(good(own))
    await until(lambda: transport.connected)


@pytest.mark.parametrize("content", ["", "nonsense", None])
async def test_a_host_key_that_cannot_be_read_any_more_lets_nobody_in(
    own: SimulatedBox, secret: MountedSecret, linked: Client, content: str | None
) -> None:
    _, transport, _ = linked
    files = {name: text for name, text in {**good(own), HOST: content}.items() if text is not None}
    secret.put(files)
    trouble = await refused(transport)
    assert isinstance(trouble, HostKeyRefused)
    assert "nobody is taken for the box" in str(trouble)
    secret.put(good(own))
    await until(lambda: transport.connected)


async def test_a_swap_that_changes_nothing_keeps_the_link(own: SimulatedBox, secret: MountedSecret, linked: Client) -> None:
    box, transport, watched = linked
    secret.put({**good(own), "something-else": "new"})
    looked = asyncio.get_running_loop().time() + 5 * 0.2
    await until(lambda: asyncio.get_running_loop().time() > looked)
    assert transport.connected
    assert watched.states == [False, True]
    assert await box.disks(deadline=within(5)) == ()


async def test_what_is_under_way_ends_on_the_old_link_and_what_comes_later_takes_the_new_one(
    own: SimulatedBox, secret: MountedSecret, linked: Client
) -> None:
    box, _, watched = linked
    own.switch(latency={"/disk print": 1.0})
    under_way = asyncio.create_task(box.disks(deadline=within(10)))
    await until(lambda: bool(own.received()))
    # The same key in another form: another file, but the box takes it.
    secret.put({**good(own), PRIVATE: asyncssh.read_private_key(own.private_key).export_private_key("openssh") + b"\n"})
    assert await under_way == ()
    await until(lambda: watched.attempts == [True, True])
    assert watched.states == [False, True, False, True]
    own.switch(latency={})
    await box.create_disk(spec(), deadline=within(5))


async def test_what_does_not_end_holds_no_old_link_for_long(own: SimulatedBox, secret: MountedSecret) -> None:
    files = {"key_file": secret / PRIVATE, "host_key_file": secret / HOST}
    async with client_of(own, **files, renewal_patience=0.3) as (_, transport, _):
        await transport.wait_connected(5)
        own.switch(latency={"/disk print": 4.0})
        under_way = asyncio.create_task(transport.run("/disk print detail", deadline=within(10)))
        await until(lambda: bool(own.received()))
        secret.put({**good(own), HOST: another_host_key()})
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(under_way, 3.0)
        assert isinstance(await refused(transport), HostKeyRefused)


def test_the_swap_is_one_rename(tmp_path: Path) -> None:
    secret = MountedSecret(tmp_path / "secret", {PRIVATE: "one", HOST: "1"})
    first = (secret / PRIVATE).resolve()
    secret.put({PRIVATE: "two", HOST: "2"})
    assert ((secret / PRIVATE).read_text(), (secret / HOST).read_text()) == ("two", "2")
    assert not first.exists()
    assert (secret / PRIVATE).is_symlink()
