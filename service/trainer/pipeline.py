"""Learning as a pipeline: while some batches are learned, the next are read, cut and recorded."""

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from functools import partial

from service.fold.state import ORIGINAL
from service.log.cuts import Cut, Order, Pause, Pending, Promote, pause_of
from service.log.log import Log
from service.process import Clock
from service.settings import Settings
from service.trainer.joining.examples import batch_of
from service.trainer.orders import Orders, UnknownLearnerError
from service.trainer.replica import Replica
from service.trainer.worker import Worker
from streams.examples import AnyBatch

logger = logging.getLogger("funnel")

GROUP = 32
"""Most batches that are recorded in one call, and then learned in one go."""
GROUP_SECONDS = 0.05
"""Time that a group should take."""
AHEAD_BYTES = 16 << 20
"""Examples are read ahead up to this size as fp32, and in any case up to a full batch."""
BLOCK_MS = 2_000
BEHIND_SECONDS = 2.0
"""Time that waiting batches may take before families skip batches."""

Group = list[tuple[Cut, AnyBatch | None]]


class Pipeline:
    """Moves a replica along its log; used in one event loop.

    Args:
        replica: recovered; while `is_quiet` is False its state belongs to the worker.
        log: the replica's log.
        pending: the entries after the last recorded cut.
        settings: of the service; they tell when a batch is cut.
        worker: learns.
        clock: measures how long entries have waited.
        orders: of operators.
    """

    def __init__(
        self,
        replica: Replica,
        log: Log,
        pending: Pending,
        settings: Settings,
        worker: Worker,
        clock: Clock,
        orders: Orders[Order, int] | None = None,
    ) -> None:
        self._orders = Orders[Order, int]() if orders is None else orders
        commands = replica.commands
        self.is_paused = pause_of(commands) is not None
        """True if the recorded commands of operators pause learning: nothing is cut then."""
        self._ordered_at = commands[-1].cut if commands else 0
        """Number of the cut with the last command; 0 if there is none."""
        self._answering = replica.state.promoted or ORIGINAL
        """Name of the learner that answers predictions after the recorded commands."""
        self.replica, self.log, self.pending = replica, log, pending
        self._batch_size, self._max_wait = settings.batch_size, settings.max_wait_ms / 1000
        self._worker, self._clock, self._effort = worker, clock, settings.effort
        self._recorded: Group = []
        """Recorded, but not given to the worker yet."""
        self._learning: asyncio.Future[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self.is_read = False
        """True if all entries of the log were read when its time was last looked at."""
        self._waits_since = self._moved_at = clock.monotonic()
        """When the first entry after the last cut was read; when the worker began a batch."""
        self._step_seconds = 1.0
        """Time that the last batch took on the host."""
        self._whole_seconds = 0.0
        """Time that the last batch took that no family skipped."""

    @property
    def is_quiet(self) -> bool:
        """True while no batch is being learned."""
        return self._learning is None

    @property
    def is_idle(self) -> bool:
        """True while it waits for examples."""
        return self.is_quiet and not self._recorded and (self.is_paused or not self._is_full)

    @property
    def waiting_since_ms(self) -> int | None:
        """Milliseconds of the id of the oldest entry that is read but not learned."""
        if self._recorded:
            return self._recorded[0][0].position.entry.milliseconds
        return self.pending.oldest.milliseconds if self.pending else None

    @property
    def batch_seconds(self) -> float:
        """How long the worker has been busy with its present batch."""
        return 0.0 if self.is_quiet else self._clock.monotonic() - self._moved_at

    @property
    def _is_full(self) -> bool:
        return self.pending.examples >= self._batch_size

    @property
    def _has_enough(self) -> bool:
        size = 4 * self.replica.state.width * self.pending.examples
        return self._is_full and size >= AHEAD_BYTES

    async def turn(self, wake: asyncio.Event, seconds: float) -> None:
        """Start what can be started; otherwise wait until something happens or ``wake`` is set.

        Args:
            wake: ends the wait.
            seconds: longest wait.

        Raises:
            FencedError: another trainer has taken over the log.
            GapError: an entry that is learned in part is gone.
            LogUnavailable: the log cannot be reached.
        """
        if not self._recorded and not self.replica.is_open:
            self._recorded = await self._obey()
        if not self._recorded and (group := self._cut()):
            await self.replica.record(self.log, [cut for cut, _ in group])
            self._recorded, self._waits_since = group, self._clock.monotonic()
            if not self.is_quiet:
                return
        if self.is_quiet and self._recorded:
            group, self._recorded = self._recorded, []
            self._moved_at = self._clock.monotonic()
            self._learning = asyncio.wrap_future(self._worker.start(partial(self._learn, group)))
            if self._is_full and not self.is_paused:
                return  # the next batches are recorded meanwhile
        if self._reading is None and not self._has_enough:
            self._reading = asyncio.create_task(self._read())
        woken = asyncio.create_task(wake.wait())
        events = {e for e in (self._reading, self._learning, woken) if e is not None}
        timeout = min(seconds, self._rest_due_in())
        try:
            await asyncio.wait(events, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        if self._reading is not None and self._reading.done():
            read, self._reading = self._reading, None
            read.result()
        if self._learning is not None and self._learning.done():
            learned, self._learning = self._learning, None
            learned.result()

    async def close(self) -> None:
        """Stop reading, and wait until the state stands still."""
        if self._reading is not None:
            self._reading.cancel()
        if self._learning is not None:
            await self._learning

    async def _read(self) -> None:
        was_empty = not self.pending
        await self.replica.read(self.log, self.pending, BLOCK_MS, is_new=True)
        if was_empty:
            self._waits_since = self._clock.monotonic()

    def _rest_due_in(self) -> float:
        """Return the seconds until fewer examples than a batch have waited long enough."""
        if not self.is_quiet or self.replica.is_open or self.is_paused:
            return float("inf")
        since = [self._waits_since] if self.pending else []
        if (met := self.replica.joiner.met_since) is not None:
            since.append(met)
        if not since:
            return float("inf")
        waited = self._clock.monotonic() - min(since)
        return max(0.0, self._max_wait - waited)

    def _cut(self) -> Group:
        """Take the next full batches; take the rest if it has waited long enough or is all dead.

        While the replica is open, there are no examples, and nothing is recorded for a while;
        nor is anything while learning is paused.
        """
        if self.is_paused:
            return []
        most = max(1, round(min(GROUP, GROUP_SECONDS / self._step_seconds)))
        group: Group = []
        while self._is_full and len(group) < most:
            group += self._take(self._batch_size)
        has_rest = self.pending and self.is_quiet and not group and not self.replica.is_open
        if has_rest and (not self.pending.examples or self._rest_due_in() == 0):
            group += self._take(self.pending.examples)
        if self.is_quiet and not (self.replica.is_open or self.replica.joiner.is_deciding):
            while len(group) < most and (met := self._take_met()):
                group += met
            tidied = self.replica.joiner.tidied
            if (cut := tidied(self._here, self.pending, self.is_read)) is not None:
                group.append((cut, None))
        return group

    async def _obey(self) -> Group:
        """Record the orders that wait, and return their cuts; one that changes nothing has the cut
        of the last one."""
        group: Group = []
        while (waiting := self._orders.take()) is not None:
            order, future = waiting
            if isinstance(order, Promote) and order.learner not in self._learners:
                future.set_exception(UnknownLearnerError(order.learner, self._learners))
                continue
            if self._changes(order):
                cut = replace(self._here, command=order)
                try:
                    await self.replica.record(self.log, [cut])
                except Exception as error:
                    future.set_exception(error)
                    raise
                group.append((cut, None))
                self._ordered_at = self.replica.recorded
                if isinstance(order, Promote):
                    self._answering = order.learner
                    logger.info("%s answers, as %s has ordered", order.learner, order.by)
                else:
                    self.is_paused = isinstance(order, Pause)
            future.set_result(self._ordered_at)
        return group

    @property
    def _learners(self) -> list[str]:
        """Names of the learners that there are after the recorded commands, which may not be
        applied yet: a promoted one that no setting names leaves with its promotion."""
        named = self.replica.state.hyperparameters.shadow
        return [*dict.fromkeys((ORIGINAL, *named, self._answering))]

    def _changes(self, order: Order) -> bool:
        """Return whether a command is to be recorded: it changes something, or is the first."""
        if isinstance(order, Promote):
            is_other = order.learner != self._answering
        else:
            is_other = isinstance(order, Pause) != self.is_paused
        return is_other or not self._ordered_at

    @property
    def _here(self) -> Cut:
        """A cut that does not move the position."""
        return Cut(self.pending.position, entries=self.pending.entries)

    def _take_met(self) -> Group:
        """Take labels that have waited and met their questions, if they fill a batch or have waited
        long enough."""
        joiner = self.replica.joiner
        if not joiner.met or (joiner.met < self._batch_size and self._rest_due_in() > 0):
            return []
        here = self._here
        met = joiner.take(here.position, self._batch_size)
        if (batch := batch_of(met)) is None:
            return []
        sources = dict(Counter(join.source for join in met))
        n, now, is_fast = len(batch), joiner.now, self._is_fast
        cut = replace(here, examples=n, sources=sources, met=met, now=now, is_fast=is_fast)
        return self._with_schema(here, cut, batch)

    @property
    def _is_fast(self) -> bool:
        """True if families should skip the next batch: a decision, which its cut records."""
        if self._effort == "full" or not self.replica.has_families:
            return False
        waiting = self.pending.examples / self._batch_size * self._whole_seconds
        return self._effort == "fast" or waiting > BEHIND_SECONDS

    def _take(self, size: int) -> Group:
        """Take a batch; a change of the schema that it needs is a cut of its own before it."""
        before = self._here
        cut, batch = self.pending.take(size)
        now = self.replica.joiner.now if cut.joins else 0
        cut = replace(cut, is_fast=batch is not None and self._is_fast, now=now)
        return self._with_schema(before, cut, batch)

    def _with_schema(self, before: Cut, cut: Cut, batch: AnyBatch | None) -> Group:
        """Return a cut, and one that changes the schema before it if its batch needs that."""
        command = self.replica.reshape_for(batch)
        return [*([(replace(before, command=command), None)] if command else []), (cut, batch)]

    def _learn(self, group: Group) -> None:
        self.replica.foresee([batch for _, batch in group if batch is not None])
        for cut, batch in group:
            self._moved_at = self._clock.monotonic()
            self.replica.apply(cut, batch)
            self._step_seconds = max(1e-9, self._clock.monotonic() - self._moved_at)
            if not cut.is_fast:
                self._whole_seconds = self._step_seconds
