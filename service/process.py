"""The time, the memory and the descriptors that the process gets from its system."""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
LARGEST = 32 << 20
"""Larger blocks are still returned to the kernel at once; glibc takes no higher value."""
KEPT = 256 << 20
"""Free bytes at the end of a heap that are kept, at most."""

MAX_DESCRIPTORS = 1 << 20
"""Some systems set no limit, and accept none that is too high."""


BOOT = Path("/proc/sys/kernel/random/boot_id")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


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


def boot_name() -> str:
    """Return a name of this machine that changes when it boots, where the system has one."""
    return BOOT.read_text().strip() if BOOT.exists() else platform.node()


def memory_bytes() -> int:
    """Return the memory that this process may use: that of its container, or of the machine."""
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits())


def _limits() -> Iterator[int]:
    """Yield the limits of the control groups that this process is in."""
    files = [CGROUPS / "memory.max", CGROUPS / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            group = Path(line.rpartition(":")[2].lstrip("/"))
            files += [CGROUPS / path / "memory.max" for path in (group, *group.parents)]
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            yield int(file.read_text())
    yield 1 << 62


def keeping_freed_memory() -> dict[str, str]:
    """Return the environment in which a child does as this process after `keep_freed_memory`.

    A variable that this process has in its environment keeps its value.
    """
    names = {"TRIM_THRESHOLD": KEPT, "TOP_PAD": LARGEST, "MMAP_THRESHOLD": LARGEST}
    return {f"MALLOC_{name}_": str(size) for name, size in names.items()} | os.environ


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


def return_freed_memory() -> None:
    """Give the kernel all that is free, where malloc is glibc's.

    It takes milliseconds, and is for the end of work that comes seldom and needs much.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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
