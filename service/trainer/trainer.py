"""The learner: reads the log, cuts, steps, publishes, checkpoints. Knows nothing of HTTP.

It runs in a thread with an event loop of its own, and steps in another (see
`service.trainer.pipeline`).
Torch lets go of the interpreter in every operation, so the HTTP side goes on beside them.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import uvloop
from redis.exceptions import RedisError

from service.fold import detectors
from service.fold.drift import Event, Monitor
from service.fold.report import Report
from service.fold.snapshot import Snapshot
from service.fold.state import State
from service.log.extent import check_reach
from service.log.lease import Lease, Lock
from service.log.log import FencedError, GapError, Log, LogError
from service.log.position import EntryId, Position
from service.log.server import check_server
from service.monitoring.history import History
from service.monitoring.notify import DriftNews
from service.monitoring.pictures import Newest
from service.monitoring.statistics import Statistics, read_statistics
from service.monitoring.status import Checkpointing, Condition, Drift, Role, Status
from service.process import SystemClock
from service.trainer.checkpoint import CheckpointStore, Info, UnreadableError
from service.trainer.pipeline import Cutting, Pipeline, Worker, give_way
from service.trainer.rejections import Rejections
from service.trainer.replica import Replica
from service.trainer.waiters import Applied, Waiters
from service.trainer.writer import CheckpointWriter

logger = logging.getLogger("funnel")

PUBLISH_SECONDS = 0.05
"""Snapshots are at most this old while batches stream in; without a backlog they are new."""
STATISTICS_SECONDS = 1.0
PAUSE_SECONDS = 0.25
"""Time between statistics when learning has paused and they are not of its end."""
CHECK_SECONDS = 10.0
"""Time between looks at the server's configuration."""
RETRY_SECONDS = 0.5
STALLED_LEASES = 10
"""A batch that takes longer than so many leases has hung: the lease is left to a standby."""
STANDBY_SECONDS = 0.25
"""Time between looks of a standby at the lease and the newest checkpoint."""

BESIDE = "another service learns from this log"
"""Why a standby does not learn."""


@dataclass(frozen=True)
class Terms:
    """On what terms a service learns."""

    checkpoint_seconds: float
    lease_seconds: float
    accept_gap: bool


