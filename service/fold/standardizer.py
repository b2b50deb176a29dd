"""Online standardization whose statistics wild values cannot move far.

Each feature has a center and a scale, and z = (x - mean) / scale, within ±LIMIT. Wild values must
not move them, yet a new unit or a new zero must, within a few batches. Three parts do this, each a
function of (state, batch) on the device, without a host read:

- **A robust reference.** c is the *remedian* of WINDOW examples: the median of three medians of
  three, an example's own value, which four wild values of nine may leave alone, and in a feature
  that is mostly zero it is 0 exactly [P. Rousseeuw and G. Bassett, 'The remedian: a robust
  averaging method for large data sets', JASA 85, 1990]. b, the *magnitude*, is a robust geometric
  mean of the distances |x - c| that are not zero: log b moves by the mean of
  ψ(log |x - c| / b), where ψ clamps to ±STEP (an M-estimator [P. Huber, 'Robust estimation of a
  location parameter', 1964]). A value that no other value resembles moves b by STEP / MEMORY nats
  at most, were it 1e18. As zeros do not count, b is the size of what a sparse feature shows when
  it shows anything.
- **Moments.** Mean and scale are the mean and the standard deviation of values clamped to
  c ± WINSOR · b, plain averages up to HORIZON examples and exponential ones after. For normal
  inputs that is 4 standard deviations.
- **Change tests.** By Chebyshev's inequality a median is within one standard deviation of the
  mean; if c is more than FAR away, the zero has moved, and the mean goes to where the values are.
  Page's two-sided cumulative sum of ψ beyond DRIFT nats an example shows whether b has become
  wrong; above ALARM, mean, scale and b start again from this batch. As b is what makes the mean of
  ψ zero, whatever the distribution, the sum stays near 0 until the unit changes, up or down; it
  counts examples, since none adds more than STEP [E. S. Page, 'Continuous inspection schemes',
  Biometrika 41, 1954].

Distances are divided by b before anything is squared or multiplied, so inputs of 1e-18 are as good
as inputs of 1, and inputs times a power of two give equal z.
"""

import torch
from torch import Tensor

LIMIT = 5.0
"""Standardized inputs are clamped to ±LIMIT."""
HORIZON = 1_000.0
"""Examples that mean and scale remember."""
WINDOW = 9
"""Examples that center and magnitude are taken from: rows of a batch, evenly spaced, or the newest
ones where batches are smaller."""
WINSOR = 8.0
"""Magnitudes from the center to which values are clamped for mean and scale."""
STEP = 4.0
"""Nats that one distance counts at most."""
MEMORY = 64.0
"""Nonzero distances that the magnitude remembers."""
DRIFT = 1.5
"""Nats that a distance may differ from the magnitude before it counts as evidence."""
ALARM = 16.0
"""Evidence, in nats, at which a feature starts again: the unit has changed e^DRIFT-fold or more."""
FAR = 4.0
"""Scales between center and mean at which the zero has moved."""
MAX_RATIO = 1e18
DEPTH = 1 / 64
"""Least scale, in magnitudes. It matters to features that are zero in all but 1 in 4,000 examples,
whose values are at ±LIMIT either way."""
TINY = 2.0**-126
"""Least scale: the smallest normal fp32."""
UNKNOWN = -1.0
"""Magnitude of a feature that has had one value only."""


