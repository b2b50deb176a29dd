"""Writes checkpoints on time or on request, one at a time, while learning continues."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from service.fold.state import State
from service.log.errors import Stopped
from service.log.log import Log
from service.log.position import Progress
from service.monitoring.status import Checkpointing
from service.process import Clock
from service.trainer.checkpoint import Checkpoint
from service.trainer.store import CheckpointStore, Info
from service.trainer.worker import Worker

logger = logging.getLogger("funnel")


class CheckpointWriter:
    """Writes checkpoints in a worker; learning stops only while the state is copied.

    Args:
        checkpoints: the store that keeps them.
        worker: writes.
        every_seconds: time between checkpoints that no request started.
        clock: measures that time.
        written: called in the event loop after each attempt.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        worker: Worker,
        every_seconds: float,
        clock: Clock,
        written: Callable[[], None],
    ) -> None:
        self.checkpoints, self._worker = checkpoints, worker
        self._every, self._clock, self._written = every_seconds, clock, written
        self._ok = self._failed = 0
        self._begun_at: float | None = None
        """When the last attempt began, or learning did."""
        self._newest_at: float | None = None
        self._requests: list[Future[Info]] = []
        self._closed = ""
        """The reason why there will be no more checkpoints."""
        self._lock = threading.Lock()
        self._writing: asyncio.Future[Info] | None = None

    @property
    def summary(self) -> Checkpointing:
        """The checkpoints so far."""
        return Checkpointing(self._ok, self._failed, self._newest_at)

    @property
    def age(self) -> float | None:
        """Seconds since the last attempt; before the first, since learning began, if it has."""
        return None if self._begun_at is None else self._clock.monotonic() - self._begun_at

    def restart(self) -> None:
        """Count the time to the next checkpoint from now: one was loaded, or learning begins."""
        self._begun_at = self._newest_at = self._clock.monotonic()

    def request(self) -> "Future[Info]":
        """Return a future of a checkpoint of the state as it is now or soon.

        It raises `Stopped` if the trainer stops before, and OSError if the disk fails.
        """
        future: Future[Info] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(Stopped(self._closed))
            else:
                self._requests.append(future)
        return future

    def tidy(self) -> None:
        """Remove scraps of killed writers; only for the holder of the lock next to them."""
        if self._writing is None:
            self.checkpoints.clear_scraps()

    async def tend(self, state: State, progress: Progress, log: Log) -> None:
        """Begin a checkpoint if one is due; after one, trim the log before the oldest kept."""
        if self._writing is not None:
            if self._writing.done():
                writing, self._writing = self._writing, None
                if writing.exception() is None:
                    await self._trim(progress, log)
        elif self.is_due(state):
            self._begin(state, progress)

    async def finish(self, state: State, progress: Progress) -> None:
        """Write the state as it is at the end, and wait for that."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
        last = self._begin(state, progress)
        await asyncio.wait({last})
        if last.exception() is None:
            logger.info("checkpoint of version %d written", state.version)

    def close(self, reason: str) -> None:
        """End the worker; fail the requests that wait, and those to come."""
        with self._lock:
            self._closed = reason
        self.give_up(reason)
        self._worker.end()

    def give_up(self, reason: str) -> None:
        """Fail the requests that wait."""
        for future in self._take_requests():
            if future.set_running_or_notify_cancel():
                future.set_exception(Stopped(reason))

    def is_due(self, state: State) -> bool:
        """Return whether it is time for a checkpoint, or one was requested."""
        if self._begun_at is None:
            self.restart()
        is_time = state.version > 0 and (self.age or 0.0) >= self._every
        return self._writing is None and (bool(self._requests) or is_time)

    def _take_requests(self) -> "list[Future[Info]]":
        with self._lock:
            requests, self._requests = self._requests, []
        return requests

    def _begin(self, state: State, progress: Progress) -> "asyncio.Future[Info]":
        requests, copy = self._take_requests(), Checkpoint.of(state, progress)
        self._begun_at = begun_at = self._clock.monotonic()

        def answer(done: "asyncio.Future[Info]") -> None:
            if error := done.exception():
                self._failed += 1
                logger.error("the checkpoint could not be written: %s", error)
            else:
                self._ok += 1
                self._newest_at = begun_at
            self._written()
            for request in requests:
                if request.set_running_or_notify_cancel():
                    if error:
                        request.set_exception(error)
                    else:
                        request.set_result(done.result())

        self._writing = asyncio.wrap_future(
            self._worker.start(lambda: self.checkpoints.write(copy))
        )
        self._writing.add_done_callback(answer)
        return self._writing

    async def _trim(self, progress: Progress, log: Log) -> None:
        oldest = self.checkpoints.oldest()
        if oldest is not None and oldest.log == progress.log:
            await log.trim(oldest.position, oldest.cut)
