"""Which files say who we are and whom we expect, and whether they say it still: a Secret that is mounted changes in place."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rds_csi.routeros.errors import HostKeyRefused, KeyUnusable
from rds_csi.routeros.hostkey import HostKey

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Credentials:
    """What the files say, told without their contents; two that are equal log in alike and expect the same box."""

    private_key: str
    host_key: str

    @classmethod
    def seen(cls, key_file: Path, host_key_file: Path | None) -> Self:
        """Look into the files. Never raises: what cannot be read is a state like any other, and none that a link may rest on."""
        try:
            private = hashlib.sha256(key_file.read_bytes()).hexdigest()
        except OSError:
            private = UNREADABLE
        try:
            host = "" if host_key_file is None else read_host_key(host_key_file).fingerprint
        except HostKeyRefused:
            host = UNREADABLE
        return cls(private, host)

    def change(self, now: "Credentials") -> str:
        """Return what is different now; empty where nothing is."""
        parts = (("private key", self.private_key, now.private_key), ("host key to expect", self.host_key, now.host_key))
        return " and ".join(
            f"the {name} {'can no longer be read' if new == UNREADABLE else 'changed'}" for name, old, new in parts if old != new
        )


def read_host_key(file: Path) -> HostKey:
    """Return the host key to expect. HostKeyRefused where the file tells none: then nobody is taken for the box."""
    try:
        return HostKey.parse(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise HostKeyRefused(f"nobody is taken for the box: {file} cannot be read: {type(error).__name__}") from None
    except KeyUnusable as error:
        raise HostKeyRefused(f"nobody is taken for the box: {file}: {error}") from None
