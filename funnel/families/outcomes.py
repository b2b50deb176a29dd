"""Outcomes: classes or numbers, as all families answer and judge them.

| outcome | outputs of a forest | an answer |
|---|---|---|
| `Classes` | a logit for each class | probabilities of the classes |
| `funnel.families.numbers.Numbers` | one, or one for each quantile | a number, or its quantiles |

Below, A is how many numbers an answer has.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from funnel.families.forests.growing import Slopes, projections
from funnel.families.interface import LEAST_ODDS, MOST_LAGS
from funnel.pool import mixing

Held = Mapping[str, Tensor]
"""Tensors that an outcome has learned for the mixture, by name."""
TINY = torch.finfo(torch.float32).tiny
FLOOR = 1e-3
"""Least probability whose logarithm a stack sees."""
RECENT = 1
"""The half-life whose frequencies trees see."""
RATE = 0.2
"""Share of a leaf's Newton step that is taken."""


class Evidence(NamedTuple):
    """The experts' answers as a stack sees them."""

    values: Tensor
    """fp32 [n, K, A]."""
    center: Tensor | None = None
    """Where these are 0, fp32 [n, A], if that has to be known."""


class Newton(NamedTuple):
    """Sums over a batch of the derivatives of a stack's loss by its weights."""

    hessian: Tensor
    """float64 [..., K, K]."""
    gradient: Tensor
    """Downhill, float64 [..., K]."""


