"""Orders of operators, which the trainer records as commands in cuts."""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from service.log.cuts import Cut, Order, Ordered, Rebuild, pause_of
from service.log.errors import Stopped
from service.trainer.worker import promise
from streams.errors import FunnelError

A = TypeVar("A")
B = TypeVar("B")

KEPT = 100
"""Commands of operators that a state remembers."""


class UnknownLearnerError(FunnelError):
    """A command names a learner that there is not; the message lists those that there are."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no learner {name!r}, only {', '.join(known)}")


class Orders(Generic[A, B]):
    """Orders that wait to be carried out; any thread may give one, the trainer's thread takes them.

    A is an order, and B its result: of a command in a cut, the number of the cut.
    """

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), ""
        self._waiting: deque[tuple[A, Future[B]]] = deque()

    def give(self, order: A) -> "Future[B]":
        """Return a future of the result of an order.

        It raises `Stopped` if the trainer stops before, LogError if the log does not take it, and
        UnknownLearnerError if it names a learner that there is not.
        """
        future: Future[B] = promise()
        with self._lock:
            if self._ended:
                future.set_exception(Stopped(self._ended))
            else:
                self._waiting.append((order, future))
        return future

    def __bool__(self) -> bool:
        """Return whether an order waits."""
        return bool(self._waiting)

    def take(self) -> "tuple[A, Future[B]] | None":
        """Return the next order and its future; None if none waits."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def give_up(self, reason: str) -> None:
        """Fail the orders that wait."""
        while (waiting := self.take()) is not None:
            waiting[1].set_exception(Stopped(reason))

    def close(self, reason: str) -> None:
        """Fail the orders that wait, and those to come."""
        with self._lock:
            self._ended = reason
        self.give_up(reason)


def after(commands: tuple[Ordered, ...], number: int, cut: Cut) -> tuple[Ordered, ...]:
    """Return the newest commands of operators after a cut.

    Args:
        commands: before it.
        number: of the cut.
        cut: itself.

    Returns:
        The last KEPT, and of those before them the pause if it still holds, and all `Rebuild`.
    """
    if not isinstance(cut.command, Order):
        return commands
    every = (*commands, Ordered(number, cut.command))
    kept, pause = every[-KEPT:], pause_of(every)
    older = every[:-KEPT]
    return (*(one for one in older if one == pause or isinstance(one.order, Rebuild)), *kept)
