"""Holding back a batch whose loss lies far above the recent ones, unless more of them come."""

import torch
from torch import Tensor

HORIZON = 100.0
"""Batches that level and spread remember."""
WARM_UP = 20
"""Batches that are all learned, before there is a recent range."""
MAX_IN_A_ROW = 2
"""Outlying batches in a row that are held back. One more, and it is drift, which is learned."""


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
        """The same of their distances from the level."""
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        """Outlying batches since the last usual one."""
        self.quarantined = torch.zeros((), dtype=torch.int64, device=device)
        """Batches held back."""

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
        """Say whether a batch is to be learned, and remember it.

        Args:
            loss: its mean loss, 0-dim.
            finite: bool, 0-dim; where it is False the batch is left out, and not remembered.
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
