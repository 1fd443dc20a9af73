"""A simulated ROSE Data Server: the part of RouterOS that a block volume needs, behind a real SSH server.

Everything it prints is laid out as in captures of real boxes (RouterOS 7.16 and 7.24) or as MikroTik's manual says.
Where neither says how RouterOS words something, the text is one of RouterOS's generic ones and the code says so.
"""

from tests.simulator.box import SimulatedBox

__all__ = ["SimulatedBox"]
