"""Publishes the state every second or so, for processes that answer with it and do not learn.

A published state is a checkpoint in a place of its own. It need not outlast a power cut, it has
none of the questions, and the log is not trimmed for it.
"""

import contextlib
import logging
from concurrent.futures import Future

from service.log.errors import FencedError
from service.process import Clock
from service.trainer.checkpoint import Checkpoint, DamagedError
from service.trainer.replica import Replica
from service.trainer.store import CheckpointStore
from service.trainer.worker import Worker
from streams.errors import FunnelError

logger = logging.getLogger("funnel")

SHARE = 0.1
"""Most of the time that copying the state may take: that of a large table is published less often.
"""


class Publisher:
    """Publishes what a trainer has learned; learning stops only while the state is copied.

    Args:
        store: holds what is published.
        worker: writes.
        every: seconds between two of them.
        clock: measures that time.
    """

    def __init__(self, store: CheckpointStore, worker: Worker, every: float, clock: Clock) -> None:
        self._store, self._worker, self._every, self._clock = store, worker, every, clock
        self._begun_at = -every
        self._took = 0.0
        """Seconds that the last copy took."""
        self._published = -1
        """The cut of the last copy."""
        self._claimed = 0
        """The epoch with which the place was claimed."""
        self._fenced = 0
        """The epoch of this trainer after which a later one has claimed the place."""
        self._failure = ""
        self._writing: Future[None] | None = None

    def due_in(self) -> float:
        """Return the seconds until the next one may be due."""
        every = max(self._every, self._took / SHARE)
        return max(0.0, self._begun_at + every - self._clock.monotonic())

    def tend(self, replica: Replica) -> None:
        """Begin to publish the state, which stands still, if it is time and has changed."""
        progress = replica.progress
        is_busy = self._writing is not None and not self._writing.done()
        if is_busy or self.due_in() > 0 or progress.cut == self._published:
            return
        if progress.epoch <= self._fenced:
            return
        self._begun_at, self._published = self._clock.monotonic(), progress.cut
        copy = Checkpoint.of(replica.state, progress, self._store.ledger, None, replica.commands)
        self._took = self._clock.monotonic() - self._begun_at
        self._writing = self._worker.start(lambda: self._write(copy))

    def end(self) -> None:
        """Accept no more work; what was begun is still written."""
        self._worker.end()

    def _write(self, copy: Checkpoint) -> None:
        epoch, failure = copy.progress.epoch, ""
        try:
            if epoch > self._claimed:
                self._claim(copy)
            self._store.write(copy)
        except FencedError as error:
            logger.warning("snapshots are published by a later trainer: %s", error)
            self._fenced = epoch
        except (OSError, FunnelError) as error:
            number = error.errno if isinstance(error, OSError) else None
            failure = f"{type(error).__name__} {number}"
            if failure != self._failure:
                logger.error("the snapshot could not be published, and is tried again: %s", error)
            self._published = -1
            with contextlib.suppress(OSError):
                self._store.make()  # somebody may have removed the folder
        if self._failure and not failure:
            logger.info("snapshots are published again")
        self._failure = failure

    def _claim(self, copy: Checkpoint) -> None:
        """Take the place over; what was learned from another log, or later, is gone from it.

        Raises:
            FencedError: a later trainer has claimed the place.
            OSError: it cannot be used.
        """
        self._store.claim(copy.progress.epoch)
        self._store.clear_scraps()
        try:
            newest = self._store.newest()
        except DamagedError:
            newest = None
        is_other = newest is not None and newest.progress.log != copy.progress.log
        if is_other and not self._store.needs_claim:  # otherwise the newest has a name
            self._store.clear()
        self._claimed = copy.progress.epoch
