"""A regressor with scikit-learn's and river's methods."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from river.base import MiniBatchRegressor
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array, column_or_1d

from service.estimators.base import Estimator, Labels, Table, Weights
from service.estimators.tables import Record, labels_of, rows_of_table
from service.export import Exported
from service.fold.task import Task
from service.settings import Settings
from streams.rows.rows import Rows

if TYPE_CHECKING:
    import pandas as pd


@MiniBatchRegressor.register
class Regressor(RegressorMixin, Estimator):
    """A regressor for data that drifts, with no step size to tune and no model to choose.

    It is the model of the Funnel service, batch for batch the same.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(2_000, 4))
    >>> y = 3 * X[:, 0] - X[:, 1]
    >>> model = Regressor(model="logistic").partial_fit(X[:1_000], y[:1_000])
    >>> bool(model.score(X[1_000:], y[1_000:]) > 0.9)
    True

    Args:
        model: ``auto`` for all families, ``logistic`` for linear experts, or ``mlp`` with one
            hidden layer.
        batch_size: rows that are learned together.
        quantiles: in (0, 1), ascending; `predict_quantiles` returns them. None for a mean and a
            standard deviation.
        kinds, table_bits, random_state, families: as for
            `service.estimators.classifier.Classifier`.
    """

    def __init__(
        self,
        model: str = "auto",
        *,
        batch_size: int = 100,
        quantiles: tuple[float, ...] | None = None,
        kinds: Mapping[str, str] | None = None,
        table_bits: int = 20,
        random_state: int = 0,
        families: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.quantiles = quantiles
        self.kinds = kinds
        self.table_bits = table_bits
        self.random_state = random_state
        self.families = families

    def partial_fit(self, X: Table, y: Labels, sample_weight: Weights = None) -> Self:
        """Learn rows, in their order, after all that was learned before.

        Args:
            X, y: as for `fit`.
            sample_weight: how much each row counts, ≥ 0, [n]; None for 1.

        Raises:
            ValueError: as for `fit`.
        """
        return self._learn_part(X, y, sample_weight)

    def predict(self, X: Table) -> npt.NDArray[np.float64]:
        """Return the mean of each row's label, float64 [n]; with quantiles, the middle one.

        Args:
            X: n rows.

        Raises:
            NotFittedError: nothing was learned yet.
            ValueError: the rows have other columns than those of `fit`.
        """
        self._check_started()
        return self._values(self._rows(X, is_first=False))

    def predict_std(self, X: Table) -> npt.NDArray[np.float64]:
        """Return the standard deviation of each row's label around its mean, float64 [n].

        Raises:
            NotFittedError, ValueError: as for `predict`; there are quantiles instead.
        """
        if self.quantiles is not None:
            raise ValueError("a regressor with quantiles has no standard deviation")
        return self._answers(X)[:, 1]

    def predict_quantiles(self, X: Table) -> npt.NDArray[np.float64]:
        """Return the quantiles of each row's label, float64 [n, quantiles]; they never cross.

        Raises:
            NotFittedError, ValueError: as for `predict`; no quantiles were asked for.
        """
        if self.quantiles is None:
            raise ValueError("name the quantiles: Regressor(quantiles=(0.1, 0.5, 0.9))")
        return self._answers(X)

    def predict_one(self, x: Record, **kwargs: Any) -> float:
        """Return the mean of the label; 0 before any batch was learned."""
        if not self._is_started or not self._offline.state.version:
            return 0.0
        [value] = self._values(self._row(x))
        return float(value)

    def predict_many(self, X: "pd.DataFrame") -> "pd.Series":
        """Return the mean of each row's label; 0 before any batch was learned."""
        import pandas as pd  # no extra has it; who gives a frame does

        if not self._is_started or not self._offline.state.version:
            return pd.Series(0.0, index=X.index)
        return pd.Series(self._values(rows_of_table(X)), index=X.index)

    def to_torch(self) -> Exported:
        """Return the model as a module of torch, which answers with mean and standard deviation,
        fp32 [n, 2], or with quantiles, [n, quantiles], for inputs fp32 [n, columns].

        Raises:
            NotFittedError: nothing was learned yet.
            ExportError: the model has other families or columns than can be exported.
        """
        self._check_started()
        return self._offline.exported()

    def to_onnx(self) -> bytes:
        """Return what `to_torch` returns in ONNX, from ``inputs`` to ``answers``.

        Raises:
            NotFittedError, ExportError: as for `to_torch`; or onnx is missing.
        """
        return self.to_torch().in_format("onnx")

    def _settings(self) -> Settings:
        task = "regression"
        if self.quantiles is not None:
            task = "quantile:" + ",".join(repr(float(level)) for level in self.quantiles)
            try:
                Task.parse(task)
            except ValueError as error:
                raise ValueError(f"quantiles={self.quantiles!r}: {error}") from error
        return Settings.model_validate(
            {
                "model": self.model,
                "schema": "auto",
                "table_bits": self.table_bits,
                "seed": self.random_state,
                "task": task,
            }
            | self._chosen()
        )

    def _texts(self, labels: Labels) -> pa.StringArray:
        found = check_array(
            column_or_1d(labels, warn=True), ensure_2d=False, dtype=np.float64, input_name="y"
        )
        return labels_of(found)

    def _answers(self, X: Table) -> npt.NDArray[np.float64]:
        self._check_started()
        _, answers = self._offline.answer(self._rows(X, is_first=False))
        return answers.astype(np.float64)

    def _values(self, rows: Rows) -> npt.NDArray[np.float64]:
        labels, _ = self._offline.answer(rows)
        return labels.astype(np.float64)
