"""A cap on the gradient norm, relative to nearly all of the recent ones."""

import math

import torch
from torch import Tensor

NORM_CAP = 10.0
"""A gradient may be this many times longer than nearly all recent ones; a longer one is cut."""
NORM_UP, NORM_DOWN = 0.45, 0.05
"""Steps of the tracked quantile of log ‖g‖: it rests where a share DOWN / (UP + DOWN) is above."""


class NormCap:
    """Tracks a high quantile of log ‖g‖ on the device; nothing is read back.

    Args:
        level: log of the norm that nearly all recent ones stay under, changed in place; inf before
            the first. 0-dim for one model, [K] for K experts.
    """

    def __init__(self, level: Tensor) -> None:
        self.level = level

    @classmethod
    def fresh(cls, shape: tuple[int, ...], device: torch.device) -> "NormCap":
        """Return a cap that has seen no gradient."""
        return cls(torch.full(shape, math.inf, device=device))

    def factor(self, norm: Tensor) -> Tensor:
        """Return the factor, at most 1, for gradients of these norms."""
        return (self.level + math.log(NORM_CAP) - norm.log()).clamp_(max=0.0).exp_()

    def update(self, norm: Tensor, keep: Tensor) -> None:
        """Move the level towards these norms, where ``keep``, bool, is True."""
        log_norm, level = norm.log(), self.level
        moved = level + torch.where(log_norm > level, NORM_UP, -NORM_DOWN)
        moved = torch.where(level.isinf(), log_norm, moved)
        level.copy_(torch.where(keep & (norm > 0), moved, level))
