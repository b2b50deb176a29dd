"""The time, the memory and the descriptors that the process gets from its system."""

import contextlib
import ctypes
import errno
import resource
import time
from typing import Protocol

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
LARGEST = 32 << 20
"""Larger blocks are still returned to the kernel at once; glibc takes no higher value."""
KEPT = 256 << 20
"""Free bytes at the end of a heap that are kept, at most."""

MAX_DESCRIPTORS = 1 << 20
"""Some systems set no limit, and accept none that is too high."""


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


def raise_descriptor_limit() -> None:
    """Allow as many open files and connections as the system lets the process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with contextlib.suppress(ValueError, OSError):  # the limit stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def lacks_descriptors(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is that no descriptor is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__
    return False
