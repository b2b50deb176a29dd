"""A trainer's part of the work on labels that come later, on a log in memory."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from service.fold.state import State
from service.log.cuts import Cut
from service.log.labels import Join
from service.log.position import EntryId
from service.settings import load_settings
from service.trainer.checkpoint import Checkpoint, decode, encode
from service.trainer.joining.joiner import Joiner, Keeps
from service.trainer.pipeline import Pipeline
from service.trainer.replica import Replica
from service.trainer.worker import Worker
from tests.support.clock import StillClock
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.questions import label
from tests.support.replicas import keep_lease
from tests.support.states import a_state

BY_THREE = load_settings({"batch_size": 3, "max_wait_ms": 0})


@dataclass
class Life:
    """A trainer's part of the work, from a recovery to the next, on a log in memory."""

    server: MemoryServer
    clock: StillClock
    last: Checkpoint | None = None
    results: dict[EntryId, list[str]] = field(default_factory=dict)
    ttl: float = 3_600.0
    grace: float = 60.0
    keeps: Keeps = "first"
    timeout: float | None = None
    default: str = ""
    most_bytes: int = 1 << 30
    is_weighted: bool = False
    make: Callable[[], State] = a_state
    delays: list[float] = field(default_factory=list)

    async def begin(self) -> "Life":
        """Recover from the last checkpoint."""
        self.log = MemoryLog(self.server)
        self.worker = Worker("step")
        own = Joiner(
            self.clock,
            self.ttl,
            self.grace,
            self.keeps,
            self.delays.extend,
            self.timeout,
            self.default,
            self.most_bytes,
            self.is_weighted,
        )
        self.replica = Replica(
            self.make(), lambda *_: None, self.clock, joiner=own, became=self._note
        )
        if self.last is not None:
            copy = decode(encode(self.last, self.last.sha256(), {})).copy
            self.replica.state.load(copy.tensors, copy.version, copy.examples)
            self.replica.progress, self.replica.joins = copy.progress, copy.joins.copy()
        pending = await self.replica.recover(self.log, False, keep_lease)
        self.pipeline = Pipeline(self.replica, self.log, pending, BY_THREE, self.worker, self.clock)
        return self

    def _note(self, entry: EntryId, joins: Sequence[Join]) -> None:
        self.results.setdefault(entry, []).extend(str(join.result) for join in joins)

    async def turn(self, times: int = 1) -> None:
        """Take some turns, and look at the questions before each."""
        for _ in range(times):
            await self.watch()
            await self.pipeline.turn(asyncio.Event(), 0.001)

    async def watch(self) -> None:
        if not self.pipeline.is_quiet:
            return
        extent = await self.log.extent()
        is_read = self.pipeline.is_read = extent.last <= self.pipeline.pending.newest
        await self.replica.watch_questions(self.log, extent, is_read)

    async def settle(self) -> None:
        """Take turns until nothing more happens."""
        still = 0
        async with asyncio.timeout(20):
            while still < 4:
                before = self.replica.progress.cut
                await self.turn()
                idle = self.pipeline.is_idle and self.replica.progress.cut == before
                read = (await self.log.extent()).last <= self.pipeline.pending.newest
                still = still + 1 if idle and read and not self.pipeline.pending else 0

    async def stand_still(self) -> None:
        """Take turns until no batch is being learned."""
        async with asyncio.timeout(20):
            while not self.pipeline.is_quiet:
                await self.pipeline.turn(asyncio.Event(), 0.001)

    def keep(self) -> Checkpoint:
        """Take a checkpoint."""
        own = self.replica
        self.last = Checkpoint.of(own.state, own.progress, None, own.joins)
        return self.last

    async def end(self) -> None:
        """End at once, wherever it is."""
        if self.pipeline._reading is not None:
            self.pipeline._reading.cancel()
        await self.pipeline.close()
        self.worker.end()

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, with a look at it each second, until nothing more happens."""
        for _ in range(round(seconds)):
            self.clock.now += 1.0
            await self.watch()
        await self.settle()

    async def replayed(self) -> "Life":
        """Begin again from nothing, and check that it comes to the same state and decisions."""
        digest, joins = self.keep().sha256(), self.replica.joins.copy()
        self.last = None
        await self.again()
        assert (self.keep().sha256(), self.replica.joins) == (digest, joins)
        return self

    async def decided(self, **labels: object) -> list[str]:
        """Append labels, and return what becomes of them."""
        entry = label(self.server, **labels)
        await self.settle()
        return self.results[entry]

    async def again(self) -> "Life":
        """End, and begin again from the last checkpoint."""
        await self.end()
        self.results.clear()
        return await self.begin()


class Options(TypedDict, total=False):
    """The settings of a life."""

    ttl: float
    grace: float
    keeps: Keeps
    timeout: float | None
    default: str
    most_bytes: int
    is_weighted: bool
    make: Callable[[], State]


async def a_life(**options: Unpack[Options]) -> Life:
    clock = StillClock()
    return await Life(MemoryServer(clock), clock, **options).begin()


def cuts_of(server: MemoryServer) -> list[Cut]:
    return [Cut.from_json(number, text.encode()) for number, text in server.every_cut]
