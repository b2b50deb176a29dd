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

    def deviations(self, inputs: Tensor) -> Tensor:
        """Return (x - mean) / std, not clamped, fp32 [n, d]."""
        return _deviations(inputs, self.mean, self.variance)

    def update(self, deviations: Tensor, keep: Tensor) -> None:
        """Let the statistics take a batch.

        Args:
            deviations: what `deviations` returned for it; changed in place.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n = len(deviations)
        deviations.clamp_(-STATISTICS_LIMIT, STATISTICS_LIMIT)
        floored = _floored(self.mean, self.variance)
        shift = deviations.mean(dim=0)
        squares = deviations.square_().mean(dim=0)
        rate = n / (self.count + n) * keep
        spread = (squares - rate * shift.square()).clamp_(min=0.0)
        self.variance.lerp_(spread.mul_(floored), rate)
        self.mean.add_(shift.mul_(floored.sqrt_()).mul_(rate))
        self.count.add_(n * keep).clamp_(max=HORIZON)


def clamped(deviations: Tensor) -> Tensor:
    """Return what the model is given: deviations within ±LIMIT."""
    return deviations.clamp(-LIMIT, LIMIT)


def standardize(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return clamp((x - mean) / std, ±LIMIT), fp32 [n, d].

    Args:
        inputs: fp32 [n, d].
        mean: fp32 [d].
        variance: fp32 [d].
    """
    return _deviations(inputs, mean, variance).clamp_(-LIMIT, LIMIT)


def _deviations(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (inputs - mean).mul_(_floored(mean, variance).rsqrt_())


def _floored(mean: Tensor, variance: Tensor) -> Tensor:
    return torch.addcmul(variance, mean, mean, value=RELATIVE_FLOOR).add_(ABSOLUTE_FLOOR)
