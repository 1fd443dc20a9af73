"""Become another program that dies with its parent: ``python -I -S launch.py PARENT_PID PROGRAM [ARG …]``.

The kernel's parent-death signal (prctl(2), PR_SET_PDEATHSIG) survives execve, so the program needs to know nothing of it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) was refused")
    # A parent that died before the prctl sends no signal any more; by now somebody else has adopted us.
    if os.getppid() != parent:
        sys.exit("the parent is already gone")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
