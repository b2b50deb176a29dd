"""Losses: what the experts of a pool answer, how an answer is judged, and how answers are mixed.

A loss is a value without state; what it has learned about the stream is in tensors that the pool
holds for it (`Loss.fresh`). Every method is a function of tensors without a host read, and can be
traced. A model's outputs come as [K, out, n], examples last, as `funnel.pool.backprop` keeps them.

| loss | outputs | an answer |
|---|---|---|
| `CrossEntropy` | a logit for each class | probabilities of the classes |
| `Binary` | one | probabilities of two classes |
| `Gaussian` | one | mean and standard deviation of a number |
| `Pinball` | one for each quantile | the quantiles of a number, ascending |

Experts are weighed by their losses in Fixed Share (`funnel.pool.mixing`), whose bound holds for
losses that are -log of a probability or density, so of the first three. The pinball loss is convex:
the loss of a mean of answers is at most the mean of their losses, and the weights are those of
exponential weighting [N. Littlestone, M. K. Warmuth, 'The weighted majority algorithm', 1994].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from funnel.pool import deviation, mixing, persistence
from funnel.tensorlists import weighted

Held = Mapping[str, Tensor]
"""Tensors that a loss has learned from a stream, by name."""

HUBER = 3.0
"""Standard deviations beyond which an error moves an expert no further."""
KNEE = 0.3
"""Deviations at which the loss of an error begins to grow linearly."""
REACH = 6.0
"""Standard deviations of all numbers, around their mean, beyond which no answer goes."""
MEMORY = 300.0
"""Examples that running means of errors remember."""
LEAST_DEVIATION = 1e-3
"""Least standard deviation of an answer, in standardized units."""
NORMAL_LOSS = 0.3
"""Pinball loss of the quantiles of a normal distribution, in its deviations, about."""
SOFTNESS = 0.05
"""Width over which the slope of the pinball loss turns, in standardized units."""


class Judged(NamedTuple):
    """A batch of n examples, judged for K experts."""

    answers: Tensor
    """[K, A, n]; there may be one more, which is of no expert and is mixed with theirs."""
    losses: Tensor
    """Losses of the answers, [K, n]."""
    error: Tensor
    """Gradients of the mean loss by the outputs, [K, out, n]."""
    summary: Tensor | None
    """The argument of `Loss.learn`; None for a loss that learns nothing."""


class Loss(Protocol):
    """It decides what experts answer, how an answer is judged, and how answers are mixed."""

    limits_steps: ClassVar[bool]
    """True if the error is the distance to the label, beyond which no step may take an output."""

    def fresh(self, experts: int, device: torch.device) -> dict[str, Tensor]:
        """Return what the loss has learned before the first batch, by name."""
        ...

    def judge(
        self, held: Held, outputs: Tensor, labels: Tensor, importance: Tensor | None = None
    ) -> Judged:
        """Judge a batch.

        Args:
            held: what the loss has learned.
            outputs: [K, out, n]; they may be overwritten.
            labels: [n], int64 for classes, fp32 for numbers.
            importance: weights of the examples, fp32 [n]; None for 1. Losses are not weighted.
        """
        ...

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        """Return labels [n] as `error_` takes them, fp32 [outputs, n] or [1, n]."""
        ...

    def error_(self, held: Held, outputs: Tensor, targets: Tensor, own: slice) -> Tensor:
        """Return the gradient of each example's loss by the outputs of some experts.

        Args:
            held: what the loss has learned.
            outputs: [own, out, n]; they are overwritten.
            targets: as `targets` returned them.
            own: which experts.
        """
        ...

    def answers(self, held: Held, outputs: Tensor) -> Tensor:
        """Return the answers of K experts, [K, n, A], from outputs [K, n, out]."""
        ...

    def mixed(self, log_weights: Tensor, answers: Tensor, healthy: Tensor, held: Held) -> Tensor:
        """Return the mixture's answers, [n, A], always finite.

        Args:
            log_weights: [K].
            answers: [K, n, A], of any values where an expert is not healthy.
            healthy: bool [K], or [K, n].
            held: what the loss has learned.
        """
        ...

    def completed(
        self, held: Held, summary: Tensor | None, mixed: Tensor, labels: Tensor,
        importance: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """Return the summary of a batch with what the mixture's answers add to it.

        Args:
            held: what the loss has learned.
            summary: as `judge` returned it.
            mixed: the mixture's answers, [n, A].
            labels: [n].
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        ...

    def mixed_losses(
        self, log_weights: Tensor, losses: Tensor, healthy: Tensor, mixed: Tensor, held: Held,
        labels: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the losses of the mixture, [n]; infinite if no expert is healthy.

        Args:
            log_weights: [K].
            losses: of the experts, [K, n].
            healthy: bool [K].
            mixed: the mixture's answers, [n, A].
            held: what the loss has learned.
            labels: [n].
        """
        ...

    def chosen(self, outputs: Tensor, mixed: Tensor) -> Tensor:
        """Return one label for each example: int64 classes, or fp32 numbers, [n].

        Args:
            outputs: of the experts, [K, n, out].
            mixed: the mixture's answers, [n, A].
        """
        ...

    def ignorance(self, held: Held, labels: Tensor, log_classes: Tensor | float) -> Tensor | float:
        """Return the loss of a model that knows nothing, of each example [n] or of all.

        Args:
            held: what the loss has learned.
            labels: [n].
            log_classes: log C of the classes that are open, in nats, if there are classes.
        """
        ...

    def learn(self, held: Held, summary: Tensor | None, n: Tensor | float, learned: Tensor) -> None:
        """Learn from a batch, in place.

        Args:
            held: what the loss has learned.
            summary: as `judge` returned it.
            n: number of examples, or the sum of their weights.
            learned: which experts learn the batch, bool [K].
        """
        ...


class NumericLoss(Loss, Protocol):
    """A loss of standardized numbers."""

    has_deviation: bool
    """True if the last column of an answer is a standard deviation."""

    def rescale(self, held: Held, ratio: Tensor, shift: Tensor) -> None:
        """Let what it has learned be of numbers in another unit, in place.

        Args:
            held: what the loss has learned.
            ratio: of the old unit to the new one, 0-dim.
            shift: what a number of 0 in the old unit is in the new one, 0-dim.
        """
        ...

    def ignorant(self, held: Held) -> Tensor:
        """Return the answer of a model that knows nothing, without a deviation, fp32 [1, A']."""
        ...

    def distances(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return how far off answers are, [n], not below 0, in the unit in which they are.

        Args:
            answers: [n, A], or one for all, [1, A]; a deviation in them is not looked at.
            labels: [n].
        """
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """-log of the probability of the label, in nats; probabilities are the softmax of logits.

    With ``no_change`` and several experts, the last known label is an answer, too, and is mixed
    with theirs (`funnel.pool.persistence`); the loss learns what that answer needs, and no more.
    """

    limits_steps: ClassVar[bool] = False
    no_change: bool = False
    can_close: bool = True
    """True if classes can be closed (`funnel.pool.classes`)."""

    def fresh(self, experts: int, device: torch.device) -> dict[str, Tensor]:
        """Implement `Loss.fresh`."""
        return persistence.fresh(device) if self.no_change and experts > 1 else {}

    def judge(
        self, held: Held, outputs: Tensor, labels: Tensor, importance: Tensor | None = None
    ) -> Judged:
        """Implement `Loss.judge`."""
        log_odds = outputs.log_softmax(dim=1)
        losses = -log_odds.gather(1, labels.expand(len(log_odds), 1, -1))[:, 0]
        probabilities = log_odds.exp_()
        error = probabilities.clone().sub_(one_hot(labels, probabilities.shape[1]))
        error = error.div_(len(labels))
        found = self.joined(held, outputs[..., 0], probabilities, losses, labels, importance)
        return Judged(found.answers, found.losses, error, found.summary)

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        """Return the labels as probabilities of 0 and 1."""
        return one_hot(labels, outputs)

    def error_(self, held: Held, outputs: Tensor, targets: Tensor, own: slice) -> Tensor:
        """Implement `Loss.error_`."""
        return outputs.softmax(dim=1).sub_(targets)

    def answers(self, held: Held, outputs: Tensor) -> Tensor:
        """Implement `Loss.answers`."""
        return self._with_no_change(held, outputs, outputs.softmax(dim=-1))

    def joined(
        self, held: Held, outputs: Tensor, answers: Tensor, losses: Tensor, labels: Tensor,
        importance: Tensor | None,
    ) -> persistence.Joined:  # fmt: skip
        """Join the answer of no change to those of experts, if it is held.

        Args:
            held: what the loss has learned.
            outputs: of the experts for one example, [K, C].
            answers: of the experts, [K, C, n].
            losses: of the experts, [K, n].
            labels: int64 [n].
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        return persistence.joined(
            held, outputs, self.can_close, answers, losses, labels, importance
        )

    def _with_no_change(self, held: Held, outputs: Tensor, answers: Tensor) -> Tensor:
        """Return answers [K, n, C], and that of no change after them if it is held."""
        if persistence.LAST not in held:
            return answers
        one = outputs[:, :1].flatten(0, 1)
        row = persistence.chances(held[persistence.LAST], one, self.can_close)
        return torch.cat([answers, row.expand_as(answers[:1])])

    def mixed(self, log_weights: Tensor, answers: Tensor, healthy: Tensor, held: Held) -> Tensor:
        """Implement `Loss.mixed`; probabilities are uniform where no expert is healthy."""
        if healthy.dim() == 1:
            return mixing.mixed(log_weights, answers, healthy)
        return mixing.mixed_each(log_weights, answers, healthy).clamp(max=1.0)  # rounded weights

    def completed(
        self, held: Held, summary: Tensor | None, mixed: Tensor, labels: Tensor,
        importance: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """Implement `Loss.completed`: it adds nothing."""
        return summary

    def mixed_losses(
        self, log_weights: Tensor, losses: Tensor, healthy: Tensor, mixed: Tensor, held: Held,
        labels: Tensor,
    ) -> Tensor:  # fmt: skip
        """Implement `Loss.mixed_losses`."""
        return mixing.mixed_losses(log_weights, losses, healthy)

    def chosen(self, outputs: Tensor, mixed: Tensor) -> Tensor:
        """Implement `Loss.chosen`. A single expert's probabilities may be equal where its logits
        are not."""
        return (outputs[0] if len(outputs) == 1 else mixed).argmax(dim=1)

    def ignorance(self, held: Held, labels: Tensor, log_classes: Tensor | float) -> Tensor | float:
        """Return log C: every class is as likely."""
        return log_classes

    def learn(self, held: Held, summary: Tensor | None, n: Tensor | float, learned: Tensor) -> None:
        """Implement `Loss.learn`."""
        if summary is not None:
            persistence.learn(held, summary, learned.any())


class Binary(CrossEntropy):
    """Cross-entropy of two classes from one output u, as the softmax of (-u, u).

    A softmax of two logits that start equal keeps them opposite. One of the two, with the
    gradient by it alone, is half the memory and work, and takes the same steps up to rounding.
    """

    def judge(
        self, held: Held, outputs: Tensor, labels: Tensor, importance: Tensor | None = None
    ) -> Judged:
        """Implement `Loss.judge`."""
        both = torch.cat([-outputs, outputs], dim=1)
        found = super().judge(held, both, labels, importance)
        return found._replace(error=found.error[:, 1:].contiguous())

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        """Return the labels 0 and 1, fp32 [1, n]."""
        return labels[None].float()

    def error_(self, held: Held, outputs: Tensor, targets: Tensor, own: slice) -> Tensor:
        """Implement `Loss.error_`."""
        return outputs.mul_(2.0).sigmoid_().sub_(targets)

    def answers(self, held: Held, outputs: Tensor) -> Tensor:
        """Implement `Loss.answers`."""
        both = torch.cat([-outputs, outputs], dim=-1)
        return self._with_no_change(held, both, both.softmax(dim=-1))

    def chosen(self, outputs: Tensor, mixed: Tensor) -> Tensor:
        """Implement `Loss.chosen`."""
        return (outputs[0, :, 0] > 0).long() if len(outputs) == 1 else mixed.argmax(dim=1)


@dataclass(frozen=True)
class Gaussian:
    """-log of a density around the output, in nats, for standardized numbers.

    The density is normal within KNEE standard deviations, and has exponential tails beyond
    [P. Huber, 'Robust estimation of a location parameter', 1964]. All experts are judged in one
    deviation, that of the best of them: with their own ones an expert would win by a deviation that
    is out of date. The gradient is the error itself, within ± HUBER of the expert's own running
    deviation σ, so that a wild number moves an expert no further than one at HUBER σ. Answers stay
    within REACH deviations of the mean of the numbers: a mixture of means, unlike one of
    probabilities, follows an expert that has diverged however little weight it has.

    Where there are several experts, the last known number is an answer, too, and is mixed with
    theirs: streams are often such that nothing predicts better than no change.

    It learns ``mean``, [1], of the numbers; ``variance``, [K + 1], or [K + 2] with the last number,
    of the errors of all answers and, last, of the numbers around their mean; ``own``, [1], of the
    errors of the mixture; ``last``, [1], unless there is one expert alone; and ``seen``, 0-dim, the
    examples so far. With ``is_quick`` and several experts, the mixture's deviation follows errors
    that shrink or grow fast, and what `funnel.pool.deviation` needs for it is learned, too. With
    ``follows_jumps`` it follows, after one large batch, errors that have become many times larger,
    and all deviations are blank again where the unit has done so.
    """

    has_deviation: ClassVar[bool] = True
    limits_steps: ClassVar[bool] = True
    is_quick: bool = False
    follows_jumps: bool = False

    def rescale(self, held: Held, ratio: Tensor, shift: Tensor) -> None:
        """Implement `NumericLoss.rescale`."""
        held["variance"].mul_(ratio.square()).clamp_(min=LEAST_DEVIATION**2)
        for name in ("mean", "last"):
            if name in held:
                held[name].mul_(ratio).add_(shift)
        far = is_far(ratio, shift)
        held["mean"].masked_fill_(far, 0.0)
        blank = far | deviation.jumped(ratio) if self.follows_jumps else far
        held["variance"].masked_fill_(blank, 1.0)
        for name in ("own", deviation.QUICK):
            if name in held:
                found = held[name].mul_(ratio.square()).clamp_(min=LEAST_DEVIATION**2)
                found.masked_fill_(blank, 1.0)

    def ignorant(self, held: Held) -> Tensor:
        """Return the mean of numbers, as `NumericLoss.ignorant` says."""
        return held["mean"][:, None]

    def distances(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return absolute errors of the mean; as `NumericLoss.distances` says."""
        return (answers[:, 0] - labels).abs()

    def fresh(self, experts: int, device: torch.device) -> dict[str, Tensor]:
        """Implement `Loss.fresh`: numbers are standardized, so mean 0 and variance 1."""
        last = {"last": torch.zeros(1, device=device)} if experts > 1 else {}
        own = torch.ones(1, device=device)
        quick = deviation.fresh(own) if self.is_quick and experts > 1 else {}
        return (
            quick
            | {
                "mean": torch.zeros(1, device=device),
                "variance": torch.ones(experts + len(last) + 1, device=device),
                "own": own,
                "seen": torch.zeros((), device=device),
            }
            | last
        )

    def judge(
        self, held: Held, outputs: Tensor, labels: Tensor, importance: Tensor | None = None
    ) -> Judged:
        """Implement `Loss.judge`."""
        deviation = held["variance"].sqrt()[:-1, None, None]
        bound = HUBER * deviation
        centers = self._centers(held, outputs)
        missed = centers - labels
        unit = self._unit(held)
        losses = _gaussian(missed / unit, unit)[:, 0]
        answers = torch.cat([centers, deviation.expand_as(centers)], dim=1)
        squares = missed.clamp(-bound, bound)[:, 0].square()
        around = (labels - held["mean"]).clamp(*_range(held["variance"][-1]))
        near = held["mean"] + around
        means = _means(torch.cat([squares, torch.stack([around.square(), near])]), importance)
        last = (
            persistence.last_of(labels, importance, held["last"]) if "last" in held else means[:0]
        )
        bound = bound[: len(outputs)]
        error = (outputs - labels).clamp_(-bound, bound).div_(len(labels))
        return Judged(answers, losses, error, torch.cat([means, last]))

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        """Return the numbers, fp32 [1, n]."""
        return labels[None]

    def error_(self, held: Held, outputs: Tensor, targets: Tensor, own: slice) -> Tensor:
        """Implement `Loss.error_`."""
        bound = HUBER * held["variance"][:-1].sqrt()[own, None, None]
        return outputs.sub_(targets).clamp_(-bound, bound)

    def answers(self, held: Held, outputs: Tensor) -> Tensor:
        """Implement `Loss.answers`: mean and standard deviation."""
        deviation = held["variance"][:-1].sqrt()[:, None, None]
        centers = self._centers(held, outputs)
        return torch.cat([centers, deviation.expand_as(centers)], dim=-1)

    def _unit(self, held: Held) -> Tensor:
        """Return the deviation in which all errors are judged, 0-dim: that of the best."""
        return held["variance"][:-1].min().sqrt()

    def _centers(self, held: Held, outputs: Tensor) -> Tensor:
        """Return the outputs of the experts and the last number if it is kept, within REACH.

        Args:
            held: what the loss has learned.
            outputs: [K, ...]; what is not finite stays so.
        """
        reach = REACH * held["variance"][-1].sqrt()
        if "last" in held:
            outputs = torch.cat([outputs, held["last"].expand_as(outputs[:1])])
        return outputs.sub(held["mean"]).clamp_(-reach, reach).add_(held["mean"])

    def mixed(self, log_weights: Tensor, answers: Tensor, healthy: Tensor, held: Held) -> Tensor:
        """Implement `Loss.mixed`: the weighted mean, and the running deviation of the mixture's own
        errors; 0 and 1 where no expert is healthy.

        The deviation of the mixed densities would be too large: sharing gives answers that are far
        off a little weight, and the variance goes by their squared distance.
        """
        if len(answers) == 1:
            whole = healthy[0, :, None] if healthy.dim() == 2 else healthy[0]
            return torch.where(whole, answers[0], answers.new_tensor([0.0, 1.0]))
        weights, known = _among(log_weights, answers, healthy)
        center = (weights * known[..., 0]).sum(dim=0)
        found = torch.stack([center, self._deviation(held).expand_as(center)], dim=-1)
        return torch.where(weights.sum(dim=0)[..., None] > 0.0, found, found.new_tensor([0.0, 1.0]))

    def _deviation(self, held: Held) -> Tensor:
        """Return the running deviation of the mixture's errors, [1]."""
        if deviation.QUICK not in held:
            return held["own"].sqrt()
        return deviation.deviation(held["own"], held[deviation.QUICK], held[deviation.TRUST])

    def completed(
        self, held: Held, summary: Tensor | None, mixed: Tensor, labels: Tensor,
        importance: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """Implement `Loss.completed`: it adds the squared error of the mixture, within the range of
        each of its running means."""
        assert summary is not None, "a summary of the errors is needed"
        error, found = mixed[:, 0] - labels, [summary]
        for name in ("own", deviation.QUICK):
            if name in held:
                bound = deviation.reach(error, held[name][0], self.follows_jumps)
                missed = error.clamp(-bound, bound)
                found.append(_means(missed.square()[None], importance))
        return torch.cat(found)

    def mixed_losses(
        self, log_weights: Tensor, losses: Tensor, healthy: Tensor, mixed: Tensor, held: Held,
        labels: Tensor,
    ) -> Tensor:  # fmt: skip
        """Implement `Loss.mixed_losses`."""
        return mixing.mixed_losses(log_weights, losses, healthy)

    def chosen(self, outputs: Tensor, mixed: Tensor) -> Tensor:
        """Implement `Loss.chosen`: the mean."""
        return mixed[:, 0]

    def ignorance(self, held: Held, labels: Tensor, log_classes: Tensor | float) -> Tensor | float:
        """Return the losses of the mean of all numbers so far, [n]."""
        deviation = self._unit(held)
        return _gaussian((labels - held["mean"]) / deviation, deviation)

    def learn(self, held: Held, summary: Tensor | None, n: Tensor | float, learned: Tensor) -> None:
        """Implement `Loss.learn`."""
        assert summary is not None, "a summary of the errors is needed"
        some, count = learned.any(), len(held["variance"])
        rate = _rate(held["seen"], n) * some
        each = torch.cat([learned, some.expand(count - len(learned))])
        variance = held["variance"].lerp(summary[:count], rate).clamp_(min=LEAST_DEVIATION**2)
        held["variance"].copy_(torch.where(each, variance, held["variance"]))
        held["mean"].lerp_(summary[count : count + 1], rate)
        squares = summary[-1:]
        if deviation.QUICK in held:
            squares, more = summary[-2:-1], squares
            names = ("own", deviation.QUICK, deviation.TRUST)
            slow, quick, trust = (held[name] for name in names)
            both = (squares, more)
            new, weight = deviation.followed(slow, quick, trust, both, n, held["seen"])
            quick.copy_(torch.where(some, new.clamp(min=LEAST_DEVIATION**2), quick))
            trust.copy_(torch.where(some, weight, trust))
        own = held["own"].lerp(squares, rate).clamp_(min=LEAST_DEVIATION**2)
        held["own"].copy_(own)
        if "last" in held:
            held["last"].copy_(torch.where(some, summary[count + 1 : count + 2], held["last"]))
        held["seen"].add_(n * learned.any())


@dataclass(frozen=True)
class Pinball:
    """The mean over quantiles of the pinball loss, for standardized numbers.

    An output q for the quantile τ loses max(τ (y - q), (τ - 1) (y - q)) [R. Koenker, G. Bassett,
    'Regression quantiles', Econometrica 46, 1978]; its slope turns within SOFTNESS. Answers are
    the outputs in ascending order, which loses no more than the outputs as they are
    [V. Chernozhukov, I. Fernández-Val, A. Galichon, 'Quantile and probability curves without
    crossing', Econometrica 78, 2010]. Losses are in units of the mean loss of the quantiles of all
    numbers so far, so that a model that knows nothing loses about 1.

    It learns ``floor``, [Q], these quantiles; ``unit``, 0-dim, their mean loss; and ``seen``,
    0-dim, the examples so far.
    """

    quantiles: tuple[float, ...]
    """Ascending, each within (0, 1)."""
    has_deviation: ClassVar[bool] = False
    limits_steps: ClassVar[bool] = False

    def rescale(self, held: Held, ratio: Tensor, shift: Tensor) -> None:
        """Implement `NumericLoss.rescale`."""
        far, floor = is_far(ratio, shift), held["floor"]
        floor.copy_(torch.where(far, self._normal(floor), floor * ratio + shift))
        held["unit"].mul_(ratio).clamp_(min=LEAST_DEVIATION).masked_fill_(far, NORMAL_LOSS)

    def ignorant(self, held: Held) -> Tensor:
        """Return the quantiles of numbers, as `NumericLoss.ignorant` says."""
        return held["floor"][None]

    def distances(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return pinball losses; as `NumericLoss.distances` says."""
        return self.pinball(answers.mT, labels)

    def fresh(self, experts: int, device: torch.device) -> dict[str, Tensor]:
        """Implement `Loss.fresh`: the quantiles of a normal distribution."""
        return {
            "floor": self._normal(torch.zeros(0, device=device)),
            "unit": torch.full((), NORMAL_LOSS, device=device),
            "seen": torch.zeros((), device=device),
        }

    def _within(self, held: Held, outputs: Tensor) -> Tensor:
        """Return outputs within REACH deviations of the quantiles of all numbers."""
        reach = held["unit"] * (REACH / NORMAL_LOSS)
        return outputs.clamp(held["floor"][0] - reach, held["floor"][-1] + reach)

    def _normal(self, like: Tensor) -> Tensor:
        """Return the quantiles of a normal distribution, fp32 [Q]."""
        return like.new_tensor([NormalDist().inv_cdf(level) for level in self.quantiles])

    def _levels(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.quantiles)

    def pinball(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over quantiles of the losses, [..., n], of answers [..., Q, n]."""
        missed = labels - answers
        levels = self._levels(answers)[:, None]
        return torch.maximum(levels * missed, (levels - 1.0) * missed).mean(dim=-2)

    def judge(
        self, held: Held, outputs: Tensor, labels: Tensor, importance: Tensor | None = None
    ) -> Judged:
        """Implement `Loss.judge`."""
        answers = self._within(held, outputs).sort(dim=1).values
        losses = self.pinball(answers, labels) / held["unit"]
        floor = held["floor"][:, None]
        below = self._levels(labels)[:, None] - (labels < floor).float()
        mine = self.pinball(floor, labels)[None]
        summary = _means(torch.cat([below, mine]), importance)
        error = self.error_(held, outputs.clone(), labels[None], slice(None))
        return Judged(answers, losses, error.div_(len(labels)), summary)

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        """Return the numbers, fp32 [1, n]."""
        return labels[None]

    def error_(self, held: Held, outputs: Tensor, targets: Tensor, own: slice) -> Tensor:
        """Implement `Loss.error_`."""
        levels = self._levels(outputs)[:, None]
        return outputs.sub_(targets).div_(SOFTNESS).sigmoid_().sub_(levels)

    def answers(self, held: Held, outputs: Tensor) -> Tensor:
        """Implement `Loss.answers`."""
        return self._within(held, outputs).sort(dim=-1).values

    def mixed(self, log_weights: Tensor, answers: Tensor, healthy: Tensor, held: Held) -> Tensor:
        """Implement `Loss.mixed`: weighted means, which ascend as the answers do; 0 where no expert
        is healthy."""
        if len(answers) == 1:
            whole = healthy[0, :, None] if healthy.dim() == 2 else healthy[0]
            return torch.where(whole, answers[0], 0.0)
        weights, known = _among(log_weights, answers, healthy)
        return (weights[..., None] * known).sum(dim=0)

    def completed(
        self, held: Held, summary: Tensor | None, mixed: Tensor, labels: Tensor,
        importance: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """Implement `Loss.completed`: it adds nothing."""
        return summary

    def mixed_losses(
        self, log_weights: Tensor, losses: Tensor, healthy: Tensor, mixed: Tensor, held: Held,
        labels: Tensor,
    ) -> Tensor:  # fmt: skip
        """Implement `Loss.mixed_losses`."""
        found = self.pinball(mixed.mT, labels) / held["unit"]
        return torch.where(healthy.any(), found, math.inf)

    def chosen(self, outputs: Tensor, mixed: Tensor) -> Tensor:
        """Implement `Loss.chosen`: the middle quantile."""
        return mixed[:, len(self.quantiles) // 2]

    def ignorance(self, held: Held, labels: Tensor, log_classes: Tensor | float) -> Tensor | float:
        """Return the losses of the quantiles of all numbers so far, [n]."""
        return self.pinball(held["floor"][:, None], labels) / held["unit"]

    def learn(self, held: Held, summary: Tensor | None, n: Tensor | float, learned: Tensor) -> None:
        """Implement `Loss.learn`."""
        assert summary is not None, "a summary of the errors is needed"
        rate = _rate(held["seen"], n) * learned.any()
        moved = held["floor"] + 2.0 * rate * summary[:-1]
        held["floor"].copy_(moved.sort().values)
        held["unit"].lerp_(summary[-1].clamp(min=LEAST_DEVIATION), rate)
        held["seen"].add_(n * learned.any())


CROSS_ENTROPY = CrossEntropy()


def is_far(ratio: Tensor, shift: Tensor) -> Tensor:
    """Return whether a unit has moved so far that numbers of the old one lie beyond REACH, bool.

    Outputs that were learned for them say nothing about the new ones, which begin as blank ones do.

    Args:
        ratio: of the old unit to the new one, 0-dim.
        shift: what a number of 0 in the old unit is in the new one, 0-dim.
    """
    return (shift.abs() > REACH) | (ratio > REACH)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return labels [n] as probabilities of 0 and 1, fp32 [classes, n]."""
    targets = torch.zeros(classes, len(labels), device=labels.device)
    return targets.scatter_(0, labels[None], 1.0)


def _gaussian(z: Tensor, deviation: Tensor) -> Tensor:
    """Return -log density, up to a constant, of z = e / σ; its tails are exponential."""
    size = z.abs()
    tail = KNEE * (size - 0.5 * KNEE)
    return torch.where(size <= KNEE, 0.5 * z.square(), tail) + deviation.log() + _HALF_LOG_TAU


_HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


def _range(variance: Tensor) -> tuple[Tensor, Tensor]:
    bound = HUBER * variance.sqrt()
    return -bound, bound


def _means(values: Tensor, importance: Tensor | None) -> Tensor:
    """Return the weighted means over examples of values [m, n], fp32 [m]; 0 without weight."""
    if importance is None:
        return values.mean(dim=-1)
    return weighted(values, importance).sum(dim=-1) / importance.sum().clamp(min=1e-12)


def _rate(seen: Tensor, n: Tensor | float) -> Tensor:
    """Return the weight of a batch in running means: plain averages up to MEMORY examples."""
    return n / (seen.clamp(max=MEMORY) + n).clamp(min=1.0)


def _among(log_weights: Tensor, answers: Tensor, healthy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of the healthy experts, [K, 1] or [K, n], summing to 1 or, where none is
    healthy, to 0; and answers [K, n, A] with 0 for the others."""
    each = healthy if healthy.dim() == 2 else healthy[:, None]
    weights = torch.where(each, log_weights.softmax(dim=0)[:, None], 0.0)
    weights = weights / weights.sum(dim=0).clamp(min=1e-30)
    return weights, torch.where(each[..., None], answers, 0.0)
