"""The recent past, as the live page draws it: a point a second of learning, in bounded memory.

A point is made and encoded once, however many look at it. Shifts and drift events lie among the
points in the order in which they became known, so that one number says how far a reader has come.
"""

import contextlib
import secrets
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel

from service.monitoring.recovery import Recoveries, ShiftRecovery
from service.monitoring.statistics import LearnerStatistics, Statistics, lag_seconds

MAX_ITEMS = 3_600
MAX_TENSORS = 16
"""Tensors of the served model in a point; of more, only the first."""
SPACING_SECONDS = 0.9
"""Points that stay are at least so far apart."""
POINT, DRIFT, SHIFT = "point", "drift", "shift"
"""Kinds of items."""


class ScorePoint(BaseModel):
    """Prequential scores of a learner; None before the first example."""

    accuracy: float | None
    rolling_accuracy: float | None
    loss: float | None
    """Mean cross-entropy in nats."""
    rolling_loss: float | None


class TensorPoint(BaseModel):
    """Funnel's view of one tensor."""

    scale: float
    step_size: float
    """η s."""
    gain_quantiles: list[float | None]
    """Quantiles 0, .05, .25, .5, .75, .95, 1 of the gains."""
    alignment: float


class Point(BaseModel):
    """The learners at one moment."""

    version: int
    examples: int
    """Learned so far."""
    time: float
    """Unix time in seconds."""
    learners: dict[str, ScorePoint]
    """The served one first, then its shadows."""
    tensors: dict[str, TensorPoint]
    """Of the served model."""
    throughput: float | None
    """Examples a second since the look before; None at the first."""
    backlog: int
    """Examples that wait to be learned."""
    lag: float
    """Seconds for which the oldest of them has waited."""
    checkpoint_age: float | None
    """Seconds since the last checkpoint; None without one."""
    expert_weights: dict[str, float]
    """Of a pool, by the experts' names; else empty."""


class Item(NamedTuple):
    """Something that readers are told."""

    number: int
    """Counts up; numbers may be left out."""
    kind: str
    version: int
    """Of the model."""
    made: float
    """When, by the ring's clock."""
    json: bytes


