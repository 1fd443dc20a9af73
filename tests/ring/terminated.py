"""Run a program of ours as it is, with one difference: it gets SIGTERM in the moment in which it makes its N-th task.

``python terminated.py N PROGRAM ARGUMENT…``.
"""

import asyncio
import os
import runpy
import signal
import sys
from itertools import count
from typing import Any

if __name__ == "__main__":
    at, made, make = int(sys.argv[1]), count(1), asyncio.create_task

    def create_task(*arguments: Any, **options: Any) -> Any:
        """Do what ``asyncio.create_task`` does, and be terminated."""
        task = make(*arguments, **options)
        if next(made) == at:
            print("terminated at", task.get_name(), file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        return task

    asyncio.create_task = create_task
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
