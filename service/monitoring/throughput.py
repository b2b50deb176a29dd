"""The rate at which examples are learned.

Examples are learned in batches. A rate from the moments at which somebody looks would divide whole
batches by times that have nothing to do with them: 100 examples every 0.2 s, looked at every
0.25 s, would be 400 a second, then 800. So the times are those at which batches ended.
"""

from collections import deque
from typing import NamedTuple

from service.process import Clock

SPAN_SECONDS = 0.9
"""A rate is that of at least so many seconds before it is read."""


class Mark(NamedTuple):
    """The examples that were learned when the rate was read."""

    read: float
    """Monotonic time in seconds at which it was read."""
    examples: int
    """Examples learned so far in this process."""
    ended: float
    """Monotonic time in seconds at which the last of their batches ended."""


class Throughput:
    """Measures the examples learned a second; for one thread at a time.

    Args:
        clock: of the batches and of the readings.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._examples = self._batch = 0
        self._ended: float | None = None
        self._rate = 0.0
        self._marks: deque[Mark] = deque()

    def add(self, examples: int) -> None:
        """Count a batch that has just been learned."""
        self._examples += examples
        self._batch, self._ended = examples, self._clock.monotonic()

    def read(self) -> float | None:
        """Return the examples a second, between the ends of batches; None before there are two.

        While no batch ends, the rate is at most what it would be if one ended now.
        """
        if self._ended is None:
            return None
        now, marks = self._clock.monotonic(), self._marks
        while len(marks) > 1 and marks[1].read <= now - SPAN_SECONDS:
            marks.popleft()
        before = marks[0] if marks else None
        marks.append(Mark(now, self._examples, self._ended))
        if before is None:
            return None
        if self._ended > before.ended:
            self._rate = (self._examples - before.examples) / (self._ended - before.ended)
        waited = now - self._ended
        return min(self._rate, self._batch / waited) if waited > 0 else self._rate
