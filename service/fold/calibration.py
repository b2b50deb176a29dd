"""Calibration of the mixture's probabilities: online Platt scaling, hedged by what it is given.

Let x be the log odds of class 1 with two classes, and of the predicted class with more, and t
whether that class came. Platt scaling [J. Platt, 'Probabilistic outputs for support vector
machines', 1999] answers q = 1 / (1 + exp(-a x - b)). Online [C. Gupta, A. Ramdas, 'Online Platt
scaling with calibeating', ICML 2023], a batch takes one Newton step, which has no step size:

    A ← A + Σ q (1 - q) [x, 1]ᵀ [x, 1],   [a, b] ← [a, b] - A⁻¹ Σ (q - t) [x, 1],

from A = PRIOR · I, a = 1 and b = 0, with a and b kept within bounds. The other classes share 1 - q
in their old proportions. q is kept where the predicted class stays the likeliest, so calibration
never changes a label.

The answer is w q + (1 - w) p. The weight w follows the log losses of both as the pool's weights
follow its experts' (Fixed Share, `funnel.pool.mixing`), so calibration that does not help loses
its weight. The paper's hedged binning is not used: it would change which class is the likeliest.

All is a function of (state, batch), on the device, without a host read. Weights of examples do not
count.
"""

import math

import torch
from torch import Tensor

PRIOR = 30.0
"""Examples at even odds, or so, that a = 1 and b = 0 count as."""
SLOPES, OFFSETS = (0.25, 4.0), (-4.0, 4.0)
"""Bounds of a and b."""
MOST_ODDS = 15.0
"""Log odds beyond which probabilities are taken as equally certain."""
RATE, SHARE = 0.2, 2e-4
"""η of Fixed Share, in 1 / nat, and the share of the weight redistributed per example."""
TINY = 1e-30
"""Least probability that is told from 0."""
EDGE = 1e-12
"""Least distance of w from 0 and 1."""


class Calibration:
    """The coefficients, and the weight of their answer.

    Args:
        classes: number of classes that are open.
        device: where probabilities will be.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.answer = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64, device=device)
        """a, b, w."""
        self.curvature = PRIOR * torch.eye(2, dtype=torch.float64, device=device)
        """A."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"answer": self.answer, "curvature": self.curvature}

    def resize(self, classes: int) -> None:
        """Continue with more classes that are open; with a third one, x is another, and all
        begins again."""
        if self.classes <= 2 < classes:
            fresh = Calibration(classes, self.answer.device)
            for mine, new in zip(self.tensors().values(), fresh.tensors().values(), strict=True):
                mine.copy_(new)
        self.classes = classes

    def update(
        self, probabilities: Tensor, predicted: Tensor, labels: Tensor, keep: Tensor
    ) -> None:
        """Learn from a batch.

        Args:
            probabilities: of the mixture, fp32 [n, classes].
            predicted: labels, int64 [n].
            labels: int64 [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        if self.classes < 2:
            return
        a, b, weight = self.answer.unbind()
        watched = _watched(self.classes, predicted)
        given = probabilities.double()
        x = _log_odds(given, watched)
        platt = torch.sigmoid(a * x + b)
        off, slope = platt - (labels == watched).double(), platt * (1.0 - platt)
        inputs = torch.stack([x, torch.ones_like(x)])
        curvature = self.curvature + (slope * inputs) @ inputs.T
        aa, ab, _, bb = curvature.flatten().unbind()
        d_a, d_b = (inputs @ off).unbind()
        det = aa * bb - ab * ab
        of_label = labels[:, None]
        scaled = _scaled(self.classes, given, predicted, self.answer).gather(1, of_label)
        gain = scaled.clamp(min=TINY).log() - given.gather(1, of_label).clamp(min=TINY).log()
        evidence = torch.logit(weight, eps=EDGE) + RATE * gain.sum()
        dealt = -math.expm1(len(labels) * math.log1p(-SHARE))
        new = torch.stack(
            [
                (a - (bb * d_a - ab * d_b) / det).clamp(*SLOPES),
                (b - (aa * d_b - ab * d_a) / det).clamp(*OFFSETS),
                (1.0 - dealt) * torch.sigmoid(evidence) + dealt / 2,
            ]
        )
        self.answer.copy_(torch.where(keep, new, self.answer))
        self.curvature.copy_(torch.where(keep, curvature, self.curvature))


def calibrated(classes: int, probabilities: Tensor, predicted: Tensor, answer: Tensor) -> Tensor:
    """Return calibrated probabilities, fp32 [n, classes]; the predicted class stays the likeliest.

    Args:
        classes: number of classes that are open.
        probabilities: of the mixture, fp32 [n, classes].
        predicted: the likeliest class, int64 [n].
        answer: of a `Calibration`, float64 [3].
    """
    if classes < 2:
        return probabilities
    given, weight = probabilities.double(), answer[2]
    scaled = _scaled(classes, given, predicted, answer)
    return (weight * scaled + (1.0 - weight) * given).float()


def _watched(classes: int, predicted: Tensor) -> Tensor:
    """Return the class whose log odds are x, int64 [n]."""
    return torch.ones_like(predicted) if classes == 2 else predicted


def _log_odds(given: Tensor, watched: Tensor) -> Tensor:
    """Return the log odds of a class within ±MOST_ODDS, float64 [n]."""
    own = given.gather(1, watched[:, None]).squeeze(1)
    others = _others(given, watched).sum(dim=1)
    odds = own.clamp(min=TINY).log() - others.clamp(min=TINY).log()
    return odds.clamp(-MOST_ODDS, MOST_ODDS)


def _others(given: Tensor, watched: Tensor) -> Tensor:
    """Return probabilities with 0 for a class, float64 [n, classes]."""
    return given.scatter(1, watched[:, None], 0.0)


def _scaled(classes: int, given: Tensor, predicted: Tensor, answer: Tensor) -> Tensor:
    """Return what Platt scaling answers, float64 [n, classes].

    Args:
        classes: number of classes that are open.
        given: probabilities, float64 [n, classes].
        predicted: the likeliest class, int64 [n].
        answer: of a `Calibration`, float64 [3].
    """
    watched = _watched(classes, predicted)
    platt = torch.sigmoid(answer[0] * _log_odds(given, watched) + answer[1])
    top = torch.where(watched == predicted, platt, 1.0 - platt)
    others = _others(given, predicted)
    rest = others.sum(dim=1)
    second = others.amax(dim=1)
    top = torch.maximum(top, second / (second + rest).clamp(min=TINY))
    spread = others * ((1.0 - top) / rest.clamp(min=TINY))[:, None]
    whole = spread.scatter(1, predicted[:, None], top[:, None])
    return torch.where(rest[:, None] > TINY, whole, given)
