"""The options of a command line that say where the box is and how to log in to it."""

import argparse
import re
from pathlib import Path
from typing import Final

from rds_csi.routeros.commands import FilePath
from rds_csi.routeros.hostkey import HostKey
from rds_csi.routeros.transport import Settings
from rds_process.options import Options
from rds_records.imports import DEFAULT_BASE_PATH
from rds_records.names import check_ip_address, is_dns_name

DEFAULT_KEY_FILE: Final = "/etc/rds-csi/ssh-key/id_rsa"
MAX_BASE_PATH: Final = 256
"""Characters of a base path: the names of a volume, a snapshot and their files still fit behind it."""

BOX_OPTIONS: Final = ("rds_address", "rds_port", "rds_user", "rds_key_file", "rds_host_key", "rds_insecure_skip_verify")
"""What ``box_settings`` takes, by the names that argparse gives the options."""

_USER = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._@+-]{0,63}")


def add_box_options(options: Options) -> None:
    """Add them; ``box_settings`` reads them."""
    add = options.add
    add("--rds-address", "the box: where SSH is answered", metavar="HOST", kind=_host, variables=["RDS_ADDRESS"])
    add("--rds-port", "its SSH port", default="22", metavar="PORT", kind=port, variables=["RDS_PORT"])
    add("--rds-user", "the user to log in as", default="admin", metavar="NAME", kind=_user, variables=["RDS_USER"])
    add("--rds-key-file", "the user's private key; a file that changes is taken up", default=DEFAULT_KEY_FILE, metavar="FILE")
    add(
        "--rds-host-key",
        "the host key that the box must present, a line as in authorized_keys, or a file with it; one that changes is taken up",
        metavar="KEY|FILE",
    )
    options.switch("--rds-insecure-skip-verify", "connect without a host key, to whoever answers; for tests")
    add(
        "--rds-volume-base-path",
        "directory on the box under which all volumes lie",
        default=DEFAULT_BASE_PATH,
        metavar="PATH",
        kind=check_base_path,
        variables=["RDS_VOLUME_BASE_PATH"],
    )


def lacking(chosen: argparse.Namespace) -> str:
    """Return what is wrong with the options together; empty where nothing is."""
    if not chosen.rds_address:
        return "--rds-address is required"
    if not chosen.rds_host_key and not chosen.rds_insecure_skip_verify:
        return "--rds-host-key is required: without it whoever answers is taken for the box"
    return ""


def box_settings(
    *, rds_address: str, rds_port: int, rds_user: str, rds_key_file: str, rds_host_key: str, rds_insecure_skip_verify: bool
) -> Settings:
    """Return how to reach the box; raises ValueError where the host key cannot be read."""
    file = Path(rds_host_key) if rds_host_key.startswith("/") else None
    text = rds_host_key
    if file is not None:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the file of --rds-host-key cannot be read: {error}") from error
    return Settings(
        address=rds_address,
        port=rds_port,
        user=rds_user,
        key_file=Path(rds_key_file),
        # A file that tells no key ends the start, also an empty one.
        host_key=HostKey.parse(text) if text or file else None,
        host_key_file=file,
        insecure_skip_verify=rds_insecure_skip_verify,
    )


def check_base_path(path: str) -> str:
    """Return the base path unchanged, or raise ValueError where it is no directory under a mount point of the box."""
    checked = FilePath(path)
    if len(checked) > MAX_BASE_PATH:
        raise ValueError(f"a base path has at most {MAX_BASE_PATH} characters: {path[:60]!r}…")
    return str(checked)


def port(text: str) -> int:
    """Return a TCP port; raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65_536:
        raise ValueError(f"{text[:60]!r} is no port from 1 to 65535")
    return int(text)


def _host(text: str) -> str:
    if text and not is_dns_name(text):
        try:
            check_ip_address(text)
        except ValueError as error:
            raise ValueError(f"{text[:60]!r} is neither an IP address nor a DNS name") from error
    return text


def _user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ValueError(f"{text[:60]!r} is no user name")
    return text
