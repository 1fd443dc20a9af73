"""What is noticed of keys that change on disk."""

from __future__ import annotations

from pathlib import Path

import asyncssh
import pytest

from rds_csi.routeros import HostKeyRefused
from rds_csi.routeros.credentials import Credentials, read_host_key
from rds_csi.routeros.options import box_settings


def public_key() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A private key's file and a host key's; what stands in the first is only compared here."""
    private, host = tmp_path / "private", tmp_path / "host"
    private.write_text("the private one")
    host.write_text(public_key())
    return private, host


def test_what_did_not_change_is_the_same_and_shows_nothing_of_the_key(files: tuple[Path, Path]) -> None:
    seen = Credentials.seen(*files)
    files[1].write_text(f"# of the box\n[10.0.0.5]:22 {files[1].read_text()}")
    assert seen.change(Credentials.seen(*files)) == ""
    assert "the private one" not in repr(seen)


def test_it_is_said_which_of_them_changed(files: tuple[Path, Path]) -> None:
    before = Credentials.seen(*files)
    files[0].write_text("another")
    assert before.change(Credentials.seen(*files)) == "the private key changed"
    files[1].write_text(public_key())
    assert before.change(Credentials.seen(*files)) == "the private key changed and the host key to expect changed"
    files[0].unlink()
    files[1].write_text("nonsense")
    said = before.change(Credentials.seen(*files))
    assert said == "the private key can no longer be read and the host key to expect can no longer be read"


def test_a_host_key_that_stands_on_the_command_line_does_not_change(files: tuple[Path, Path]) -> None:
    seen = Credentials.seen(files[0], None)
    files[1].unlink()
    assert seen.change(Credentials.seen(files[0], None)) == ""


@pytest.mark.parametrize("content", [b"", b"nonsense hush-hush", b"\xff\xfe", None])
def test_where_no_host_key_can_be_read_nobody_is_taken_for_the_box(files: tuple[Path, Path], content: bytes | None) -> None:
    host = files[1]
    host.unlink()
    if content is not None:
        host.write_bytes(content)
    with pytest.raises(HostKeyRefused, match="nobody is taken for the box") as caught:
        read_host_key(host)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("content", ["", "nonsense"])
def test_a_start_with_a_host_key_file_that_tells_none_is_refused(files: tuple[Path, Path], content: str, insecure: bool) -> None:
    files[1].write_text(content)
    with pytest.raises(ValueError, match="host key"):
        box_settings(
            rds_address="10.0.0.5",
            rds_port=22,
            rds_user="admin",
            rds_key_file=str(files[0]),
            rds_host_key=str(files[1]),
            rds_insecure_skip_verify=insecure,
        )
