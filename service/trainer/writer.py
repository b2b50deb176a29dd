"""Writes checkpoints on time or on request, one at a time, while learning continues."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from service.log.errors import FencedError, Stopped
from service.log.log import Log
from service.log.position import Progress
from service.monitoring.status import Archiving, Checkpointing
from service.process import Clock, return_freed_memory
from service.trainer.archive.archivist import Archivist
from service.trainer.checkpoint import Checkpoint
from service.trainer.replica import Replica
from service.trainer.store import CheckpointStore, Info, UnreadableError
from service.trainer.worker import Worker, promise

logger = logging.getLogger("funnel")

LOG_BYTES = 256 << 20
"""By default, the least bytes of log between checkpoints."""
CHECKPOINTS = 4
"""By default, the least bytes of log between checkpoints, as a multiple of a checkpoint: so the
disk writes at most a quarter more for them than for the log."""


class CheckpointWriter:
    """Writes checkpoints in a worker; learning stops only while the state is copied.

    Args:
        checkpoints: the store that keeps them.
        worker: writes.
        every_seconds: time between checkpoints that no request started.
        every_bytes: bytes of the log after which one is written sooner; 0: LOG_BYTES, or
            CHECKPOINTS times the newest checkpoint if that is more.
        clock: measures that time.
        written: called in the event loop after each attempt.
        archivist: archives the log before it is trimmed; None if nobody does.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        worker: Worker,
        every_seconds: float,
        every_bytes: int,
        clock: Clock,
        written: Callable[[], None],
        archivist: Archivist | None = None,
    ) -> None:
        self.checkpoints, self._worker = checkpoints, worker
        self.archivist = archivist
        self._newest: Info | None = None
        """The last checkpoint that was written here."""
        self._was_requested = False
        """True if the last checkpoint that was begun was requested."""
        self._every, self._clock, self._written = every_seconds, clock, written
        self._every_bytes, self._begun_bytes = every_bytes, 0
        self.summary = Checkpointing(0, 0, None)
        """The checkpoints so far."""
        self._begun_at: float | None = None
        """When the last attempt began, or learning did."""
        self._next: Future[Info] = promise()
        """The next checkpoint, for all that request it."""
        self._is_requested = False
        self._lock = threading.Lock()
        self._writing: asyncio.Future[Info] | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the last attempt; before the first, since learning began, if it has."""
        return None if self._begun_at is None else self._clock.monotonic() - self._begun_at

    def restart(self, read_bytes: int) -> None:
        """Count to the next checkpoint from now: one was loaded, or learning begins.

        Args:
            read_bytes: bytes of the log that were read so far.
        """
        self._begun_at, self._begun_bytes = self._clock.monotonic(), read_bytes
        self.summary = replace(self.summary, newest_at=self._begun_at)

    def request(self) -> "Future[Info]":
        """Return a future of a checkpoint of the state as it is now or soon.

        The log is archived up to it, and trimmed, soon after. The future raises `Stopped` if the
        trainer stops before, and OSError if the disk fails.
        """
        with self._lock:
            self._is_requested = True
            return self._next

    @property
    def archived(self) -> Archiving | None:
        """The archive so far; None if nobody writes one."""
        return self.archivist.summary if self.archivist is not None else None

    def tidy(self) -> None:
        """Remove scraps of killed writers; only for the holder of the lock next to them."""
        if self._writing is None:
            self.checkpoints.clear_scraps()

    async def tend(self, replica: Replica, log: Log) -> None:
        """Begin a checkpoint if one is due; after one, archive the log, and trim it.

        Raises:
            FencedError: another trainer has claimed the place of the checkpoints.
        """
        progress = replica.progress
        if self.is_due(replica):
            self._begin(replica)
        elif self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            if isinstance(error := writing.exception(), FencedError):
                raise error
            if error is None:
                self._newest = writing.result()
                if self.archivist is not None and self._was_requested:
                    self.archivist.hurry()
                await self._trim(progress, log)
        elif self.archivist is not None and self._newest is not None:
            own = self.checkpoints, self._newest, replica.read_bytes
            if self.archivist.tend(log, *own):
                await self._trim(progress, log)

    async def _trim(self, progress: Progress, log: Log) -> None:
        """Trim the log before the oldest checkpoint, as far as it is archived.

        Args:
            progress: of the replica.
            log: its log.
        """
        oldest = self.checkpoints.oldest()
        if oldest is not None and self.archivist is not None:
            oldest = self.archivist.reach(oldest)
        if oldest is not None and oldest.log == progress.log:
            lowest = min(oldest.position, progress.position, key=lambda at: at.entry)
            await log.trim(lowest, oldest.cut, oldest.asked)

    async def finish(self, replica: Replica, log: Log) -> None:
        """Write the state as it is at the end, archive the log up to it, and wait for that."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
        last = self._begin(replica)
        await asyncio.wait({last})
        if last.exception() is None:
            logger.info("checkpoint of version %d written", replica.state.version)
            if self.archivist is not None:
                await self.archivist.finish(log, self.checkpoints, last.result())
            try:
                await self._trim(replica.progress, log)
            except UnreadableError as error:
                logger.warning("the log is not trimmed: %s", error)

    def stop(self) -> None:
        """Archive nothing more: another trainer may have the log."""
        self._newest = None
        if self.archivist is not None:
            self.archivist.stop()

    def close(self, reason: str) -> None:
        """End the worker; fail the requests that wait, and those to come."""
        self._next.set_exception(Stopped(reason))
        self._worker.end()

    def give_up(self, reason: str) -> None:
        """Fail the requests that wait."""
        self._take_requests().set_exception(Stopped(reason))

    def is_due(self, replica: Replica) -> bool:
        """Return whether it is time for a checkpoint, enough was read, or one was requested."""
        if self._begun_at is None:
            self.restart(0)
        size = self._every_bytes or max(LOG_BYTES, CHECKPOINTS * self.checkpoints.newest_bytes)
        has_read = replica.read_bytes - self._begun_bytes >= size
        is_time = has_read or (self.age or 0.0) >= self._every
        is_new = replica.state.version > 0 and is_time
        return self._writing is None and (self._is_requested or is_new)

    def _take_requests(self) -> "Future[Info]":
        with self._lock:
            taken, self._next, self._is_requested = self._next, promise(), False
        return taken

    def _begin(self, replica: Replica) -> "asyncio.Future[Info]":
        self._was_requested = self._is_requested
        requested = self._take_requests()
        ledger, joins = self.checkpoints.ledger, replica.joins
        copy = Checkpoint.of(replica.state, replica.progress, ledger, joins, replica.commands)
        self._begun_at = begun_at = self._clock.monotonic()
        self._begun_bytes = replica.read_bytes

        def answer(done: "asyncio.Future[Info]") -> None:
            if error := done.exception():
                self.summary = replace(self.summary, failed=self.summary.failed + 1)
                logger.error("the checkpoint could not be written: %s", error)
            else:
                ok = self.summary.ok + 1
                self.summary = replace(self.summary, ok=ok, newest_at=begun_at)
            self._written()
            if error:
                requested.set_exception(error)
            else:
                requested.set_result(done.result())

        self._writing = asyncio.wrap_future(
            self._worker.start(lambda: self.checkpoints.write(copy))
        )
        self._writing.add_done_callback(answer)
        self._worker.start(return_freed_memory)
        return self._writing
