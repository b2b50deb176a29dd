"""The report of a step."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """The result of one step: numbers on a CPU, 0-dim device tensors on a GPU.

    Thousands of reports are kept. Small host tensors would be scattered among the large ones of
    each step and fragment the memory.
    """

    version: int
    """Version of the model after the step."""
    accuracy: float | Tensor
    """Accuracy of the predictions before the update, in [0, 1]."""
    loss: float | Tensor
    """Mean cross-entropy of the same predictions, in nats."""
    kept: bool | Tensor
    """True if the batch was learned."""
    floor: float | Tensor = math.nan
    """Mean cross-entropy of the floor `majority` on the batch, in nats."""
    linear: float | Tensor = math.nan
    """The loss of the linear experts, where other families answer with them; otherwise NaN."""
