"""Models of river, scikit-learn and Vowpal Wabbit, as learners to evaluate."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from streams.batch import Batch, Features, Labels
from streams.prequential import Probabilities

Codes = npt.NDArray[np.int64]


class RiverLearner:
    """A river classifier, which learns one dictionary at a time.

    Args:
        model: any `river.base.Classifier`.
        constant: whether to add a feature that is always 1, without which `SoftmaxRegression` has
            no bias.
        classes: number of classes.
    """

    def __init__(self, model: Any, constant: bool = False, classes: int = 0) -> None:
        from river.base import Classifier

        self.model, self._constant = model, {-1: 1.0} if constant else {}
        self._classes = classes
        self._is_likeliest = type(model).predict_one is Classifier.predict_one

    def predict(self, features: Features) -> Labels:
        """Return the predicted label of each row, int64 [n]; class 0 until the model knows one."""
        found = (self.model.predict_one(x) for x in self._dictionaries(features))
        return np.array([0 if label is None else label for label in found], dtype=np.int64)

    def answer(self, features: Features) -> tuple[Labels, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, classes]."""
        found = [self.model.predict_proba_one(x) for x in self._dictionaries(features)]
        if not self._is_likeliest:
            return self.predict(features), as_probabilities(found, self._classes)
        labels = [max(own, key=own.__getitem__) if own else 0 for own in found]
        return np.array(labels, dtype=np.int64), as_probabilities(found, self._classes)

    def learn(self, batch: Batch) -> None:
        """Learn a batch."""
        labels = batch.labels.tolist()
        for x, label in zip(self._dictionaries(batch.features), labels, strict=True):
            self.model.learn_one(x, label)

    def _dictionaries(self, features: Features) -> Iterator[dict[int, float]]:
        return (dict(enumerate(row)) | self._constant for row in features.tolist())


class ScikitLearner:
    """A scikit-learn classifier with ``partial_fit``.

    Args:
        model: the classifier.
        classes: number of classes.
    """

    def __init__(self, model: Any, classes: int) -> None:
        self.model, self._classes = model, np.arange(classes)

    def predict(self, features: Features) -> Labels:
        """Return the predicted label of each row, int64 [n]; class 0 before the first batch."""
        if not hasattr(self.model, "classes_"):  # it has learned nothing
            return np.zeros(len(features), dtype=np.int64)
        return np.asarray(self.model.predict(features), dtype=np.int64)

    def answer(self, features: Features) -> tuple[Labels, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, classes]."""
        labels = self.predict(features)
        if not hasattr(self.model, "classes_"):
            return labels, as_probabilities([{}] * len(features), len(self._classes))
        return labels, np.asarray(self.model.predict_proba(features), dtype=np.float64)

    def learn(self, batch: Batch) -> None:
        """Learn a batch."""
        self.model.partial_fit(batch.features, batch.labels, self._classes)


class VowpalWabbitLearner:
    """Vowpal Wabbit, one against all with logistic loss.

    Args:
        classes: number of classes.
        options: further options of its command line.
    """

    def __init__(self, classes: int, options: str = "") -> None:
        from vowpalwabbit import Workspace

        self._workspace = Workspace(
            f"--quiet --oaa {classes} --probabilities --loss_function logistic {options}"
        )

    def predict(self, features: Features) -> Labels:
        """Return the predicted label of each row of [n, d], int64 [n]."""
        return self.answer(features)[0]

    def answer(self, features: Features) -> tuple[Labels, Probabilities]:
        """Return labels as `predict` does, and their probabilities, fp64 [n, classes]."""
        return likeliest([self._workspace.predict(f"| {text}") for text in _texts(features)])

    def learn(self, batch: Batch) -> None:
        """Learn a batch."""
        for text, label in zip(_texts(batch.features), batch.labels.tolist(), strict=True):
            self._workspace.learn(f"{label + 1} | {text}")


def likeliest(found: Sequence[Sequence[float]]) -> tuple[Codes, Probabilities]:
    """Return the likeliest label of each example, int64 [n], and probabilities whose rows sum to 1.

    Args:
        found: probabilities by label, as Vowpal Wabbit gives them: each model's own, divided by
            their sum. Where that is no number, all labels are equally probable.
    """
    probabilities = np.array(found, dtype=np.float64)
    probabilities[~np.isfinite(probabilities).all(axis=1)] = 1.0
    probabilities[~(probabilities.sum(axis=1) > 0.0)] = 1.0
    whole: Probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    return probabilities.argmax(axis=1).astype(np.int64, copy=False), whole


def as_probabilities(found: Sequence[Mapping[int, float]], classes: int) -> Probabilities:
    """Return probabilities, fp64 [n, classes], whose rows sum to 1.

    Args:
        found: by label, of each example; nothing means that all classes are equally probable.
        classes: their number.
    """
    probabilities = np.zeros((len(found), classes))
    for row, own in zip(probabilities, found, strict=True):
        for label, probability in own.items():
            row[label] = probability
        if not row.sum() > 0.0:
            row[:] = 1.0
    whole: Probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    return whole


def _texts(features: Features) -> Sequence[str]:
    """Return each row as ``0:1.5 1:-2 …``, the form that the binding takes."""
    form = b" ".join(b"%d:%%b" % j for j in range(features.shape[1]))
    rows = orjson.dumps(np.ascontiguousarray(features), option=orjson.OPT_SERIALIZE_NUMPY)
    return [(form % tuple(row.split(b","))).decode() for row in rows[2:-2].split(b"],[")]
