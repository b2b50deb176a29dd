"""Replicas on a log in memory, moved by hand."""

from service.log.cuts import Pending
from service.log.log import Log
from service.log.position import EntryId
from service.process import Clock
from service.trainer.replica import Replica
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryServer
from tests.support.states import a_batch, a_state


async def keep_lease() -> None:
    """Find the lease held, whenever a replica asks."""


def a_replica(clock: Clock | None = None) -> Replica:
    return Replica(a_state(), lambda *_: None, clock or StillClock())


def fill(server: MemoryServer, n: int) -> list[EntryId]:
    """Add entries of 20 examples."""
    return [server.add({b"batch": a_batch(k).to_bytes()}) for k in range(n)]


async def learn(replica: Replica, log: Log, pending: Pending, size: int) -> None:
    """Learn one batch of so many examples."""
    if pending.examples < size:
        await replica.read(log, pending, None)
    cut, batch = pending.take(size)
    await replica.record(log, [cut])
    replica.apply(cut, batch)
