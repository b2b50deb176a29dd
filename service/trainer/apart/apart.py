"""A stand-in for the trainer, in a process that never learns."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from service.fold.schema.schema import Schema
from service.fold.snapshot import Snapshot
from service.fold.state import State
from service.log.cuts import Order
from service.log.errors import LogError, LogUnavailable, Stopped
from service.log.position import EntryId, Progress
from service.monitoring.columns import ColumnWindows
from service.monitoring.features import FeatureNames
from service.monitoring.history import History
from service.monitoring.pictures import Newest
from service.monitoring.statistics import Statistics
from service.monitoring.status import (
    Checkpointing,
    Condition,
    Drift,
    Followed,
    LabelStatus,
    Role,
    Status,
)
from service.process import Clock, SystemClock
from service.settings import Settings
from service.trainer.archive.rebuilder import Outcome
from service.trainer.archive.rules import Rule
from service.trainer.checkpoint import DamagedError
from service.trainer.choice import AnotherModelError
from service.trainer.store import Info
from service.trainer.waiters import Applied
from service.trainer.worker import Worker, promise

T = TypeVar("T")
logger = logging.getLogger("funnel")

NO_LABELS = LabelStatus({}, 0, 0, 0.0, None, None, None, None, 0, 0)


class Apart(ABC):
    """Looks regularly at what the learner writes, and publishes a snapshot and a status.

    Other threads read it as they read a `service.trainer.trainer.Trainer`.

    Args:
        state: as built.
        settings: of the service.
        role: of the process.
        reason: why it does not learn.
        every: seconds between two looks.
        clock: the time.
        workers: makes a worker with a given name.
        history: of the one whose place it takes; None begins one.
    """

    def __init__(
        self,
        state: State,
        settings: Settings,
        role: Role,
        reason: str,
        every: float,
        clock: Clock | None = None,
        workers: Callable[[str], Worker] = Worker,
        history: History | None = None,
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
        self.newest, self.feature_names = Newest(state, clock), FeatureNames(clock)
        self.columns = ColumnWindows()
        self._state, self._settings, self._every = state, settings, every
        self._role, self._usual = role, reason
        self._condition, self._reason = Condition.FOLLOWING, reason
        self._statistics: Statistics | None = None
        self._published_at = self._read_at = clock.monotonic()
        self._worker = workers(f"funnel-{role}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"funnel-{role}-turns", daemon=True)
        self.schema: Schema = settings.declared or state.schema
        """The schema of rows, as far as it is known."""
        self.knows_schema = False
        """True once something was read; the schema may have grown since."""
        self.is_open = bool(settings.opens)
        """True while what is read may make it another model."""
        self.snapshot = Snapshot.of(state)
        self._status = self._status_at(Progress(), 0)
        self._known: tuple[Status, tuple[object, ...], Status] = self._status, (), self._status
        """The last status that was shown, after the two that it was made of."""
        self._lag = 0
        """Cuts that are published and not loaded."""

    @property
    def status(self) -> Status:
        """The newest status."""
        own, now = self._status, (*self._shown(), Followed(self._lag, self._read_at))
        of, then, status = self._known
        if own is not of or now != then:
            condition, reason, followed = now
            status = replace(own, condition=condition, reason=reason, followed=followed)
            self._known = own, now, status
        return status

    def _shown(self) -> tuple[Condition, str]:
        """Return the condition and its reason, as others see them."""
        return self._condition, self._reason

    @abstractmethod
    def _look(self) -> None:
        """Read what is new, and publish it; only the worker and the first caller do.

        Raises:
            AnotherModelError: it is of a model that takes this one's place.
            UnreadableError, DamagedError, LogUnavailable: it cannot be read now.
            LogError: it is of a model that the settings do not allow.
        """

    def start(self) -> None:
        """Look once, and start the thread; raises as `prepare` does."""
        try:
            self.prepare()
        except BaseException:
            self._worker.end()
            raise
        self._thread.start()

    def prepare(self) -> None:
        """Look once.

        Raises:
            AnotherModelError, UnreadableError, DamagedError, LogError: as what is read demands.
        """
        self._look()
        self.caught_up.set()

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

    def rebuild(self, rule: Rule, by: str, is_dry: bool) -> "Future[Outcome]":
        """Return a future that raises `Stopped`: the trainer rebuilds."""
        return self._refused()

    def read(self, work: Callable[[State], T]) -> "Future[T]":
        """Return a future of what a function reads off the state between two looks."""
        return self._worker.start(lambda: work(self._state))

    def _refused(self) -> "Future[T]":
        refused: Future[T] = promise()
        refused.set_exception(Stopped(self._usual))
        return refused

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._every):
                try:
                    self._worker.start(self._look).result()
                    self._recover()
                except AnotherModelError as error:
                    taken = self._settings.taking(error.spec, error.claimed)
                    logger.info("%s; a model of that kind takes this one's place", error)
                    self.ended.set_result(taken)
                    break
                except (OSError, DamagedError, LogUnavailable) as error:
                    if self._reason != str(error):
                        logger.warning("%s; going on with what was read before", error)
                    self._condition, self._reason = Condition.FOLLOWING, str(error)
                except LogError as error:
                    logger.error("following is halted: %s", error)
                    self._condition, self._reason = Condition.HALTED, str(error)
                    break
        except Exception as error:
            logger.exception("following has failed")
            self._condition, self._reason = Condition.HALTED, repr(error)
        finally:
            self._worker.end()
            if not self.ended.done():
                self.ended.set_result(None)
            if self._condition != Condition.HALTED:
                self._condition, self._reason = Condition.STOPPED, "the service is shutting down"
            self._close()

    def _recover(self) -> None:
        """Note that a look has succeeded."""
        if self._reason != self._usual:
            logger.info("what the learner writes can be read again")
            self._condition, self._reason = Condition.FOLLOWING, self._usual

    def _close(self) -> None:
        """Let nobody wait any longer, and close what was opened."""
        self.caught_up.set()

    def _status_at(self, progress: Progress, version: int) -> Status:
        """Return the status with a progress along the log, and a version of the model."""
        state, drift = self._state, self._state.drift
        return Status(
            condition=self._condition,
            reason=self._reason,
            role=self._role,
            version=version,
            examples=state.examples,
            expects_bytes=state.expects_bytes,
            scores=self._statistics.served.scores if self._statistics else None,
            progress=progress,
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
            archive=None,
            promoted=state.promoted,
            commands=(),
        )
