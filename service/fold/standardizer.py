"""Online standardization whose statistics wild values hardly move, and new units move at once.

Each feature has a mean and a scale, and z = (x - mean) / scale, within ±LIMIT. The statistics are a
function of (state, batch) on the device, without a host read, in three parts:

- **A robust reference.** The *center* c is the remedian of WINDOW examples, the median of three
  medians of three. It is the value of an example, so that it is exactly 0 in a feature that is
  mostly 0; three wild values of nine never move it to themselves [P. Rousseeuw and G. Bassett, 'The
  remedian: a robust averaging method for large data sets', JASA 85, 1990]. The *magnitude* b is a
  robust geometric mean of those distances |x - c| that are not 0. With t = log(|x - c| / b) and
  ψ(t) = t within ±STEP, an M-estimator [P. Huber, 'Robust estimation of a location parameter',
  1964], m distances that are not 0 move it by

      log b ← log b + Σ ψ(t) / max(m, MEMORY).

  No value moves it by more than STEP / MEMORY nats, were it 1e18. As zeros do not count, b is the
  size of what a sparse feature shows when it shows anything.
- **Moments.** The mean and the standard deviation are those of values within c ± WINSOR · b: plain
  averages up to HORIZON examples, exponential ones after that. For normal inputs WINSOR · b is 4
  standard deviations. One wild value in a hundred adds a tenth to the standard deviation.
- **Change tests**, which count examples, so that a few wild ones show nothing. By Chebyshev's
  inequality a median is at most one standard deviation from the mean. Where c is FAR of them away
  for PATIENCE examples, the zero has moved. Page's cumulative sum shows whether the unit has
  changed [E. S. Page, 'Continuous inspection schemes', Biometrika 41, 1954]; this is its two-sided
  form, towards 0 by DRIFT an example:

      S ← shrink(S + Σ ψ(t), DRIFT · m),   shrink(x, a) = sign(x) · max(0, |x| - a).

  As b makes the mean of ψ zero whatever the distribution, S stays near 0 until the unit changes, up
  or down, and then gains STEP - DRIFT an example. After either change the moments start again from
  this batch, after the second one b too. In streams whose neighbours are alike, a batch says less
  than its size; hence PATIENCE.

Everything is divided by b before it is squared or multiplied. So inputs of 1e-18 are as good as
inputs of 1, and inputs times a power of two give the same z.
"""

import torch
from torch import Tensor

from funnel.compiled import loops

LIMIT = 5.0
"""Standardized inputs are clamped to ±LIMIT."""
HORIZON = 1_000.0
"""Examples that the moments remember."""
WINDOW = 9
"""Examples that center and magnitude are taken from: rows of a batch, evenly spaced; the newest
examples where batches are smaller."""
WINSOR = 8.0
"""Magnitudes from the center to which values are clamped for the moments."""
STEP = 4.0
"""Nats that a distance counts at most."""
MEMORY = 64.0
"""Distances that the magnitude remembers."""
DRIFT = 1.5
"""Nats by which distances may differ from the magnitude without being evidence."""
PATIENCE = (8.0, 32.0)
"""Examples that show a change: as many as the moments are averages of, within these bounds."""
FAR = 4.0
"""Standard deviations between center and mean that show that the zero has moved."""
ROWS = 6.5
"""Rows of a window that it takes at least to show that the unit has changed."""
DEPTH = 1 / 64
"""Least scale, in magnitudes. If fewer than 1 in 4,096 examples are not 0, the deviation is
smaller, and these examples are at ±LIMIT either way."""
TINY = 2.0**-126
"""Least scale of a feature that has always been the same: the smallest normal fp32."""
UNKNOWN = -1.0
"""Magnitude of such a feature; its values then count in units of 1."""
MAX_RATIO = 1e18
"""Largest ratio of a standard deviation to a new magnitude, so that its square is finite."""
MAX_DISTANCE = 1e36
"""Largest distance of the mean from the center in magnitudes, so that it is finite."""
MAX_STEP = 80.0
"""Nats that the magnitude moves at most in one batch, so that it is finite."""
KERNELS = "service.fold.fused.kernels"