class History:
    """A ring of the newest items; one thread adds points, any may add others and read.

    Args:
        clock: seconds from any moment on, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = secrets.token_hex(4)
        """Names this ring among those of earlier and other processes."""
        self.floor = 0
        """Every item with a larger number is still here, or a newer point stands for it."""
        self._number = self._version = 0
        self._items: deque[Item] = deque()
        self._lock = threading.Lock()
        self._clock = clock
        self._listeners: dict[object, Callable[[], object]] = {}
        self._before: tuple[float, int] | None = None
        """Unix time and examples of the newest point."""
        self._noted: dict[str, dict[Any, bytes]] = {DRIFT: {}, SHIFT: {}}
        """By kind, what readers know of the newest drifts and shifts, by ``id``."""
        self._recoveries = Recoveries()
        self._measuring = threading.Lock()

    def add_point(self, statistics: Statistics, backlog: int, checkpoint_age: float | None) -> None:
        """Note how things are now.

        A point takes the place of the one before while the model stands still, and where that lies
        too close to its own predecessor.
        """
        now = time.time()
        point = _point(statistics, now, self._before, backlog, checkpoint_age)
        self._before, self._version = (now, statistics.examples), statistics.version
        self._add(POINT, point.model_dump_json().encode())
        accuracies = {n: one.scores.rolling_accuracy for n, one in statistics.learners.items()}
        with self._measured():
            self._recoveries.add_point(statistics.examples, accuracies)

    def add_shift(self, example: int, what: str) -> None:
        """Add a shift of the stream that is known, at the index of the first example after it."""
        with self._measured():
            self._recoveries.add_shift(example, what)

    def end_stream(self) -> None:
        """Measure the last shift of a stream whose examples have all been learned."""
        with self._measured():
            self._recoveries.finish()

    @property
    def shifts(self) -> list[ShiftRecovery]:
        """The newest known shifts, in order, with how the learners recovered from them."""
        with self._measuring:
            return [shift.model_copy() for shift in self._recoveries.shifts]

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        """Hold the lock of the recoveries, then show those that have changed."""
        with self._measuring:
            yield
            self._note(SHIFT, (shift.model_dump() for shift in self._recoveries.shifts))

    def note_drifts(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Show those of the newest drift events, by ``id``, that are new or have changed."""
        self._note(DRIFT, events)

    def _note(self, kind: str, items: Iterable[Mapping[str, Any]]) -> None:
        newest = {item["id"]: orjson.dumps(item) for item in items}
        for number, encoded in newest.items():
            if self._noted[kind].get(number) != encoded:
                self._add(kind, encoded)
        self._noted[kind] = newest

    def after(self, number: int, most: int = MAX_ITEMS) -> list[Item] | None:
        """Return up to so many items behind a number, oldest first; None if some are gone."""
        with self._lock:
            if not self.floor <= number <= self._number:
                return None
            start = bisect_right(self._items, number, key=lambda item: item.number)
            return [self._items[k] for k in range(start, min(len(self._items), start + most))]

    def points(self, since: int | None = None) -> list[bytes]:
        """Return the points of a newer version than that, oldest first, as JSON."""
        with self._lock:
            return [
                item.json
                for item in self._items
                if item.kind == POINT and (since is None or item.version > since)
            ]

    def listen(self, told: Callable[[], object]) -> Callable[[], object]:
        """Call ``told`` in whatever thread adds an item, until the returned function is called."""
        key = object()
        with self._lock:
            self._listeners[key] = told
        return lambda: self._listeners.pop(key, None)

    def _add(self, kind: str, json: bytes) -> None:
        with self._lock:
            if kind == POINT and self._newest_can_go():
                self._items.pop()
            self._number += 1
            self._items.append(Item(self._number, kind, self._version, self._clock(), json))
            if len(self._items) > MAX_ITEMS:
                self.floor = self._items.popleft().number
            listeners = list(self._listeners.values())
        for told in listeners:
            told()

    def _newest_can_go(self) -> bool:
        """Say whether a further point can take the place of the newest item."""
        if len(self._items) < 2:
            return False
        before, newest = self._items[-2], self._items[-1]
        if not before.kind == newest.kind == POINT:
            return False
        stands_still = before.version == newest.version == self._version
        return stands_still or newest.made - before.made < SPACING_SECONDS


def _point(
    statistics: Statistics,
    now: float,
    before: tuple[float, int] | None,
    backlog: int,
    checkpoint_age: float | None,
) -> Point:
    throughput = None
    if before is not None and now > before[0]:
        throughput = _short(max(0, statistics.examples - before[1]) / (now - before[0]))
    return Point(
        version=statistics.version,
        examples=statistics.examples,
        time=round(now, 3),
        learners={name: _scores(learner) for name, learner in statistics.learners.items()},
        tensors={
            name: TensorPoint(
                scale=_short(tensor.scale),
                step_size=_short(tensor.step_size),
                gain_quantiles=[_short(q) for q in tensor.gain_quantiles],
                alignment=_short(tensor.alignment),
            )
            for name, tensor in list(statistics.served.tensors.items())[:MAX_TENSORS]
        },
        throughput=throughput,
        backlog=backlog,
        lag=_short(lag_seconds(statistics)),
        checkpoint_age=None if checkpoint_age is None else _short(checkpoint_age),
        expert_weights={
            name: _short(weight) for name, weight in statistics.served.expert_weights.items()
        },
    )


def _scores(learner: LearnerStatistics) -> ScorePoint:
    scores = learner.scores
    return ScorePoint(
        accuracy=_short(scores.accuracy),
        rolling_accuracy=_short(scores.rolling_accuracy),
        loss=_short(scores.loss),
        rolling_loss=_short(scores.rolling_loss),
    )


def _short(value: float) -> float:
    """Return five significant digits."""
    return float(f"{value:.5g}")
