"""The mixture of all families' experts, of two levels.

The lower level has Fixed Share (`funnel.pool.mixing`) over all experts, and stacks
(`funnel.families.stack`) of the same experts. The upper level is a second Fixed Share over these
three. Its loss exceeds that of the best sequence of them by little, as the bound there says, so a
stack can help but hardly harm. The losses of numbers and quantiles are convex and no -log of a
density; for them the loss of a mean is at most the mean of the losses (`funnel.pool.loss`).

Where numbers are predicted, the leading pool's own answer is a part, too, and leads at first: on a
short stream nothing else has had the time to learn.

Where classes are predicted, each family that looks at inputs is a part as well: a Fixed Share of
its own experts. A family can be the best throughout, as linear experts are at the beginning of a
stream, while each of its experts is only so for a while. The parts weigh evidence by PARTS_RATE,
and runs of equal labels by less than their length (`funnel.families.runs`). Models of many inputs
have none of this, and those that began before go on without.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from funnel.families.outcomes import Evidence, Held, Outcome
from funnel.families.runs import Runs
from funnel.families.stack import Stack
from funnel.pool.mixing import RATE, FixedShare

HORIZONS = (1_000.0, 6_000.0)
"""Examples that each stack remembers."""
PARTS_RATE = 0.1
"""How much an example's loss weighs in the Fixed Share of parts, if families are among them."""


class Mixed(NamedTuple):
    """The answers to a batch."""

    answers: Tensor
    """fp32 [n, A]."""
    raw: Tensor
    """The same before the outcome completes it."""
    parts: Tensor
    """Answers of Fixed Share, of the leading pool if it is a part, of each family that is one, and
    of each stack, fp32 [P, n, A]."""
    evidence: Evidence
    """As the stacks see the experts."""


class Weights(NamedTuple):
    """The weights that answering needs; copies of them answer alike."""

    experts: Tensor
    """Log weights of the experts, fp32 [K]."""
    parts: Tensor
    """Log weights of the parts, fp32 [P]."""
    stacks: Tensor
    """Weights of each stack, float64 [stacks, ..., K], or one more with an intercept."""
    held: Held
    """Tensors that the outcome has learned."""
    own: int | None
    """Which expert is a part, if one is."""
    families: tuple[tuple[slice, Tensor], ...] = ()
    """Which experts each family has that is a part, and their log weights in it, fp32."""

    def copy(self) -> "Weights":
        """Return a copy, which lasts."""
        held = {name: tensor.clone() for name, tensor in self.held.items()}
        families = tuple((which, weights.clone()) for which, weights in self.families)
        own = self.experts.clone(), self.parts.clone(), self.stacks.clone(), held, self.own
        return Weights(*own, families)

    def shares(self) -> Tensor:
        """Return how much of the answer each expert has, fp32 [K], summing to 1.

        That of Fixed Share is the weight there; that of a stack, whose weights may be negative, is
        the size of the weight among the sizes of all, of all quantiles together. The parts count by
        their weights.
        """
        parts = self.parts.softmax(dim=0)
        found: Tensor = parts[0] * self.experts.softmax(dim=0)
        sizes = self.stacks[..., : len(self.experts)].abs().float()
        for part, own in zip(parts[-len(sizes) :], sizes, strict=True):
            each = own.reshape(-1, len(self.experts)).sum(dim=0)
            found = found + part * each / each.sum()
        if self.own is not None:
            found = found.index_add(0, torch.tensor([self.own]), parts[1:2])
        first = 1 + (self.own is not None)
        for part, (which, weights) in zip(parts[first:], self.families, strict=False):
            found[which] += part * weights.softmax(dim=0)
        return found

    def mix(self, answers: Tensor, outcome: Outcome) -> Mixed:
        """Mix the answers of all experts.

        Args:
            answers: [K, n, A], finite.
            outcome: what they answer.
        """
        held = self.held
        seen = outcome.evidence(answers, held)
        first = _mean(self.experts, answers)
        alone = [] if self.own is None else [answers[self.own]]
        stacks = [outcome.stacked(own, seen, held) for own in self.stacks]
        families = [_mean(weights, answers[which]) for which, weights in self.families]
        parts = torch.stack([first, *alone, *families, *stacks])
        mixed = torch.einsum("p,pnc->nc", self.parts.softmax(dim=0), parts)
        return Mixed(outcome.completed(mixed, held), mixed, parts, seen)


