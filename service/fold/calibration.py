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

All is a function of (state, batch), on the device, without a host read. An example of weight w
counts as w copies of it; of weight 0, it is scored and nothing is learned from it.
"""

import math
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funnel.tensorlists import weighted
from service.fold.scoring.classification import Scores, arrays_of, loops_for

PRIOR = 30.0
"""Examples at even odds, or so, that a = 1 and b = 0 count as."""
SLOPES, OFFSETS = (0.25, 4.0), (-4.0, 4.0)
"""Bounds of a and b."""
MOST_ODDS = 15.0
"""Log odds beyond which probabilities are taken as equally certain."""
RATE, SHARE = 0.2, 2e-4
"""η of Fixed Share, in 1 / nat, and the share of the weight redistributed per example."""
TINY = 1e-30
"""Least probability that differs from 0 here."""
EDGE = 1e-12
"""Least distance of w from 0 and 1."""
BOUNDS = np.array([SLOPES, OFFSETS])
LOG_TINY = float(torch.tensor(TINY, dtype=torch.float64).log())


class Calibration:
    """The coefficients, and the weight of their answer.

    Args:
        classes: number of classes that are open.
        device: where probabilities will be.
        room: number of classes that there is room for; None for those that are open.
    """

    def __init__(self, classes: int, device: torch.device, room: int | None = None) -> None:
        self.classes = classes
        self.scores = Scores(classes, device, room)
        """Scores of the calibrated probabilities; the learner has those of the ones it is given."""
        self.answer = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64, device=device)
        """a, b, w."""
        self.curvature = PRIOR * torch.eye(2, dtype=torch.float64, device=device)
        """A."""
        self._room: Room | None = None
        self._arrays = arrays_of(self.answer, self.curvature)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        scores = {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        return {"answer": self.answer, "curvature": self.curvature} | scores

    def resize(self, classes: int, room: int) -> None:
        """Continue with more classes; with a third one, x is another, and a and b begin again.

        Args:
            classes: number of classes that are open, no smaller than before.
            room: number of classes that there is room for, no smaller than before.
        """
        if self.classes <= 2 < classes:
            fresh = Calibration(classes, self.answer.device)
            self.answer.copy_(fresh.answer)
            self.curvature.copy_(fresh.curvature)
        self.classes = classes
        self.scores.resize(classes, room)

    def learn(
        self,
        probabilities: Tensor,
        predicted: Tensor,
        labels: Tensor,
        finite: Tensor,
        keep: Tensor,
        importance: Tensor | None = None,
    ) -> None:
        """Score what is answered for a batch, and learn from it.

        Args:
            probabilities: of the mixture, fp32 [n, classes].
            predicted: labels, int64 [n].
            labels: int64 [n].
            finite: bool, 0-dim; where it is False nothing is scored.
            keep: bool, 0-dim; where it is False nothing is learned.
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        if self.classes < 2:
            own = probabilities.gather(1, labels[:, None]).squeeze(1)
            losses = -own.clamp(min=TINY).log()
            self.scores.update(probabilities, predicted, labels, losses, finite)
            return
        if probabilities.is_contiguous() and (compiled := loops_for(labels)) is not None:
            if finite or keep:
                batch = (probabilities, predicted, labels, importance)
                self._learn_compiled(compiled, *batch, finite, keep)
            return
        found = scaled_by(self.classes, probabilities, predicted, self.answer)
        a, b, weight = self.answer.unbind()
        answered = weight * found.scaled + (1.0 - weight) * found.given
        each = torch.stack([answered, found.scaled, found.given])
        logs = each.gather(2, labels[:, None].expand(3, -1, 1)).squeeze(2).clamp(min=TINY).log()
        self.scores.update(answered.float(), predicted, labels, -logs[0].float(), finite)
        off = weighted(found.platt - (labels == found.watched).double(), importance)
        slope = weighted(found.platt * (1.0 - found.platt), importance)
        inputs = torch.stack([found.odds, torch.ones_like(slope)])
        curvature = self.curvature + (slope * inputs) @ inputs.T
        aa, ab, _, bb = curvature.flatten().unbind()
        d_a, d_b = (inputs @ off).unbind()
        det = aa * bb - ab * ab
        evidence = (
            torch.logit(weight, eps=EDGE) + RATE * weighted(logs[1] - logs[2], importance).sum()
        )
        dealt = _dealt(len(labels))
        new = torch.stack(
            [
                (a - (bb * d_a - ab * d_b) / det).clamp(*SLOPES),
                (b - (aa * d_b - ab * d_a) / det).clamp(*OFFSETS),
                (1.0 - dealt) * torch.sigmoid(evidence) + dealt / 2,
            ]
        )
        self.answer.copy_(torch.where(keep, new, self.answer))
        self.curvature.copy_(torch.where(keep, curvature, self.curvature))

    def _learn_compiled(
        self,
        compiled: ModuleType,
        probabilities: Tensor,
        predicted: Tensor,
        labels: Tensor,
        importance: Tensor | None,
        finite: Tensor,
        keep: Tensor,
    ) -> None:
        """Do the same by compiled loops, bit for bit."""
        n, is_binary = len(labels), self.classes == 2
        if self._room is None or self._room.others.tensor.shape != probabilities.shape:
            self._room = Room(n, probabilities.shape[1])
        room, given, guess = self._room, probabilities.numpy(), predicted.numpy()
        label = labels.numpy()
        weights = room.ones if importance is None else importance.numpy()
        answer, curvature = self._arrays
        parts, logs, inputs, platt = (
            pair.array for pair in (room.parts, room.logs, room.inputs, room.platt)
        )
        compiled.split(given, guess, room.others.array, parts)
        if probabilities.shape[1] > 2:
            torch.sum(room.others.tensor, dim=1, out=room.rest)
        logs[:] = parts[:2]
        room.logs.tensor.log_()
        odds = (guess, answer, TINY, LOG_TINY, MOST_ODDS, is_binary)
        compiled.scale(parts, logs, *odds, inputs, platt)
        room.platt.tensor.sigmoid_()
        batch = (given, room.others.array, parts, platt, guess, label, weights, answer)
        compiled.answer_all(
            *batch, TINY, EDGE, is_binary, inputs, room.answered.array, room.own.array,
            room.slopes.array, room.off.array,
        )  # fmt: skip
        room.own.tensor.log_()
        compiled.compare(room.own.array, weights, room.losses, room.gains.array)
        if finite:
            norms = torch.linalg.vector_norm(room.answered.tensor, dim=1).numpy()
            shown = (room.answered.array, norms, guess, label, room.losses)
            compiled.score(*self.scores.arrays, *shown)
        if keep:
            torch.mm(room.slopes.tensor, room.turned, out=room.more.tensor)
            torch.mv(room.inputs.tensor, room.off.tensor, out=room.slope.tensor)
            weight = room.weight.array
            weight[0] = room.own.array[-1] + RATE * float(room.gains.tensor.sum())
            room.weight.tensor.sigmoid_()
            step = (room.more.array, room.slope.array, weight, room.dealt, BOUNDS)
            compiled.take_step(answer, curvature, *step)


