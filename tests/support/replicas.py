"""Replicas on a log, moved by hand, and a clock that stands still."""

from service.log.entries import Pending
from service.log.log import Log
from service.log.position import EntryId
from service.trainer.replica import Replica
from tests.support.states import a_batch, a_state


class Clock:
    """Stands in for the module `time`; goes on only when told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


async def go_on() -> bool:
    return True


def a_replica() -> Replica:
    return Replica(a_state(), lambda *_: None)


async def fill(log: Log, n: int) -> list[EntryId]:
    """Add entries of 20 examples."""
    payloads = [a_batch(k).to_bytes() for k in range(n)]
    return [EntryId.parse(await log.redis.xadd(log.keys.log, {"batch": p})) for p in payloads]


async def learn(replica: Replica, log: Log, pending: Pending, size: int) -> None:
    """Learn one batch of so many examples."""
    if pending.examples < size:
        await replica.read(log, pending, None)
    cut, batch = pending.take(size)
    await replica.record(log, [cut])
    replica.apply(cut, batch)
