"""The model of a service without its log: what a snapshot answers, and what the fold learns."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from service.export import Exported
from service.fold.report import Report
from service.fold.schema.schema import Column
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.spec import Hyperparameters, Spec
from service.fold.state import State
from service.fold.step import Fold
from service.log.position import BEGINNING
from service.trainer.checkpoint import Checkpoint
from streams.rows.rows import Rows, join, merged

Answers = tuple[npt.NDArray[np.int64 | np.float32], npt.NDArray[np.float32]]
"""Labels [n], and answers [n, A] (see `service.fold.snapshot.Evaluator`)."""

PASS = 32
"""Rows of a pass are a multiple of this; the last one is repeated. Sums over a row go another way
in other passes, and then its answer depends on how many rows are asked for together."""


class Offline:
    """A model of rows, on the CPU. It learns a batch as a trainer does, and gives the same bits.

    Args:
        spec: of the model; its schema is the one that the model begins with.
        hyperparameters: of the model.
    """

    def __init__(self, spec: Spec, hyperparameters: Hyperparameters) -> None:
        self.state = State(spec, hyperparameters, torch.device("cpu"))
        self._fold, self._evaluate = Fold(self.state), Evaluator(self.state.served)
        self._snapshot: Snapshot | None = None

    @classmethod
    def of(cls, copy: Checkpoint) -> Self:
        """Return the model of a checkpoint.

        Args:
            copy: with all rows of its tables.
        """
        found = cls(copy.spec, copy.hyperparameters)
        counts = copy.version, copy.examples
        found.state.load(copy.tensors, *counts, copy.drifts, copy.byte_examples)
        return found

    def declare(self, columns: Sequence[Column]) -> None:
        """Let the schema have columns before any row is learned."""
        schema = self.state.schema
        self.state.reshape(schema.changes_to(replace(schema, columns=tuple(columns))))

    @property
    def labels(self) -> tuple[str, ...]:
        """Canonical texts of the labels, by class."""
        return self.state.schema.labels

    def check(self, rows: Rows) -> None:
        """Check that labelled rows can be learned.

        Raises:
            streams.batch.InvalidBatchError: a cell has a wrong kind.
        """
        self.state.schema.check(rows)

    def learn(self, rows: Rows) -> Report:
        """Learn a batch: first the schema grows, then the fold takes a step.

        Args:
            rows: checked and labelled.
        """
        if changes := self.state.schema.changes_for(rows):
            self.state.reshape(changes)
        report, self._snapshot = self._fold.step(rows), None
        self.state.drift.note(report, len(rows), self.state.examples, BEGINNING)
        return report

    def answer(self, rows: Rows) -> Answers:
        """Return the labels and answers of the newest version.

        Args:
            rows: any number; at least a batch was learned.
        """
        if self._snapshot is None:
            self._snapshot = Snapshot.of(self.state)
        n, most, found = len(rows), max(PASS, self._evaluate.most_rows // PASS * PASS), []
        whole = merged(join([rows, *[rows.part(n - 1, n)] * (-n % PASS)]))
        for start in range(0, n, most):
            part = whole.part(start, min(start + most, len(whole)))
            found.append(self._evaluate(self._snapshot, part))
        labels, answers = zip(*found, strict=True)
        return torch.cat(labels)[:n].numpy(), torch.cat(answers)[:n].numpy()

    def exported(self, order: Sequence[int] | None = None) -> Exported:
        """Return the newest version as a module of torch.

        Args:
            order: the class of each output, if it is not its place.

        Raises:
            ExportError: the model has other families or columns than can be exported.
        """
        return Exported.of(Snapshot.of(self.state), self.state.served, order)
