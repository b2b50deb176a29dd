"""Fixed Share: the weights of experts of whom now one, now another is best.

Source: M. Herbster, M. K. Warmuth, 'Tracking the best expert', Machine Learning 32 (1998), with
the log loss. The experts' probabilities are averaged with weights v on the simplex. After a batch
of n examples with labels y

    v_k ← v_k · exp(η Σ log P_k(y)) / …          (loss update, then normalized)
    v_k ← (1 - α) v_k + α / K                    (share update)

and α = 1 - (1 - σ)^n, so that a stream costs the same however it is cut: η, ``rate``, weighs the
evidence of one example, and σ, ``switch_rate``, is the share of the weight that is dealt out anew
per example, the prior chance that another expert is best from there on. At σ = 2.2e-3 a fifth is
dealt out every 100 examples. No weight falls below α / K, so an expert comes back after about
log(K / α) / (η d) examples on which it is better by d nats each.

η = 1 is Bayes' rule, under which the mixture's total loss exceeds that of any sequence of experts
that switches m times in T examples by at most log K + m log(K / σ') + …, the entropy of the
switches (Theorem 7 there). Smaller η tempers it: examples of a batch are scored by weights that saw
none of them, so their evidence is not independent.

Weights are kept as logarithms in fp32: no product underflows. All on the device; nothing is read
back.
"""

import math

import torch
from torch import Tensor

from funnel.checks import check_number

RATE = 0.2
"""η, in 1 / nat."""
SWITCH_RATE = 2.2e-3
"""σ, per example."""


class FixedShare:
    """Weights of K experts.

    Args:
        experts: K.
        device: where losses will be.
        rate: η in [0, 1].
        switch_rate: σ in [0, 1).

    Raises:
        TypeError, ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        experts: int,
        device: torch.device,
        rate: float = RATE,
        switch_rate: float = SWITCH_RATE,
    ) -> None:
        check_number("rate", rate, low=0.0, high=1.0)
        check_number("switch_rate", switch_rate, low=0.0, below=1.0)
        self.rate, self.switch_rate = rate, switch_rate
        self.log_weights = torch.full((experts,), -math.log(experts), device=device)
        """log v, fp32 [K], normalized up to rounding."""

    def update(self, losses: Tensor, examples: int, healthy: Tensor, keep: Tensor) -> None:
        """Take the losses of a batch.

        Args:
            losses: of each expert, summed over the batch [K], in nats.
            examples: n, how many they are.
            healthy: bool [K]; an expert that is not keeps only its share of the others' weight.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        evidence = torch.where(healthy, self.log_weights - self.rate * losses, -math.inf)
        log_weights = evidence.log_softmax(dim=0)
        kept = examples * math.log1p(-self.switch_rate)
        if dealt := -math.expm1(kept):
            share = torch.full_like(log_weights, math.log(dealt / len(log_weights)))
            log_weights = torch.logaddexp(log_weights + kept, share)
        self.log_weights.copy_(torch.where(keep, log_weights, self.log_weights))


def weights_of(log_weights: Tensor, healthy: Tensor) -> Tensor:
    """Return the weights among the healthy experts, [K], summing to 1; if none is, among all."""
    return _log_weights_of(log_weights, healthy).exp()


def mixed(log_weights: Tensor, probabilities: Tensor, healthy: Tensor) -> Tensor:
    """Return the weighted mean of the healthy experts' probabilities, uniform if none is healthy.

    Args:
        log_weights: [K].
        probabilities: [K, n, classes], of any values where an expert is not healthy.
        healthy: bool [K].

    Returns:
        Probabilities [n, classes], always finite.
    """
    known = torch.where(healthy[:, None, None], probabilities, 1.0 / probabilities.shape[-1])
    return (weights_of(log_weights, healthy)[:, None, None] * known).sum(dim=0)


def mixed_losses(log_weights: Tensor, losses: Tensor, healthy: Tensor) -> Tensor:
    """Return -log of the weighted mean of the healthy experts' probabilities of the labels.

    Args:
        log_weights: [K].
        losses: -log of these probabilities, [K, n], in nats.
        healthy: bool [K].

    Returns:
        [n], in nats; infinite if none is healthy.
    """
    known = torch.where(healthy[:, None], losses, math.inf)
    return -torch.logsumexp(_log_weights_of(log_weights, healthy)[:, None] - known, dim=0)


def _log_weights_of(log_weights: Tensor, healthy: Tensor) -> Tensor:
    among = torch.where(healthy, log_weights, -math.inf)
    return torch.where(healthy.any(), among, log_weights).log_softmax(dim=0)
