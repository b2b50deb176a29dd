"""Quarantine for batches whose loss is far above the recent ones, unless they become the rule."""

import torch
from torch import Tensor

HORIZON = 100.0
"""Batches that level and spread average over."""
WARM_UP = 20
"""Batches that are learned in any case, before there is a recent range."""
MAX_IN_A_ROW = 2
"""Outlying batches in a row that are quarantined. The next one is drift, which is learned."""


class LossGuard:
    """Decides which batches are outliers; all on the device, nothing is read back.

    Args:
        device: where losses will be.
    """

    def __init__(self, device: torch.device) -> None:
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        """Batches learned under the guard."""
        self.level = torch.zeros((), device=device)
        """Exponentially weighted mean of their losses, in nats."""
        self.spread = torch.zeros((), device=device)
        """Exponentially weighted mean of their distances from the level, in nats."""
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        """Outlying batches since the last usual one."""
        self.quarantined = torch.zeros((), dtype=torch.int64, device=device)
        """Batches quarantined so far."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {
            "seen": self.seen,
            "level": self.level,
            "spread": self.spread,
            "in_a_row": self.in_a_row,
            "quarantined": self.quarantined,
        }

    def judge(self, loss: Tensor, finite: Tensor, width: float) -> Tensor:
        """Return whether a batch is to be learned, bool, 0-dim, and take its loss into account.

        Args:
            loss: its mean loss, 0-dim.
            finite: bool, 0-dim; where it is False the batch is skipped and does not count.
            width: an outlier lies this many spreads above the level.
        """
        is_high = loss > self.level + width * self.spread
        outlying = finite & (self.seen >= WARM_UP) & is_high
        held = outlying & (self.in_a_row < MAX_IN_A_ROW)
        keep = finite & ~held
        distance = torch.where(self.seen > 0, (loss - self.level).abs(), 0.0)
        rate = 1.0 / (self.seen + 1).clamp(max=HORIZON)
        for mean, value in ((self.spread, distance), (self.level, loss)):
            mean.copy_(torch.where(keep, mean + rate * (value - mean), mean))
        self.in_a_row.copy_(torch.where(finite, (self.in_a_row + 1) * outlying, self.in_a_row))
        self.seen.add_(keep)
        self.quarantined.add_(held)
        return keep
