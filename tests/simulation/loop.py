"""Simulated time: an event loop that never waits, and workers that are no threads.

Everything that runs in the loop belongs to an owner, such as a process, or to the world. An owner
can stand still and be killed: after any step of its coroutines, which is at any await.
"""

import asyncio
import contextvars
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from service.process import Clock
from service.trainer.worker import Worker

T = TypeVar("T")

MAX_STEPS = 1_000_000
"""Steps after which a run counts as endless."""
MAX_CANCELS = 10
"""A task may swallow one cancellation, or some."""
TICK = 1e-6
"""Seconds that a step takes, so that no wait is too short to end."""
EPOCH = 1_700_000_000.0


class KilledError(BaseException):
    """The process that runs this code was killed; no code may go on after it."""


class SimulatedClock(Clock):
    """Time that moves only as far as the next event."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return EPOCH + self.now


class OwnClock(Clock):
    """One machine's or process's time: the world's with jumps.

    Args:
        world: the true time.
    """

    def __init__(self, world: Clock) -> None:
        self._world = world
        self.offset = 0.0
        """Seconds by which the wall clock is ahead."""
        self.slept = 0.0
        """Seconds that the monotonic clock has not counted: the machine slept."""

    def monotonic(self) -> float:
        return self._world.monotonic() - self.slept

    def time(self) -> float:
        return self._world.time() + self.offset


class Owner:
    """What runs in a loop and can stand still or be killed.

    Args:
        name: shown in traces.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.killed: Callable[[], object] = lambda: None
        """Called when it is killed."""
        self.tasks: set[asyncio.Task[Any]] = set()
        self.steps_left: int | None = None
        """Steps until it is killed."""
        self._held: deque[_Handle] | None = None

    def check(self) -> None:
        """Raise KilledError if it is dead."""
        if self.is_dead:
            raise KilledError

    def kill(self) -> None:
        """Stop all that it does; nothing of it reaches the outside any more."""
        if self.is_dead:
            return
        self.is_dead = True
        self.resume()
        for task in list(self.tasks):
            task.cancel()
        self.killed()

    def suspend(self) -> None:
        """Stand still."""
        if self._held is None and not self.is_dead:
            self._held = deque()

    def resume(self) -> None:
        """Go on with what has come up meanwhile."""
        held, self._held = self._held, None
        for handle in held or ():
            handle.loop.ready.append(handle)

    def holds(self, handle: "_Handle") -> bool:
        """Keep a handle for later if this stands still; return whether it does."""
        if self._held is None:
            return False
        self._held.append(handle)
        return True

    def note_step(self) -> None:
        """Count a step."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.kill()


OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("owner", default=None)


class _Handle:
    """A call that is due: what asyncio needs of `asyncio.TimerHandle`."""

    __slots__ = ("_arguments", "_call", "_context", "_is_cancelled", "_when", "loop")

    def __init__(
        self,
        loop: "SimulatedLoop",
        call: Callable[..., object],
        arguments: tuple[Any, ...],
        context: contextvars.Context | None,
        when: float,
    ) -> None:
        self.loop, self._call, self._arguments, self._when = loop, call, arguments, when
        self._context = contextvars.copy_context() if context is None else context
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True

    def cancelled(self) -> bool:
        return self._is_cancelled

    def when(self) -> float:
        return self._when

    def run(self) -> None:
        if self._is_cancelled:
            return
        owner = self._context.get(OWNER)
        if owner is not None and owner.holds(self):
            return
        self._context.run(self._call, *self._arguments)
        if owner is not None:
            owner.note_step()


class SimulatedLoop(asyncio.AbstractEventLoop):
    """An event loop on simulated time; calls that are due run in the order in which they came.

    Args:
        clock: moved by the loop.
    """

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self.ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = itertools.count()
        self._is_running = self._is_closed = False
        self._steps = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def time(self) -> float:
        return self._clock.now

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        handle = _Handle(self, callback, args, context, self._clock.now)
        self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        handle = _Handle(self, callback, args, context, when)
        heapq.heappush(self._timers, (when, next(self._count), handle))
        return handle

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        return self.call_at(self._clock.now + delay, callback, *args, context=context)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None):  # type: ignore[no-untyped-def,override]
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.tasks.add(task)
            task.add_done_callback(owner.tasks.discard)
        return task

    def run_in_executor(self, executor, func, *args):  # type: ignore[no-untyped-def,override]
        future = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_soon(run)
        return future

    def run_until_complete(  # type: ignore[override]
        self, future: "Coroutine[Any, Any, T] | asyncio.Future[T]"
    ) -> T:
        """Run a coroutine, and all that it starts, to its end.

        Raises:
            RuntimeError: everything waits, and nothing will ever happen.
        """
        before = asyncio.events._get_running_loop()
        asyncio.events._set_running_loop(self)
        self._is_running = True
        try:
            is_future = isinstance(future, asyncio.Future)
            task: asyncio.Future[T] = future if is_future else self.create_task(future)
            while not task.done():
                self._step()
            return task.result()
        finally:
            self._is_running = False
            asyncio.events._set_running_loop(before)

    def _step(self) -> None:
        timers, now = self._timers, self._clock.now
        while timers and timers[0][0] <= now:
            self.ready.append(heapq.heappop(timers)[2])
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise RuntimeError(f"the run does not end within {MAX_STEPS} steps")
        if self.ready:
            self.ready.popleft().run()
            self._clock.now += TICK
        elif timers:
            self._clock.now = timers[0][0]
        else:
            raise RuntimeError("everything waits, and nothing will ever happen")

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Ignore what the tasks of killed processes leave behind; checks look at all else."""

    def set_debug(self, enabled: bool) -> None:
        """Nothing depends on it."""

    async def shutdown_asyncgens(self) -> None:
        """There are none."""

    async def shutdown_default_executor(self) -> None:  # type: ignore[override]
        """There is none."""

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return self._is_closed

    def abandon(self) -> None:
        """Cancel all that still runs, and let it end."""
        asyncio.events._set_running_loop(self)
        try:
            for _ in range(MAX_CANCELS):
                for task in list(self._tasks):
                    task.cancel()
                while self.ready:
                    self.ready.popleft().run()
        finally:
            asyncio.events._set_running_loop(None)

    def close(self) -> None:
        self._is_closed = True
        self.ready.clear()
        self._timers.clear()


