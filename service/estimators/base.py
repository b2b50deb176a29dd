"""The base of both estimators: the model, and how scikit-learn and river call it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from river.base.base import Base
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import _check_sample_weight, validate_data

from service.estimators.tables import (
    Record,
    is_table,
    row_of,
    rows_of_array,
    rows_of_table,
    with_labels,
)
from service.fold.drift.events import Event
from service.fold.networks import AUTO
from service.fold.schema.kinds import Kind
from service.fold.schema.schema import Column
from service.log.position import Progress
from service.offline import Offline
from service.settings import Settings
from service.trainer.checkpoint import Checkpoint, decode, encode, numerics
from streams.rows.entry import from_bytes, to_bytes
from streams.rows.rows import Rows, join, merged

if TYPE_CHECKING:
    import pandas as pd

Table: TypeAlias = Any
"""n rows: an array [n, columns], a frame of pandas or polars, a table of pyarrow, or dicts."""
Labels: TypeAlias = Any
"""n labels: an array, a series, or a list."""
Weights: TypeAlias = Any
"""How much each of n rows counts, ≥ 0: an array, a series, or a list; None for 1."""
MODEL, WAITING = "_checkpoint", "_entries"
"""Names of what a pickle holds: the bytes of a checkpoint, and of rows that wait for a batch."""


class Estimator(BaseEstimator, ABC):
    """A model of rows that learns batch after batch.

    Rows are learned in batches of ``batch_size`` in the order in which they come, as the service
    learns them. `partial_fit` also learns the last rows, however few. `learn_one` and `learn_many`
    let rows wait until they fill a batch.
    """

    model: str
    batch_size: int
    kinds: Mapping[str, str] | None
    table_bits: int
    random_state: int
    families: Sequence[str] | None

    def _chosen(self) -> dict[str, tuple[object, ...]]:
        """Return the settings of the model that are not those of a service by default."""
        found: dict[str, tuple[object, ...]] = {}
        if self.model == "mlp":
            found["hidden"] = (64,)
        if self.families is not None:
            if self.model != AUTO:
                raise ValueError(f"families={self.families!r}: model={self.model!r} has none")
            found["families"] = tuple(self.families)
        return found

    @abstractmethod
    def _settings(self) -> Settings:
        """Return the settings of a service with this model."""

    @abstractmethod
    def _texts(self, labels: Labels) -> pa.StringArray:
        """Return the canonical texts of labels, and remember what was given."""

    def _start(self) -> None:
        """Forget everything."""
        settings, known = self._settings(), {kind.value: kind for kind in Kind}
        columns = []
        for name, kind in (self.kinds or {}).items():
            if kind not in known:
                raise ValueError(
                    f"column {name!r} cannot be of the kind {kind!r}, only of {', '.join(known)}"
                )
            columns.append(Column(name, known[kind]))
        self._offline = Offline(settings.spec, settings.hyperparameters)
        self._offline.declare(columns)
        self._waiting: list[Rows] = []

    @property
    def _is_started(self) -> bool:
        return hasattr(self, "_offline")

    @property
    def drift_events_(self) -> tuple[Event, ...]:
        """The changes that the drift detectors of the service have found, oldest first."""
        self._check_started()
        events: tuple[Event, ...] = self._offline.state.drift.events
        return events

    @property
    def n_learned_(self) -> int:
        """Number of rows that were learned; rows that wait for a batch are not."""
        self._check_started()
        return self._offline.state.examples

    def fit(self, X: Table, y: Labels) -> Self:
        """Forget what was learned, and learn the rows in one pass, in their order.

        There are no weights here: scikit-learn has them mean repetitions, which no learner can
        promise that learns row after row. `partial_fit` takes them.

        Args:
            X: n rows; NaN and None are missing values.
            y: n labels.

        Raises:
            ValueError: rows or labels cannot be learned.
        """
        rows = self._labelled(X, y, None, is_first=True)
        self._start()
        return self._learn(rows)

    def _learn_part(self, X: Table, y: Labels, sample_weight: Weights) -> Self:
        rows = self._labelled(X, y, sample_weight, is_first=not hasattr(self, "n_features_in_"))
        if not self._is_started:
            self._start()
        return self._learn(rows)

    def learn_one(self, x: Record, y: Any) -> None:
        """Learn a row once a batch is full.

        Args:
            x: values by column; columns may be missing, and new ones may come.
            y: its label.
        """
        self._wait(with_labels(self._row(x), self._texts([y]), None))

    def learn_many(self, X: "pd.DataFrame", y: "pd.Series") -> None:
        """Learn rows once they fill a batch.

        Args:
            X: n rows; columns may be missing, and new ones may come.
            y: n labels.
        """
        self._wait(with_labels(rows_of_table(X), self._texts(y), None))

    def flush(self) -> Self:
        """Learn the rows that wait for a batch."""
        self._check_started()
        waiting, self._waiting = self._waiting, []
        return self._learn(merged(join(waiting)))

    def _learn(self, rows: Rows) -> Self:
        """Learn rows, after those that wait, in full batches and a rest."""
        rows, self._waiting = join([*self._waiting, rows]), []
        rows = merged(rows)
        for start in range(0, len(rows), self.batch_size):
            self._offline.learn(rows.part(start, min(start + self.batch_size, len(rows))))
        return self

    def _wait(self, rows: Rows) -> None:
        """Learn rows once they fill a batch."""
        if not self._is_started:
            self._start()
        self._offline.check(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self.batch_size:
            waiting = merged(join(self._waiting))
            full = len(waiting) // self.batch_size * self.batch_size
            self._waiting = []
            self._learn(waiting.part(0, full))
            if full < len(waiting):
                self._waiting = [waiting.part(full, len(waiting))]

    def _row(self, x: Record) -> Rows:
        """Return a row; one without any value lacks that of a column."""
        if not x:
            columns = self._offline.state.schema.columns if self._is_started else ()
            x = {columns[0].name if columns else "x0": None}
        return row_of(x)

    def _labelled(self, X: Table, y: Labels, weights: Weights, is_first: bool) -> Rows:
        """Return rows with labels, checked as scikit-learn does.

        Args:
            X, y, weights: as for `fit`.
            is_first: whether the columns are remembered, not compared.
        """
        rows, labels = self._rows(X, is_first), self._texts(y)
        if len(rows) != len(labels):
            raise ValueError(f"there are {len(rows):,} rows and {len(labels):,} labels")
        if weights is not None:
            shape = np.empty((len(rows), 1))
            weights = _check_sample_weight(
                weights, shape, dtype=np.float32, ensure_non_negative=True
            )
        found = with_labels(rows, labels, self._weights(labels, weights))
        if self._is_started and not is_first:
            self._offline.check(found)
        return found

    def _weights(
        self, labels: pa.StringArray, weights: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32] | None:
        """Return how much each of n rows counts, fp32 [n]; None for 1."""
        return weights

    def _rows(self, X: Table, is_first: bool) -> Rows:
        """Return rows whose columns are those of `fit`."""
        if is_table(X):
            has_columns = is_first or hasattr(self, "n_features_in_")
            if has_columns and not isinstance(X, Sequence):
                validate_data(self, X, reset=is_first, skip_check_array=True)
            rows = rows_of_table(X)
            self._check_count(len(rows))
            if isinstance(X, Sequence) and is_first:
                self.n_features_in_ = len({n for chunk in rows.chunks for n in chunk.names})
            return rows
        values = validate_data(
            self, X, reset=is_first, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan"
        )
        return rows_of_array(values, [f"x{k}" for k in range(values.shape[1])])

    def _check_count(self, n: int) -> None:
        if not n:
            raise ValueError("Found array with 0 sample(s); a minimum of 1 is required.")

    def _check_started(self) -> None:
        if not self._is_started:
            name = type(self).__name__
            raise NotFittedError(
                f"This {name} instance is not fitted yet. Call 'fit' or 'partial_fit' first."
            )

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_started and self._offline.state.version > 0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # river's methods beyond those of its classifiers and regressors, which it looks for

    clone = Base.clone
    _get_params = Base._get_params
    _mutable_attributes = Base._mutable_attributes
    _raw_memory_usage = Base._raw_memory_usage
    _is_stochastic = False
    _supervised = True
    mutate = Base.mutate

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {}

    @property
    def _tags(self) -> set[str]:
        return set()

    def _unit_test_skips(self) -> set[str]:
        return set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters, and the model as the bytes of a checkpoint."""
        found = dict(super().__getstate__())
        if self._is_started:
            del found["_offline"], found["_waiting"]
            copy = Checkpoint.of(self._offline.state, Progress())
            found[MODEL] = encode(copy, copy.sha256(), numerics(torch.device("cpu")))
            found[WAITING] = list(map(to_bytes, self._waiting))
        return found

    def __setstate__(self, found: dict[str, Any]) -> None:
        found = dict(found)
        raw, waiting = found.pop(MODEL, None), found.pop(WAITING, ())
        super().__setstate__(found)
        if raw is not None:
            self._offline = Offline.of(decode(raw).copy)
            self._waiting = list(map(from_bytes, waiting))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return copies of all tensors of the model by name, those of the experts and of Funnel's
        scales and gains among them.

        Raises:
            NotFittedError: nothing was learned yet.
        """
        self._check_started()
        return {k: v.detach().clone() for k, v in self._offline.state.tensors().items()}
