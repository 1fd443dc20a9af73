"""Everything that can go wrong between us and the box.

::

    BoxError
    ├── BoxUnreachable            nothing was sent: trying again is always safe
    │   ├── HostKeyRefused        the peer is not the box that was pinned
    │   ├── LoginRefused          the box does not take our key
    │   └── SessionRefused        the box is there but opens no session
    ├── OutcomeUnknown            something was sent: read the state before sending it again
    ├── CommandFailed             the box says no
    │   ├── AlreadyThere          it has such an entry
    │   ├── NoSuchItem            it has no such entry
    │   ├── PoolFull              it has no space left
    │   ├── BoxBusy               the entry is in use
    │   ├── NotPermitted          our user may not do this
    │   └── NotUnderstood         it does not know this command or value (version, package)
    ├── SubvolumesMissing         it keeps no Btrfs subvolumes for us (file system, version, package)
    ├── MalformedAnswer           the answer is not what RouterOS prints
    ├── ReadBackMismatch          what is there now is not what was asked for
    └── Conflict                  something else is in the way
        ├── DiskInTheWay          another disk has our slot or our path
        ├── FileInTheWay          a file without a disk lies at our path
        └── SubvolumeInTheWay     a subvolume, or what lies in it, is not as we would make it
    InvalidName (a ValueError)    a value that may not reach a command line
    KeyUnusable (a ValueError)    the host key or private key that was configured cannot be read
"""

from collections.abc import Mapping
from dataclasses import dataclass


class BoxError(Exception):
    """Any failure of an operation on the box."""


class BoxUnreachable(BoxError):
    """Raised when there was no working link before anything was sent."""


class HostKeyRefused(BoxUnreachable):
    """Raised when the peer presents another host key than the pinned one."""


class LoginRefused(BoxUnreachable):
    """Raised when the box refuses our user or key, or our private key cannot be read."""


class SessionRefused(BoxUnreachable):
    """Raised when the link is up but the box opened no session in time."""


class OutcomeUnknown(BoxError):
    """Raised when the link was lost or time ran out after a command had been sent: it may or may not have taken effect."""


class CommandFailed(BoxError):
    """Raised when the box answers a command with an error, or a change with any text at all."""


class AlreadyThere(CommandFailed):
    """Raised when the box says that it has such an entry already."""


class NoSuchItem(CommandFailed):
    """Raised when the box says that it has no such item."""


class PoolFull(CommandFailed):
    """Raised when the box says that there is not enough space."""


class BoxBusy(CommandFailed):
    """Raised when the box says that the item is in use or busy."""


class NotPermitted(CommandFailed):
    """Raised when the box says that our user lacks a policy."""


class NotUnderstood(CommandFailed):
    """Raised when the box does not know the command, an argument or a value: another RouterOS version, or a package is missing."""


class SubvolumesMissing(BoxError):
    """Raised when the box can keep no subvolumes for us: no Btrfs, a RouterOS before 7.18, or no rose-storage package."""


class MalformedAnswer(BoxError):
    """Raised when an answer is cut short or is not laid out as RouterOS lays it out: nothing may be concluded from it."""


@dataclass(frozen=True)
class Difference:
    """One field that is not as it should be."""

    wanted: object
    found: object

    def __str__(self) -> str:
        return f"{self.found} instead of {self.wanted}"


def _listed(differences: Mapping[str, Difference]) -> str:
    return ", ".join(f"{field} is {difference}" for field, difference in differences.items())


class ReadBackMismatch(BoxError):
    """Raised when a change was made and what is read afterwards differs from what was asked for; names each differing field."""

    def __init__(self, what: str, differences: Mapping[str, Difference], hint: str = "") -> None:
        self.differences = dict(differences)
        super().__init__(f"{what} was made, but reads back differently: {_listed(differences)}{'. ' + hint if hint else ''}")


class Conflict(BoxError):
    """Raised when something that is not ours, or not as we would make it, is in the way."""


class DiskInTheWay(Conflict):
    """Raised when a disk has our slot but is not the one that was asked for, or another slot has our file."""

    def __init__(self, slot: str, differences: Mapping[str, Difference]) -> None:
        self.slot = slot
        self.differences = dict(differences)
        super().__init__(f"disk {slot} exists and is another one: {_listed(differences)}")


class FileInTheWay(Conflict):
    """Raised when a file without a disk lies where ours should be: it may hold data, so nothing is put over it."""


class SubvolumeInTheWay(Conflict):
    """Raised when a subvolume has our name and is not ours, or holds more than ours does: nothing in it is touched."""


class InvalidName(ValueError):
    """Raised when a slot, path, NQN, port or size is not of the form that may reach a RouterOS command line."""


class KeyUnusable(ValueError):
    """Raised at start when the pinned host key is missing or is not a public key."""
