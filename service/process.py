"""Keeping memory that is freed, for the next batch, where malloc is glibc's.

Else large blocks go back to the kernel at once, and every batch gets its pages anew, zeroed.
"""

import ctypes
import time
from typing import Protocol

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""See mallopt(3)."""
LARGEST = 32 << 20
"""Larger blocks still go back at once; glibc takes no higher value."""
KEPT = 256 << 20
"""Most free bytes at the end of a heap that are kept."""


def keep_freed_memory() -> None:
    """Tell malloc, for all threads; does nothing where malloc is another's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, KEPT)
    mallopt(M_TOP_PAD, LARGEST)


class Clock(Protocol):
    """The time, for all that must also run in simulated time."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start; they never go back."""
        ...

    def time(self) -> float:
        """Return Unix time in seconds."""
        ...


class SystemClock:
    """The time of this machine."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start; they never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Return Unix time in seconds."""
        return time.time()
