"""Calibration of the mixture's probabilities: online Platt scaling, hedged by what it is given.

Let x be the log odds of class 1 with two classes, and of the predicted class with more, and t
whether that class came. Platt scaling [J. Platt, 'Probabilistic outputs for support vector
machines', 1999] answers q = 1 / (1 + exp(-a x - b)). Online [C. Gupta, A. Ramdas, 'Online Platt
scaling with calibeating', ICML 2023], a batch takes one Newton step, which has no step size:

    A ← A + Σ q (1 - q) [x, 1]ᵀ [x, 1],   [a, b] ← [a, b] - A⁻¹ Σ (q - t) [x, 1],

from A = PRIOR · I, a = 1 and b = 0, with a and b kept within bounds. The other classes share 1 - q
in their old proportions. q is kept where the predicted class stays the likeliest, so calibration
never changes a label.

Where labels are wrong in a share of the rows, however sure the model may be, no line in the log
odds is right: with a third input, 3 tanh(2 x), whose coefficient c begins at 0, q can level off.
Then no coefficient moves by more than MOST_STEP in a batch, since after a shift a whole batch may
be wrong. Where that step would take c to 0 or below, c is 0, and a and b take the step above: so q
ascends with x, and the third input costs nothing where a line is right.

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
from service.fold.scoring.classification import Scores, loops_for

PRIOR = 30.0
"""Examples at even odds, or so, that a = 1 and b = 0 count as."""
SLOPES, OFFSETS = (0.25, 4.0), (-4.0, 4.0)
"""Bounds of a and b."""
LEAST_SLOPE, MOST_LEVEL, MOST_STEP = 0.05, 4.0, 0.25
"""With a third input, the least a, the largest c, and the largest step of a coefficient."""
HEIGHT, STEEPNESS = 3.0, 2.0
"""The third input is HEIGHT tanh(STEEPNESS x)."""
MOST_ODDS = 15.0
"""Log odds beyond which probabilities are taken as equally certain."""
RATE, SHARE = 0.2, 2e-4
"""η of Fixed Share, in 1 / nat, and the share of the weight redistributed per example."""
TINY = 1e-30
"""Least probability that differs from 0 here."""
EDGE = 1e-12
"""Least distance of w from 0 and 1."""
BOUNDS = np.array([SLOPES, OFFSETS])
LEVEL_BOUNDS = np.array([LEAST_SLOPE, SLOPES[1], *OFFSETS, MOST_LEVEL, MOST_STEP, SLOPES[0]])
LOG_TINY = float(torch.tensor(TINY, dtype=torch.float64).log())


class Calibration:
    """The coefficients, and the weight of their answer.

    Args:
        classes: number of classes that are open.
        device: where probabilities will be.
        room: number of classes that there is room for; None for those that are open.
        levels: whether there is the third input.
    """

    def __init__(
        self, classes: int, device: torch.device, room: int | None = None, levels: bool = False
    ) -> None:
        self.classes, self._levels = classes, levels
        self.scores = Scores(classes, device, room)
        """Scores of the calibrated probabilities; the learner has those of the ones it is given."""
        start = [1.0, 0.0, 0.5, 0.0] if levels else [1.0, 0.0, 0.5]
        self.answer = torch.tensor(start, dtype=torch.float64, device=device)
        """a, b, w, and c where there is the third input."""
        self.curvature = PRIOR * torch.eye(len(start) - 1, dtype=torch.float64, device=device)
        """A."""
        self._room: Room | None = None

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
            fresh = Calibration(classes, self.answer.device, levels=self._levels)
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
        weight = self.answer[2]
        answered = weight * found.scaled + (1.0 - weight) * found.given
        each = torch.stack([answered, found.scaled, found.given])
        logs = each.gather(2, labels[:, None].expand(3, -1, 1)).squeeze(2).clamp(min=TINY).log()
        self.scores.update(answered.float(), predicted, labels, -logs[0].float(), finite)
        off = weighted(found.platt - (labels == found.watched).double(), importance)
        slope = weighted(found.platt * (1.0 - found.platt), importance)
        inputs = torch.stack([found.odds, torch.ones_like(slope)])
        if found.level is not None:
            inputs = torch.cat([inputs, found.level[None]])
        curvature = self.curvature + (slope * inputs) @ inputs.T
        evidence = (
            torch.logit(weight, eps=EDGE) + RATE * weighted(logs[1] - logs[2], importance).sum()
        )
        dealt = _dealt(len(labels))
        own = self.answer if self._levels else self.answer[:2]
        step = _levelled if self._levels else _line
        a, b, *rest = step(own, curvature, inputs @ off)
        new = torch.stack([a, b, (1.0 - dealt) * torch.sigmoid(evidence) + dealt / 2, *rest])
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
        room = self._room
        if room is None or room.shape != probabilities.shape:
            n, classes = probabilities.shape
            room = self._room = Room(n, classes, self.answer, self.curvature)
        given, guess, label = probabilities.numpy(), predicted.numpy(), labels.numpy()
        weights = room.ones if importance is None else importance.numpy()
        is_binary = self.classes == 2
        compiled.split(given, guess, *room.for_split)
        if room.classes > 2:
            torch.sum(room.others, dim=1, out=room.rest)
        torch.log(room.two, out=room.logs)
        compiled.scale(guess, is_binary, *room.for_scale)
        if self._levels:
            _add_level(room.inputs, float(self.answer[3]), room.platt)
        room.platt.sigmoid_()
        compiled.answer_all(given, guess, label, weights, is_binary, *room.for_answer_all)
        room.own.log_()
        if finite:
            torch.linalg.vector_norm(room.answered, dim=1, out=room.norms)
        shown = (*self.scores.arrays, guess, label, weights)
        compiled.compare(*shown, bool(finite), *room.for_compare)
        if keep:
            torch.mm(room.slopes, room.turned, out=room.more)
            torch.mv(room.inputs, room.off, out=room.slope)
            room.weights[0] = room.odds[-1] + RATE * room.gains.sum().item()
            room.weight.sigmoid_()
            take = compiled.take_level_step if self._levels else compiled.take_step
            take(*room.for_take_step)


def _line(own: Tensor, curvature: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
    """Return a and b after a Newton step."""
    aa, ab, _, bb = curvature.flatten().unbind()
    (a, b), (d_a, d_b) = own.unbind(), slope.unbind()
    det = aa * bb - ab * ab
    return (
        (a - (bb * d_a - ab * d_b) / det).clamp(*SLOPES),
        (b - (aa * d_b - ab * d_a) / det).clamp(*OFFSETS),
    )


def _levelled(own: Tensor, curvature: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
    """Return a, b and c after a Newton step, by Cramer's rule; where c is 0, that of `_line`."""
    aa, ab, ac, _, bb, bc, _, _, cc = curvature.flatten().unbind()
    (a, b, _, c), (d_a, d_b, d_c) = own.unbind(), slope.unbind()
    of_aa, of_ab, of_ac = bb * cc - bc * bc, ac * bc - ab * cc, ab * bc - ac * bb
    of_bb, of_bc, of_cc = aa * cc - ac * ac, ab * ac - aa * bc, aa * bb - ab * ab
    det = aa * of_aa + ab * of_ab + ac * of_ac
    step_a = (of_aa * d_a + of_ab * d_b + of_ac * d_c) / det
    step_b = (of_ab * d_a + of_bb * d_b + of_bc * d_c) / det
    step_c = (of_ac * d_a + of_bc * d_b + of_cc * d_c) / det
    most = torch.maximum(torch.maximum(step_a.abs(), step_b.abs()), step_c.abs())
    share = (MOST_STEP / most).clamp(max=1.0)
    level = c - share * step_c
    is_level = level > 0.0
    line = _line(own[:2], curvature[:2, :2], slope[:2])
    return (
        torch.where(is_level, (a - share * step_a).clamp(LEAST_SLOPE, SLOPES[1]), line[0]),
        torch.where(is_level, (b - share * step_b).clamp(*OFFSETS), line[1]),
        torch.where(is_level, level.clamp(max=MOST_LEVEL), 0.0),
    )


