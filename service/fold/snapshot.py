"""Snapshots: immutable, versioned copies of what prediction needs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from funnel.families.added.frozen import Instances
from funnel.families.families import Frozen
from funnel.families.interface import Given
from funnel.pool.loss import Gaussian, Pinball
from funnel.pool.networks import Experts
from funnel.pool.pool import predicted
from funnel.pool.tables.published import Published
from service.fold.calibration import calibrated
from service.fold.inputs import completed, given_of, given_of_rows, scaled, to_inputs
from service.fold.learner import WEIGHTS, Learner, held_of
from service.fold.schema.encode import encode
from service.fold.schema.schema import Schema
from service.fold.standardizer import standardized
from service.fold.state import State
from service.fold.target import answered, restored
from service.fold.task import CLASSES, Task
from streams.examples import AnyInputs
from streams.rows.rows import Rows

QUICK_PRODUCTS = 1 << 18
"""Multiplications that take about 0.1 ms."""
MOST_ROWS = 4_096
MOST_NUMBERS = 1 << 22
"""Outputs of its widest layer that a pass may hold, of all experts: 16 MB in fp32."""


@dataclass(frozen=True)
class Snapshot:
    """The model at one version; it never changes."""

    version: int
    weights: dict[str, Tensor]
    mean: Tensor | None
    """Mean of the inputs, fp32 [d]; None if they are not standardized."""
    scale: Tensor | None
    """The difference of inputs that standardizing makes 1, fp32 [d]; None if they are not."""
    schema: Schema | None = None
    """The schema of rows; None for dense features."""
    table: Published | None = None
    """Weights of the keys of rows; None without a table."""
    calibration: Tensor | None = None
    """Coefficients of the calibration, float64 [3] or [4]; None if probabilities are answered as
    they come."""
    classes: int = 0
    """Number of classes that are open."""
    task: Task = CLASSES
    """The task of the model."""
    unit: Tensor | None = None
    """Unit of the numbers that are predicted (`service.fold.target`); None for classes."""
    families: Frozen | None = None
    """The families beyond the pool; None without, and as long as they have skipped all batches."""
    codes: int = 0
    """Room for the keys of rows that are inputs of trees."""
    learner: Learner | None = None
    """The learner that it is of, for its architecture alone, as it goes on learning; None for that
    of the evaluator."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """Labels by class; None if they are the numbers of the classes."""
        return None if self.schema is None or self.task.is_numeric else self.schema.labels

    @classmethod
    def of(cls, state: State) -> "Snapshot":
        """Copy what prediction needs, on the device, without waiting for it."""
        keeps, learner = state.spec.standardize, state.answering
        families = learner.families
        return cls(
            state.version,
            learner.frozen(),
            state.standardizer.mean.clone() if keeps else None,
            state.standardizer.scale if keeps else None,
            state.schema if state.spec.schema else None,
            learner.table.published() if learner.table is not None else None,
            state.calibration.answer.clone() if state.calibration is not None else None,
            state.size.opened,
            state.spec.predicts,
            state.target.unit.clone() if state.target is not None else None,
            families.frozen() if families is not None and families.has_learned else None,
            state.size.codes,
            learner,
        )


class Evaluator:
    """Computes predictions from snapshots with modules of its own; for one thread.

    Args:
        learner: the learner of the first snapshots; its architecture is copied.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._other: Evaluator | None = None
        """The evaluator of the last snapshot of another learner, which was promoted."""
        self.device, self._evaluate = learner.device, learner.evaluator()
        self._loss = learner.pool.loss
        self._network, self._perceptrons = learner.network(), None
        self._added = Instances()
        if learner.families is not None and learner.families.perceptrons is not None:
            own = learner.families.perceptrons
            size, count = learner.size.features, len(own.experts)
            self._perceptrons = Experts(own.models.unused, count, size, own.loss)
        layers = [tensor for tensor in learner.frozen().values() if tensor.dim() > 1]
        self._products = sum(layer.numel() for layer in layers)
        self._may_be_quick = learner.is_plain and learner.device.type == "cpu"
        self._may_be_quick &= learner.families is None
        widths = [layer.shape[1] for layer in layers] if learner.is_plain else []
        widest = len(learner.pool.experts) * max([learner.size.classes, 2, *widths])
        self.most_rows = min(MOST_ROWS, max(1, MOST_NUMBERS // widest))
        """Rows that a pass may have, so that its memory is bounded."""

    def of(self, snapshot: Snapshot) -> "Evaluator":
        """Return the evaluator of a snapshot: itself, or one with the modules of its learner."""
        learner = snapshot.learner
        if learner is None or learner is self._learner:
            return self
        if self._other is None or self._other._learner is not learner:
            self._other = Evaluator(learner)
        return self._other

    def is_quick(self, rows: int) -> bool:
        """Return whether a pass takes less time than handing it to another thread.

        A user's module may take any time.
        """
        return self._may_be_quick and rows * self._products <= QUICK_PRODUCTS

    @torch.inference_mode()
    def __call__(self, snapshot: Snapshot, inputs: AnyInputs) -> tuple[Tensor, Tensor]:
        """Return the labels, [n], and the answers, fp32 [n, A], on the host.

        Labels are classes, int64, and answers their probabilities. Where numbers are predicted,
        labels are fp32, and answers their mean and standard deviation, or their quantiles.
        """
        if (own := self.of(snapshot)) is not self:
            return own(snapshot, inputs)
        if isinstance(inputs, Rows):
            return self._of_rows(snapshot, inputs)
        raw = prepared = to_inputs(inputs, self.device)
        if snapshot.mean is not None and snapshot.scale is not None:
            prepared = standardized(prepared, snapshot.mean, snapshot.scale)
        if snapshot.families is not None:
            outputs = self._network(snapshot.weights, prepared)
            given = given_of(raw, snapshot.mean, snapshot.scale)
            labels, answers = self._of_families(snapshot, outputs, prepared, given)
        else:
            labels, answers = self._evaluate(snapshot.weights, prepared)
        return self._answered(snapshot, labels, answers)

    def _of_families(
        self, snapshot: Snapshot, outputs: Tensor, prepared: Tensor, given: Given
    ) -> tuple[Tensor, Tensor]:
        """Return the labels and answers of all families.

        Args:
            snapshot: that has them.
            outputs: of the pool's experts, [K, n, out].
            prepared: inputs of networks, fp32 [n, d].
            given: inputs of trees and neighbours.
        """
        assert snapshot.families is not None, "there are families"
        held = held_of(snapshot.weights)
        linear = self._loss.answers(held, outputs)
        own = predicted(self._loss, held, snapshot.weights[WEIGHTS], outputs)
        families, networks = snapshot.families, self._perceptrons
        answers = families.answers(networks, self._added, linear, own, prepared, given)
        return self._loss.chosen(outputs, answers), answers

    def _answered(
        self, snapshot: Snapshot, labels: Tensor, answers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return answers on the host: probabilities calibrated, with the same labels as before,
        and numbers in the unit in which they were sent.

        Where a single expert's probabilities are not finite, they stay.
        """
        if snapshot.unit is not None:
            assert isinstance(self._loss, Gaussian | Pinball), "numbers have a loss of numbers"
            labels = restored(labels[:, None], snapshot.unit, has_deviation=False)[:, 0]
            answers = answered(answers, snapshot.unit, self._loss.has_deviation)
        elif snapshot.calibration is not None:
            answers = calibrated(snapshot.classes, answers, labels, snapshot.calibration)
        return labels.cpu(), answers.cpu()

    def _of_rows(self, snapshot: Snapshot, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the answers for rows; a missing number is the mean of its column."""
        schema = snapshot.schema
        assert schema is not None, "the model takes dense features"
        encoded = encode(schema, rows)
        width = snapshot.weights[next(iter(snapshot.weights))].shape[2]
        dense = scaled(torch.from_numpy(encoded.dense).to(self.device))
        if snapshot.mean is not None and snapshot.scale is not None:
            dense = standardized(dense, snapshot.mean, snapshot.scale)
        dense = completed(dense, width)
        table, keyed = snapshot.table, (encoded.rows, encoded.keys, encoded.values)
        if snapshot.families is not None:
            if table is None:
                outputs = self._network(snapshot.weights, dense)
            else:
                found = table.index.find(encoded.keys)
                outputs = table.outputs(dense, encoded.rows, found, encoded.values)
            unit = snapshot.mean, snapshot.scale
            given = given_of_rows(encoded, snapshot.codes, width, *unit)
            labels, answers = self._of_families(snapshot, outputs, dense, given)
        elif table is None:
            labels, answers = self._evaluate(snapshot.weights, dense)
        else:
            labels, answers = table.predict(dense, *keyed)
        labels, answers = self._answered(snapshot, labels, answers)
        return labels, answers[:, : len(schema.labels)] if snapshot.unit is None else answers
