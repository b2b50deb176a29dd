"""Simulated time: an event loop that never waits, and workers that are no threads."""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from service.process import Clock
from service.trainer.worker import Worker

T = TypeVar("T")

TICK = 1e-6
"""Seconds that a turn of the loop takes at least, so that no wait is too short to end."""
EPOCH = 1_700_000_000.0


class SimulatedClock(Clock):
    """Time that moves only as far as the next event."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return EPOCH + self.now


class _Selector(selectors.SelectSelector):
    """Instead of waiting, it moves the clock."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if timeout is None and not found:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self._clock.now += max(0.0 if found else timeout or 0.0, TICK)
        return found


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop on simulated time.

    Args:
        clock: moved by the loop.
    """

    def __init__(self, clock: SimulatedClock) -> None:
        self._simulated = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._simulated.monotonic()


class SimulatedWorker(Worker):
    """Does work in the event loop, when the time that it takes is over.

    Args:
        seconds: returns how long the next work takes.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds, self._free_at = seconds, 0.0
        self._under_way: dict[Future[Any], asyncio.TimerHandle] = {}

    def start(self, work: Callable[[], T]) -> "Future[T]":
        loop, future = asyncio.get_running_loop(), Future[T]()
        future.set_running_or_notify_cancel()

        def run() -> None:
            del self._under_way[future]
            try:
                result = work()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._free_at = max(self._free_at, loop.time()) + self._seconds()
        self._under_way[future] = loop.call_at(self._free_at, run)
        return future

    def end(self) -> None:
        """Nothing is held."""

    def crash(self) -> None:
        """Lose all work that is under way."""
        for future, timer in self._under_way.items():
            timer.cancel()
            future.set_exception(CrashError())
        self._under_way.clear()


class CrashError(Exception):
    """The process of a worker was killed."""