def _add_level(inputs: Tensor, level: float, scaled: Tensor) -> None:
    """Set the third input from the first one, [3, n], and add it times c to what is scaled, [n]."""
    torch.mul(inputs[0], STEEPNESS, out=inputs[2])
    inputs[2].tanh_().mul_(HEIGHT)
    scaled.add_(inputs[2] * level)


class Room:
    """Room for what compiled loops set for a batch of n examples; see `service.fold.scoring.loops`.

    A tensor and its array are one memory. The arguments of each loop are gathered once, as that
    costs more than many a loop.

    Args:
        n: number of examples.
        classes: number of classes.
        answer: of a `Calibration`; changed in place, as is the next.
        curvature: of it.
    """

    def __init__(self, n: int, classes: int, answer: Tensor, curvature: Tensor) -> None:
        self.shape, self.classes = torch.Size((n, classes)), classes
        self.ones = np.ones(n, np.float32)
        self.others, parts = _room(n, classes), _room(3, n)
        self.rest, self.two, self.logs = parts[1], parts[:2], _room(2, n)
        width = len(curvature)
        self.inputs, self.platt = _room(width, n), _room(n)
        self.answered, self.norms = (
            _room(n, classes, dtype=torch.float32),
            _room(n, dtype=torch.float32),
        )
        self.own, self.slopes, self.off = _room(3 * n + 1), _room(width, n), _room(n)
        self.gains, self.weight = _room(n), _room(1)
        self.more, self.slope, self.turned = _room(width, width), _room(width), self.inputs.T
        self.odds, self.weights = self.own.numpy(), self.weight.numpy()
        others, logs, inputs = (t.numpy() for t in (self.others, self.logs, self.inputs))
        answered, platt, off = (t.numpy() for t in (self.answered, self.platt, self.off))
        part, coefficients = parts.numpy(), answer.numpy()
        self.for_split = (others, part)
        self.for_scale = (part, logs, coefficients, TINY, LOG_TINY, MOST_ODDS, inputs, platt)
        self.for_answer_all = (
            others, part, platt, coefficients, TINY, EDGE, inputs, answered, self.odds,
            self.slopes.numpy(), off,
        )  # fmt: skip
        losses = np.empty(n, np.float32)
        self.for_compare = (answered, self.norms.numpy(), self.odds, losses, self.gains.numpy())
        self.for_take_step = (
            coefficients, curvature.numpy(), self.more.numpy(), self.slope.numpy(), self.weights,
            _dealt(n), BOUNDS if width == 2 else LEVEL_BOUNDS,
        )  # fmt: skip


