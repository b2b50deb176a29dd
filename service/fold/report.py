"""What a step says of itself."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """What one step did: numbers where the host has them, else 0-dim device tensors.

    Thousands of reports are kept. Tensors of the host would lie scattered among the large ones of
    each step, and no hole between them would be large enough for the next.
    """

    version: int
    """Of the model after the step."""
    accuracy: float | Tensor
    """Of the predictions before the update, in [0, 1]."""
    loss: float | Tensor
    """Mean cross-entropy of the same, in nats."""
    kept: bool | Tensor
    """Whether it was learned."""