class Standardizer:
    """z = clamp((x - mean) / scale, ±LIMIT), with statistics that follow the stream.

    All of this is on the device; nothing is read back.

    Args:
        width: number of features d.
        device: where inputs will be.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        initial = torch.tensor([0.0, 1.0, 0.0, UNKNOWN, 0.0], device=device)
        self.statistics = initial[:, None].repeat(1, width)
        """By feature, fp32 [5, d]: mean; standard deviation; examples that both are averages of;
        magnitude; evidence, in nats, above 0 that the magnitude is too small."""
        self.recent = torch.zeros(WINDOW, width, device=device)
        """The newest examples, fp32 [9, d], the newest last; rows of a batch if it is larger."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"statistics": self.statistics, "recent": self.recent}

    @property
    def mean(self) -> Tensor:
        """Mean of the inputs, fp32 [d]."""
        return self.statistics[0]

    @property
    def scale(self) -> Tensor:
        """Difference between inputs that is 1 in z, fp32 [d]: the standard deviation, but not
        below DEPTH magnitudes, and above 0."""
        _, deviation, _, magnitude, _ = self.statistics.unbind(0)
        return torch.maximum(deviation, magnitude * DEPTH).clamp_(min=TINY)

    def start(self, inputs: Tensor) -> None:
        """Start from the first batch, fp32 [n, d]; `update` then takes it, too."""
        values = inputs.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        center = values.median(dim=0).values
        distances = (values - center).abs_()
        least = distances.masked_fill(distances == 0.0, torch.inf).sort(dim=0).values
        middle = ((distances > 0.0).sum(dim=0) - 1).clamp_(min=0) // 2
        magnitude = least.gather(0, middle[None])[0]
        known = magnitude < torch.inf
        unit = torch.where(known, magnitude, 1.0)
        shift, variance = _moments(values, center, unit.reciprocal())
        mean, deviation, _, own, _ = self.statistics.unbind(0)
        mean.copy_(torch.addcmul(center, unit, shift))
        deviation.copy_(variance.sqrt_().mul_(unit))
        own.copy_(torch.where(known, magnitude, UNKNOWN))
        places = torch.arange(WINDOW, device=inputs.device) * len(inputs) // WINDOW
        self.recent.copy_(values[places])

    def standardized(self, inputs: Tensor) -> Tensor:
        """Return the inputs of the model, fp32 [n, d], within ±LIMIT."""
        return standardized(inputs, self.mean, self.scale)

    def update(self, inputs: Tensor, keep: Tensor) -> None:
        """Update the statistics with a batch.

        Args:
            inputs: fp32 [n, d]. A feature with a value that is not a number keeps its statistics.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n = len(inputs)
        mean, deviation, count, magnitude, evidence = self.statistics.unbind(0)
        rows = self._window(inputs)
        center = remedian(rows)

        unit = magnitude.abs()
        relative = (rows - center).abs_().mul_(unit.reciprocal())
        nonzero = relative.sign()
        logs = relative.sub_(nonzero - 1.0).log_()  # 0 where the distance is
        found = nonzero.sum(dim=0)
        log_mean = logs.sum(dim=0).div_(found.clamp(min=1.0))
        shown = found if n >= WINDOW else nonzero[-n:].sum(dim=0)
        steps = logs[-n:].clamp_(-STEP, STEP).sum(dim=0)
        moved = evidence + steps
        allowed = shown * DRIFT
        evidence = moved.sub_(torch.clamp(moved, -allowed, allowed))
        alarm = evidence.abs() > ALARM
        restarts = alarm.logical_or(magnitude < 0.0)
        step = torch.where(restarts, log_mean, steps.div_(shown.clamp_(min=MEMORY)))
        unit = step.exp_().mul_(unit)
        inverse = unit.reciprocal()

        count = count.masked_fill(restarts, 0.0)
        shift, variance = _moments(inputs, center, inverse)
        # in units of the magnitude, from the center
        old = (mean - center).mul_(inverse)
        wide = (deviation * inverse).clamp_(max=MAX_RATIO)
        far = old.abs() > wide.mul(FAR).add_(FAR * DEPTH)
        old = old.masked_fill_(far, 0.0)
        count = count.masked_fill(far, 0.0)
        whole = count + n
        rate = count.div(whole).neg_().add_(1.0)
        if n < WINDOW:
            young = count < WINDOW
            rate.masked_fill_(young, 1.0)
            of_rows = _moments(rows, center, inverse)
            shift = torch.where(young, of_rows[0], shift)
            variance = torch.where(young, of_rows[1], variance)
        between = (shift - old).square_().mul_(1.0 - rate)
        variance = torch.lerp(wide.square_(), between.add_(variance), rate)
        deviation = variance.sqrt_().mul_(unit)
        statistics = torch.stack(
            [
                torch.addcmul(center, unit, torch.lerp(old, shift, rate)),
                deviation,
                whole.clamp_(max=HORIZON),
                torch.where(found > 0.0, unit, magnitude),
                evidence.masked_fill_(alarm, 0.0),
            ]
        )
        takes = (deviation * 0.0).eq(0.0).logical_and_(keep)
        self.statistics.copy_(torch.where(takes, statistics, self.statistics))
        self.recent.copy_(torch.where(takes, rows, self.recent))

    def _window(self, inputs: Tensor) -> Tensor:
        """Return the next `recent`, which ends with what it takes of this batch."""
        n = len(inputs)
        if n < WINDOW:
            return torch.cat([self.recent[n:], inputs])
        every = n // WINDOW
        return inputs[(n - 1) % every :: every][-WINDOW:].contiguous()


def standardized(inputs: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return clamp((x - mean) / scale, ±LIMIT), fp32 [n, d].

    Args:
        inputs: fp32 [n, d].
        mean: fp32 [d].
        scale: fp32 [d], above 0.
    """
    return (inputs - mean).mul_(scale.reciprocal()).clamp_(-LIMIT, LIMIT)


def remedian(rows: Tensor) -> Tensor:
    """Return the median of medians of three, [d], of rows [3^k, d]."""
    while len(rows) > 1:
        a, b, c = rows.view(3, len(rows) // 3, -1).unbind(0)
        rows = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
    return rows[0]


def _moments(inputs: Tensor, center: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance, [d], of (x - center) · inverse within ±WINSOR."""
    values = (inputs - center).mul_(inverse).clamp_(-WINSOR, WINSOR)
    mean = values.mean(dim=0)
    return mean, values.square_().mean(dim=0).sub_(mean.square()).clamp_(min=0.0)
