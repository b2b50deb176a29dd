"""The right to learn from a log: a lease in the log's server, and a lock next to the checkpoints.

The lease is a key with a time limit that its holder renews; any process that finds it expired takes
it. The lock is a shortcut for processes on one machine: the kernel frees it as soon as its holder
dies, so the next process takes over at once instead of waiting for the dead holder's lease to
expire. Neither protects the log from an old trainer: the epoch does, which a new trainer raises
(see `service.log.keys`).
"""

import fcntl
import os
import uuid
from pathlib import Path

from service.log.log import Log
from service.process import Clock, boot_name


class Lock:
    """A file that one living process of this machine can hold.

    Args:
        path: created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.is_held = False
        status = os.fstat(self._descriptor)
        self.name = f"{boot_name()}:{status.st_dev}:{status.st_ino}/"
        """The same for every process of this machine that opens this file, and for no other."""

    def take(self) -> bool:
        """Hold the lock if it is free; return whether it is held.

        On a file system without locks it never is, and the lease has to expire.
        """
        if not self.is_held:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            self.is_held = True
        return True

    def close(self) -> None:
        """Free the lock."""
        os.close(self._descriptor)


class Lease:
    """The right to learn from one log.

    Args:
        log: the server keeps the lease.
        lock: next to the checkpoints.
        seconds: how long the lease lasts after its last renewal.
        clock: tells when it is time to renew.
        identity: what the holder publishes of itself.
    """

    def __init__(
        self, log: Log, lock: Lock, seconds: float, clock: Clock, identity: str = ""
    ) -> None:
        self.lock, self._log, self._seconds, self._clock = lock, log, seconds, clock
        self._identity = identity
        self._holder = uuid.uuid4().hex
        self._renewed_at = float("-inf")

    @property
    def due_in(self) -> float:
        """Seconds until it is time to renew: when a third of the lease is over."""
        return self._renewed_at + self._seconds / 3 - self._clock.monotonic()

    async def take(self) -> int:
        """Take the lease, or renew it; return 0 if another process holds it.

        `service.log.log.Log.take_lease` lists the other results.
        """
        now = self._clock.monotonic()
        name = self.lock.name if self.lock.take() else ""
        milliseconds = round(1000 * self._seconds)
        taken = await self._log.take_lease(self._holder, milliseconds, name, self._identity)
        if taken:
            self._renewed_at = now
        return taken

    async def renew(self) -> bool:
        """Renew the lease. Return False if another process may have held it since."""
        return await self.take() == 2

    async def release(self) -> None:
        """Let another process take the lease at once; do nothing if one has."""
        await self._log.release_lease(self._holder)
