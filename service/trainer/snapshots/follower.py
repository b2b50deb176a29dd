"""The follower: it answers with what a trainer publishes, and learns nothing."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from service.fold.schema.schema import Schema
from service.fold.snapshot import Snapshot
from service.fold.state import State
from service.fold.task import AUTO
from service.log.cuts import Order
from service.log.errors import LogError, Stopped
from service.log.extent import Extent
from service.log.position import EntryId
from service.monitoring.columns import ColumnWindows
from service.monitoring.features import FeatureNames
from service.monitoring.history import History
from service.monitoring.pictures import Newest
from service.monitoring.statistics import Statistics, read_statistics
from service.monitoring.status import (
    Checkpointing,
    Condition,
    Drift,
    Followed,
    LabelStatus,
    Role,
    Status,
    Upstream,
)
from service.process import Clock, SystemClock
from service.settings import Settings
from service.trainer.checkpoint import DamagedError
from service.trainer.choice import AnotherModelError
from service.trainer.replica import Replica
from service.trainer.store import CheckpointStore, Info, UnreadableError, cut_of
from service.trainer.waiters import Applied
from service.trainer.worker import Worker, promise

T = TypeVar("T")
logger = logging.getLogger("funnel")

FOLLOWS = "this process has the role predict: it answers, and another one learns"
"""The reason that a follower gives for not learning."""
NO_LABELS = LabelStatus({}, 0, 0, 0.0, None, None, None, None, 0, 0)


class Follower:
    """Loads the newest of what a trainer writes, and publishes a snapshot and a status as one does.

    It never goes back to an earlier state of the same log. While the place cannot be read, it keeps
    what it has.

    Args:
        state: as built; `prepare` loads the newest checkpoint into it.
        stores: where a trainer publishes, and where it keeps its checkpoints; the newest counts.
        settings: of the service.
        every: seconds between two looks at the stores.
        clock: the time.
        workers: makes a worker with a given name.
        history: of the follower whose place it takes; None begins one.
        upstream: returns the status of the learner for which this process takes examples; None if
            it takes none.
    """

    def __init__(
        self,
        state: State,
        stores: Sequence[CheckpointStore],
        settings: Settings,
        every: float,
        clock: Clock | None = None,
        workers: Callable[[str], Worker] = Worker,
        history: History | None = None,
        upstream: Callable[[], Upstream] | None = None,
    ) -> None:
        self.replayed = threading.Event()
        """Set from the start: nothing is replayed."""
        self.replayed.set()
        self.caught_up = threading.Event()
        """Set once it has looked, or has ended."""
        self._clock = clock = clock or SystemClock()
        self.ended: Future[Settings | None] = promise()
        """Done when it ends: with the settings of the model that takes its place, or None."""
        self.history = history or History(clock)
        self._stores, self._settings, self._every = stores, settings, every
        self._upstream = upstream
        self._replica = Replica(
            state,
            lambda *_: None,
            clock,
            settings.declared,
            settings.declared_policies,
            settings.opens,
            settings.calibrate == AUTO,
        )
        self.newest, self.feature_names = Newest(state, clock), FeatureNames(clock)
        self.columns = ColumnWindows()
        self._worker = workers("funnel-follow")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="funnel-follower", daemon=True)
        self._condition, self._reason = Condition.FOLLOWING, FOLLOWS
        self._statistics: Statistics | None = None
        self._name = ""
        """Name of the newest state that was read."""
        self._newest_cut = 0
        """The cut of the newest state that is published."""
        self._published_at = self._read_at = clock.monotonic()
        self.snapshot = Snapshot.of(state)
        self._status = self._read_status()

    @property
    def status(self) -> Status:
        """The newest published status; its condition is that of the learner if that is known."""
        lag = max(0, self._newest_cut - self._replica.progress.cut)
        status = replace(self._status, followed=Followed(lag, self._read_at))
        if self._upstream is None or self._reason != FOLLOWS:
            return status
        condition, reason, _ = self._upstream()
        return replace(status, condition=condition, reason=reason)

    @property
    def schema(self) -> Schema:
        """The schema of rows in the state that is loaded."""
        return self._replica.schema

    @property
    def knows_schema(self) -> bool:
        """True if a state is loaded; the schema may have grown since."""
        return self._replica.progress.cut > 0

    @property
    def is_open(self) -> bool:
        """True while what is published may make it another model."""
        return self._replica.is_open

    def start(self) -> None:
        """Load the newest state and start the thread.

        Raises:
            DamagedError: it is damaged.
            UnreadableError: it cannot be read.
            LogError: it is of another model; AnotherModelError if its settings may be taken.
        """
        try:
            self.prepare()
        except BaseException:
            self._worker.end()
            raise
        self._thread.start()

    def prepare(self) -> None:
        """Load the newest state, and publish it; raises as `start` does."""
        self._look()

    def stop(self, timeout: float) -> bool:
        """End the thread; return whether it ended."""
        self._stopping.set()
        if self._thread.ident is not None:  # it has started
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def applied(self, entry: EntryId) -> "Future[Applied | None]":
        """Return a future that raises `Stopped`: nothing is learned here."""
        return self._refused()

    def checkpoint(self) -> "Future[Info]":
        """Return a future that raises `Stopped`: the trainer writes checkpoints."""
        return self._refused()

    def order(self, kind: Callable[[str, int], Order], by: str) -> "Future[int]":
        """Return a future that raises `Stopped`: the trainer takes commands."""
        return self._refused()

    def read(self, work: Callable[[State], T]) -> "Future[T]":
        """Return a future of what a function reads off the state between two loads."""
        return self._worker.start(lambda: work(self._replica.state))

    def _refused(self) -> "Future[T]":
        refused: Future[T] = promise()
        refused.set_exception(Stopped(FOLLOWS))
        return refused

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._every):
                try:
                    self._worker.start(self._look).result()
                except AnotherModelError as error:
                    taken = self._settings.taking(error.spec, error.claimed)
                    logger.info("%s; a model of that kind takes this one's place", error)
                    self.ended.set_result(taken)
                    break
                except (UnreadableError, DamagedError) as error:
                    if self._reason != str(error):
                        logger.warning("%s; answering with an older model", error)
                    self._become(Condition.FOLLOWING, str(error))
                except LogError as error:
                    logger.error("following is halted: %s", error)
                    self._become(Condition.HALTED, str(error))
                    break
        except Exception as error:
            logger.exception("the follower failed")
            self._become(Condition.HALTED, repr(error))
        finally:
            self._worker.end()
            if not self.ended.done():
                self.ended.set_result(None)
            if self._condition != Condition.HALTED:
                self._become(Condition.STOPPED, "the service is shutting down")
            self.caught_up.set()

    def _look(self) -> None:
        """Load the newest state if it is another one, and publish it."""
        found, failures = list[tuple[str, CheckpointStore]](), list[UnreadableError]()
        for store in self._stores:
            try:
                found.append((store.newest_name(), store))
            except UnreadableError as error:
                failures.append(error)
        if failures and not any(name for name, _ in found):
            raise failures[0]
        name, store = max(found, key=lambda one: one[0])
        self._newest_cut, self._read_at = cut_of(name), self._clock.monotonic()
        if name and name != self._name and (newest := store.newest()) is not None:
            own, self._name = self._replica.progress, name
            is_ahead = newest.progress.cut > own.cut or newest.progress.log != own.log
            if is_ahead and self._replica.take(newest, store.place):
                self._publish()
        if self._condition == Condition.FOLLOWING and self._reason != FOLLOWS:
            logger.info("the newest model can be read again")
            self._become(Condition.FOLLOWING, FOLLOWS)
        self.caught_up.set()

    def _publish(self) -> None:
        """Publish a snapshot of the state, and then the status that names its version."""
        state, progress = self._replica.state, self._replica.progress
        self._published_at = self._clock.monotonic()
        self.snapshot = Snapshot.of(state)
        self.columns.note(state)
        last = progress.position.entry
        extent = Extent(progress.log, 0, progress.entries, last, None)
        self._statistics = read_statistics(state, progress, extent)
        self._status = self._read_status()
        self.history.add_point(self._statistics, 0, None)

    def _become(self, condition: Condition, reason: str) -> None:
        self._condition, self._reason = condition, reason
        self._status = self._read_status()

    def _read_status(self) -> Status:
        replica, state = self._replica, self._replica.state
        drift = state.drift
        return Status(
            condition=self._condition,
            reason=self._reason,
            role=Role.PREDICTOR,
            version=state.version,
            examples=state.examples,
            expects_bytes=state.expects_bytes,
            scores=self._statistics.served.scores if self._statistics else None,
            progress=replica.progress,
            hyperparameters=state.hyperparameters,
            optimizer=state.answering.shown_hyperparameters(),
            snapshot_at=self._published_at,
            checkpoints=Checkpointing(0, 0, None),
            drift=Drift(drift.events, dict(drift.counts), drift.last_recovery),
            statistics=self._statistics,
            mean_entry=0.0,
            mean_bytes=0.0,
            damaged_entries=0,
            labels=NO_LABELS,
            promoted=state.promoted,
            commands=replica.commands,
        )
