"""When checkpoints are written: on time or on request, beside learning, one at a time."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from service.fold.state import State
from service.log.log import Log, LogError
from service.log.position import Progress
from service.trainer.checkpoint import Checkpoint, CheckpointStore, Info

logger = logging.getLogger("funnel")


class CheckpointWriter:
    """Writes checkpoints in a thread of its own; learning stops only while the state is copied.

    Args:
        checkpoints: where to.
        every_seconds: time between checkpoints that nobody asked for.
        wake: called, from any thread, when there is something to do in `tend`.
    """

    def __init__(
        self, checkpoints: CheckpointStore, every_seconds: float, wake: Callable[[], None]
    ) -> None:
        self.checkpoints, self._every, self._wake = checkpoints, every_seconds, wake
        self.results = {"ok": 0, "failed": 0}
        self.begun_at: float | None = None
        """Monotonic time at which the last try began."""
        self.kept_at: float | None = None
        """Monotonic time of the newest checkpoint; before the first, of when learning began."""
        self._requests: list[Future[Info]] = []
        self._closed = ""
        """Why there will be no more checkpoints."""
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="funnel-checkpoint")
        self._writing: asyncio.Future[Info] | None = None

    def request(self) -> "Future[Info]":
        """Return a future of a checkpoint of the state as it is now or soon."""
        future: Future[Info] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(LogError(self._closed))
                return future
            self._requests.append(future)
        self._wake()
        return future

    def tidy(self) -> None:
        """Remove scraps of killed writers; only for who has the lock beside the checkpoints."""
        if self._writing is None:
            self.checkpoints.clear_scraps()

    async def tend(self, state: State, progress: Progress, log: Log) -> None:
        """Begin a checkpoint if one is due; after one, trim the log behind the oldest kept."""
        if self._writing is not None:
            if self._writing.done():
                writing, self._writing = self._writing, None
                if writing.exception() is None:
                    await self._trim(progress, log)
            return
        if self.is_due(state):
            self._begin(state, progress)

    async def finish(self, state: State, progress: Progress) -> None:
        """Write the state as it is at the end, and wait for it."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
        last = self._begin(state, progress)
        await asyncio.wait({last})
        if last.exception() is None:
            logger.info("checkpoint of version %d written", state.version)

    def close(self, reason: str) -> None:
        """End the thread; tell those who still wait, and who come later, why."""
        with self._lock:
            self._closed = reason
        self.give_up(reason)
        self._writer.shutdown()

    def give_up(self, reason: str) -> None:
        """Tell those who wait for a checkpoint that there will be none."""
        with self._lock:
            requests, self._requests = self._requests, []
        for future in requests:
            if future.set_running_or_notify_cancel():
                future.set_exception(LogError(reason))

    def is_due(self, state: State) -> bool:
        """Say whether it is time for a checkpoint, or somebody has asked for one."""
        if self.begun_at is None:
            self.begun_at = self.kept_at = time.monotonic()
        is_time = state.version > 0 and time.monotonic() - self.begun_at >= self._every
        return self._writing is None and (bool(self._requests) or is_time)

    def _begin(self, state: State, progress: Progress) -> "asyncio.Future[Info]":
        with self._lock:
            requests, self._requests = self._requests, []
        copy = Checkpoint.of(state, progress)
        self.begun_at = begun_at = time.monotonic()
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._writer, self.checkpoints.write, copy)

        def answer(done: "asyncio.Future[Info]") -> None:
            error = done.exception()
            self.results["failed" if error else "ok"] += 1
            if error:
                logger.error("the checkpoint could not be written: %s", error)
            else:
                self.kept_at = begun_at
            for request in requests:
                if request.set_running_or_notify_cancel():
                    if error:
                        request.set_exception(error)
                    else:
                        request.set_result(done.result())
            self._wake()

        self._writing.add_done_callback(answer)
        return self._writing

    async def _trim(self, progress: Progress, log: Log) -> None:
        oldest = self.checkpoints.oldest()
        if oldest is not None and oldest.log == progress.log:
            await log.trim(oldest.position, oldest.cut)
