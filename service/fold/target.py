"""The target of regression: numbers as learners take them, in standardized units.

The unit is the robust one of inputs (`service.fold.standardizer`), but it is held: it moves only
once the newest statistics are half of it, twice of it, or one unit away. Weights follow it
(`funnel.pool.pool.Pool.rescale`), so that no answer changes where it moves.
"""

import torch
from torch import Tensor

from funnel.pool.loss import REACH
from service.fold.standardizer import TINY, Standardizer

LIMIT = 1e6
"""Standardized numbers are clamped to ±LIMIT."""
MAX_RATIO = 2.0
"""Ratio of scales at which the unit moves."""


class Target:
    """Standardizes numbers, and turns answers back; nothing is read on the host.

    Args:
        device: where numbers will be.
        is_blank: whether there is no unit before the first batch, as in every new model. It was 1.
    """

    def __init__(self, device: torch.device, is_blank: bool = False) -> None:
        self._statistics = Standardizer(1, device)
        self.unit = torch.tensor([0.0, TINY if is_blank else 1.0], device=device)
        """Zero and size of the unit, fp32 [2]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return self._statistics.tensors() | {"unit": self.unit}

    @property
    def is_known(self) -> Tensor:
        """True once a batch has been learned, bool, 0-dim. The first batch is scored in a unit that
        is its own, so that score says nothing."""
        return ~self._statistics.is_blank[0]

    def start(self, numbers: Tensor) -> None:
        """Start from the first batch, fp32 [n]; `update` then takes it, too."""
        self._statistics.start(numbers[:, None])
        self.unit.copy_(self._newest())

    def start_blank(self, numbers: Tensor) -> None:
        """Start from a batch, fp32 [n], unless it has started; this reads the host."""
        if bool(self._statistics.is_blank.any()):
            self.start(numbers)

    def _newest(self) -> Tensor:
        return torch.cat([self._statistics.mean, self._statistics.scale])

    def scaled(self, numbers: Tensor) -> Tensor:
        """Return standardized numbers, fp32 [n]."""
        zero, size = self.unit.unbind(0)
        return (numbers - zero).div(size.clamp(min=TINY)).clamp_(-LIMIT, LIMIT)

    def bounded(self, numbers: Tensor) -> Tensor:
        """Return numbers within REACH units of the zero, as no answer of a learner goes further."""
        zero, size = self.unit.to(numbers.dtype).unbind(0)
        reach = REACH * size.clamp(min=TINY)
        return numbers.clamp(zero - reach, zero + reach)

    def update(self, numbers: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Update the statistics with a batch, and the unit if it has to move.

        Args:
            numbers: fp32 [n].
            keep: bool, 0-dim; where it is False nothing changes.

        Returns:
            The ratio of the unit's old size to the new one, and what the old zero is in the new
            unit, both 0-dim: 1 and 0 if the unit stays.
        """
        self._statistics.update(numbers[:, None], keep)
        new = self._newest()
        ratio = new[1] / self.unit[1]
        moves = ((new[0] - self.unit[0]).abs() > self.unit[1]) | (ratio > MAX_RATIO)
        moves = keep & (moves | (ratio < 1.0 / MAX_RATIO))
        before, after = self.unit.clone(), torch.where(moves, new, self.unit)
        self.unit.copy_(after)
        size = after[1].clamp(min=TINY)
        return before[1].clamp(min=TINY) / size, (before[0] - after[0]) / size


def answered(answers: Tensor, unit: Tensor, has_deviation: bool) -> Tensor:
    """Return answers as `restored` does, with a deviation of NaN while there is no unit: before the
    first batch, and while all numbers were equal and came in small batches."""
    found = restored(answers, unit, has_deviation)
    if not has_deviation:
        return found
    deviation = found[:, -1:].where(unit[1] > TINY, torch.nan)
    return torch.cat([found[:, :-1], deviation], dim=1)


def restored(answers: Tensor, unit: Tensor, has_deviation: bool) -> Tensor:
    """Return answers in the unit of the numbers that were sent.

    Args:
        answers: standardized, fp32 [n, A].
        unit: as `Target.unit`.
        has_deviation: whether the last column is a standard deviation, which has no zero.
    """
    zero, size = unit.unbind(0)
    found = answers * size
    if has_deviation:
        return torch.cat([found[:, :-1] + zero, found[:, -1:]], dim=1)
    return found + zero
