"""Learners of numbers from rows with names, to evaluate: floors, and models of other libraries.

They get what `streams.peers.row_learners` describes. Where a model needs a target of about unit
size, it gets the numbers standardized by the mean and the deviation of all that it has learned.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from streams.peers.row_learners import Row, RowBatch, dictionaries, hashed, keyed, texts

Numbers = npt.NDArray[np.float64]

LARGEST = 1e12
"""Predictions are clamped to ±LARGEST, and are 0 where they are no number."""


class NumberLearner(Protocol):
    """A learner of numbers that can be evaluated."""

    def predict(self, batch: RowBatch) -> Numbers:
        """Return a number for each row, float64 [n]; it does not look at the labels."""

    def learn(self, batch: RowBatch) -> None:
        """Learn labelled rows, one after the other."""


def finite(found: Sequence[float] | Numbers) -> Numbers:
    """Return predictions as finite numbers, [n]."""
    numbers = np.nan_to_num(np.asarray(found, np.float64), posinf=LARGEST, neginf=-LARGEST)
    return np.asarray(np.clip(numbers, -LARGEST, LARGEST), np.float64)


class Mean:
    """Predicts the mean of the numbers so far."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the same number for each row."""
        return np.full(len(batch), self._sum / self._weight if self._weight else 0.0)

    def learn(self, batch: RowBatch) -> None:
        """Add the numbers."""
        weights = np.array(batch.weights)
        self._sum += float(weights @ batch.numbers)
        self._weight += float(weights.sum())


class LastNumber:
    """Predicts the last number that was known before the batch."""

    def __init__(self) -> None:
        self._last = 0.0

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the same number for each row."""
        return np.full(len(batch), self._last)

    def learn(self, batch: RowBatch) -> None:
        """Remember the last number."""
        self._last = float(batch.numbers[-1])


class QuantileSoFar:
    """Predicts a quantile of the numbers so far.

    Args:
        quantile: within (0, 1).
    """

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._numbers = np.empty(0)

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the same number for each row; 0 before the first."""
        found = np.quantile(self._numbers, self._quantile) if len(self._numbers) else 0.0
        return np.full(len(batch), found)

    def learn(self, batch: RowBatch) -> None:
        """Add the numbers; weights do not count."""
        self._numbers = np.concatenate([self._numbers, batch.numbers])


