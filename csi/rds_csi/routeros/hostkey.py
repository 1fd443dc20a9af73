"""The host key that the box must present."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Self

from paramiko import PKey

from rds_csi.routeros.errors import KeyUnusable


def fingerprint(key: bytes) -> str:
    """``SHA256:…`` as ssh-keygen -l prints it, of a public key in wire format."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class HostKey:
    """A pinned public host key; ``key`` is paramiko's."""

    key: PKey

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``ssh-ed25519 AAAA…``, a known_hosts line, or the base64 alone. Raises KeyUnusable."""
        for word in text.split():
            try:
                wire = base64.b64decode(word, validate=True)
                length = int.from_bytes(wire[:4], "big")
                return cls(PKey.from_type_string(wire[4 : 4 + length].decode("ascii"), wire))
            except Exception:  # noqa: BLE001, S112 paramiko raises many kinds for bytes that are no key
                continue
        raise KeyUnusable("the host key is no public key: expected a line as in authorized_keys or known_hosts, or its base64")

    @property
    def kind(self) -> str:
        """The type: ``ssh-ed25519``, ``ssh-rsa``."""
        return str(self.key.get_name())

    @property
    def fingerprint(self) -> str:
        """The ``SHA256:…`` form."""
        return fingerprint(self.key.asbytes())
