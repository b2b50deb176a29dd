"""The scores of learners that are compared, as the service computes its own."""

from collections.abc import Sequence

import numpy as np
import torch

from service.fold.scoring.classification import MOST_PENDING, TOTAL, Scores
from service.fold.scoring.floors import FLOORS, Floors
from service.fold.scoring.measures import Measures
from streams.batch import Labels
from streams.prequential import Chances, Curve, Outcomes, Probabilities, rolling_auc

CPU = torch.device("cpu")
KEEP = torch.tensor(True)
SHOWN = {
    "log_loss": "log loss", "auc": "AUC", "balanced_accuracy": "balanced",
    "rare_recall": "rare recall", "ece": "ECE",
}  # fmt: skip
"""The scores of a comparison, with the heads of their columns."""
OF_LABELS = ("balanced_accuracy", "rare_recall")
"""The scores that need no probabilities."""


class Tally:
    """Scores one learner.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self._scores, self._pending = Scores(classes, CPU), 0
        self._is_probabilistic = True
        self._chances: list[Chances] = []
        self._labels: list[Labels] = []

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
        if self.is_binary:
            self._chances.append(probabilities[:, 1])
            self._labels.append(labels)
        given, own = torch.from_numpy(probabilities).float(), torch.from_numpy(labels)
        chosen = given.gather(1, own[:, None])[:, 0]
        losses = -chosen.clamp(min=torch.finfo(torch.float32).tiny).log()
        self._scores.update(given, torch.from_numpy(predicted), own, losses, KEEP)
        self._pending += len(labels)
        if self._pending >= MOST_PENDING:
            self._scores.settle()
            self._pending = 0

    @property
    def is_binary(self) -> bool:
        """True if there are two classes."""
        return self._scores.is_binary

    def ranking(self) -> Curve:
        """Return the rolling AUC, as `streams.prequential.rolling_auc` does; of two classes."""
        labels = np.concatenate([own == 1 for own in self._labels])
        return rolling_auc(np.concatenate(self._chances), labels)

    def read(self) -> dict[str, float]:
        """Return the scores that are known, by the names of SHOWN."""
        known = SHOWN if self._is_probabilistic else OF_LABELS
        return scores_of(self._scores, known)


def scores_of(
    scores: Scores, names: Sequence[str] | dict[str, str], learner: int = 0
) -> dict[str, float]:
    """Return the scores of these names that are defined, over all examples."""
    measures = scores.measure(learner).windows[TOTAL]
    found = measures.scores() | rare_recall(measures)
    return {name: found[name] for name in names if name in found}


def rare_recall(measures: Measures) -> dict[str, float]:
    """Return the recall of the rarer of two classes, by its name; empty with more classes."""
    if len(measures.confusion) != 2:
        return {}
    rarer = min((0, 1), key=lambda label: sum(measures.confusion[label]))
    return {"rare_recall": measures.recall[rarer]} if sum(measures.confusion[rarer]) else {}


def floor_outcomes(
    labels: Sequence[Labels], classes: int, come: Sequence[Sequence[Labels]] | None = None
) -> dict[str, tuple[Outcomes, Tally]]:
    """Return which predictions of each floor were right, bool [n], and their tally, by its name.

    Args:
        labels: of each batch, int64.
        classes: number of classes.
        come: the labels that come after each batch is predicted, if they come later.
    """
    floors, found = Floors(classes, CPU), []
    tallies = [Tally(classes) for _ in FLOORS]
    steps = ((own, (own,)) for own in labels) if come is None else zip(labels, come, strict=True)
    for batch, known in steps:
        each = floors.probabilities().double().numpy()
        predicted = np.repeat(each.argmax(axis=1)[:, None], len(batch), axis=1)
        found.append(predicted == batch)
        for tally, row, guess in zip(tallies, each, predicted, strict=True):
            tally.add(guess, np.tile(row, (len(batch), 1)), batch)
        for own in known:
            floors.learn(torch.from_numpy(own), KEEP)
    right = np.concatenate(found, axis=1)
    return dict(zip(FLOORS, zip(right, tallies, strict=True), strict=True))
