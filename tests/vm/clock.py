"""How fast this machine's time stamp counter counts, which an emulated processor counts with.

A guest's kernel would find that out itself while it boots, by comparison with a timer of the emulated board. On a busy machine that
goes wrong by factors, and then the guest's clock runs away, so the guest is told.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import time
from collections.abc import Callable

READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""x86-64: rdtsc; shl rdx, 32; or rax, rdx; ret."""

SECONDS = 0.3


@functools.cache
def counter_khz() -> int:
    """Return the counter's thousands of cycles per second, measured once."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        memory.write(READ_COUNTER)
        anchor = ctypes.c_char.from_buffer(memory)
        read: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
        first, begun = read(), time.monotonic_ns()
        time.sleep(SECONDS)
        last, ended = read(), time.monotonic_ns()
        del read, anchor
    return round((last - first) * 1_000_000 / (ended - begun))