class QuantileOfChanges:
    """Predicts the last number that was known before the batch, and a quantile of the differences
    that the numbers of earlier batches had from the last one before them.

    Args:
        quantile: within (0, 1).
    """

    def __init__(self, quantile: float) -> None:
        self._last, self._changes = LastNumber(), QuantileSoFar(quantile)
        self._has_last = False

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the same number for each row."""
        return np.asarray(self._last.predict(batch) + self._changes.predict(batch))

    def learn(self, batch: RowBatch) -> None:
        """Add the differences, and remember the last number."""
        if self._has_last:
            changes = batch.numbers - self._last.predict(batch)
            self._changes.learn(replace(batch, numbers=changes))
        self._last.learn(batch)
        self._has_last = True


class Unit:
    """The unit of a target: mean and deviation of the numbers so far [B. P. Welford, 'Note on a
    method for calculating corrected sums of squares and products', 1962].

    Args:
        is_used: False for a unit that is always 1, around 0.
    """

    def __init__(self, is_used: bool = True) -> None:
        self._is_used = is_used
        self._count, self.mean, self._squares = 0, 0.0, 0.0

    @property
    def size(self) -> float:
        """The deviation; 1 until two numbers differ."""
        return math.sqrt(self._squares / self._count) if self._squares > 0.0 else 1.0

    def update(self, numbers: Numbers) -> None:
        """Take the numbers of a batch."""
        if not self._is_used:
            return
        for number in numbers.tolist():
            self._count += 1
            change = number - self.mean
            self.mean += change / self._count
            self._squares += change * (number - self.mean)

    def scaled(self, numbers: Numbers) -> Numbers:
        """Return standardized numbers."""
        return (numbers - self.mean) / self.size

    def restored(self, found: Sequence[float] | Numbers) -> Numbers:
        """Return standardized predictions in the unit of the numbers."""
        return finite(finite(found) * self.size + self.mean)


class ScikitRegressor(Protocol):
    """The part of scikit-learn's regressors that is used here."""

    def predict(self, rows: csr_matrix) -> Numbers:
        """Return a number for each row, [n]."""

    def partial_fit(self, rows: csr_matrix, numbers: Numbers, weights: npt.ArrayLike) -> object:
        """Learn rows."""


class RiverRegressor(Protocol):
    """The part of river's regressors that is used here."""

    def predict_one(self, row: Row, /) -> float | None:
        """Return a number for a row."""

    def learn_one(self, row: Row, number: float, /, *, w: float) -> object:
        """Learn a row of some weight."""


class ScikitNumbers:
    """scikit-learn's SGDRegressor on hashed sparse columns, with a standardized target.

    Args:
        model: the regressor; it takes the rows of a batch in their order.
    """

    def __init__(self, model: ScikitRegressor) -> None:
        self.model, self._unit = model, Unit()

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the predictions; the mean before anything is learned."""
        if not hasattr(self.model, "coef_"):
            return np.full(len(batch), self._unit.mean)
        return self._unit.restored(self.model.predict(hashed(batch)))

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch."""
        self._unit.update(batch.numbers)
        self.model.partial_fit(hashed(batch), self._unit.scaled(batch.numbers), batch.weights)


class VowpalWabbitNumbers:
    """Vowpal Wabbit with the same keys.

    Args:
        options: further options of its command line.
        standardizes: whether its target is standardized.
        loss: its loss function, with the options of that.
    """

    def __init__(
        self, options: str = "", standardizes: bool = False, loss: str = "squared"
    ) -> None:
        from vowpalwabbit import Workspace

        self._workspace = Workspace(f"--quiet --loss_function {loss} -b 20 {options}")
        self._unit = Unit(standardizes)

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the predictions."""
        found = [self._workspace.predict(f"| {text}") for text in texts(batch)]
        return self._unit.restored(found)

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch, one example at a time."""
        self._unit.update(batch.numbers)
        scaled = self._unit.scaled(batch.numbers)
        for text, number, weight in zip(texts(batch), scaled, batch.weights, strict=True):
            self._workspace.learn(f"{number:.9g} {weight:g} | {text}")


class RiverLinear:
    """river's linear regression on the same numbers and keys, with a standardized target.

    Args:
        model: the regression.
    """

    def __init__(self, model: RiverRegressor) -> None:
        self.model, self._unit = model, Unit()

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the predictions."""
        return self._unit.restored([self.model.predict_one(row) or 0.0 for row in keyed(batch)])

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch, one example at a time."""
        self._unit.update(batch.numbers)
        scaled = self._unit.scaled(batch.numbers).tolist()
        with np.errstate(all="ignore"):
            for row, number, weight in zip(keyed(batch), scaled, batch.weights, strict=True):
                self.model.learn_one(row, number, w=weight)


class RiverNumbers:
    """A river regressor, which learns the rows as dictionaries of their own values.

    Args:
        model: any `river.base.Regressor`.
        is_numeric: whether the model takes numbers alone; a string is then a name with the value 1.
    """

    def __init__(self, model: RiverRegressor, is_numeric: bool = False) -> None:
        self.model, self._is_numeric = model, is_numeric

    def _rows(self, batch: RowBatch) -> Iterator[dict[str, object]]:
        for row in dictionaries(batch):
            if not self._is_numeric:
                yield row
                continue
            texts = {k: v for k, v in row.items() if isinstance(v, str)}
            rest = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
            yield {**rest, **{f"{name}={text}": 1.0 for name, text in texts.items()}}

    def predict(self, batch: RowBatch) -> Numbers:
        """Return the predictions."""
        found = [self.model.predict_one(row) for row in self._rows(batch)]
        return finite([0.0 if number is None else number for number in found])

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch, one example at a time."""
        each = zip(self._rows(batch), batch.numbers.tolist(), batch.weights, strict=True)
        for row, number, weight in each:
            if weight:  # its statistics divide by the sum of the weights
                self.model.learn_one(row, number, w=weight)
