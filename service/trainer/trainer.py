"""The trainer: it takes the lease, recovers, learns, and publishes snapshots and its status.

It runs in a thread with an event loop of its own, and steps in another (see
`service.trainer.pipeline`). Torch releases the interpreter in every operation, so requests are
answered meanwhile. No other thread reaches into a trainer: it publishes what others read.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import uvloop

from service.fold.schema.schema import Schema
from service.fold.scoring.classification import ScoreSummary
from service.fold.snapshot import Snapshot
from service.fold.state import State
from service.fold.task import AUTO
from service.log.cuts import Order, Promote, Rebuild, Resume, pause_of
from service.log.errors import FencedError, GapError, LogError, LogUnavailable, Stopped
from service.log.extent import Extent, check_reach
from service.log.labels import Join, Result
from service.log.lease import Lease, Lock
from service.log.log import COUNTED_AT_ONCE, Log
from service.log.position import EntryId
from service.monitoring.challenge import Challenge
from service.monitoring.columns import ColumnWindows
from service.monitoring.features import FeatureNames
from service.monitoring.history import History
from service.monitoring.notify import DriftNews, Notice
from service.monitoring.pictures import Newest
from service.monitoring.statistics import Statistics, read_statistics
from service.monitoring.status import Condition, Drift, LabelStatus, Role, Status
from service.process import Clock, SystemClock
from service.settings import WEIGHTED, Settings, seconds, size_of
from service.trainer.apart.publisher import Publisher
from service.trainer.archive.archive import Archive
from service.trainer.archive.archivist import Archivist
from service.trainer.archive.rebuilder import Ask, Outcome, Rebuilder
from service.trainer.archive.replay import Place, UnreachableError
from service.trainer.archive.rules import Rule
from service.trainer.choice import AnotherModelError
from service.trainer.identity import Identity
from service.trainer.joining.joiner import Joiner, Summary
from service.trainer.joining.joins import Joins
from service.trainer.orders import Orders
from service.trainer.pipeline import Pipeline
from service.trainer.rejections import Rejections
from service.trainer.replica import AppliedBatch, Replica
from service.trainer.store import CheckpointStore, Info, UnreadableError
from service.trainer.waiters import Applied, Waiters
from service.trainer.worker import Worker, give_way, promise
from service.trainer.writer import CheckpointWriter
from streams.examples import AnyBatch

T = TypeVar("T")
logger = logging.getLogger("funnel")

PUBLISH_SECONDS = 0.05
"""Greatest age of a snapshot while batches stream in; without a backlog it is up to date."""
PUBLISH_RATIO = 20
"""A snapshot may also be so many times as old as the time that copying it takes: the copy of a full
table takes some 20 ms."""
STATISTICS_SECONDS = 1.0
AUTOMATIC = "auto"
"""Gives the commands that no operator gives."""
PAUSE_SECONDS = 0.25
"""Time between statistics when learning has paused and the last ones are older than its end."""
STATISTICS_SHARE = 0.1
"""Share of the time that reading statistics may take: a slow machine reads them less often."""
CHECK_SECONDS = 10.0
"""Time between checks of the server's configuration."""
RETRY_SECONDS = 0.5
STALLED_LEASES = 10
"""A batch that takes longer than so many leases has hung: the lease is left to a standby."""
STANDBY_SECONDS = 0.25
"""Time between a standby's checks of the lease and of the newest checkpoint."""

ANOTHER_LEARNS = "another service learns from this log"
"""The reason that a standby gives for not learning."""


