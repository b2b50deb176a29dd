"""Prequential evaluation: every prediction is scored before its label is learned.

A. P. Dawid, 'Statistical theory: the prequential approach' (1984); J. Gama, R. Sebastião,
P. P. Rodrigues, 'On evaluating stream learning algorithms' (2013).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from streams.batch import Batch, Features, Labels
from streams.recovery import WINDOW

BLOCK = 100
"""Examples between two points of a curve."""

Outcomes = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float64]
Curve = npt.NDArray[np.float64]
Chances = npt.NDArray[np.float64]


class Learner(Protocol):
    """A learner that can be evaluated."""

    def predict(self, features: Features) -> Labels:
        """Return a label for each row of [n, d], int64 [n]."""

    def learn(self, batch: Batch) -> None:
        """Learn labelled examples."""


@runtime_checkable
class Probabilistic(Protocol):
    """A learner that gives probabilities, too."""

    def answer(self, features: Features) -> tuple[Labels, Probabilities]:
        """Return labels as ``predict`` does, and their probabilities, fp64 [n, classes]."""


Observe = Callable[[Labels, Probabilities | None, Labels], object]
"""Called with what was predicted, its probabilities if the learner gives them, and the labels."""


def prequential(
    learner: Learner,
    batches: Iterable[Batch],
    progress: Callable[[int], object] = lambda examples: None,
    observe: Observe | None = None,
    come: Iterable[Sequence[Batch]] | None = None,
) -> Outcomes:
    """Predict, then learn, batch after batch; return which predictions were right, bool [n].

    Args:
        learner: it sees the labels of a batch only after it has predicted them.
        batches: the stream.
        progress: called with the number of examples of each batch that is done.
        observe: called after each batch is predicted; probabilities are asked for if it is given.
        come: for each batch the batches that are learned once it is predicted, if labels come
            later (see `streams.delays.arrivals`); None if it is the batch itself.

    Raises:
        ValueError: the learner did not give one label an example.
    """
    outcomes = []
    steps = ((b, (b,)) for b in batches) if come is None else zip(batches, come, strict=True)
    for batch, known in steps:
        probabilities = None
        if observe is not None and isinstance(learner, Probabilistic):
            predicted, probabilities = learner.answer(batch.features)
        else:
            predicted = learner.predict(batch.features)
        if predicted.shape != batch.labels.shape:
            raise ValueError(
                f"{type(learner).__name__} predicted {list(predicted.shape)} labels "
                f"for {len(batch)} examples"
            )
        outcomes.append(predicted == batch.labels)
        if observe is not None:
            observe(predicted, probabilities, batch.labels)
        for one in known:
            learner.learn(one)
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


def rolling_points(points: Curve) -> list[tuple[int, float]]:
    """Return (examples, rolling accuracy) at the end of each block, as `streams.recovery` takes."""
    return points_of(rolling(points))


def points_of(values: Curve) -> list[tuple[int, float]]:
    """Return (examples, value) for values at the ends of blocks, as `streams.recovery` takes."""
    return [(BLOCK * k, float(value)) for k, value in enumerate(values, 1)]


def rolling_auc(chances: Chances, is_one: Outcomes, window: int = WINDOW) -> Curve:
    """Return the AUC of the ``window`` examples up to the end of each block, fewer at first.

    It is the probability that an example of class 1 has a higher chance than one of class 0, where
    a tie counts half [H. B. Mann, D. R. Whitney, 'On a test of whether one of two random variables
    is stochastically larger than the other', 1947]; 0.5 without examples of both classes.

    Args:
        chances: probability of class 1 as predicted, fp64 [n].
        is_one: whether the class is 1, bool [n].
        window: examples.

    >>> rolling_auc(np.linspace(0, 1, 100), np.arange(100) >= 50).tolist()
    [1.0]
    """
    found = []
    for end in range(BLOCK, len(is_one) + 1, BLOCK):
        own = slice(max(0, end - window), end)
        ones, zeros = chances[own][is_one[own]], np.sort(chances[own][~is_one[own]])
        below, up_to = (zeros.searchsorted(ones, side) for side in ("left", "right"))
        pairs = len(ones) * len(zeros)
        found.append((below + up_to).sum() / (2 * pairs) if pairs else 0.5)
    return np.array(found)
