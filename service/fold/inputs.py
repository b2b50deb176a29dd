"""Features as a model takes them: brought to the device, scaled, and standardized online.

Bytes travel as bytes, and copies to a GPU overlap the step before. Inputs are standardized by an
exponentially weighted mean and variance.
"""

import torch
from torch import Tensor

from streams.batch import Batch, Features

MAX_INPUT = 1e18
"""Inputs are clamped to ±MAX_INPUT, so that their squares stay finite in fp32."""
HORIZON = 1_000.0
"""Examples that the statistics remember: plain averages up to there, exponential ones after."""
LIMIT = 5.0
"""Standardized inputs are clamped to ±LIMIT."""
STATISTICS_LIMIT = 50.0
"""Standard deviations at which a value is clamped for the statistics. They are wider than LIMIT, so
that the scale of a feature that becomes active is known within a few batches."""
RELATIVE_FLOOR = 1e-10
"""Added to a feature's variance, in squares of its mean: fp32 cannot resolve less."""
ABSOLUTE_FLOOR = 1e-12


class Upload:
    """Copies batches to one device; on a GPU from pinned memory, on a stream of its own.

    Args:
        device: where batches go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return inputs, fp32 [n, d] with uint8 scaled to [0, 1], and labels, int64 [n]."""
        features, labels = torch.from_numpy(batch.features), torch.from_numpy(batch.labels)
        if self._stream is None:
            return scaled(features.to(self.device)), labels.to(self.device)
        with torch.cuda.stream(self._stream):
            copies = [t.pin_memory().to(self.device, non_blocking=True) for t in (features, labels)]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(current)
        return scaled(copies[0]), copies[1]


def to_inputs(features: Features, device: torch.device) -> Tensor:
    """Return features as inputs, fp32 [n, d], on the device."""
    return scaled(torch.from_numpy(features).to(device))


def scaled(features: Tensor) -> Tensor:
    """Return fp32 in row-major order; uint8 0…255 becomes [0, 1], other dtypes keep their values.

    Sums would round differently in another layout; batches from HTTP have this one.
    """
    features = features.contiguous()
    if features.dtype == torch.uint8:
        return features.float().div_(255.0)
    return features.float().clamp(-MAX_INPUT, MAX_INPUT)


class Standardizer:
    """z = clamp((x - mean) / std, ±LIMIT), with statistics that follow the stream.

    A wild value moves mean and variance no more than a value STATISTICS_LIMIT standard deviations
    away. All of this is on the device; nothing is read back.

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
        """Start from mean and variance of the first batch, fp32 [n, d]."""
        self.mean.copy_(inputs.mean(dim=0))
        self.variance.copy_((inputs - self.mean).square_().mean(dim=0))

    def deviations(self, inputs: Tensor) -> Tensor:
        """Return (x - mean) / std, not clamped, fp32 [n, d]."""
        return _deviations(inputs, self.mean, self.variance)

    def update(self, deviations: Tensor, keep: Tensor) -> None:
        """Update the statistics with a batch.

        Args:
            deviations: of the batch, as `deviations` returned them; changed in place.
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
    """Return the inputs of the model: deviations within ±LIMIT."""
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