class Trainer:
    """Folds a log into a state.

    Args:
        state: as built; `prepare` loads the newest checkpoint into it.
        log: closed at the end.
        checkpoints: where states are kept.
        lock: next to the checkpoints (see `service.log.lease`).
        settings: of the service.
        observe: called with the seconds and the examples of each step.
        drifted: called, in the trainer's thread, with each drift and recovery while learning.
        clock: the time.
        workers: makes a worker with a given name.
        history: of the trainer whose place it takes; None begins one.
        delayed: called with the seconds from questions to their labels.
        publisher: publishes what is learned for processes that only answer; None for none.
        archive: keeps the log before it is trimmed, unless the settings say off, and what the log
            goes on from after a rebuild.
    """

    def __init__(
        self,
        state: State,
        log: Log,
        checkpoints: CheckpointStore,
        lock: Lock,
        settings: Settings,
        observe: Callable[[float, int], None],
        drifted: Callable[[Notice], object] = lambda _: None,
        clock: Clock | None = None,
        workers: Callable[[str], Worker] = Worker,
        history: History | None = None,
        delayed: Callable[[Sequence[float]], object] = lambda _: None,
        publisher: Publisher | None = None,
        archive: Archive | None = None,
    ) -> None:
        self.replayed = threading.Event()
        """Set while no replay is due or runs."""
        self.caught_up = threading.Event()
        """Set once it learns or stands by, or has halted or stopped."""
        self._clock = clock = clock or SystemClock()
        self.ended: Future[Settings | None] = promise()
        """Done when it ends: with the settings of the model that takes its place, or None."""
        self.history = history or History(clock)
        self._log, self._settings, self._observe = log, settings, observe
        declared, policies = settings.declared, settings.declared_policies
        opens, follows = settings.opens, settings.calibrate == AUTO
        ttl, grace = seconds(settings.label_ttl), seconds(settings.label_grace)
        timeout, _, default = settings.label_timeout.partition(":")
        wait = 0.0 if timeout == WEIGHTED else seconds(timeout) if timeout else None
        joiner = Joiner(
            clock,
            ttl,
            grace,
            settings.labels,
            delayed,
            wait,
            default,
            size_of(settings.join_bytes),
            timeout == WEIGHTED,
        )
        choices = declared, policies, opens, follows
        self._replica = Replica(
            state,
            self._on_batch,
            clock,
            *choices,
            joiner=joiner,
            became=self._on_labels,
            take_epoch=self._take_epoch,
            rebuilt=archive.rebuilt if archive is not None else None,
        )
        self._waiters, self._rejections = Waiters(), Rejections()
        self._orders, self._rebuilds = Orders[Order, int](), Orders[Ask, Outcome]()
        self._worker = workers("funnel-step")
        self._wake = asyncio.Event()
        writing, archivist = workers("funnel-checkpoint"), None
        self._rebuilder: Rebuilder | None = None
        if archive is not None and settings.archive != "off":
            most = settings.checkpoint_every_bytes
            archivist = Archivist(archive, writing, clock, self._wake.set, most)
            self._rebuilder = Rebuilder(Place(archive, checkpoints), writing, clock)
        self._writer = CheckpointWriter(
            checkpoints,
            writing,
            settings.checkpoint_every_seconds,
            settings.checkpoint_every_bytes,
            clock,
            self._wake.set,
            archivist,
        )
        self._publisher = publisher
        self._identity = Identity.of(settings, state.spec, checkpoints.place, lock.name)
        self._is_compared = False
        """True once it is known that it could take over from the present learner."""
        told = self._identity.to_json()
        self._lease = Lease(log, lock, settings.lease_seconds, clock, told)
        self._drift_news = DriftNews(self.history, drifted)
        self.newest, self.feature_names = Newest(state, clock), FeatureNames(clock)
        self.columns = ColumnWindows()
        self._challenge = Challenge() if settings.promote == "auto" else None
        self._condition, self._reason = Condition.STARTING, ""
        self._statistics: Statistics | None = None
        self._statistics_took = 0.0
        """Seconds that reading them took."""
        self._scores: ScoreSummary | None = None
        self._stopping = self._has_stalled = False
        self._statistics_at = self._checked_at = self._published_at = clock.monotonic()
        self._publishing_seconds = 0.0
        self._warnings: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="funnel-trainer", daemon=True)
        self.snapshot = Snapshot.of(state)
        self._update_status()

    @property
    def status(self) -> Status:
        """The newest published status, with the checkpoints and the archive as they are now."""
        own = self._writer
        return replace(self._status, checkpoints=own.summary, archive=own.archived)

    @property
    def schema(self) -> Schema:
        """The schema of rows after the newest recorded cut."""
        return self._replica.schema

    @property
    def knows_schema(self) -> bool:
        """True if `schema` is that of all recorded cuts; during replay it is an older one."""
        return self._replica.has_recovered

    @property
    def is_open(self) -> bool:
        """True while the log may make it another model (see `service.trainer.choice`)."""
        return self._replica.is_open

    def start(self) -> None:
        """Load the newest checkpoint and start the thread.

        Raises:
            DamagedError: there are checkpoints, but no good one.
            UnreadableError: they cannot be read.
            LogError: the newest is of another model; AnotherModelError if its settings may be
                taken.
        """
        self.prepare()
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Finish the batch at hand, write a checkpoint, end the thread; return whether it ended."""
        self.end()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def applied(self, entry: EntryId) -> "Future[Applied | None]":
        """Return a future of what becomes of an entry of the log."""
        future = self._waiters.wait(entry)
        self._poke()
        return future

    def checkpoint(self) -> "Future[Info]":
        """Return a future of a checkpoint of the state as it is now or soon."""
        future = self._writer.request()
        self._poke()
        return future

    def order(self, kind: Callable[[str, int], Order], by: str) -> "Future[int]":
        """Return a future of the number of the cut that carries an operator's command.

        Args:
            kind: returns the command, given ``by`` and the Unix time in milliseconds.
            by: name of the key with which it is given.
        """
        future = self._orders.give(kind(by, round(1000 * self._clock.time())))
        self._poke()
        return future

    def rebuild(self, rule: Rule, by: str, is_dry: bool) -> "Future[Outcome]":
        """Return a future of the outcome of a rebuild without some examples, or to a version.

        Args:
            rule: which examples are skipped.
            by: name of the key with which it is ordered.
            is_dry: whether only to count what would be skipped.
        """
        order = partial(Rebuild, by, round(1000 * self._clock.time()))
        future = self._rebuilds.give(Ask(rule, order, is_dry))
        self._poke()
        return future

    def read(self, work: Callable[[State], T]) -> "Future[T]":
        """Return a future of what a function reads off the state between two groups of batches.

        Ask only while it learns; wait with a limit, as a trainer that ends meanwhile never answers.
        """
        return self._worker.start(partial(work, self._replica.state))

    def prepare(self) -> None:
        """Load the newest checkpoint, and publish it; raises as `start` does."""
        self._load()

    def end(self) -> None:
        """Ask `run` to finish the batch at hand, write a checkpoint and return."""
        self._stopping = True
        self._poke()

    async def run(self) -> None:
        """Learn, or stand by, until `end` is called or an operator has to act."""
        self._loop = asyncio.get_running_loop()
        try:
            while not self._stopping:
                try:
                    await self._take_part()
                except Stopped:
                    break
                except AnotherModelError as error:
                    taken = self._settings.taking(error.spec, error.claimed)
                    if error.spec is not None and taken.spec.differences(error.spec):
                        logger.error("learning is halted: %s", error)
                        self._halt(error)
                        break
                    logger.info("%s; a model of that kind takes this one's place", error)
                    self._become(Condition.STARTING, "the model takes the kind of the log")
                    self.ended.set_result(taken)
                    break
                except (LogUnavailable, UnreadableError) as error:
                    self._wait_for(str(error))
                    if isinstance(error, UnreadableError):  # another process may be able to
                        await self._attempt(self._lease.release(), "the lease was not given back")
                    await self._sleep(RETRY_SECONDS)
                except LogError as error:
                    if isinstance(error, FencedError) or await self._may_be_behind():
                        self._resign(str(error))
                        continue
                    logger.error("learning is halted: %s", error)
                    self._halt(error)
                    break
            may_write = self._replica.has_recovered or self._stopping
            if may_write and self._replica.is_owner and self._replica.progress.cut:
                record = self._rejections.record(self._log)
                failure = "no last checkpoint is written: skipped batches could not be recorded"
                if await self._attempt(record, failure):
                    last = self._writer.finish(self._replica, self._log)
                    await self._attempt(last, "the log is not trimmed")
        except Exception as error:
            logger.exception("the trainer failed")
            self._halt(error)
        finally:
            self._worker.end()
            self._writer.stop()
            self._replica.resign()
            await self._attempt(self._lease.release(), "the lease was not given back")
            await self._log.close()
            if not self.ended.done():
                self.ended.set_result(None)
            if self._condition == Condition.HALTED or self.ended.result() is not None:
                self._become(self._condition, self._reason)
            else:
                self._become(Condition.STOPPED, "the service is shutting down")
            reason = f"the trainer is {self._condition}: {self._reason}"
            self._waiters.close(reason)
            self._orders.close(reason)
            self._rebuilds.close(reason)
            self._writer.close(reason)
            if self._publisher is not None:
                self._publisher.end()
            self.replayed.set()
            self.caught_up.set()

    def _run(self) -> None:
        give_way()
        uvloop.run(self.run())

    async def _take_part(self) -> None:
        """Learn while the lease is held; otherwise stand by for a moment."""
        if self._condition in (Condition.STARTING, Condition.WAITING):
            await self._check_server()
        if await self._lease.take():
            await self._learn(await self._recover())
        else:
            await self._stand_by()
            await self._sleep(STANDBY_SECONDS)

    def _load(self) -> None:
        """Load the newest checkpoint, if there is one, and publish it.

        Its snapshot comes before any status that names its version, as callers expect answers of
        the version that they have seen.
        """
        if self._replica.load(self._writer.checkpoints):
            self._writer.restart(self._replica.read_bytes)
            self._publish()

    def _poke(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def _on_batch(self, applied: AppliedBatch, batch: AnyBatch) -> None:
        self._waiters.remember(applied)
        self._rejections.remember(applied)
        self.newest.note(self.snapshot, batch)
        self.feature_names.note(self._replica.state.schema, batch)
        self._observe(applied.seconds, applied.examples)
        self.history.throughput.add(applied.examples)
        age = self._clock.monotonic() - self._published_at
        if self._waiters or age >= max(PUBLISH_SECONDS, PUBLISH_RATIO * self._publishing_seconds):
            self._publish()

    def _on_labels(self, entry: EntryId, joins: Sequence[Join]) -> None:
        results = [join.result for join in joins]
        self._waiters.remember_labels(entry, results, self._replica.state.version)

    def _publish(self) -> None:
        """Publish a snapshot of the state and the status, then answer the waiters of its entries.

        Only the owner of the state calls this: the worker, or the event loop while that is quiet.
        """
        state = self._replica.state
        self._published_at = self._clock.monotonic()
        is_other = self.snapshot.learner is not state.answering
        if is_other or self.snapshot.version != state.version:
            self.snapshot = Snapshot.of(state)
            self._publishing_seconds = self._clock.monotonic() - self._published_at
        served = state.answering
        if served.device.type == "cpu":  # elsewhere, to read them would wait for the device
            self._scores = served.scores.read()
        elif self._statistics is not None:
            self._scores = self._statistics.served.scores
        self._update_status()
        self._waiters.answer(self._replica.progress.position)

    def _update_status(self) -> None:
        replica, state = self._replica, self._replica.state
        drift = state.drift
        self._status = Status(
            condition=self._condition,
            reason=self._reason,
            role=Role.LEARNER if replica.has_recovered else Role.STANDBY,
            version=state.version,
            examples=state.examples,
            expects_bytes=state.expects_bytes,
            scores=self._scores,
            progress=replica.progress,
            hyperparameters=state.hyperparameters,
            optimizer=state.answering.shown_hyperparameters(),
            snapshot_at=self._published_at,
            checkpoints=self._writer.summary,
            archive=self._writer.archived,
            drift=Drift(drift.events, dict(drift.counts), drift.last_recovery),
            statistics=self._statistics,
            mean_entry=replica.mean_entry,
            mean_bytes=replica.mean_bytes,
            damaged_entries=replica.damaged_entries,
            labels=_label_status(replica.joins, replica.joiner.summary),
            promoted=state.promoted,
            commands=replica.commands,
        )

    def _become(self, condition: Condition, reason: str = "") -> None:
        self._condition, self._reason = condition, reason
        self._update_status()

    def _halt(self, error: BaseException) -> None:
        self._become(Condition.HALTED, str(error) or repr(error))

    def _wait_for(self, reason: str) -> None:
        """Log and publish the reason why learning waits."""
        if (self._condition, self._reason) != (Condition.WAITING, reason):
            logger.warning("%s; learning waits", reason)
        self._become(Condition.WAITING, reason)
        self._writer.give_up(reason)
        self._give_up_orders(reason)

    def _resign(self, reason: str) -> None:
        logger.warning("learning may have passed to another service: %s", reason)
        if self._replica.has_recovered:
            self._drift_news.notify(self._replica.state.drift)
        self.replayed.clear()
        self._writer.stop()
        self._replica.resign()

    def _give_up_orders(self, reason: str) -> None:
        self._orders.give_up(reason)
        self._rebuilds.give_up(reason)

    async def _attempt(self, work: Awaitable[None], failure: str) -> bool:
        """Return whether work is done that may fail if the log cannot be reached; log that."""
        try:
            await work
        except LogUnavailable as error:
            logger.warning("%s: %s", failure, error)
            return False
        return True

    async def _check_server(self) -> None:
        """Check at the start, after a reconnection and regularly that the server can keep a log."""
        self._checked_at = self._clock.monotonic()
        warnings = await self._log.check_server()
        for warning in (w for w in warnings if w not in self._warnings):
            logger.warning("%s", warning)
        self._warnings = warnings

    async def _sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until woken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
            self._wake.clear()

    async def _stand_by(self) -> None:
        """Serve the newest checkpoint while another service learns."""
        if self._condition != Condition.STANDBY:
            logger.info("%s; standing by", ANOTHER_LEARNS)
            self.replayed.clear()
            self._writer.stop()
            self._replica.resign()
            self._become(Condition.STANDBY, ANOTHER_LEARNS)
            self._is_compared = False
        self._writer.give_up(ANOTHER_LEARNS)
        self._waiters.give_up(ANOTHER_LEARNS)
        self._give_up_orders(ANOTHER_LEARNS)
        try:
            if self._writer.checkpoints.has_news:
                self._load()
                self._become(Condition.STANDBY, ANOTHER_LEARNS)
                self._show(await self._log.extent())
            if not self._is_compared:
                await self._compare()
            await self._replica.compare(self._log)
        except UnreadableError as error:
            if self._reason != str(error):
                logger.warning("%s; standing by with an older model", error)
            self._become(Condition.STANDBY, str(error))
        self.caught_up.set()

    async def _compare(self) -> None:
        """Compare itself with the learner; log what would change if it took over.

        Raises:
            LogError: it could not take over; the message lists why, and what to do.
        """
        key, place = self._log.keys.log, self._writer.checkpoints.place
        learner = Identity.from_json(await self._log.learner())
        if learner is None:  # of an earlier version, or gone
            return
        if differing := learner.differing(self._settings, self._replica.state.spec):
            raise LogError(
                f"the service on {learner.host} that learns from {key} has another model, so that "
                f"this one could not take over from it: {', '.join(differing)}. Use its settings "
                "to stand by, or another --name for another application"
            )
        first, _ = await self._log.cut_range()
        is_apart = learner.keeps_elsewhere(self._identity)
        if first > self._replica.progress.cut + 1 and not self._settings.accept_gap:
            if self._writer.checkpoints.has_news:
                return  # it is compared again with what has just been written
            reason = (
                f"this service could not take over from the one that learns from {key}: its own "
                f"checkpoints in {place} end at cut {self._replica.progress.cut}, and the log "
                f"begins at cut {first}. {learner.advice}, or another --name for another "
                "application"
            )
            if is_apart:
                raise LogError(reason)
            logger.warning("%s", reason)  # the learner on another machine may write one there
        elif is_apart:
            logger.warning(
                "the learner keeps its checkpoints in %s, and this service looks for them in %s: "
                "it will serve an older model. Use one --data-dir or --state for both",
                learner.folder,
                place,
            )
        if changing := learner.changing(self._identity):
            logger.warning(
                "if this service takes over, it goes on with its own settings: %s",
                ", ".join(changing),
            )
        self._is_compared = True

    async def _take_epoch(self, log: Log, at_least: int) -> int:
        """Take the log over, and then the place of the checkpoints, so that no earlier trainer
        writes either; return the epoch.

        While the place cannot be reached, a trainer that has claimed it before goes on.

        Raises:
            FencedError: a later trainer has claimed the place.
            UnreadableError: it cannot be reached.
        """
        store = self._writer.checkpoints
        epoch = await log.take_epoch(max(at_least, store.epoch))
        if store.needs_claim:
            claimed = self._worker.start(lambda: store.claim(epoch))
            try:
                await asyncio.wrap_future(claimed)
            except UnreadableError as error:
                if not self._replica.has_recovered:
                    raise
                logger.warning("%s; going on with an earlier claim", error)
        return epoch

    async def _keep_lease(self) -> None:
        """Renew the lease if that is due, unless a batch hangs.

        Raises:
            FencedError: the lease ran out; another service may have learned since.
            Stopped: the trainer was asked to end.
        """
        is_due = self._lease.due_in <= 0 and not self._has_stalled
        if is_due and not await self._lease.renew():
            raise FencedError("the lease ran out")
        if self._stopping:
            raise Stopped("the service is shutting down")

    async def _may_be_behind(self) -> bool:
        """Return whether another service may have learned what this one lacks.

        Either the lease ran out, or there is a newer checkpoint: its trainer may have trimmed the
        log while this process took the log over.
        """
        with contextlib.suppress(UnreadableError):
            if self._writer.checkpoints.has_news:
                return True
        try:
            return self._replica.has_recovered and not await self._lease.renew()
        except LogUnavailable:
            return True

    async def _recover(self) -> Pipeline:
        replica, was, is_new = self._replica, self._condition, not self._replica.has_recovered
        try:
            if self._writer.checkpoints.has_news:  # another service has learned meanwhile
                self._load()
        except UnreadableError as error:
            if is_new:
                raise
            logger.warning("%s; going on with the model in memory", error)
        if is_new:
            if self._lease.lock.is_held:
                self._writer.tidy()
            self._become(Condition.REPLAYING, f"from cut {replica.progress.cut}")
        pending = await replica.recover(self._log, self._settings.accept_gap, self._keep_lease)
        await self._carry_out_rebuilds()
        if was != Condition.STARTING:
            logger.info("learning, from version %d on", replica.state.version)
        if is_new:
            self._drift_news.skip(replica.state.drift)
        self._become(Condition.LEARNING)
        self.replayed.set()
        self._note_pause()
        own = self._settings, self._worker, self._clock, self._orders
        pipeline = Pipeline(replica, self._log, pending, *own)
        await self._watch(pipeline)
        self.caught_up.set()
        return pipeline

    async def _carry_out_rebuilds(self) -> None:
        """Carry out the rebuilds that wait: all recorded cuts are applied, and none is recorded."""
        replica = self._replica
        while (waiting := self._rebuilds.take()) is not None:
            ask, future = waiting
            what = "counting what a rebuild would skip" if ask.is_dry else "rebuilding the model"
            logger.info("%s", what)
            self._become(Condition.REPLAYING, what)
            try:
                if self._rebuilder is None:
                    raise UnreachableError("FUNNEL_ARCHIVE is off")
                outcome = await self._rebuilder.rebuild(replica, self._log, ask, self._keep_lease)
            except (UnreachableError, OSError) as error:
                logger.warning("the model is not rebuilt: %s", error)
                future.set_exception(error)
                continue
            except BaseException as error:
                future.set_exception(error)
                raise
            if outcome.cut:
                logger.warning(
                    "the model goes on from cut %d without %d examples that it had learned",
                    outcome.cut,
                    outcome.examples,
                )
                self._drift_news.skip(replica.state.drift)
                self._publish()
                self._writer.request()  # so that the next start needs neither
            future.set_result(outcome)

    async def _learn(self, pipeline: Pipeline) -> None:
        """Learn what arrives, and do all other work between groups of batches, until there is
        something to rebuild."""
        try:
            while not self._rebuilds:
                await self._keep_lease()
                self._wake.clear()
                self._note_stall(pipeline)
                wait = max(self._lease.due_in, STANDBY_SECONDS)
                if pipeline.is_quiet:
                    wait = min(wait, await self._tend(pipeline))
                await pipeline.turn(self._wake, wait)
        finally:
            await pipeline.close()

    async def _tend(self, pipeline: Pipeline) -> float:
        """Do what needs a state that stands still; return the seconds until the statistics."""
        replica = self._replica
        self._note_pause()
        if self._writer.is_due(replica):
            await self._rejections.record(self._log)
        await self._writer.tend(replica, self._log)
        if self._publisher is not None:
            self._publisher.tend(replica)
        if (due_in := self._statistics_due_in(pipeline)) <= 0:
            await self._watch(pipeline)
            due_in = STATISTICS_SECONDS
        elif pipeline.is_idle:
            if self._status.progress is not replica.progress:
                self._publish()
            else:
                self._waiters.answer(replica.progress.position)
        if self._publisher is not None:
            due_in = min(due_in, max(self._publisher.due_in(), PUBLISH_SECONDS))
        return due_in

    def _note_pause(self) -> None:
        """Publish that learning is paused, or goes on; nobody waits for examples meanwhile."""
        commands = self._replica.commands
        if (pause := pause_of(commands)) is not None:
            order = pause.order
            at = datetime.fromtimestamp(order.at / 1000, UTC).isoformat(timespec="seconds")
            reason = f"paused by {order.by} at {at}; POST /resume, or funnel resume, ends it"
            if self._condition != Condition.PAUSED:
                logger.info("learning is %s", reason)
                self._become(Condition.PAUSED, reason)
            self._waiters.give_up("learning is paused")
        elif self._condition == Condition.PAUSED:
            resumed = next(c.order for c in reversed(commands) if isinstance(c.order, Resume))
            logger.info("learning goes on, as %s has ordered", resumed.by)
            self._become(Condition.LEARNING)

    def _note_stall(self, pipeline: Pipeline) -> None:
        stalled = pipeline.batch_seconds > STALLED_LEASES * self._settings.lease_seconds
        if stalled and not self._has_stalled:
            logger.error("a batch takes %.0f s: is the device hung?", pipeline.batch_seconds)
        self._has_stalled = stalled

    def _statistics_due_in(self, pipeline: Pipeline) -> float:
        """Return the seconds until the next statistics; sooner once learning has paused."""
        version = self._statistics.version if self._statistics else None
        is_stale = version != self._replica.state.version
        every = PAUSE_SECONDS if is_stale and pipeline.is_idle else STATISTICS_SECONDS
        every = max(every, self._statistics_took / STATISTICS_SHARE)
        return self._statistics_at + every - self._clock.monotonic()

    async def _watch(self, pipeline: Pipeline) -> None:
        """Check that the log is whole, and show how far learning is."""
        self._statistics_at = self._clock.monotonic()
        if self._statistics_at - self._checked_at >= CHECK_SECONDS:
            await self._check_server()
        await self._rejections.record(self._log)
        extent, replica = await self._log.extent(), self._replica
        check_reach(extent, replica.progress)
        pipeline.is_read = extent.last <= pipeline.pending.newest
        await replica.watch_questions(self._log, extent, pipeline.is_read)
        if (joiner := replica.joiner).evicted_bytes > joiner.most_bytes / 4:
            joiner.evicted_bytes = 0
            self._writer.request()  # the log's server keeps what older checkpoints need
        newest, seen = pipeline.pending.newest, pipeline.pending.seen
        is_known, unread = extent.last == newest, 0
        if extent.last > newest and pipeline.is_idle and self.caught_up.is_set():
            unread, _ = await self._log.count_after(newest, extent.last)
            is_known = unread < COUNTED_AT_ONCE
        if is_known and extent.added != seen + unread:
            raise GapError(
                f"entries were deleted before they were learned: {extent.added} were added up to "
                f"{extent.last}, {seen} were read, and {unread} can be"
            )
        self._show(extent, pipeline.waiting_since_ms)
        self._compare_shadows()
        self._drift_news.notify(replica.state.drift)
        self._publish()

    def _compare_shadows(self) -> None:
        """Order the promotion of a shadow that is better, if that is the setting."""
        if self._challenge is None or self._statistics is None:
            return
        promotions = [c.order for c in self._replica.commands if isinstance(c.order, Promote)]
        if promotions and promotions[-1].by != AUTOMATIC:
            return  # an operator has decided
        if (name := self._challenge.note(self._statistics)) is not None:
            logger.info("shadow %s is better than the learner that answers; it is promoted", name)
            self._challenge.begin()
            self.order(partial(Promote, learner=name), AUTOMATIC)

    def _show(self, extent: Extent, waiting_since_ms: int | None = None) -> None:
        """Read the statistics off the device if they have changed, and add them to the history."""
        state, progress, known = self._replica.state, self._replica.progress, self._statistics
        self.columns.note(state)
        if known is None or known.version != state.version or known.progress is not progress:
            began = self._clock.monotonic()
            self._statistics = read_statistics(state, progress, extent, waiting_since_ms)
            self._statistics_took = self._clock.monotonic() - began
        else:
            self._statistics = known.at(extent, waiting_since_ms)
        self._publish()
        self.history.add_point(self._statistics, self.status.backlog(), self._writer.age)


def _label_status(joins: Joins, known: Summary) -> LabelStatus:
    """Return the status of the labels of questions."""
    recent = [*joins.recent]
    asked = known.open + known.labelled
    return LabelStatus(
        results={result: joins.counts[result] for result in Result},
        open_questions=known.open,
        open_bytes=known.bytes,
        oldest_seconds=known.oldest,
        coverage=known.labelled / asked if asked else None,
        delay_seconds=known.delay,
        given_accuracy=joins.correct / joins.scored if joins.scored else None,
        rolling_given_accuracy=sum(recent) / len(recent) if recent else None,
        damaged=known.damaged,
        evicted=joins.evicted,
    )
