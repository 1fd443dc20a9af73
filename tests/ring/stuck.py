"""Run a program of ours as it is, with one difference: SIGUSR1 holds its main thread, and so its event loop, for ever.

The process goes on: other threads run, its sockets take connections, signals arrive. ``python stuck.py PROGRAM ARGUMENT…``.
"""

import runpy
import signal
import sys


def hold(*_: object) -> None:
    """Come back never."""
    print("the event loop is held", file=sys.stderr, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, hold)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