class SimulatedWorker(Worker):
    """Does work in the event loop: when it is begun, or when the time that it takes is over.

    Args:
        rng: draws how long work takes, and when it is done.
        seconds: how long work takes, on average.
    """

    def __init__(self, rng: random.Random, seconds: float) -> None:
        self._rng, self._seconds, self._free_at = rng, seconds, 0.0
        self.slowness = 1.0
        """Factor of the time that the next work takes."""

    def start(self, work: Callable[[], T]) -> "Future[T]":
        loop, future, owner = asyncio.get_running_loop(), Future[T](), OWNER.get()
        future.set_running_or_notify_cancel()
        done: list[Callable[[], None]] = []

        def do() -> None:
            if owner is not None and owner.is_dead:
                return
            try:
                result = work()
            except KilledError:
                return
            except Exception as error:
                done.append(lambda error=error: future.set_exception(error))  # type: ignore[misc]
            else:
                done.append(lambda: future.set_result(result))

        def tell() -> None:
            if done and not (owner is not None and owner.is_dead):
                done[0]()

        begin = max(self._free_at, loop.time())
        self._free_at = begin + self._rng.expovariate(1 / self._seconds) * self.slowness
        loop.call_at(begin if self._rng.random() < 0.5 else self._free_at, do)
        loop.call_at(self._free_at, tell)
        return future

    def end(self) -> None:
        """Nothing is held."""