def _room(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    with torch.inference_mode(mode=False):
        return torch.ones(shape, dtype=dtype)


def _dealt(n: int) -> float:
    """Return the share of the weight that n examples redistribute."""
    return -math.expm1(n * math.log1p(-SHARE))


def calibrated(classes: int, probabilities: Tensor, predicted: Tensor, answer: Tensor) -> Tensor:
    """Return calibrated probabilities, fp32 [n, classes]; the predicted class stays the likeliest.

    Args:
        classes: number of classes that are open.
        probabilities: of the mixture, fp32 [n, classes].
        predicted: the likeliest class, int64 [n].
        answer: of a `Calibration`, float64 [3], or [4] with the third input.
    """
    if classes < 2:
        return probabilities
    is_plain = probabilities.is_cpu and probabilities.is_contiguous()
    is_plain &= not (probabilities.requires_grad or torch.compiler.is_compiling())
    if is_plain and (compiled := loops_for(predicted)) is not None:
        return _calibrated_compiled(compiled, classes, probabilities, predicted, answer)
    found = scaled_by(classes, probabilities, predicted, answer)
    return (answer[2] * found.scaled + (1.0 - answer[2]) * found.given).float()


def _calibrated_compiled(
    compiled: ModuleType, classes: int, probabilities: Tensor, predicted: Tensor, answer: Tensor
) -> Tensor:
    """Do the same by compiled loops, bit for bit."""
    (n, width), is_binary = probabilities.shape, classes == 2
    others, parts, answered = _room(n, width), _room(3, n), torch.empty_like(probabilities)
    given, guess, learned = probabilities.numpy(), predicted.numpy(), answer.numpy()
    split = others.numpy(), parts.numpy()
    compiled.split(given, guess, *split)
    if width > 2:
        parts[1] = others.sum(dim=1)
    logs, inputs, platt = parts[:2].log(), _room(len(answer) - 1, n), _room(n)
    scaled = platt.numpy()
    bounds = TINY, LOG_TINY, MOST_ODDS
    odds = inputs.numpy()
    compiled.scale(guess, is_binary, split[1], logs.numpy(), learned, *bounds, odds, scaled)
    if len(answer) > 3:
        _add_level(inputs, float(answer[3]), platt)
    platt.sigmoid_()
    shown = answered.numpy()
    compiled.calibrate(given, guess, is_binary, *split, scaled, learned, TINY, shown)
    return answered


class Scaled(NamedTuple):
    """A batch after Platt scaling, float64."""

    given: Tensor
    """Probabilities of the mixture, [n, classes]."""
    watched: Tensor
    """The class whose log odds are x, int64 [n]."""
    odds: Tensor
    """x, [n]."""
    level: Tensor | None
    """The third input, [n]; None without it."""
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
    level, line = None, answer[0] * odds + answer[1]
    if len(answer) > 3:
        level = (STEEPNESS * odds).tanh() * HEIGHT
        line = line + level * answer[3]
    platt = torch.sigmoid(line)
    kept = torch.maximum(
        torch.where(is_watched, platt, 1.0 - platt), second / (second + rest).clamp(min=TINY)
    )
    spread = others * ((1.0 - kept) / rest.clamp(min=TINY))[:, None]
    whole = spread.scatter(1, predicted[:, None], kept[:, None])
    return Scaled(
        given, watched, odds, level, platt, torch.where(rest[:, None] > TINY, whole, given)
    )
