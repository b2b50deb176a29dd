"""Prequential scores: every prediction is scored before its label is learned.

A. P. Dawid, 'Statistical theory: the prequential approach' (1984); J. Gama, R. Sebastião,
P. P. Rodrigues, 'On evaluating stream learning algorithms' (2013). The sums and the window are on
the device; `read` brings them to the host.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from streams.recovery import WINDOW


@dataclass(frozen=True)
class ScoreSummary:
    """Scores on the host; NaN where nothing has been scored yet."""

    scored: int
    correct: int
    accuracy: float
    """Accuracy over all examples, in [0, 1]."""
    loss: float
    """Mean cross-entropy over all examples, in nats."""
    rolling_accuracy: float
    """Accuracy over the last WINDOW examples."""
    rolling_loss: float
    class_recall: tuple[float, ...]
    """Recall over the last WINDOW examples, by class; NaN for a class that is not among them."""


class Scores:
    """Sums over all examples and a ring of the last WINDOW outcomes.

    Args:
        classes: number of classes.
        device: where logits will be.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.scored = torch.zeros((), dtype=torch.int64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.outcomes = torch.zeros(WINDOW, dtype=torch.int64, device=device)
        """2 · label + correct, at example index modulo WINDOW."""
        self.losses = torch.zeros(WINDOW, device=device)
        self._offsets = torch.arange(WINDOW, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {
            "scored": self.scored,
            "correct": self.correct,
            "loss_sum": self.loss_sum,
            "outcomes": self.outcomes,
            "losses": self.losses,
        }

    def update(self, correct: Tensor, losses: Tensor, labels: Tensor, keep: Tensor) -> None:
        """Add the outcomes of a batch, in order.

        Args:
            correct: bool [n].
            losses: cross-entropy of each example, fp32 [n].
            labels: int64 [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n = len(labels)
        self.correct.add_(correct.sum() * keep)
        self.loss_sum.add_(torch.where(keep, losses, 0.0).sum(dtype=torch.float64))
        new = min(n, WINDOW)
        at = (self.scored + (n - new) + self._offsets[:new]) % WINDOW
        outcomes = 2 * labels[-new:] + correct[-new:]
        self.outcomes[at] = torch.where(keep, outcomes, self.outcomes[at])
        self.losses[at] = torch.where(keep, losses[-new:], self.losses[at])
        self.scored.add_(n * keep)

    def read(self) -> ScoreSummary:
        """Bring the scores to the host; this waits for the device.

        Weights of experts sum to 1 only up to rounding, so the sums of losses may be below 0.
        """
        scored, correct = int(self.scored), int(self.correct)
        held = min(scored, WINDOW)
        outcomes, losses = self.outcomes[:held].cpu(), self.losses[:held].cpu()
        labels, hits = outcomes // 2, outcomes % 2
        support = torch.bincount(labels, minlength=self.classes)
        hit = torch.bincount(labels, weights=hits.double(), minlength=self.classes)
        return ScoreSummary(
            scored=scored,
            correct=correct,
            accuracy=correct / scored if scored else math.nan,
            loss=max(float(self.loss_sum) / scored, 0.0) if scored else math.nan,
            rolling_accuracy=float(hits.double().mean()) if held else math.nan,
            rolling_loss=max(float(losses.double().mean()), 0.0) if held else math.nan,
            class_recall=tuple((hit / support).tolist()),
        )
