"""Memory that one training step frees is kept for the next one.

glibc gives large blocks back to the system when they are freed. A step of a small network on a CPU then asks for the same
tens of megabytes again, and each of their pages costs a fault: thousands a step, about a quarter of its time here, and more
with two workers, whose faults wait for each other.
"""

from __future__ import annotations

import ctypes
import functools
import platform

KEPT = 1 << 30  # bytes that a process may hold though they are free
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # numbers of malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed, for this process; whether it could be told (only glibc is)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # some versions take no threshold above half of a thread's heap, 32 MiB
    large = mallopt(MMAP_THRESHOLD, KEPT) or mallopt(MMAP_THRESHOLD, 32 << 20)
    return bool(large and mallopt(TRIM_THRESHOLD, KEPT) and mallopt(TOP_PAD, 64 << 20))
