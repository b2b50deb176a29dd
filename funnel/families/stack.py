"""Stacks: log-linear mixtures of experts, fitted by one online Newton step a batch.

A stack answers softmax(Σ a_k log p_k), with the logarithms of K experts' probabilities, at least
FLOOR and centred over the classes. Its weights a may be negative. The log loss is convex in them,
and the step is that of the online Newton step [E. Hazan, A. Agarwal, S. Kale, 'Logarithmic regret
algorithms for online convex optimization', Machine Learning 69, 2007], with the Hessian in place of
the outer products of gradients, forgotten over a horizon, and a ridge:

    H ← e^(-n / horizon) H + Σ ∇²,
    a ← a - (H + ridge I)⁻¹ (Σ ∇ + ridge min(1, n / horizon) (a - v)),

which pulls the weights to those v of Fixed Share, and no further. For exp-concave losses the regret
of such a step to the best fixed a is O(K log T). One that forgets has no such bound, so Fixed Share
mixes the stacks with the plain mixture (`funnel.families.mixture`).
"""

import math

import torch
from torch import Tensor

FLOOR = 1e-3
"""Least probability whose logarithm a stack sees."""
RIDGE = 20.0
"""Examples, about, whose evidence it takes to move a weight away from Fixed Share's."""
LARGEST_STEP = 0.5
"""Most that a weight moves in a batch."""


class Stack:
    """The weights of K experts.

    Args:
        experts: K.
        horizon: examples that the Hessian remembers.
        device: where they are.
    """

    def __init__(self, experts: int, horizon: float, device: torch.device) -> None:
        self.horizon = horizon
        self.weights = torch.full((experts,), 1.0 / experts, dtype=torch.float64, device=device)
        """float64 [K]."""
        self.hessian = torch.zeros(experts, experts, dtype=torch.float64, device=device)
        """float64 [K, K]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"weights": self.weights, "hessian": self.hessian}

    def learn(
        self,
        evidence: Tensor,
        answers: Tensor,
        labels: Tensor,
        importance: Tensor,
        prior: Tensor,
        keep: Tensor,
    ) -> None:
        """Take the Newton step of a batch.

        Args:
            evidence: as `evidence` returns it, [n, K, C].
            answers: its own answers, [n, C].
            labels: int64 [n].
            importance: weights of the examples, fp32 [n].
            prior: weights of Fixed Share, [K].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n, experts = importance.sum().double(), len(self.weights)
        chosen = evidence.gather(2, labels[:, None, None].expand(-1, experts, 1))[:, :, 0]
        means = (evidence * answers[:, None]).sum(dim=2)
        spread = (evidence * (answers * importance[:, None]).sqrt()[:, None]).transpose(0, 1)
        spread = spread.reshape(experts, -1).double()
        weighted_means = (means * importance.sqrt()[:, None]).double()
        hessian = self.hessian * torch.exp(-n / self.horizon)
        hessian = hessian + spread @ spread.T - weighted_means.T @ weighted_means
        pull = RIDGE * (n / self.horizon).clamp(max=1.0)  # as far as the prior, but not beyond
        gradient = (importance[:, None] * (chosen - means)).sum(dim=0).double()
        gradient = gradient + pull * (prior.double() - self.weights)
        ridge = RIDGE * torch.eye(experts, dtype=torch.float64, device=hessian.device)
        step = torch.linalg.solve(hessian + ridge, gradient).clamp(-LARGEST_STEP, LARGEST_STEP)
        keep = keep & torch.isfinite(step).all()
        self.weights.copy_(torch.where(keep, self.weights + step, self.weights))
        self.hessian.copy_(torch.where(keep, hessian, self.hessian))


def evidence(probabilities: Tensor, is_open: Tensor) -> Tensor:
    """Return what a stack sees of experts' probabilities, fp32 [n, K, C].

    Args:
        probabilities: [K, n, C], finite.
        is_open: which classes there are, bool [C]; the others are 0 in it.
    """
    logs = probabilities.clamp(min=FLOOR).log().transpose(0, 1)
    logs = torch.where(is_open, logs, 0.0)
    means = logs.sum(dim=2, keepdim=True) / is_open.sum()
    return torch.where(is_open, logs - means, 0.0)


def stacked(weights: Tensor, evidence: Tensor, is_open: Tensor) -> Tensor:
    """Return the probabilities of a stack, fp32 [n, C].

    Args:
        weights: [K].
        evidence: as `evidence` returns it.
        is_open: which classes there are, bool [C]; the others have the probability 0.
    """
    logits = torch.einsum("k,nkc->nc", weights.float(), evidence)
    return torch.where(is_open, logits, -math.inf).softmax(dim=1)