def _mean(log_weights: Tensor, answers: Tensor) -> Tensor:
    """Return the weighted mean of answers [K, n, A]."""
    return torch.einsum("k,knc->nc", log_weights.softmax(dim=0), answers)


class Mixture:
    """The weights of K experts.

    Args:
        experts: K.
        outcome: what they answer.
        own: the expert that is a part of the mixture, too, if one is.
        families: which experts each family has that is a part; None if none is to be, and runs
            count in full.
    """

    def __init__(
        self,
        experts: int,
        outcome: Outcome,
        own: int | None = None,
        families: Sequence[slice] | None = None,
    ) -> None:
        self.count, self.outcome, self.own, self._which = experts, outcome, own, families
        device, which = outcome.device, families or ()
        self.experts = FixedShare(experts, device, outcome.rate)
        self.families = [FixedShare(k.stop - k.start, device, outcome.rate) for k in which]
        count = 1 + (own is not None) + len(which) + len(HORIZONS)
        self.runs = None if families is None else Runs(outcome)
        self.parts = FixedShare(count, device, RATE if families is None else PARTS_RATE)
        if own is not None:
            parts = len(self.parts.log_weights)
            first = torch.full((parts,), (1.0 - outcome.leads) / (parts - 1), device=device)
            first[1] = outcome.leads
            self.parts.log_weights.copy_(first.log())
            self.parts.log_weights_at.copy_(first.log().expand_as(self.parts.log_weights_at))
        self.stacks = [Stack(experts, horizon, outcome) for horizon in HORIZONS]
        self.held: Held = outcome.fresh()
        """Tensors that the outcome has learned."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        named = {f"experts.{k}": v for k, v in self.experts.tensors().items()}
        named |= {f"parts.{k}": v for k, v in self.parts.tensors().items()}
        for number, stack in enumerate(self.stacks):
            named |= {f"stack{number}.{k}": v for k, v in stack.tensors().items()}
        for number, share in enumerate(self.families):
            named |= {f"family{number}.{k}": v for k, v in share.tensors().items()}
        if self.runs is not None:
            named |= {f"runs.{k}": v for k, v in self.runs.tensors().items()}
        return named | {f"outcome.{k}": v for k, v in self.held.items()}

    def forget(self) -> None:
        """Be as at first."""
        fresh = Mixture(self.count, self.outcome, self.own, self._which).tensors()
        for name, tensor in self.tensors().items():
            tensor.copy_(fresh[name])

    @property
    def weights(self) -> Weights:
        """The present weights; copy what has to last."""
        stacks = torch.stack([stack.weights for stack in self.stacks])
        shares = zip(self._which or (), self.families, strict=True)
        families = tuple((which, share.log_weights) for which, share in shares)
        own = self.experts.log_weights, self.parts.log_weights, stacks, self.held, self.own
        return Weights(*own, families)

    def losses(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return the losses of answers [E, n, A], fp32 [E, n]."""
        return self.outcome.losses(answers, labels, self.outcome.unit(self.held))

    def learn(
        self, mixed: Mixed, answers: Tensor, labels: Tensor, importance: Tensor, keep: Tensor
    ) -> None:
        """Learn from a batch, in place.

        Args:
            mixed: as `Weights.mix` answered it with the present weights.
            answers: those it was given, [K, n, A].
            labels: [n].
            importance: weights of the examples, fp32 [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        all_healthy = torch.ones(len(answers), dtype=torch.bool, device=keep.device)
        prior, held = self.experts.log_weights.softmax(dim=0), self.held
        for stack, own in zip(self.stacks, mixed.parts[-len(HORIZONS) :], strict=True):
            stack.learn(mixed.evidence, own, labels, importance, prior, held, keep)
        losses = self.losses(answers, labels)
        self.experts.update(losses, all_healthy, keep, importance)
        for which, share in zip(self._which or (), self.families, strict=True):
            share.update(losses[which], all_healthy[which], keep, importance)
        counts = importance
        if self.runs is not None:
            counts = importance * self.runs.learn(labels, keep)
        parts = self.losses(mixed.parts, labels)
        self.parts.update(parts, torch.ones_like(parts[:, 0], dtype=torch.bool), keep, counts)
        self.outcome.learn(held, mixed.answers, mixed.raw, labels, importance, keep)
