"""Linear experts of second order: softmax regressions that remember curvature.

The experts of a pool step along the gradient, so on short or drifting streams they know less than a
linear model could. These solve for each batch instead, one expert for each horizon. With
weights W of d inputs and an intercept, a batch (x, y) of n examples gives

    W ← argmin over V of Σ loss(V; x, y) + tr (V - W)ᵀ (e^(-n / horizon) H + ridge I) (V - W) / 2,
    H ← e^(-n / horizon) H + Σ h xxᵀ,   h = max over c of 2 p_c (1 - p_c),

in which H is the curvature of what was learned before. It is the same for all classes: by
Gershgorin's theorem no curvature of a softmax exceeds h. The minimum is approached in ITERATIONS
steps. Each takes the bound of 1/2 for the curvature of the batch [D. Böhning, 'Multinomial
logistic regression algorithm', AISM 44, 1992], so none makes the sum larger, and all of them share
one Cholesky factor.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

HORIZONS = (100.0, 300.0, 1_000.0, 100_000.0)
"""Examples that each expert remembers."""
MOST_INPUTS = 64
"""Inputs that an expert looks at; the factor takes their cube."""
RIDGE = 1.0
"""How much a batch has to say before weights move, in examples with inputs of 1."""
ITERATIONS = 4
"""Steps towards the weights that fit a batch."""
NAMES = tuple(f"linear/second-order-{horizon:g}" for horizon in HORIZONS)


class SecondOrder:
    """One expert for each horizon.

    Args:
        features: width of the inputs, of which the first MOST_INPUTS count.
        is_open: which classes there are, bool [C].
    """

    def __init__(self, features: int, is_open: Tensor) -> None:
        self.is_open, self.width = is_open, min(features, MOST_INPUTS)
        size, count = self.width + 1, len(HORIZONS)
        blank = torch.zeros(count, size, size, dtype=torch.float64, device=is_open.device)
        self.weights = blank.new_zeros(count, size, len(is_open))
        """float64 [E, d + 1, C]; the last row is the intercept."""
        self.curvature = blank
        """H, float64 [E, d + 1, d + 1]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"weights": self.weights, "curvature": self.curvature}

    def answers(self, prepared: Tensor) -> Tensor:
        """Return probabilities of the classes, fp32 [E, n, C].

        Args:
            prepared: the inputs of networks, fp32 [n, features].
        """
        return answers(self.weights, self.is_open, prepared)

    def learn(self, prepared: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Learn a batch, in place, and return which experts could, bool [E].

        Where the solution is not finite, as with inputs that are not standardized and huge, an
        expert stays as it is.

        Args:
            prepared: fp32 [n, features].
            labels: int64 [n].
            weights: of the examples, fp32 [n].
        """
        inputs, counts = _with_intercept(prepared, self.width), weights.double()[:, None]
        horizons = torch.tensor(HORIZONS, dtype=torch.float64, device=inputs.device)
        kept = self.curvature * torch.exp(-counts.sum() / horizons)[:, None, None]
        trusted = kept + RIDGE * torch.eye(len(kept[0]), dtype=kept.dtype, device=kept.device)
        bound = trusted + 0.5 * (inputs.t() @ (counts * inputs))
        factor, failed = torch.linalg.cholesky_ex(bound)
        wanted = functional.one_hot(labels, len(self.is_open)).double()
        found = self.weights
        for _ in range(ITERATIONS):
            missed = counts * (wanted - _probabilities(inputs, found, self.is_open))
            downhill = inputs.t() @ missed - trusted @ (found - self.weights)
            found = found + torch.cholesky_solve(downhill, factor)
        own = _probabilities(inputs, found, self.is_open)
        bends = counts * (2.0 * own * (1.0 - own)).amax(dim=2, keepdim=True)
        curvature = kept + inputs.t() @ (bends * inputs)
        finite = [torch.isfinite(part).all(dim=2).all(dim=1) for part in (found, curvature)]
        is_sound: Tensor = (failed == 0) & finite[0] & finite[1]
        keep = is_sound[:, None, None]
        self.weights.copy_(torch.where(keep, found, self.weights))
        self.curvature.copy_(torch.where(keep, curvature, self.curvature))
        return is_sound

    def resized(self, features: int, is_open: Tensor, bias: float) -> "SecondOrder":
        """Return experts of more inputs or classes that go on.

        Args:
            features: no fewer than its own.
            is_open: of no fewer classes than its own.
            bias: logarithm of the odds of a class that opens.
        """
        larger, old, classes = SecondOrder(features, is_open), self.width, len(self.is_open)
        place = torch.cat([torch.arange(old), torch.tensor([larger.width])])
        larger.weights[:, place, :classes] = self.weights
        larger.curvature[:, place[:, None], place] = self.curvature
        opened = is_open & ~functional.pad(self.is_open, (0, len(is_open) - classes))
        larger.weights[:, -1, opened] = bias
        return larger


def answers(weights: Tensor, is_open: Tensor, prepared: Tensor) -> Tensor:
    """Return probabilities of the classes, fp32 [E, n, C].

    Args:
        weights: of the experts.
        is_open: which classes there are, bool [C].
        prepared: the inputs of networks, fp32 [n, features].
    """
    inputs = _with_intercept(prepared, weights.shape[1] - 1)
    return _probabilities(inputs, weights, is_open).float()


def _with_intercept(prepared: Tensor, width: int) -> Tensor:
    """Return the inputs that count with a 1 after them, float64 [n, width + 1]."""
    return functional.pad(prepared[:, :width].double(), (0, 1), value=1.0)


def _probabilities(inputs: Tensor, weights: Tensor, is_open: Tensor) -> Tensor:
    """Return those of the classes, float64 [E, n, C]; 0 where one is closed."""
    return torch.where(is_open, inputs @ weights, -math.inf).softmax(dim=2)
