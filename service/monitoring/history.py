"""The recent past for the live page: one point for each second of learning, in bounded memory.

A point is made and encoded once for all viewers. Shifts and drift events lie among the points in
the order in which they became known, so that one number tells how much a viewer has seen.
"""

import contextlib
import secrets
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator

from service.fold.scoring.classification import TOTAL
from service.fold.scoring.regression import AnyNumberScores
from service.monitoring.recovery import Recoveries, ShiftRecovery
from service.monitoring.statistics import Statistics, lag_seconds
from service.monitoring.throughput import Throughput
from service.process import Clock
from streams.recovery import WINDOW

MAX_ITEMS = 3_600
MAX_TENSORS = 16
"""Most tensors of the served model in a point; further ones are not shown."""
SPACING_SECONDS = 0.9
"""Least time between two points that are kept."""
POINT, DRIFT, SHIFT = "point", "drift", "shift"
"""Kinds of items."""


Short = Annotated[float, AfterValidator(lambda value: float(f"{value:.5g}"))]
"""A number that is rounded to five significant digits; NaN becomes null."""


class ScorePoint(BaseModel):
    """Prequential scores of a learner; None before the first example."""

    accuracy: Short | None
    """None for floors of numbers."""
    rolling_accuracy: Short | None
    loss: Short | None
    """Mean cross-entropy in nats; of numbers the mean absolute error or pinball loss."""
    rolling_loss: Short | None


class TensorPoint(BaseModel):
    """Funnel's scale and gains of one tensor."""

    scale: Short
    step_size: Short
    """η s."""
    gain_quantiles: Annotated[
        list[Short | None], BeforeValidator(lambda found: list(found.values()))
    ]
    """Quantiles 0, .05, .25, .5, .75, .95, 1 of the gains."""
    alignment: Short


class Point(BaseModel):
    """The learners at one moment."""

    version: int
    examples: int
    """Learned so far."""
    time: float
    """Unix time in seconds."""
    learners: dict[str, ScorePoint]
    """The served one first, then its shadows."""
    floors: dict[str, ScorePoint]
    """Floors, which the served learner must beat, on the same examples."""
    tensors: dict[str, TensorPoint]
    """Tensors of the served model."""
    throughput: Short | None
    """Examples a second over the last second or so, between the ends of batches; None before two
    points."""
    backlog: int
    """Examples that wait to be learned."""
    lag: Short
    """Seconds for which the oldest of them has waited."""
    checkpoint_age: Short | None
    """Seconds since the last checkpoint; None without one."""
    expert_weights: dict[str, Short]
    """Weights by the names of the pool's experts, or of its families; empty without a pool."""


class Item(NamedTuple):
    """An entry of the history."""

    number: int
    """Counts up, with gaps."""
    kind: str
    version: int
    """Version of the model."""
    made: float
    """Monotonic time in seconds at which it was added."""
    json: bytes


def _losses(floors: Mapping[str, AnyNumberScores]) -> dict[str, ScorePoint]:
    """Return the losses of floors of numbers, in total and over the last WINDOW examples."""
    found = {}
    for name, own in floors.items():
        total, rolling = own.windows[TOTAL].loss, own.windows[str(WINDOW)].loss
        found[name] = ScorePoint(
            accuracy=None, rolling_accuracy=None, loss=total, rolling_loss=rolling
        )
    return found


class History:
    """A ring of the newest items; one thread adds points, any thread may add others and read.

    Args:
        clock: of the points.
    """

    def __init__(self, clock: Clock) -> None:
        self.run = secrets.token_hex(4)
        """Tells this ring from those of earlier and other processes."""
        self.floor = 0
        """Every item with a larger number is still here, or a newer point has replaced it."""
        self._number = self._version = 0
        self._items: deque[Item] = deque()
        self._lock = threading.Lock()
        self._clock = clock
        self._listeners: set[Callable[[], object]] = set()
        self.throughput = Throughput(clock)
        """Counts the batches of the thread that adds points."""
        self._noted: dict[str, dict[Any, bytes]] = {DRIFT: {}, SHIFT: {}}
        """The newest drifts and shifts as readers know them, by kind and ``id``."""
        self._recoveries = Recoveries()
        self._measuring = threading.Lock()

    def add_point(self, statistics: Statistics, backlog: int, checkpoint_age: float | None) -> None:
        """Add a point.

        It replaces the newest point if the model has not changed since the one before that, or if
        the two are too close together.

        Args:
            statistics: of the learners.
            backlog: examples that wait to be learned.
            checkpoint_age: seconds since the last checkpoint, or None.
        """
        now, examples = self._clock.time(), statistics.examples
        values = {
            "version": statistics.version,
            "examples": examples,
            "time": round(now, 3),
            "learners": {name: learner.scores for name, learner in statistics.learners.items()},
            "floors": statistics.floors | _losses(statistics.number_floors),
            "tensors": dict(islice(statistics.served.tensors.items(), MAX_TENSORS)),
            "throughput": self.throughput.read(),
            "backlog": backlog,
            "lag": lag_seconds(statistics, now),
            "checkpoint_age": checkpoint_age,
            "expert_weights": statistics.served.family_weights or statistics.served.expert_weights,
        }
        point = Point.model_validate(values, from_attributes=True)
        self._version = statistics.version
        self._add(POINT, point.model_dump_json().encode())
        accuracies = {n: one.scores.rolling_accuracy for n, one in statistics.learners.items()}
        with self._measured():
            self._recoveries.add_point(examples, accuracies)

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
            self.note(SHIFT, (shift.model_dump() for shift in self._recoveries.shifts))

    def note(self, kind: str, items: Iterable[Mapping[str, Any]]) -> None:
        """Add the items of a kind that are new or have changed, by ``id``, since the last call."""
        newest = {item["id"]: orjson.dumps(item) for item in items}
        for number, encoded in newest.items():
            if self._noted[kind].get(number) != encoded:
                self._add(kind, encoded)
        self._noted[kind] = newest

    def after(self, number: int, most: int = MAX_ITEMS) -> list[Item] | None:
        """Return up to ``most`` items after a number, oldest first; None if some are gone."""
        with self._lock:
            if not self.floor <= number <= self._number:
                return None
            start = bisect_right(self._items, number, key=lambda item: item.number)
            return [self._items[k] for k in range(start, min(len(self._items), start + most))]

    def points(self, since: int | None = None) -> list[bytes]:
        """Return the points with a version above ``since``, oldest first, as JSON."""
        with self._lock:
            return [
                item.json
                for item in self._items
                if item.kind == POINT and (since is None or item.version > since)
            ]

    def listen(self, added: Callable[[], object]) -> Callable[[], object]:
        """Call ``added`` in the thread that adds an item, until the returned function is called."""
        with self._lock:
            self._listeners.add(added)
        return lambda: self._listeners.discard(added)

    def _add(self, kind: str, json: bytes) -> None:
        with self._lock:
            if kind == POINT and self._newest_is_replaceable():
                self._items.pop()
            self._number += 1
            self._items.append(
                Item(self._number, kind, self._version, self._clock.monotonic(), json)
            )
            if len(self._items) > MAX_ITEMS:
                self.floor = self._items.popleft().number
            listeners = list(self._listeners)
        for added in listeners:
            added()

    def _newest_is_replaceable(self) -> bool:
        """Return whether another point may replace the newest item."""
        if len(self._items) < 2:
            return False
        before, newest = self._items[-2], self._items[-1]
        if not before.kind == newest.kind == POINT:
            return False
        stands_still = before.version == newest.version == self._version
        return stands_still or newest.made - before.made < SPACING_SECONDS
