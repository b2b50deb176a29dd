"""Online standardization of inputs by an exponentially weighted mean and variance."""

import torch
from torch import Tensor

HORIZON = 1_000.0
"""Examples that the statistics remember: plain averages up to there, exponential ones after."""
LIMIT = 5.0
"""Standardized inputs are clamped to ±LIMIT."""
STATISTICS_LIMIT = 50.0
"""Standard deviations at which a value is clamped before the statistics take it. Wider than LIMIT,
so that a feature that wakes up is known within a few batches."""
RELATIVE_FLOOR = 1e-10
"""Added to a feature's variance, in squares of its mean: what fp32 cannot resolve is no signal."""
ABSOLUTE_FLOOR = 1e-12


class Standardizer:
    """z = clamp((x - mean) / std, ±LIMIT), with statistics that follow the stream.

    A wild value moves mean and variance no more than one STATISTICS_LIMIT standard deviations away
    does. All on the device; nothing is read back.

    Args:
        width: number of features d.
        device: where inputs will be.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float32, device=device)
        """Examples seen, at most HORIZON."""
        self.mean = torch.zeros(width, device=device)
        self.variance = torch.ones(width, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def start(self, inputs: Tensor) -> None:
        """Take mean and variance of the first batch, fp32 [n, d], as they are."""
        self.mean.copy_(inputs.mean(dim=0))
        self.variance.copy_((inputs - self.mean).square_().mean(dim=0))

    def update(self, inputs: Tensor, keep: Tensor) -> None:
        """Let the statistics take a batch.

        Args:
            inputs: fp32 [n, d].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n = inputs.shape[0]
        reach = STATISTICS_LIMIT * _floored(self.mean, self.variance).sqrt_()
        away = torch.clamp(inputs - self.mean, -reach, reach)
        shift = away.mean(dim=0)
        variance = away.square_().mean(dim=0).sub_(shift.square()).clamp_(min=0.0)
        rate = n / (self.count + n) * keep
        self.variance.lerp_(variance + (1 - rate) * shift.square(), rate)
        self.mean.add_(rate * shift)
        self.count.add_(n * keep).clamp_(max=HORIZON)


def standardize(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return clamp((x - mean) / std, ±LIMIT), fp32 [n, d].

    Args:
        inputs: fp32 [n, d].
        mean: fp32 [d].
        variance: fp32 [d].
    """
    return ((inputs - mean) * _floored(mean, variance).rsqrt_()).clamp_(-LIMIT, LIMIT)


def _floored(mean: Tensor, variance: Tensor) -> Tensor:
    return (mean.square() * RELATIVE_FLOOR).add_(variance).add_(ABSOLUTE_FLOOR)
