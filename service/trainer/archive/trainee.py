"""Another model that learns the batches of a replay, and the scores of both."""

from dataclasses import dataclass, replace

from service.fold.report import Report
from service.fold.state import State
from service.fold.step import Fold
from service.log.position import BEGINNING
from service.trainer.checkpoint import Checkpoint
from service.trainer.replica import AppliedBatch
from streams.examples import AnyBatch
from streams.rows.rows import Rows


@dataclass
class Score:
    """The prequential scores of one model."""

    examples: int = 0
    accuracy: float = 0.0
    """Sum over the examples, as is ``loss``."""
    loss: float = 0.0

    def note(self, report: Report, n: int) -> None:
        """Take a batch of n examples into account."""
        self.examples += n
        self.accuracy += n * float(report.accuracy)
        self.loss += n * float(report.loss)


class Trainee:
    """A fresh model that learns what another one has learned.

    Args:
        state: as built, of the same kind of inputs and labels.
    """

    def __init__(self, state: State) -> None:
        self.state, self._fold = state, Fold(state)
        self.own, self.original = Score(), Score()

    def learn(self, applied: AppliedBatch, batch: AnyBatch) -> None:
        """Learn a batch that the other model has learned."""
        if isinstance(batch, Rows) and (changes := self.state.schema.changes_for(batch)):
            self.state.reshape(changes)
        n, report = len(batch), self._fold.step(batch)
        self.state.drift.note(report, n, self.state.examples, applied.end)
        self.own.note(report, n)
        self.original.note(applied.report, n)

    def copy(self, original: Checkpoint) -> Checkpoint:
        """Return the model at the progress of the other, which a new log does not go on from."""
        progress = replace(original.progress, log="", position=BEGINNING, entries=0, cut=0)
        return Checkpoint.of(self.state, progress)
