"""The mixture of all families' experts, of two levels.

The lower level has Fixed Share (`funnel.pool.mixing`) over all experts, and stacks
(`funnel.families.stack`) of the same experts. The upper level is a second Fixed Share over these
three. Its loss exceeds that of the best sequence of them by little, as the bound there says, so a
stack can help but hardly harm.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from funnel.families.interface import LEAST_ODDS
from funnel.families.stack import Stack, evidence, stacked
from funnel.pool.mixing import FixedShare

HORIZONS = (1_000.0, 6_000.0)
"""Examples that each stack remembers."""


class Mixed(NamedTuple):
    """The answers to a batch."""

    answers: Tensor
    """Probabilities, fp32 [n, C]."""
    parts: Tensor
    """Probabilities of Fixed Share and of each stack, fp32 [1 + stacks, n, C]."""
    evidence: Tensor
    """As the stacks see the experts, fp32 [n, K, C]."""


class Weights(NamedTuple):
    """The weights that answering needs; copies of them answer alike."""

    experts: Tensor
    """Log weights of the experts, fp32 [K]."""
    parts: Tensor
    """Log weights of Fixed Share and the stacks, fp32 [1 + stacks]."""
    stacks: Tensor
    """Weights of each stack, float64 [stacks, K]."""

    def shares(self) -> Tensor:
        """Return how much of the answer each expert has, fp32 [K], summing to 1.

        That of Fixed Share is the weight there; that of a stack, whose weights may be negative, is
        the size of the weight among the sizes of all. The parts count by their weights.
        """
        first, *others = self.parts.softmax(dim=0)
        found: Tensor = first * self.experts.softmax(dim=0)
        for part, own in zip(others, self.stacks.abs().float(), strict=True):
            found = found + part * own / own.sum()
        return found

    def mix(self, probabilities: Tensor, is_open: Tensor) -> Mixed:
        """Mix the answers of all experts.

        Args:
            probabilities: [K, n, C], finite.
            is_open: which classes there are, bool [C].
        """
        seen = evidence(probabilities, is_open)
        first = torch.einsum("k,knc->nc", self.experts.softmax(dim=0), probabilities)
        parts = torch.stack([first, *(stacked(own, seen, is_open) for own in self.stacks)])
        answers = torch.einsum("p,pnc->nc", self.parts.softmax(dim=0), parts)
        return Mixed(answers / answers.sum(dim=1, keepdim=True), parts, seen)


class Mixture:
    """The weights of K experts.

    Args:
        experts: K.
        device: where they are.
    """

    def __init__(self, experts: int, device: torch.device) -> None:
        self.experts = FixedShare(experts, device)
        self.parts = FixedShare(1 + len(HORIZONS), device)
        self.stacks = [Stack(experts, horizon, device) for horizon in HORIZONS]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        named = {f"experts.{k}": v for k, v in self.experts.tensors().items()}
        named |= {f"parts.{k}": v for k, v in self.parts.tensors().items()}
        for number, stack in enumerate(self.stacks):
            named |= {f"stack{number}.{k}": v for k, v in stack.tensors().items()}
        return named

    @property
    def weights(self) -> Weights:
        """The present weights; copy what has to last."""
        stacks = torch.stack([stack.weights for stack in self.stacks])
        return Weights(self.experts.log_weights, self.parts.log_weights, stacks)

    def learn(
        self,
        mixed: Mixed,
        probabilities: Tensor,
        labels: Tensor,
        importance: Tensor,
        keep: Tensor,
    ) -> None:
        """Learn from a batch, in place.

        Args:
            mixed: as `Weights.mix` answered it with the present weights.
            probabilities: those it was given, [K, n, C].
            labels: int64 [n].
            importance: weights of the examples, fp32 [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        all_healthy = torch.ones(len(probabilities), dtype=torch.bool, device=keep.device)
        prior = self.experts.log_weights.softmax(dim=0)
        for stack, own in zip(self.stacks, mixed.parts[1:], strict=True):
            stack.learn(mixed.evidence, own, labels, importance, prior, keep)
        for share, given in ((self.experts, probabilities), (self.parts, mixed.parts)):
            chosen = given.gather(2, labels.expand(len(given), -1)[:, :, None])[:, :, 0]
            losses = -chosen.clamp(min=LEAST_ODDS).log()
            share.update(losses, all_healthy[: len(given)], keep, importance)
