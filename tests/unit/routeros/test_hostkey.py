"""Pinned host keys, with keys made here."""

from __future__ import annotations

import asyncssh
import pytest

from rds_csi.routeros import HostKey, KeyUnusable


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_host_key_is_read_in_the_forms_that_people_have(kind: str) -> None:
    key = asyncssh.generate_private_key(kind)
    line = key.export_public_key().decode().strip()
    raw = line.split()[1]
    forms = [line, f"{line} root@box", raw, f"  {line}\n", f"[10.0.0.1]:2222 {line}", f"@cert-authority box,10.0.0.1 {line}"]
    for form in forms:
        read = HostKey.parse(form)
        assert (read.kind, read.fingerprint) == (kind, key.get_fingerprint())


@pytest.mark.parametrize(
    "text", ["", "ssh-ed25519", "ssh-ed25519 AAAA", "SHA256:8ax7brQftlTiwCDHHVPj", "AAAAC3NzaC1lZDI1NTE5AAAA", "ä"]
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(KeyUnusable):
        HostKey.parse(text)


def test_a_private_key_in_the_place_of_the_host_key_is_refused_without_repeating_it() -> None:
    private = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(KeyUnusable) as caught:
        HostKey.parse(private)
    assert not any(word in str(caught.value) for word in private.split() if len(word) > 8)
