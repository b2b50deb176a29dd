"""A classifier with scikit-learn's and river's methods."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from river.base import MiniBatchClassifier
from sklearn.base import ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from service.estimators.base import Estimator, Labels, Table, Weights
from service.estimators.tables import (
    Record,
    labels_of,
    rows_of_table,
    text_of,
)
from service.export import Exported
from service.settings import Settings
from streams.rows.rows import Rows

if TYPE_CHECKING:
    import pandas as pd

Label = Any
"""A label as it was given: a string, a number or a boolean."""
BALANCED = "balanced"


@MiniBatchClassifier.register
class Classifier(ClassifierMixin, Estimator):
    """A classifier for data that drifts, with no step size to tune and no model to choose.

    It is the model of the Funnel service, batch for batch the same. Rows may have names, strings,
    times and missing values; labels may be words or numbers, and new ones may come at any time.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(2_000, 4))
    >>> y = np.where(X[:, 0] > X[:, 1], "left", "right")
    >>> model = Classifier(model="logistic").partial_fit(X[:1_000], y[:1_000])
    >>> bool(model.score(X[1_000:], y[1_000:]) > 0.95)
    True

    Args:
        model: ``auto`` for all families, ``logistic``, or ``mlp`` with one hidden layer.
        batch_size: rows that are learned together.
        class_weight: ``balanced``, which lets a row count as its class is rare; or how much rows
            of a label count, by label, where that is not 1.
        kinds: of columns that are not what they look like: ``number``, ``category``, ``time``,
            ``text`` or ``bool`` by name.
        table_bits: there are 2^table_bits slots for the keys of categories and words; 0 for none.
        random_state: seed of the models that draw.
        families: of ``auto``: ``mlp``, ``trees``, ``neighbours``, ``frequencies``, and
            ``package.module:factory`` for one of your own. ``linear`` is always among them; None
            for the five.

    Attributes:
        classes_: labels that were given, ascending.
    """

    def __init__(
        self,
        model: str = "auto",
        *,
        batch_size: int = 100,
        class_weight: str | Mapping[Label, float] | None = None,
        kinds: Mapping[str, str] | None = None,
        table_bits: int = 20,
        random_state: int = 0,
        families: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.class_weight = class_weight
        self.kinds = kinds
        self.table_bits = table_bits
        self.random_state = random_state
        self.families = families

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """Labels that were given, ascending, [classes]."""
        if not self.__dict__.get("_given"):
            raise AttributeError("no label was given yet")
        return np.unique(np.array(list(self._given.values())))

    def partial_fit(
        self, X: Table, y: Labels, classes: Labels | None = None, sample_weight: Weights = None
    ) -> Self:
        """Learn rows, in their order, after all that was learned before.

        Args:
            X: n rows, as for `fit`.
            y: n labels; they may be new.
            classes: all labels that will come, if they are known; it need not be given.
            sample_weight: how much each row counts, ≥ 0, [n]; None for 1.

        Raises:
            ValueError: as for `fit`.
        """
        if classes is not None:
            self._remember(column_or_1d(classes))
            unknown = set(np.unique(column_or_1d(y)).tolist()) - set(self.classes_.tolist())
            if unknown:
                raise ValueError(f"the label {min(unknown, key=str)!r} is none of `classes`")
        return self._learn_part(X, y, sample_weight)

    def fit(self, X: Table, y: Labels) -> Self:
        """Forget, then learn, as `Estimator.fit` does."""
        self._given: dict[str, Label] = {}
        return super().fit(X, y)

    def predict(self, X: Table) -> npt.NDArray[Any]:
        """Return the most probable label of each row, [n].

        Args:
            X: n rows.

        Raises:
            NotFittedError: nothing was learned yet.
            ValueError: the rows have other columns than those of `fit`.
        """
        self._check_started()
        rows = self._rows(X, is_first=False)
        labels, _ = self._offline.answer(rows)
        found = [self._given[text] for text in self._offline.labels]
        answered: npt.NDArray[Any] = np.array(found)[labels]
        return answered

    def predict_proba(self, X: Table) -> npt.NDArray[np.float64]:
        """Return the probabilities of the labels, float64 [n, classes], in the order of `classes_`.

        Args:
            X: n rows.

        Raises:
            NotFittedError, ValueError: as for `predict`.
        """
        self._check_started()
        return self._probabilities(self._rows(X, is_first=False))

    def predict_proba_one(self, x: Record, **kwargs: Any) -> dict[Label, float]:
        """Return the probability of each label; none before a label is known.

        Args:
            x: values by column.
        """
        if not self.__dict__.get("_given"):
            return {}
        [found] = self._probabilities(self._row(x))
        return dict(zip(self.classes_.tolist(), found.tolist(), strict=True))

    def predict_one(self, x: Record, **kwargs: Any) -> Label | None:
        """Return the most probable label; None before a label is known."""
        found = self.predict_proba_one(x)
        return max(found, key=lambda label: found[label]) if found else None

    def predict_proba_many(self, X: "pd.DataFrame") -> "pd.DataFrame":
        """Return the probabilities of the labels, [n, classes]."""
        import pandas as pd  # no extra has it; who gives a frame does

        if not self.__dict__.get("_given"):
            return pd.DataFrame(index=X.index)
        found = self._probabilities(rows_of_table(X))
        return pd.DataFrame(found, index=X.index, columns=self.classes_.tolist())

    def to_torch(self) -> Exported:
        """Return the model as a module of torch, which answers with the probabilities of
        `predict_proba`, fp32 [n, classes], for inputs fp32 [n, columns].

        Raises:
            NotFittedError: nothing was learned yet.
            ExportError: the model has other families or columns than can be exported.
        """
        self._check_started()
        places = {text: k for k, text in enumerate(self._offline.labels)}
        texts = [text_of(label) for label in self.classes_]
        return self._offline.exported([places[text] for text in texts if text in places])

    def to_onnx(self) -> bytes:
        """Return what `to_torch` returns in ONNX, from ``inputs`` to ``probabilities``.

        Raises:
            NotFittedError, ExportError: as for `to_torch`; or onnx is missing.
        """
        return self.to_torch().in_format("onnx")

    @property
    def _multiclass(self) -> bool:
        return True

    def _settings(self) -> Settings:
        return Settings.model_validate(
            {
                "model": self.model,
                "schema": "auto",
                "table_bits": self.table_bits,
                "seed": self.random_state,
                "class_weights": "balanced" if self.class_weight == BALANCED else "none",
            }
            | self._chosen()
        )

    def _texts(self, labels: Labels) -> pa.StringArray:
        found = column_or_1d(labels, warn=True)
        if found.dtype.kind == "f":
            assert_all_finite(found, input_name="y")
        check_classification_targets(found)
        self._remember(found)
        return labels_of(found)

    def _weights(
        self, labels: pa.StringArray, weights: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32] | None:
        if self.class_weight is None or self.class_weight == BALANCED:
            return weights
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight must be {BALANCED!r}, a weight for each label or None, not "
                f"{self.class_weight!r}"
            )
        by_text = {text_of(label): weight for label, weight in self.class_weight.items()}
        own = np.array([by_text.get(text, 1.0) for text in labels.to_pylist()], np.float32)
        return own if weights is None else own * weights

    def _remember(self, labels: npt.NDArray[Any]) -> None:
        given: dict[str, Label] = self.__dict__.setdefault("_given", {})
        for label in np.unique(labels):
            given.setdefault(text_of(label), label)

    def _probabilities(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Return the probabilities of rows, float64 [n, classes]; even ones before any batch was
        learned, and 0 for labels that come later."""
        places = {text_of(label): k for k, label in enumerate(self.classes_)}
        found = np.zeros((len(rows), len(places)))
        if not self._is_started or not self._offline.state.version:
            return found + 1 / len(places)
        _, answers = self._offline.answer(rows)
        found[:, [places[text] for text in self._offline.labels]] = answers
        found /= found.sum(axis=1, keepdims=True)
        return found
