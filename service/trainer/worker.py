"""Threads for work that must not hold up the trainer's event loop."""

import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

T = TypeVar("T")

LEARNING_NICENESS = 5


class Worker(Protocol):
    """Does one thing at a time, in the order of the calls."""

    def start(self, work: Callable[[], T]) -> "Future[T]":
        """Return a future of the result of ``work``."""

    def end(self) -> None:
        """Accept no more work; what was started is still done."""


class ThreadWorker(Worker):
    """A daemon thread, so that a hung device or disk does not hold up the exit.

    Args:
        name: of the thread, which begins with the first work.
    """

    def __init__(self, name: str) -> None:
        self._name, self._is_running = name, False
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def start(self, work: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        if not self._is_running:
            self._is_running = True
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._queue.put(run)
        return future

    def end(self) -> None:
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
