"""How often each label came lately: experts that know no inputs.

Alone they are weak; under a stack (`funnel.families.stack`) they are its intercepts, and where a
label tends to come again they carry much of the answer.
"""

import torch
from torch import Tensor
from torch.nn import functional

from funnel.families.interface import Examples

HALF_LIVES = (0.3, 3.0, 30.0, 300.0)
"""Examples after which a label counts half. The first is nearly the last label alone."""
RECENT = 1
"""The half-life whose frequencies trees see."""
FORGOTTEN = 1e-3
"""Share of a batch that is dealt to all labels alike, so that none has the frequency 0."""


class Frequencies:
    """Decayed frequencies of the labels, one expert for each half-life.

    Args:
        is_open: which classes there are, bool [C].
    """

    names = tuple(f"frequencies/{half:g}" for half in HALF_LIVES)

    def __init__(self, is_open: Tensor) -> None:
        self.is_open = is_open
        self.shares = (is_open / is_open.sum()).repeat(len(HALF_LIVES), 1)
        """fp32 [4, C], each row sums to 1."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"shares": self.shares}

    @property
    def recent(self) -> Tensor:
        """Frequencies of the latest labels, fp32 [C], the tensor itself."""
        return self.shares[RECENT]

    def learn(self, examples: Examples) -> None:
        """Learn a batch; an example of weight w counts as w examples do."""
        weights = examples.weights
        after = weights.flip(0).cumsum(0).flip(0) - weights  # that of the later examples
        labels = functional.one_hot(examples.labels, len(self.is_open)).float()
        even = self.is_open / self.is_open.sum()
        for shares, half in zip(self.shares, HALF_LIVES, strict=True):
            kept = torch.exp2(-after / half) * (1.0 - torch.exp2(-weights / half))
            shares.mul_(torch.exp2(-weights.sum() / half)).add_(kept @ labels)
            shares.lerp_(even, FORGOTTEN).div_(shares.sum())
