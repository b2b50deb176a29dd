"""Fixed Share: weights for experts when the best one changes over time.

Source: M. Herbster, M. K. Warmuth, 'Tracking the best expert', Machine Learning 32 (1998), with
the log loss. The experts' probabilities are averaged with weights v on the simplex. After a batch
of n examples with labels y

    v_k ← v_k · exp(η Σ log P_k(y)) / …          (loss update, then normalized)
    v_k ← (1 - α) v_k + α / K                    (share update)

and α = 1 - (1 - σ)^n, so that a stream costs the same however it is cut: η, ``rate``, weighs the
evidence of one example, and σ, ``switch_rate``, is the share of the weight that is redistributed
per example, the prior chance that another expert is best from there on. No weight falls below
α / K, so an expert comes back after about log(K / α) / (η d) examples on which it is better by d
nats each.

The right σ depends on how often the stream shifts, so it is learned too, by Learn-α
[C. Monteleoni, T. Jaakkola, 'Online learning of non-stationary sequences', NIPS 2003]: Fixed Share
runs at each of several switch rates, and its mixtures are mixed in turn, with weights u that follow
their losses as v follow the experts', shared at a rate of their own. At the rates of SWITCH_RATES,
2, 10 and 40 % of the weight are redistributed every 100 examples.

η = 1 is Bayes' rule, under which the mixture's total loss exceeds that of any sequence of experts
that switches m times in T examples by at most log K + m log(K / σ') + …, the entropy of the
switches (Theorem 7 there). Smaller η tempers it: examples of a batch are scored by weights that saw
none of them, so their evidence is not independent.

Weights are kept as logarithms in fp32: no product underflows. They are on the device; nothing is
read back.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from funnel.checks import check_number
from funnel.tensorlists import weighted

RATE = 0.2
"""η, in 1 / nat."""
SWITCH_RATES = (2e-4, 1e-3, 5e-3)
"""σ, per example."""
RATE_SWITCH_RATE = 2e-4
"""Share of u that is redistributed per example."""


class FixedShare:
    """Weights of K experts.

    Args:
        experts: K.
        device: where losses will be.
        rate: η in [0, 1].
        switch_rates: each σ in [0, 1).
        last_share: share of the weight that is dealt to the last one, in (0, 1), at first and in
            every share update; None for 1 / K, as each of the others gets.

    Raises:
        TypeError, ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        experts: int,
        device: torch.device,
        rate: float = RATE,
        switch_rates: Sequence[float] = SWITCH_RATES,
        last_share: float | None = None,
    ) -> None:
        check_number("rate", rate, low=0.0, high=1.0)
        if not switch_rates:
            raise ValueError("switch_rates must hold at least one")
        for switch_rate in switch_rates:
            check_number("switch_rates", switch_rate, low=0.0, below=1.0)
        self.rate, self.switch_rates, n = rate, tuple(switch_rates), len(switch_rates)
        self.log_kept = torch.tensor([math.log1p(-s) for s in switch_rates], device=device)[:, None]
        """log(1 - σ), [A, 1]."""
        self.log_rates_kept = torch.tensor(math.log1p(-RATE_SWITCH_RATE), device=device)
        self.log_weights = torch.full((experts,), -math.log(experts), device=device)
        self.log_dealt: Tensor | None = None
        """Logarithms of the shares that are dealt, [K]; None for equal ones."""
        if last_share is not None:
            self.log_weights.fill_(math.log((1.0 - last_share) / (experts - 1)))
            self.log_weights[-1] = math.log(last_share)
            self.log_dealt = self.log_weights.clone()
        """log Σ u v of the experts, fp32 [K], normalized up to rounding."""
        self.log_weights_at = self.log_weights.repeat(n, 1)
        """log v at each switch rate, [A, K]."""
        self.log_rate_weights = torch.full((n,), -math.log(n), device=device)
        """log u, [A]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {
            "log_weights": self.log_weights,
            "log_weights_at": self.log_weights_at,
            "log_rate_weights": self.log_rate_weights,
        }

    def update(
        self, losses: Tensor, healthy: Tensor, keep: Tensor, importance: Tensor | None = None
    ) -> None:
        """Take the losses of a batch.

        Args:
            losses: of each expert and example [K, n], in nats.
            healthy: bool [K]; any other expert keeps only its share of the others' weight.
            keep: bool, 0-dim; where it is False nothing changes.
            importance: weights of the examples, fp32 [n]; None for 1.
        """
        if len(self.log_weights) == 1:
            return  # one expert has all the weight
        n = losses.shape[1]
        log_weights = self.log_weights_at
        mixtures = weighted(mixed_losses(log_weights, losses, healthy), importance).sum(dim=1)
        log_rates = (self.log_rate_weights - self.rate * mixtures).log_softmax(dim=0)
        log_rates = _shared(log_rates, n * self.log_rates_kept)
        own = weighted(losses, importance).sum(dim=1)
        evidence = torch.where(healthy, log_weights - self.rate * own, -math.inf)
        log_weights = _shared(evidence.log_softmax(dim=1), n * self.log_kept, self.log_dealt)
        mixture = torch.logsumexp(log_rates[:, None] + log_weights, dim=0)
        for mine, new in (
            (self.log_rate_weights, log_rates),
            (self.log_weights_at, log_weights),
            (self.log_weights, mixture),
        ):
            mine.copy_(torch.where(keep, new, mine))


def _shared(log_weights: Tensor, log_kept: Tensor, log_dealt: Tensor | None = None) -> Tensor:
    """Share update along the last dimension: w ← (1 - α) w + α / K, with log(1 - α) given.

    With ``log_dealt``, [K], that is dealt instead of 1 / K.
    """
    if log_dealt is None:
        dealt = (-torch.expm1(log_kept) / log_weights.shape[-1]).log()
    else:
        dealt = (-torch.expm1(log_kept)).log() + log_dealt
    return torch.logaddexp(log_weights + log_kept, dealt)


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
    if len(known) == 1:
        return known[0]
    return (weights_of(log_weights, healthy)[:, None, None] * known).sum(dim=0)


def mixed_each(log_weights: Tensor, probabilities: Tensor, healthy: Tensor) -> Tensor:
    """Return what `mixed` returns of each example alone.

    Args:
        log_weights: [K].
        probabilities: [K, n, classes], of any values where an expert is not healthy.
        healthy: bool [K, n].

    Returns:
        Probabilities [n, classes], always finite.
    """
    known = torch.where(healthy[..., None], probabilities, 1.0 / probabilities.shape[-1])
    if len(known) == 1:
        return known[0]
    weights = weights_of(log_weights, torch.ones_like(log_weights, dtype=torch.bool))[:, None]
    among = torch.where(healthy | ~healthy.any(dim=0), weights, 0.0)
    total = torch.where(healthy.all(dim=0), 1.0, among.sum(dim=0))
    return (among[..., None] * known).sum(dim=0).div_(total[:, None])


def mixed_losses(log_weights: Tensor, losses: Tensor, healthy: Tensor) -> Tensor:
    """Return -log of the weighted mean of the healthy experts' probabilities of the labels.

    Args:
        log_weights: [..., K].
        losses: -log of these probabilities, [K, n], in nats.
        healthy: bool [K].

    Returns:
        [..., n], in nats; infinite if none is healthy.
    """
    known = torch.where(healthy[:, None], losses, math.inf)
    if len(known) == 1:
        return known[0].expand(*log_weights.shape[:-1], -1)
    return -torch.logsumexp(_log_weights_of(log_weights, healthy)[..., None] - known, dim=-2)


def _log_weights_of(log_weights: Tensor, healthy: Tensor) -> Tensor:
    among = torch.where(healthy, log_weights, -math.inf)
    return torch.where(healthy.any(), among, log_weights).log_softmax(dim=-1)