class Standardizer:
    """z = clamp((x - mean) / scale, ±LIMIT), with statistics that follow the stream.

    All of this is on the device; nothing is read back.

    Args:
        width: number of features d.
        device: where inputs will be.
        fuses: whether compiled loops run in place of operators, if there are any. They round
            otherwise.
    """

    def __init__(self, width: int, device: torch.device, fuses: bool = False) -> None:
        self.width, self._fuses = width, fuses and device.type == "cpu"
        initial = torch.tensor([0.0, 1.0, 0.0, UNKNOWN, 0.0, 0.0], device=device)
        self.statistics = initial[:, None].repeat(1, width)
        """By feature, fp32 [6, d]: mean; standard deviation; examples that both are averages of;
        magnitude; S, evidence in nats, above 0 that the magnitude is too small; newest examples
        whose center was far from the mean."""
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
        _, deviation, _, magnitude, *_ = self.statistics.unbind(0)
        return torch.maximum(deviation, magnitude * DEPTH).clamp_(min=TINY)

    @property
    def is_blank(self) -> Tensor:
        """Which features have no statistics yet, bool [d]."""
        return self.statistics[2] == 0.0

    def resized(self, width: int) -> "Standardizer":
        """Return a standardizer of more features, which are blank; the others keep their bits.

        Args:
            width: number of features, at least as many as now.
        """
        larger = Standardizer(width, self.statistics.device)
        for mine, theirs in zip(self.tensors().values(), larger.tensors().values(), strict=True):
            theirs[:, : mine.shape[1]] = mine
        return larger

    def start_blank(self, inputs: Tensor) -> bool:
        """Start the features that are blank and have values in this batch.

        Args:
            inputs: fp32 [n, d]. Values of a feature that has none are NaN.

        Returns:
            Whether no feature was blank; none will be again.
        """
        if not bool(self.is_blank.any()):
            return True
        starts = self.is_blank & ~inputs.isnan().all(dim=0)
        if bool(starts.any()):
            fresh = Standardizer(inputs.shape[1], inputs.device)
            fresh.start(inputs)
            for mine, theirs in zip(self.tensors().values(), fresh.tensors().values(), strict=True):
                mine.copy_(torch.where(starts, theirs, mine))
        return False

    def start(self, inputs: Tensor) -> None:
        """Start from the first batch, fp32 [n, d]; `update` then takes it, too.

        The center is the median of the whole batch here, and the magnitude the median of the
        distances that are not 0, or below TINY. Values that are not finite count as 0.
        """
        values = inputs.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        center = values.median(dim=0).values
        distances = (values - center).abs_()
        is_none = distances < TINY  # the reciprocal of a smaller unit would not be finite
        least = distances.masked_fill(is_none, torch.inf).sort(dim=0).values
        middle = ((~is_none).sum(dim=0) - 1).clamp_(min=0) // 2
        magnitude = least.gather(0, middle[None])[0]
        known = magnitude < torch.inf
        unit = torch.where(known, magnitude, 1.0)
        shift, variance = _moments(values, center, unit.reciprocal())
        mean, deviation, _, own, *_ = self.statistics.unbind(0)
        mean.copy_(torch.addcmul(center, unit, shift))
        deviation.copy_(variance.sqrt_().mul_(unit))
        own.copy_(torch.where(known, magnitude, UNKNOWN))
        places = torch.arange(WINDOW, device=inputs.device) * len(inputs) // WINDOW
        self.recent.copy_(values[places])

    def standardized(self, inputs: Tensor) -> Tensor:
        """Return the inputs of the model, fp32 [n, d], within ±LIMIT."""
        if self._fuses and (kernels := loops(KERNELS)) is not None:
            mean, deviation, _, magnitude, *_ = self.statistics.numpy()
            found = torch.empty_like(inputs)
            kernels.standardize(inputs.numpy(), mean, deviation, magnitude, found.numpy())
            return found
        return standardized(inputs, self.mean, self.scale)

    def update(self, inputs: Tensor, keep: Tensor) -> None:
        """Update the statistics with a batch.

        Args:
            inputs: fp32 [n, d]. A feature with a value that is not a number keeps its statistics.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        if self._fuses and (kernels := loops(KERNELS)) is not None:
            if keep:
                kernels.update(inputs.numpy(), self.statistics.numpy(), self.recent.numpy())
            return
        n = len(inputs)
        mean, deviation, count, magnitude, evidence, away = self.statistics.unbind(0)
        rows = self._window(inputs)
        center = remedian(rows)

        unit = magnitude.abs()
        relative = (rows - center).abs_().mul_(unit.reciprocal())
        nonzero = relative.sign()
        logs = relative.sub_(nonzero - 1.0).log_()  # 0 where the distance is
        found = nonzero.sum(dim=0)
        log_mean = logs.sum(dim=0).div_(found.clamp(min=1.0))
        new = min(n, WINDOW)
        shown = found if n >= WINDOW else nonzero[-n:].sum(dim=0)
        steps = logs[-n:].clamp_(-STEP, STEP).sum(dim=0)
        moved = torch.add(evidence, steps, alpha=n / new)
        allowed = shown * (DRIFT * n / new)
        evidence = moved.sub_(torch.clamp(moved, -allowed, allowed))
        patience = count.clamp(*PATIENCE)
        alarm = evidence.abs() > patience.clamp(min=ROWS * n / new) * (STEP - DRIFT)
        restarts = alarm.logical_or(magnitude < 0.0)
        step = torch.where(restarts, log_mean, steps.div_(shown.clamp_(min=MEMORY)))
        unit = step.clamp_(max=MAX_STEP).exp_().mul_(unit).clamp_(min=TINY)
        inverse = unit.reciprocal()

        # in units of the magnitude, from the center
        old = (mean - center).mul_(inverse).clamp_(-MAX_DISTANCE, MAX_DISTANCE)
        wide = (deviation * inverse).clamp_(max=MAX_RATIO)
        bound = wide.mul(FAR).add_(FAR * DEPTH)
        away = away.add(n).mul_(old.abs() > bound)
        restarts.logical_or_(away > patience)
        count = count.masked_fill(restarts, 0.0)
        whole = count + n
        rate = count.div(whole).neg_().add_(1.0)
        shift, variance = _moments(inputs, center, inverse)
        if n < WINDOW:
            restarts = count < WINDOW
            rate.masked_fill_(restarts, 1.0)
            of_rows = _moments(rows, center, inverse)
            shift = torch.where(restarts, of_rows[0], shift)
            variance = torch.where(restarts, of_rows[1], variance)
        old = torch.where(restarts, shift, old)
        change = torch.clamp(shift.sub_(old), -bound, bound)
        between = change.square().mul_(1.0 - rate)
        variance = torch.lerp(wide.square_(), between.add_(variance), rate)
        deviation = variance.sqrt_().mul_(unit)
        statistics = torch.stack(
            [
                torch.addcmul(center, unit, old.add_(change.mul_(rate))),
                deviation,
                whole.clamp_(max=HORIZON),
                torch.where(found > 0.0, unit, magnitude),
                evidence.masked_fill_(alarm, 0.0),
                away.masked_fill_(restarts, 0.0),
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
