"""Prequential evaluation: every prediction is scored before its label is learned.

A. P. Dawid, 'Statistical theory: the prequential approach' (1984); J. Gama, R. Sebastião,
P. P. Rodrigues, 'On evaluating stream learning algorithms' (2013).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from streams.batch import Batch, Features, Labels

BLOCK = 100
"""Examples between two points of a curve."""
WINDOW = 1_000
"""Examples of a rolling accuracy: its standard deviation is 1.3 points at an accuracy of 0.8."""
WITHIN = 0.02
"""How near to the end of its segment an accuracy must be to have recovered."""

Outcomes = npt.NDArray[np.bool_]
Curve = npt.NDArray[np.float64]


class Learner(Protocol):
    """What can be evaluated."""

    def predict(self, features: Features) -> Labels:
        """Return a label for each row of [n, d], int64 [n]."""

    def learn(self, batch: Batch) -> None:
        """Learn labelled examples."""


def prequential(
    learner: Learner,
    batches: Iterable[Batch],
    progress: Callable[[int], object] = lambda examples: None,
) -> Outcomes:
    """Test, then train, on batch after batch; return which predictions were right, [n].

    Args:
        learner: shown the features of a batch, and its labels only when it has answered.
        batches: the stream.
        progress: told the examples of each batch that is done.

    Raises:
        ValueError: the learner did not give one label an example.
    """
    outcomes = []
    for batch in batches:
        predicted = learner.predict(batch.features)
        if predicted.shape != batch.labels.shape:
            raise ValueError(
                f"{type(learner).__name__} predicted {list(predicted.shape)} labels "
                f"for {len(batch)} examples"
            )
        outcomes.append(predicted == batch.labels)
        learner.learn(batch)
        progress(len(batch))
    return np.concatenate(outcomes)


def curve(outcomes: Outcomes) -> Curve:
    """Return the accuracy of each whole BLOCK of examples, [n // BLOCK]."""
    whole = len(outcomes) // BLOCK * BLOCK
    return np.asarray(outcomes[:whole].reshape(-1, BLOCK).mean(axis=1))


def rolling(points: Curve, window: int = WINDOW) -> Curve:
    """Return the accuracy of the ``window`` examples up to the end of each block, fewer at first.

    >>> rolling(np.array([0.0, 1.0, 1.0]), window=200).tolist()
    [0.0, 0.5, 1.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(points)])
    ends = np.arange(1, len(points) + 1)
    starts = np.maximum(0, ends - window // BLOCK)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def ends(points: Curve, shifts: Sequence[int]) -> list[float]:
    """Return the accuracy of the last WINDOW of each segment that `recovery` looks at."""
    return [float(segment[-WINDOW // BLOCK :].mean()) for segment in _segments(points, shifts)]


def recovery(
    points: Curve, shifts: Sequence[int], goals: Sequence[float] | None = None
) -> list[int | None]:
    """Return how long it takes after each shift to be WITHIN the accuracy of the segment's end.

    A segment goes from a shift to the next one; what comes before the first shift after example 0
    is none, and segments shorter than two windows are left out. Recovered is where the first
    window begins that lies within the segment and reaches the goal. The window's own WINDOW
    examples are not counted: a learner that a shift does not hurt takes 0.

    Args:
        points: accuracy of consecutive blocks (see `curve`).
        shifts: index of the first example after each shift; an index of 0 is no shift.
        goals: accuracy to come WITHIN, for each segment; its own at the end by default, which a
            learner that hardly learns reaches at once.

    Returns:
        Examples, for each segment; None where the goal is never reached.
    """
    taken = _segments(points, shifts)
    goals = ends(points, shifts) if goals is None else goals
    return [_first_reach(s, goal - WITHIN) for s, goal in zip(taken, goals, strict=True)]


def _segments(points: Curve, shifts: Sequence[int]) -> list[Curve]:
    edges = [-(-shift // BLOCK) for shift in shifts if shift > 0] + [len(points)]
    segments = [points[a:b] for a, b in pairwise(edges)]
    return [segment for segment in segments if len(segment) >= 2 * WINDOW // BLOCK]


def _first_reach(segment: Curve, bar: float) -> int | None:
    reached = rolling(segment)[WINDOW // BLOCK - 1 :] >= bar - 1e-9
    return int(reached.argmax()) * BLOCK if reached.any() else None
