"""Whether the box is told which hosts may connect."""

from enum import StrEnum


class FenceMode(StrEnum):
    """What keeps a node that was detached from writing (``--fence``)."""

    NONE = "none"
    ALLOW_HOST_NAME = "allow-host-name"
    """The box's ``nvme-tcp-server-allow-host-name``."""