class Trainer:
    """Folds the log into the state.

    Args:
        state: as built; `start` loads the newest checkpoint into it.
        open_log: connects; called in the learner's own loop.
        checkpoints: where states are kept.
        lock: beside them; see `service.log.lease`.
        cutting: how batches are cut.
        terms: times, and what the operator accepts.
        observe: told the seconds and the examples of each step.
        drifted: told, in the learner's thread, of each drift event that is found in learning.
    """

    def __init__(
        self,
        state: State,
        open_log: Callable[[], Log],
        checkpoints: CheckpointStore,
        lock: Lock,
        cutting: Cutting,
        terms: Terms,
        observe: Callable[[float, int], None],
        drifted: Callable[[Event], object] = lambda _: None,
    ) -> None:
        self.cutting, self.terms = cutting, terms
        self.replica = Replica(state, self._on_step)
        self.waiters = Waiters()
        self.rejections = Rejections()
        self.writer = CheckpointWriter(checkpoints, terms.checkpoint_seconds, self._poke)
        self.snapshot: Snapshot | None = None
        self.statistics: Statistics | None = None
        self.history = History(SystemClock())
        self.condition = Condition.STARTING
        self.reason = ""
        """Why it does not learn."""
        self.caught_up = threading.Event()
        """Set once it learns or stands by, or has halted or stopped."""
        self._open_log, self._lock, self._observe = open_log, lock, observe
        self._drift_news = DriftNews(self.history, drifted)
        self._lease: Lease
        """Made in the learner's loop, as is the worker."""
        self._worker: Worker
        self._started = threading.Event()
        self._stopping = self._has_stalled = False
        self._statistics_at = self._checked_at = 0.0
        self._warnings: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="funnel-learner", daemon=True)

    @property
    def state(self) -> State:
        """The live state, which the learner's thread changes."""
        return self.replica.state

    @property
    def newest(self) -> Newest:
        """Pictures of the newest inputs."""
        return self.replica.newest

    @property
    def drift(self) -> Monitor:
        """The drift events."""
        return self.state.drift

    @property
    def role(self) -> Role:
        """The trainer is the learner's from its first recorded cut on, and a standby otherwise."""
        return Role.LEARNER if self.replica.has_recovered else Role.STANDBY

    @property
    def status(self) -> Status:
        """What it is doing now, and how far it is; may be read in any thread."""
        state, writer, drift = self.state, self.writer, self.state.drift
        return Status(
            condition=self.condition,
            reason=self.reason,
            role=self.role,
            version=state.version,
            examples=state.examples,
            progress=self.replica.progress,
            hyperparameters=state.hyperparameters,
            optimizer=state.served.hyperparameters(),
            snapshot_at=self.snapshot.made if self.snapshot is not None else None,
            checkpoints=Checkpointing(
                writer.results["ok"], writer.results["failed"], writer.kept_at
            ),
            drift=Drift(drift.events, dict(drift.counts), drift.last_recovery),
            statistics=self.statistics,
            mean_entry=self.replica.mean_entry,
        )

    def start(self) -> None:
        """Load the newest checkpoint and start the thread.

        Raises:
            DamagedError: there are checkpoints, but no good one.
            UnreadableError: they cannot be read.
            LogError: the newest is of another model.
        """
        self._load()
        self.snapshot = Snapshot.of(self.state)
        self._thread.start()
        self._started.wait()

    def _load(self) -> bool:
        """Load the newest checkpoint; say whether there is one."""
        is_loaded = self.replica.load(self.writer.checkpoints)
        if is_loaded:
            self.writer.begun_at = self.writer.kept_at = time.monotonic()
        return is_loaded

    def stop(self, timeout: float) -> bool:
        """Finish the batch at hand, write a checkpoint, end the thread; say whether it ended."""
        self._stopping = True
        self._poke()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def applied(self, entry: EntryId) -> "Future[Applied]":
        """Return a future of what becomes of an entry of the log."""
        future = self.waiters.wait(entry)
        self._poke()
        return future

    def checkpoint(self) -> "Future[Info]":
        """Return a future of a checkpoint of the state as it is now or soon."""
        return self.writer.request()

    def _poke(self) -> None:
        if self._loop is not None and self._wake is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def _on_step(
        self, begin: Position, end: Position, report: Report, seconds: float, examples: int
    ) -> None:
        self.waiters.note(begin, end, report)
        self.rejections.note(begin, end, report, examples)
        self._observe(seconds, examples)

    def _run(self) -> None:
        give_way()
        try:
            uvloop.run(self._main())
        except BaseException as error:
            logger.exception("the learner failed")
            self._halt(error)
        finally:
            if self.condition != Condition.HALTED:
                self.condition, self.reason = Condition.STOPPED, "the service is shutting down"
            self._started.set()
            reason = f"the learner is {self.condition}: {self.reason}"
            self.waiters.give_up(reason)
            self.writer.close(reason)
            self.caught_up.set()

    async def _main(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await asyncio.to_thread(detectors.load)
        log = self._open_log()
        lease = Lease(log.redis, log.keys.lease, self._lock, self.terms.lease_seconds)
        self._lease = lease
        self._worker = Worker("funnel-step")
        try:
            while not self._stopping:
                try:
                    if self.condition in (Condition.STARTING, Condition.WAITING):
                        await self._check_server(log)
                    if await lease.take():
                        await self._learn(log, await self._recover(log))
                    else:
                        await self._stand_by(log)
                        await self._sleep(STANDBY_SECONDS)
                except FencedError as error:
                    self._resign(str(error))
                except UnreadableError as error:
                    self._wait_for(str(error))
                    await self._release()  # who can read them may learn
                    await self._sleep(RETRY_SECONDS)
                except (RedisError, OSError) as error:
                    self._wait_for(f"the log cannot be reached: {error}")
                    await self._sleep(RETRY_SECONDS)
                except LogError as error:
                    if await self._may_have_slept():
                        self._resign(str(error))
                        continue
                    logger.error("learning is halted: %s", error)
                    self._halt(error)
                    break
            if self.replica.has_recovered and self.replica.at.cut:
                await self._put_aside_at_the_end(log)
                await self.writer.finish(self.state, self.replica.at)
        finally:
            self._worker.end()
            self.replica.resign()
            await self._release()
            await log.redis.aclose()

    async def _release(self) -> None:
        try:
            await self._lease.release()
        except (RedisError, OSError) as error:
            logger.warning("the lease was not given back: %s", error)

    def _wait_for(self, reason: str) -> None:
        """Say what has to get better before it learns."""
        if (self.condition, self.reason) != (Condition.WAITING, reason):
            logger.warning("%s; learning waits", reason)
        self.condition, self.reason = Condition.WAITING, reason
        self.writer.give_up(reason)

    async def _put_aside_at_the_end(self, log: Log) -> None:
        try:
            await self.rejections.put_aside(log)
        except (RedisError, OSError) as error:
            logger.warning("what was left out is not noted in the log: %s", error)

    async def _check_server(self, log: Log) -> None:
        """At the start, at reconnections and now and then: is the server fit to keep a log?"""
        self._checked_at = time.monotonic()
        warnings = await check_server(log.redis)
        for warning in warnings:
            if warning not in self._warnings:
                logger.warning("%s", warning)
        self._warnings = warnings

    def _halt(self, error: BaseException) -> None:
        self.condition, self.reason = Condition.HALTED, str(error) or repr(error)

    async def _sleep(self, seconds: float) -> None:
        """Wait, or less if woken."""
        assert self._wake is not None
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _stand_by(self, log: Log) -> None:
        """Serve the newest checkpoint while another service learns."""
        if self.condition != Condition.STANDBY:
            logger.info("another service learns from this log; standing by")
            self.condition, self.reason = Condition.STANDBY, BESIDE
            self.replica.resign()
        self.writer.give_up(BESIDE)
        self.waiters.give_up(BESIDE)
        try:
            is_loaded = self.writer.checkpoints.has_news and self._load()
            self.reason = BESIDE
        except UnreadableError as error:
            if self.reason != str(error):
                logger.warning("%s; standing by with an older model", error)
            is_loaded, self.reason = False, str(error)
        if is_loaded:
            self._publish()
            self._show(read_statistics(self.state, self.replica.at, await log.extent()))
        self.caught_up.set()

    def _resign(self, reason: str) -> None:
        logger.warning("learning may have passed to another service: %s", reason)
        if self.replica.has_recovered:
            self._drift_news.tell(self.drift)
        self.replica.resign()

    async def _may_go_on(self) -> bool:
        """Renew the lease if that is due, unless a batch hangs; say whether learning goes on.

        Raises:
            FencedError: the lease ran out; another service may have learned since.
        """
        is_due = self._lease.due_in <= 0 and not self._has_stalled
        if is_due and not await self._lease.renew():
            raise FencedError("the lease ran out")
        return not self._stopping

    async def _may_have_slept(self) -> bool:
        """Say whether another service may have learned since the lease was last looked at."""
        try:
            return self.replica.has_recovered and not await self._lease.renew()
        except (RedisError, OSError):
            return True

    async def _recover(self, log: Log) -> Pipeline:
        was, is_new = self.condition, not self.replica.has_recovered
        try:
            if self.writer.checkpoints.has_news:  # another service has learned meanwhile
                self._load()
        except UnreadableError as error:
            if is_new:
                raise
            logger.warning("%s; going on with the model in memory", error)
        if is_new:
            if self._lock.is_held:
                self.writer.tidy()
            cut = self.replica.progress.cut if self.replica.progress else 0
            self.condition, self.reason = Condition.REPLAYING, f"from cut {cut}"
        pending = await self.replica.recover(log, self.terms.accept_gap, self._may_go_on)
        if was != Condition.STARTING:
            logger.info("learning, from version %d on", self.state.version)
        self.condition, self.reason = Condition.LEARNING, ""
        if is_new:
            self._drift_news.pass_over(self.drift)
        self._publish()
        pipeline = Pipeline(
            self.replica, log, pending, self.cutting, self._worker, self._publish_if_due
        )
        await self._watch(pipeline)
        self.caught_up.set()
        return pipeline

    async def _learn(self, log: Log, pipeline: Pipeline) -> None:
        """Learn what comes, and tend to everything else between groups of batches."""
        assert self._wake is not None
        try:
            while await self._may_go_on():
                self._wake.clear()
                self._note_stall(pipeline)
                wait = max(self._lease.due_in, STANDBY_SECONDS)
                if pipeline.is_quiet:
                    if self.writer.is_due(self.state):
                        await self.rejections.put_aside(log)
                    await self.writer.tend(self.state, self.replica.at, log)
                    if self._statistics_due_in(pipeline) <= 0:
                        await self._watch(pipeline)
                    if pipeline.is_idle:
                        self._publish()
                    wait = min(wait, max(0.0, self._statistics_due_in(pipeline)))
                await pipeline.turn(self._wake, wait)
        finally:
            await pipeline.close()

    def _note_stall(self, pipeline: Pipeline) -> None:
        stalled = pipeline.batch_seconds > STALLED_LEASES * self.terms.lease_seconds
        if stalled and not self._has_stalled:
            logger.error("a batch takes %.0f s: is the device hung?", pipeline.batch_seconds)
        self._has_stalled = stalled

    def _publish_if_due(self) -> None:
        snapshot = self.snapshot
        age = time.monotonic() - snapshot.made if snapshot else PUBLISH_SECONDS
        if self.waiters or age >= PUBLISH_SECONDS:
            self._publish()

    def _publish(self) -> None:
        """Swap in a snapshot of the state, then answer those who wait for what is in it."""
        if self.snapshot is None or self.snapshot.version != self.state.version:
            self.snapshot = Snapshot.of(self.state)
        if self.waiters:
            self.waiters.answer(self.replica.at.position)

    def _statistics_due_in(self, pipeline: Pipeline) -> float:
        """Return the seconds until the next look; sooner once learning has paused."""
        stale = self.statistics is None or self.statistics.version != self.state.version
        every = PAUSE_SECONDS if pipeline.is_idle and stale else STATISTICS_SECONDS
        return self._statistics_at + every - time.monotonic()

    async def _watch(self, pipeline: Pipeline) -> None:
        """Look at the log's extent, and read the statistics off the device."""
        self._statistics_at = time.monotonic()
        if self._statistics_at - self._checked_at >= CHECK_SECONDS:
            await self._check_server(pipeline.log)
        await self.rejections.put_aside(pipeline.log)
        extent, place = await pipeline.log.extent(), self.replica.at
        check_reach(extent, place.log, place.position, place.entries)
        newest, seen = pipeline.pending.newest, pipeline.pending.seen
        if extent.last == newest and extent.added != seen:
            raise GapError(
                f"entries were deleted before they were learned: {extent.added} were added up to "
                f"{newest}, {seen} were read"
            )
        self._show(read_statistics(self.state, place, extent, pipeline.waiting_since_ms))
        self._drift_news.tell(self.drift)

    def _show(self, statistics: Statistics) -> None:
        self.statistics, begun = statistics, self.writer.begun_at
        age = None if begun is None else time.monotonic() - begun
        self.history.add_point(statistics, self.replica.backlog(statistics.entries_added), age)
