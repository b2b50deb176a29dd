"""The scores of learners that are compared, as the service computes its own."""

from collections.abc import Sequence

import numpy as np
import torch

from service.fold.scoring.classification import MOST_PENDING, TOTAL, Scores
from service.fold.scoring.floors import FLOORS, Floors
from streams.batch import Labels
from streams.prequential import Outcomes, Probabilities

CPU = torch.device("cpu")
KEEP = torch.tensor(True)
SHOWN = {
    "log_loss": "log loss", "auc": "AUC", "balanced_accuracy": "balanced", "ece": "ECE",
}  # fmt: skip
"""The scores of a comparison, with the heads of their columns."""


class Tally:
    """Scores one learner.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self._scores, self._pending = Scores(classes, CPU), 0
        self._is_probabilistic = True

    def add(self, predicted: Labels, probabilities: Probabilities | None, labels: Labels) -> None:
        """Score a batch.

        Args:
            predicted: int64 [n].
            probabilities: fp64 [n, classes]; None if the learner gives labels alone.
            labels: int64 [n].
        """
        if probabilities is None:
            self._is_probabilistic = False
            probabilities = np.zeros((len(labels), self._scores.classes))
        given, own = torch.from_numpy(probabilities).float(), torch.from_numpy(labels)
        chosen = given.gather(1, own[:, None])[:, 0]
        losses = -chosen.clamp(min=torch.finfo(torch.float32).tiny).log()
        self._scores.update(given, torch.from_numpy(predicted), own, losses, KEEP)
        self._pending += len(labels)
        if self._pending >= MOST_PENDING:
            self._scores.settle()
            self._pending = 0

    def read(self) -> dict[str, float]:
        """Return the scores that are known, by the names of SHOWN."""
        known = SHOWN if self._is_probabilistic else ("balanced_accuracy",)
        return scores_of(self._scores, known)


def scores_of(
    scores: Scores, names: Sequence[str] | dict[str, str], learner: int = 0
) -> dict[str, float]:
    """Return the scores of these names that are defined, over all examples."""
    found = scores.measure(learner).windows[TOTAL].scores()
    return {name: found[name] for name in names if name in found}


def floor_outcomes(labels: Sequence[Labels], classes: int) -> dict[str, Outcomes]:
    """Return which predictions of each floor were right, bool [n], by its name.

    Args:
        labels: of each batch, int64.
        classes: number of classes.
    """
    floors, found = Floors(classes, CPU), []
    for batch in map(torch.from_numpy, labels):
        predicted = floors.probabilities().argmax(dim=1)
        found.append(predicted[:, None] == batch)
        floors.learn(batch, KEEP)
    right = torch.cat(found, dim=1).numpy()
    return dict(zip(FLOORS, right, strict=True))