class Outcome(Protocol):
    """It decides what experts answer, how an answer is judged, and how stacks combine answers."""

    device: torch.device
    outputs: int
    """A."""
    lags: int
    """Numbers of the latest labels that trees see."""
    label_type: torch.dtype
    """Type of the labels in memory."""
    constants: int
    """Columns of evidence beyond those of the experts."""
    rate: float
    """How much an example's loss weighs in the Fixed Share of experts (`funnel.pool.mixing`)."""
    leads: float
    """Weight of the leading pool's own answer at first, if it is a part."""
    ridge: float
    """Examples, about, whose evidence it takes to move a weight of a stack away from Fixed
    Share's."""
    fading: float
    """How much faster trees fade than a window says."""
    pools: int
    """1 if the leading pool's own answer is one more expert, and a part of the mixture; or 0."""
    stacks: tuple[int, ...]
    """Shape of the weights of an expert in a stack."""

    def prior(self) -> Tensor:
        """Return the decayed statistics of the labels before the first one, fp32 [p]."""
        ...

    def counted(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Return what examples add to these statistics, fp32 [p]."""
        ...

    def opened(self, prior: Tensor) -> Tensor:
        """Return these statistics after classes were opened."""
        ...

    def rescaled(self, prior: Tensor, ratio: Tensor, shift: Tensor) -> Tensor:
        """Return these statistics of numbers y as those of ratio y + shift."""
        ...

    def recent(self, shares: Tensor) -> Tensor:
        """Return what trees see of the latest labels, fp32 [lags].

        Args:
            shares: frequencies or recent numbers by half-life, fp32 [4, A].
        """
        ...

    def alone(self, prior: Tensor) -> Tensor:
        """Return the answer, fp32 [A], of the statistics alone."""
        ...

    def offset(self, prior: Tensor) -> Tensor:
        """Return the outputs, fp32 [A], that give this answer."""
        ...

    def answers(self, outputs: Tensor) -> Tensor:
        """Return answers [..., A] of outputs [..., A]."""
        ...

    def of_pool(self, experts: Tensor, own: Tensor) -> Tensor:
        """Return the answers that the leading pool gives to the mixture, [K + pools, n, A].

        Args:
            experts: answers of its experts, [K, n, .].
            own: its own, [n, .].
        """
        ...

    def known(self, answers: Tensor) -> Tensor:
        """Return answers [E, n, A] that are finite: an expert that has diverged knows nothing."""
        ...

    def slopes(
        self, labels: Tensor, weights: Tensor, outputs: Tensor, generator: torch.Generator
    ) -> Slopes:
        """Return the derivatives that a tree fits.

        Args:
            labels: [m].
            weights: fp32 [m].
            outputs: of the forest so far, fp32 [m, A].
            generator: draws projections.
        """
        ...

    def voted(self, labels: Tensor, votes: Tensor, prior: Tensor, k: int) -> Tensor:
        """Return the answers of neighbours, fp32 [n, A].

        Args:
            labels: of the neighbours, [n, k], or fewer where there are fewer.
            votes: their weights, fp32, as these.
            prior: statistics of the labels.
            k: neighbours that were asked for.
        """
        ...

    def losses(self, answers: Tensor, labels: Tensor, unit: Tensor) -> Tensor:
        """Return the losses of answers [E, n, A], in nats, [E, n].

        Args:
            answers: of some experts.
            labels: [n].
            unit: in which numbers are judged, 0-dim.
        """
        ...

    def spread(self, prior: Tensor) -> Tensor:
        """Return the unit in which an expert is compared with the statistics, 0-dim."""
        ...

    def ignorance(self, prior: Tensor, labels: Tensor, weights: Tensor) -> float:
        """Return the loss of a batch if nothing but the statistics were known, in nats."""
        ...

    def fresh(self) -> dict[str, Tensor]:
        """Return what it has learned for the mixture before the first batch."""
        ...

    def unit(self, held: Held) -> Tensor:
        """Return the unit in which the mixture judges, 0-dim."""
        ...

    def learn(
        self,
        held: Held,
        answers: Tensor,
        raw: Tensor,
        labels: Tensor,
        importance: Tensor,
        keep: Tensor,
    ) -> None:
        """Learn from the mixture's answers to a batch, [n, A], in place; ``raw`` are those before
        they were completed."""
        ...

    def evidence(self, answers: Tensor, held: Held) -> Evidence:
        """Return answers [K, n, A] as stacks see them."""
        ...

    def stacked(self, weights: Tensor, evidence: Evidence, held: Held) -> Tensor:
        """Return the answers of a stack, fp32 [n, A]."""
        ...

    def newton(
        self,
        hessian: Tensor,
        evidence: Evidence,
        answers: Tensor,
        labels: Tensor,
        importance: Tensor,
        held: Held,
    ) -> Newton:
        """Return the derivatives of a batch for a stack.

        Args:
            hessian: to which that of the batch is added.
            evidence: as `evidence` returned it.
            answers: of the stack, [n, A].
            labels: [n].
            importance: weights of the examples, fp32 [n].
            held: what the outcome has learned.
        """
        ...

    def completed(self, answers: Tensor, held: Held) -> Tensor:
        """Return mixed answers, [n, A], as answers of their own."""
        ...

    def chosen(self, answers: Tensor) -> Tensor:
        """Return the label of each, [n]: its class, or its number."""
        ...

    def scored(self, answers: Tensor, labels: Tensor, held: Held) -> Tensor:
        """Return their losses, [n], as they are shown."""
        ...

    def shown(self, answers: Tensor, held: Held) -> Tensor:
        """Return them as `funnel.pool.loss` has them: with a deviation where it has one."""
        ...


class Classes:
    """Classes, judged by the log loss.

    Args:
        is_open: which classes there are, bool [C].
    """

    label_type = torch.int64
    constants = 0
    pools = 0
    rate = mixing.RATE
    leads = 0.0
    ridge = 20.0
    fading = 1.0
    stacks: tuple[int, ...] = ()

    def __init__(self, is_open: Tensor) -> None:
        self.is_open, self.device, self.outputs = is_open, is_open.device, len(is_open)
        self.lags = self.outputs if self.outputs <= MOST_LAGS else 0

    def prior(self) -> Tensor:
        """Return a count of 1 for each class that is open."""
        return self.is_open.float()

    def counted(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the weight of each class, added in the order of the examples."""
        return weights.new_zeros(self.outputs).index_add_(0, labels, weights)

    def opened(self, prior: Tensor) -> Tensor:
        """Return counts of 1 for the new classes."""
        return torch.where(prior > 0, prior, self.prior())

    def rescaled(self, prior: Tensor, ratio: Tensor, shift: Tensor) -> Tensor:
        """Return them: classes have no unit."""
        return prior

    def recent(self, shares: Tensor) -> Tensor:
        """Return the frequencies at the second half-life."""
        return shares[RECENT, : self.lags]

    def alone(self, prior: Tensor) -> Tensor:
        """Return the shares of the classes; 0 where one is closed."""
        return prior / prior.sum()

    def offset(self, prior: Tensor) -> Tensor:
        """Return their logarithms; -inf where a class is closed."""
        return self.alone(prior).log()

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the softmax."""
        return outputs.softmax(dim=-1)

    def of_pool(self, experts: Tensor, own: Tensor) -> Tensor:
        """Return those of the experts."""
        return experts

    def known(self, answers: Tensor) -> Tensor:
        """Return probabilities that are finite: even ones for an expert that has diverged."""
        even = self.is_open / self.is_open.sum()
        is_known = torch.isfinite(answers).all(dim=2, keepdim=True)
        return torch.where(is_known, answers, even)

    def slopes(
        self, labels: Tensor, weights: Tensor, outputs: Tensor, generator: torch.Generator
    ) -> Slopes:
        """Implement `Outcome.slopes`."""
        classes = outputs.shape[1]
        probabilities = outputs.t().contiguous().softmax(dim=0)
        curvature = (1.0 - probabilities).mul_(probabilities).mul_(weights)
        gradient = probabilities.neg_().mul_(weights)
        gradient.scatter_add_(0, labels[None], weights[None])
        if classes == 2:
            projected, hessian = gradient[1:], curvature[1]
        else:
            projected = projections(gradient, generator)
            hessian = curvature.sum(dim=0) / 2
        rate = RATE if classes > 2 else RATE / 2
        hessian = torch.add(hessian, weights, alpha=1e-3)
        return Slopes(gradient, curvature, projected, hessian, rate)

    def voted(self, labels: Tensor, votes: Tensor, prior: Tensor, k: int) -> Tensor:
        """Return shares of the votes, shrunk to the prior by 1 / (k + 1); the nearest comes first
        in each sum."""
        said, whole = votes.new_zeros(len(votes), self.outputs), votes.new_zeros(len(votes))
        for one, label in zip(votes.unbind(1), labels.unbind(1), strict=True):
            said.scatter_add_(1, label[:, None], one[:, None])
            whole = whole + one
        said = said / whole.clamp(min=1e-30)[:, None]
        return said + (self.alone(prior) - said).mul_(1.0 / (k + 1))

    def losses(self, answers: Tensor, labels: Tensor, unit: Tensor) -> Tensor:
        """Return -log of the probability of the label."""
        chosen = answers.gather(2, labels.expand(len(answers), -1)[:, :, None])[:, :, 0]
        return -chosen.clamp(min=LEAST_ODDS).log()

    def spread(self, prior: Tensor) -> Tensor:
        """Return 1: the log loss has a unit."""
        return torch.ones((), device=self.device)

    def ignorance(self, prior: Tensor, labels: Tensor, weights: Tensor) -> float:
        """Return log C for each example, with the C classes that are open."""
        return float(weights.sum()) * math.log(max(2, int((prior > 0).sum())))

    def fresh(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def unit(self, held: Held) -> Tensor:
        """Return 1."""
        return torch.ones((), device=self.device)

    def learn(
        self,
        held: Held,
        answers: Tensor,
        raw: Tensor,
        labels: Tensor,
        importance: Tensor,
        keep: Tensor,
    ) -> None:
        """Learn nothing."""

    def evidence(self, answers: Tensor, held: Held) -> Evidence:
        """Return the logarithms, at least that of FLOOR and centred over the classes; 0 for classes
        that are closed."""
        logs = answers.clamp(min=FLOOR).log().transpose(0, 1)
        logs = torch.where(self.is_open, logs, 0.0)
        means = logs.sum(dim=2, keepdim=True) / self.is_open.sum()
        return Evidence(torch.where(self.is_open, logs - means, 0.0))

    def stacked(self, weights: Tensor, evidence: Evidence, held: Held) -> Tensor:
        """Return softmax(Σ a_k log p_k)."""
        logits = torch.einsum("k,nkc->nc", weights.float(), evidence.values)
        return torch.where(self.is_open, logits, -math.inf).softmax(dim=1)

    def newton(
        self,
        hessian: Tensor,
        evidence: Evidence,
        answers: Tensor,
        labels: Tensor,
        importance: Tensor,
        held: Held,
    ) -> Newton:
        """Return the derivatives of the log loss, which is convex in the weights."""
        values = evidence.values
        experts = values.shape[1]
        chosen = values.gather(2, labels[:, None, None].expand(-1, experts, 1))[:, :, 0]
        means = (values * answers[:, None]).sum(dim=2)
        spread = (values * (answers * importance[:, None]).sqrt()[:, None]).transpose(0, 1)
        spread = spread.reshape(experts, -1).double()
        weighted_means = (means * importance.sqrt()[:, None]).double()
        gradient = (importance[:, None] * (chosen - means)).sum(dim=0).double()
        hessian = hessian + spread @ spread.T - weighted_means.T @ weighted_means
        return Newton(hessian, gradient)

    def completed(self, answers: Tensor, held: Held) -> Tensor:
        """Return probabilities that sum to 1."""
        return answers / answers.sum(dim=1, keepdim=True)

    def chosen(self, answers: Tensor) -> Tensor:
        """Return the most probable class."""
        return answers.argmax(dim=1)

    def scored(self, answers: Tensor, labels: Tensor, held: Held) -> Tensor:
        """Return -log of the probability of the label, which is as small as fp32 can hold."""
        return -answers.gather(1, labels[:, None])[:, 0].clamp(min=TINY).log()

    def shown(self, answers: Tensor, held: Held) -> Tensor:
        """Return them as they are."""
        return answers
