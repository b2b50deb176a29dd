"""Labels of late: experts that know no inputs.

Alone they are weak; under a stack (`funnel.families.stack`) they are its intercepts, and where a
label tends to come again they carry much of the answer.
"""

import torch
from torch import Tensor
from torch.nn import functional

from funnel.families.interface import Examples
from funnel.families.memory import Memory
from funnel.families.numbers import Numbers
from funnel.families.outcomes import Classes

HALF_LIVES = (0.3, 3.0, 30.0, 300.0)
"""Examples after which a label counts half. The first is nearly the last label alone."""
NUMBER_HALF_LIVES = (0.1, 3.0, 30.0, 300.0)
"""Examples after which a number counts half. At the first, only the last number counts."""
LOOKS_BACK = 1_000
"""Numbers that are looked at."""
FORGOTTEN = 1e-3
"""Share of a batch that is dealt to all labels alike, so that none has the frequency 0."""


class Frequencies:
    """Decayed frequencies of the labels, one expert for each half-life.

    Args:
        outcome: of the labels.
    """

    names = tuple(f"frequencies/{half:g}" for half in HALF_LIVES)

    def __init__(self, outcome: Classes) -> None:
        is_open = self.is_open = outcome.is_open
        self.shares = (is_open / is_open.sum()).repeat(len(HALF_LIVES), 1)
        """fp32 [4, C], each row sums to 1."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"shares": self.shares}

    def learn(self, examples: Examples, memory: Memory) -> None:
        """Learn a batch; an example of weight w counts as w examples do."""
        weights = examples.weights
        after = weights.flip(0).cumsum(0).flip(0) - weights  # that of the later examples
        labels = functional.one_hot(examples.labels, len(self.is_open)).float()
        even = self.is_open / self.is_open.sum()
        half = torch.tensor(HALF_LIVES, device=weights.device)[:, None]
        kept = torch.exp2(-after / half) * (1.0 - torch.exp2(-weights / half))
        self.shares.mul_(torch.exp2(-weights.sum() / half)).add_(kept @ labels)
        self.shares.lerp_(even, FORGOTTEN).div_(self.shares.sum(dim=1, keepdim=True))


class Recent:
    """Decayed means or quantiles of the newest numbers, one expert for each half-life.

    Args:
        outcome: of the labels.
    """

    names = tuple(f"recent/{half:g}" for half in NUMBER_HALF_LIVES)

    def __init__(self, outcome: Numbers) -> None:
        self.outcome = outcome
        self.shares = outcome.alone(outcome.prior()).repeat(len(NUMBER_HALF_LIVES), 1)
        """fp32 [4, A]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"shares": self.shares}

    def learn(self, examples: Examples, memory: Memory) -> None:
        """Learn a batch that has come into the memory; an example of weight w is as old as w."""
        newest = memory.newest(LOOKS_BACK)
        weights = memory.weights[newest]
        age = weights.cumsum(0) - weights
        halves = torch.tensor(NUMBER_HALF_LIVES, device=weights.device)[:, None]
        kept = torch.exp2(-age / halves) * (1.0 - torch.exp2(-weights / halves))
        self.shares.copy_(self.outcome.summary(memory.labels[newest].expand(len(halves), -1), kept))

    def rescale(self, ratio: Tensor, shift: Tensor) -> None:
        """Continue with numbers in another unit."""
        self.shares.mul_(ratio).add_(shift)
