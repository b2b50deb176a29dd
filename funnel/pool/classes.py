"""Classes that are allocated but have not been seen: they are closed, and get no probability.

A class is closed while its bias is CLOSED. In fp32 its probability is then exactly 0, and so are
its gradient and every step: it stays closed until it is opened. The biases are the only state.
"""

import math

import torch
from torch import Tensor, nn

CLOSED = -1e4
"""Bias of a closed class: its probability is 0 in fp32 if another logit exceeds CLOSED + 104."""


def close_(module: nn.Module, first: int) -> None:
    """Close the classes from ``first`` on, before a pool is made of the module.

    Args:
        module: linear layers with ReLU between them; its last parameter is the bias of the logits.
        first: number of the classes that stay open.
    """
    *_, bias = module.parameters()
    with torch.no_grad():
        bias[first:] = CLOSED


class Classes:
    """Which classes of K experts are open; nothing is read on the host.

    Args:
        bias: of the logits, [K, C].
    """

    def __init__(self, bias: Tensor) -> None:
        self.bias = bias
        logs = [math.log(max(count, 1)) for count in range(bias.shape[1] + 1)]
        self._logs = torch.tensor(logs, device=bias.device)

    def closed(self) -> Tensor:
        """Return which classes are closed, bool [C]."""
        return (self.bias == CLOSED).any(dim=0)

    def log_count(self) -> Tensor:
        """Return the logarithm of the number of open classes, fp32 [1], in nats."""
        count = (~self.closed()).sum()
        return self._logs.index_select(0, count.view(1))

    def open_(self, first: int, stop: int, bias: float) -> None:
        """Open classes for all experts.

        Args:
            first: the first of them.
            stop: the class after the last.
            bias: the logarithm of their prior odds, relative to the open ones.

        Raises:
            ValueError: one of them is open already, or there is no such class.
        """
        if not 0 <= first < stop <= self.bias.shape[1]:
            raise ValueError(
                f"classes {first} to {stop} do not lie in the {self.bias.shape[1]} of the pool"
            )
        if not bool(self.closed()[first:stop].all()):
            raise ValueError(f"one of the classes {first} to {stop - 1} is open already")
        self.bias[:, first:stop] = bias

    def keep_closed(self, biases: Tensor) -> Tensor:
        """Return biases [C] or [K, C] with those of closed classes exactly CLOSED."""
        return torch.where(self.closed(), CLOSED, biases)
