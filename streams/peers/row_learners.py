"""Learners of rows with names, to evaluate: floors, and models of other libraries.

They get what Funnel makes of the same rows: standardized numbers, with a missing one at 0, and keys
for everything else. River's trees get the rows as they are.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from streams.peers.library_learners import Codes, as_probabilities, likeliest
from streams.prequential import Probabilities
from streams.rows.rows import Rows, join, merged

HASHED = 1 << 18
"""Columns into which keys are hashed for scikit-learn, as its FeatureHasher does."""


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Labelled rows, as each kind of learner takes them."""

    rows: Rows
    dense: npt.NDArray[np.float32]
    """Standardized numbers, [n, d]; 0 where missing. Later batches may have more columns."""
    examples: npt.NDArray[np.int32]
    """To which row each key belongs, [e], ascending."""
    keys: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32]
    labels: Codes
    """Numbers of the labels in the file, [n]."""
    numbers: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Labels that are numbers to predict, [n]; empty where labels are classes."""

    @property
    def weights(self) -> list[float]:
        """Weights of the rows, [n]."""
        weights = self.rows.weights
        return [1.0] * len(self) if weights is None else weights.tolist()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)


def take_rows(parts: Sequence[tuple[RowBatch, int, int]]) -> RowBatch:
    """Return parts of batches as one; a number of a column that some of them lack is missing.

    Args:
        parts: each a batch, the first row and the row after the last.
    """
    width = max(batch.dense.shape[1] for batch, _, _ in parts)
    examples, keys, values, dense = [], [], [], []
    count = 0
    for batch, start, stop in parts:
        low, high = np.searchsorted(batch.examples, [start, stop])
        examples.append(batch.examples[low:high] + (count - start))
        keys.append(batch.keys[low:high])
        values.append(batch.values[low:high])
        own = batch.dense[start:stop]
        dense.append(np.pad(own, ((0, 0), (0, width - own.shape[1]))))
        count += stop - start
    rows = [batch.rows.part(start, stop) for batch, start, stop in parts]
    return RowBatch(
        rows[0] if len(rows) == 1 else merged(join(rows)),
        np.concatenate(dense),
        np.concatenate(examples).astype(np.int32),
        np.concatenate(keys),
        np.concatenate(values),
        np.concatenate([batch.labels[start:stop] for batch, start, stop in parts]),
        np.concatenate([batch.numbers[start:stop] for batch, start, stop in parts]),
    )


def steps_of(
    batches: Sequence[RowBatch], come: Sequence[Sequence[RowBatch]] | None
) -> Iterable[tuple[RowBatch, Sequence[RowBatch]]]:
    """Return each batch that is predicted with those that are learned then.

    Args:
        batches: of a stream.
        come: what is learned after each; None if it is the batch itself.
    """
    return [(b, (b,)) for b in batches] if come is None else zip(batches, come, strict=True)


Row = dict[str, object] | dict[str, float]
"""A row as river takes it: values, or numbers, by name."""


class RowLearner(Protocol):
    """A learner of rows that can be evaluated."""

    def predict(self, batch: RowBatch) -> Codes:
        """Return a label for each row, int64 [n]; it does not look at the labels."""

    def learn(self, batch: RowBatch) -> None:
        """Learn labelled rows."""


@runtime_checkable
class Probabilistic(Protocol):
    """A learner of rows that gives probabilities, too."""

    def answer(self, batch: RowBatch) -> tuple[Codes, Probabilities]:
        """Return labels as ``predict`` does, and their probabilities, fp64 [n, labels]."""


class Majority:
    """Predicts the label that was most frequent so far.

    Args:
        classes: number of labels.
    """

    def __init__(self, classes: int) -> None:
        self._counts = np.zeros(classes)

    def predict(self, batch: RowBatch) -> Codes:
        """Return the same label for each row."""
        return np.full(len(batch), self._counts.argmax())

    def learn(self, batch: RowBatch) -> None:
        """Add the weights of the labels."""
        np.add.at(self._counts, batch.labels, batch.weights)


class NoChange:
    """Predicts the last label that was known before the batch."""

    def __init__(self) -> None:
        self._last = 0

    def predict(self, batch: RowBatch) -> Codes:
        """Return the same label for each row."""
        return np.full(len(batch), self._last)

    def learn(self, batch: RowBatch) -> None:
        """Remember the last label."""
        self._last = int(batch.labels[-1])


class Classifier(Protocol):
    """The methods of a scikit-learn classifier that are used; n inputs, sparse or dense."""

    def partial_fit(
        self, X: csr_matrix, y: Codes, classes: Codes, sample_weight: list[float]
    ) -> object: ...

    def predict(self, X: csr_matrix) -> npt.ArrayLike: ...

    def predict_proba(self, X: csr_matrix) -> npt.ArrayLike: ...


class ScikitRows:
    """A scikit-learn classifier with ``partial_fit``, on hashed sparse columns.

    Args:
        model: the classifier.
        classes: number of labels.
        has_ones: whether there is a column that is always 1; of sparse inputs scikit-learn learns
            the intercept at a hundredth of the rate.
    """

    def __init__(self, model: Classifier, classes: int, has_ones: bool = False) -> None:
        self.model, self._classes, self._has_ones = model, np.arange(classes), has_ones

    def predict(self, batch: RowBatch) -> Codes:
        """Return the predicted labels; the first one before anything is learned."""
        if not hasattr(self.model, "classes_"):
            return np.zeros(len(batch), np.int64)
        return np.asarray(self.model.predict(hashed(batch, self._has_ones)), np.int64)

    def answer(self, batch: RowBatch) -> tuple[Codes, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, labels]."""
        if not hasattr(self.model, "classes_"):
            blank = as_probabilities([{}] * len(batch), len(self._classes))
            return self.predict(batch), blank
        found = self.model.predict_proba(hashed(batch, self._has_ones))
        return self.predict(batch), np.asarray(found, np.float64)

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch."""
        inputs = hashed(batch, self._has_ones)
        self.model.partial_fit(inputs, batch.labels, self._classes, batch.weights)


def hashed(batch: RowBatch, has_ones: bool = False) -> csr_matrix:
    """Return numbers and keys as a sparse matrix; numbers have the columns after HASHED.

    Args:
        batch: n rows.
        has_ones: whether the last column is 1 in all rows; otherwise it is empty.
    """
    n, d = batch.dense.shape
    ones = np.arange(n if has_ones else 0)
    rows = np.concatenate([np.repeat(np.arange(n), d), batch.examples, ones])
    numbers = np.tile(np.arange(HASHED, HASHED + d), n)
    keys = (batch.keys % np.uint64(HASHED)).astype(np.int64)
    width = HASHED + MAX_NUMBERS + 1
    columns = np.concatenate([numbers, keys, np.full(len(ones), width - 1)])
    values = np.concatenate([batch.dense.flatten(), batch.values, np.ones(len(ones))])
    return csr_matrix((values, (rows, columns)), (n, width))


MAX_NUMBERS = 4_096
"""Columns of numbers that there is room for."""


class VowpalWabbitRows:
    """Vowpal Wabbit, one against all with logistic loss, with the same keys.

    Args:
        classes: number of labels.
        options: further options of its command line.
    """

    def __init__(self, classes: int, options: str = "") -> None:
        from vowpalwabbit import Workspace

        self._workspace = Workspace(
            f"--quiet --oaa {classes} --probabilities --loss_function logistic -b 20 {options}"
        )

    def predict(self, batch: RowBatch) -> Codes:
        """Return the predicted labels."""
        return self.answer(batch)[0]

    def answer(self, batch: RowBatch) -> tuple[Codes, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, labels]."""
        return likeliest([self._workspace.predict(f"| {text}") for text in texts(batch)])

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch, one example at a time."""
        each = zip(texts(batch), batch.labels.tolist(), batch.weights, strict=True)
        for text, label, weight in each:
            self._workspace.learn(f"{label + 1} {weight:g} | {text}")


def texts(batch: RowBatch) -> Iterator[str]:
    """Yield each row as Vowpal Wabbit reads it; numbers are named, keys are hashes themselves."""
    ends = np.searchsorted(batch.examples, np.arange(1, len(batch) + 1)).tolist()
    keys = (batch.keys % np.uint64(1 << 20)).tolist()
    values, start = batch.values.tolist(), 0
    for row, end in zip(batch.dense.tolist(), ends, strict=True):
        numbers = " ".join(f"n{k}:{value:g}" for k, value in enumerate(row) if value)
        named = " ".join(
            f"{key}:{value:g}"
            for key, value in zip(keys[start:end], values[start:end], strict=True)
        )
        yield f"{numbers} {named}"
        start = end


def keyed(batch: RowBatch) -> Iterator[dict[str, float]]:
    """Yield the numbers of each row, and its keys by name."""
    ends = np.searchsorted(batch.examples, np.arange(1, len(batch) + 1)).tolist()
    keys, values, start = batch.keys.tolist(), batch.values.tolist(), 0
    for row, end in zip(batch.dense.tolist(), ends, strict=True):
        found = {f"n{k}": value for k, value in enumerate(row)}
        for key, value in zip(keys[start:end], values[start:end], strict=True):
            found[f"k{key}"] = found.get(f"k{key}", 0.0) + value
        yield found
        start = end


class RiverClassifier(Protocol):
    """The part of river's classifiers that is used here."""

    def predict_one(self, row: Row, /) -> int | None:
        """Return the label of a row."""

    def predict_proba_one(self, row: Row, /) -> dict[int, float]:
        """Return the probability of each label that is known."""

    def learn_one(self, row: Row, label: int, /, *, w: float) -> object:
        """Learn a row of some weight."""


