"""The time and the memory that the process gets from its system."""

import ctypes
import time
from typing import Protocol

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
LARGEST = 32 << 20
"""Larger blocks are still returned to the kernel at once; glibc takes no higher value."""
KEPT = 256 << 20
"""Free bytes at the end of a heap that are kept, at most."""


class Clock(Protocol):
    """The time, as the service reads it."""

    def monotonic(self) -> float:
        """Return the seconds since some moment; they never go backwards."""

    def time(self) -> float:
        """Return the Unix time in seconds."""


class SystemClock(Clock):
    """The time of the machine."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


def keep_freed_memory() -> None:
    """Keep memory that is freed for the next batch, in all threads, where malloc is glibc's.

    Otherwise large blocks return to the kernel at once, and every batch gets new, zeroed pages.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, KEPT)
    mallopt(M_TOP_PAD, LARGEST)
