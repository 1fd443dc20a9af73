"""Talks to a MikroTik ROSE Data Server (RouterOS 7) over SSH.

``async with Transport(Settings(…)) as transport: box = Box(transport)``; names and paths go in as Slot, FilePath and Nqn, which are
checked when they are made. See ``errors`` for everything that can go wrong.
"""

from rds_csi.routeros.box import Box, Capacity, Disk, File, Leftover
from rds_csi.routeros.commands import DiskSpec, Export, FilePath, Label, Nqn, Slot
from rds_csi.routeros.errors import (
    AlreadyThere,
    BoxBusy,
    BoxError,
    BoxUnreachable,
    CommandFailed,
    Conflict,
    Difference,
    DiskInTheWay,
    FileInTheWay,
    HostKeyRefused,
    InvalidName,
    KeyUnusable,
    LoginRefused,
    MalformedAnswer,
    NoSuchItem,
    NotPermitted,
    NotUnderstood,
    OutcomeUnknown,
    PoolFull,
    ReadBackMismatch,
    SessionRefused,
    SubvolumeInTheWay,
    SubvolumesMissing,
)
from rds_csi.routeros.exchange import Runner
from rds_csi.routeros.hostkey import HostKey
from rds_csi.routeros.parser import Output
from rds_csi.routeros.readings import Resource, Sensor, Traffic
from rds_csi.routeros.subvolumes import Subvolumes
from rds_csi.routeros.transport import Observer, Settings, Transport

__all__ = [
    "AlreadyThere",
    "Box",
    "BoxBusy",
    "BoxError",
    "BoxUnreachable",
    "Capacity",
    "CommandFailed",
    "Conflict",
    "Difference",
    "Disk",
    "DiskInTheWay",
    "DiskSpec",
    "Export",
    "File",
    "FileInTheWay",
    "FilePath",
    "HostKey",
    "HostKeyRefused",
    "InvalidName",
    "KeyUnusable",
    "Label",
    "Leftover",
    "LoginRefused",
    "MalformedAnswer",
    "NoSuchItem",
    "NotPermitted",
    "NotUnderstood",
    "Nqn",
    "Observer",
    "OutcomeUnknown",
    "Output",
    "PoolFull",
    "ReadBackMismatch",
    "Resource",
    "Runner",
    "Sensor",
    "SessionRefused",
    "Settings",
    "Slot",
    "SubvolumeInTheWay",
    "Subvolumes",
    "SubvolumesMissing",
    "Traffic",
    "Transport",
]