class RiverRows:
    """A river classifier, which learns the rows as dictionaries of their own values.

    Args:
        model: any `river.base.Classifier` that takes strings.
        classes: number of labels.
    """

    def __init__(self, model: RiverClassifier, classes: int) -> None:
        self.model, self._classes = model, classes

    def predict(self, batch: RowBatch) -> Codes:
        """Return the predicted labels; the first one until the model knows one."""
        found = (self.model.predict_one(row) for row in dictionaries(batch))
        return np.array([0 if label is None else label for label in found], np.int64)

    def answer(self, batch: RowBatch) -> tuple[Codes, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, labels]."""
        found = [self.model.predict_proba_one(row) for row in dictionaries(batch)]
        return self.predict(batch), as_probabilities(found, self._classes)

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch."""
        each = zip(dictionaries(batch), batch.labels.tolist(), batch.weights, strict=True)
        for row, label, weight in each:
            if weight:  # its statistics divide by the sum of the weights
                self.model.learn_one(row, label, w=weight)


def dictionaries(batch: RowBatch) -> Iterator[dict[str, object]]:
    """Yield the values that rows have; a time is its hour and its weekday."""
    for chunk in batch.rows.chunks:
        for row in chunk.columns.to_pylist():
            found: dict[str, object] = {}
            for name, value in row.items():
                if hasattr(value, "hour"):
                    found |= {f"{name}:hour": str(value.hour), f"{name}:day": value.strftime("%a")}
                elif value is not None:
                    found[name] = value
            yield found
