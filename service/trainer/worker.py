"""Threads for work that must not hold up the trainer's event loop."""

import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

LEARNING_NICENESS = 5


def promise() -> "Future[Any]":
    """Return a future that the thread that waits for it cannot cancel."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


class Worker:
    """Does one thing at a time, in the order of the calls, in a daemon thread.

    So a hung device or disk does not hold up the exit.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def start(self, work: Callable[[], T]) -> "Future[T]":
        """Return a future of the result of ``work``."""
        future: Future[T] = promise()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._queue.put(run)
        return future

    def end(self) -> None:
        """Accept no more work; what was started is still done."""
        self._queue.put(None)

    def _run(self) -> None:
        give_way()
        while (work := self._queue.get()) is not None:
            work()
            del work  # it may hold large batches


def give_way() -> None:
    """Let the threads that answer requests run before this one, where threads have priorities."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEARNING_NICENESS)