class Paired:
    """Numbers as a tensor and as an array, in one memory."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        with torch.inference_mode(mode=False):
            self.tensor = torch.ones(shape, dtype=dtype)
        self.array = self.tensor.numpy()


class Room:
    """Room for what compiled loops set for a batch of n examples; see `service.fold.scoring.loops`.

    Args:
        n: number of examples.
        classes: number of classes.
    """

    def __init__(self, n: int, classes: int) -> None:
        self.ones, self.dealt = np.ones(n, np.float32), _dealt(n)
        self.others, self.parts = Paired(n, classes), Paired(3, n)
        self.rest = self.parts.tensor[1]
        self.logs, self.inputs, self.platt = Paired(2, n), Paired(2, n), Paired(n)
        self.answered, self.own = Paired(n, classes, dtype=torch.float32), Paired(3 * n + 1)
        self.slopes, self.off, self.gains = Paired(2, n), Paired(n), Paired(n)
        self.losses, self.weight = np.empty(n, np.float32), Paired(1)
        self.more, self.slope, self.turned = Paired(2, 2), Paired(2), self.inputs.tensor.T


def _dealt(n: int) -> float:
    """Return the share of the weight that n examples redistribute."""
    return -math.expm1(n * math.log1p(-SHARE))


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
    found = scaled_by(classes, probabilities, predicted, answer)
    return (answer[2] * found.scaled + (1.0 - answer[2]) * found.given).float()


class Scaled(NamedTuple):
    """A batch after Platt scaling, float64."""

    given: Tensor
    """Probabilities of the mixture, [n, classes]."""
    watched: Tensor
    """The class whose log odds are x, int64 [n]."""
    odds: Tensor
    """x, [n]."""
    platt: Tensor
    """q, [n], before it is kept where the predicted class stays the likeliest."""
    scaled: Tensor
    """Probabilities after scaling, [n, classes]."""


def scaled_by(classes: int, probabilities: Tensor, predicted: Tensor, answer: Tensor) -> Scaled:
    """Return a batch after Platt scaling; the arguments are those of `calibrated`."""
    given = probabilities.double()
    others = given.scatter(1, predicted[:, None], 0.0)
    rest, second = others.sum(dim=1), others.amax(dim=1)
    top = given.gather(1, predicted[:, None]).squeeze(1)
    odds = top.clamp(min=TINY).log() - rest.clamp(min=TINY).log()
    odds = odds.clamp(-MOST_ODDS, MOST_ODDS)
    watched, is_watched = predicted, torch.ones_like(predicted, dtype=torch.bool)
    if classes == 2:
        watched, is_watched = torch.ones_like(predicted), predicted == 1
        odds = torch.where(is_watched, odds, -odds)
    platt = torch.sigmoid(answer[0] * odds + answer[1])
    kept = torch.maximum(
        torch.where(is_watched, platt, 1.0 - platt), second / (second + rest).clamp(min=TINY)
    )
    spread = others * ((1.0 - kept) / rest.clamp(min=TINY))[:, None]
    whole = spread.scatter(1, predicted[:, None], kept[:, None])
    return Scaled(given, watched, odds, platt, torch.where(rest[:, None] > TINY, whole, given))
