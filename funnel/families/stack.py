"""Stacks: combinations of experts whose weights one online Newton step a batch fits.

A stack of classes answers softmax(Σ a_k log p_k), with the logarithms of K experts' probabilities,
at least FLOOR and centred over the classes. One of numbers answers m + Σ a_k (q_k - m) + a_0, with
m the mean of the experts' answers q_k, for each quantile by weights of its own. Weights may be
negative. The loss is convex in them (`funnel.families.outcomes`), and the step is that of the
online Newton step [E. Hazan, A. Agarwal, S. Kale, 'Logarithmic regret algorithms for online convex
optimization', Machine Learning 69, 2007], with the Hessian in place of the outer products of
gradients, forgotten over a horizon, and a ridge:

    H ← e^(-n / horizon) H + Σ ∇²,
    a ← a - (H + ridge I)⁻¹ (Σ ∇ + ridge min(1, n / horizon) (a - v)),

which pulls the weights to those v of Fixed Share, and no further. For exp-concave losses the regret
of such a step to the best fixed a is O(K log T). One that forgets has no such bound, so Fixed Share
mixes the stacks with the plain mixture (`funnel.families.mixture`).
"""

import torch
from torch import Tensor
from torch.nn import functional

from funnel.families.outcomes import Evidence, Held, Outcome

LARGEST_STEP = 0.5
"""Most that a weight moves in a batch."""


class Stack:
    """The weights of K experts.

    Args:
        experts: K.
        horizon: examples that the Hessian remembers.
        outcome: what they answer.
    """

    def __init__(self, experts: int, horizon: float, outcome: Outcome) -> None:
        self.horizon, self.outcome = horizon, outcome
        size, device = experts + outcome.constants, outcome.device
        even = torch.full((experts,), 1.0 / experts, dtype=torch.float64, device=device)
        self.weights = self._padded(even).repeat(*outcome.stacks, 1)
        """float64 [..., K], or one more with an intercept."""
        self.hessian = self.weights.new_zeros(*outcome.stacks, size, size)
        """float64 [..., K, K], or one more."""

    def _padded(self, weights: Tensor) -> Tensor:
        """Return weights of experts with those of the intercept, 0."""
        return functional.pad(weights, (0, self.outcome.constants))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"weights": self.weights, "hessian": self.hessian}

    def learn(
        self,
        evidence: Evidence,
        answers: Tensor,
        labels: Tensor,
        importance: Tensor,
        prior: Tensor,
        held: Held,
        keep: Tensor,
    ) -> None:
        """Take the Newton step of a batch.

        Args:
            evidence: as `Outcome.evidence` returned it.
            answers: its own answers, [n, A].
            labels: [n].
            importance: weights of the examples, fp32 [n].
            prior: weights of Fixed Share, [K].
            held: what the outcome has learned.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n = importance.sum().double()
        kept = self.hessian * torch.exp(-n / self.horizon)
        hessian, slope = self.outcome.newton(kept, evidence, answers, labels, importance, held)
        pull = self.outcome.ridge * (n / self.horizon).clamp(
            max=1.0
        )  # as far as the prior, but not beyond
        gradient = slope + pull * (self._padded(prior.double()) - self.weights)
        size = self.weights.shape[-1]
        ridge = self.outcome.ridge * torch.eye(size, dtype=torch.float64, device=hessian.device)
        step = torch.linalg.solve(hessian + ridge, gradient[..., None])[..., 0]
        step = step.clamp(-LARGEST_STEP, LARGEST_STEP)
        keep = keep & torch.isfinite(step).all()
        self.weights.copy_(torch.where(keep, self.weights + step, self.weights))
        self.hessian.copy_(torch.where(keep, hessian, self.hessian))
