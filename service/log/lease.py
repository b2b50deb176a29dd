"""Who learns: a lease in the log's server, and a lock beside the checkpoints.

The lease is a key with a time limit that its holder renews; whoever finds it expired takes it. The
lock is a shortcut for services on one machine: the kernel frees it as soon as its holder dies, so
who has the lock need not wait until the lease of the dead one expires. Neither is what keeps the
log whole: that is the epoch (see `service.log.log`), which a new learner raises.
"""

import fcntl
import os
import platform
import time
import uuid
from pathlib import Path

from redis.asyncio import Redis

TAKE = """#!lua flags=allow-oom
-- KEYS: lease. ARGV: holder, milliseconds, the lock that the caller holds or ''. The lease holds
-- both: it is inherited from a holder that had the lock which the caller has now. 0: another's;
-- 1: the caller's from now on; 2: it was before.
local held, mine = redis.call('GET', KEYS[1]), false
if held then
  mine = string.sub(held, -#ARGV[1]) == ARGV[1]
  local heir = ARGV[3] ~= '' and string.sub(held, 1, #ARGV[3]) == ARGV[3]
  if not mine and not heir then return 0 end
end
redis.call('SET', KEYS[1], ARGV[3] .. ARGV[1], 'PX', ARGV[2])
return mine and 2 or 1
"""

RELEASE = """
-- KEYS: lease. ARGV: holder.
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, -#ARGV[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

BOOT = Path("/proc/sys/kernel/random/boot_id")


class Lock:
    """A file that one living process of this machine can hold.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.is_held = False
        status = os.fstat(self._descriptor)
        boot = BOOT.read_text().strip() if BOOT.exists() else platform.node()
        self.name = f"{boot}:{status.st_dev}:{status.st_ino}/"
        """The same for all who open this file on this machine, and for nobody else."""

    def take(self) -> bool:
        """Hold the lock if it is free; say whether it is held."""
        if not self.is_held:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.is_held = True
        return True

    def close(self) -> None:
        """Free the lock."""
        os.close(self._descriptor)


class Lease:
    """The right to learn from one log.

    Args:
        redis: the log's server.
        key: of the lease.
        lock: beside the checkpoints.
        seconds: how long the lease lasts after its last renewal.
    """

    def __init__(self, redis: Redis, key: str, lock: Lock, seconds: float) -> None:
        self._redis, self._key, self._lock, self._seconds = redis, key, lock, seconds
        self._holder = uuid.uuid4().hex
        self._renewed_at = 0.0

    @property
    def due_in(self) -> float:
        """Seconds until it is time to renew: when a third of the lease is over."""
        return self._renewed_at + self._seconds / 3 - time.monotonic()

    async def take(self) -> bool:
        """Take the lease, or renew it; say whether it is held."""
        return await self._take() > 0

    async def renew(self) -> bool:
        """Take it too; say whether nobody can have had it meanwhile."""
        return await self._take() == 2

    async def _take(self) -> int:
        now = time.monotonic()
        name = self._lock.name if self._lock.take() else ""
        milliseconds = round(1000 * self._seconds)
        taken = await self._redis.eval(TAKE, 1, self._key, self._holder, milliseconds, name)
        if taken:
            self._renewed_at = now
        return int(taken)

    async def release(self) -> None:
        """Let somebody else take it at once; does nothing if somebody has."""
        await self._redis.eval(RELEASE, 1, self._key, self._holder)
